//! What the deployer counts.

use std::collections::HashMap;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use runtime::telemetry;

use crate::service::Key;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// The counters, and what each service has added to them.
pub(crate) struct Metrics {
    replicas: Family<State, Gauge>,
    services: Gauge,
    deployments: Family<Outcome, Counter>,
    starts: Counter,
    exits: Counter,
    counted: HashMap<Key, [i64; 3]>,
}

const STATES: [&str; 3] = ["starting", "ready", "leaving"];

impl Metrics {
    /// Registers all; `limits_enforced` does not change while the deployer runs.
    pub(crate) fn new(metrics: &telemetry::Metrics, limits_enforced: bool) -> Self {
        let all = Self {
            replicas: Family::default(),
            services: Gauge::default(),
            deployments: Family::default(),
            starts: Counter::default(),
            exits: Counter::default(),
            counted: HashMap::new(),
        };
        let limits: Gauge = Gauge::default();
        limits.set(i64::from(limits_enforced));
        metrics.register(|registry| {
            registry.register("replicas", "Replicas by state", all.replicas.clone());
            registry.register("services", "Services with a record", all.services.clone());
            registry.register("deployments", "Generations by how they ended", all.deployments.clone());
            registry.register("replica_starts", "Replicas that were ordered", all.starts.clone());
            registry.register(
                "replica_exits",
                "Replicas that ended by themselves or could not start",
                all.exits.clone(),
            );
            registry.register("limits_enforced", "Whether limits of CPU and memory hold here", limits);
        });
        for state in STATES {
            all.replicas.get_or_create(&State { state }).set(0);
        }
        all
    }

    /// Counts the replicas of a service: starting, ready, leaving.
    pub(crate) fn replicas(&mut self, key: &Key, (starting, ready, leaving): (u32, u32, u32)) {
        let now = [i64::from(starting), i64::from(ready), i64::from(leaving)];
        let before = self.counted.insert(key.clone(), now).unwrap_or_default();
        for ((state, now), before) in STATES.into_iter().zip(now).zip(before) {
            self.replicas.get_or_create(&State { state }).inc_by(now - before);
        }
        self.services.set(i64::try_from(self.counted.len()).unwrap_or(i64::MAX));
    }

    /// Forgets a service that is over.
    pub(crate) fn forget(&mut self, key: &Key) {
        self.replicas(key, (0, 0, 0));
        self.counted.remove(key);
        self.services.set(i64::try_from(self.counted.len()).unwrap_or(i64::MAX));
    }

    pub(crate) fn started(&self) {
        self.starts.inc();
    }

    pub(crate) fn exited(&self) {
        self.exits.inc();
    }

    pub(crate) fn ended(&self, outcome: &'static str) {
        self.deployments.get_or_create(&Outcome { outcome }).inc();
    }
}

#[cfg(test)]
mod tests {
    use proto::id::Workspace;

    use super::*;

    #[test]
    fn the_replicas_of_all_services_are_summed_by_state() {
        let all = telemetry::Metrics::new("deployer");
        let mut metrics = Metrics::new(&all, true);
        let key = |name: &str| (Workspace::default(), name.parse().unwrap());
        metrics.replicas(&key("ridge"), (1, 2, 0));
        metrics.replicas(&key("churn"), (0, 3, 1));
        metrics.replicas(&key("ridge"), (0, 3, 0));
        metrics.forget(&key("churn"));
        let text = all.encode();
        assert!(text.contains("kaai_deployer_replicas{state=\"ready\"} 3"), "{text}");
        assert!(text.contains("kaai_deployer_replicas{state=\"leaving\"} 0"), "{text}");
        assert!(text.contains("kaai_deployer_services 1"), "{text}");
        assert!(text.contains("kaai_deployer_limits_enforced 1"), "{text}");
    }
}
