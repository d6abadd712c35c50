//! The way of a request: size → authentication → deadline → queue → slot → replica. Each stage lets it pass or refuses it in words.

mod delivery;

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use hyper::{
    Method, Request, Response, Uri, Version,
    body::{Body as _, Incoming},
    header::{
        ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderValue, ORIGIN, TRANSFER_ENCODING,
    },
    http::{request, uri::PathAndQuery},
};
use tokio::time::{Duration, Instant};

use crate::{
    answer::Answer,
    caller::Caller,
    gate::{Gate, Terms},
    headers::{self, Mark, Marks},
    identity::Names,
    refusal::Refusal,
    request_body::{Allowance, Fate, RequestBody},
    target::{self, Part, Target},
    thread::Thread,
};

const WELCOME: &str = "kaai router. A service answers at /api/v1/service/<name>/score\n";

/// Answers one request. A refusal is an answer too.
pub(crate) async fn answer(
    thread: Arc<Thread>,
    caller: Arc<Caller>,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    let busy = caller.begin();
    let arrived = Instant::now();
    let (mut parts, body) = request.into_parts();
    let marks = Marks::of(&parts.headers);
    let names = thread.ids.give(&mut parts.headers, marks);
    let body = Unread { body, on_demand: marks.has(Mark::Expect) };
    let mut answer = match target::parse(parts.uri.path()) {
        Target::Service { workspace, service, part } => match thread.routes.find(workspace, service) {
            Some(gate) => {
                let terms = gate.terms();
                let visit = Visit {
                    thread: &thread,
                    caller: &caller,
                    gate: &gate,
                    terms: &terms,
                    names: &names,
                    marks,
                    arrived,
                    part,
                };
                visit.answer(parts, body).await
            }
            None => {
                let refusal = Refusal::NoSuchService { workspace: workspace.to_owned() };
                stray(&thread, refusal.answer(Some(service), &names), body)
            }
        },
        Target::Welcome if parts.method == Method::GET => {
            let mut welcome = Response::new(Bytes::from_static(WELCOME.as_bytes()));
            welcome.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            stray(&thread, welcome, body)
        }
        Target::Welcome => stray(&thread, Refusal::Method("GET").answer(None, &names), body),
        Target::Nothing => stray(&thread, Refusal::NoSuchPath.answer(None, &names), body),
    };
    answer.body_mut().keeps(busy);
    if caller.is_last() {
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(answer)
}

/// Answers what asks for no service that there is.
fn stray(thread: &Thread, answer: Response<Bytes>, body: Unread) -> Response<Answer> {
    thread.meters.strays.inc();
    body.discard(thread);
    answer.map(Answer::whole)
}

/// A body that nobody wants.
struct Unread {
    body: Incoming,
    on_demand: bool,
}

impl Unread {
    /// Has it read away for a while, so that the caller gets to read the answer; unless the caller waits to be told to send it.
    fn discard(self, thread: &Thread) {
        if !self.body.is_end_stream() && !self.on_demand {
            thread.leftovers.upload(self.body);
        }
    }
}

/// A request to a service, on its way.
struct Visit<'a> {
    thread: &'a Arc<Thread>,
    caller: &'a Caller,
    gate: &'a Arc<Gate>,
    terms: &'a Terms,
    names: &'a Names,
    marks: Marks,
    arrived: Instant,
    part: Part,
}

/// A request that has been let in.
struct Admitted {
    allowance: Allowance,
    fate: Fate,
    /// The router's own time so far.
    own: Duration,
}

impl Visit<'_> {
    async fn answer(&self, parts: request::Parts, body: Unread) -> Response<Answer> {
        self.gate.arrived();
        let answer = match self.pass(parts, body).await {
            Ok(answer) => answer,
            Err(refusal) => {
                self.gate.refused(refusal.stage());
                refusal.answer(Some(self.gate.service().as_str()), self.names).map(Answer::whole)
            }
        };
        let status = answer.status().as_u16();
        self.gate.answered(status);
        tracing::debug!(
            target: "access",
            service = %self.gate.service(),
            id = self.names.text(),
            status,
            micros = u64::try_from(self.arrived.elapsed().as_micros()).unwrap_or(u64::MAX),
        );
        answer
    }

    async fn pass(&self, mut parts: request::Parts, unread: Unread) -> Result<Response<Answer>, Refusal> {
        if let Err(refusal) = self.admit(&parts, &unread.body) {
            unread.discard(self.thread);
            return Err(refusal);
        }
        let consumes_authorization = self.terms.access.consumes_authorization();
        headers::for_replica(&mut parts.headers, self.marks, &self.caller.address, consumes_authorization);
        parts.uri = uri_at_replica(self.part, parts.uri.query());
        parts.version = Version::HTTP_11;
        parts.extensions.clear();
        let limits = &self.thread.limits;
        let allowance = Allowance { most: limits.max_body, stall: limits.stall_timeout, on_demand: unread.on_demand };
        let own = self.arrived.elapsed();
        let (body, fate) = RequestBody::read_ahead(unread.body, &allowance, &self.thread.leftovers).await?;
        self.deliver(Request::from_parts(parts, body), &Admitted { allowance, fate, own }).await
    }

    /// The stages that look at the request alone: method, framing, size, authentication.
    fn admit(&self, parts: &request::Parts, body: &Incoming) -> Result<(), Refusal> {
        let known = match parts.method {
            Method::GET | Method::OPTIONS => true,
            Method::POST => self.part == Part::Score,
            _ => false,
        };
        if !known {
            return Err(Refusal::Method(self.part.methods()));
        }
        if self.marks.has(Mark::TransferEncoding) && !is_chunked_alone(parts) {
            return Err(Refusal::Coding);
        }
        if body.size_hint().lower() > self.thread.limits.max_body {
            return Err(Refusal::TooLarge(self.thread.limits.max_body));
        }
        // A browser asks before it calls, and never with credentials; the model server knows which origins it lets call.
        if is_preflight(parts) {
            return Ok(());
        }
        self.terms.access.check(parts.headers.get(AUTHORIZATION)).map_err(Refusal::Denied)
    }
}

fn is_chunked_alone(parts: &request::Parts) -> bool {
    parts.headers.get_all(TRANSFER_ENCODING).iter().all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
}

fn is_preflight(parts: &request::Parts) -> bool {
    parts.method == Method::OPTIONS
        && parts.headers.contains_key(ORIGIN)
        && parts.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

fn uri_at_replica(part: Part, query: Option<&str>) -> Uri {
    let plain = PathAndQuery::from_static(part.path());
    Uri::from(match query {
        // A query that was valid behind one path is valid behind another.
        Some(query) => {
            PathAndQuery::from_maybe_shared(Bytes::from(format!("{}?{query}", part.path()))).unwrap_or(plain)
        }
        None => plain,
    })
}
