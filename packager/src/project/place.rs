//! Where the files of a project may lie: anywhere for a user's own folder, inside the project for one that came from elsewhere.
//!
//! A project that was fetched or sent is somebody else's: neither a path in its files nor a symbolic link may make the packager read a
//! file of its own machine, not even to quote a line of it in an error.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use proto::failure::{Failure, Stage};

use crate::walk::Links;

/// The largest file of a project that is read into memory: far above any that a person has written.
const MAX_BYTES: u64 = 4 << 20;

/// A project's folder, and how far its paths reach.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// The folder, with all links resolved.
    folder: PathBuf,
    links: Links,
}

impl Place {
    /// A project in `folder`.
    ///
    /// # Errors
    ///
    /// Fails when there is no such folder.
    pub(crate) fn new(folder: &Path, links: Links) -> Result<Self, Failure> {
        match fs::canonicalize(folder) {
            Ok(real) if real.is_dir() => Ok(Self { folder: real, links }),
            found => {
                let what = if found.is_ok() { "is no folder" } else { "does not exist" };
                let cause = format!("the project {} {what}", folder.display());
                Err(Failure::project(Stage::Reading, cause, "name the folder of a project"))
            }
        }
    }

    /// The folder, with all links resolved.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where links of a model's files may lead.
    pub(crate) fn links(&self) -> Links {
        self.links
    }

    /// The file or folder that `path` means when it is written relative to `base`, with all links resolved; messages call it `what`.
    ///
    /// # Errors
    ///
    /// Fails when there is nothing, or it lies outside a project that may not reach outside.
    pub(crate) fn find(&self, base: &Path, path: &str, what: &str) -> Result<PathBuf, Failure> {
        let wrong = |cause: String, remedy: &str| Err(Failure::project(Stage::Reading, cause, remedy));
        match fs::canonicalize(base.join(path)) {
            Ok(real) if self.links == Links::Anywhere || real.starts_with(&self.folder) => Ok(real),
            Ok(_) => wrong(
                format!("{what} {path} lies outside the project"),
                "put it into the project's folder: what is sent or fetched cannot reach outside",
            ),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                wrong(format!("{what} {path} does not exist"), "create it, or name another")
            }
            Err(error) => wrong(format!("{what} {path} cannot be read: {error}"), "see that you may read it"),
        }
    }

    /// What is in a file.
    ///
    /// # Errors
    ///
    /// As [`Self::find`], and when it is no file or has more than 4 MiB.
    pub(crate) fn bytes(&self, base: &Path, path: &str, what: &str) -> Result<Vec<u8>, Failure> {
        let location = self.find(base, path, what)?;
        if !location.is_file() {
            return Err(unreadable(what, path, "is no file"));
        }
        let mut bytes = Vec::new();
        let read = fs::File::open(&location).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes));
        match read {
            Ok(length) if length as u64 > MAX_BYTES => Err(unreadable(what, path, "has more than 4 MiB")),
            Ok(_) => Ok(bytes),
            Err(error) => Err(unreadable(what, path, &format!("cannot be read: {error}"))),
        }
    }

    /// The text of a file.
    ///
    /// # Errors
    ///
    /// As [`Self::bytes`], and when it is not UTF-8.
    pub(crate) fn text(&self, base: &Path, path: &str, what: &str) -> Result<String, Failure> {
        String::from_utf8(self.bytes(base, path, what)?).map_err(|_| unreadable(what, path, "is not UTF-8"))
    }
}

fn unreadable(what: &str, path: &str, why: &str) -> Failure {
    Failure::project(Stage::Reading, format!("{what} {path} {why}"), "see that it is a text file that you may read")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_project_from_elsewhere_reaches_nothing_outside() {
        let root = TempDir::new().unwrap();
        let folder = root.path().join("project");
        fs::create_dir_all(folder.join("in")).unwrap();
        fs::write(root.path().join("secret"), "hidden").unwrap();
        fs::write(folder.join("in/a"), "a").unwrap();
        symlink("../secret", folder.join("link")).unwrap();
        symlink("in/a", folder.join("fine")).unwrap();
        let inside = Place::new(&folder, Links::Inside).unwrap();
        for path in ["../secret", "link", "/etc/passwd", "in/../../secret"] {
            let failure = inside.text(&folder, path, "the file").unwrap_err();
            assert!(failure.cause.contains("lies outside"), "{path}: {failure}");
        }
        assert_eq!(inside.text(&folder, "fine", "the file").unwrap(), "a");
        assert_eq!(inside.text(&folder.join("in"), "../in/a", "the file").unwrap(), "a");
        let anywhere = Place::new(&folder, Links::Anywhere).unwrap();
        assert_eq!(anywhere.text(&folder, "../secret", "the file").unwrap(), "hidden");
    }

    #[test]
    fn what_is_no_text_is_refused_in_words() {
        let root = TempDir::new().unwrap();
        fs::write(root.path().join("binary"), [0xff, 0xfe]).unwrap();
        fs::write(root.path().join("long"), "x".repeat(1 + (4 << 20))).unwrap();
        let place = Place::new(root.path(), Links::Anywhere).unwrap();
        for (path, word) in
            [("binary", "not UTF-8"), ("long", "more than 4 MiB"), (".", "no file"), ("no", "not exist")]
        {
            assert!(place.text(root.path(), path, "f").unwrap_err().cause.contains(word), "{path}");
        }
        assert!(Place::new(&root.path().join("long"), Links::Inside).is_err());
    }
}
