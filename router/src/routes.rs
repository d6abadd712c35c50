//! The directory of services: which gate belongs to which name.
//!
//! Requests read an immutable snapshot that is swapped when a service comes or goes; a change of a known service is made in its gate and
//! swaps nothing. Where routes come from is not known here, so a test or a bench can feed them by hand.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
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
    /// The highest number of any event. A service that comes again is numbered from here: its events must not look like late ones.
    sequence: Arc<AtomicU64>,
    news: mpsc::UnboundedSender<Arc<Gate>>,
}

/// Looked up with borrowed names, which the checked types of [`Directory`] do not allow.
type Snapshot = HashMap<String, HashMap<String, Arc<Gate>>>;

/// Services of which something has to be told at once: a replica has been emptied, or a route that empties one has been applied.
#[derive(Debug)]
pub struct News {
    gates: mpsc::UnboundedReceiver<Arc<Gate>>,
    sequence: Arc<AtomicU64>,
}

/// A service, for whoever tells of it.
#[derive(Debug, Clone)]
pub struct Told {
    gate: Arc<Gate>,
    sequence: Arc<AtomicU64>,
}

impl Routes {
    /// No services yet.
    pub fn new() -> (Arc<Self>, News) {
        let (news, receiver) = mpsc::unbounded_channel();
        let sequence = Arc::<AtomicU64>::default();
        let routes = Self { snapshot: ArcSwap::default(), all: Mutex::default(), sequence: sequence.clone(), news };
        (Arc::new(routes), News { gates: receiver, sequence })
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
            let gate = services.entry(route.service.clone()).or_insert_with(|| {
                Gate::new(
                    route.workspace.clone(),
                    route.service.clone(),
                    self.news.clone(),
                    self.sequence.load(Ordering::Relaxed),
                    now,
                )
            });
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
        self.gates().into_iter().map(|gate| Told { gate, sequence: self.sequence.clone() }).collect()
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
        match self.gates.recv().await {
            Some(gate) => Told { gate, sequence: self.sequence.clone() },
            // The routes are gone, and whoever holds the news is about to be.
            None => std::future::pending().await,
        }
    }
}

impl Told {
    /// The workspace.
    pub fn workspace(&self) -> &Workspace {
        self.gate.workspace()
    }

    /// The service.
    pub fn service(&self) -> &ServiceName {
        self.gate.service()
    }

    /// What is to be told: the window since the last call. One caller at a time.
    pub fn utilization(&self, router: &InstanceId, now: Instant, at_ms: u64) -> ServiceUtilization {
        let event = self.gate.utilization(router, now, at_ms);
        self.sequence.fetch_max(event.sequence, Ordering::Relaxed);
        event
    }
}
