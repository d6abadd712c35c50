//! Names of channels become addresses, and addresses are asked.

use std::{path::PathBuf, time::Duration};

use rattler_conda_types::{Channel, ChannelConfig};
use rattler_networking::LazyClient;

use crate::{failure::Failure, request::Request};

/// What conda calls its defaults on Linux.
const DEFAULTS: [&str; 2] = ["https://repo.anaconda.com/pkgs/main", "https://repo.anaconda.com/pkgs/r"];
/// How long the other side may take to answer at all.
const CONNECT: Duration = Duration::from_secs(15);

/// How names become addresses.
pub(crate) fn config(request: &Request) -> ChannelConfig {
    let mut channel_alias = request.channel_alias.clone();
    if !channel_alias.path().ends_with('/') {
        channel_alias.set_path(&format!("{}/", channel_alias.path()));
    }
    ChannelConfig { channel_alias, root_dir: PathBuf::from("/") }
}

/// The channels in order, and behind them those that only a spec names.
pub(crate) fn in_order<'a>(
    request: &Request,
    more: impl Iterator<Item = &'a Channel>,
) -> Result<Vec<Channel>, Failure> {
    let config = config(request);
    let mut channels: Vec<Channel> = Vec::new();
    let names = request.channels.iter().map(String::as_str).filter(|name| *name != "nodefaults");
    let named = names.flat_map(|name| if name == "defaults" { DEFAULTS.to_vec() } else { vec![name] });
    let mut add = |channel: Channel| {
        if !channels.iter().any(|known| known.base_url == channel.base_url) {
            channels.push(channel);
        }
    };
    for name in named {
        add(one(name, &config)?);
    }
    more.cloned().for_each(&mut add);
    Ok(channels)
}

/// One channel by its name or address.
pub(crate) fn one(name: &str, config: &ChannelConfig) -> Result<Channel, Failure> {
    Channel::from_str(name, config).map_err(|error| Failure::Request(format!("{name:?} is no channel: {error}")))
}

/// What asks channels: with proxies and authorities as the usual variables name them.
pub(crate) fn client(request: &Request) -> Result<LazyClient, Failure> {
    let client = reqwest::Client::builder()
        .connect_timeout(CONNECT)
        .read_timeout(Duration::from_secs(request.timeout_seconds))
        .user_agent(concat!("kaai-conda/", env!("CARGO_PKG_VERSION")))
        .build();
    client.map(LazyClient::from).map_err(|error| Failure::Other(format!("no client: {error}")))
}
