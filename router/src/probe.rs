//! Looks after a replica that has been set aside, until it is well or gone.
//!
//! A replica is well when it answers `GET /` with anything that is HTTP. Being connected to is not enough: the kernel accepts for a
//! process that is busy, or still starting.

use std::sync::Arc;

use hyper::{Request, header};
use runtime::backoff::Backoff;
use tokio::time::Duration;

use crate::{
    config::Limits,
    gate::Gate,
    request_body::RequestBody,
    slots::{Peer, Serial},
    upstream::Wire,
};

/// The first delay before a look, and the longest.
const DELAYS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// How long one look may take. A replica that is busy answers when it is done, so hurrying would only pile up looks in its backlog.
const LOOK: Duration = Duration::from_secs(5);

/// Looks again and again, and restores the replica when it is well. Ends when it is, or when no route names it any more.
pub(crate) async fn until_well(gate: Arc<Gate>, serial: Serial, peer: Arc<Peer>, limits: Arc<Limits>) {
    let mut backoff = Backoff::new(DELAYS.0, DELAYS.1);
    loop {
        tokio::time::sleep(backoff.next_delay()).await;
        if !gate.is_aside(serial) {
            return;
        }
        if tokio::time::timeout(LOOK, is_well(&peer, &limits)).await.unwrap_or(false) {
            tracing::info!(service = %gate.service(), replica = %peer.id, "a replica answers again");
            gate.restore(serial);
            return;
        }
    }
}

async fn is_well(peer: &Peer, limits: &Limits) -> bool {
    let Ok(wire) = Wire::open(&peer.address, limits.connect_timeout, limits.max_head).await else { return false };
    let request = Request::get("/").header(header::HOST, "kaai").header(header::CONNECTION, "close");
    let Ok(request) = request.body(RequestBody::empty()) else { return false };
    wire.ask(request).await.is_ok()
}
