//! How a user reaches a kaai: the context, written by `kaai up` and by `kaai context set`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Extra, id::Workspace};

/// An address with credentials and a workspace. Its file is readable by its owner alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Context {
    /// The bus, `nats://127.0.0.1:4222` for example.
    pub bus: String,
    /// The user's name on the bus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The file that holds the password, readable by its owner alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<String>,
    /// The router, `http://127.0.0.1:8080` for example.
    pub router: String,
    /// The tenant.
    #[serde(default)]
    pub workspace: Workspace,
    /// Whether the packager sees the same files as the user, so that folders need not be sent.
    #[serde(default)]
    pub shared_files: bool,
    /// What a newer version says and this one does not know.
    #[serde(flatten)]
    pub extra: Extra,
}
