//! What a router says: how busy each service is, as far as it can see.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Extra,
    event::Event,
    id::{Generation, InstanceId, ReplicaId},
    spec::Scaling,
};

/// One router's view of one service, every second and whenever a replica has been emptied: at most once, never stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceUtilization {
    /// The router.
    pub router: InstanceId,
    /// Grows with each event of this router for this service, from 1; a late one is recognised by it.
    pub sequence: u64,
    /// When it was measured (Unix milliseconds).
    pub at_ms: u64,
    /// The time it covers, in milliseconds.
    pub window_ms: u64,
    /// The generation that serves.
    pub generation: Generation,
    /// The revision of the route entry that this router goes by.
    pub revision: u64,
    /// Replicas that may be chosen.
    pub replicas: u32,
    /// Replicas that have been started and are not ready yet.
    pub starting: u32,
    /// Requests that one replica may work on at a time.
    pub concurrency: u32,
    /// The bounds and target that hold for the service.
    pub scaling: Scaling,
    /// Replicas with at least one request of this router, on average over the window.
    pub busy: f64,
    /// Requests in replicas, on average over the window.
    pub concurrent: f64,
    /// Requests in the queue, on average over the window.
    pub queued: f64,
    /// Requests that came in the window.
    pub arrivals: u64,
    /// Requests that were answered by a replica in the window.
    pub completed: u64,
    /// Requests refused by the router in the window, by stage.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, u64>,
    /// The median and 99th percentile of the time from arrival to answer, in milliseconds, over the window.
    pub p50_ms: f64,
    /// See `p50_ms`.
    pub p99_ms: f64,
    /// Requests still in each replica that is being emptied; a replica that is gone from the routes is listed until it is empty.
    #[serde(default)]
    pub draining: BTreeMap<ReplicaId, u32>,
    /// What a newer version says and this one does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

impl ServiceUtilization {
    /// An idle second of one replica, as a router that has just begun would say it: something to start from.
    pub fn idle(router: InstanceId) -> Self {
        Self {
            router,
            sequence: 1,
            at_ms: 0,
            window_ms: 1_000,
            generation: Generation(1),
            revision: 1,
            replicas: 1,
            starting: 0,
            concurrency: 1,
            scaling: Scaling::default(),
            busy: 0.0,
            concurrent: 0.0,
            queued: 0.0,
            arrivals: 0,
            completed: 0,
            refused: BTreeMap::new(),
            p50_ms: 0.0,
            p99_ms: 0.0,
            draining: BTreeMap::new(),
            extra: Extra::new(),
        }
    }
}

impl Event for ServiceUtilization {
    const TYPE: &'static str = "service.utilization";
    const STORED: bool = false;
}
