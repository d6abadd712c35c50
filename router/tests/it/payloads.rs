//! Large bodies, in both directions.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use http_body_util::BodyExt;
use hyper::{
    Request,
    body::{Body, Bytes, Frame, Incoming, SizeHint},
};
use proto::spec::Auth;
use router::Limits;
use runtime::shutdown::Tasks;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    sync::Semaphore,
    time::Duration,
};

use crate::{
    replica::{Replica, ok},
    world::{SCORE, SOON, World, ask, request, route, until},
};

const MB: u64 = 1024 * 1024;

/// So many bytes of a pattern, counted as they are taken.
struct Pattern {
    left: u64,
    known: bool,
    taken: Arc<AtomicU64>,
}

impl Pattern {
    fn new(length: u64, known: bool) -> (Self, Arc<AtomicU64>) {
        let taken = Arc::new(AtomicU64::new(0));
        (Self { left: length, known, taken: taken.clone() }, taken)
    }
}

impl Body for Pattern {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        static PIECE: [u8; 64 * 1024] = [0x5a; 64 * 1024];
        let size = self.left.min(PIECE.len() as u64);
        self.left -= size;
        self.taken.fetch_add(size, Ordering::SeqCst);
        let piece = usize::try_from(size).unwrap();
        Poll::Ready((size > 0).then(|| Ok(Frame::data(Bytes::from_static(&PIECE[..piece])))))
    }

    fn size_hint(&self) -> SizeHint {
        if self.known { SizeHint::with_exact(self.left) } else { SizeHint::default() }
    }
}

fn upload(length: u64, known: bool) -> (Request<Pattern>, Arc<AtomicU64>) {
    let (body, taken) = Pattern::new(length, known);
    (Request::post(SCORE).header("host", "kaai.test").body(body).unwrap(), taken)
}

/// Says the size and the digest of what it gets, once the door is open.
fn measuring(door: &Arc<Semaphore>) -> Replica {
    let door = door.clone();
    Replica::unix("a", move |request: Request<Incoming>| {
        let door = door.clone();
        async move {
            door.acquire().await.unwrap().forget();
            let (mut body, mut size, mut hash) = (request.into_body(), 0, Sha256::new());
            while let Some(Ok(frame)) = body.frame().await {
                let data = frame.into_data().unwrap_or_default();
                size += data.len();
                hash.update(&data);
            }
            ok(format!("{size} {:?}", hash.finalize()))
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_megabytes_pass_and_are_never_held() {
    for known in [true, false] {
        let door = Arc::new(Semaphore::new(0));
        let replica = measuring(&door);
        let world = World::new(route(vec![replica.endpoint()]));
        let (request, taken) = upload(100 * MB, known);
        let address = world.address();
        let answer = Tasks::default().spawn(async move { ask(address, request).await });
        until("the replica has the request", || replica.seen.now() == 1).await;
        // The replica reads nothing, so the router takes no more than fits into buffers: sockets' and its own.
        let mut before = u64::MAX;
        runtime::testing::until("the upload stands still", SOON, async || {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = taken.load(Ordering::SeqCst);
            let still = now == before;
            before = now;
            still.then_some(())
        })
        .await;
        assert!(before < 16 * MB, "{before} bytes were taken from the caller");
        door.add_permits(1);
        let answer = answer.await.unwrap();
        let mut hash = Sha256::new();
        (0..100 * 16).for_each(|_| hash.update([0x5a; 64 * 1024]));
        assert_eq!(answer.text(), format!("{} {:?}", 100 * MB, hash.finalize()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_a_hundred_megabytes_waits_for_its_reader() {
    let sent = Arc::new(AtomicU64::new(0));
    let replica = {
        let sent = sent.clone();
        Replica::raw("a", move |mut stream: UnixStream| {
            let sent = sent.clone();
            async move {
                let mut head = [0; 4096];
                let _ = stream.read(&mut head).await;
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 100 * MB);
                let _ = stream.write_all(head.as_bytes()).await;
                for _ in 0..1600 {
                    if stream.write_all(&[7; 64 * 1024]).await.is_err() {
                        return;
                    }
                    sent.fetch_add(64 * 1024, Ordering::SeqCst);
                }
            }
        })
    };
    let world = World::new(route(vec![replica.endpoint()]));
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    stream.write_all(format!("GET {SCORE} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut before = u64::MAX;
    runtime::testing::until("the answer stands still", SOON, async || {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = sent.load(Ordering::SeqCst);
        let still = now == before && now > 0;
        before = now;
        still.then_some(())
    })
    .await;
    assert!(before < 32 * MB, "{before} bytes were taken from the replica");
    let mut whole = Vec::new();
    stream.read_to_end(&mut whole).await.unwrap();
    assert!(whole.len() as u64 > 100 * MB);
    assert!(whole.ends_with(&[7; 1024]));
    world.settled(0, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payload_that_says_it_is_too_large_is_refused_before_it_is_sent() {
    let replica = Replica::unix("a", |_| async { ok("") });
    let world = World::new(route(vec![replica.endpoint()]));
    let (request, taken) = upload(100 * MB + 1, true);
    let answer = ask(world.address(), request).await;
    assert_eq!(answer.refusal(413, "size"), "The payload is over 104857600 bytes (100 MB)");
    assert!(taken.load(Ordering::SeqCst) < 100 * MB);
    assert_eq!(replica.seen.requests(), 0);

    // A caller that asks first is told without sending a byte.
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    let head =
        format!("POST {SCORE} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n", 100 * MB + 1);
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payload_that_turns_out_too_large_is_refused_while_it_is_sent() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let replica = {
        let seen = seen.clone();
        Replica::unix("a", move |request: Request<Incoming>| {
            let seen = seen.clone();
            async move {
                let whole = request.into_body().collect().await;
                seen.lock().unwrap().push(whole.is_ok());
                ok("never")
            }
        })
    };
    let world = World::with(route(vec![replica.endpoint()]), Limits { max_body: MB, ..Limits::default() });
    let (request, _) = upload(4 * MB, false);
    assert_eq!(ask(world.address(), request).await.refusal(413, "size"), "The payload is over 1048576 bytes (1 MB)");
    until("the replica sees it break off", || *seen.lock().unwrap() == [false]).await;
    world.settled(0, 0).await;
    let (request, _) = upload(MB, false);
    assert_eq!(ask(world.address(), request).await.text(), "never");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_upload_does_not_cost_the_caller_the_answer() {
    // No Expect: the whole body is on its way before the answer is read, as most clients do it.
    // Refused at the door, and after the queue.
    for (auth, status) in [(Auth::Key, b"HTTP/1.1 401"), (Auth::None, b"HTTP/1.1 503")].repeat(5) {
        let mut listed = route(Vec::new());
        listed.auth = auth;
        let world = World::new(listed);
        let mut stream = TcpStream::connect(world.address()).await.unwrap();
        let head = format!("POST {SCORE} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", 8 * MB);
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![1; 8 * 1024 * 1024]).await.unwrap();
        let mut start = [0; 12];
        stream.read_exact(&mut start).await.unwrap();
        assert_eq!(&start, status);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_in_small_pieces_arrives_whole_and_holds_no_slot_before() {
    let replica = Replica::unix("a", |request: Request<Incoming>| async move {
        let length = request.headers().get("content-length").map_or("none", |value| value.to_str().unwrap()).to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        ok(format!("{length} {}", String::from_utf8_lossy(&body)))
    });
    let world = World::new(route(vec![replica.endpoint()]));
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    let head = format!("POST {SCORE} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(b"2\r\nab\r\n").await.unwrap();
    assert_eq!(world.post("other").await.text(), "5 other", "the slot is free while the body is on its way");
    stream.write_all(b"3\r\ncde\r\n0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("5 abcde"), "{answer}");
    assert_eq!(ask(world.address(), request("POST", SCORE, "")).await.text(), "none ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_stands_still_is_given_up() {
    let replica = Replica::unix("a", |request: Request<Incoming>| async move {
        let _ = request.into_body().collect().await;
        ok("")
    });
    let limits = Limits { stall_timeout: Duration::from_millis(50), ..Limits::default() };
    let world = World::with(route(vec![replica.endpoint()]), limits);
    for length in [10, MB] {
        let mut stream = TcpStream::connect(world.address()).await.unwrap();
        let head = format!("POST {SCORE} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\nabc");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut start = [0; 12];
        stream.read_exact(&mut start).await.unwrap();
        assert_eq!(&start, b"HTTP/1.1 408", "{length}");
    }
    world.settled(0, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_moves_and_is_not_whole_in_time_is_over_the_scoring_timeout() {
    let replica = Replica::unix("a", |request: Request<Incoming>| async move {
        let _ = request.into_body().collect().await;
        ok("")
    });
    let mut listed = route(vec![replica.endpoint()]);
    listed.requests.scoring_timeout_ms = 200;
    let world = World::new(listed);
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    let head = format!("POST {SCORE} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", 8 * MB);
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut answers, mut upload) = stream.split();
    let trickle = async {
        // A piece large enough to be forwarded at once, then a little now and then.
        while upload.write_all(&[1; 128 * 1024]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        std::future::pending::<()>().await
    };
    let mut answer = [0; 512];
    let length = tokio::select! {
        length = answers.read(&mut answer) => length.unwrap(),
        () = trickle => unreachable!("it goes on until there is an answer"),
    };
    let answer = String::from_utf8_lossy(&answer[..length]);
    assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("not whole within 200 ms"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_is_answered_early_is_not_held_up() {
    // It keeps its connection and reads no body: the connection can serve no other request, and must not be kept for one.
    let replica = Replica::raw("a", |mut stream: UnixStream| async move {
        let mut head = [0; 1024];
        let _ = stream.read(&mut head).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        std::future::pending().await
    });
    let limits = Limits { pool_idle: Duration::from_secs(600), ..Limits::default() };
    let world = World::with(route(vec![replica.endpoint()]), limits);
    for _ in 0..2 {
        let mut stream = TcpStream::connect(world.address()).await.unwrap();
        let head = format!("POST {SCORE} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", 8 * MB);
        stream.write_all(head.as_bytes()).await.unwrap();
        let body = vec![1; 8 * 1024 * 1024];
        let sent = tokio::time::timeout(SOON, stream.write_all(&body));
        sent.await.expect("the upload is read away").unwrap();
        let mut start = [0; 12];
        stream.read_exact(&mut start).await.unwrap();
        assert_eq!(&start, b"HTTP/1.1 200");
    }
}
