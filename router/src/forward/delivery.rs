//! The second half of a request's way: queue, slot, replica, and the replica's answer.

use std::io;

use hyper::{
    Request, Response, StatusCode, Version,
    body::{Body as _, Incoming},
    header::{CONTENT_LENGTH, HeaderValue},
};
use rustix::io::Errno;
use tokio::time::Instant;

use super::{Admitted, Visit};
use crate::{
    answer::Answer,
    gate::Slot,
    headers::{self, Marks},
    leftover::InFlight,
    probe,
    refusal::{Refusal, STAGE_HEADER},
    request_body::RequestBody,
    upstream::{Failed, Wire},
};

/// Replicas that are tried before a request is given up; each of them could not even be connected to.
const ATTEMPTS: usize = 8;

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
    /// Queue, slot, replica; on to another replica as long as the request has certainly not begun.
    pub(super) async fn deliver(
        &self,
        mut request: Request<RequestBody>,
        admitted: &Admitted,
    ) -> Result<Response<Answer>, Refusal> {
        let entered = Instant::now();
        let until = entered + self.terms.queue_wait;
        let (mut ticket, mut tried, mut now) = (None, None, entered);
        for _ in 0..ATTEMPTS {
            let slot = self.gate.enter(now, &mut ticket, until, self.thread.limits.max_queued).await?;
            self.thread.meters.queue_wait.observe(slot.granted().saturating_duration_since(entered));
            let peer = slot.peer().clone();
            match self.attempt(slot, request, admitted).await {
                Ok(answer) => return Ok(answer),
                Err(Setback::Refused(refusal)) => return Err(refusal),
                Err(Setback::NotBegun(again)) => (request, tried, now) = (*again, Some(peer), Instant::now()),
            }
        }
        Err(tried.map_or(Refusal::Exhausted, |peer| Refusal::Unreachable(peer.id.clone())))
    }

    /// One replica: over a connection that is there already, else over a new one.
    async fn attempt(
        &self,
        mut slot: Slot,
        mut request: Request<RequestBody>,
        admitted: &Admitted,
    ) -> Result<Response<Answer>, Setback> {
        if let Some(wire) = self.thread.pool.take(slot.peer()) {
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
                true => Refusal::Unfinished(self.terms.scoring),
                false => Refusal::TimedOut(peer.id.clone(), self.terms.scoring),
            });
        };
        match answered {
            Ok((response, wire)) if !response.status().is_informational() => {
                let answered = Instant::now();
                meters.upstream.observe(answered - begun);
                slot.served(answered - self.arrived);
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
        let marks = Marks::of(&parts.headers);
        headers::drop_hop_by_hop(&mut parts.headers, marks);
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

/// Whether a failed connect says nothing of the replica: the router has no descriptor, port or memory left.
fn is_exhaustion(error: &io::Error) -> bool {
    let ours = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| ours.iter().any(|errno| errno.raw_os_error() == code))
}
