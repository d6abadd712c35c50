//! The loop: routes come in from the bus, utilization goes out to it. Requests are served by other threads and wait for neither.

use proto::{deployer::Route, subject};
use runtime::{
    Runtime,
    bus::{Bucket, Change, Watch},
    clock,
};
use tokio::time::{Duration, Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::routes::{News, Routes, Told};

/// How often each service is told of.
const EVERY: Duration = Duration::from_secs(1);

/// The routes as the bus has them.
pub(crate) struct Follower {
    watch: Watch<Route>,
}

impl Follower {
    /// Opens the routes.
    ///
    /// # Errors
    ///
    /// Fails when the bus could not be had for 30 s.
    pub(crate) async fn open(rt: &Runtime) -> Result<Self, runtime::bus::Error> {
        let bucket: Bucket<Route> = rt.bus.bucket(subject::ROUTES).await?;
        Ok(Self { watch: bucket.watch() })
    }

    /// Takes over all routes that there are, at once. Says whether that is done; not when shutdown came first.
    pub(crate) async fn load(&mut self, routes: &Routes) -> bool {
        let mut loaded = Vec::new();
        loop {
            match self.watch.next().await {
                Some(Change::Put { key, value, revision }) if is_at(&value, &key) => loaded.push((value, revision)),
                Some(Change::Put { .. } | Change::Gone { .. }) => {}
                Some(Change::Synced) => break,
                None => return false,
            }
        }
        tracing::info!(services = loaded.len(), "routes loaded");
        routes.put_all(loaded);
        true
    }

    /// Goes by every change until shutdown. While the bus is away, the routes stay as they were.
    pub(crate) async fn follow(&mut self, routes: &Routes) {
        while let Some(change) = self.watch.next().await {
            match change {
                Change::Put { key, value, revision } if is_at(&value, &key) => {
                    let (workspace, service, generation) = (&value.workspace, &value.service, value.generation);
                    tracing::debug!(%workspace, %service, %generation, revision, replicas = value.replicas.len(), "route");
                    routes.put(&value, revision);
                }
                Change::Gone { key, revision } => {
                    if let Some((workspace, service)) = subject::parse_service_key(&key) {
                        tracing::debug!(%workspace, %service, revision, "route gone");
                        routes.remove(&workspace, &service, revision);
                    }
                }
                Change::Put { .. } | Change::Synced => {}
            }
        }
    }
}

/// Whether a route stands under its own service's key; one that does not is an error of whoever wrote it, and is not gone by.
fn is_at(route: &Route, key: &str) -> bool {
    let is_at = subject::service_key(&route.workspace, &route.service) == key;
    if !is_at {
        tracing::error!(key, service = %route.service, "a route stands under another service's key and is passed over");
    }
    is_at
}

/// Tells of each service every second, and at once of one with news for whoever stops replicas; until `end`.
///
/// It goes on while the last requests are finished: a router that fell silent would not be waited for.
pub(crate) async fn tell(rt: Runtime, routes: std::sync::Arc<Routes>, mut news: News, end: CancellationToken) {
    let mut tick = tokio::time::interval(EVERY);
    // After a stall the next window is longer; several empty ones in its stead would tell nothing.
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let told = tokio::select! {
            biased;
            () = end.cancelled() => return,
            told = news.next() => vec![told],
            _ = tick.tick() => routes.told(),
        };
        // Nobody hears while the bus is away; the windows stay open until somebody does.
        if !rt.bus.is_connected() {
            continue;
        }
        for told in &told {
            tell_one(&rt, told).await;
        }
        routes.forget_finished();
    }
}

async fn tell_one(rt: &Runtime, told: &Told) {
    let utilization = told.utilization(&rt.instance, Instant::now(), clock::now_ms());
    rt.bus.tell(told.workspace(), told.service(), &utilization).await;
}
