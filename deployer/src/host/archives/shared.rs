//! Archives that many replicas read and none may change: unpacked once, and kept as long as a replica holds them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{MutexGuard, PoisonError},
};

use proto::{
    failure::Failure,
    id::{Digest, ReplicaId},
};
use runtime::archive;
use tokio_util::sync::CancellationToken;

use super::{Archives, absent, defect, disk, remove, touch, unpacking};

/// How the name of an archive's folder that replicas share ends.
const SHARED: &str = ".shared";
/// The archive's files, in that folder.
const FILES: &str = "files";
/// The file beside them that says how large they are, and by its time when they were used last.
pub(super) const SIZE: &str = "size";

impl Archives {
    /// Keeps these archives unpacked as long as the replica is there, until [`Archives::release`].
    pub(crate) fn hold(&self, replica: &ReplicaId, digests: impl IntoIterator<Item = Digest>) {
        self.held().entry(replica.clone()).or_default().extend(digests);
    }

    /// A replica is gone.
    pub(crate) fn release(&self, replica: &ReplicaId) {
        self.held().remove(replica);
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<ReplicaId, BTreeSet<Digest>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The folder of an archive that all replicas share and only read, unpacked if it is not there. Who wants it holds it first.
    ///
    /// # Errors
    ///
    /// Fails in words for the user, and when it is given up.
    pub(crate) async fn unpacked(
        &self,
        digest: &Digest,
        what: &str,
        given_up: &CancellationToken,
    ) -> Result<PathBuf, Failure> {
        let _turn = tokio::select! {
            turn = self.unpacking.take(digest) => turn,
            () = given_up.cancelled() => return Err(unpacking(what, &archive::Error::GivenUp)),
        };
        let whole = self.folder.join(format!("{}{SHARED}", digest.hex()));
        if touch(&whole.join(SIZE)).is_ok() {
            return Ok(whole.join(FILES));
        }
        let partial = self.folder.join(format!("{}{SHARED}.partial", digest.hex()));
        let left = partial.clone();
        // What cannot be removed shows when the files are written.
        let _ = self.tasks.spawn_blocking(move || remove(&left)).await;
        self.unpack(digest, &partial.join(FILES), what, given_up).await?;
        let (cache, from, to) = (self.clone(), partial, whole.clone());
        let sharing = self.tasks.spawn_blocking(move || {
            let share = || {
                let size = open_to_all(&from.join(FILES))?;
                fs::write(from.join(SIZE), size.to_string())?;
                // One without a size was on its way out.
                absent(remove(&to))?;
                fs::rename(&from, &to)
            };
            share().map_err(|error| disk(&to, &error))?;
            cache.prune();
            Ok(())
        });
        sharing.await.map_err(|error| defect(&error))??;
        Ok(whole.join(FILES))
    }

    /// Takes a path out of everybody's sight, so that it can be deleted; `None` for one that is held.
    pub(super) fn take_away(&self, path: &Path) -> Option<PathBuf> {
        let name = path.file_name()?.to_str()?;
        let Some(hex) = name.strip_suffix(SHARED) else { return Some(path.to_owned()) };
        // Whoever holds it from now on finds it gone.
        let held = self.held();
        if held.values().flatten().any(|digest| digest.hex() == hex) {
            return None;
        }
        let taken = path.with_extension("gone");
        absent(remove(&taken)).ok()?;
        fs::rename(path, &taken).ok()?;
        Some(taken)
    }
}

/// Lets every user read a folder and what is in it; returns the size of its files in bytes.
fn open_to_all(folder: &Path) -> io::Result<u64> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    let mut size = 0;
    for entry in fs::read_dir(folder)? {
        let (path, metadata) = {
            let entry = entry?;
            (entry.path(), entry.metadata()?)
        };
        if metadata.is_dir() {
            size += open_to_all(&path)?;
        } else {
            size += metadata.len();
            fs::set_permissions(&path, fs::Permissions::from_mode(metadata.permissions().mode() | 0o444))?;
        }
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use runtime::store;

    use super::{
        super::tests::{archives, digest},
        *,
    };

    /// A zip with the one file `a`, which holds five bytes.
    fn five() -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
        zip.start_file("a", zip::write::SimpleFileOptions::default()).unwrap();
        io::Write::write_all(&mut zip, b"12345").unwrap();
        zip.finish().unwrap().into_inner()
    }

    #[tokio::test]
    async fn what_is_shared_is_unpacked_once_and_kept_as_long_as_a_replica_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let archives = archives(folder.path(), 0);
        let (bytes, never) = (five(), CancellationToken::new());
        let digest = digest(&bytes);
        archives.store.put_bytes(&store::archive_key(&digest), bytes).await.unwrap();
        let replica: ReplicaId = "r-1".parse().unwrap();
        archives.hold(&replica, [digest.clone()]);
        let (a, b) =
            tokio::join!(archives.unpacked(&digest, "a model", &never), archives.unpacked(&digest, "a model", &never));
        let files = a.unwrap();
        assert_eq!(files, b.unwrap());
        assert_eq!(fs::read_to_string(files.join("a")).unwrap(), "12345");
        let size = files.with_file_name(SIZE);
        assert_eq!(fs::read_to_string(&size).unwrap(), "5");
        let long_ago = || {
            let file = fs::File::options().write(true).open(&size).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        };
        long_ago();
        archives.prune();
        assert!(files.exists(), "a replica holds it");
        archives.release(&replica);
        archives.prune();
        assert!(!files.exists() && !files.parent().unwrap().exists(), "nobody holds it");
        archives.unpacked(&digest, "a model", &never).await.expect("it can be had again");
    }
}
