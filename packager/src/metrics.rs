//! What the packager counts.

use prometheus_client::metrics::{counter::Counter, histogram::Histogram};
use runtime::telemetry::Metrics as Registry;

use crate::decide::Outcome;

/// The packager's metrics.
#[derive(Clone)]
pub(crate) struct Metrics {
    pub(crate) packaged: Counter,
    pub(crate) failed: Counter,
    pub(crate) troubled: Counter,
    pub(crate) stored: Counter,
    pub(crate) present: Counter,
    pub(crate) uploads: Counter,
    pub(crate) seconds: Histogram,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        let metrics = Self {
            packaged: Counter::default(),
            failed: Counter::default(),
            troubled: Counter::default(),
            stored: Counter::default(),
            present: Counter::default(),
            uploads: Counter::default(),
            seconds: Histogram::new([0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0, 300.0]),
        };
        registry.register(|registry| {
            registry.register("packaged", "Requests whose project was packaged", metrics.packaged.clone());
            registry.register("failed", "Requests that cannot be carried out", metrics.failed.clone());
            let text = "Attempts that ended in trouble of the platform";
            registry.register("troubled", text, metrics.troubled.clone());
            registry.register("archives_stored", "Archives written to the object store", metrics.stored.clone());
            let text = "Archives that were in the object store already";
            registry.register("archives_present", text, metrics.present.clone());
            registry.register("uploads", "Uploads that were complete and right", metrics.uploads.clone());
            let text = "Time from a request to its packaged project";
            registry.register("packaging_seconds", text, metrics.seconds.clone());
        });
        metrics
    }

    /// Counts how the work on a request ended.
    pub(crate) fn count(&self, outcome: &Outcome) {
        match outcome {
            Outcome::Done(_, took) => {
                self.packaged.inc();
                self.seconds.observe(took.as_secs_f64());
            }
            Outcome::Malformed(_) | Outcome::Failed(_) => {
                self.failed.inc();
            }
            Outcome::Transient(_) => {
                self.troubled.inc();
            }
            Outcome::Stopped => {}
        }
    }
}
