//! What went wrong, and whose it is: the user's, to be told at once, or the platform's, to be tried again.

use proto::failure::{Failure, Stage};
use runtime::store;

use crate::{
    archive, registry,
    walk::{self, MAX_NAMED},
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
            other => Self::Transient(other.to_string()),
        }
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Full { .. } => full(error.to_string()).into(),
            other => Self::Transient(other.to_string()),
        }
    }
}

/// What keeps a folder from being sent, with what to do about it.
pub(crate) fn walked(error: walk::Error) -> Failure {
    let remedy = match &error {
        walk::Error::TooBig { .. } | walk::Error::TooMany { .. } => {
            "leave files out with .amlignore, register large ones as models, or raise --max-project-size"
        }
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

/// What keeps a zip from being written.
pub(crate) fn packed(error: archive::Error) -> Error {
    let text = error.to_string();
    let remedy = match error {
        archive::Error::GivenUp => return Error::Transient(text),
        archive::Error::Write { source, .. } => return io(&source),
        archive::Error::Walk(error) => return walked(error).into(),
        archive::Error::Changed(_) => "wait until nothing writes to it, or leave it out with .amlignore",
        archive::Error::Unreadable(_) => "see that the packager may read them, or leave them out with .amlignore",
    };
    Failure::project(Stage::Packaging, text, remedy).into()
}

/// What keeps the packager from writing its own files.
pub(crate) fn io(error: &std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => full(error.to_string()).into(),
        _ => Error::Transient(error.to_string()),
    }
}

/// The disk is full: told at once, since only a person can mend it.
pub(crate) fn full(cause: String) -> Failure {
    Failure::platform(Stage::Packaging, cause, "free some space where the packager writes, then deploy again")
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use proto::failure::Blame;

    use super::*;

    #[test]
    fn a_full_disk_is_told_at_once_and_other_trouble_is_tried_again() {
        let Error::Failure(failure) = io(&ErrorKind::StorageFull.into()) else { panic!() };
        assert_eq!(failure.blame, Blame::Platform);
        assert!(matches!(io(&ErrorKind::Interrupted.into()), Error::Transient(_)));
        let write = archive::Error::Write { path: "x".into(), source: ErrorKind::StorageFull.into() };
        assert!(matches!(packed(write), Error::Failure(_)));
        assert!(matches!(packed(archive::Error::GivenUp), Error::Transient(_)));
    }

    #[test]
    fn a_project_that_is_too_big_names_its_biggest_files() {
        let biggest = vec![(400, "a.bin".to_owned()), (3, "b".to_owned())];
        let failure = walked(walk::Error::TooBig { bytes: 403, limit: 300, biggest });
        assert!(failure.cause.contains("403 bytes") && failure.remedy.contains("--max-project-size"), "{failure:?}");
        assert!(failure.details[0].ends_with("400 bytes  a.bin"), "{failure:?}");
    }
}
