//! A front of a server that falters: the first connections meet a fault, the others are carried through.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// What a connection meets.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// An answer with this status, and `Retry-After`.
    Status(u16),
    /// Its end, in the middle of a request.
    Cut,
}

pub(crate) struct Front {
    pub(crate) address: String,
    faults: Arc<Mutex<VecDeque<Fault>>>,
    _task: JoinSet<()>,
}

impl Front {
    pub(crate) async fn start(server: &str, faults: &[Fault]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let faults = Arc::new(Mutex::new(VecDeque::from(faults.to_vec())));
        let (coming, server) = (faults.clone(), server.to_owned());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let fault = coming.lock().unwrap().pop_front();
                connections.spawn(serve(stream, fault, server.clone()));
            }
        });
        Self { address, faults, _task: task }
    }

    /// How many faults were not met yet.
    pub(crate) fn left(&self) -> usize {
        self.faults.lock().unwrap().len()
    }
}

async fn serve(mut stream: TcpStream, fault: Option<Fault>, server: String) {
    let Some(fault) = fault else {
        let Ok(mut upstream) = TcpStream::connect(server).await else { return };
        // Either side may go at any time.
        let _ = copy_bidirectional(&mut stream, &mut upstream).await;
        return;
    };
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    if let Fault::Status(status) = fault {
        let answer =
            format!("HTTP/1.1 {status} Fault\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}
