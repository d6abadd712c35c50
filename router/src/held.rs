//! The listening socket that a holder hands out, as a router gets it and follows it.
//!
//! See [`crate::hold`] for why. Here is what a router does: ask for the socket, see that it is one, and look for the next holder when this
//! one has gone. Until there is one it goes on with the socket that it has.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt, Interest},
    net::UnixStream,
    time::{Duration, Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{hold::TOKEN, listener::Listeners, server::Doors};

/// How long a holder may take to hand out its socket.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a holder is waited for at the start.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait before a holder is asked again, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// A listening socket, and the connection on which the end of its holder is heard.
#[derive(Debug)]
pub(crate) struct Held {
    socket: TcpListener,
    address: SocketAddr,
    holder: UnixStream,
}

/// Nobody hands out a listening socket.
#[derive(Debug, thiserror::Error)]
#[error(
    "no listening socket is handed out at {path}: {why}; start `kaai-router hold --held {path}`, or leave out --held"
)]
pub struct Error {
    path: PathBuf,
    why: io::Error,
}

impl Held {
    /// The socket for each of `threads`: all of them accept from one queue, so none is left with connections that nobody takes.
    pub(crate) fn listeners(&self, threads: usize) -> io::Result<Listeners> {
        let sockets = (0..threads).map(|_| self.socket.try_clone()).collect::<io::Result<_>>()?;
        Ok(Listeners { sockets, address: self.address, held: true })
    }

    /// Waits until the holder has gone.
    async fn gone(&mut self) {
        // It says nothing more; whatever comes, or the end, means that this is no holder any more.
        let _ = self.holder.read(&mut [0]).await;
    }
}

/// Asks for the socket once.
///
/// # Errors
///
/// Fails when nobody answers within 5 s, or with something else than a listening socket.
pub(crate) async fn take(path: &Path) -> Result<Held, Error> {
    let taken = timeout(ANSWER, async {
        let holder = UnixStream::connect(path).await?;
        let descriptor = receive(&holder).await?;
        let (socket, address) = listening(descriptor)?;
        Ok(Held { socket, address, holder })
    });
    let taken = taken.await.unwrap_or_else(|late| Err(late.into()));
    taken.map_err(|why| Error { path: path.to_owned(), why })
}

/// Asks for the socket until it is there, for 30 s at most; `None` when the router is to stop before that.
///
/// # Errors
///
/// Fails as [`take`] does at last.
pub(crate) async fn wait_for(path: &Path, shutdown: &CancellationToken) -> Result<Option<Held>, Error> {
    let (deadline, mut pause) = (Instant::now() + PATIENCE, PAUSES.0);
    loop {
        match take(path).await {
            Ok(held) => return Ok(Some(held)),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(error) => tracing::debug!(%error, "asking again"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = sleep(pause) => pause = (pause * 2).min(PAUSES.1),
        }
    }
}

/// Hands the serving threads the socket of each next holder, until shutdown.
pub(crate) async fn follow(mut held: Held, path: PathBuf, doors: Doors, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = held.gone() => {}
        }
        tracing::warn!(
            held = %path.display(),
            "the holder of the listening socket has gone: going on with its socket until there is another holder"
        );
        held = loop {
            match wait_for(&path, &shutdown).await {
                Ok(Some(next)) => break next,
                Ok(None) => return,
                Err(error) => tracing::error!(%error, "callers may not reach this router"),
            }
        };
        match held.listeners(doors.threads()) {
            Ok(next) => {
                tracing::info!(address = %held.address, "accepting on the socket of the next holder");
                doors.open(next);
            }
            Err(error) => tracing::error!(%error, "the socket of the next holder cannot be used"),
        }
    }
}

async fn receive(holder: &UnixStream) -> io::Result<OwnedFd> {
    holder
        .async_io(Interest::READABLE, || {
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut message = RecvAncillaryBuffer::new(&mut space);
            let mut token = [0];
            let bytes = [io::IoSliceMut::new(&mut token)];
            let read = recvmsg(holder, &mut { bytes }, &mut message, RecvFlags::CMSG_CLOEXEC)?.bytes;
            let descriptor = message.drain().find_map(|part| match part {
                RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
                _ => None,
            });
            match descriptor {
                Some(descriptor) if read == 1 && token == [TOKEN] => Ok(descriptor),
                _ => Err(io::Error::other("what answers there is no holder")),
            }
        })
        .await
}

/// Sees that a descriptor is what it should be.
fn listening(descriptor: OwnedFd) -> io::Result<(TcpListener, SocketAddr)> {
    let socket = Socket::from(descriptor);
    let tcp = matches!(socket.domain()?, Domain::IPV4 | Domain::IPV6) && socket.r#type()? == Type::STREAM;
    if !tcp || !socket.is_listener()? {
        return Err(io::Error::other("what is handed out there is no listening socket"));
    }
    socket.set_nonblocking(true)?;
    let socket = TcpListener::from(socket);
    let address = socket.local_addr()?;
    Ok((socket, address))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use runtime::shutdown::Tasks;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use tokio::net::UnixListener;

    use super::*;

    /// What a router says of somebody who is no holder, but sends this.
    async fn refusal(bytes: &'static [u8], descriptor: Option<OwnedFd>) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("listen.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (done, over) = tokio::sync::oneshot::channel::<()>();
        Tasks::default().spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut message = SendAncillaryBuffer::new(&mut space);
            let descriptors: Vec<_> = descriptor.iter().map(AsFd::as_fd).collect();
            assert!(descriptors.is_empty() || message.push(SendAncillaryMessage::ScmRights(&descriptors)));
            if !bytes.is_empty() {
                sendmsg(&stream, &[io::IoSlice::new(bytes)], &mut message, SendFlags::NOSIGNAL).unwrap();
            }
            // The connection stays open: silence is what is tried.
            let _ = over.await;
        });
        let refused = take(&path).await.unwrap_err().to_string();
        drop(done);
        assert!(refused.contains("start `kaai-router hold"), "{refused}");
        refused
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_listening_socket_is_refused() {
        let (connected, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let bound = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        for descriptor in [connected.into(), OwnedFd::from(file), bound.into()] {
            let refused = refusal(&[TOKEN], Some(descriptor)).await;
            assert!(refused.contains("is no listening socket") || refused.contains("os error"), "{refused}");
        }
        assert!(refusal(&[TOKEN], None).await.contains("is no holder"));
        assert!(refusal(b"x", Some(other.into())).await.contains("is no holder"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_that_says_nothing_is_not_waited_for() {
        let before = Instant::now();
        assert!(refusal(b"", None).await.contains("timed out"));
        assert_eq!(before.elapsed().as_secs(), ANSWER.as_secs());
        let nowhere = wait_for(Path::new("/no/such/socket"), &CancellationToken::new()).await;
        assert!(nowhere.unwrap_err().to_string().contains("/no/such/socket"));
        assert!(before.elapsed() >= PATIENCE && before.elapsed() < PATIENCE * 2);
        let stopped = CancellationToken::new();
        stopped.cancel();
        assert!(wait_for(Path::new("/no/such/socket"), &stopped).await.unwrap().is_none());
    }
}
