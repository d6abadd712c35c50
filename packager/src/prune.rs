//! Deletes what of the object store nobody needs any more; what it would delete is told first.
//!
//! Only what is old is looked at. An archive is claimed first, then looked for once more among what is needed, then deleted: whoever
//! came to count on it meanwhile has either taken the claim away or is seen. Whatever cannot be read keeps everything.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use proto::query::{
    MIN_PRUNE_AGE_SECONDS, MOST_PRUNED, Prune, PruneOutcome, Pruned, PrunedObject, Refusal, StoredKind,
};
use runtime::{
    bus::{self, Bucket, Bus},
    clock,
    store::{self, Object},
};
use serde_json::Value;
use tokio::{sync::Mutex, time::timeout};

use crate::{
    needs::Needs,
    shelf::{Claim, Shelf},
    trouble::{refused_by_store, unavailable},
};

/// How long one deletion may take; with [`Claim::holds`] it is over before the claim is.
const DELETE: Duration = Duration::from_secs(30);
const ARCHIVES: &str = "archives";
const BUILD_LOGS: &str = "logs/builds";

/// Tells and deletes what nobody needs. Clones share it.
#[derive(Clone)]
pub(crate) struct Pruner {
    pub(crate) shelf: Shelf,
    pub(crate) bus: Bus,
    pub(crate) buckets: Arc<[Bucket<Value>; 2]>,
    /// One at a time: two would only claim from each other.
    pub(crate) turn: Arc<Mutex<()>>,
}

/// Why nothing was deleted.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Bus(#[from] bus::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::Store(error) => refused_by_store(&error),
            Error::Bus(error @ bus::Error::Unreadable(..)) => unavailable(
                format!("{error}; what it needs is not known, so nothing is deleted"),
                "mend or delete that entry, then try again",
            ),
            Error::Bus(error) => unavailable(error.to_string(), "try again"),
        }
    }
}

impl Pruner {
    /// Answers a question, or carries out an order.
    pub(crate) async fn prune(&self, wanted: &Prune) -> Result<Pruned, Refusal> {
        if wanted.older_than_seconds < MIN_PRUNE_AGE_SECONDS {
            let cause =
                format!("{} s are less than the shortest time of {MIN_PRUNE_AGE_SECONDS} s", wanted.older_than_seconds);
            return Err(Refusal::new("invalid", cause, "keep more: what is under way may need it"));
        }
        let _turn = self.turn.lock().await;
        let since_ms = clock::now_ms().saturating_sub(wanted.older_than_seconds.saturating_mul(1000));
        let found = self.find(since_ms).await?;
        Ok(if wanted.apply { self.apply(found, since_ms).await? } else { answer(found) })
    }

    /// What is old and not needed, oldest first.
    async fn find(&self, since_ms: u64) -> Result<Vec<PrunedObject>, Error> {
        let store = &self.shelf.store;
        let mut found = Vec::new();
        // What is stored is listed before it is asked who needs it: what comes in between is new.
        for (kind, objects) in [
            (StoredKind::Archive, store.list(ARCHIVES).await?),
            (StoredKind::BuildLog, store.list(BUILD_LOGS).await?),
            (StoredKind::UnfinishedUpload, store.leftovers().await?),
        ] {
            found.extend(objects.into_iter().filter_map(|object| old(kind, object, since_ms)));
        }
        let needs = Needs::look(&self.bus, &self.buckets[..], since_ms).await?;
        found.retain(|object| digits(object).is_none_or(|digits| !needs.contain(digits)));
        let mut unused = Vec::new();
        for object in found {
            let leased = match (object.kind, digits(&object)) {
                (StoredKind::Archive, Some(digits)) => self.shelf.is_leased(digits).await?,
                _ => false,
            };
            if !leased {
                unused.push(object);
            }
        }
        unused.sort_by(|one, two| (one.written_ms, &one.key).cmp(&(two.written_ms, &two.key)));
        Ok(unused)
    }

    /// Deletes the oldest ones. Killed in the middle, it has deleted some of them whole; its claims end by themselves.
    async fn apply(&self, found: Vec<PrunedObject>, since_ms: u64) -> Result<Pruned, Error> {
        let more = found.len().saturating_sub(MOST_PRUNED) as u64;
        let mut objects: Vec<_> = found.into_iter().take(MOST_PRUNED).collect();
        let mut claims = Vec::new();
        for object in &objects {
            let claim = match (object.kind, digits(object)) {
                (StoredKind::Archive, Some(digits)) => self.shelf.claim(digits).await?,
                _ => None,
            };
            claims.push(claim);
        }
        // Only now is it certain that nobody begins to count on one unseen.
        let looked = Needs::look(&self.bus, &self.buckets[..], since_ms).await;
        for (object, claim) in objects.iter_mut().zip(&claims) {
            object.outcome = match &looked {
                Ok(needs) => self.delete(object, claim.as_ref(), needs).await,
                Err(_) => PruneOutcome::Kept("what is needed could not be read".to_owned()),
            };
        }
        for claim in claims.into_iter().flatten() {
            if let Err(error) = self.shelf.release(claim).await {
                tracing::debug!(%error, "a claim stays until it ends by itself");
            }
        }
        looked?;
        let deleted = objects.iter().filter(|object| object.outcome == PruneOutcome::Deleted);
        let bytes = deleted.clone().map(|object| object.size).sum();
        tracing::info!(objects = deleted.count(), bytes, "deleted what nobody needs");
        Ok(Pruned { objects, more, bytes })
    }

    async fn delete(&self, object: &PrunedObject, claim: Option<&Claim>, needs: &Needs) -> PruneOutcome {
        let kept = |why: &str| PruneOutcome::Kept(why.to_owned());
        if digits(object).is_some_and(|digits| needs.contain(digits)) {
            return kept("somebody has come to need it");
        }
        if object.kind == StoredKind::Archive {
            match claim {
                None => return kept("somebody counts on it"),
                Some(claim) if !claim.holds() => return kept("there was no time left for it; try again"),
                Some(_) => {}
            }
        }
        let store = &self.shelf.store;
        let deleting = async {
            match object.kind {
                StoredKind::UnfinishedUpload => store.delete_leftover(&object.key).await,
                StoredKind::Archive | StoredKind::BuildLog => store.delete(&object.key).await,
            }
        };
        match timeout(DELETE, deleting).await {
            Ok(Ok(())) => PruneOutcome::Deleted,
            Ok(Err(error)) => PruneOutcome::Kept(error.to_string()),
            Err(_) => kept("the object store did not answer in time"),
        }
    }
}

fn answer(mut found: Vec<PrunedObject>) -> Pruned {
    let (count, bytes) = (found.len(), found.iter().map(|object| object.size).sum());
    found.truncate(MOST_PRUNED);
    Pruned { more: (count - found.len()) as u64, objects: found, bytes }
}

/// An object that is old enough, and that is what it seems: nothing is deleted that kaai has not named.
fn old(kind: StoredKind, object: Object, since_ms: u64) -> Option<PrunedObject> {
    let why = match kind {
        StoredKind::Archive => "no service, no model and no deployment needs it",
        StoredKind::BuildLog => "the log of a build whose environment no service runs in",
        StoredKind::UnfinishedUpload => "an upload that was killed left it",
    };
    let Object { key, size, written_ms } = object;
    let object = PrunedObject { kind, key, size, written_ms, why: why.to_owned(), outcome: PruneOutcome::Deletable };
    let ours = kind == StoredKind::UnfinishedUpload || digits(&object).is_some();
    (ours && object.written_ms < since_ms).then_some(object)
}

/// The 64 digits that name an archive or an environment.
fn digits(object: &PrunedObject) -> Option<&str> {
    let name = match object.kind {
        StoredKind::Archive => object.key.strip_prefix(ARCHIVES)?.strip_prefix('/')?.strip_suffix(".zip")?,
        StoredKind::BuildLog => object.key.strip_prefix(BUILD_LOGS)?.strip_prefix('/')?.strip_suffix(".log")?,
        StoredKind::UnfinishedUpload => return None,
    };
    let digits: BTreeSet<char> = name.chars().collect();
    (name.len() == 64 && digits.iter().all(|c| matches!(c, '0'..='9' | 'a'..='f'))).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: StoredKind, key: &str, written_ms: u64) -> Option<PrunedObject> {
        old(kind, Object { key: key.to_owned(), size: 7, written_ms }, 1000)
    }

    #[test]
    fn only_what_is_old_and_named_by_kaai_may_go() {
        let name = "ab".repeat(32);
        let (archive, log) = (format!("archives/{name}.zip"), format!("logs/builds/{name}.log"));
        assert_eq!(digits(&object(StoredKind::Archive, &archive, 999).unwrap()), Some(name.as_str()));
        assert!(object(StoredKind::Archive, &archive, 1000).is_none(), "it is new");
        assert!(object(StoredKind::BuildLog, &log, 0).is_some());
        for foreign in ["archives/notes.txt", "archives/ab.zip", "logs/builds/today.log", "mine"] {
            assert!(object(StoredKind::Archive, foreign, 0).is_none(), "{foreign}");
            assert!(object(StoredKind::BuildLog, foreign, 0).is_none(), "{foreign}");
        }
        assert!(object(StoredKind::UnfinishedUpload, "archives/x.zip#1", 0).is_some());
    }

    #[test]
    fn an_answer_names_as_many_as_it_may_and_counts_all() {
        let name = |n: usize| format!("archives/{n:064x}.zip");
        let found: Vec<_> = (0..MOST_PRUNED + 3).filter_map(|n| object(StoredKind::Archive, &name(n), 0)).collect();
        let answer = answer(found);
        assert_eq!((answer.objects.len(), answer.more, answer.bytes), (MOST_PRUNED, 3, 7 * (MOST_PRUNED as u64 + 3)));
        assert!(serde_json::to_vec(&answer).unwrap().len() < 200_000, "it fits into a message");
    }
}
