//! A file system on which there is hardly any space, to see what is said when there is none.

use std::{path::Path, process::Command};

use tempfile::TempDir;

/// A file system of 512 KiB, which is taken away at the end, however the test ends.
pub struct SmallDisk(TempDir);

impl SmallDisk {
    /// Mounts one, unless the test has to be left out.
    pub fn mount(test: &str) -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=512k", "tmpfs"]).arg(folder.path()).output();
        if mount.is_ok_and(|mount| mount.status.success()) {
            return Some(Self(folder));
        }
        runtime::testing::skip(test, "a small file system cannot be mounted here");
        None
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}
