//! What is kept of a replica on disk: its folder, and the file by which the next deployer knows it again.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use proto::{
    deployer::StartParts,
    id::{Generation, ReplicaId, ServiceName, Workspace},
    spec::Liveness,
};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use super::table::ProcessId;

/// All that is needed to go on with a replica that another deployer started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Kept {
    pub(super) replica: ReplicaId,
    pub(super) workspace: Workspace,
    pub(super) service: ServiceName,
    pub(super) generation: Generation,
    /// Its main process, once there is one.
    pub(super) process: Option<ProcessId>,
    /// When that was started, by the monotonic clock.
    pub(super) spawned: f64,
    /// Whether it has answered a probe.
    pub(super) ready: bool,
    pub(super) start: StartParts,
    pub(super) liveness: Liveness,
    /// How many seconds a worker may go without a sign of life.
    pub(super) worker_timeout: u64,
    pub(super) workers: u32,
    pub(super) unlimited: Option<String>,
}

/// The folder of one replica, and the short path to it.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    root: PathBuf,
    /// A link to `root`: a socket's path must be short, wherever the state folder is.
    link: PathBuf,
}

impl Folder {
    pub(super) fn new(replicas: &Path, sockets: &Path, replica: &ReplicaId) -> Self {
        Self { root: replicas.join(replica.as_str()), link: sockets.join(short(replica)) }
    }

    /// Makes it, with all that a replica expects to find.
    pub(super) fn create(&self) -> io::Result<()> {
        let mut private = fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        for folder in ["home", "tmp", "run", "azureml-app/azureml-models"] {
            private.create(self.root.join(folder))?;
        }
        match fs::remove_file(&self.link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => std::os::unix::fs::symlink(&self.root, &self.link),
        }
    }

    /// v1's `/var/azureml-app`.
    pub(super) fn app_root(&self) -> PathBuf {
        self.root.join("azureml-app")
    }

    /// The short path to the folder.
    pub(super) fn own(&self) -> &Path {
        &self.link
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.link.join("s")
    }

    pub(super) fn status(&self) -> PathBuf {
        self.root.join("status")
    }

    pub(super) fn launcher(&self) -> PathBuf {
        self.root.join("launch.py")
    }

    /// The file that a worker touches; each of several has its own.
    pub(super) fn heartbeats(&self, workers: u32) -> Vec<PathBuf> {
        match workers {
            1 => vec![self.heartbeat()],
            _ => (0..workers).map(|number| self.root.join(format!("heartbeat.{number}"))).collect(),
        }
    }

    pub(super) fn heartbeat(&self) -> PathBuf {
        self.root.join("heartbeat")
    }

    /// Keeps what is known of the replica, all or nothing.
    pub(super) fn keep(&self, kept: &Kept) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.root)?;
        file.write_all(&serde_json::to_vec_pretty(kept)?)?;
        file.persist(self.state())?;
        Ok(())
    }

    /// What was kept; `None` when the start was cut short before anything was.
    pub(super) fn recall(&self) -> Option<Kept> {
        serde_json::from_slice(&fs::read(self.state()).ok()?).ok()
    }

    fn state(&self) -> PathBuf {
        self.root.join("replica.json")
    }

    /// Takes it away with all that is in it. Blocks.
    pub(super) fn remove(&self) -> io::Result<()> {
        for path in [&self.link, &self.state()] {
            absent(fs::remove_file(path))?;
        }
        if absent(fs::remove_dir_all(&self.root)).is_ok() {
            return Ok(());
        }
        // A script may have taken the right to write from its own folders.
        open_up(&self.root);
        absent(fs::remove_dir_all(&self.root))
    }
}

/// A name of twelve letters and digits in place of a long one.
fn short(replica: &ReplicaId) -> String {
    let digest = sha2::Sha256::digest(replica.as_str().as_bytes());
    digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

fn absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Gives the owner all rights on a folder and the folders in it.
fn open_up(folder: &Path) {
    // What cannot be changed shows when it is removed.
    let _ = fs::set_permissions(folder, fs::Permissions::from_mode(0o700));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_kept_recalled_and_removed() {
        let home = tempfile::tempdir().unwrap();
        let (replicas, sockets) = (home.path().join("replicas"), home.path().join("s"));
        fs::create_dir(&sockets).unwrap();
        let replica: ReplicaId = "ridge-7-abcdefgh".parse().unwrap();
        let folder = Folder::new(&replicas, &sockets, &replica);
        folder.create().unwrap();
        folder.create().expect("again is fine");
        assert_eq!(folder.recall(), None);
        let kept = Kept {
            replica,
            workspace: Workspace::default(),
            service: "ridge".parse().unwrap(),
            generation: Generation(7),
            process: None,
            spawned: 1.5,
            ready: false,
            start: StartParts::default(),
            liveness: Liveness::default(),
            worker_timeout: 300,
            workers: 1,
            unlimited: None,
        };
        folder.keep(&kept).unwrap();
        assert_eq!(folder.recall(), Some(kept));
        let locked = folder.app_root().join("locked");
        fs::create_dir(&locked).unwrap();
        fs::write(locked.join("file"), "x").unwrap();
        fs::set_permissions(&locked, fs::Permissions::from_mode(0o500)).unwrap();
        folder.remove().unwrap();
        assert!(fs::read_dir(&replicas).unwrap().next().is_none() && fs::read_dir(&sockets).unwrap().next().is_none());
        folder.remove().expect("again is fine");
    }
}
