//! A caller's connection: bytes with time limits, so that nobody holds one for nothing.
//!
//! The limits are on a silent connection, a request head that trickles in, and an answer that is not read. Bodies have limits of
//! their own where they are read. A timer is armed only when something is waited for, and then left to run: in the usual case a
//! request costs none.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll},
};

use hyper::header::HeaderValue;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Duration, Instant, Sleep},
};

use crate::config::Limits;

/// What a connection's bytes and its requests know of each other.
#[derive(Debug)]
pub(crate) struct Caller {
    /// The caller's address, as it goes into `X-Forwarded-For`.
    pub(crate) address: HeaderValue,
    requests: AtomicU32,
    busy: AtomicBool,
    last: AtomicBool,
    /// One timer for all its requests, which come one after the other: arming one for each would cost more than the rest of the wait.
    deadline: Mutex<Timer>,
}

/// A request is being answered. Ends when dropped.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Caller>);

impl Caller {
    /// A caller from whom nothing has come yet.
    pub(crate) fn new(address: std::net::IpAddr) -> Arc<Self> {
        let address =
            HeaderValue::try_from(address.to_string()).unwrap_or_else(|_| HeaderValue::from_static("unknown"));
        Arc::new(Self {
            address,
            requests: AtomicU32::new(0),
            busy: AtomicBool::new(false),
            last: AtomicBool::new(false),
            deadline: Mutex::default(),
        })
    }

    /// A request's head has come.
    pub(crate) fn begin(self: &Arc<Self>) -> Busy {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.busy.store(true, Ordering::Relaxed);
        Busy(self.clone())
    }

    /// Ready when the deadline of the request being answered has passed.
    pub(crate) fn poll_deadline(&self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        self.deadline.lock().unwrap_or_else(PoisonError::into_inner).poll(cx, deadline)
    }

    /// Every answer from now on ends the connection.
    pub(crate) fn say_farewell(&self) {
        self.last.store(true, Ordering::Relaxed);
    }

    /// Whether an answer ends the connection.
    pub(crate) fn is_last(&self) -> bool {
        self.last.load(Ordering::Relaxed)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Relaxed);
    }
}

/// What the reading side waits for.
#[derive(Debug, Clone, Copy)]
enum Waiting {
    /// Nothing of its own: a request is being answered.
    Nothing,
    /// The first byte of another request.
    Idle(Instant),
    /// The rest of a request head.
    Head(Instant),
}

/// The bytes of a caller's connection.
pub(crate) struct Connection {
    stream: TcpStream,
    caller: Arc<Caller>,
    head: Duration,
    idle: Duration,
    stall: Duration,
    waiting: Waiting,
    requests_seen: u32,
    read_timer: Timer,
    stalled_since: Option<Instant>,
    write_timer: Timer,
}

impl Connection {
    /// A connection that has just been accepted.
    pub(crate) fn new(stream: TcpStream, caller: Arc<Caller>, limits: &Limits) -> Self {
        Self {
            stream,
            caller,
            head: limits.head_timeout,
            idle: limits.idle_timeout,
            stall: limits.stall_timeout,
            waiting: Waiting::Head(Instant::now()),
            requests_seen: 0,
            read_timer: Timer::default(),
            stalled_since: None,
            write_timer: Timer::default(),
        }
    }

    /// Goes by what the requests say.
    fn observe(&mut self) {
        let requests = self.caller.requests.load(Ordering::Relaxed);
        if requests != self.requests_seen || self.caller.busy.load(Ordering::Relaxed) {
            self.requests_seen = requests;
            self.waiting = Waiting::Nothing;
        }
    }

    fn came(&mut self) {
        if !self.caller.busy.load(Ordering::Relaxed) && !matches!(self.waiting, Waiting::Head(_)) {
            self.waiting = Waiting::Head(Instant::now());
        }
    }

    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.caller.busy.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        let deadline = match self.waiting {
            Waiting::Head(since) => since + self.head,
            Waiting::Idle(since) => since + self.idle,
            Waiting::Nothing => {
                let now = Instant::now();
                self.waiting = Waiting::Idle(now);
                now + self.idle
            }
        };
        self.read_timer.poll(cx, deadline).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_write_patience(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let since = *self.stalled_since.get_or_insert_with(Instant::now);
        self.write_timer.poll(cx, since + self.stall).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    fn went(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Pending => self.poll_write_patience(cx),
            ready => {
                self.stalled_since = None;
                ready
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.observe();
        match Pin::new(&mut this.stream).poll_read(cx, buf) {
            Poll::Pending => this.poll_patience(cx),
            ready => {
                this.came();
                ready
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.went(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.went(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A timer that is armed late and seldom: it may run out before the deadline, and is then armed again. Polled by one task.
#[derive(Debug, Default)]
pub(crate) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Ready when the deadline has passed.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if deadline < sleep.deadline() {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}
