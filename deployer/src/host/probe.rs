//! Whether a replica answers, and whether it still listens.

use std::{io, os::unix::fs::FileTypeExt, path::Path, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

/// Whether `GET /` is answered with 200. Waits behind whatever the replica is working on.
pub(super) async fn answers(socket: &Path, limit: Duration) -> bool {
    let asking = async {
        let mut stream = connect(socket).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: kaai\r\nConnection: close\r\n\r\n").await?;
        let mut head = [0; 12];
        stream.read_exact(&mut head).await?;
        // The rest is read so that the server does not see its answer refused.
        let mut rest = Vec::new();
        stream.take(64 << 10).read_to_end(&mut rest).await?;
        io::Result::Ok(head.starts_with(b"HTTP/1.") && head.ends_with(b" 200"))
    };
    matches!(timeout(limit, asking).await, Ok(Ok(true)))
}

/// Whether somebody listens on the socket. The kernel answers, so a replica that works on a long request does too.
pub(super) async fn listens(socket: &Path, limit: Duration) -> bool {
    matches!(timeout(limit, connect(socket)).await, Ok(Ok(_)))
}

/// Connects to a socket itself: a link that a replica puts in its place leads to somebody else.
async fn connect(socket: &Path) -> io::Result<UnixStream> {
    if !std::fs::symlink_metadata(socket)?.file_type().is_socket() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    UnixStream::connect(socket).await
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn only_a_200_is_an_answer() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        assert!(!answers(&socket, LIMIT).await && !listens(&socket, LIMIT).await, "nobody is there");
        let listener = UnixListener::bind(&socket).unwrap();
        assert!(listens(&socket, LIMIT).await);
        drop(listener.accept().await.unwrap());
        for (answer, good) in
            [("HTTP/1.1 200 OK\r\n\r\nHealthy", true), ("HTTP/1.1 503 No\r\n\r\n", false), ("", false)]
        {
            let serve = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let length = stream.read(&mut request).await.unwrap();
                assert!(request[..length].starts_with(b"GET / HTTP/1.1\r\n"));
                stream.write_all(answer.as_bytes()).await.unwrap();
            };
            let (answered, ()) = tokio::join!(answers(&socket, LIMIT), serve);
            assert_eq!(answered, good, "{answer:?}");
        }
    }

    #[tokio::test]
    async fn a_link_to_another_socket_is_no_replica() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, other) = (folder.path().join("s"), folder.path().join("other"));
        let _listener = UnixListener::bind(&other).unwrap();
        std::os::unix::fs::symlink(&other, &socket).unwrap();
        assert!(listens(&other, LIMIT).await && !listens(&socket, LIMIT).await);
    }

    #[tokio::test]
    async fn a_busy_replica_listens_though_it_does_not_answer() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let _listener = UnixListener::bind(&socket).unwrap();
        assert!(!answers(&socket, Duration::from_millis(50)).await);
        assert!(listens(&socket, LIMIT).await);
    }
}
