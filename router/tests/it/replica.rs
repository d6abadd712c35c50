//! A replica that a test makes up: an HTTP server on a Unix socket or TCP, or raw bytes.

use std::{
    convert::Infallible,
    future::Future,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use http_body_util::Full;
use hyper::{Request, Response, body::Bytes, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use proto::deployer::Endpoint;
use runtime::shutdown::Tasks;
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
};

/// What a replica has seen.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) connections: AtomicUsize,
    pub(crate) requests: AtomicUsize,
    pub(crate) now: AtomicUsize,
    pub(crate) most: AtomicUsize,
}

impl Seen {
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    pub(crate) fn now(&self) -> usize {
        self.now.load(Ordering::SeqCst)
    }
}

struct Inside(Arc<Seen>);

impl Inside {
    fn enter(seen: &Arc<Seen>) -> Self {
        seen.requests.fetch_add(1, Ordering::SeqCst);
        let now = seen.now.fetch_add(1, Ordering::SeqCst) + 1;
        seen.most.fetch_max(now, Ordering::SeqCst);
        Self(seen.clone())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A replica, ended at once with all its connections when dropped.
pub(crate) struct Replica {
    id: String,
    address: String,
    pub(crate) seen: Arc<Seen>,
    serving: JoinHandle<()>,
    folder: Option<TempDir>,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

pub(crate) fn ok(body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    Response::new(Full::new(body.into()))
}

pub(crate) fn status(status: u16, body: &'static str) -> Response<Full<Bytes>> {
    Response::builder().status(status).body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap()
}

impl Replica {
    /// On a Unix socket, closing the connection after each answer, as gunicorn's sync workers do.
    pub(crate) fn unix<F, A>(id: &str, answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("r.sock")).unwrap();
        let address = format!("unix:{}", folder.path().join("r.sock").display());
        let seen = Arc::new(Seen::default());
        let inside = seen.clone();
        let serving = Tasks::default().spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, false, answer.clone(), inside.clone()));
            }
        });
        Self { id: id.to_owned(), address, seen, serving, folder: Some(folder) }
    }

    /// On a Unix socket, letting requests through one by one, as the test opens its door.
    pub(crate) fn behind(door: &Arc<Semaphore>, id: &str, answer: &'static str) -> Self {
        let door = door.clone();
        Self::unix(id, move |_| {
            let door = door.clone();
            async move {
                door.acquire().await.unwrap().forget();
                ok(answer)
            }
        })
    }

    /// On a TCP port, keeping connections.
    pub(crate) async fn tcp<F, A>(id: &str, answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Seen::default());
        let inside = seen.clone();
        let serving = Tasks::default().spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, true, answer.clone(), inside.clone()));
            }
        });
        Self { id: id.to_owned(), address, seen, serving, folder: None }
    }

    /// Raw bytes on a Unix socket: each connection is the closure's affair.
    pub(crate) fn raw<F, A>(id: &str, talk: F) -> Self
    where
        F: Fn(tokio::net::UnixStream) -> A + Send + Sync + 'static,
        A: Future<Output = ()> + Send + 'static,
    {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("r.sock")).unwrap();
        let address = format!("unix:{}", folder.path().join("r.sock").display());
        let seen = Arc::new(Seen::default());
        let inside = seen.clone();
        let serving = Tasks::default().spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                inside.connections.fetch_add(1, Ordering::SeqCst);
                connections.spawn(talk(stream));
            }
        });
        Self { id: id.to_owned(), address, seen, serving, folder: Some(folder) }
    }

    /// As a route lists it.
    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint { replica: self.id.parse().unwrap(), address: self.address.clone(), draining: false }
    }

    /// As a route lists it while it is being emptied.
    pub(crate) fn draining(&self) -> Endpoint {
        Endpoint { draining: true, ..self.endpoint() }
    }

    /// The path of its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.as_ref().unwrap().path().join("r.sock")
    }
}

/// A replica that is not there.
pub(crate) fn missing(id: &str) -> Endpoint {
    Endpoint { replica: id.parse().unwrap(), address: "unix:/nonexistent/kaai/r.sock".to_owned(), draining: false }
}

async fn serve<S, F, A>(stream: S, keep_alive: bool, answer: F, seen: Arc<Seen>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    seen.connections.fetch_add(1, Ordering::SeqCst);
    let service = service_fn(move |request: Request<Incoming>| {
        let (answer, seen) = (answer.clone(), seen.clone());
        async move {
            // A look at the replica's health is no request.
            if request.uri().path() == "/" && request.headers().get("connection").is_some_and(|value| value == "close")
            {
                return Ok(ok("Healthy"));
            }
            let _inside = Inside::enter(&seen);
            Ok::<_, Infallible>(answer(request).await)
        }
    });
    // A worker does not notice that the other side has gone while it works; half_close is as near as hyper comes to that.
    let connection =
        http1::Builder::new().keep_alive(keep_alive).half_close(true).serve_connection(TokioIo::new(stream), service);
    let _ = connection.await;
}
