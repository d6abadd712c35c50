//! The folder in which a kaai on this machine keeps its things, and the contexts by which others are reached.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use proto::cli::Context;
use serde::{Deserialize, Serialize};

use crate::ending::{Ending, Result};

/// The state folder of a kaai on this machine.
#[derive(Debug, Clone)]
pub struct Home(PathBuf);

impl Home {
    /// The given folder, else the default one.
    ///
    /// # Errors
    ///
    /// Fails when neither is given nor `HOME` is set.
    pub fn locate(given: Option<&Path>) -> Result<Self> {
        let folder = match given {
            Some(given) => {
                std::path::absolute(given).map_err(|error| Ending::mend(error.to_string(), "give another --home"))?
            }
            None => base("XDG_DATA_HOME", ".local/share")?.join("kaai"),
        };
        Ok(Self(folder))
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file or folder in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Makes the folder, readable by its owner alone, and holds it for this process until the lock is dropped.
    ///
    /// # Errors
    ///
    /// Fails when another kaai holds it, or it cannot be written.
    pub fn lock(&self) -> Result<File> {
        let cannot = |error: &io::Error| {
            Ending::platform(
                format!("the state folder {} cannot be used: {error}", self.0.display()),
                "choose another with --home, or set KAAI_HOME",
            )
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0).map_err(|error| cannot(&error))?;
        // A folder that was there before may be open to others, and what lies in it must not be.
        fs::set_permissions(&self.0, fs::Permissions::from_mode(0o700)).map_err(|error| cannot(&error))?;
        let path = self.join("lock");
        let mut lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| cannot(&error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let owner = fs::read_to_string(&path).unwrap_or_default();
                let by = if owner.trim().is_empty() { String::new() } else { format!(" (process {})", owner.trim()) };
                return Err(Ending::mend(
                    format!("a kaai already runs on {}{by}", self.0.display()),
                    "use that one (`kaai status`), end it with Ctrl-C, or start another with --home FOLDER",
                ));
            }
            Err(TryLockError::Error(error)) => return Err(cannot(&error)),
        }
        lock.set_len(0).and_then(|()| write!(lock, "{}", std::process::id())).map_err(|error| cannot(&error))?;
        Ok(lock)
    }

    /// The context of the kaai that runs, or last ran, here.
    pub fn context(&self) -> Option<Context> {
        serde_json::from_slice(&fs::read(self.join("context.json")).ok()?).ok()
    }

    /// Writes a file readable by its owner alone, whole or not at all.
    ///
    /// # Errors
    ///
    /// Fails when the folder cannot be written.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<PathBuf> {
        let path = self.join(name);
        write_private(&path, content).map_err(|error| {
            Ending::platform(
                format!("{} cannot be written: {error}", path.display()),
                "free some space or choose another --home",
            )
        })?;
        Ok(path)
    }
}

/// The contexts of this user.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Contexts {
    /// The one in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// All, by name.
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

impl Contexts {
    /// Where they are kept: `$XDG_CONFIG_HOME/kaai/contexts.json`.
    ///
    /// # Errors
    ///
    /// Fails when `HOME` is not set.
    pub fn path() -> Result<PathBuf> {
        Ok(base("XDG_CONFIG_HOME", ".config")?.join("kaai/contexts.json"))
    }

    /// Reads them; none when there is no file.
    ///
    /// # Errors
    ///
    /// Fails when the file is there and cannot be read.
    pub fn read() -> Result<Self> {
        let path = Self::path()?;
        let wrong = |error: &dyn std::fmt::Display| {
            Ending::mend(format!("{} cannot be read: {error}", path.display()), "mend it or take it away")
        };
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| wrong(&error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(wrong(&error)),
        }
    }

    /// Writes them, whole or not at all.
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be written.
    pub fn write(&self) -> Result {
        let path = Self::path()?;
        let text = serde_json::to_vec_pretty(self).unwrap_or_default();
        write_private(&path, &text).map_err(|error| {
            Ending::platform(format!("{} cannot be written: {error}", path.display()), "check the folder's owner")
        })
    }
}

/// The folder that a variable of the XDG base directory specification names, else its default below `HOME`.
#[expect(clippy::disallowed_methods, reason = "the XDG variables say where settings are; they cannot be settings")]
fn base(variable: &str, default: &str) -> Result<PathBuf> {
    let given = std::env::var(variable).ok().map(PathBuf::from).filter(|path| path.is_absolute());
    match given {
        Some(path) => Ok(path),
        None => std::env::var("HOME").map(|home| Path::new(&home).join(default)).map_err(|_| {
            Ending::mend("HOME is not set, so there is no place for kaai's files", "set HOME, or give --home FOLDER")
        }),
    }
}

/// Writes beside the file and renames, so that a reader sees the old or the new one.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut file = tempfile::Builder::new().prefix(".kaai-").tempfile_in(folder)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
