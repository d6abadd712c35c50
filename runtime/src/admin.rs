//! The address for operators: `/live`, `/ready` and `/metrics`.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode, body::Bytes, body::Incoming, header, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

use crate::{bus::Bus, shutdown::Tasks, telemetry::Metrics};

/// How long a component may take to say whether it is ready.
const ANSWER: Duration = Duration::from_secs(5);
/// How much of its answer is read.
const LONGEST: u64 = 64 << 10;

/// Whether a component can do its work now.
#[derive(Clone)]
pub struct Health {
    component: &'static str,
    ready: Arc<AtomicBool>,
    bus: Bus,
}

impl Health {
    /// Not ready until the component says so.
    pub fn new(component: &'static str, bus: Bus) -> Self {
        Self { component, ready: Arc::default(), bus }
    }

    /// Says whether the component has what it needs.
    pub fn ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    /// Why the component is not ready; `None` when it is.
    pub fn reason(&self) -> Option<String> {
        if !self.ready.load(Ordering::Acquire) {
            Some(format!("{} is starting", self.component))
        } else if !self.bus.is_connected() {
            Some(format!("{} has lost the bus and is looking for it", self.component))
        } else {
            None
        }
    }
}

/// The admin address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on the admin address {address}: {source}; choose another with --admin-address")]
pub struct Error {
    address: SocketAddr,
    source: std::io::Error,
}

/// Serves the admin address until shutdown, for one or more components of this process, and returns the address in use.
///
/// # Errors
///
/// Fails when the address cannot be listened on.
pub async fn serve(
    address: SocketAddr,
    components: Vec<(Health, Metrics)>,
    tasks: &Tasks,
    shutdown: &CancellationToken,
) -> Result<SocketAddr, Error> {
    let error = |source| Error { address, source };
    let listener = TcpListener::bind(address).await.map_err(error)?;
    let bound = listener.local_addr().map_err(error)?;
    let components: Arc<[_]> = components.into();
    let (shutdown, connections) = (shutdown.clone(), tasks.clone());
    tasks.spawn(async move {
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                // Too many open files, most likely: give the process a moment instead of spinning.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (components, shutdown) = (components.clone(), shutdown.clone());
            connections.spawn(async move {
                let service = service_fn(|request| {
                    let answer = answer(&request, &components);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(Duration::from_secs(10))
                    .serve_connection(TokioIo::new(stream), service);
                tokio::select! {
                    // A broken connection is the peer's affair.
                    _ = connection => {}
                    () = shutdown.cancelled() => {}
                }
            });
        }
    });
    tracing::info!(%bound, "admin address");
    Ok(bound)
}

/// A component is not ready, or does not say so.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// It says why.
    #[error("{0}")]
    Says(String),
    /// Nobody answers in time.
    #[error("nobody answers at {0}: {1}; is that the --admin-address of the component?")]
    Silent(SocketAddr, std::io::Error),
}

/// Asks the component at an admin address whether it is ready: a health check that needs no other program.
///
/// # Errors
///
/// Fails when it is not ready, in its own words, or does not answer within 5 s.
pub async fn ask(address: SocketAddr) -> Result<(), NotReady> {
    let asking = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /ready HTTP/1.1\r\nhost: kaai\r\nconnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.take(LONGEST).read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let asked = tokio::time::timeout(ANSWER, asking).await.unwrap_or_else(|late| Err(late.into()));
    let answer = asked.map_err(|error| NotReady::Silent(address, error))?;
    if answer.starts_with("HTTP/1.1 200 ") {
        return Ok(());
    }
    let (_, reason) = answer.split_once("\r\n\r\n").unwrap_or(("", &answer));
    Err(NotReady::Says(reason.trim().to_owned()))
}

fn answer(request: &Request<Incoming>, components: &[(Health, Metrics)]) -> Response<Full<Bytes>> {
    let (status, kind, body) = match request.uri().path() {
        "/live" => (StatusCode::OK, "text/plain", "live\n".to_owned()),
        "/ready" => {
            let reasons: Vec<_> = components.iter().filter_map(|(health, _)| health.reason()).collect();
            match reasons.is_empty() {
                true => (StatusCode::OK, "text/plain", "ready\n".to_owned()),
                false => (StatusCode::SERVICE_UNAVAILABLE, "text/plain", reasons.join("\n") + "\n"),
            }
        }
        "/metrics" => {
            let text: String = components.iter().map(|(_, metrics)| metrics.encode()).collect();
            (StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text + "# EOF\n")
        }
        _ => (StatusCode::NOT_FOUND, "text/plain", "there are /live, /ready and /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
