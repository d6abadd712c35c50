//! A request's body on its way to the replica: counted, watched, and small ones read ahead.
//!
//! A body of up to [`AHEAD`] is read before the request queues, so that a slow caller does not hold a replica's slot meanwhile.
//! A larger one is streamed, never held.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Duration, Instant};

use crate::{caller::Timer, leftover::Leftovers, refusal::Refusal};

/// How much of a body is read before the request queues, in bytes.
pub(crate) const AHEAD: u64 = 64 * 1024;

/// What a body may be.
#[derive(Debug, Clone)]
pub(crate) struct Allowance {
    /// Its largest size, in bytes.
    pub(crate) most: u64,
    /// How long it may not move.
    pub(crate) stall: Duration,
    /// Whether the caller sends the body only when told to go on, so that an unread one need not be read away.
    pub(crate) on_demand: bool,
}

/// What has become of a body; read by whoever has to explain a failed exchange.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fate(Option<Arc<AtomicU8>>);

const FLOWING: u8 = 0;
const WHOLE: u8 = 1;
const TOO_LARGE: u8 = 2;
const STALLED: u8 = 3;
const BROKEN: u8 = 4;

impl Fate {
    /// That of a body which is still to come.
    fn flowing() -> Self {
        Self(Some(Arc::new(AtomicU8::new(FLOWING))))
    }

    fn set(&self, fate: u8) {
        if let Some(shared) = &self.0 {
            shared.store(fate, Ordering::Relaxed);
        }
    }

    fn get(&self) -> u8 {
        self.0.as_ref().map_or(WHOLE, |shared| shared.load(Ordering::Relaxed))
    }

    /// Whether it has come to its end.
    pub(crate) fn is_whole(&self) -> bool {
        self.get() == WHOLE
    }

    /// Whether it is still to come.
    pub(crate) fn is_flowing(&self) -> bool {
        self.get() == FLOWING
    }

    /// Why the caller's body, and not the replica, ended the exchange; `None` if it did not.
    pub(crate) fn refusal(&self, allowance: &Allowance) -> Option<Refusal> {
        match self.get() {
            TOO_LARGE => Some(Refusal::TooLarge(allowance.most)),
            STALLED => Some(Refusal::Stalled(allowance.stall)),
            BROKEN => Some(Refusal::Incomplete),
            _ => None,
        }
    }
}

/// A body for a replica.
pub(crate) struct RequestBody {
    ahead: Option<Bytes>,
    rest: Option<Box<Rest>>,
}

struct Rest {
    incoming: Option<Incoming>,
    sent: u64,
    allowance: Allowance,
    fate: Fate,
    waiting_since: Option<Instant>,
    timer: Timer,
    leftovers: Leftovers,
}

/// The body could not be sent on; [`Fate`] knows why.
#[derive(Debug, thiserror::Error)]
#[error("the request's body did not come whole")]
pub(crate) struct Broken;

impl RequestBody {
    /// A body of nothing.
    pub(crate) fn empty() -> Self {
        Self { ahead: None, rest: None }
    }

    /// Tells what becomes of it.
    pub(crate) fn fate(&self) -> Fate {
        self.rest.as_ref().map_or_else(Fate::default, |rest| rest.fate.clone())
    }

    /// Takes over a caller's body, reading a small one to its end.
    pub(crate) async fn read_ahead(
        mut incoming: Incoming,
        allowance: &Allowance,
        leftovers: &Leftovers,
    ) -> Result<(Self, Fate), Refusal> {
        let mut ahead = Ahead::default();
        while !incoming.is_end_stream() {
            if incoming.size_hint().lower() > AHEAD || ahead.len() >= AHEAD {
                let fate = Fate::flowing();
                let rest = Rest::new(incoming, ahead.len(), allowance, &fate, leftovers);
                return Ok((Self { ahead: ahead.whole(), rest: Some(Box::new(rest)) }, fate));
            }
            let frame = tokio::time::timeout(allowance.stall, incoming.frame()).await;
            match frame.map_err(|_| Refusal::Stalled(allowance.stall))? {
                Some(Ok(frame)) => ahead.push(frame.into_data().unwrap_or_default()),
                Some(Err(_)) => return Err(Refusal::Incomplete),
                None => break,
            }
        }
        Ok((Self { ahead: ahead.whole(), rest: None }, Fate::default()))
    }
}

/// What has been read so far: most often one piece, which is then not copied.
#[derive(Default)]
struct Ahead {
    first: Option<Bytes>,
    joined: BytesMut,
}

impl Ahead {
    fn len(&self) -> u64 {
        (self.first.as_ref().map_or(0, Bytes::len) + self.joined.len()) as u64
    }

    fn push(&mut self, bytes: Bytes) {
        if self.first.is_none() && self.joined.is_empty() {
            self.first = Some(bytes);
            return;
        }
        if let Some(first) = self.first.take() {
            self.joined.extend_from_slice(&first);
        }
        self.joined.extend_from_slice(&bytes);
    }

    fn whole(self) -> Option<Bytes> {
        self.first.or_else(|| Some(self.joined.freeze())).filter(|bytes| !bytes.is_empty())
    }
}

impl Rest {
    fn new(incoming: Incoming, sent: u64, allowance: &Allowance, fate: &Fate, leftovers: &Leftovers) -> Self {
        Self {
            incoming: Some(incoming),
            sent,
            allowance: allowance.clone(),
            fate: fate.clone(),
            waiting_since: None,
            timer: Timer::default(),
            leftovers: leftovers.clone(),
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        let frame = match Pin::new(incoming).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                let since = *self.waiting_since.get_or_insert_with(Instant::now);
                return self.timer.poll(cx, since + self.allowance.stall).map(|()| self.fail(STALLED));
            }
        };
        self.waiting_since = None;
        match frame {
            Some(Ok(frame)) => {
                // Trailers are the hop's own: a replica has no use for them.
                let Ok(data) = frame.into_data() else { return self.end() };
                self.sent += data.len() as u64;
                if self.sent > self.allowance.most {
                    return Poll::Ready(self.fail(TOO_LARGE));
                }
                if incoming_ended(self.incoming.as_ref()) {
                    self.fate.set(WHOLE);
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(_)) => Poll::Ready(self.fail(BROKEN)),
            None => self.end(),
        }
    }

    fn end(&mut self) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        self.fate.set(WHOLE);
        self.incoming = None;
        Poll::Ready(None)
    }

    fn fail(&mut self, fate: u8) -> Option<Result<Frame<Bytes>, Broken>> {
        self.fate.set(fate);
        Some(Err(Broken))
    }
}

fn incoming_ended(incoming: Option<&Incoming>) -> bool {
    incoming.is_none_or(Body::is_end_stream)
}

impl Drop for Rest {
    fn drop(&mut self) {
        // What was not read is read away for a while, so that the caller gets to read the answer instead of a reset connection.
        if let Some(incoming) = self.incoming.take()
            && !incoming.is_end_stream()
            && !self.allowance.on_demand
        {
            self.leftovers.upload(incoming);
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if let Some(bytes) = self.ahead.take() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        match &mut self.rest {
            Some(rest) => rest.poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ahead.is_none() && self.rest.as_ref().is_none_or(|rest| incoming_ended(rest.incoming.as_ref()))
    }

    fn size_hint(&self) -> SizeHint {
        let ahead = self.ahead.as_ref().map_or(0, |bytes| bytes.len() as u64);
        let rest = match self.rest.as_ref().map(|rest| &rest.incoming) {
            Some(Some(incoming)) => incoming.size_hint(),
            _ => SizeHint::with_exact(0),
        };
        let mut hint = SizeHint::new();
        hint.set_lower(ahead + rest.lower());
        if let Some(upper) = rest.upper() {
            hint.set_upper(ahead + upper);
        }
        hint
    }
}
