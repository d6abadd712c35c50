//! The bounds of a specification: what its types can say and no service may.
//!
//! Whoever takes a specification from outside checks them, whether it came in a file, in a request or in an event.

use crate::spec::{Liveness, MAX_CONCURRENT, MAX_MODELS, MAX_REPLICAS, RequestLimits, Resources, Scaling, ServiceSpec};

/// The longest time limit, in milliseconds: 49 days, as long as one in v1's files can be.
pub const MAX_LIMIT_MS: u64 = u32::MAX as u64;

impl ServiceSpec {
    /// Every bound that is broken, in words; none when all hold.
    pub fn violations(&self) -> Vec<String> {
        let mut broken = Broken::default();
        broken.must(self.models.len() <= MAX_MODELS, "models must be 1000 at most");
        broken.must(self.models.iter().all(|model| model.version > 0), "models count their versions from 1");
        broken.scaling(&self.scaling);
        broken.resources(&self.resources);
        broken.requests(&self.requests);
        broken.liveness(&self.liveness);
        broken.0
    }
}

impl Scaling {
    /// Every bound that is broken, in words; none when all hold.
    pub fn violations(&self) -> Vec<String> {
        let mut broken = Broken::default();
        broken.scaling(self);
        broken.0
    }
}

#[derive(Default)]
struct Broken(Vec<String>);

impl Broken {
    fn must(&mut self, holds: bool, rule: impl Into<String>) {
        if !holds {
            self.0.push(rule.into());
        }
    }

    fn replicas(&mut self, name: &str, replicas: u32) {
        let holds = (1..=MAX_REPLICAS).contains(&replicas);
        self.must(holds, format!("scaling.{name} must be from 1 to {MAX_REPLICAS}"));
    }

    fn scaling(&mut self, scaling: &Scaling) {
        match *scaling {
            Scaling::Fixed { replicas } => self.replicas("replicas", replicas),
            Scaling::Auto { min_replicas, max_replicas, target_utilization, refresh_seconds } => {
                self.replicas("minReplicas", min_replicas);
                self.replicas("maxReplicas", max_replicas);
                self.must(min_replicas <= max_replicas, "scaling.minReplicas must not be more than maxReplicas");
                let target = (1..=100).contains(&target_utilization);
                self.must(target, "scaling.targetUtilization must be from 1 to 100");
                self.must(refresh_seconds > 0, "scaling.refreshSeconds must be greater than zero");
            }
        }
    }

    fn resources(&mut self, resources: &Resources) {
        let positive = |number: f64| number.is_finite() && number > 0.0;
        self.must(positive(resources.cpu), "resources.cpu must be greater than zero");
        self.must(positive(resources.memory_gb), "resources.memoryGb must be greater than zero");
        let enough = |limit: Option<f64>, request: f64| limit.is_none_or(|limit| limit.is_finite() && limit >= request);
        self.must(enough(resources.cpu_limit, resources.cpu), "resources.cpuLimit must not be less than cpu");
        let memory = enough(resources.memory_gb_limit, resources.memory_gb);
        self.must(memory, "resources.memoryGbLimit must not be less than memoryGb");
    }

    fn requests(&mut self, requests: &RequestLimits) {
        let concurrent = (1..=MAX_CONCURRENT).contains(&requests.max_concurrent_per_replica);
        self.must(concurrent, format!("requests.maxConcurrentPerReplica must be from 1 to {MAX_CONCURRENT}"));
        for (name, ms) in
            [("maxQueueWaitMs", requests.max_queue_wait_ms), ("scoringTimeoutMs", requests.scoring_timeout_ms)]
        {
            self.must((1..=MAX_LIMIT_MS).contains(&ms), format!("requests.{name} must be from 1 to {MAX_LIMIT_MS}"));
        }
    }

    fn liveness(&mut self, liveness: &Liveness) {
        for (name, count) in [
            ("periodSeconds", liveness.period_seconds),
            ("initialDelaySeconds", liveness.initial_delay_seconds),
            ("timeoutSeconds", liveness.timeout_seconds),
            ("successThreshold", liveness.success_threshold),
            ("failureThreshold", liveness.failure_threshold),
        ] {
            self.must(count > 0, format!("liveness.{name} must be greater than zero"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(members: &str) -> Vec<String> {
        let json = format!(r#"{{"entryScript": "score.py"{members}}}"#);
        serde_json::from_str::<ServiceSpec>(&json).unwrap().violations()
    }

    #[test]
    fn the_defaults_hold() {
        assert!(broken("").is_empty());
        assert!(broken(r#", "scaling": {"kind": "fixed", "replicas": 10000}"#).is_empty());
    }

    #[test]
    fn each_bound_is_told_by_name() {
        for (members, words) in [
            (r#"{"kind": "fixed", "replicas": 0}"#, "scaling.replicas must be from 1 to 10000"),
            (r#"{"kind": "fixed", "replicas": 4000000000}"#, "scaling.replicas must be from 1 to 10000"),
            (
                r#"{"kind": "auto", "minReplicas": 2, "maxReplicas": 1, "targetUtilization": 0, "refreshSeconds": 1}"#,
                "scaling.minReplicas must not be more than maxReplicas; scaling.targetUtilization must be from 1 to 100",
            ),
        ] {
            assert_eq!(broken(&format!(r#", "scaling": {members}"#)).join("; "), words);
        }
        for (members, words) in [
            (r#""cpu": 0.0, "memoryGb": 1.0"#, "resources.cpu must be greater than zero"),
            (r#""cpu": 1.0, "cpuLimit": 0.5, "memoryGb": 1.0"#, "resources.cpuLimit must not be less than cpu"),
        ] {
            assert_eq!(broken(&format!(r#", "resources": {{{members}}}"#)).join("; "), words);
        }
        let requests = r#", "requests": {"maxConcurrentPerReplica": 4000, "maxQueueWaitMs": 0, "scoringTimeoutMs": 18446744073709551615}"#;
        assert_eq!(
            broken(requests),
            [
                "requests.maxConcurrentPerReplica must be from 1 to 1000",
                "requests.maxQueueWaitMs must be from 1 to 4294967295",
                "requests.scoringTimeoutMs must be from 1 to 4294967295",
            ]
        );
    }
}
