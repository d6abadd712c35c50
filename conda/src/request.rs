//! What is asked for.

use std::path::PathBuf;

use rattler_conda_types::{GenericVirtualPackage, Subdir};
use serde::Deserialize;
use url::Url;

/// A request, as JSON.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Request {
    /// Names or addresses of channels, the one that counts most first: a package is taken from the first that has it.
    #[serde(default)]
    pub(crate) channels: Vec<String>,
    /// What stands before the name of a channel.
    #[serde(default = "alias")]
    pub(crate) channel_alias: Url,
    /// The packages that are wanted, as conda's match specifications.
    #[serde(default)]
    pub(crate) specs: Vec<String>,
    /// What holds for packages that need not be there.
    #[serde(default)]
    pub(crate) constraints: Vec<String>,
    /// The platform; that of this machine if none is named.
    #[serde(default)]
    pub(crate) platform: Option<Subdir>,
    /// What the machine has that the packages are going to run on, `__glibc=2.36` for example; what this one has if nothing is said.
    #[serde(default)]
    pub(crate) virtual_packages: Option<Vec<GenericVirtualPackage>>,
    /// The folder for what is fetched: lists of packages, and packages.
    pub(crate) cache: PathBuf,
    /// The file that says which packages were chosen.
    pub(crate) lock: PathBuf,
    /// The folder that packages are installed into.
    #[serde(default)]
    pub(crate) prefix: Option<PathBuf>,
    /// Where that folder is going to lie; packages that have to know it are told this.
    #[serde(default)]
    pub(crate) final_prefix: Option<PathBuf>,
    /// Whether only what was fetched before may be used.
    #[serde(default)]
    pub(crate) offline: bool,
    /// How many seconds of silence a channel may keep.
    #[serde(default = "timeout")]
    pub(crate) timeout_seconds: u64,
}

fn alias() -> Url {
    Url::parse("https://conda.anaconda.org").expect("it is an address")
}

fn timeout() -> u64 {
    60
}
