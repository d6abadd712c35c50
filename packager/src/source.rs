//! Where a project's files come from: a folder that the packager sees, a git revision, or an archive sent before.
//!
//! Whatever it is, it ends as a folder. What came from elsewhere lies in a temporary one that goes when the [`Checkout`] goes.

mod git;

use std::path::{Path, PathBuf};

use proto::{
    failure::{Failure, Stage},
    id::{Digest, ServiceName},
    packager::Source,
};
use runtime::{
    archive::{self, Limits},
    store::{self, Store, archive_key},
};
use tempfile::TempDir;

pub use self::git::check as check_git;
use crate::{
    trouble::{Error, Full, TOO_BIG, io},
    walk::Links,
};

/// A project's files on this machine.
#[derive(Debug)]
pub(crate) struct Checkout {
    /// The project's folder.
    pub(crate) folder: PathBuf,
    /// How far its paths and links may reach: anywhere only if it is the user's own folder on the user's own machine.
    pub(crate) links: Links,
    _temporary: Option<TempDir>,
}

/// What it takes to make a source available.
pub(crate) struct Means<'a> {
    pub(crate) store: &'a Store,
    /// For temporary folders.
    pub(crate) work: &'a Path,
    /// Where folders may lie that are named by their path; anywhere when empty.
    pub(crate) folders: &'a [PathBuf],
    /// The most bytes that an archive may unpack to.
    pub(crate) bytes: u64,
}

/// Makes the files of a source available.
pub(crate) async fn checkout(source: &Source, service: &ServiceName, means: &Means<'_>) -> Result<Checkout, Error> {
    match source {
        Source::Folder(folder) => named_folder(folder, means.folders).map_err(Error::from),
        Source::Git(source) => git::checkout(source, means).await,
        Source::Upload(digest) => from_upload(digest, service, means).await,
    }
}

fn named_folder(folder: &str, allowed: &[PathBuf]) -> Result<Checkout, Failure> {
    let path = PathBuf::from(folder);
    let wrong = |what: &str| {
        Failure::project(
            Stage::Packaging,
            format!("the folder {folder} {what}"),
            "name a folder that the packager can see, by its absolute path; `kaai deploy` sends one from elsewhere",
        )
    };
    if !path.is_absolute() {
        return Err(wrong("is no absolute path"));
    }
    if !path.is_dir() {
        return Err(wrong(if path.exists() { "is no folder" } else { "does not exist where the packager runs" }));
    }
    if allowed.is_empty() {
        return Ok(Checkout { folder: path, links: Links::Anywhere, _temporary: None });
    }
    match std::fs::canonicalize(&path) {
        Ok(real) if allowed.iter().any(|root| real.starts_with(root)) => {
            Ok(Checkout { folder: real, links: Links::Inside, _temporary: None })
        }
        _ => Err(wrong("is in none of the folders that the packager may read")),
    }
}

async fn from_upload(digest: &Digest, service: &ServiceName, means: &Means<'_>) -> Result<Checkout, Error> {
    let temporary = TempDir::new_in(means.work).map_err(|error| io(means.work, &error))?;
    let zip = fetch_archive(digest, means.store, temporary.path()).await?;
    // The folder has the service's name: it becomes the source directory's, which scripts can see.
    let folder = temporary.path().join("project").join(service.as_str());
    std::fs::create_dir_all(&folder).map_err(|error| io(means.work, &error))?;
    let (into, limits) = (folder.clone(), Limits { bytes: means.bytes, ..Limits::default() });
    let unpacked = tokio::task::spawn_blocking(move || archive::unpack(&zip, &into, limits)).await;
    match unpacked.map_err(|error| Error::Transient(error.to_string()))? {
        Ok(_) => Ok(Checkout { folder, links: Links::Inside, _temporary: Some(temporary) }),
        Err(archive::Error::Full(_)) => Err(Full::around(means.work).into()),
        Err(error @ archive::Error::File { .. }) => Err(Error::Transient(error.to_string())),
        Err(error @ archive::Error::TooLarge { .. }) => {
            Err(Failure::project(Stage::Packaging, error.to_string(), TOO_BIG).into())
        }
        Err(error) => Err(Failure::project(Stage::Packaging, error.to_string(), "send a zip of plain files").into()),
    }
}

/// Brings an archive that was sent before into a folder.
pub(crate) async fn fetch_archive(digest: &Digest, store: &Store, folder: &Path) -> Result<PathBuf, Error> {
    let zip = folder.join("archive.zip");
    match store.fetch(&archive_key(digest), &zip).await {
        Ok(_) => Ok(zip),
        Err(store::Error::NotFound { .. }) => {
            let cause = format!("the archive {digest} was not sent");
            Err(Failure::project(Stage::Packaging, cause, "send it first, or use `kaai deploy`, which does").into())
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_must_be_absolute_and_there() {
        for (folder, word) in
            [("relative", "absolute"), ("/no/such/folder", "does not exist"), ("/etc/passwd", "is no folder")]
        {
            assert!(named_folder(folder, &[]).unwrap_err().cause.contains(word), "{folder}");
        }
        assert_eq!(named_folder("/", &[]).unwrap().links, Links::Anywhere);
    }

    #[test]
    fn where_folders_are_named_no_other_is_read() {
        let root = TempDir::new().unwrap();
        let allowed = std::fs::canonicalize(root.path()).unwrap();
        std::fs::create_dir(allowed.join("project")).unwrap();
        std::os::unix::fs::symlink("/etc", allowed.join("link")).unwrap();
        let found = |path: &str| named_folder(&format!("{}/{path}", allowed.display()), std::slice::from_ref(&allowed));
        assert_eq!(found("project").unwrap().links, Links::Inside);
        for path in ["link", "..", "project/../../.."] {
            assert!(found(path).unwrap_err().cause.contains("in none of the folders"), "{path}");
        }
    }
}
