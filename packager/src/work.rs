//! The packager's own temporary folder, and the removal of those that killed packagers left behind.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use tempfile::TempDir;

const PREFIX: &str = "kaai-packager-";
/// Locked as long as the folder's packager lives: the system gives the lock back when a process ends, however it ends.
const LOCK: &str = "lock";

/// A folder that is gone when the packager has ended, or at the latest when another one starts.
#[derive(Debug)]
pub(crate) struct Work {
    folder: TempDir,
    _lock: File,
}

impl Work {
    /// Makes a folder in `parent`, and removes those of packagers that no longer live.
    ///
    /// # Errors
    ///
    /// Fails when `parent` cannot be written.
    pub(crate) fn open(parent: &Path) -> io::Result<Self> {
        fs::create_dir_all(parent)?;
        sweep(parent)?;
        loop {
            let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
            let lock = File::create_new(folder.path().join(LOCK))?;
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { folder, _lock: lock }),
                // Another one that starts just now took the lock before it was held, and removes the folder.
                Err(Errno::WOULDBLOCK) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Whether a folder of this name is one that [`Work::open`] makes.
pub(crate) fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX)
}

fn sweep(parent: &Path) -> io::Result<()> {
    let owner = rustix::process::geteuid().as_raw();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let ours = is_ours(&entry.file_name().to_string_lossy());
        // Others may write into a system's temporary folder: only a real folder of our own is touched.
        if !ours || !entry.metadata().is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == owner) {
            continue;
        }
        // One without a lock is being made just now.
        let Ok(lock) = File::open(entry.path().join(LOCK)) else { continue };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            tracing::warn!(folder = %entry.path().display(), %error, "what a killed packager left stays");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_packager_left_goes_and_what_a_living_one_has_stays() {
        let parent = TempDir::new().unwrap();
        let living = Work::open(parent.path()).unwrap();
        let left = parent.path().join(format!("{PREFIX}left"));
        fs::create_dir(&left).unwrap();
        fs::write(left.join(LOCK), "").unwrap();
        fs::write(left.join("archive.zip"), "half").unwrap();
        let other = parent.path().join("other");
        fs::create_dir(&other).unwrap();

        let second = Work::open(parent.path()).unwrap();
        assert!(!left.exists());
        assert!(living.path().exists() && other.exists() && second.path() != living.path());
        let path = living.path().to_owned();
        drop(living);
        assert!(!path.exists());
    }
}
