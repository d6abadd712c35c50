//! The directory of services: which gate belongs to which name.
//!
//! Requests read an immutable snapshot that is swapped when a service comes or goes; a change of a known service is made in its gate and
//! swaps nothing. Where routes come from is not known here, so a test or a bench can feed them by hand.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use proto::{
    deployer::Route,
    id::{InstanceId, ServiceName, Workspace},
    router::ServiceUtilization,
};
use tokio::{sync::mpsc, time::Instant};

use crate::gate::Gate;

/// By workspace, then by service.
type Directory = HashMap<Workspace, HashMap<ServiceName, Arc<Gate>>>;

/// All services that can be reached. Shared by every thread.
#[derive(Debug)]
pub struct Routes {
    /// Services with a route, as requests see them.
    snapshot: ArcSwap<Snapshot>,
    /// Services with a route, and those without one whose last requests are not finished.
    all: Mutex<Directory>,
    news: mpsc::UnboundedSender<Arc<Gate>>,
}

/// Looked up with borrowed names, which the checked types of [`Directory`] do not allow.
type Snapshot = HashMap<String, HashMap<String, Arc<Gate>>>;

/// Services of which something has to be told at once: a replica has been emptied, or a route that empties one has been applied.
#[derive(Debug)]
pub struct News(mpsc::UnboundedReceiver<Arc<Gate>>);

/// A service, for whoever tells of it.
#[derive(Debug, Clone)]
pub struct Told(Arc<Gate>);

impl Routes {
    /// No services yet.
    pub fn new() -> (Arc<Self>, News) {
        let (news, receiver) = mpsc::unbounded_channel();
        (Arc::new(Self { snapshot: ArcSwap::default(), all: Mutex::default(), news }), News(receiver))
    }

    /// Goes by this route from now on. When this returns, no request can be sent to a replica that the route does not offer.
    pub fn put(&self, route: &Route, revision: u64) {
        self.put_all([(route.clone(), revision)]);
    }

    /// Goes by these routes from now on; one swap for all.
    pub fn put_all(&self, routes: impl IntoIterator<Item = (Route, u64)>) {
        let mut all = self.lock();
        let mut changed = false;
        for (route, revision) in routes {
            let now = Instant::now();
            let services = all.entry(route.workspace.clone()).or_default();
            let gate = services
                .entry(route.service.clone())
                .or_insert_with(|| Gate::new(route.workspace.clone(), route.service.clone(), self.news.clone(), now));
            changed |= gate.apply(&route, revision, now);
        }
        if changed {
            self.publish(&all);
        }
    }

    /// The service has no route any more. Requests in its replicas are finished; it is told of until they are.
    pub fn remove(&self, workspace: &Workspace, service: &ServiceName, revision: u64) {
        let all = self.lock();
        if let Some(gate) = all.get(workspace).and_then(|services| services.get(service)) {
            gate.close(revision, Instant::now());
            self.publish(&all);
        }
    }

    /// Every service of which something is to be told.
    pub fn told(&self) -> Vec<Told> {
        self.lock().values().flat_map(HashMap::values).cloned().map(Told).collect()
    }

    /// Forgets services that have no route and no request.
    pub fn forget_finished(&self) {
        let mut all = self.lock();
        all.retain(|_, services| {
            services.retain(|_, gate| !gate.is_over());
            !services.is_empty()
        });
    }

    pub(crate) fn find(&self, workspace: &str, service: &str) -> Option<Arc<Gate>> {
        self.snapshot.load().get(workspace)?.get(service).cloned()
    }

    pub(crate) fn gates(&self) -> Vec<Arc<Gate>> {
        self.lock().values().flat_map(HashMap::values).cloned().collect()
    }

    fn publish(&self, all: &Directory) {
        let named = |(name, gate): (&ServiceName, &Arc<Gate>)| (name.to_string(), gate.clone());
        let open = all.iter().map(|(workspace, services)| {
            let services = services.iter().filter(|(_, gate)| gate.is_open()).map(named).collect();
            (workspace.to_string(), services)
        });
        self.snapshot.store(Arc::new(open.collect()));
    }

    fn lock(&self) -> MutexGuard<'_, Directory> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl News {
    /// The next service to tell of at once. Never ends.
    pub async fn next(&mut self) -> Told {
        match self.0.recv().await {
            Some(gate) => Told(gate),
            // The routes are gone, and whoever holds the news is about to be.
            None => std::future::pending().await,
        }
    }
}

impl Told {
    /// The workspace.
    pub fn workspace(&self) -> &Workspace {
        self.0.workspace()
    }

    /// The service.
    pub fn service(&self) -> &ServiceName {
        self.0.service()
    }

    /// What is to be told: the window since the last call. One caller at a time.
    pub fn utilization(&self, router: &InstanceId, now: Instant, at_ms: u64) -> ServiceUtilization {
        self.0.utilization(router, now, at_ms)
    }
}
