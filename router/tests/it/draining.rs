//! A replica leaves: out of the routes, its last request finished, stopped. No request is lost.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use router::News;
use runtime::shutdown::Tasks;
use tokio::{
    sync::Semaphore,
    time::{Duration, Instant, timeout},
};

use crate::{
    replica::{Replica, ok},
    world::{Kept, SCORE, SOON, World, ask, request, route, until},
};

/// Waits, as whoever stops replicas does, until the router has applied a revision and has nothing left in a replica.
async fn emptied(news: &mut News, revision: u64, replica: &str) {
    let router = "router-test".parse().unwrap();
    let wait = async {
        loop {
            let told = news.next().await.utilization(&router, Instant::now(), 0);
            let left: HashMap<_, _> = told.draining.iter().map(|(id, left)| (id.as_str(), *left)).collect();
            if told.revision >= revision && left.get(replica).copied().unwrap_or(0) == 0 {
                return;
            }
        }
    };
    timeout(SOON, wait).await.unwrap_or_else(|_| panic!("{replica} is emptied"));
}

fn working(id: &str) -> Replica {
    Replica::unix(id, |_| async {
        tokio::time::sleep(Duration::from_micros(500)).await;
        ok("done")
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_changes_of_replicas_under_load_lose_no_request() {
    let mut current = vec![working("r-0"), working("s-0")];
    let listed = |replicas: &[Replica]| replicas.iter().map(Replica::endpoint).collect::<Vec<_>>();
    let mut world = World::new(route(listed(&current)));
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (stop, served, address) = (stop.clone(), served.clone(), world.address());
            Tasks::default().spawn(async move {
                let mut kept = Kept::open(address).await;
                while !stop.load(Ordering::Relaxed) {
                    let answer = kept.ask(request("POST", SCORE, "{}")).await.unwrap();
                    assert_eq!(answer.status, 200, "{:?}", answer.body);
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut revision = 1;
    for flip in 1..=50 {
        let before = served.load(Ordering::Relaxed);
        until("requests go on", || served.load(Ordering::Relaxed) > before + 20).await;
        let leaving = current.remove(0);
        current.push(working(&format!("r-{flip}")));
        let mut next = listed(&current);
        // By turns marked as draining first, and simply gone.
        if flip % 2 == 0 {
            next.push(leaving.draining());
        }
        revision += 1;
        world.routes.put(&route(next), revision);
        emptied(&mut world.news, revision, leaving.endpoint().replica.as_str()).await;
        assert_eq!(leaving.seen.now(), 0, "what was told as empty is empty");
        drop(leaving);
    }
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    assert!(served.load(Ordering::Relaxed) > 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_told_as_empty_when_its_last_request_is_finished_and_not_before() {
    let door = Arc::new(Semaphore::new(0));
    let busy = Replica::behind(&door, "busy", "finished");
    let mut world = World::new(route(vec![busy.endpoint()]));
    let address = world.address();
    let last = Tasks::default().spawn(async move { ask(address, request("GET", SCORE, "")).await });
    until("the replica is at it", || busy.seen.now() == 1).await;

    world.routes.put(&route(vec![busy.draining()]), 2);
    let router = "router-test".parse().unwrap();
    let told = timeout(SOON, world.news.next()).await.unwrap().utilization(&router, Instant::now(), 0);
    assert_eq!((told.revision, told.replicas, told.draining.values().sum::<u32>()), (2, 0, 1));

    // Gone from the route altogether, it is still listed: it is not empty.
    world.routes.put(&route(Vec::new()), 3);
    let told = timeout(SOON, world.news.next()).await.unwrap().utilization(&router, Instant::now(), 0);
    assert_eq!((told.revision, told.draining.values().sum::<u32>()), (3, 1));

    // And so it is when the whole service goes.
    world.routes.remove(&"default".parse().unwrap(), &"ridge".parse().unwrap(), 4);
    let told = timeout(SOON, world.news.next()).await.unwrap().utilization(&router, Instant::now(), 0);
    assert_eq!((told.revision, told.draining.values().sum::<u32>()), (4, 1));
    world.get(SCORE).await.refusal(404, "route");
    world.routes.forget_finished();
    assert_eq!(world.routes.told().len(), 1);

    door.add_permits(1);
    assert_eq!(last.await.unwrap().text(), "finished");
    let told = timeout(SOON, world.news.next()).await.unwrap().utilization(&router, Instant::now(), 0);
    assert_eq!((told.revision, told.draining.len()), (4, 0));
    world.routes.forget_finished();
    assert_eq!(world.routes.told().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_for_a_service_that_goes_is_told_so() {
    let mut starting = route(Vec::new());
    starting.starting = 1;
    let world = World::new(starting);
    let address = world.address();
    let waiting = Tasks::default().spawn(async move { ask(address, request("GET", SCORE, "")).await });
    world.settled(1, 0).await;
    world.routes.remove(&"default".parse().unwrap(), &"ridge".parse().unwrap(), 2);
    waiting.await.unwrap().refusal(404, "route");
}
