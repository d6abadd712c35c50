//! What an event is, and the closed list of them.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    builder::ImageResolved,
    deployer::{DeploymentDelete, DeploymentDeleted, DeploymentFailed, DeploymentProgressed, DeploymentReady},
    packager::{DeploymentRequested, ProjectPackaged},
    router::ServiceUtilization,
    scaler::ScaleRequested,
};

/// A message about one service, carried by `kaai.v1.<workspace>.<TYPE>.<service>`.
///
/// The body is the event's JSON alone; who sent it, when and why travels in the headers (see [`crate::envelope`]).
pub trait Event: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// Noun and event, `deployment.requested` for example; two tokens of the subject and the end of the CloudEvents type.
    const TYPE: &'static str;
    /// Whether the stream of pipeline events keeps it; others are delivered at most once.
    const STORED: bool = true;
}

/// What the catalogue says of an event.
pub struct Entry {
    /// Noun and event.
    pub event_type: &'static str,
    /// Whether the stream keeps it.
    pub stored: bool,
    /// The name of the Rust type.
    pub name: &'static str,
    /// Who says it.
    pub said_by: &'static str,
    /// Who hears it.
    pub heard_by: &'static str,
    /// Its JSON Schema.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
    /// Reads a body as this event and writes it again.
    pub rewrite: fn(&[u8]) -> serde_json::Result<Vec<u8>>,
}

fn rewrite<E: Event>(body: &[u8]) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec_pretty(&serde_json::from_slice::<E>(body)?)
}

macro_rules! catalogue {
    ($($type:ident: $said_by:literal => $heard_by:literal),* $(,)?) => {
        /// Every event there is, in the order of the road they describe.
        pub fn catalogue() -> Vec<Entry> {
            vec![$(Entry {
                event_type: $type::TYPE,
                stored: $type::STORED,
                name: stringify!($type),
                said_by: $said_by,
                heard_by: $heard_by,
                schema: |generator| generator.root_schema_for::<$type>(),
                rewrite: rewrite::<$type>,
            }),*]
        }
    };
}

catalogue! {
    DeploymentRequested: "a user, CI, the CLI" => "packager",
    ProjectPackaged: "packager" => "builder",
    ImageResolved: "builder" => "deployer",
    DeploymentProgressed: "packager, builder, deployer" => "whoever waits",
    DeploymentReady: "deployer" => "everyone",
    DeploymentFailed: "packager, builder, deployer" => "deployer, everyone",
    DeploymentDelete: "a user, the CLI" => "deployer",
    DeploymentDeleted: "deployer" => "everyone",
    ServiceUtilization: "router" => "scaler, deployer",
    ScaleRequested: "scaler, a user, the CLI" => "deployer, scaler",
}
