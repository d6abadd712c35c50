//! A folder of this machine as a store.

use std::{fs, os::unix::fs::DirBuilderExt, path::Path, sync::Arc, time::SystemTime};

use object_store::{ObjectStore, local::LocalFileSystem};

use super::{Error, Object};

pub(super) fn open(folder: &Path) -> Result<Arc<dyn ObjectStore>, Error> {
    // Models and projects are nobody else's business; a folder that is there already keeps the mode that it was given.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|source| error(folder, source))?;
    let local =
        LocalFileSystem::new_with_prefix(folder).map_err(|source| error(folder, std::io::Error::other(source)))?;
    Ok(Arc::new(local.with_fsync(true)))
}

/// What is being written lies beside its place under `NAME#NUMBER`, and stays so when the writer is killed.
pub(super) async fn leftovers(folder: &Path) -> Result<Vec<Object>, Error> {
    let root = folder.to_owned();
    blocking(move || {
        let (mut found, mut folders) = (Vec::new(), vec![root.clone()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).map_err(|source| error(&folder, source))? {
                let entry = entry.map_err(|source| error(&folder, source))?;
                let (path, Ok(metadata)) = (entry.path(), entry.metadata()) else { continue };
                if metadata.is_dir() {
                    folders.push(path);
                } else if is_unfinished(&path)
                    && let Ok(key) = path.strip_prefix(&root)
                {
                    let written =
                        metadata.modified().ok().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
                    let written_ms = written.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
                    found.push(Object { key: key.display().to_string(), size: metadata.len(), written_ms });
                }
            }
        }
        found.sort_by(|one, two| one.key.cmp(&two.key));
        Ok(found)
    })
    .await
}

pub(super) async fn delete_leftover(folder: &Path, key: &str) -> Result<(), Error> {
    let path = folder.join(key);
    if !is_unfinished(&path) || key.split('/').any(|part| part == "..") {
        return Ok(());
    }
    blocking(move || match fs::remove_file(&path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(error(&path, source)),
        _ => Ok(()),
    })
    .await
}

fn is_unfinished(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.rsplit_once('#').is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit()))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(|error| Error::Store { key: String::new(), cause: error.to_string() })?
}

fn error(folder: &Path, source: std::io::Error) -> Error {
    Error::Folder { folder: folder.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn what_a_killed_upload_left_is_found_and_deleted_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.put_bytes("archives/a.zip", "whole").await.unwrap();
        fs::write(folder.path().join("archives/b.zip#1"), "half").unwrap();
        assert_eq!(store.list("archives").await.unwrap().len(), 1, "half of an archive is none");

        let found = store.leftovers().await.unwrap();
        assert_eq!(
            found.iter().map(|found| (found.key.as_str(), found.size)).collect::<Vec<_>>(),
            [("archives/b.zip#1", 4)]
        );
        for key in ["archives/a.zip", "archives/b.zip#1", "archives/b.zip#1"] {
            store.delete_leftover(key).await.unwrap();
        }
        assert!(store.leftovers().await.unwrap().is_empty());
        assert_eq!(store.read("archives/a.zip").await.unwrap(), "whole");
    }
}
