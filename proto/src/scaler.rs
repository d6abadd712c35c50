//! What the scaler says: how many replicas a service should have, and why.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Extra, event::Event, id::Generation, spec::Scaling};

/// Someone asks for another number of replicas, or for other settings of the scaler.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScaleRequested {
    /// Who asks: `scaler` and its instance, or a person.
    pub by: String,
    /// The generation the decision was made for; it is void for any other. A person's request leaves it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    /// The number of replicas wanted from now on; the deployer holds it within the bounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
    /// New bounds and target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Scaling>,
    /// The decision in one sentence for a person.
    pub reason: String,
    /// What the decision was made from, when the scaler made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<ScaleInputs>,
    /// What a newer version says and this one does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Event for ScaleRequested {
    const TYPE: &'static str = "scale.requested";
}

/// What a decision was made from, summed over the routers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScaleInputs {
    /// Routers with fresh news.
    pub routers: u32,
    /// Replicas that may be chosen.
    pub replicas: u32,
    /// Replicas that have been started and are not ready yet.
    pub starting: u32,
    /// Requests in replicas.
    pub concurrent: f64,
    /// Requests in queues.
    pub queued: f64,
    /// Busy replicas ÷ all replicas, in percent.
    pub utilization: f64,
    /// Requests that one replica may work on at a time.
    pub concurrency: u32,
}
