//! The walk itself: folder by folder, with the rules that hold in each.

use std::{
    ffi::OsStr,
    fs::{self, FileType, Metadata},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::Path,
};

use rustix::io::Errno;

use super::{Error, Limits, LinkProblem, Links, MAX_NAMED, Walk, describe, unreadable, utf8};
use crate::ignore::{AML_IGNORE, GIT_IGNORE, Ignore};

/// Whether a walk obeys ignore files and leaves out what git leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rules {
    Project,
    Everything,
}

/// A walk on its way.
pub(super) struct Walker {
    walk: Walk,
    ignore: Ignore,
    limits: Limits,
    links: Links,
    rules: Rules,
    /// Device and inode of the folders from the root to the current one.
    parents: Vec<(u64, u64)>,
    unreadable: Vec<String>,
}

impl Walker {
    pub(super) fn new(walk: Walk, limits: Limits, links: Links, rules: Rules) -> Self {
        Self { walk, ignore: Ignore::default(), limits, links, rules, parents: Vec::new(), unreadable: Vec::new() }
    }

    pub(super) fn run(mut self) -> Result<Walk, Error> {
        if self.rules == Rules::Project {
            self.ignore = Ignore::at_root(&self.walk.root).map_err(|error| unreadable(AML_IGNORE, &error))?;
            self.walk.ignore_file = self.ignore.is_amlignore().then_some(AML_IGNORE);
        }
        let metadata = fs::metadata(&self.walk.root).map_err(|error| unreadable(".", &error))?;
        self.folder("", &metadata)?;
        if !self.unreadable.is_empty() {
            return Err(Error::Unreadable(self.unreadable));
        }
        let mut walk = self.walk;
        walk.files.sort_unstable_by(|one, other| one.path.cmp(&other.path));
        if walk.bytes > self.limits.bytes {
            let mut biggest: Vec<_> = walk.files.into_iter().map(|file| (file.size, file.path)).collect();
            biggest.sort_unstable_by(|one, other| other.cmp(one));
            biggest.truncate(MAX_NAMED);
            return Err(Error::TooBig { bytes: walk.bytes, limit: self.limits.bytes, biggest });
        }
        Ok(walk)
    }

    /// Lists a folder; `path` is its path from the root, with a slash at the end unless it is the root.
    fn folder(&mut self, path: &str, folder: &Metadata) -> Result<(), Error> {
        let location = self.walk.root.join(path);
        let entries = fs::read_dir(&location).and_then(|entries| {
            let entries = entries.map(|entry| entry.and_then(|entry| Ok((entry.file_name(), entry.file_type()?))));
            entries.collect::<io::Result<Vec<_>>>()
        });
        let entries = match entries {
            Ok(entries) => entries,
            Err(error) => return self.cannot_read(if path.is_empty() { "." } else { path }, &error),
        };
        if entries.is_empty() && self.rules == Rules::Everything {
            self.walk.push(path.to_owned(), folder);
        }
        let mut ruled = false;
        if self.rules == Rules::Project && entries.iter().any(|(name, _)| name == GIT_IGNORE) {
            ruled = match self.ignore.enter(&location, path.len()) {
                Ok(ruled) => ruled,
                Err(error) => return self.cannot_read(&format!("{path}{GIT_IGNORE}"), &error),
            };
            self.walk.ignore_file = self.walk.ignore_file.or(ruled.then_some(GIT_IGNORE));
        }
        self.parents.push((folder.dev(), folder.ino()));
        for (name, file_type) in entries {
            self.entry(path, &name, file_type)?;
        }
        self.parents.pop();
        if ruled {
            self.ignore.leave();
        }
        Ok(())
    }

    fn entry(&mut self, folder: &str, name: &OsStr, file_type: FileType) -> Result<(), Error> {
        if self.rules == Rules::Project && name == ".git" {
            return Ok(());
        }
        let raw = [folder.as_bytes(), name.as_bytes()].concat();
        let location = self.walk.root.join(OsStr::from_bytes(&raw));
        let shown = || String::from_utf8_lossy(&raw).into_owned();
        let metadata = match fs::metadata(&location) {
            Ok(metadata) => metadata,
            // A link that cannot be followed may still be left out by its name.
            Err(_) if file_type.is_symlink() && self.ignore.leaves_out(&raw, false) => {
                self.walk.ignored += 1;
                return Ok(());
            }
            Err(error) if file_type.is_symlink() => return self.cannot_follow(shown(), &error),
            // Gone since the folder was read: as if it had never been there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return self.cannot_read(&shown(), &error),
        };
        if self.ignore.leaves_out(&raw, metadata.is_dir()) {
            self.walk.ignored += 1;
            return Ok(());
        }
        let path = format!("{folder}{}", utf8(name, folder)?);
        if file_type.is_symlink() {
            self.check_link(&path, &location, &metadata)?;
        }
        if metadata.is_dir() {
            return self.folder(&format!("{path}/"), &metadata);
        }
        if !metadata.is_file() {
            self.walk.warnings.push(format!("{path} is left out: it is {}", kind(metadata.file_type())));
            return Ok(());
        }
        if self.walk.files.len() >= self.limits.files {
            return Err(Error::TooMany { limit: self.limits.files });
        }
        self.walk.push(path, &metadata);
        Ok(())
    }

    fn check_link(&self, path: &str, location: &Path, target: &Metadata) -> Result<(), Error> {
        let error = |problem| Err(Error::Link { path: path.to_owned(), problem });
        if target.is_dir() && self.parents.contains(&(target.dev(), target.ino())) {
            return error(LinkProblem::Loops);
        }
        if self.links == Links::Anywhere {
            return Ok(());
        }
        match fs::canonicalize(location) {
            Ok(real) if real.starts_with(&self.walk.root) => Ok(()),
            Ok(_) => error(LinkProblem::Leaves(fs::read_link(location).unwrap_or_default())),
            Err(_) => error(LinkProblem::Dangles),
        }
    }

    fn cannot_follow(&mut self, path: String, error: &io::Error) -> Result<(), Error> {
        match (error.kind(), Errno::from_io_error(error)) {
            // Links that point at each other: the system gives up on them.
            (_, Some(Errno::LOOP)) => Err(Error::Link { path, problem: LinkProblem::Loops }),
            (io::ErrorKind::NotFound | io::ErrorKind::NotADirectory, _) => {
                Err(Error::Link { path, problem: LinkProblem::Dangles })
            }
            _ => self.cannot_read(&path, error),
        }
    }

    /// Notes what cannot be read, and gives up when enough is noted.
    fn cannot_read(&mut self, path: &str, error: &io::Error) -> Result<(), Error> {
        self.unreadable.push(describe(path, error));
        if self.unreadable.len() < MAX_NAMED { Ok(()) } else { Err(Error::Unreadable(self.unreadable.clone())) }
    }
}

fn kind(file_type: FileType) -> &'static str {
    if file_type.is_socket() {
        "a socket"
    } else if file_type.is_fifo() {
        "a pipe"
    } else {
        "a device"
    }
}
