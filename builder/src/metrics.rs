//! What the builder counts.

use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};
use runtime::telemetry::Metrics as Registry;

/// The builder's metrics.
#[derive(Clone)]
pub(crate) struct Metrics {
    pub(crate) cache_hits: Counter,
    pub(crate) builds: Counter,
    pub(crate) build_failures: Counter,
    pub(crate) remembered_failures: Counter,
    pub(crate) lost_leases: Counter,
    pub(crate) building: Gauge,
    pub(crate) waiting: Gauge,
    pub(crate) build_seconds: Histogram,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        let metrics = Self {
            cache_hits: Counter::default(),
            builds: Counter::default(),
            build_failures: Counter::default(),
            remembered_failures: Counter::default(),
            lost_leases: Counter::default(),
            building: Gauge::default(),
            waiting: Gauge::default(),
            build_seconds: Histogram::new([0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 600.0, 1200.0]),
        };
        registry.register(|registry| {
            registry.register("cache_hits", "Requests whose environment was there", metrics.cache_hits.clone());
            registry.register("builds", "Builds that were begun", metrics.builds.clone());
            registry.register("build_failures", "Builds that failed", metrics.build_failures.clone());
            let text = "Requests that were refused from the memory of a failed build";
            registry.register("remembered_failures", text, metrics.remembered_failures.clone());
            let text = "Builds that were given up because another builder had taken over";
            registry.register("lost_leases", text, metrics.lost_leases.clone());
            registry.register("building", "Builds that run now", metrics.building.clone());
            registry.register("waiting", "Requests that wait for an environment now", metrics.waiting.clone());
            registry.register("build_seconds", "Duration of builds that succeeded", metrics.build_seconds.clone());
        });
        metrics
    }
}

/// Counts one up for as long as it lives.
pub(crate) struct During(Gauge);

impl During {
    pub(crate) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for During {
    fn drop(&mut self) {
        self.0.dec();
    }
}
