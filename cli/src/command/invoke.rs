//! `kaai invoke`: asks a service.

use std::{io::Read, path::PathBuf, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, header};
use proto::{id::ServiceName, spec::Auth};
use serde_json::{Value, json};

use crate::{
    connection::{Connection, Reach},
    ending::{Ending, Result},
    http,
    output::{self, Format},
};

/// Ask a service and print its answer
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The service
    service: ServiceName,
    /// The body
    #[arg(long, short, conflicts_with = "file")]
    data: Option<String>,
    /// A file with the body; `-` reads standard input
    #[arg(long, short)]
    file: Option<PathBuf>,
    /// Another header, `name: value`
    #[arg(long, short = 'H')]
    header: Vec<String>,
    /// Seconds to wait for the answer
    #[arg(long, default_value_t = 120)]
    timeout: u64,
}

/// Sends the request with the service's primary key, and prints the body of the answer.
pub async fn run(args: Args, reach: &Reach, format: Format) -> Result {
    let connection = reach.connect().await?;
    let body = body(&args)?;
    let begun = tokio::time::Instant::now();
    let answer = ask(&connection, &args.service, body, &args.header, Duration::from_secs(args.timeout)).await?;
    let took = begun.elapsed();
    let status = answer.status();
    match format {
        Format::Json => {
            let headers: serde_json::Map<_, _> = answer
                .headers()
                .iter()
                .map(|(name, value)| {
                    (name.to_string(), Value::from(String::from_utf8_lossy(value.as_bytes()).into_owned()))
                })
                .collect();
            let body = serde_json::from_slice(answer.body())
                .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(answer.body()).into_owned()));
            output::json(
                &json!({ "status": status.as_u16(), "headers": headers, "body": body, "tookMs": took.as_secs_f64() * 1000.0 }),
            );
        }
        Format::Text => {
            output::raw(answer.body());
            if !answer.body().ends_with(b"\n") {
                output::line("");
            }
        }
    }
    match status.is_success() {
        true => Ok(()),
        false => Err(Ending::mend(
            format!("{} answered {status}", args.service),
            format!("look at its log: kaai logs {}", args.service),
        )),
    }
}

/// Sends one request to a service, with its primary key if it wants one; a body that is JSON is said to be.
///
/// # Errors
///
/// Fails when there is no such service or the router does not answer.
pub async fn ask(
    connection: &Connection,
    service: &ServiceName,
    body: Bytes,
    headers: &[String],
    timeout: Duration,
) -> Result<hyper::Response<Bytes>> {
    let record = connection.service(service).await?.value;
    let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_ok();
    let mut request = Request::post("/").body(Full::new(body)).unwrap_or_default();
    *request.method_mut() = hyper::Method::POST;
    let wrong = |header: &str| Ending::usage(format!("{header:?} is no header"), "write it as `name: value`");
    if is_json {
        request.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    }
    for text in headers {
        let (name, value) = text.split_once(':').ok_or_else(|| wrong(text))?;
        let name: header::HeaderName = name.trim().parse().map_err(|_| wrong(text))?;
        request.headers_mut().insert(name, value.trim().parse().map_err(|_| wrong(text))?);
    }
    let open = record.active.as_ref().is_some_and(|release| release.spec.auth == Auth::None);
    if !open && !request.headers().contains_key(header::AUTHORIZATION) {
        let keys = connection.keys(service).await?;
        let mut value =
            header::HeaderValue::from_str(&format!("Bearer {}", keys.primary)).map_err(|_| wrong("the key"))?;
        value.set_sensitive(true);
        request.headers_mut().insert(header::AUTHORIZATION, value);
    }
    let url = connection.url(&format!("/api/v1/service/{service}/score"));
    http::send(&url, request, timeout).await
}

fn body(args: &Args) -> Result<Bytes> {
    let bytes = match (&args.data, &args.file) {
        (Some(data), _) => data.clone().into_bytes(),
        (None, Some(file)) => {
            let unreadable = |error: std::io::Error| {
                Ending::mend(format!("{} cannot be read: {error}", file.display()), "give another --file")
            };
            if file.as_os_str() == "-" {
                let mut bytes = Vec::new();
                std::io::stdin().read_to_end(&mut bytes).map_err(unreadable)?;
                bytes
            } else {
                std::fs::read(file).map_err(unreadable)?
            }
        }
        (None, None) => return Err(Ending::usage("there is nothing to ask", "give --data '{…}' or --file FILE")),
    };
    Ok(bytes.into())
}
