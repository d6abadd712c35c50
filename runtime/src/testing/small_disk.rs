//! A file system on which there is hardly any space, to see what is said when there is none.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// A small file system, which is taken away at the end, however the test ends.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one of so many KiB at a folder, which is made if it is missing; `None` where that is not allowed, and the test is left out.
    ///
    /// # Panics
    ///
    /// When the folder cannot be made.
    pub fn mount(test: &str, folder: PathBuf, kib: u32) -> Option<Self> {
        std::fs::create_dir_all(&folder).expect("a folder to mount at can be made");
        let size = format!("size={kib}k");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&folder).output();
        if mount.is_ok_and(|mount| mount.status.success()) {
            return Some(Self(folder));
        }
        super::skip(test, "a small file system cannot be mounted here");
        None
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A lazy one: who was tested may still have files open there. Not unmounted, it goes with the machine.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
