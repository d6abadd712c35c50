//! What operators can see of the scaler; no figure is kept by service, so their number does not grow.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

use crate::aggregate::Dropped;

/// The scaler's figures.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    /// Services that are watched.
    pub(crate) services: Gauge,
    /// Services whose load is unknown.
    pub(crate) frozen: Gauge,
    /// 1 while this instance decides.
    pub(crate) leads: Gauge,
    /// News of routers that came.
    pub(crate) heard: Counter,
    dropped: Family<Reason, Counter>,
    decisions: Family<Outcome, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

impl Metrics {
    /// Makes the figures and adds them to what `/metrics` answers.
    pub(crate) fn register(to: &runtime::telemetry::Metrics) -> Self {
        let own = Self::default();
        to.register(|registry| {
            registry.register("services", "Services that are watched", own.services.clone());
            registry.register("frozen_services", "Services whose load is unknown", own.frozen.clone());
            registry.register("leads", "1 while this instance decides", own.leads.clone());
            registry.register("heard", "News of routers that came", own.heard.clone());
            registry.register("dropped", "News of routers that was not taken, by reason", own.dropped.clone());
            registry.register("decisions", "Requests for replicas, by what became of them", own.decisions.clone());
        });
        own
    }

    /// Counts news that was not taken.
    pub(crate) fn dropped(&self, why: Dropped) {
        let reason = match why {
            Dropped::Late => "late",
            Dropped::Nonsense => "nonsense",
            Dropped::Crowd => "crowd",
        };
        self.dropped.get_or_create(&Reason { reason }).inc();
    }

    /// Counts a decision once it is stored, or could not be.
    pub(crate) fn decided(&self, stored: bool) {
        let outcome = if stored { "stored" } else { "failed" };
        self.decisions.get_or_create(&Outcome { outcome }).inc();
    }
}
