//! Who decides: a lease in the bucket `kaai_leases`, kept by pushing its entry on and taken over when that stops.
//!
//! Owns the lease and nothing that is done under it. No clock is compared with another machine's: a standby measures, by its
//! own clock, for how long the entry has not changed; the holder counts from before it asked for the last change. As the
//! first waits longer than the second trusts, there are never two.

use std::time::Duration;

use proto::{id::InstanceId, subject};
use runtime::{
    Runtime,
    bus::{Bucket, Error},
};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

/// The entry of this component.
const KEY: &str = "scaler";
/// How often the holder pushes its entry on.
const RENEW: Duration = Duration::from_millis(800);
/// How long the holder trusts its last change.
const TRUST: Duration = Duration::from_millis(1_900);
/// How often a standby looks.
const LOOK: Duration = Duration::from_millis(400);
/// How long the entry must not have changed before a standby takes it.
const TAKE_OVER: Duration = Duration::from_millis(2_100);

/// The entry: who holds the lease, and at which start of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Holder {
    instance: InstanceId,
    epoch: u64,
}

/// Until when this instance decides; `None` while it stands by.
pub(crate) type Until = Option<Instant>;

/// What is known of the lease. Pure: [`keep`] performs the steps.
#[derive(Debug, Default)]
struct Lease {
    held: Option<Held>,
    /// The revision last seen, and when it was first seen.
    seen: Option<(u64, Instant)>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    revision: u64,
    until: Instant,
}

impl Lease {
    fn until(&self, now: Instant) -> Until {
        self.held.map(|held| held.until).filter(|until| *until > now)
    }

    /// The entry was written at a revision by a call that began at `began`.
    fn won(&mut self, began: Instant, revision: u64) {
        self.held = Some(Held { revision, until: began + TRUST });
    }

    /// Somebody else wrote the entry, or the trust is over.
    fn lost(&mut self) {
        (self.held, self.seen) = (None, None);
    }

    /// Whether an entry that was just read may be taken: it is this very start's own, or it has not changed for long enough.
    fn may_take(&mut self, now: Instant, revision: u64, own: bool) -> bool {
        match self.seen {
            _ if own => true,
            Some((seen, since)) if seen == revision => now.saturating_duration_since(since) >= TAKE_OVER,
            _ => {
                self.seen = Some((revision, now));
                false
            }
        }
    }
}

/// Competes for the lease until `release` is cancelled, then gives it up so that another need not wait. Says in `until` how it stands.
pub(crate) async fn keep(rt: Runtime, epoch: u64, until: watch::Sender<Until>, release: CancellationToken) {
    let own = Holder { instance: rt.instance.clone(), epoch };
    let mut lease = Lease::default();
    let bucket = loop {
        match rt.bus.bucket::<Holder>(subject::LEASES).await {
            Ok(bucket) => break bucket,
            Err(error) => tracing::warn!(%error, "cannot compete for the lease; trying again"),
        }
        tokio::select! {
            () = release.cancelled() => return,
            () = tokio::time::sleep(RENEW) => {}
        }
    };
    loop {
        let began = Instant::now();
        // A call that is not answered while the lease is trusted must not delay the moment when it no longer is.
        let limit = lease.until(began).unwrap_or(began + TRUST);
        match tokio::time::timeout_at(limit, step(&mut lease, &bucket, &own)).await {
            Ok(Ok(())) => {}
            Ok(Err(Error::Conflict(_))) => lease.lost(),
            Ok(Err(error)) => tracing::debug!(%error, "no answer about the lease"),
            Err(_) => tracing::debug!("no answer about the lease in time"),
        }
        let stands = lease.until(Instant::now());
        if stands.is_none() && lease.held.is_some() {
            lease.lost();
        }
        until.send_replace(stands);
        let pause = if stands.is_some() { RENEW } else { LOOK };
        tokio::select! {
            () = release.cancelled() => break,
            () = tokio::time::sleep_until(began + pause) => {}
        }
    }
    until.send_replace(None);
    if let Some(held) = lease.held
        && let Err(error) = bucket.delete_at(KEY, held.revision).await
    {
        tracing::debug!(%error, "the lease was not given up; it expires");
    }
}

async fn step(lease: &mut Lease, bucket: &Bucket<Holder>, own: &Holder) -> Result<(), Error> {
    let began = Instant::now();
    let revision = if let Some(held) = lease.held {
        bucket.update(KEY, own, held.revision).await?
    } else {
        match bucket.get(KEY).await? {
            None => bucket.create(KEY, own).await?,
            Some(entry) if lease.may_take(Instant::now(), entry.revision, entry.value == *own) => {
                bucket.update(KEY, own, entry.revision).await?
            }
            Some(_) => return Ok(()),
        }
    };
    lease.won(began, revision);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_only_when_its_holder_trusts_it_no_more() {
        let (mut holder, mut standby, start) = (Lease::default(), Lease::default(), Instant::now());
        holder.won(start, 7);
        // The standby sees the entry at the earliest when it was written.
        assert!(!standby.may_take(start, 7, false));
        for ms in (0..3_000).step_by(10) {
            let now = start + Duration::from_millis(ms);
            assert!(!(holder.until(now).is_some() && standby.may_take(now, 7, false)), "two at {ms} ms");
        }
        assert!(standby.may_take(start + TAKE_OVER, 7, false));
    }

    #[test]
    fn a_standby_waits_anew_after_each_change() {
        let (mut standby, start) = (Lease::default(), Instant::now());
        for (revision, second) in (7_u64..20).zip(0_u64..) {
            assert!(!standby.may_take(start + Duration::from_secs(second), revision, false));
        }
    }

    #[test]
    fn an_entry_of_ones_own_is_taken_back_at_once() {
        assert!(Lease::default().may_take(Instant::now(), 7, true));
    }

    #[test]
    fn a_standby_takes_over_within_three_seconds() {
        assert!(LOOK + TAKE_OVER + LOOK < Duration::from_secs(3));
        assert!(RENEW * 2 < TRUST, "one change that is lost is no reason to lose the lease");
    }
}
