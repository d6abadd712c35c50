//! An answer on its way to the caller: the router's own, or a replica's, whose slot it holds until the replica is done.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Duration, Instant};

use crate::{
    caller::{Busy, Timer},
    gate::Slot,
    thread::Thread,
    upstream::Wire,
};

/// The body of an answer.
pub(crate) struct Answer {
    kind: Kind,
    /// The caller's request is being answered as long as there is a body to send.
    busy: Option<Busy>,
}

enum Kind {
    Whole(Option<Bytes>),
    Streamed(Box<Streamed>),
}

/// A replica's answer in pieces.
struct Streamed {
    first: Option<Bytes>,
    body: Option<Incoming>,
    wire: Option<Wire>,
    slot: Option<Slot>,
    thread: Arc<Thread>,
    patience: Duration,
    silent_since: Option<Instant>,
    timer: Timer,
}

/// The answer broke off: the caller's connection is cut, so that nobody takes it for whole.
#[derive(Debug, thiserror::Error)]
#[error("the replica's answer broke off")]
pub(crate) struct Cut;

impl Answer {
    /// An answer of the router's own.
    pub(crate) fn whole(bytes: Bytes) -> Self {
        Self { kind: Kind::Whole(Some(bytes).filter(|bytes| !bytes.is_empty())), busy: None }
    }

    /// The caller is being answered until this has been sent.
    pub(crate) fn keeps(&mut self, busy: Busy) {
        self.busy = Some(busy);
    }

    /// A replica's answer, whose pieces may be `patience` apart. One that has come whole already gives its slot back at once.
    pub(crate) fn of_replica(
        mut body: Incoming,
        wire: Wire,
        slot: Slot,
        thread: &Arc<Thread>,
        patience: Duration,
    ) -> Self {
        let mut first = None;
        if !body.is_end_stream() {
            // Most answers are one piece that came with the head. Nothing needs to be woken: if it is not here, it is asked for again.
            let mut unwaked = Context::from_waker(Waker::noop());
            if let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut unwaked) {
                first = frame.into_data().ok();
            }
        }
        let mut streamed = Streamed {
            first,
            body: Some(body),
            wire: Some(wire),
            slot: Some(slot),
            thread: thread.clone(),
            patience,
            silent_since: None,
            timer: Timer::default(),
        };
        if streamed.has_ended() {
            streamed.finish();
            return Self { kind: Kind::Whole(streamed.first.take()), busy: None };
        }
        Self { kind: Kind::Streamed(Box::new(streamed)), busy: None }
    }
}

impl Streamed {
    fn has_ended(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    /// The replica is done: its slot goes to the next, its connection is kept if it may be.
    fn finish(&mut self) {
        self.body = None;
        if let (Some(wire), Some(slot)) = (self.wire.take(), self.slot.take()) {
            self.thread.pool.keep(slot.peer(), wire);
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        let (Some(wire), Some(body)) = (&mut self.wire, &mut self.body) else { return Poll::Ready(None) };
        let Poll::Ready(frame) = wire.poll_body(body, cx) else {
            let since = *self.silent_since.get_or_insert_with(Instant::now);
            return self.timer.poll(cx, since + self.patience).map(|()| Some(Err(Cut)));
        };
        self.silent_since = None;
        match frame.map(|frame| frame.map(Frame::into_data)) {
            Some(Ok(Ok(data))) => {
                if self.has_ended() {
                    self.finish();
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            // Trailers are the hop's own, and nothing comes after them.
            Some(Ok(Err(_))) | None => {
                self.finish();
                Poll::Ready(None)
            }
            Some(Err(_)) => {
                // The replica has ended the connection, so it is done with the request.
                (self.body, self.wire, self.slot) = (None, None, None);
                Poll::Ready(Some(Err(Cut)))
            }
        }
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        if let (Some(body), Some(wire), Some(slot)) = (self.body.take(), self.wire.take(), self.slot.take()) {
            self.thread.leftovers.answer(body, wire, slot);
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match &mut self.kind {
            Kind::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Streamed(streamed) => streamed.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Whole(bytes) => bytes.is_none(),
            Kind::Streamed(streamed) => streamed.first.is_none() && streamed.has_ended(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Kind::Streamed(streamed) => {
                let first = streamed.first.as_ref().map_or(0, |bytes| bytes.len() as u64);
                let rest = streamed.body.as_ref().and_then(|body| body.size_hint().exact());
                rest.map_or_else(SizeHint::default, |rest| SizeHint::with_exact(first + rest))
            }
        }
    }
}
