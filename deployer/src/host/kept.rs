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

use super::variables::MODELS;

/// All that is needed to go on with a replica that another deployer started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kept {
    pub(crate) replica: ReplicaId,
    pub(super) workspace: Workspace,
    pub(super) service: ServiceName,
    pub(super) generation: Generation,
    /// By what its engine knows its program, once there is one.
    #[serde(rename = "process")]
    pub(crate) handle: Option<serde_json::Value>,
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

/// The folder of one replica, and the short path to the part of it that is the replica's own.
#[derive(Debug, Clone)]
pub struct Folder {
    root: PathBuf,
    /// A link to the replica's own part: a socket's path must be short, wherever the state folder is.
    link: PathBuf,
    layout: Layout,
}

/// How the folders of replicas are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The part of a replica's folder in which it may write; empty for all of it.
    pub(crate) own: &'static str,
    /// Who may go through the folders on the way to a socket, as a file's mode.
    pub(crate) mode: u32,
}

impl Folder {
    pub(super) fn new(replicas: &Path, sockets: &Path, layout: Layout, replica: &ReplicaId) -> Self {
        Self { root: replicas.join(replica.as_str()), link: sockets.join(short(replica)), layout }
    }

    /// Makes it, with all that a replica expects to find.
    pub(super) fn create(&self) -> io::Result<()> {
        let mut private = fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        let own = self.own();
        private.create(&self.root)?;
        fs::set_permissions(&self.root, fs::Permissions::from_mode(self.layout.mode))?;
        for folder in [self.program(), own.join("home"), own.join("tmp"), own.join("run"), self.app_root().join(MODELS)]
        {
            private.create(folder)?;
        }
        match fs::remove_file(&self.link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => std::os::unix::fs::symlink(&own, &self.link),
        }
    }

    /// The whole of it.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// v1's `/var/azureml-app`.
    pub(crate) fn app_root(&self) -> PathBuf {
        self.root.join("azureml-app")
    }

    /// The part in which the replica may write.
    pub(crate) fn own(&self) -> PathBuf {
        self.root.join(self.layout.own)
    }

    /// The short path to that part.
    pub(crate) fn link(&self) -> &Path {
        &self.link
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.link.join("s")
    }

    pub(super) fn status(&self) -> PathBuf {
        self.own().join("status")
    }

    /// The folder of what the replica is run by; it need not write there.
    pub(crate) fn program(&self) -> PathBuf {
        self.root.join("program")
    }

    pub(crate) fn launcher(&self) -> PathBuf {
        self.program().join("launch.py")
    }

    /// The file that a worker touches; each of several has its own.
    pub(super) fn heartbeats(&self, workers: u32) -> Vec<PathBuf> {
        match workers {
            1 => vec![self.heartbeat()],
            _ => (0..workers).map(|number| self.own().join(format!("heartbeat.{number}"))).collect(),
        }
    }

    pub(super) fn heartbeat(&self) -> PathBuf {
        self.own().join("heartbeat")
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

/// Being gone already is fine.
pub(super) fn absent(result: io::Result<()>) -> io::Result<()> {
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
        let folder = Folder::new(&replicas, &sockets, Layout { own: "", mode: 0o700 }, &replica);
        folder.create().unwrap();
        folder.create().expect("again is fine");
        assert_eq!(folder.recall(), None);
        let kept = Kept {
            replica,
            workspace: Workspace::default(),
            service: "ridge".parse().unwrap(),
            generation: Generation(7),
            handle: None,
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
