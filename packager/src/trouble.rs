//! What went wrong, and whose it is: the user's, to be told at once, or the platform's, to be tried again.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use proto::{
    failure::{Failure, Stage},
    query::Refusal,
};
use runtime::store;

use crate::{
    archive, registry, shelf,
    walk::{self, MAX_NAMED},
    work,
};

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// It cannot be, as it is.
    #[error("{0}")]
    Failure(Box<Failure>),
    /// It may be, later.
    #[error("{0}")]
    Transient(String),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Failure(Box::new(failure))
    }
}

impl From<registry::Error> for Error {
    fn from(error: registry::Error) -> Self {
        match error {
            registry::Error::Refused(refusal) => {
                Failure::project(Stage::Packaging, refusal.cause, refusal.remedy).into()
            }
            registry::Error::Shelf(error) => error.into(),
            other => Self::Transient(other.to_string()),
        }
    }
}

impl From<shelf::Error> for Error {
    fn from(error: shelf::Error) -> Self {
        match error {
            shelf::Error::Store(error) => error.into(),
            other => Self::Transient(other.to_string()),
        }
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        match Full::of_store(&error) {
            Some(full) => full.into(),
            None => Self::Transient(error.to_string()),
        }
    }
}

/// What to do about a project with more bytes than it may have. Who sends it and who packages it each have their limit.
pub(crate) const TOO_BIG: &str = "leave files out with .amlignore, register large ones as models, or raise --max-project-size \
     (KAAI_MAX_PROJECT_SIZE) of both `kaai deploy` and `kaai up`, or of the packager";

/// What keeps a folder from being sent, with what to do about it.
pub fn walked(error: walk::Error) -> Failure {
    let remedy = match &error {
        walk::Error::TooBig { .. } => TOO_BIG,
        walk::Error::TooMany { .. } => "leave files out with .amlignore, or register folders of them as models",
        walk::Error::Unreadable(_) => "see that you may read them, or leave them out with .amlignore",
        walk::Error::NotUtf8(_) | walk::Error::Backslash(_) => "rename it, or leave it out with .amlignore",
        walk::Error::Link { .. } => "put the file itself in its place, or leave the link out with .amlignore",
        walk::Error::NoSuch { .. } => "name a folder that is there",
    };
    let biggest: Vec<String> = match &error {
        walk::Error::TooBig { biggest, .. } => {
            biggest.iter().take(MAX_NAMED).map(|(size, path)| format!("{size:>14} bytes  {path}")).collect()
        }
        _ => Vec::new(),
    };
    Failure::project(Stage::Reading, error.to_string(), remedy).with_details(biggest.iter().map(String::as_str))
}

/// What keeps a zip from being written, for a packager, which tries again where that may help.
pub(crate) fn packed(error: archive::Error) -> Error {
    match &error {
        archive::Error::GivenUp => Error::Transient(error.to_string()),
        archive::Error::Write { path, source } => io(path.parent().unwrap_or(path), source),
        _ => not_packed(error).into(),
    }
}

/// What keeps a zip from being written, with what to do about it: for whoever packs a project without a packager.
pub fn not_packed(error: archive::Error) -> Failure {
    let text = error.to_string();
    let remedy = match error {
        archive::Error::GivenUp => return Failure::platform(Stage::Packaging, text, "try again"),
        archive::Error::Write { path, source } => {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            if is_full(&source) {
                let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
                let remedy = format!("free some space in {}, then try again", folder.display());
                return Failure::platform(Stage::Packaging, Full::Folder(folder).cause(), remedy);
            }
            let cause = format!("{text}: {source}");
            return Failure::platform(
                Stage::Packaging,
                cause,
                "see that you may write there, or choose another folder",
            );
        }
        archive::Error::Walk(error) => return walked(error),
        archive::Error::Changed(_) => "wait until nothing writes to it, or leave it out with .amlignore",
        archive::Error::Unreadable(_) => "see that whoever packs may read them, or leave them out with .amlignore",
    };
    Failure::project(Stage::Packaging, text, remedy)
}

/// What keeps the packager from writing its own files in a folder.
pub(crate) fn io(folder: &Path, error: &io::Error) -> Error {
    match is_full(error) {
        true => Full::around(folder).into(),
        false => Error::Transient(format!("{} cannot be written: {error}", folder.display())),
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// A disk on which no space is left: told at once, since only a person can mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Full {
    /// That of a folder of the packager's.
    Folder(PathBuf),
    /// That of the object store.
    Store,
}

impl Full {
    /// That of a folder, named as a person knows it: what is below the packager's own temporary folder is gone when it is read.
    pub(crate) fn around(folder: &Path) -> Self {
        let own =
            folder.ancestors().find(|part| part.file_name().is_some_and(|name| work::is_ours(&name.to_string_lossy())));
        Self::Folder(own.and_then(Path::parent).unwrap_or(folder).to_owned())
    }

    /// What an error of the object store says of it, if that is what happened.
    pub(crate) fn of_store(error: &store::Error) -> Option<Self> {
        match error {
            // A key is relative: this is a file that was to be brought here.
            store::Error::Full { key } if key.starts_with('/') => {
                Some(Self::around(Path::new(key).parent().unwrap_or(Path::new("/"))))
            }
            store::Error::Full { .. } => Some(Self::Store),
            _ => None,
        }
    }

    fn cause(&self) -> String {
        match self {
            Self::Folder(folder) => format!("no space is left on the disk of {}", folder.display()),
            Self::Store => "no space is left in the object store".to_owned(),
        }
    }

    fn remedy(&self, again: &str) -> String {
        match self {
            Self::Folder(folder) => {
                format!("free some space in {}, where the packager writes, then {again}", folder.display())
            }
            Self::Store => format!("free some space in the folder of the packager's --store, then {again}"),
        }
    }
}

impl From<Full> for Failure {
    fn from(full: Full) -> Self {
        Self::platform(Stage::Packaging, full.cause(), full.remedy("deploy again"))
    }
}

impl From<Full> for Error {
    fn from(full: Full) -> Self {
        Failure::from(full).into()
    }
}

impl From<Full> for Refusal {
    fn from(full: Full) -> Self {
        unavailable(full.cause(), &full.remedy("send again"))
    }
}

/// A question that cannot be answered now.
pub(crate) fn unavailable(cause: impl Into<String>, remedy: &str) -> Refusal {
    Refusal::new("unavailable", cause, remedy)
}

/// What keeps the packager from answering, where the object store is why.
pub(crate) fn refused_by_store(error: &store::Error) -> Refusal {
    Full::of_store(error).map_or_else(|| unavailable(error.to_string(), "try again"), Refusal::from)
}

/// What keeps the packager from answering, where an archive cannot be looked for.
pub(crate) fn refused_by_shelf(error: &shelf::Error) -> Refusal {
    match error {
        shelf::Error::Store(error) => refused_by_store(error),
        other => unavailable(other.to_string(), "try again"),
    }
}

/// What keeps the packager from answering, where a folder of its own is why.
pub(crate) fn refused_by_folder(folder: &Path, error: &io::Error) -> Refusal {
    match io(folder, error) {
        Error::Failure(_) => Full::around(folder).into(),
        Error::Transient(cause) => unavailable(cause, "try again"),
    }
}

#[cfg(test)]
mod tests {
    use proto::failure::Blame;

    use super::*;

    #[test]
    fn a_full_disk_is_told_at_once_and_other_trouble_is_tried_again() {
        let work = Path::new("/w");
        let write = |kind: ErrorKind| archive::Error::Write { path: "/w/x.zip".into(), source: kind.into() };
        for error in [io(work, &ErrorKind::StorageFull.into()), packed(write(ErrorKind::QuotaExceeded))] {
            let Error::Failure(failure) = error else { panic!("{error}") };
            assert_eq!(failure.blame, Blame::Platform);
            assert_eq!(failure.cause, "no space is left on the disk of /w");
            assert_eq!(failure.remedy, "free some space in /w, where the packager writes, then deploy again");
        }
        let failure = not_packed(write(ErrorKind::StorageFull));
        assert_eq!(
            (failure.blame, failure.remedy.as_str()),
            (Blame::Platform, "free some space in /w, then try again")
        );
        assert!(matches!(io(work, &ErrorKind::Interrupted.into()), Error::Transient(_)));
        assert!(matches!(packed(write(ErrorKind::PermissionDenied)), Error::Transient(_)));
        assert!(not_packed(write(ErrorKind::PermissionDenied)).cause.contains("denied"));
        assert!(matches!(packed(archive::Error::GivenUp), Error::Transient(_)));
    }

    #[test]
    fn a_full_store_and_a_full_folder_are_told_apart_in_answers_too() {
        let refused = |key: &str| refused_by_store(&store::Error::Full { key: key.to_owned() });
        assert!(refused("archives/x.zip").remedy.contains("--store, then send again"));
        assert!(refused("/w/t/archive.zip").remedy.starts_with("free some space in /w/t, where the packager writes"));
        assert!(refused("/w/kaai-packager-1/t/archive.zip").cause.ends_with("the disk of /w"));
        let other = refused_by_store(&store::Error::NotFound { key: "x".to_owned() });
        assert_eq!((other.kind.as_str(), other.remedy.as_str()), ("unavailable", "try again"));
        let folder = refused_by_folder(Path::new("/w"), &ErrorKind::StorageFull.into());
        assert!(folder.cause.ends_with("the disk of /w") && folder.remedy.ends_with("then send again"), "{folder}");
    }

    #[test]
    fn a_project_that_is_too_big_names_its_biggest_files() {
        let biggest = vec![(400, "a.bin".to_owned()), (3, "b".to_owned())];
        let failure = walked(walk::Error::TooBig { bytes: 403, limit: 300, biggest });
        assert!(failure.cause.contains("403 bytes") && failure.remedy.contains("--max-project-size"), "{failure:?}");
        assert!(failure.details[0].ends_with("400 bytes  a.bin"), "{failure:?}");
    }
}
