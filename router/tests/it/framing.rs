//! Raw bytes: framing, slow heads, idle connections, heads that are too large.

use std::sync::Arc;

use http_body_util::BodyExt;
use hyper::{Request, body::Incoming};
use router::Limits;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    sync::Semaphore,
    time::{Duration, timeout},
};

use crate::{
    replica::{Replica, ok},
    world::{SCORE, SOON, World, route, until},
};

fn echo() -> Replica {
    Replica::unix("a", |request: Request<Incoming>| async move {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        ok(format!("<{query}:{}>", String::from_utf8_lossy(&body)))
    })
}

/// Sends bytes and reads until the router closes the connection.
async fn talk(world: &World, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut answer)).await.expect("the router closes the connection");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ambiguous_framing_never_smuggles_a_request() {
    let replica = echo();
    let world = World::new(route(vec![replica.endpoint()]));
    let hidden = format!("GET {SCORE}?hidden HTTP/1.1\r\nhost: x\r\n\r\n");
    let refused = [
        // Two lengths.
        format!(
            "POST {SCORE} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\ncontent-length: {}\r\n\r\n{hidden}",
            hidden.len()
        ),
        format!("POST {SCORE} HTTP/1.1\r\nhost: x\r\ncontent-length: 0, {}\r\n\r\n{hidden}", hidden.len()),
        format!("POST {SCORE} HTTP/1.1\r\nhost: x\r\ncontent-length: +4\r\n\r\nabcd{hidden}"),
        // Not chunked at the end, or not only.
        format!("POST {SCORE} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n{hidden}"),
        format!(
            "POST {SCORE} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n{hidden}"
        ),
        format!("POST {SCORE} HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"),
        // Folded, spaced and broken header lines.
        format!("POST {SCORE} HTTP/1.1\r\nhost: x\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("POST {SCORE} HTTP/1.1\r\nhost: x\r\nx: a\r\n content-length: 4\r\n\r\n{hidden}"),
        format!("POST {SCORE} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{hidden}"),
    ];
    for bytes in refused {
        let answer = talk(&world, bytes.as_bytes()).await;
        let status: u16 = answer.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(0);
        assert!((400..=501).contains(&status), "{bytes}\n{answer}");
        assert!(!answer.contains("hidden"), "{bytes}\n{answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{bytes}\n{answer}");
    }
    // Both framings: the chunks count (RFC 9112 §6.3), the connection ends, and the replica gets one length.
    let both = format!(
        "POST {SCORE} HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n{hidden}"
    );
    let answer = talk(&world, both.as_bytes()).await;
    assert!(answer.ends_with("<:abc>"), "{answer}");
    assert!(!answer.contains("hidden"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_sent_at_once_are_answered_one_after_the_other() {
    let replica = echo();
    let world = World::new(route(vec![replica.endpoint()]));
    let bytes: String = (0..5)
        .map(|n| {
            let close = if n == 4 { "connection: close\r\n" } else { "" };
            format!("POST {SCORE}?{n} HTTP/1.1\r\nhost: x\r\n{close}content-length: 1\r\n\r\n{n}")
        })
        .collect();
    let answer = talk(&world, bytes.as_bytes()).await;
    let bodies: Vec<_> = answer.match_indices('<').map(|(at, _)| &answer[at..at + 5]).collect();
    assert_eq!(bodies, ["<0:0>", "<1:1>", "<2:2>", "<3:3>", "<4:4>"], "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_http_is_answered_and_closed() {
    let replica = echo();
    let world = World::new(route(vec![replica.endpoint()]));
    let answer = talk(&world, format!("GET {SCORE}?old HTTP/1.0\r\n\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.0 200 ") || answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.ends_with("<old:>"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_is_too_large_is_refused() {
    let replica = echo();
    let limits = Limits { max_head: 16 * 1024, max_headers: 20, ..Limits::default() };
    let world = World::with(route(vec![replica.endpoint()]), limits);
    let long = format!("GET {SCORE} HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(20_000));
    let many: String = (0..40).map(|n| format!("x-{n}: 1\r\n")).collect();
    for bytes in [long, format!("GET {SCORE} HTTP/1.1\r\nhost: x\r\n{many}\r\n")] {
        let answer = talk(&world, bytes.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
    assert_eq!(replica.seen.requests(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_heads_and_idle_connections_are_closed() {
    let replica = echo();
    let (head_timeout, idle_timeout) = (Duration::from_millis(300), Duration::from_millis(400));
    let world =
        World::with(route(vec![replica.endpoint()]), Limits { head_timeout, idle_timeout, ..Limits::default() });
    // Nothing at all; and half a head.
    assert_eq!(talk(&world, b"").await, "");
    assert_eq!(talk(&world, b"GET / HTTP/1.1\r\nhost:").await, "");
    // A head that trickles in is as slow as one that does not come.
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    let trickle = async {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if stream.write_all(b"x").await.is_err() {
                return;
            }
        }
    };
    timeout(SOON, trickle).await.expect("the connection is closed");
    // A whole request is answered, and the connection then kept until it has been idle for too long.
    let answer = talk(&world, format!("GET {SCORE} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await;
    assert!(answer.ends_with("<:>"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_replica_outlasts_the_idle_limit() {
    let door = Arc::new(Semaphore::new(0));
    let replica = Replica::behind(&door, "a", "at last");
    let limit = Duration::from_millis(100);
    let limits = Limits { head_timeout: limit, idle_timeout: limit, stall_timeout: limit, ..Limits::default() };
    let world = World::with(route(vec![replica.endpoint()]), limits);
    let let_through = async {
        until("the replica has the request", || replica.seen.now() == 1).await;
        // Each of these was idle for as long as a connection may be.
        assert_eq!(talk(&world, b"").await, "");
        assert_eq!(talk(&world, b"").await, "");
        door.add_permits(1);
    };
    let (answer, ()) = tokio::join!(world.post("{}"), let_through);
    assert_eq!(answer.text(), "at last");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_nobody_reads_does_not_hold_its_slot_for_ever() {
    let replica = Replica::raw("a", |mut stream: UnixStream| async move {
        let mut head = [0; 4096];
        let _ = stream.read(&mut head).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        while stream.write_all(&[7; 64 * 1024]).await.is_ok() {}
    });
    let limits =
        Limits { stall_timeout: Duration::from_millis(100), grace: Duration::from_millis(100), ..Limits::default() };
    let world = World::with(route(vec![replica.endpoint()]), limits);
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    stream.write_all(format!("GET {SCORE} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
    world.settled(0, 1).await;
    world.settled(0, 0).await;
}
