//! Replicas that fail, each in its own way.

use std::sync::{Arc, atomic::Ordering};

use router::Limits;
use runtime::shutdown::Tasks;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::Semaphore,
    time::Duration,
};

use crate::{
    replica::{Replica, missing, ok, status},
    world::{SCORE, World, ask, request, route, until},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_fails_is_told_from_a_router_that_fails() {
    let replica = Replica::unix("a", |_| async {
        let mut answer = status(500, "{\"message\": \"scoring script\"}");
        answer.headers_mut().insert("x-ms-run-function-failed", "True".parse().unwrap());
        answer
    });
    let world = World::new(route(vec![replica.endpoint()]));
    let answer = world.post("{}").await;
    assert_eq!(answer.status, 502);
    assert_eq!(answer.text(), "{\"message\": \"scoring script\"}");
    assert_eq!(answer.headers["x-ms-run-function-failed"], "True");
    assert_eq!(answer.headers["x-kaai-stage"], "model");
    assert_eq!(world.utilization().completed, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_other_status_is_the_callers_affair() {
    for code in [200, 201, 204, 304, 400, 404, 415, 429, 431, 501, 503] {
        let replica =
            Replica::unix("a", move |_| async move { status(code, if code == 204 || code == 304 { "" } else { "x" }) });
        let world = World::new(route(vec![replica.endpoint()]));
        let answer = world.post("{}").await;
        assert_eq!(answer.status, code);
        assert!(!answer.headers.contains_key("x-kaai-stage"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_closes_before_replying_is_named_and_not_asked_again() {
    let replica = Replica::raw("ridge-7-a", |mut stream: UnixStream| async move {
        let mut head = [0; 1024];
        let _ = stream.read(&mut head).await;
    });
    let world = World::new(route(vec![replica.endpoint()]));
    let answer = world.post("{}").await;
    let detail = answer.refusal(502, "replica");
    assert!(detail.starts_with("Replica closed connection before replying"), "{detail}");
    assert_eq!(answer.json()["replica"], "ridge-7-a");
    assert_eq!(world.utilization().arrivals, 1);
    world.settled(0, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_may_have_begun_is_never_sent_to_another_replica() {
    let closing = Replica::raw("a", |mut stream: UnixStream| async move {
        let mut head = [0; 1024];
        let _ = stream.read(&mut head).await;
    });
    let fine = Replica::unix("b", |_| async { ok("fine") });
    let world = World::new(route(vec![closing.endpoint(), fine.endpoint()]));
    world.post("{}").await.refusal(502, "replica");
    assert_eq!(fine.seen.requests(), 0);
    // The first one has been set aside, so the next goes to the other.
    assert_eq!(world.post("{}").await.text(), "fine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_not_http_is_said_to_be_so() {
    let replica = Replica::raw("a", |mut stream: UnixStream| async move {
        let mut head = [0; 1024];
        let _ = stream.read(&mut head).await;
        let _ = stream.write_all(b"220 smtp.example ESMTP\r\n\r\n").await;
    });
    let world = World::new(route(vec![replica.endpoint()]));
    assert!(world.post("{}").await.refusal(502, "replica").contains("not HTTP"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_breaks_off_is_not_taken_for_whole() {
    let replica = Replica::raw("a", |mut stream: UnixStream| async move {
        let mut head = [0; 1024];
        let _ = stream.read(&mut head).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await;
    });
    let world = World::new(route(vec![replica.endpoint()]));
    assert!(crate::world::try_ask(world.address(), request("POST", SCORE, "{}")).await.is_err());
    world.settled(0, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_length_that_came_beside_another_framing_is_not_believed() {
    let replica = Replica::raw("a", |mut stream: UnixStream| async move {
        let mut head = [0; 1024];
        let _ = stream.read(&mut head).await;
        let both = b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        let _ = stream.write_all(both).await;
    });
    let world = World::new(route(vec![replica.endpoint()]));
    assert_eq!(world.post("{}").await.text(), "abc");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_goes_on_to_another_replica_when_the_first_is_not_there() {
    let there = Replica::unix("there", |_| async { ok("there") });
    let world = World::new(route(vec![missing("a"), missing("b"), there.endpoint()]));
    for _ in 0..10 {
        assert_eq!(world.post("some body").await.text(), "there");
    }
    assert_eq!(there.seen.requests(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_comes_back_gets_requests_again_without_a_new_route() {
    let replica = Replica::unix("a", |_| async { ok("back") });
    let (socket, hidden) = (replica.socket(), replica.socket().with_extension("hidden"));
    std::fs::rename(&socket, &hidden).unwrap();
    let world = World::new(route(vec![replica.endpoint()]));
    let address = world.address();
    let waiting = Tasks::default().spawn(async move { ask(address, request("GET", SCORE, "")).await });
    world.settled(1, 0).await;
    std::fs::rename(&hidden, &socket).unwrap();
    assert_eq!(waiting.await.unwrap().text(), "back");
    assert_eq!(replica.seen.requests(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_cannot_be_reached_end_in_no_ready_replicas() {
    let mut listed = route(vec![missing("a"), missing("b")]);
    listed.requests.max_queue_wait_ms = 60;
    let world = World::new(listed);
    assert_eq!(world.get(SCORE).await.refusal(503, "capacity"), "No ready replicas for service ridge");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_takes_too_long_keeps_its_slot_until_it_is_done() {
    let door = Arc::new(Semaphore::new(0));
    let replica = Replica::behind(&door, "a", "late");
    let mut listed = route(vec![replica.endpoint()]);
    listed.requests.scoring_timeout_ms = 30;
    let world = World::new(listed.clone());
    let answer = world.post("{}").await;
    assert_eq!(answer.refusal(504, "deadline"), "Replica a of service ridge did not answer within 30 ms");
    listed.requests.scoring_timeout_ms = 60_000;
    world.routes.put(&listed, 2);
    let address = world.address();
    let next = Tasks::default().spawn(async move { ask(address, request("POST", SCORE, "{}")).await });
    world.settled(1, 1).await;
    door.add_permits(2);
    assert_eq!(next.await.unwrap().text(), "late");
    assert_eq!(replica.seen.most.load(Ordering::SeqCst), 1, "never two at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_not_done_within_the_grace_gets_nothing_until_it_answers() {
    let (stuck, freed) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    // One worker, as raw bytes: it looks at the next connection only when it is done with the one before.
    let worker = Arc::new(tokio::sync::Mutex::new(()));
    let replica = {
        let (stuck, freed) = (stuck.clone(), freed.clone());
        Replica::raw("a", move |mut stream: UnixStream| {
            let (stuck, freed, worker) = (stuck.clone(), freed.clone(), worker.clone());
            async move {
                let _working = worker.lock().await;
                let mut head = vec![0; 4096];
                let read = stream.read(&mut head).await.unwrap_or(0);
                if head[..read].starts_with(b"POST") {
                    stuck.add_permits(1);
                    freed.acquire().await.unwrap().forget();
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok").await;
            }
        })
    };
    let mut listed = route(vec![replica.endpoint()]);
    listed.requests.scoring_timeout_ms = 30;
    let world = World::with(listed.clone(), Limits { grace: Duration::from_millis(50), ..Limits::default() });
    world.post("{}").await.refusal(504, "deadline");
    stuck.acquire().await.unwrap().forget();
    world.settled(0, 0).await;
    listed.requests.scoring_timeout_ms = 60_000;
    listed.requests.max_queue_wait_ms = 60;
    world.routes.put(&listed, 2);
    assert_eq!(world.get(SCORE).await.refusal(503, "capacity"), "No ready replicas for service ridge");
    freed.add_permits(10);
    until("it answers again", || world.utilization().replicas == 1).await;
    listed.requests.max_queue_wait_ms = 20_000;
    world.routes.put(&listed, 3);
    assert_eq!(world.get(SCORE).await.text(), "ok");
}
