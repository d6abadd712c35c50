//! kaai's router: all that a caller ever sees of kaai.
//!
//! Consumes the routes that the deployer writes (bucket `kaai_routes`), and requests. Says `service.utilization`, every second for each
//! service and at once when a replica has been emptied. Keeps nothing.
//!
//! The way of a request: size → authentication → deadline → queue → slot → replica. What holds, whatever happens around it:
//!
//! - A replica never has more requests of this router than the route allows, and nobody overtakes a request that waits longer.
//! - Once a utilization event says a revision of a route, no request of this router can go to a replica that the revision does not
//!   offer; and `draining` lists what is still in those replicas. So a replica that is listed as empty, or not at all, can be stopped.
//! - A request is sent again only if it provably did not start.
//! - A slot is not given away while its replica may still be working, whether the caller is there or not.
//! - Every refusal says who refused, in the status, in a header and in a body that a program can read.
//!
//! [`Server`] and [`Routes`] are the data path alone: they need no bus, and a test or a bench feeds them by hand.

mod access;
mod address;
mod answer;
mod caller;
mod config;
mod forward;
mod gate;
mod headers;
mod held;
mod hold;
mod identity;
mod latency;
mod leftover;
mod listener;
mod load;
mod metrics;
mod open_files;
mod pool;
mod probe;
mod queue;
mod refusal;
mod request_body;
mod routes;
mod server;
mod service;
mod slots;
mod target;
mod thread;
mod upstream;

use std::sync::Arc;

use runtime::Runtime;
use tokio_util::sync::CancellationToken;

pub use crate::{
    config::{Args, Command, Config, Invalid, Limits},
    held::Error as HeldError,
    hold::{Error as HoldError, Hold, hold},
    listener::{Error as ListenError, Listeners},
    open_files::raise_open_file_limit,
    routes::{News, Routes, Told},
    server::Server,
};
use crate::{metrics::Meters, service::Follower};

/// Why the router could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address for callers cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// No listening socket is handed out.
    #[error(transparent)]
    Held(#[from] HeldError),
    /// The bus cannot be used.
    #[error(transparent)]
    Bus(#[from] runtime::bus::Error),
    /// The system gives no thread, or no socket for one.
    #[error("cannot start a serving thread: {0}")]
    Thread(std::io::Error),
}

/// Routes requests until `rt.shutdown`, then finishes those in hand: at most `config.drain`.
///
/// The address is bound, or its socket taken from a holder, at once, and told to `config.bound`; connections are accepted when all routes are known.
///
/// # Errors
///
/// Fails when the address cannot be listened on, the bus cannot be had for 30 s, or no thread can be started.
pub async fn run(config: Config, rt: Runtime) -> Result<(), Error> {
    let threads = config.threads.max(1);
    let (listeners, held) = match &config.held {
        None => (Listeners::bind(config.address, threads)?, None),
        Some(path) => {
            let Some(held) = held::wait_for(path, &rt.shutdown).await? else { return Ok(()) };
            (held.listeners(threads).map_err(Error::Thread)?, Some((held, path.clone())))
        }
    };
    let address = listeners.address();
    if let Some(bound) = config.bound {
        // Whoever asked may have lost interest.
        let _ = bound.send(address);
    }
    let (routes, news) = Routes::new();
    let meters = Arc::new(rt.metrics.register(|registry| Meters::register(registry, routes.clone())));
    let mut follower = Follower::open(&rt).await?;
    if !follower.load(&routes).await {
        return Ok(());
    }
    let server =
        Server::start_metered(listeners, &routes, &config.limits, config.drain, &meters).map_err(Error::Thread)?;
    if let Some((held, path)) = held {
        rt.tasks.spawn(held::follow(held, path, server.doors(), rt.shutdown.clone()));
    }
    tracing::info!(%address, threads, "routing");
    let silence = CancellationToken::new();
    let telling = rt.tasks.spawn(service::tell(rt.clone(), routes.clone(), news, silence.clone()));
    rt.health.ready(true);
    follower.follow(&routes).await;
    rt.health.ready(false);
    server.stop().await;
    silence.cancel();
    // It ends when told to; a panic in it has been reported by its own thread.
    let _ = telling.await;
    Ok(())
}
