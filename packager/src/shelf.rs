//! The archives in the object store, and the leases that keep those from being deleted that somebody counts on.

use std::time::Duration;

use proto::{id::Digest, packager::ArchiveLease, subject};
use runtime::{
    bus::{self, Bucket, Bus, Entry},
    clock,
    store::{self, Store, archive_key},
};
use tokio::time::{Instant, sleep};

use crate::lease::{self, Hold};

/// How long one that is being deleted is waited for.
const WAIT: Duration = Duration::from_secs(20);

/// Archives by their digests.
#[derive(Clone)]
pub(crate) struct Shelf {
    pub(crate) store: Store,
    leases: Bucket<ArchiveLease>,
}

/// An archive could not be looked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Bus(#[from] bus::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("the archive {0} is being deleted by `kaai prune`")]
    Going(Digest),
}

/// The right to delete an archive for a while.
pub(crate) struct Claim {
    digits: String,
    revision: u64,
    until: Instant,
}

impl Claim {
    /// Whether it may still be deleted.
    pub(crate) fn holds(&self) -> bool {
        Instant::now() < self.until
    }
}

impl Shelf {
    pub(crate) async fn open(bus: &Bus, store: Store) -> Result<Self, bus::Error> {
        Ok(Self { store, leases: bus.bucket(subject::ARCHIVES).await? })
    }

    /// Whether an archive of this length is there; if so it stays for half an hour at least, and if not, so does what is put there now.
    pub(crate) async fn has(&self, digest: &Digest, size: u64) -> Result<bool, Error> {
        self.hold(digest).await?;
        Ok(self.store.size(&archive_key(digest)).await? == Some(size))
    }

    /// Keeps an archive from being deleted for half an hour at least, whether it is there or not.
    pub(crate) async fn hold(&self, digest: &Digest) -> Result<(), Error> {
        let deadline = Instant::now() + WAIT;
        loop {
            let there = self.leases.get(digest.hex()).await?;
            match lease::hold(there.as_ref().map(|entry| entry.value), clock::now_ms()) {
                Hold::Held => return Ok(()),
                Hold::Write(lease) => {
                    if self.write(digest.hex(), &lease, there).await?.is_some() {
                        return Ok(());
                    }
                }
                Hold::Wait if Instant::now() < deadline => sleep(Duration::from_millis(100)).await,
                Hold::Wait => return Err(Error::Going(digest.clone())),
            }
        }
    }

    /// Claims an archive, to delete it; `None` when somebody counts on it.
    pub(crate) async fn claim(&self, digits: &str) -> Result<Option<Claim>, bus::Error> {
        // The time runs from before the claim is written.
        let until = Instant::now() + lease::DELETE_WITHIN;
        let there = self.leases.get(digits).await?;
        let Some(lease) = lease::claim(there.as_ref().map(|entry| entry.value), clock::now_ms()) else {
            return Ok(None);
        };
        let revision = self.write(digits, &lease, there).await?;
        Ok(revision.map(|revision| Claim { digits: digits.to_owned(), revision, until }))
    }

    /// Whether somebody counts on an archive now, or deletes it.
    pub(crate) async fn is_leased(&self, digits: &str) -> Result<bool, bus::Error> {
        let there = self.leases.get(digits).await?;
        Ok(lease::claim(there.map(|entry| entry.value), clock::now_ms()).is_none())
    }

    /// Gives a claim back; one that somebody has taken over meanwhile is his.
    pub(crate) async fn release(&self, claim: Claim) -> Result<(), bus::Error> {
        match self.leases.delete_at(&claim.digits, claim.revision).await {
            Err(bus::Error::Conflict(_)) => Ok(()),
            ended => ended,
        }
    }

    /// Writes a lease unless somebody else has; gives the revision.
    async fn write(
        &self,
        digits: &str,
        lease: &ArchiveLease,
        there: Option<Entry<ArchiveLease>>,
    ) -> Result<Option<u64>, bus::Error> {
        let written = match there {
            None => self.leases.create(digits, lease).await,
            Some(entry) => self.leases.update(digits, lease, entry.revision).await,
        };
        match written {
            Ok(revision) => Ok(Some(revision)),
            Err(bus::Error::Conflict(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
