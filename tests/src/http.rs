//! Requests to a router, over one connection or many.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode, client::conn::http1, header::HeaderMap};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// A header as text; empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// One request.
#[derive(Debug, Clone)]
pub struct Ask {
    url: String,
    method: Method,
    headers: Vec<(String, String)>,
    body: Bytes,
    timeout: Duration,
}

impl Ask {
    /// A GET.
    pub fn get(url: impl Into<String>) -> Self {
        let timeout = Duration::from_secs(120);
        Self { url: url.into(), method: Method::GET, headers: Vec::new(), body: Bytes::new(), timeout }
    }

    /// A POST of JSON.
    pub fn post(url: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self { method: Method::POST, body: body.into(), ..Self::get(url) }.header("content-type", "application/json")
    }

    /// Another method.
    #[must_use]
    pub fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    /// Sets a header, in place of one of the same name.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(there, _)| there != name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds a key.
    #[must_use]
    pub fn key(self, key: &str) -> Self {
        self.header("authorization", &format!("Bearer {key}"))
    }

    /// Sends it on a new connection.
    ///
    /// # Errors
    ///
    /// Says what broke when there was no answer at all.
    pub async fn try_send(&self) -> Result<Answer, String> {
        let rest = self.url.strip_prefix("http://").ok_or("not http://")?;
        let (authority, path) = rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash));
        let mut request = Request::builder().method(self.method.clone()).uri(path).header("host", authority);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(self.body.clone())).map_err(|error| error.to_string())?;
        let exchange = async {
            let stream = TcpStream::connect(authority).await.map_err(|error| format!("connect: {error}"))?;
            let (mut sender, connection) =
                http1::handshake(TokioIo::new(stream)).await.map_err(|error| format!("handshake: {error}"))?;
            let answer = async {
                let response = sender.send_request(request).await.map_err(|error| format!("send: {error}"))?;
                let (head, body) = response.into_parts();
                let body = body.collect().await.map_err(|error| format!("body: {error}"))?.to_bytes();
                Ok(Answer { status: head.status, headers: head.headers, body })
            };
            let mut answer = std::pin::pin!(answer);
            tokio::select! {
                answer = &mut answer => answer,
                _ = connection => answer.await,
            }
        };
        tokio::time::timeout(self.timeout, exchange).await.unwrap_or_else(|_| Err("no answer in time".to_owned()))
    }

    /// Sends it on a new connection; there must be an answer.
    pub async fn send(&self) -> Answer {
        match self.try_send().await {
            Ok(answer) => answer,
            Err(error) => panic!("{} {}: {error}", self.method, self.url),
        }
    }
}
