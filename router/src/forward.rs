//! The way of a request: size → authentication → deadline → queue → slot → replica. Each stage lets it pass or refuses it in words.

use std::{convert::Infallible, io, sync::Arc};

use bytes::Bytes;
use hyper::{
    Method, Request, Response, StatusCode, Uri, Version,
    body::{Body as _, Incoming},
    header::{
        ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HeaderValue,
        ORIGIN, TRANSFER_ENCODING,
    },
    http::{request, uri::PathAndQuery},
};
use rustix::io::Errno;
use tokio::time::{Duration, Instant};

use crate::{
    answer::Answer,
    caller::Caller,
    gate::{Gate, Slot, Terms},
    headers,
    identity::Names,
    leftover::InFlight,
    probe,
    refusal::{Refusal, STAGE_HEADER},
    request_body::{Allowance, Fate, RequestBody},
    target::{self, Part, Target},
    thread::Thread,
    upstream::{Failed, Wire},
};

/// Replicas that are tried before a request is given up; each of them could not even be connected to.
const ATTEMPTS: usize = 8;

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
    let names = thread.ids.give(&mut parts.headers);
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
                    arrived,
                    part,
                };
                visit.answer(parts, body).await
            }
            None => {
                let refusal = Refusal::NoSuchService { workspace: workspace.to_owned() };
                stray(&thread, refusal.answer(Some(service), &names), &parts, body)
            }
        },
        Target::Welcome if parts.method == Method::GET => {
            let mut welcome = Response::new(Bytes::from_static(WELCOME.as_bytes()));
            welcome.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            stray(&thread, welcome, &parts, body)
        }
        Target::Welcome => stray(&thread, Refusal::Method("GET").answer(None, &names), &parts, body),
        Target::Nothing => stray(&thread, Refusal::NoSuchPath.answer(None, &names), &parts, body),
    };
    answer.body_mut().keeps(busy);
    if caller.is_last() {
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(answer)
}

/// Answers what asks for no service that there is.
fn stray(thread: &Thread, answer: Response<Bytes>, parts: &request::Parts, body: Incoming) -> Response<Answer> {
    thread.meters.strays.inc();
    let body = Unread { body, on_demand: parts.headers.contains_key(EXPECT) };
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

/// Why an attempt at one replica did not end with its answer.
enum Setback {
    /// It is final.
    Refused(Refusal),
    /// The request has certainly not begun there, and may go to another.
    NotBegun(Box<Request<RequestBody>>),
}

/// What an exchange over one connection came to.
enum Exchanged {
    Answered(Response<Answer>),
    /// The connection had ended before.
    Unsent(Box<Request<RequestBody>>, Slot),
}

impl Visit<'_> {
    async fn answer(&self, parts: request::Parts, body: Incoming) -> Response<Answer> {
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

    async fn pass(&self, mut parts: request::Parts, body: Incoming) -> Result<Response<Answer>, Refusal> {
        let on_demand = parts.headers.contains_key(EXPECT);
        if let Err(refusal) = self.admit(&parts, &body) {
            Unread { body, on_demand }.discard(self.thread);
            return Err(refusal);
        }
        headers::for_replica(&mut parts.headers, &self.caller.address, self.terms.access.consumes_authorization());
        parts.uri = uri_at_replica(self.part, parts.uri.query());
        parts.version = Version::HTTP_11;
        parts.extensions.clear();
        let limits = &self.thread.limits;
        let allowance = Allowance { most: limits.max_body, stall: limits.stall_timeout, on_demand };
        let own = self.arrived.elapsed();
        let (body, fate) = RequestBody::read_ahead(body, &allowance, &self.thread.leftovers).await?;
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
        let mut codings = parts.headers.get_all(TRANSFER_ENCODING).iter();
        if codings.any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked")) {
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

    /// Queue, slot, replica; on to another replica as long as the request has certainly not begun.
    async fn deliver(
        &self,
        mut request: Request<RequestBody>,
        admitted: &Admitted,
    ) -> Result<Response<Answer>, Refusal> {
        let entered = Instant::now();
        let until = entered + self.terms.queue_wait;
        let mut ticket = None;
        let mut tried = None;
        for _ in 0..ATTEMPTS {
            let slot = self.gate.enter(&mut ticket, until, self.thread.limits.max_queued).await?;
            self.thread.meters.queue_wait.observe(slot.granted().saturating_duration_since(entered));
            tried = Some(slot.replica());
            match self.attempt(slot, request, admitted).await {
                Ok(answer) => return Ok(answer),
                Err(Setback::Refused(refusal)) => return Err(refusal),
                Err(Setback::NotBegun(again)) => request = *again,
            }
        }
        Err(tried.map_or(Refusal::Exhausted, Refusal::Unreachable))
    }

    /// One replica: over a connection that is there already, else over a new one.
    async fn attempt(
        &self,
        mut slot: Slot,
        mut request: Request<RequestBody>,
        admitted: &Admitted,
    ) -> Result<Response<Answer>, Setback> {
        if let Some(wire) = self.thread.pool.take(&slot.peer().address) {
            match self.exchange(wire, slot, request, admitted).await.map_err(Setback::Refused)? {
                Exchanged::Answered(answer) => return Ok(answer),
                Exchanged::Unsent(again, held) => (request, slot) = (*again, held),
            }
        }
        let limits = &self.thread.limits;
        let wire = match Wire::open(&slot.peer().address, limits.connect_timeout, limits.max_head).await {
            Ok(wire) => wire,
            Err(error) if is_exhaustion(&error) => {
                tracing::warn!(%error, "cannot connect to a replica for lack of resources of the router");
                return Err(Setback::Refused(Refusal::Exhausted));
            }
            Err(error) => {
                tracing::info!(replica = %slot.peer().id, %error, "a replica cannot be connected to; set aside");
                self.look_after(slot);
                return Err(Setback::NotBegun(Box::new(request)));
            }
        };
        match self.exchange(wire, slot, request, admitted).await.map_err(Setback::Refused)? {
            Exchanged::Answered(answer) => Ok(answer),
            Exchanged::Unsent(request, slot) => {
                self.look_after(slot);
                Err(Setback::NotBegun(request))
            }
        }
    }

    async fn exchange(
        &self,
        wire: Wire,
        slot: Slot,
        request: Request<RequestBody>,
        admitted: &Admitted,
    ) -> Result<Exchanged, Refusal> {
        let meters = &self.thread.meters;
        let granted = slot.granted();
        let deadline = granted + self.terms.scoring;
        let peer = slot.peer().clone();
        let begun = Instant::now();
        meters.routing.observe(admitted.own + begun.saturating_duration_since(granted));
        let grace = deadline + self.thread.limits.grace;
        let exchange = Box::pin(wire.ask(request));
        let in_flight = InFlight::new(exchange, slot, &admitted.fate, grace, &self.thread.leftovers);
        let Some((answered, mut slot)) = in_flight.by(deadline, self.caller).await else {
            return Err(match admitted.fate.is_flowing() {
                true => Refusal::Stalled(self.terms.scoring),
                false => Refusal::TimedOut(peer.id.clone(), self.terms.scoring),
            });
        };
        match answered {
            Ok((response, wire)) if !response.status().is_informational() => {
                meters.upstream.observe(begun.elapsed());
                slot.served(self.arrived.elapsed());
                Ok(Exchanged::Answered(self.reply(response, wire, slot)))
            }
            Err(Failed::Unsent(request)) => Ok(Exchanged::Unsent(request, slot)),
            failed => Err(admitted.fate.refusal(&admitted.allowance).unwrap_or_else(|| {
                // Its worker may have died and be starting again behind an open socket.
                self.look_after(slot);
                match failed {
                    Err(Failed::Closed) => Refusal::Closed(peer.id.clone()),
                    _ => Refusal::Garbled(peer.id.clone()),
                }
            })),
        }
    }

    /// A replica's answer, as the caller gets it.
    fn reply(&self, response: Response<Incoming>, wire: Wire, slot: Slot) -> Response<Answer> {
        let (mut parts, body) = response.into_parts();
        headers::drop_hop_by_hop(&mut parts.headers);
        // Who refused is for the router to say.
        parts.headers.remove(STAGE_HEADER);
        self.names.echo(&mut parts.headers);
        if body.size_hint().exact().is_none() {
            // The body is framed anew, and a length that came beside another framing is not to be believed.
            parts.headers.remove(CONTENT_LENGTH);
        }
        if parts.status == StatusCode::INTERNAL_SERVER_ERROR {
            // v1: 500 means that the router failed, 502 that the model did; body and `x-ms-run-function-failed` stay.
            parts.status = StatusCode::BAD_GATEWAY;
            parts.headers.insert(STAGE_HEADER, HeaderValue::from_static("model"));
        }
        parts.version = Version::HTTP_11;
        parts.extensions.clear();
        let answer = Answer::of_replica(body, wire, slot, self.thread, self.terms.scoring);
        Response::from_parts(parts, answer)
    }

    /// Gives a slot back, and the replica no request until it is found well.
    fn look_after(&self, slot: Slot) {
        if let Some((gate, serial, peer)) = slot.set_aside() {
            self.thread.background.spawn(probe::until_well(gate, serial, peer, self.thread.limits.clone()));
        }
    }
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

/// Whether a failed connect says nothing of the replica: the router has no descriptor, port or memory left.
fn is_exhaustion(error: &io::Error) -> bool {
    let ours = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| ours.iter().any(|errno| errno.raw_os_error() == code))
}
