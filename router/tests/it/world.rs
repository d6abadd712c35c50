//! A router's data path with one service, and callers.

use std::{net::SocketAddr, sync::Arc};

use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Body, Bytes},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use proto::{
    deployer::{Endpoint, Route},
    id::Generation,
    router::ServiceUtilization,
    spec::{Auth, RequestLimits, Scaling},
};
use router::{Limits, Listeners, News, Routes, Server};
use runtime::shutdown::Tasks;
use tokio::{
    net::TcpStream,
    time::{Duration, Instant},
};

pub(crate) const SCORE: &str = "/api/v1/service/ridge/score";

/// How long a test waits for what must come.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) struct World {
    pub(crate) server: Server,
    pub(crate) routes: Arc<Routes>,
    pub(crate) news: News,
}

pub(crate) fn route(replicas: Vec<Endpoint>) -> Route {
    Route {
        workspace: "default".parse().unwrap(),
        service: "ridge".parse().unwrap(),
        generation: Generation(7),
        replicas,
        starting: 0,
        auth: Auth::None,
        key_digests: Vec::new(),
        requests: RequestLimits {
            max_concurrent_per_replica: 1,
            max_queue_wait_ms: 20_000,
            scoring_timeout_ms: 60_000,
        },
        scaling: Scaling::default(),
        extra: proto::Extra::default(),
    }
}

impl World {
    pub(crate) fn new(route: Route) -> Self {
        Self::with(route, Limits::default())
    }

    pub(crate) fn with(route: Route, limits: Limits) -> Self {
        let (routes, news) = Routes::new();
        routes.put(&route, 1);
        let listeners = Listeners::bind(SocketAddr::from(([127, 0, 0, 1], 0)), 2).unwrap();
        let server = Server::start(listeners, &routes, &limits, Duration::from_secs(10)).unwrap();
        Self { server, routes, news }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// What the router would tell of the service now.
    pub(crate) fn utilization(&self) -> ServiceUtilization {
        let told = self.routes.told();
        told.first().expect("the service is told of").utilization(&"router-test".parse().unwrap(), Instant::now(), 0)
    }

    /// Waits until as many requests are in the queue and in replicas.
    pub(crate) async fn settled(&self, queued: u32, concurrent: u32) {
        until(&format!("{queued} queued and {concurrent} in replicas"), || {
            // The second window holds only what is so now, if nothing changes while it is open.
            self.utilization();
            let window = self.utilization();
            (window.queued - f64::from(queued)).abs() < 1e-6 && (window.concurrent - f64::from(concurrent)).abs() < 1e-6
        })
        .await;
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        ask(self.address(), request("GET", path, "")).await
    }

    pub(crate) async fn post(&self, body: impl Into<Bytes>) -> Answer {
        ask(self.address(), request("POST", SCORE, body)).await
    }
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    runtime::testing::until(what, SOON, async || holds().then_some(())).await;
}

pub(crate) fn request(method: &str, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::builder().method(method).uri(path).header("host", "kaai.test").body(Full::new(body.into())).unwrap()
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// Checks that it is a refusal of this stage, and returns its sentence.
    pub(crate) fn refusal(&self, status: u16, stage: &str) -> String {
        assert_eq!(self.status, status, "{:?}", self.body);
        assert_eq!(self.headers["content-type"], "application/problem+json");
        assert_eq!(self.headers["x-kaai-stage"], stage);
        let body = self.json();
        assert_eq!(body["type"], format!("urn:kaai:refusal:{stage}"));
        assert_eq!((&body["stage"], &body["status"]), (&stage.into(), &status.into()));
        assert_eq!(body["requestId"], self.headers["x-request-id"].to_str().unwrap());
        body["detail"].as_str().unwrap().to_owned()
    }
}

/// A caller's connection that is kept.
pub(crate) struct Kept(http1::SendRequest<Full<Bytes>>);

impl Kept {
    pub(crate) async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        Tasks::default().spawn(connection);
        Self(sender)
    }

    pub(crate) async fn ask(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, hyper::Error> {
        self.0.ready().await?;
        whole(self.0.send_request(request).await?).await
    }
}

/// One request over a connection of its own.
pub(crate) async fn ask<B>(address: SocketAddr, request: Request<B>) -> Answer
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    try_ask(address, request).await.expect("an answer comes")
}

pub(crate) async fn try_ask<B>(address: SocketAddr, request: Request<B>) -> Result<Answer, hyper::Error>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    Tasks::default().spawn(connection);
    whole(sender.send_request(request).await?).await
}

async fn whole(response: Response<hyper::body::Incoming>) -> Result<Answer, hyper::Error> {
    let (parts, body) = response.into_parts();
    Ok(Answer { status: parts.status, headers: parts.headers, body: body.collect().await?.to_bytes() })
}
