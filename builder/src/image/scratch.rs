//! The folder in which an environment is filled before it is packed.

use std::{path::Path, time::Duration};

use proto::failure::Failure;

use crate::disk::disk;

/// How the folder of one making begins.
const MAKING: &str = "making-";

/// Makes a folder for one making, which goes with its handle. What builders left that were killed goes first. Blocks.
pub(super) fn scratch(parent: &Path, deadline: Duration) -> Result<tempfile::TempDir, Failure> {
    let make = || {
        std::fs::create_dir_all(parent)?;
        sweep(parent, deadline)?;
        tempfile::Builder::new().prefix(MAKING).tempdir_in(parent)
    };
    make().map_err(|error| disk(parent, &error))
}

/// Removes folders that are older than a making can be. Another builder may be at a younger one.
fn sweep(parent: &Path, deadline: Duration) -> std::io::Result<()> {
    for entry in std::fs::read_dir(parent)? {
        let entry = entry?;
        let old = entry.metadata().and_then(|found| found.modified()).is_ok_and(|made| {
            // A clock that was set back makes it young, and it goes another time.
            made.elapsed().is_ok_and(|age| age > 2 * deadline)
        });
        if old && entry.file_name().to_string_lossy().starts_with(MAKING) {
            // Left behind, it costs space until the next making.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_killed_builders_left_is_removed_and_what_others_make_is_not() {
        let parent = tempfile::tempdir().unwrap();
        let names = ["making-old", "making-new", "bases"];
        for name in names {
            std::fs::create_dir(parent.path().join(name)).unwrap();
        }
        let long_ago = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        for name in ["making-old", "bases"] {
            std::fs::File::open(parent.path().join(name)).unwrap().set_modified(long_ago).unwrap();
        }
        let own = scratch(parent.path(), Duration::from_secs(60)).unwrap();
        let there = names.map(|name| parent.path().join(name).exists());
        assert_eq!((there, own.path().exists()), ([false, true, true], true));
    }
}
