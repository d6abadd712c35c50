//! What a user asks for: the specification of a service, complete and checked.
//!
//! Defaults and bounds are those of Azure ML v1's `aks` deployment configuration.

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Extra,
    id::{Digest, ModelName},
};

/// How many models one deployment may have (v1's limit).
pub const MAX_MODELS: usize = 1000;
/// How many replicas one service may have: each is a process or more, so a larger number is a mistake.
pub const MAX_REPLICAS: u32 = 10_000;
/// How many requests one replica may work on at a time: each is a process of its own.
pub const MAX_CONCURRENT: u32 = 1000;

/// All that is needed to run a service, except its archive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// The script with `init()` and `run()`, relative to the root of the archive, with `/` between folders.
    pub entry_script: String,
    /// The name of the folder that the archive is unpacked into (v1: `basename(sourceDirectory)`); none when only the script was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_directory: Option<String>,
    /// What the script runs in.
    #[serde(default)]
    pub environment: EnvironmentSpec,
    /// The registered models that the service sees; at most [`MAX_MODELS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<ModelRef>,
    /// Who may call it.
    #[serde(default)]
    pub auth: Auth,
    /// How many replicas it has.
    #[serde(default)]
    pub scaling: Scaling,
    /// What each replica gets.
    #[serde(default)]
    pub resources: Resources,
    /// Limits of a request.
    #[serde(default)]
    pub requests: RequestLimits,
    /// How a replica is found dead or ready.
    #[serde(default)]
    pub liveness: Liveness,
    /// Whether inputs and predictions are collected (v1: `collect_model_data`).
    #[serde(default)]
    pub collect_model_data: bool,
    /// Whether requests are reported (v1: `enable_app_insights`).
    #[serde(default)]
    pub request_telemetry: bool,
    /// A text for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The user's own labels; they may change.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// The user's own labels that stay as they were first given.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    /// What a newer version says and this one does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// One version of a registered model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelRef {
    /// The model's name.
    pub name: ModelName,
    /// Its version, counted from 1.
    pub version: u32,
    /// The digest of the archive of its files, which holds exactly one entry at its root: what was registered.
    pub digest: Digest,
}

/// What a script runs in, in the canonical words of v1's environment object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EnvironmentSpec {
    /// The environment's name; not part of its identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The base image, as the user wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_image: Option<String>,
    /// The text of Dockerfile lines that run after the base image (v1: `extraDockerfileSteps`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker_steps: Option<String>,
    /// The text of a whole Dockerfile in place of base image and steps (v1: `baseDockerfile`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dockerfile: Option<String>,
    /// Whether the base image brings its own Python packages, so that none are installed.
    #[serde(default)]
    pub user_managed: bool,
    /// The Python packages.
    #[serde(default)]
    pub conda: CondaSpec,
    /// Environment variables of the process; not part of the identity.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variables: BTreeMap<String, String>,
    /// Whether a GPU is needed.
    #[serde(default)]
    pub gpu: bool,
}

/// A conda definition, as read from its file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CondaSpec {
    /// The file it was read from, for messages; not part of the identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Channels in order of priority.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub channels: Vec<String>,
    /// Conda's own dependencies as written, `python=3.11` among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dependencies: Vec<String>,
    /// The lines of the `pip:` list as written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pip: Vec<String>,
}

/// Who may call a service. Keys and tokens exclude each other, as in v1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Auth {
    /// A primary and a secondary key; v1's default on AKS.
    #[default]
    Key,
    /// A signed token.
    Token,
    /// Anyone.
    None,
}

/// How many replicas a service has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Scaling {
    /// A fixed number (v1: `num_replicas` with `autoscale_enabled=False`).
    #[serde(rename_all = "camelCase")]
    Fixed {
        /// How many; 1 to [`MAX_REPLICAS`].
        replicas: u32,
    },
    /// As many as the utilization asks for.
    #[serde(rename_all = "camelCase")]
    Auto {
        /// The fewest; 1 to [`MAX_REPLICAS`].
        min_replicas: u32,
        /// The most; `min_replicas` to [`MAX_REPLICAS`].
        max_replicas: u32,
        /// Busy replicas ÷ all replicas to aim at, in percent, 1 to 100.
        target_utilization: u8,
        /// How often the utilization is looked at, in seconds; at least 1.
        refresh_seconds: u32,
    },
}

impl Default for Scaling {
    fn default() -> Self {
        Self::Auto { min_replicas: 1, max_replicas: 10, target_utilization: 70, refresh_seconds: 1 }
    }
}

impl Scaling {
    /// The fewest and the most replicas.
    pub fn bounds(&self) -> (u32, u32) {
        match *self {
            Self::Fixed { replicas } => (replicas, replicas),
            Self::Auto { min_replicas, max_replicas, .. } => (min_replicas, max_replicas),
        }
    }

    /// The nearest number of replicas within the bounds.
    pub fn clamp(&self, replicas: u32) -> u32 {
        let (min, max) = self.bounds();
        replicas.max(min).min(max.max(min))
    }
}

/// What each replica gets. A limit below its request is refused when the specification is read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// CPU cores reserved; more than 0.
    pub cpu: f64,
    /// CPU cores at most; none is no limit of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_limit: Option<f64>,
    /// Memory reserved, in GiB; more than 0.
    pub memory_gb: f64,
    /// Memory at most, in GiB; none is no limit of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_gb_limit: Option<f64>,
    /// GPUs.
    #[serde(default)]
    pub gpu: u32,
}

impl Default for Resources {
    fn default() -> Self {
        Self { cpu: 0.1, cpu_limit: None, memory_gb: 0.5, memory_gb_limit: None, gpu: 0 }
    }
}

/// Limits of a request to a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestLimits {
    /// Requests that one replica works on at a time, over all routers (v1: `replica_max_concurrent_requests`); 1 to [`MAX_CONCURRENT`].
    pub max_concurrent_per_replica: u32,
    /// How long a request may wait in the queue, in milliseconds (v1: `max_request_wait_time`); 1 to 2³² − 1.
    pub max_queue_wait_ms: u64,
    /// How long a request may take in a replica, in milliseconds (v1: `scoring_timeout_ms`); 1 to 2³² − 1.
    pub scoring_timeout_ms: u64,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self { max_concurrent_per_replica: 1, max_queue_wait_ms: 500, scoring_timeout_ms: 60_000 }
    }
}

impl RequestLimits {
    /// How long a request may wait in the queue.
    pub fn max_queue_wait(&self) -> Duration {
        Duration::from_millis(self.max_queue_wait_ms)
    }

    /// How long a request may take in a replica.
    pub fn scoring_timeout(&self) -> Duration {
        Duration::from_millis(self.scoring_timeout_ms)
    }
}

/// How a replica is found ready or dead; the names and defaults are v1's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Liveness {
    /// Seconds between two probes; at least 1.
    pub period_seconds: u32,
    /// Seconds that `init()` may take before a replica that does not answer is given up; at least 1.
    pub initial_delay_seconds: u32,
    /// Seconds that a probe may take; at least 1.
    pub timeout_seconds: u32,
    /// Probes in a row that make a replica ready; at least 1.
    pub success_threshold: u32,
    /// Probes in a row that make a replica dead; at least 1.
    pub failure_threshold: u32,
}

impl Default for Liveness {
    fn default() -> Self {
        Self {
            period_seconds: 10,
            initial_delay_seconds: 310,
            timeout_seconds: 2,
            success_threshold: 1,
            failure_threshold: 3,
        }
    }
}
