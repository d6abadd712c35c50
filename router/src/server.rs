//! The serving threads: each has a listening socket, a runtime and connections of its own.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    sync::Arc,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use runtime::shutdown::Tasks;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::Duration,
};

use crate::{
    caller::{Caller, Connection},
    config::Limits,
    forward,
    listener::Listeners,
    metrics::Meters,
    routes::Routes,
    thread::{Stopping, Thread},
};

/// How long an idle connection may still bring a request once the server is stopped. It is answered, and told to close; closing the
/// connection at once would lose a request that is on its way.
const LAST_CALL: Duration = Duration::from_millis(250);
/// hyper keeps room for this many headers on the stack; any other number costs memory for each request.
const USUAL_HEADERS: usize = 100;

/// Threads that serve requests until they are stopped. Dropped, they stop without anybody waiting for them.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stopping: Stopping,
    ended: Vec<oneshot::Receiver<()>>,
    doors: Doors,
}

/// Where the serving threads get other listening sockets.
#[derive(Debug, Clone, Default)]
pub(crate) struct Doors(Vec<mpsc::UnboundedSender<StdListener>>);

impl Doors {
    pub(crate) fn threads(&self) -> usize {
        self.0.len()
    }

    /// Has each thread accept on another socket from now on.
    pub(crate) fn open(&self, listeners: Listeners) {
        for (thread, socket) in self.0.iter().zip(listeners.sockets) {
            // A thread that has ended needs none.
            let _ = thread.send(socket);
        }
    }
}

/// Where one thread accepts connections.
struct Door {
    socket: StdListener,
    /// Whether the socket outlives this router.
    held: bool,
    next: mpsc::UnboundedReceiver<StdListener>,
}

impl Server {
    /// Starts a thread for each listening socket. `drain` is how long requests may take to finish once it is stopped.
    ///
    /// # Errors
    ///
    /// Fails when the system gives no thread or no event queue.
    pub fn start(listeners: Listeners, routes: &Arc<Routes>, limits: &Limits, drain: Duration) -> io::Result<Self> {
        Self::start_metered(listeners, routes, limits, drain, &Arc::new(Meters::default()))
    }

    pub(crate) fn start_metered(
        listeners: Listeners,
        routes: &Arc<Routes>,
        limits: &Limits,
        drain: Duration,
        meters: &Arc<Meters>,
    ) -> io::Result<Self> {
        let address = listeners.address();
        let limits = Arc::new(limits.clone());
        let held = listeners.held;
        let mut server = Self { address, stopping: Stopping::default(), ended: Vec::new(), doors: Doors::default() };
        let connections = limits.max_connections.div_ceil(listeners.sockets.len()).clamp(1, Semaphore::MAX_PERMITS);
        for (index, socket) in listeners.sockets.into_iter().enumerate() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (end, ended) = oneshot::channel();
            let (door, next) = mpsc::unbounded_channel();
            server.doors.0.push(door);
            let door = Door { socket, held, next };
            let (routes, limits, meters) = (routes.clone(), limits.clone(), meters.clone());
            let stopping = server.stopping.for_one_thread();
            let serve = move || {
                let (thread, janitor) = Thread::new(limits, routes, meters, stopping);
                let served = runtime.block_on(async {
                    thread.background.spawn(janitor.tend());
                    serve(door, &thread, connections, drain).await
                });
                if let Err(error) = served {
                    tracing::error!(%error, "a serving thread has ended");
                }
                // What no caller waits for ends here; a name that is being looked up is not waited for.
                runtime.shutdown_background();
                // Whoever stopped the server may have stopped waiting.
                let _ = end.send(());
            };
            std::thread::Builder::new().name(format!("router-{index}")).spawn(serve)?;
            server.ended.push(ended);
        }
        Ok(server)
    }

    /// The address in use.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where its threads get other listening sockets.
    pub(crate) fn doors(&self) -> Doors {
        self.doors.clone()
    }

    /// Takes no new connection, finishes the requests in hand, and waits until all threads have ended: at most the time to drain.
    pub async fn stop(mut self) {
        self.stopping.begin();
        for ended in self.ended.drain(..) {
            // A thread that has broken down has ended too.
            let _ = ended.await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.begin();
    }
}

async fn serve(mut door: Door, thread: &Arc<Thread>, connections: usize, drain: Duration) -> io::Result<()> {
    let mut listener = TcpListener::from_std(door.socket)?;
    let room = Arc::new(Semaphore::new(connections));
    let serving = Tasks::default();
    let mut sweep = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            biased;
            () = thread.stopping.begun() => break,
            _ = sweep.tick() => thread.pool.sweep(),
            Some(next) = door.next.recv() => {
                let last = std::mem::replace(&mut listener, TcpListener::from_std(next)?);
                take_who_waits(last, &room, &serving, thread)?;
            }
            accepted = accept(&listener, &room) => match accepted {
                Ok((stream, peer, place)) => drop(serving.spawn(connection(stream, peer, place, thread.clone()))),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection; trying again shortly");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
        }
    }
    if door.held {
        // Whoever waits in it is for the router that comes next; under load the queue would never be empty.
        drop(listener);
    } else {
        take_who_waits(listener, &room, &serving, thread)?;
    }
    if tokio::time::timeout(drain, serving.wait()).await.is_err() {
        tracing::warn!(?drain, "requests were still in hand when the time to drain was over");
    }
    Ok(())
}

/// Serves those who have connected already, and closes the socket: closing it on them would reset their connections.
fn take_who_waits(
    listener: TcpListener,
    room: &Arc<Semaphore>,
    serving: &Tasks,
    thread: &Arc<Thread>,
) -> io::Result<()> {
    let listener = listener.into_std()?;
    while let Ok((stream, peer)) = listener.accept() {
        let Ok(place) = room.clone().try_acquire_owned() else { break };
        stream.set_nonblocking(true)?;
        serving.spawn(connection(TcpStream::from_std(stream)?, peer, place, thread.clone()));
    }
    Ok(())
}

/// Waits for room, then for a connection: beyond the limit, callers wait in the kernel.
async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = room.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, place))
}

async fn connection(stream: TcpStream, peer: SocketAddr, place: OwnedSemaphorePermit, thread: Arc<Thread>) {
    let _place = place;
    thread.meters.connections.inc();
    let meters = thread.meters.clone();
    // Head and body may go out in two writes; waiting for the first one's acknowledgement would cost 40 ms.
    let _ = stream.set_nodelay(true);
    let caller = Caller::new(peer.ip().to_canonical());
    let limits = thread.limits.clone();
    let mut http = http1::Builder::new();
    // The connection's bytes have time limits of their own, which tell an idle connection from a slow head.
    http.max_buf_size(limits.max_head).header_read_timeout(None);
    if limits.max_headers != USUAL_HEADERS {
        http.max_headers(limits.max_headers);
    }
    let bytes = TokioIo::new(Connection::new(stream, caller.clone(), &limits));
    let service = service_fn(|request| forward::answer(thread.clone(), caller.clone(), request));
    let mut served = std::pin::pin!(http.serve_connection(bytes, service));
    let ended = match thread.stopping.or(served.as_mut()).await {
        Some(ended) => ended,
        None => {
            caller.say_farewell();
            match tokio::time::timeout(LAST_CALL, served.as_mut()).await {
                Ok(ended) => ended,
                Err(_) => {
                    served.as_mut().graceful_shutdown();
                    served.await
                }
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a caller's connection broke off");
    }
    meters.connections.dec();
}
