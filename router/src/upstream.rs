//! A connection to a replica, and one exchange over it. The seam at the HTTP/1.1 codec: nothing else knows which one is used.
//!
//! A connection is driven by whoever waits for its answer, in the same task: no task of its own, and nothing to be woken across tasks.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use hyper::{
    Request, Response, Version,
    body::{Body, Frame, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpStream, UnixStream},
    task::unconstrained,
    time::Duration,
};
use tokio_util::either::Either;

use crate::{
    address::Address,
    headers,
    request_body::{Fate, RequestBody},
};

type Stream = Either<UnixStream, TcpStream>;
type Connection = http1::Connection<TokioIo<Stream>, RequestBody>;

/// A connection to a replica.
pub(crate) struct Wire {
    sender: http1::SendRequest<RequestBody>,
    /// None once it has ended. Boxed, since it is large and handed on several times a request.
    connection: Option<Box<Connection>>,
    /// The other side has not said that it closes it.
    lasts: bool,
    /// What has become of the last request's body.
    upload: Fate,
}

/// Why an exchange came to nothing.
pub(crate) enum Failed {
    /// The connection had ended before the request was begun: here it is again, untouched.
    Unsent(Box<Request<RequestBody>>),
    /// The connection ended before the answer began.
    Closed,
    /// What came was not HTTP.
    Garbled,
}

impl Wire {
    /// Connects. An error means that nothing was sent.
    pub(crate) async fn open(address: &Address, limit: Duration, buffer: usize) -> io::Result<Self> {
        let connecting = async {
            let tcp = match address {
                Address::Unix(path) => return UnixStream::connect(path).await.map(Either::Left),
                Address::Tcp(address) => TcpStream::connect(address).await?,
                Address::Name(authority) => TcpStream::connect(authority.as_str()).await?,
            };
            // Head and body may go out in two writes; waiting for the first one's acknowledgement would cost 40 ms.
            tcp.set_nodelay(true)?;
            Ok(Either::Right(tcp))
        };
        let stream = tokio::time::timeout(limit, connecting).await??;
        let handshake = http1::Builder::new().max_buf_size(buffer).handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(io::Error::other)?;
        Ok(Self { sender, connection: Some(Box::new(connection)), lasts: true, upload: Fate::default() })
    }

    /// Whether it may serve another request: the last one went out whole, and the answer did not say that it was the end.
    pub(crate) fn lasts(&self) -> bool {
        self.lasts && self.upload.is_whole()
    }

    /// Whether the other side still holds it, and it is ready for another request.
    pub(crate) fn is_usable(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.connection.is_some() && self.sender.is_ready()
    }

    /// Sends a request and waits for the head of its answer. Dropping the future closes the connection.
    pub(crate) async fn ask(mut self, request: Request<RequestBody>) -> Result<(Response<Incoming>, Self), Failed> {
        // The answer can only come out of driving the connection, so it needs no waker of its own; and none may be lost to a spent
        // budget, hence unconstrained.
        self.upload = request.body().fate();
        let mut answer = pin!(unconstrained(self.sender.try_send_request(request)));
        let connection = &mut self.connection;
        let answered = poll_fn(|cx| {
            drive(connection, cx);
            answer.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        })
        .await;
        match answered {
            Ok(response) => {
                self.lasts = response.version() == Version::HTTP_11 && !headers::closes(response.headers());
                Ok((response, self))
            }
            Err(mut error) => match error.take_message() {
                Some(request) => Err(Failed::Unsent(Box::new(request))),
                None if error.error().is_parse() => Err(Failed::Garbled),
                None => Err(Failed::Closed),
            },
        }
    }

    /// The next piece of an answer's body.
    pub(crate) fn poll_body(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        // Like the head, pieces come out of driving the connection alone.
        let mut unwaked = Context::from_waker(Waker::noop());
        if let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(&mut unwaked) {
            return Poll::Ready(frame);
        }
        self.drive(cx);
        Pin::new(body).poll_frame(&mut unwaked)
    }

    fn drive(&mut self, cx: &mut Context<'_>) {
        drive(&mut self.connection, cx);
    }
}

fn drive(connection: &mut Option<Box<Connection>>, cx: &mut Context<'_>) {
    // An end with an error has been told to whoever waits for the answer or its body.
    if let Some(open) = connection
        && Pin::new(&mut **open).poll(cx).is_ready()
    {
        *connection = None;
    }
}
