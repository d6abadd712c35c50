//! The folders of a place: taken by one deployer at a time, and checked.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use runtime::{shutdown::Tasks, store::Store};
use rustix::fs::FlockOperation;
use sha2::Digest as _;

use super::{Error, Settings, archives::Archives, kept::Layout};

/// The longest path of a folder for sockets: with what comes behind it, it must fit into the 108 bytes of a socket's address.
const LONGEST: usize = 80;
/// What the place was before it was written down.
const FIRST: &str = "process";

/// The folders of a place.
pub(crate) struct Ground {
    /// Tells what is this place's from what is another's on the same machine.
    pub(crate) identity: String,
    pub(crate) state: PathBuf,
    pub(super) sockets: PathBuf,
    pub(super) layout: Layout,
    /// Held for as long as the place is used.
    _lock: File,
}

impl Ground {
    /// Takes the state folder of a place of this kind, and makes all other folders.
    pub(crate) fn take(settings: &Settings, kind: &'static str, layout: Layout) -> Result<Self, Error> {
        make(&settings.state)?;
        let failed = |source| Error::Folder { path: settings.state.clone(), source };
        let state = settings.state.canonicalize().map_err(failed)?;
        // The lock goes with the process, however it ends.
        let lock = File::create(state.join("lock")).map_err(failed)?;
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Error::Taken(state));
        }
        let identity = if kind == FIRST { identity(&state) } else { remembered(&state).map_err(failed)? };
        let sockets = match &settings.sockets {
            Some(sockets) => sockets.clone(),
            None if state.as_os_str().len() + 2 <= LONGEST => state.join("s"),
            None => std::env::temp_dir().join(format!("kaai-{}-{identity}", rustix::process::geteuid().as_raw())),
        };
        check_sockets(&sockets, layout.mode)?;
        for folder in ["replicas", "archives", "logs"] {
            make(&state.join(folder))?;
        }
        if layout.mode != 0o700 {
            for folder in [&state, &state.join("replicas")] {
                fs::set_permissions(folder, fs::Permissions::from_mode(layout.mode)).map_err(failed)?;
            }
        }
        check_kind(&state, kind)?;
        Ok(Self { identity, state, sockets, layout, _lock: lock })
    }

    /// The cache of archives in it.
    pub(crate) fn archives(&self, settings: &Settings, store: Store, tasks: &Tasks) -> Archives {
        Archives::new(self.state.join("archives"), settings.cache, store, tasks.clone())
    }

    pub(super) fn replicas(&self) -> PathBuf {
        self.state.join("replicas")
    }
}

/// Refuses a folder with replicas of another kind of place: nobody would end them.
fn check_kind(state: &Path, kind: &'static str) -> Result<(), Error> {
    let failed = |source| Error::Folder { path: state.to_owned(), source };
    let path = state.join("place");
    let before = fs::read_to_string(&path).unwrap_or_else(|_| FIRST.to_owned());
    let replicas = fs::read_dir(state.join("replicas")).map_err(failed)?.next().is_some();
    if replicas && before.trim() != kind {
        return Err(Error::Another { path: state.to_owned(), kind: before.trim().to_owned() });
    }
    fs::write(path, kind).map_err(failed)
}

/// Tells the things of one state folder from those of another.
fn identity(state: &Path) -> String {
    let digest = sha2::Sha256::digest(state.as_os_str().as_encoded_bytes());
    digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// An identity that no other state folder has, wherever it is: deployers in containers of their own see equal paths, and one Docker engine.
fn remembered(state: &Path) -> io::Result<String> {
    let path = state.join("identity");
    if let Ok(identity) = fs::read_to_string(&path)
        && !identity.is_empty()
    {
        return Ok(identity);
    }
    let identity = uuid::Uuid::new_v4().simple().to_string()[..12].to_owned();
    let mut file = tempfile::NamedTempFile::new_in(state)?;
    io::Write::write_all(&mut file, identity.as_bytes())?;
    file.persist(path)?;
    Ok(identity)
}

fn make(path: &Path) -> Result<(), Error> {
    let mut private = fs::DirBuilder::new();
    private.recursive(true).mode(0o700);
    private.create(path).map_err(|source| Error::Folder { path: path.to_owned(), source })
}

/// Makes the folder for sockets; it must be ours alone, since whoever may change it may send requests elsewhere.
fn check_sockets(path: &Path, mode: u32) -> Result<(), Error> {
    let wrong = |why| Error::Sockets { path: path.to_owned(), why };
    if path.as_os_str().len() > LONGEST {
        return Err(wrong("has a path of more than 80 bytes"));
    }
    make(path)?;
    let failed = |source| Error::Folder { path: path.to_owned(), source };
    let metadata = fs::symlink_metadata(path).map_err(failed)?;
    if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(wrong("belongs to somebody else"));
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_replicas_of_another_kind_of_place_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let settings = Settings::new(home.path().join("state"));
        let take = |kind| Ground::take(&settings, kind, Layout { own: "", mode: 0o700 });
        drop(take("process").unwrap());
        drop(take("docker").expect("without a replica it may change"));
        fs::create_dir(settings.state.join("replicas/r-1")).unwrap();
        let refused = take("process").err().unwrap().to_string();
        assert!(refused.contains("holds replicas of the place docker"), "{refused}");
        take("docker").unwrap();
    }
}
