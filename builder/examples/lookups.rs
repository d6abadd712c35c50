//! Looks environments up in a registry as the builder does, for a while, and says how often: `benches/env.py`.
//!
//! Standard input names the environments, a hash a line; the answer is one line of JSON.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement ends where something is wrong")]

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use builder::{Args, Config, build_log::BuildLog, environment::Definition, maker::Maker, plan::Plan};
use clap::Parser;
use futures::future::join_all;
use proto::{id::EnvironmentHash, spec::EnvironmentSpec};
use runtime::store::Store;
use tokio::time::Instant;

/// Looks environments up.
#[derive(clap::Parser)]
struct Look {
    /// Registry that has them, as --registry of the builder
    registry: String,
    /// For how many seconds
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// How many lookups are begun at a time
    #[arg(long, default_value_t = 256)]
    concurrent: usize,
}

#[tokio::main]
async fn main() {
    let look = Look::parse();
    let hashes: Vec<EnvironmentHash> = std::io::stdin().lines().map(|line| line.unwrap().parse().unwrap()).collect();
    let folder = tempfile::tempdir().unwrap();
    let settings = ["lookups".to_owned(), format!("--registry={}", look.registry)];
    let store = Store::open(folder.path()).unwrap();
    let maker = Config::try_from(Args::parse_from(settings)).unwrap().images(&store).unwrap().unwrap();
    // What is looked for is known by its hash alone.
    let plan = Plan::without_images(&Definition::read(&EnvironmentSpec::default()).unwrap(), false).unwrap();
    let log = BuildLog::new(folder.path().join("log"));
    let (found, next) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let began = Instant::now();
    let end = began + Duration::from_secs(look.seconds);
    let one = async |_| {
        while Instant::now() < end {
            let hash = &hashes[next.fetch_add(1, Ordering::Relaxed) % hashes.len()];
            let answer = maker.find(hash, &plan, &log).await.unwrap();
            found.fetch_add(usize::from(answer.made.is_some()), Ordering::Relaxed);
        }
    };
    join_all((0..look.concurrent).map(one)).await;
    let (lookups, found) = (next.load(Ordering::Relaxed), found.load(Ordering::Relaxed));
    println!(r#"{{"lookups": {lookups}, "found": {found}, "seconds": {}}}"#, began.elapsed().as_secs_f64());
}
