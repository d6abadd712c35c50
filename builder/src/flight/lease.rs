//! The lease by which one of all builders makes an environment, and the record that ends it.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use proto::{builder::EnvironmentRecord, id::EnvironmentHash};
use runtime::{backoff::Backoff, bus::Error as BusError, clock};
use tokio::time::sleep;

use super::Flights;
use crate::{
    decide::{self, Conflict},
    maker::Maker,
};

impl<M: Maker> Flights<M> {
    /// What says that this builder builds.
    pub(super) fn lease(&self) -> EnvironmentRecord {
        let lease_until_ms = clock::now_ms() + u64::try_from(self.limits.lease.as_millis()).unwrap_or(u64::MAX / 2);
        EnvironmentRecord::Building { builder: self.rt.instance.clone(), lease_until_ms }
    }

    /// Pushes the lease on again and again; returns when another has it.
    ///
    /// While the bus is away nobody can take the lease, so that its time alone is no reason to give up: what decides is who writes next.
    pub(super) async fn keep_lease(&self, hash: &EnvironmentHash, revision: &AtomicU64) {
        loop {
            sleep(self.limits.lease / 3).await;
            let record = self.lease();
            match self.bucket.update(hash.as_str(), &record, revision.load(Ordering::Relaxed)).await {
                Ok(new) => revision.store(new, Ordering::Relaxed),
                Err(BusError::Conflict(_)) if self.is_lost(hash, &record, revision).await => return,
                Err(error) => tracing::debug!(%hash, %error, "the lease was not pushed on; trying again"),
            }
        }
    }

    /// Looks why a write of the lease's holder met a conflict.
    async fn is_lost(&self, hash: &EnvironmentHash, wanted: &EnvironmentRecord, revision: &AtomicU64) -> bool {
        let Ok(entry) = self.bucket.get(hash.as_str()).await else { return false };
        match decide::conflict(self.rt.instance.as_str(), wanted, entry.as_ref()) {
            Conflict::Done(new) | Conflict::Again(new) => {
                revision.store(new, Ordering::Relaxed);
                false
            }
            Conflict::Lost => true,
        }
    }

    /// Writes the end of a build; `false` when another builder has taken over, so that this end does not count.
    pub(super) async fn settle(
        &self,
        hash: &EnvironmentHash,
        record: &EnvironmentRecord,
        revision: &AtomicU64,
    ) -> bool {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        loop {
            let error = match self.bucket.update(hash.as_str(), record, revision.load(Ordering::Relaxed)).await {
                Ok(_) => return true,
                Err(error) => error,
            };
            if matches!(error, BusError::Conflict(_)) {
                let Ok(entry) = self.bucket.get(hash.as_str()).await else { continue };
                match decide::conflict(self.rt.instance.as_str(), record, entry.as_ref()) {
                    Conflict::Done(_) => return true,
                    Conflict::Again(new) => revision.store(new, Ordering::Relaxed),
                    Conflict::Lost => return false,
                }
                continue;
            }
            tracing::debug!(%hash, %error, "the end of a build was not recorded; trying again");
            if !self.pause(backoff.next_delay()).await {
                return false;
            }
        }
    }
}
