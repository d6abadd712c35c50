//! A small HTTP client for the router: one request, one answer.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, Uri, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::ending::{Ending, Result};

/// Sends a request and reads the whole answer.
///
/// # Errors
///
/// Fails when the router does not answer in time; whatever status it answers with is fine here.
pub async fn send(url: &str, mut request: Request<Full<Bytes>>, timeout: Duration) -> Result<Response<Bytes>> {
    let unreachable = |error: &dyn std::fmt::Display| {
        Ending::platform(
            format!("the router at {url} does not answer: {error}"),
            "see that kaai runs, and that the context's router is right",
        )
    };
    let uri: Uri = url.parse().map_err(|error| unreachable(&error))?;
    if uri.scheme_str() != Some("http") {
        return Err(Ending::usage(format!("{url} is no http:// address"), "set the context's router to one"));
    }
    let host = uri.host().unwrap_or("127.0.0.1").trim_matches(['[', ']']).to_owned();
    let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    request.headers_mut().insert(header::HOST, authority.parse().map_err(|error| unreachable(&error))?);
    *request.uri_mut() =
        uri.path_and_query().map_or("/", |path| path.as_str()).parse().map_err(|error| unreachable(&error))?;

    let exchange = async {
        let stream = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(80)))
            .await
            .map_err(|error| unreachable(&error))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| unreachable(&error))?;
        let answer = async {
            let (head, body) = sender.send_request(request).await.map_err(|error| unreachable(&error))?.into_parts();
            let body = body.collect().await.map_err(|error| unreachable(&error))?.to_bytes();
            Ok(Response::from_parts(head, body))
        };
        // The connection must be driven while the answer is read; whichever ends first, the answer is what counts.
        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            _ = connection => answer.await,
        }
    };
    tokio::time::timeout(timeout, exchange).await.map_err(|error| unreachable(&error))?
}
