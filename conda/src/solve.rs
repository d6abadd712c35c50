//! Which packages go together.

use rattler_conda_types::{GenericVirtualPackage, MatchSpec, ParseStrictness, Subdir};
use rattler_repodata_gateway::{ChannelConfig, Gateway, SourceConfig, fetch::CacheAction};
use rattler_solve::{ChannelPriority, SolverImpl, SolverTask, resolvo::Solver};
use rattler_virtual_packages::{VirtualPackage, VirtualPackageOverrides};

use crate::{channels, failure::Failure, lock::Lock, progress::line, request::Request};

/// Asks the channels and chooses.
///
/// The first channel that has a package is the only one that it is taken from, as with conda's `channel_priority: strict`; a spec may name
/// another (`conda-forge::numpy`).
pub(crate) async fn solve(request: &Request) -> Result<Lock, Failure> {
    let platform = platform(request)?;
    let specs = specs(request, &request.specs)?;
    let constraints = specs_of(request, &request.constraints)?;
    let channels = channels::in_order(request, specs.iter().filter_map(|spec| spec.channel.as_deref()))?;
    if channels.is_empty() {
        return Err(Failure::Request("no channel is named".to_owned()));
    }
    let names: Vec<_> = channels.iter().map(|channel| channel.canonical_name()).collect();
    line(&format!("asking {}", names.join(", ")));
    let gateway = gateway(request)?;
    let query = gateway.query(channels, [platform, Subdir::NoArch], specs.clone()).recursive(true);
    let found = query.execute().await.map_err(|error| Failure::of_channel(&error))?;
    let task = SolverTask {
        virtual_packages: virtual_packages(request)?,
        specs,
        constraints,
        channel_priority: ChannelPriority::Strict,
        ..SolverTask::from_iter(found.iter())
    };
    let solved = tokio::task::block_in_place(|| Solver.solve(task)).map_err(|error| Failure::of_solver(&error))?;
    let lock = Lock::new(platform, solved.records);
    line(&format!("Solved {} packages", lock.packages.len()));
    for record in &lock.packages {
        let channel = record.channel.as_deref().unwrap_or("no channel");
        let own = &record.package_record;
        line(&format!(" + {} {} {} ({channel})", own.name.as_normalized(), own.version, own.build));
    }
    Ok(lock)
}

/// The platform that is asked for, or this machine's.
fn platform(request: &Request) -> Result<Subdir, Failure> {
    let here = || Failure::Request("conda has no name for this machine: say which platform is meant".to_owned());
    request.platform.or_else(Subdir::current).ok_or_else(here)
}

fn specs(request: &Request, texts: &[String]) -> Result<Vec<MatchSpec>, Failure> {
    if texts.is_empty() {
        return Err(Failure::Request("no package is asked for".to_owned()));
    }
    specs_of(request, texts)
}

fn specs_of(request: &Request, texts: &[String]) -> Result<Vec<MatchSpec>, Failure> {
    let config = channels::config(request);
    let read = |text: &String| {
        let (channel, rest) = match text.split_once("::") {
            Some((channel, rest)) => (Some(channels::one(channel, &config)?), rest),
            None => (None, text.as_str()),
        };
        let mut spec = MatchSpec::from_str(rest, ParseStrictness::Lenient)
            .map_err(|error| Failure::Request(format!("{text:?} is not understood: {error}")))?;
        spec.channel = channel.map(Into::into).or(spec.channel);
        Ok(spec)
    };
    texts.iter().map(read).collect()
}

fn virtual_packages(request: &Request) -> Result<Vec<GenericVirtualPackage>, Failure> {
    if let Some(said) = &request.virtual_packages {
        return Ok(said.clone());
    }
    let found = VirtualPackage::detect(&VirtualPackageOverrides::default(), None);
    let found = found.map_err(|error| Failure::Other(format!("this machine cannot be looked at: {error}")))?;
    Ok(found.into_iter().map(GenericVirtualPackage::from).collect())
}

fn gateway(request: &Request) -> Result<Gateway, Failure> {
    let cache_action = if request.offline { CacheAction::ForceCacheOnly } else { CacheAction::CacheOrFetch };
    let config =
        ChannelConfig { default: SourceConfig { cache_action, ..SourceConfig::default() }, ..ChannelConfig::default() };
    let gateway = Gateway::builder().with_client(channels::client(request)?).with_channel_config(config);
    Ok(gateway.with_cache_dir(request.cache.join("channels")).finish())
}
