//! The gate of a service: the state that all threads share, and the way in and out of it.
//!
//! It outlives every change of the route. All decisions are those of [`Slots`], made under a lock that is held for well under a
//! microsecond and never across an await, so a route's change holds from one moment on for every thread: whoever gets in afterwards
//! cannot have chosen by the old one.

mod admission;

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use arc_swap::ArcSwap;
use proto::{
    deployer::Route,
    id::{Generation, InstanceId, ServiceName, Workspace},
    router::ServiceUtilization,
    spec::Scaling,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Duration, Instant},
};

pub(crate) use self::admission::Slot;
use crate::{
    access::Access,
    latency::Latencies,
    refusal::{Crowd, Refusal, STAGES, Stage},
    slots::{Listed, Peer, Serial, Slots},
};

/// What a route says of requests; replaced as a whole.
#[derive(Debug)]
pub(crate) struct Terms {
    /// Who may call.
    pub(crate) access: Access,
    /// How long a request may wait for a slot.
    pub(crate) queue_wait: Duration,
    /// How long a replica may take.
    pub(crate) scoring: Duration,
}

/// The gate of one service.
#[derive(Debug)]
pub(crate) struct Gate {
    workspace: Workspace,
    service: ServiceName,
    terms: ArcSwap<Terms>,
    inner: Mutex<Inner>,
    arrivals: AtomicU64,
    /// By the first digit of the status.
    answers: [AtomicU64; 5],
    refused: [AtomicU64; STAGES.len()],
    told: Mutex<Told>,
    news: mpsc::UnboundedSender<Arc<Gate>>,
    /// Whether news of this gate is on its way already.
    announced: AtomicBool,
}

#[derive(Debug)]
struct Inner {
    slots: Slots<oneshot::Sender<Slot>>,
    generation: Generation,
    revision: u64,
    scaling: Scaling,
    /// No route names the service any more.
    gone: bool,
    completed: u64,
    latencies: Latencies,
}

/// What the last utilization event said, so that the next one says what came since.
#[derive(Debug, Default)]
struct Told {
    sequence: u64,
    arrivals: u64,
    refused: [u64; STAGES.len()],
}

/// Totals since the service was first routed.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    /// Answers by the first digit of their status, 1xx first.
    pub(crate) answers: [u64; 5],
    /// Refusals by stage.
    pub(crate) refused: [u64; STAGES.len()],
    /// Requests in replicas now.
    pub(crate) in_flight: u32,
    /// Requests in the queue now.
    pub(crate) queued: u32,
    /// Replicas that are ready now.
    pub(crate) ready: u32,
}

impl Totals {
    /// Adds those of another service.
    pub(crate) fn add(&mut self, other: &Self) {
        self.answers.iter_mut().zip(other.answers).for_each(|(sum, count)| *sum += count);
        self.refused.iter_mut().zip(other.refused).for_each(|(sum, count)| *sum += count);
        self.in_flight += other.in_flight;
        self.queued += other.queued;
        self.ready += other.ready;
    }
}

impl Gate {
    /// A shut gate: its first route opens it. Gates that should be told of at once are sent to `news`; events are numbered from
    /// `sequence` on.
    pub(crate) fn new(
        workspace: Workspace,
        service: ServiceName,
        news: mpsc::UnboundedSender<Arc<Gate>>,
        sequence: u64,
        now: Instant,
    ) -> Arc<Self> {
        let terms = Terms { access: Access::Keys(Vec::new()), queue_wait: Duration::ZERO, scoring: Duration::ZERO };
        Arc::new(Self {
            workspace,
            service,
            terms: ArcSwap::from_pointee(terms),
            inner: Mutex::new(Inner {
                slots: Slots::new(now),
                generation: Generation(0),
                revision: 0,
                scaling: Scaling::default(),
                gone: true,
                completed: 0,
                latencies: Latencies::default(),
            }),
            arrivals: AtomicU64::new(0),
            answers: Default::default(),
            refused: Default::default(),
            told: Mutex::new(Told { sequence, ..Told::default() }),
            news,
            announced: AtomicBool::new(false),
        })
    }

    /// The workspace of the service.
    pub(crate) fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    /// The service.
    pub(crate) fn service(&self) -> &ServiceName {
        &self.service
    }

    /// What holds for requests now.
    pub(crate) fn terms(&self) -> Arc<Terms> {
        self.terms.load_full()
    }

    /// Goes by a new route. When this returns, no thread can choose a replica that the route does not offer. Says whether the gate was
    /// shut before.
    pub(crate) fn apply(self: &Arc<Self>, route: &Route, revision: u64, now: Instant) -> bool {
        self.terms.store(Arc::new(Terms {
            access: Access::new(route.auth, &route.key_digests),
            queue_wait: route.requests.max_queue_wait(),
            scoring: route.requests.scoring_timeout(),
        }));
        let listed = listed(route);
        let mut inner = self.lock();
        inner.generation = route.generation;
        inner.revision = revision;
        inner.scaling = route.scaling.clone();
        let was_gone = std::mem::replace(&mut inner.gone, false);
        let emptying = inner.slots.apply(now, route.requests.max_concurrent_per_replica, route.starting, listed);
        drop(inner);
        self.hand_out();
        if emptying {
            self.announce();
        }
        was_gone
    }

    /// The route is gone: nobody gets in, whoever waits is sent away, requests in replicas are finished.
    pub(crate) fn close(self: &Arc<Self>, revision: u64, now: Instant) {
        let mut inner = self.lock();
        inner.gone = true;
        // 0 means that the end was seen only by its effect.
        inner.revision = inner.revision.max(revision);
        let limit = inner.slots.limit();
        inner.slots.apply(now, limit, 0, Vec::new());
        let waiters = inner.slots.dismiss(now);
        drop(inner);
        drop(waiters);
        self.announce();
    }

    /// Whether the service has a route.
    pub(crate) fn is_open(&self) -> bool {
        !self.lock().gone
    }

    /// Whether the service is gone and nothing of it is left.
    pub(crate) fn is_over(&self) -> bool {
        let inner = self.lock();
        inner.gone && inner.slots.is_empty()
    }

    /// Counts a request.
    pub(crate) fn arrived(&self) {
        self.arrivals.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a refusal.
    pub(crate) fn refused(&self, stage: Stage) {
        self.refused[stage as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an answer, whoever made it.
    pub(crate) fn answered(&self, status: u16) {
        let class = usize::from(status / 100).saturating_sub(1).min(4);
        self.answers[class].fetch_add(1, Ordering::Relaxed);
    }

    /// Chooses a replica no more until it is restored. Says whether somebody should look after it.
    pub(crate) fn set_aside(&self, serial: Serial) -> bool {
        self.lock().slots.set_aside(Instant::now(), serial)
    }

    /// Whether a replica is still set aside.
    pub(crate) fn is_aside(&self, serial: Serial) -> bool {
        self.lock().slots.is_aside(serial)
    }

    /// Chooses a replica again.
    pub(crate) fn restore(self: &Arc<Self>, serial: Serial) {
        self.lock().slots.restore(Instant::now(), serial);
        self.hand_out();
    }

    /// Totals, for metrics.
    pub(crate) fn totals(&self) -> Totals {
        let (gauges, ready) = {
            let inner = self.lock();
            (inner.slots.gauges(), inner.slots.ready())
        };
        Totals {
            answers: self.answers.each_ref().map(|count| count.load(Ordering::Relaxed)),
            refused: self.refused.each_ref().map(|count| count.load(Ordering::Relaxed)),
            in_flight: gauges.concurrent,
            queued: gauges.queued,
            ready,
        }
    }

    /// Closes the window of load and writes the event that tells of it. One caller at a time.
    pub(crate) fn utilization(&self, router: &InstanceId, now: Instant, at_ms: u64) -> ServiceUtilization {
        // Whatever happens from here on is news again.
        self.announced.store(false, Ordering::Release);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.sequence += 1;
        let arrivals = self.arrivals.load(Ordering::Relaxed);
        let refused = self.refused.each_ref().map(|count| count.load(Ordering::Relaxed));
        let since = |total: u64, before: u64| total.saturating_sub(before);
        let refused_since = STAGES.iter().zip(refused.iter().zip(told.refused));
        let refused_since =
            refused_since.map(|(stage, (total, before))| (stage.name().to_owned(), since(*total, before)));
        let mut inner = self.lock();
        let window = inner.slots.close_window(now);
        let event = ServiceUtilization {
            router: router.clone(),
            sequence: told.sequence,
            at_ms,
            // Whoever divides by it is spared a zero.
            window_ms: u64::try_from(window.length.as_millis()).unwrap_or(u64::MAX).max(1),
            generation: inner.generation,
            revision: inner.revision,
            replicas: inner.slots.open(),
            starting: inner.slots.starting(),
            concurrency: inner.slots.limit(),
            scaling: inner.scaling.clone(),
            busy: window.busy,
            concurrent: window.concurrent,
            queued: window.queued,
            arrivals: since(arrivals, told.arrivals),
            completed: inner.completed,
            refused: refused_since.filter(|(_, count)| *count > 0).collect(),
            p50_ms: inner.latencies.quantile_ms(0.5),
            p99_ms: inner.latencies.quantile_ms(0.99),
            draining: inner.slots.draining(),
            extra: proto::Extra::default(),
        };
        inner.completed = 0;
        inner.latencies.clear();
        drop(inner);
        told.arrivals = arrivals;
        told.refused = refused;
        event
    }

    fn announce(self: &Arc<Self>) {
        if !self.announced.swap(true, Ordering::AcqRel) {
            // Nobody listens any more at the very end, and then nobody needs to know.
            let _ = self.news.send(self.clone());
        }
    }

    fn crowd(&self, inner: &Inner) -> Crowd {
        Crowd {
            queued: inner.slots.gauges().queued,
            ready: inner.slots.ready(),
            starting: inner.slots.starting(),
            concurrency: inner.slots.limit(),
            wait: self.terms.load().queue_wait,
        }
    }

    fn no_such_service(&self) -> Refusal {
        Refusal::NoSuchService { workspace: self.workspace.to_string() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A route's replicas; one whose address cannot be read is left out, with an error in the log.
fn listed(route: &Route) -> Vec<Listed> {
    let endpoints = route.replicas.iter().filter_map(|endpoint| match endpoint.address.parse() {
        Ok(address) => {
            let peer = Arc::new(Peer { id: endpoint.replica.clone(), address });
            Some(Listed { peer, draining: endpoint.draining })
        }
        Err(error) => {
            let (service, replica) = (&route.service, &endpoint.replica);
            tracing::error!(%service, %replica, %error, "a replica cannot be routed to");
            None
        }
    });
    endpoints.collect()
}
