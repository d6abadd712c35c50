//! The whole component on a real bus.

use proto::{
    deployer::Route,
    router::ServiceUtilization,
    subject::{ROUTES, service_key},
};
use router::Config;
use runtime::{shutdown::Tasks, testing::Nats};
use tokio::{
    sync::oneshot,
    time::{Duration, timeout},
};

use crate::{
    replica::{Replica, ok},
    world::{SCORE, SOON, ask, request, route},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_in_the_bucket_is_served_and_its_utilization_is_heard() {
    let mut nats = Nats::start().await;
    let deployer = nats.runtime("deployer").await;
    let routes = deployer.bus.bucket::<Route>(ROUTES).await.unwrap();
    let mut heard = deployer.bus.listen::<ServiceUtilization>().await.unwrap();
    let replica = Replica::unix("ridge-7-a", |_| async { ok("[206.1]") });
    let served = route(vec![replica.endpoint()]);
    let key = service_key(&served.workspace, &served.service);
    let first = routes.put(&key, &served).await.unwrap();

    let rt = nats.runtime("router").await;
    let (bound, address) = oneshot::channel();
    let config = Config {
        address: ([127, 0, 0, 1], 0).into(),
        bound: Some(bound),
        drain: Duration::from_secs(5),
        ..Config::default()
    };
    let running = Tasks::default().spawn(router::run(config, rt.clone()));
    let address = address.await.unwrap();
    assert_eq!(ask(address, request("POST", SCORE, "{}")).await.text(), "[206.1]");
    assert_eq!(rt.health.reason(), None);

    let hear = async |heard: &mut runtime::bus::Listener<ServiceUtilization>,
                      wanted: &dyn Fn(&ServiceUtilization) -> bool| {
        timeout(SOON, async {
            loop {
                let (_, service, told) = heard.next().await.unwrap();
                assert_eq!(service.as_str(), "ridge");
                if wanted(&told) {
                    return told;
                }
            }
        })
        .await
        .expect("utilization is heard")
    };
    let told = hear(&mut heard, &|told| told.completed == 1).await;
    assert_eq!((&told.router, told.revision, told.replicas), (&rt.instance, first, 1));

    let mut next = served.clone();
    next.replicas = vec![replica.draining()];
    let second = routes.update(&key, &next, first).await.unwrap();
    let told = hear(&mut heard, &|told| told.revision == second).await;
    assert_eq!(told.draining.into_values().collect::<Vec<_>>(), [0]);

    // Without the bus the last routes hold; with it, what went meanwhile goes.
    routes.put(&key, &served).await.unwrap();
    hear(&mut heard, &|told| told.replicas == 1).await;
    nats.kill();
    assert_eq!(ask(address, request("POST", SCORE, "{}")).await.text(), "[206.1]");
    nats.resume().await;
    runtime::testing::until("the route is gone", SOON, async || routes.delete(&key).await.ok()).await;
    runtime::testing::until("the service is gone", SOON, async || {
        (ask(address, request("POST", SCORE, "{}")).await.status == 404).then_some(())
    })
    .await;

    rt.shutdown.cancel();
    timeout(SOON, running).await.expect("the router stops").unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_in_use_stops_the_router_with_a_sentence() {
    let nats = Nats::start().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = router::run(Config { address, ..Config::default() }, nats.runtime("router").await).await.unwrap_err();
    assert!(error.to_string().starts_with(&format!("{address} is already in use")), "{error}");
}
