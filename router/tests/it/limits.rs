//! Slots and the queue.

use std::sync::{Arc, Mutex, atomic::Ordering};

use futures::future::join_all;
use hyper::Request;
use proto::spec::RequestLimits;
use router::Limits;
use runtime::shutdown::Tasks;
use tokio::{
    net::TcpStream,
    sync::Semaphore,
    time::{Duration, timeout},
};

use crate::{
    replica::{Replica, missing, ok},
    world::{Kept, SCORE, SOON, World, ask, request, route, until},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_replica_ever_has_more_requests_than_its_limit() {
    let work = |_| async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        ok("done")
    };
    let replicas = [Replica::unix("a", work), Replica::unix("b", work), Replica::tcp("c", work).await];
    let mut listed = route(replicas.iter().map(Replica::endpoint).collect());
    listed.requests.max_concurrent_per_replica = 2;
    let world = World::new(listed);
    let callers = (0..60).map(|_| async {
        let mut kept = Kept::open(world.address()).await;
        for _ in 0..20 {
            assert_eq!(kept.ask(request("POST", SCORE, "{}")).await.unwrap().status, 200);
        }
    });
    join_all(callers).await;
    for replica in &replicas {
        assert_eq!(replica.seen.most.load(Ordering::SeqCst), 2, "the limit is used, and not passed");
        assert!(replica.seen.requests() > 200, "{} of 1200", replica.seen.requests());
    }
    world.settled(0, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_served_in_the_order_in_which_they_came() {
    let door = Arc::new(Semaphore::new(0));
    let order = Arc::new(Mutex::new(Vec::new()));
    let replica = {
        let (door, order) = (door.clone(), order.clone());
        Replica::unix("a", move |request: Request<_>| {
            let (door, order) = (door.clone(), order.clone());
            async move {
                order.lock().unwrap().push(request.uri().query().unwrap_or_default().to_owned());
                door.acquire().await.unwrap().forget();
                ok("done")
            }
        })
    };
    let world = World::new(route(vec![replica.endpoint()]));
    let callers = Tasks::default();
    let mut answers = Vec::new();
    for n in 0..20 {
        let (address, path) = (world.address(), format!("{SCORE}?{n}"));
        answers.push(callers.spawn(async move { ask(address, request("GET", &path, "")).await }));
        world.settled(n, 1).await;
    }
    door.add_permits(20);
    for answer in answers {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    let expected: Vec<_> = (0..20).map(|n| n.to_string()).collect();
    assert_eq!(*order.lock().unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_at_once_and_says_so() {
    let door = Arc::new(Semaphore::new(0));
    let replica = Replica::behind(&door, "a", "done");
    let world = World::with(route(vec![replica.endpoint()]), Limits { max_queued: 2, ..Limits::default() });
    let callers = Tasks::default();
    let address = world.address();
    let waiting: Vec<_> =
        (0..3).map(|_| callers.spawn(async move { ask(address, request("GET", SCORE, "")).await })).collect();
    world.settled(2, 1).await;
    let refused = world.get(SCORE).await;
    assert_eq!(refused.refusal(503, "queue"), "Too many requests for service ridge (overloaded)");
    assert_eq!((&refused.json()["queued"], &refused.json()["readyReplicas"]), (&2.into(), &1.into()));
    door.add_permits(3);
    for answer in waiting {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    assert_eq!(world.utilization().refused.get("queue"), Some(&1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_that_is_over_is_refused_as_v1_did() {
    let door = Arc::new(Semaphore::new(0));
    let replica = Replica::behind(&door, "a", "done");
    let mut listed = route(vec![replica.endpoint()]);
    listed.requests = RequestLimits { max_queue_wait_ms: 50, ..listed.requests };
    let world = World::new(listed);
    let address = world.address();
    let held = Tasks::default().spawn(async move { ask(address, request("GET", SCORE, "")).await });
    world.settled(0, 1).await;
    let refused = world.get(SCORE).await;
    assert_eq!(refused.refusal(503, "queue"), "Too many requests for service ridge (overloaded)");
    assert_eq!(refused.json()["maxQueueWaitMs"], 50);
    assert_eq!(refused.headers["retry-after"], "1");
    door.add_permits(1);
    assert_eq!(held.await.unwrap().status, 200);
    assert_eq!(replica.seen.requests(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_without_replicas_refuses_at_once_and_one_whose_replicas_start_waits() {
    let world = World::new(route(Vec::new()));
    let refused = timeout(SOON, world.get(SCORE)).await.unwrap();
    assert_eq!(refused.refusal(503, "capacity"), "No ready replicas for service ridge");

    let mut starting = route(Vec::new());
    starting.starting = 1;
    world.routes.put(&starting, 2);
    let address = world.address();
    let waiting = Tasks::default().spawn(async move { ask(address, request("GET", SCORE, "")).await });
    world.settled(1, 0).await;
    let replica = Replica::unix("a", |_| async { ok("here") });
    world.routes.put(&route(vec![replica.endpoint()]), 3);
    assert_eq!(waiting.await.unwrap().text(), "here");

    starting.requests.max_queue_wait_ms = 20;
    world.routes.put(&starting, 4);
    assert_eq!(world.get(SCORE).await.refusal(503, "capacity"), "No ready replicas for service ridge");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_who_hangs_up_leaves_the_queue_at_once() {
    let door = Arc::new(Semaphore::new(0));
    let replica = Replica::behind(&door, "a", "done");
    let world = World::new(route(vec![replica.endpoint()]));
    let address = world.address();
    let held = Tasks::default().spawn(async move { ask(address, request("GET", SCORE, "")).await });
    world.settled(0, 1).await;
    let mut hung_up = Vec::new();
    for _ in 0..5 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("POST {SCORE} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{{}}");
        tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.unwrap();
        hung_up.push(stream);
    }
    world.settled(5, 1).await;
    drop(hung_up);
    world.settled(0, 1).await;
    door.add_permits(1);
    assert_eq!(held.await.unwrap().status, 200);
    world.settled(0, 0).await;
    assert_eq!(replica.seen.requests(), 1, "none of those who hung up got to the replica");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_who_hangs_up_does_not_free_a_replica_that_is_still_working() {
    let door = Arc::new(Semaphore::new(0));
    let replica = Replica::behind(&door, "a", "done");
    let world = World::new(route(vec![replica.endpoint()]));
    let address = world.address();
    let hung_up = Tasks::default().spawn(async move { ask(address, request("POST", SCORE, "{}")).await });
    until("the replica is at it", || replica.seen.now() == 1).await;
    hung_up.abort();
    let next = Tasks::default().spawn(async move { ask(address, request("POST", SCORE, "{}")).await });
    world.settled(1, 1).await;
    assert_eq!(replica.seen.requests(), 1);
    door.add_permits(2);
    assert_eq!(next.await.unwrap().status, 200);
    world.settled(0, 0).await;
    assert_eq!(replica.seen.most.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_least_loaded_replica_is_chosen_and_equals_take_turns() {
    let door = Arc::new(Semaphore::new(0));
    let (slow, quick) = (Replica::behind(&door, "slow", "done"), Replica::unix("quick", |_| async { ok("quick") }));
    let also_quick = Replica::unix("also-quick", |_| async { ok("quick") });
    let mut listed = route(vec![slow.endpoint()]);
    listed.requests.max_concurrent_per_replica = 4;
    let world = World::new(listed.clone());
    let address = world.address();
    let held = Tasks::default().spawn(async move { ask(address, request("GET", SCORE, "")).await });
    until("the slow one is busy", || slow.seen.now() == 1).await;
    listed.replicas = vec![slow.endpoint(), quick.endpoint(), also_quick.endpoint()];
    world.routes.put(&listed, 2);
    for _ in 0..10 {
        assert_eq!(world.get(SCORE).await.text(), "quick");
    }
    assert_eq!((quick.seen.requests(), also_quick.seen.requests()), (5, 5));
    door.add_permits(1);
    assert_eq!(held.await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn utilization_adds_up() {
    let replica = Replica::unix("a", |_| async { ok("done") });
    let world = World::new(route(vec![replica.endpoint(), missing("b")]));
    world.utilization();
    for _ in 0..7 {
        assert_eq!(world.get(SCORE).await.status, 200);
    }
    world.get("/api/v1/service/ridge/nothing").await.refusal(404, "route");
    assert_eq!(
        ask(world.address(), request("PUT", SCORE, "")).await.refusal(405, "method"),
        "This address is asked with GET, POST, OPTIONS"
    );
    let told = world.utilization();
    assert_eq!((told.arrivals, told.completed), (8, 7));
    assert_eq!(told.refused, [("method".to_owned(), 1)].into());
    assert_eq!((told.generation.0, told.revision, told.replicas, told.concurrency), (7, 1, 2, 1));
    assert_eq!(told.sequence, 2);
    assert!(told.p50_ms > 0.0 && told.p99_ms >= told.p50_ms, "{told:?}");
    assert_eq!(replica.seen.requests(), 7);
    let quiet = world.utilization();
    assert_eq!((quiet.sequence, quiet.arrivals, quiet.completed), (3, 0, 0));
}
