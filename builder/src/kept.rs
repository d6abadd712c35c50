//! What was made for one environment and is kept for the next: files named by what they were made from.
//!
//! It knows files, their age and their size. It does not know what is in them.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use crate::disk::boot;

/// How many bytes are kept: some thirty environments that have nothing in common.
const MOST: u64 = 4 << 30;
/// How long the folder of another boot is left alone: a machine that shares this place may be at it.
const OTHERS: Duration = Duration::from_secs(24 * 3600);
/// How the name of the folder begins; what follows says by which version it was filled, and in which boot.
const PREFIX: &str = "kept-";
/// Counts the ways of making what is kept: another compressor, another level.
const WAY: u32 = 1;

/// A folder of such files. After a loss of power nobody knows which of them are whole, so that each boot begins another.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    folder: PathBuf,
}

impl Kept {
    /// Opens the folder of this boot, and removes those of others that nobody has opened for a day. Where no boot has a name, what is
    /// made is kept in `making`, for nobody else. Blocks.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be made.
    pub(crate) fn open(parent: &Path, making: &Path) -> io::Result<Self> {
        let boot = boot();
        if boot.is_empty() {
            let folder = making.join("kept");
            fs::create_dir_all(&folder)?;
            return Ok(Self { folder });
        }
        let name = format!("{PREFIX}{}-{WAY}-{boot}", env!("CARGO_PKG_VERSION"));
        let folder = parent.join(&name);
        fs::create_dir_all(&folder)?;
        fs::File::open(&folder)?.set_modified(now())?;
        for entry in fs::read_dir(parent)? {
            let other = entry?;
            let opened = other.metadata().and_then(|found| found.modified());
            let old = opened.is_ok_and(|opened| opened.elapsed().is_ok_and(|age| age > OTHERS));
            if old && other.file_name().to_string_lossy().starts_with(PREFIX) && other.file_name() != *name {
                // Left behind, it costs space until the next making.
                let _ = fs::remove_dir_all(other.path());
            }
        }
        Ok(Self { folder })
    }

    /// The folder, for a program that keeps files there itself.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What is kept under a name, if anything is. Blocks.
    pub(crate) fn read(&self, name: &str) -> Option<Vec<u8>> {
        let file = fs::File::open(self.path(name)).ok()?;
        // What is used stays: the oldest are taken away.
        let _ = file.set_modified(now());
        let mut content = Vec::new();
        io::Read::read_to_end(&mut &file, &mut content).ok()?;
        Some(content)
    }

    /// Keeps something. What cannot be kept is made again. Blocks.
    pub(crate) fn write(&self, name: &str, content: &[u8]) {
        let path = self.path(name);
        let write = || {
            let folder = path.parent().unwrap_or(&self.folder);
            fs::create_dir_all(folder)?;
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            file.write_all(content)?;
            file.persist(&path).map_err(|error| error.error)
        };
        if let Err(error) = write() {
            tracing::debug!(path = %path.display(), %error, "not kept");
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name.get(..2).unwrap_or_default()).join(name)
    }

    /// Removes what was not used for the longest time, where there is too much. Blocks.
    pub(crate) fn trim(&self) {
        if let Err(error) = trim(&self.folder, MOST) {
            tracing::warn!(folder = %self.folder.display(), %error, "cannot be trimmed: it grows until it can");
        }
    }
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(runtime::clock::now_ms())
}

fn trim(folder: &Path, most: u64) -> io::Result<()> {
    let mut all: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
    for part in fs::read_dir(folder)? {
        for file in fs::read_dir(part?.path())? {
            let file = file?;
            // Another builder may trim at the same time.
            let Ok(found) = file.metadata() else { continue };
            all.push((found.modified()?, found.len(), file.path()));
        }
    }
    let mut total: u64 = all.iter().map(|(_, length, _)| length).sum();
    if total <= most {
        return Ok(());
    }
    all.sort();
    for (_, length, path) in all {
        // A part of it goes, so that it is not done for every environment.
        if total <= most / 4 * 3 {
            break;
        }
        // Gone already is gone.
        let _ = fs::remove_file(path);
        total -= length;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_used_for_the_longest_time_goes_first() {
        let parent = tempfile::tempdir().unwrap();
        let kept = Kept::open(parent.path(), parent.path()).unwrap();
        let name = |number: u64| format!("{:02}-{number}", number % 2);
        for number in 0..8 {
            kept.write(&name(number), &[0; 100]);
            let used = SystemTime::UNIX_EPOCH + Duration::from_secs(1000 + (number + 3) % 8);
            fs::File::open(kept.path(&name(number))).unwrap().set_modified(used).unwrap();
        }
        let there = || (0..8).filter(|number| kept.path(&name(*number)).exists()).collect::<Vec<_>>();
        trim(kept.folder(), 800).unwrap();
        assert_eq!(there().len(), 8, "it is not too much");
        assert_eq!(kept.read(&name(5)).unwrap(), [0; 100], "the oldest, and used now");
        trim(kept.folder(), 799).unwrap();
        assert_eq!(there(), [1, 2, 3, 4, 5], "6, 7 and 0 were used first of the others");
    }

    #[test]
    fn what_was_kept_before_a_boot_is_not_trusted() {
        let parent = tempfile::tempdir().unwrap();
        for name in ["kept-of-an-old-boot", "kept-of-another-boot", "bases"] {
            fs::create_dir_all(parent.path().join(name).join("ab")).unwrap();
            fs::write(parent.path().join(name).join("ab/ab1"), b"old").unwrap();
        }
        for name in ["kept-of-an-old-boot", "bases"] {
            fs::File::open(parent.path().join(name)).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        }
        let kept = Kept::open(parent.path(), parent.path()).unwrap();
        kept.write("ab1", b"x");
        assert_eq!(Kept::open(parent.path(), parent.path()).unwrap().read("ab1").unwrap(), b"x");
        assert!(kept.read("ab2").is_none());
        let there = ["kept-of-an-old-boot", "kept-of-another-boot", "bases"];
        assert_eq!(there.map(|name| parent.path().join(name).exists()), [false, true, true]);
    }
}
