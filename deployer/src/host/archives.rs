//! Archives of projects and models on this machine: fetched once, unpacked for each replica.
//!
//! A replica that may write gets its own copy of the files, so that nothing it does to them reaches another replica or the cache. What
//! replicas only read is unpacked once for all of them, and stays as long as one of them holds it.

mod shared;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use proto::{
    failure::{Failure, Stage},
    id::{Digest, ReplicaId},
};
use runtime::{archive, backoff::Backoff, shutdown::Tasks, store};
use sha2::Digest as _;
use tokio_util::sync::CancellationToken;

use self::shared::SIZE;
use super::kept::absent;

/// How often a store that fails is tried again.
const ATTEMPTS: u32 = 4;
/// An archive that was used within this time is not deleted from the cache.
const IN_USE: Duration = Duration::from_secs(600);
/// The cache of fetched archives.
#[derive(Clone)]
pub(crate) struct Archives {
    folder: PathBuf,
    /// How many bytes are kept at most.
    most: u64,
    store: store::Store,
    tasks: Tasks,
    fetching: Turns,
    unpacking: Turns,
    held: Arc<Mutex<BTreeMap<ReplicaId, BTreeSet<Digest>>>>,
}

/// Lets one at a time do what many want.
#[derive(Clone, Default)]
struct Turns(Arc<Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>>);

impl Turns {
    async fn take(&self, digest: &Digest) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            turns.entry(digest.clone()).or_default().clone()
        };
        turn.lock_owned().await
    }
}

impl Archives {
    pub(super) fn new(folder: PathBuf, most: u64, store: store::Store, tasks: Tasks) -> Self {
        Self {
            folder,
            most,
            store,
            tasks,
            fetching: Turns::default(),
            unpacking: Turns::default(),
            held: Arc::default(),
        }
    }

    /// Unpacks an archive into a folder, which is made; ends soon once it is given up.
    ///
    /// # Errors
    ///
    /// Fails in words for the user, and when it is given up.
    pub(crate) async fn unpack(
        &self,
        digest: &Digest,
        into: &Path,
        what: &str,
        given_up: &CancellationToken,
    ) -> Result<(), Failure> {
        let zip = tokio::select! {
            fetched = self.fetch(digest, what) => fetched?,
            () = given_up.cancelled() => return Err(unpacking(what, &archive::Error::GivenUp)),
        };
        let (into, name, given_up) = (into.to_owned(), what.to_owned(), given_up.clone());
        let unpacking = self.tasks.spawn_blocking(move || {
            fs::create_dir_all(&into).map_err(|error| disk(&into, &error))?;
            archive::unpack_unless(&given_up, &zip, &into, archive::Limits::default())
                .map_err(|error| unpacking(&name, &error))
        });
        unpacking.await.map_err(|error| defect(&error))?.map(drop)
    }

    /// The path of an archive in the cache, fetched if it is not there. Those who want the same one wait for each other.
    async fn fetch(&self, digest: &Digest, what: &str) -> Result<PathBuf, Failure> {
        let _turn = self.fetching.take(digest).await;
        let path = self.folder.join(format!("{}.zip", digest.hex()));
        if touch(&path).is_ok() {
            return Ok(path);
        }
        let partial = self.folder.join(format!("{}.partial", digest.hex()));
        self.get(digest, &partial, what).await?;
        let (cache, wanted, from, to) = (self.clone(), digest.clone(), partial, path.clone());
        let keeping = self.tasks.spawn_blocking(move || {
            let found = sha256(&from).map_err(|error| disk(&from, &error))?;
            if found != wanted {
                return Err(damaged(&wanted));
            }
            fs::rename(&from, &to).map_err(|error| disk(&to, &error))?;
            cache.prune();
            Ok(())
        });
        keeping.await.map_err(|error| defect(&error))??;
        Ok(path)
    }

    async fn get(&self, digest: &Digest, into: &Path, what: &str) -> Result<(), Failure> {
        let key = store::archive_key(digest);
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        let mut attempt = 1;
        loop {
            let error = match self.store.fetch(&key, into).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if attempt == ATTEMPTS || !matches!(error, store::Error::Store { .. }) {
                return Err(fetching(what, &error));
            }
            tracing::warn!(%error, attempt, "trying again");
            attempt += 1;
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    /// Deletes what was used longest ago until the rest is within the limit. What a replica holds is never deleted.
    fn prune(&self) {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut all: Vec<_> = entries.filter_map(|entry| Kept::of(entry.path())).collect();
        all.sort();
        let mut total: u64 = all.iter().map(|kept| kept.size).sum();
        for Kept { used, size, path } in all {
            let in_use = used.elapsed().is_ok_and(|age| age < IN_USE);
            if total <= self.most || in_use {
                return;
            }
            // One that cannot be deleted is counted again the next time.
            if self.take_away(&path).is_some_and(|taken| remove(&taken).is_ok()) {
                total -= size;
            }
        }
    }
}

/// Something in the cache; ordered by its last use.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Kept {
    used: SystemTime,
    size: u64,
    path: PathBuf,
}

impl Kept {
    fn of(path: PathBuf) -> Option<Self> {
        let note = path.join(SIZE);
        let size = fs::read_to_string(&note).ok().and_then(|text| text.parse().ok());
        let metadata = fs::metadata(if size.is_some() { &note } else { &path }).ok()?;
        Some(Self { used: metadata.modified().ok()?, size: size.unwrap_or(metadata.len()), path })
    }
}

fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// Marks a file as used now.
fn touch(path: &Path) -> io::Result<()> {
    let now = SystemTime::UNIX_EPOCH + Duration::from_millis(runtime::clock::now_ms());
    fs::File::options().write(true).open(path)?.set_modified(now)
}

fn sha256(path: &Path) -> io::Result<Digest> {
    let mut hasher = sha2::Sha256::new();
    let mut file = fs::File::open(path)?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        match io::Read::read(&mut file, &mut buffer)? {
            0 => return Ok(Digest::from_sha256(hasher.finalize().into())),
            length => hasher.update(&buffer[..length]),
        }
    }
}

fn fetching(what: &str, error: &store::Error) -> Failure {
    let remedy = match error {
        store::Error::NotFound { .. } => "deploy again, which stores it anew",
        store::Error::Full { .. } => "free some space, then deploy again",
        _ => "look at the object store, then deploy again",
    };
    Failure::platform(Stage::Starting, format!("{what} cannot be fetched: {error}"), remedy)
}

fn unpacking(what: &str, error: &archive::Error) -> Failure {
    let cause = format!("{what} cannot be unpacked: {error}");
    match error {
        archive::Error::Hostile { .. } | archive::Error::TooLarge { .. } => {
            Failure::project(Stage::Starting, cause, "package it with kaai, which makes no such archive")
        }
        archive::Error::Full(_) => Failure::platform(Stage::Starting, cause, "free some space, then deploy again"),
        _ => Failure::platform(Stage::Starting, cause, "deploy again, which stores it anew"),
    }
}

fn damaged(digest: &Digest) -> Failure {
    let cause = format!("the object store holds something else under {}", digest.short());
    Failure::platform(Stage::Starting, cause, "deploy again, which stores it anew")
}

/// A file of this machine could not be written.
pub(crate) fn disk(path: &Path, error: &io::Error) -> Failure {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let cause = if full {
        format!("no space is left for {}", path.display())
    } else {
        format!("cannot write {}: {error}", path.display())
    };
    let remedy = if full { "free some space, then deploy again" } else { "mend that, then deploy again" };
    Failure::platform(Stage::Starting, cause, remedy)
}

fn defect(error: &tokio::task::JoinError) -> Failure {
    Failure::platform(
        Stage::Starting,
        format!("unpacking failed: {error}"),
        "this is a defect of kaai; please report it",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn archives(folder: &Path, most: u64) -> Archives {
        let store = store::Store::open(folder.join("store").as_path()).unwrap();
        fs::create_dir(folder.join("cache")).unwrap();
        Archives::new(folder.join("cache"), most, store, Tasks::default())
    }

    pub(super) fn digest(bytes: &[u8]) -> Digest {
        Digest::from_sha256(sha2::Sha256::digest(bytes).into())
    }

    /// A zip with nothing in it.
    const EMPTY: &[u8] = b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

    #[tokio::test]
    async fn an_archive_is_fetched_once_for_all_who_want_it() {
        let folder = tempfile::tempdir().unwrap();
        let archives = archives(folder.path(), 1 << 30);
        let digest = digest(EMPTY);
        archives.store.put_bytes(&store::archive_key(&digest), EMPTY).await.unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b/c"));
        let never = CancellationToken::new();
        let (a, b) = tokio::join!(
            archives.unpack(&digest, &a, "the project", &never),
            archives.unpack(&digest, &b, "the project", &never)
        );
        a.unwrap();
        b.unwrap();
        archives.store.delete(&store::archive_key(&digest)).await.unwrap();
        archives
            .unpack(&digest, &folder.path().join("d"), "the project", &CancellationToken::new())
            .await
            .expect("it is in the cache");
    }

    #[tokio::test]
    async fn an_archive_that_is_missing_or_another_is_said_so() {
        let folder = tempfile::tempdir().unwrap();
        let archives = archives(folder.path(), 1 << 30);
        let wanted = digest(EMPTY);
        let failure =
            archives.unpack(&wanted, folder.path(), "model scale:2", &CancellationToken::new()).await.unwrap_err();
        assert!(failure.cause.starts_with("model scale:2 cannot be fetched: the object store has no"), "{failure}");
        archives.store.put_bytes(&store::archive_key(&wanted), "something else").await.unwrap();
        let failure =
            archives.unpack(&wanted, folder.path(), "model scale:2", &CancellationToken::new()).await.unwrap_err();
        assert!(failure.cause.starts_with("the object store holds something else under"), "{failure}");
    }

    #[tokio::test]
    async fn who_gives_up_does_not_wait_for_a_fetch() {
        let folder = tempfile::tempdir().unwrap();
        let archives = archives(folder.path(), 1 << 30);
        let wanted = digest(EMPTY);
        // Somebody fetches it, and does not come to an end.
        let _turn = archives.fetching.take(&wanted).await;
        let given_up = CancellationToken::new();
        given_up.cancel();
        let failure = archives.unpack(&wanted, folder.path(), "the project", &given_up).await.unwrap_err();
        assert!(failure.cause.contains("given up"), "{failure}");
    }

    #[tokio::test]
    async fn the_cache_keeps_what_was_used_last() {
        let folder = tempfile::tempdir().unwrap();
        let archives = archives(folder.path(), 10);
        for (name, hour) in [("old", 1), ("older", 0), ("new", 2)] {
            let file = fs::File::create(folder.path().join("cache").join(name)).unwrap();
            file.set_len(5).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(3600 * hour)).unwrap();
        }
        archives.prune();
        let mut left: Vec<_> =
            fs::read_dir(&archives.folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["new", "old"]);
    }
}
