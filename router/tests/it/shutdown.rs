//! The end of a router.

use std::sync::Arc;

use runtime::shutdown::Tasks;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    time::timeout,
};

use crate::{
    replica::{Replica, ok},
    world::{Kept, SCORE, SOON, World, ask, request, route, until},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_that_stops_finishes_what_is_in_hand_and_takes_nothing_new() {
    let door = Arc::new(Semaphore::new(0));
    let replica = Replica::behind(&door, "a", "finished");
    let world = World::new(route(vec![replica.endpoint()]));
    let address = world.address();
    let in_hand = Tasks::default().spawn(async move {
        let mut kept = Kept::open(address).await;
        kept.ask(request("POST", SCORE, "{}")).await.unwrap()
    });
    let queued = {
        until("the replica is at it", || replica.seen.now() == 1).await;
        Tasks::default().spawn(async move { ask(address, request("POST", SCORE, "{}")).await })
    };
    world.settled(1, 1).await;
    let idle = Kept::open(address).await;
    let stopping = Tasks::default().spawn(world.server.stop());
    runtime::testing::until("nobody is let in any more", SOON, async || TcpStream::connect(address).await.err()).await;
    assert!(!stopping.is_finished());
    door.add_permits(2);
    let answer = in_hand.await.unwrap();
    assert_eq!((answer.text(), &answer.headers["connection"]), ("finished", &"close".parse().unwrap()));
    assert_eq!(queued.await.unwrap().text(), "finished");
    timeout(SOON, stopping).await.expect("it has stopped").unwrap();
    drop(idle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_had_connected_before_the_stop_is_answered() {
    let replica = Replica::unix("a", |_| async { ok("answered") });
    for _ in 0..5 {
        let world = World::new(route(vec![replica.endpoint()]));
        let mut callers = Vec::new();
        for _ in 0..40 {
            let mut stream = TcpStream::connect(world.address()).await.unwrap();
            stream.write_all(format!("GET {SCORE} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
            callers.push(stream);
        }
        let stopped = Tasks::default().spawn(world.server.stop());
        for mut stream in callers {
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.ends_with("answered"), "{answer:?}");
        }
        timeout(SOON, stopped).await.expect("it has stopped").unwrap();
    }
}
