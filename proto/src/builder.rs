//! What the builder says: which environment a project runs in, and where that is.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Extra,
    event::Event,
    failure::Failure,
    id::{EnvironmentHash, Generation, InstanceId},
    packager::{Archive, SealedKeys},
    spec::ServiceSpec,
};

/// The environment of a generation is there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageResolved {
    /// Which change of the service this is.
    pub generation: Generation,
    /// The project's files.
    pub archive: Archive,
    /// What was asked for.
    pub spec: ServiceSpec,
    /// The service's keys, encrypted to the deployer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_keys: Option<SealedKeys>,
    /// What the user should know though it stops nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The identity of the environment.
    pub environment: EnvironmentHash,
    /// The built environment.
    pub image: Image,
    /// How it was had.
    pub lookup: Lookup,
    /// How long that took, in milliseconds.
    #[serde(default)]
    pub took_ms: u64,
    /// What a newer version says and this one does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Event for ImageResolved {
    const TYPE: &'static str = "image.resolved";
}

/// A built environment, in the form that its place can run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Image {
    /// A virtual environment on this machine.
    #[serde(rename_all = "camelCase")]
    VirtualEnvironment {
        /// Its folder, as an absolute path; the interpreter is `bin/python` in it.
        path: String,
        /// The version of its Python, `3.11.7` for example.
        python: String,
    },
}

/// How an environment was had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Lookup {
    /// It was there.
    Cached,
    /// It was built for this request, or for another that asked at the same time.
    Built,
}

/// What is known of an environment: one entry of the environments bucket, under its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum EnvironmentRecord {
    /// One builder is at it.
    #[serde(rename_all = "camelCase")]
    Building {
        /// Who.
        builder: InstanceId,
        /// Until when the others leave it alone (Unix milliseconds); the builder pushes it on while it works.
        lease_until_ms: u64,
    },
    /// It was built.
    #[serde(rename_all = "camelCase")]
    Ready {
        /// Where it is.
        image: Image,
        /// When it was built (RFC 3339, UTC).
        built: String,
        /// How long that took, in milliseconds.
        took_ms: u64,
    },
    /// It could not be built; the same request is answered from here until it expires.
    #[serde(rename_all = "camelCase")]
    Failed {
        /// Why.
        failure: Failure,
        /// Until when this is remembered (Unix milliseconds).
        expires_ms: u64,
    },
}
