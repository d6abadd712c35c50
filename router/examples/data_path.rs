//! The data path alone, for benches: `data_path 127.0.0.1:8080 THREADS CONCURRENCY http://127.0.0.1:9000 unix:/run/r2.sock …`
//!
//! One open service named `bench`, no bus. Every other setting is the default.

use std::net::SocketAddr;

use anyhow::Context;
use proto::{
    deployer::{Endpoint, Route},
    id::Generation,
    spec::{Auth, RequestLimits, Scaling},
};
use router::{Limits, Listeners, Routes, Server, raise_open_file_limit};
use tokio::time::Duration;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let mut next = |what: &str| args.next().with_context(|| format!("{what} is missing"));
    let address: SocketAddr = next("the address to listen on")?.parse()?;
    let threads: usize = next("the number of threads")?.parse()?;
    let max_concurrent_per_replica = next("the concurrency of a replica")?.parse()?;
    let endpoint = |(index, address)| Ok(Endpoint { replica: format!("r-{index}").parse()?, address, draining: false });
    let replicas: anyhow::Result<Vec<_>> = args.enumerate().map(endpoint).collect();
    let route = Route {
        workspace: "default".parse()?,
        service: "bench".parse()?,
        generation: Generation(1),
        replicas: replicas?,
        starting: 0,
        auth: Auth::None,
        key_digests: Vec::new(),
        requests: RequestLimits { max_concurrent_per_replica, max_queue_wait_ms: 10_000, ..RequestLimits::default() },
        scaling: Scaling::default(),
        extra: proto::Extra::default(),
    };
    raise_open_file_limit();
    let (routes, _news) = Routes::new();
    routes.put(&route, 1);
    let _server = Server::start(Listeners::bind(address, threads)?, &routes, &Limits::default(), Duration::ZERO)?;
    loop {
        std::thread::park();
    }
}
