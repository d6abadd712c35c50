//! Settings: as typed ([`Args`]) and as checked ([`Config`]).

use std::{net::SocketAddr, path::PathBuf};

use clap::{Parser, Subcommand};
use runtime::config::CommonArgs;
use tokio::{sync::oneshot, time::Duration};

use crate::hold::Hold;

/// The smallest buffer of a connection that the HTTP codec takes.
const SMALLEST_BUFFER: usize = 8 * 1024;

/// kaai's router: authenticates, queues, picks a replica, forwards, measures
#[derive(Debug, Parser)]
#[command(name = "kaai-router", version, args_conflicts_with_subcommands = true)]
pub struct Args {
    /// What to do in place of routing.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Settings that every component has.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Address for callers; port 0 takes a free one
    #[arg(long, env = "KAAI_ROUTER_ADDRESS", default_value = "127.0.0.1:8080")]
    pub address: SocketAddr,
    /// Unix socket of a holder (kaai-router hold): take the listening socket from it in place of --address; no caller is refused while a router restarts
    #[arg(long, env = "KAAI_ROUTER_HELD", value_name = "FILE")]
    pub held: Option<PathBuf>,
    /// Threads that serve requests [default: one a core]
    #[arg(long, env = "KAAI_ROUTER_THREADS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Connections of callers at a time; more wait in the kernel
    #[arg(long, env = "KAAI_ROUTER_MAX_CONNECTIONS", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: u32,
    /// Largest payload in bytes
    #[arg(long, env = "KAAI_ROUTER_MAX_BODY_BYTES", default_value_t = 100 * 1024 * 1024)]
    pub max_body_bytes: u64,
    /// Largest request head in bytes, and the buffer of a connection; at least 8192
    #[arg(long, env = "KAAI_ROUTER_MAX_HEAD_BYTES", default_value_t = 64 * 1024)]
    pub max_head_bytes: usize,
    /// Most headers of a request
    #[arg(long, env = "KAAI_ROUTER_MAX_HEADERS", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub max_headers: u16,
    /// Milliseconds that a request head may take to arrive
    #[arg(long, env = "KAAI_ROUTER_HEAD_TIMEOUT_MS", default_value_t = 10_000)]
    pub head_timeout_ms: u64,
    /// Milliseconds that a connection may be idle between requests
    #[arg(long, env = "KAAI_ROUTER_IDLE_TIMEOUT_MS", default_value_t = 75_000)]
    pub idle_timeout_ms: u64,
    /// Milliseconds without any progress after which a caller's upload or download is given up
    #[arg(long, env = "KAAI_ROUTER_STALL_TIMEOUT_MS", default_value_t = 30_000)]
    pub stall_timeout_ms: u64,
    /// Requests that may wait for one service
    #[arg(long, env = "KAAI_ROUTER_MAX_QUEUED", default_value_t = 1000)]
    pub max_queued: usize,
    /// Milliseconds that connecting to a replica may take
    #[arg(long, env = "KAAI_ROUTER_CONNECT_TIMEOUT_MS", default_value_t = 1000)]
    pub connect_timeout_ms: u64,
    /// Milliseconds after which an unused connection to a replica is closed; below the replica's own limit
    #[arg(long, env = "KAAI_ROUTER_POOL_IDLE_MS", default_value_t = 1000)]
    pub pool_idle_ms: u64,
    /// Milliseconds that a replica may still work on a request whose time is over before its slot is given away
    #[arg(long, env = "KAAI_ROUTER_GRACE_MS", default_value_t = 5000)]
    pub grace_ms: u64,
}

/// What the program does in place of routing.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Hold the listening socket of routers, so that they can be restarted while callers connect
    Hold(Hold),
}

/// What the router needs to run. `Config::default()` is what the program does without options.
#[derive(Debug)]
pub struct Config {
    /// Address for callers; port 0 takes a free one.
    pub address: SocketAddr,
    /// The unix socket of a holder, whose listening socket is used in place of `address`.
    pub held: Option<PathBuf>,
    /// Threads that serve requests; at least 1.
    pub threads: usize,
    /// How long requests may take to finish at shutdown.
    pub drain: Duration,
    /// Limits of connections and requests.
    pub limits: Limits,
    /// Told the address in use once it is bound.
    pub bound: Option<oneshot::Sender<SocketAddr>>,
}

/// Limits of connections and requests.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections of callers at a time, over all threads; at least 1 a thread.
    pub max_connections: usize,
    /// Largest payload, in bytes.
    pub max_body: u64,
    /// Largest request head and the buffer of a connection, in bytes; at least 8192.
    pub max_head: usize,
    /// Most headers of a request.
    pub max_headers: usize,
    /// How long a request head may take to arrive.
    pub head_timeout: Duration,
    /// How long a connection may be idle between requests.
    pub idle_timeout: Duration,
    /// How long a caller's upload or download may make no progress.
    pub stall_timeout: Duration,
    /// Requests that may wait for one service.
    pub max_queued: usize,
    /// How long connecting to a replica may take.
    pub connect_timeout: Duration,
    /// How long an unused connection to a replica is kept.
    pub pool_idle: Duration,
    /// How long a replica may still work on a request whose time is over before its slot is given away.
    pub grace: Duration,
}

/// A setting is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    /// The buffer is too small.
    #[error("--max-head-bytes is {0}; it must be at least {SMALLEST_BUFFER}")]
    Head(usize),
    /// A time that must not be zero.
    #[error("{0} must be greater than zero")]
    Zero(&'static str),
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_body: 100 * 1024 * 1024,
            max_head: 64 * 1024,
            max_headers: 100,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            stall_timeout: Duration::from_secs(30),
            max_queued: 1000,
            connect_timeout: Duration::from_secs(1),
            pool_idle: Duration::from_secs(1),
            grace: Duration::from_secs(5),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 8080)),
            held: None,
            threads: cores(),
            drain: Duration::from_secs(30),
            limits: Limits::default(),
            bound: None,
        }
    }
}

impl TryFrom<Args> for Config {
    type Error = Invalid;

    fn try_from(args: Args) -> Result<Self, Invalid> {
        if args.max_head_bytes < SMALLEST_BUFFER {
            return Err(Invalid::Head(args.max_head_bytes));
        }
        let time = |name, ms| match ms {
            0 => Err(Invalid::Zero(name)),
            ms => Ok(Duration::from_millis(ms)),
        };
        Ok(Self {
            address: args.address,
            held: args.held,
            threads: args.threads.map_or_else(cores, usize::from),
            drain: Duration::from_secs(args.common.drain_seconds),
            limits: Limits {
                max_connections: usize::try_from(args.max_connections).unwrap_or(usize::MAX),
                max_body: args.max_body_bytes,
                max_head: args.max_head_bytes,
                max_headers: usize::from(args.max_headers),
                head_timeout: time("--head-timeout-ms", args.head_timeout_ms)?,
                idle_timeout: time("--idle-timeout-ms", args.idle_timeout_ms)?,
                stall_timeout: time("--stall-timeout-ms", args.stall_timeout_ms)?,
                max_queued: args.max_queued,
                connect_timeout: time("--connect-timeout-ms", args.connect_timeout_ms)?,
                pool_idle: Duration::from_millis(args.pool_idle_ms),
                grace: Duration::from_millis(args.grace_ms),
            },
            bound: None,
        })
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(options: &[&str]) -> Result<Config, Invalid> {
        Args::try_parse_from([&["kaai-router"], options].concat()).unwrap().try_into()
    }

    #[test]
    fn without_options_the_settings_are_the_defaults() {
        let (typed, default) = (config(&[]).unwrap(), Config::default());
        assert_eq!(format!("{typed:?}"), format!("{default:?}"));
    }

    #[test]
    fn a_wrong_setting_names_its_option() {
        assert!(config(&["--max-head-bytes", "100"]).unwrap_err().to_string().contains("--max-head-bytes is 100"));
        assert!(config(&["--stall-timeout-ms", "0"]).unwrap_err().to_string().contains("--stall-timeout-ms"));
    }
}
