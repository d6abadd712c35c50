//! The object store: archives and logs by key. Everything written is durable before the call returns.

use std::{os::unix::fs::DirBuilderExt, path::Path as FilePath, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, WriteMultipart, local::LocalFileSystem, path::Path};
use proto::id::{Digest, EnvironmentHash};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How many bytes of a file are read and sent at a time.
const PIECE: usize = 1 << 20;

/// A store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is not one of a store.
    #[error("{address:?} is no object store: give a folder or file:// and a path")]
    Address {
        /// As given.
        address: String,
    },
    /// The folder of the store cannot be used.
    #[error("the object store {folder} cannot be used: {source}")]
    Folder {
        /// The folder.
        folder: String,
        /// Why.
        source: std::io::Error,
    },
    /// There is nothing under that key.
    #[error("the object store has no {key}")]
    NotFound {
        /// The key.
        key: String,
    },
    /// The disk is full.
    #[error("no space is left for {key} in the object store; free some and try again")]
    Full {
        /// The key.
        key: String,
    },
    /// A local file could not be read or written.
    #[error("cannot read or write {path}: {source}")]
    File {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The store did not answer as it should; trying again may help.
    #[error("the object store failed at {key}: {source}")]
    Store {
        /// The key.
        key: String,
        /// Why.
        source: object_store::Error,
    },
}

/// A handle to the object store.
#[derive(Clone)]
pub struct Store(Arc<dyn ObjectStore>);

/// Where the archive with this digest lies.
pub fn archive_key(digest: &Digest) -> String {
    format!("archives/{}.zip", digest.hex())
}

/// Where the log of the newest build of an environment lies.
pub fn build_log_key(environment: &EnvironmentHash) -> String {
    format!("logs/builds/{environment}.log")
}

impl Store {
    /// Opens the store at an address: a folder (made if missing, for its owner alone), or `file://` and a path.
    ///
    /// # Errors
    ///
    /// Fails when the address is of another kind or the folder cannot be made.
    pub fn open(address: &str) -> Result<Self, Error> {
        let folder = match address.split_once("://") {
            None => address,
            Some(("file", path)) => path,
            Some(_) => return Err(Error::Address { address: address.to_owned() }),
        };
        let error = |source| Error::Folder { folder: folder.to_owned(), source };
        // Models and projects are nobody else's business; a folder that is there already keeps the mode that it was given.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(error)?;
        let local = LocalFileSystem::new_with_prefix(folder).map_err(|source| error(std::io::Error::other(source)))?;
        Ok(Self(Arc::new(local.with_fsync(true))))
    }

    /// Stores bytes under a key, in place of what was there.
    ///
    /// # Errors
    ///
    /// Fails when the store cannot be written.
    pub async fn put_bytes(&self, key: &str, bytes: impl Into<Bytes>) -> Result<(), Error> {
        let payload = PutPayload::from_bytes(bytes.into());
        self.0.put(&Path::from(key), payload).await.map(drop).map_err(|source| error(key, source))
    }

    /// Stores a file under a key, in pieces; what was there is replaced when the last piece is written.
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be read or the store cannot be written; then nothing is under the key that was not there before.
    pub async fn put_file(&self, key: &str, file: &FilePath) -> Result<(), Error> {
        let mut reader = tokio::fs::File::open(file).await.map_err(|source| file_error(file, source))?;
        let upload = self.0.put_multipart(&Path::from(key)).await.map_err(|source| error(key, source))?;
        let mut writer = WriteMultipart::new_with_chunk_size(upload, PIECE);
        let mut buffer = vec![0; PIECE];
        loop {
            let length = match reader.read(&mut buffer).await {
                Ok(0) => break,
                Ok(length) => length,
                Err(source) => {
                    // The error that is returned says more than one of tidying up could.
                    let _ = writer.abort().await;
                    return Err(file_error(file, source));
                }
            };
            writer.write(&buffer[..length]);
            writer.wait_for_capacity(4).await.map_err(|source| error(key, source))?;
        }
        writer.finish().await.map(drop).map_err(|source| error(key, source))
    }

    /// Writes what is under a key to a file.
    ///
    /// # Errors
    ///
    /// Fails when there is nothing under the key or the file cannot be written; then the file may be there in part.
    pub async fn fetch(&self, key: &str, file: &FilePath) -> Result<u64, Error> {
        let mut stream = self.0.get(&Path::from(key)).await.map_err(|source| error(key, source))?.into_stream();
        let mut writer = tokio::fs::File::create(file).await.map_err(|source| file_error(file, source))?;
        let mut length = 0;
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|source| error(key, source))?;
            length += piece.len() as u64;
            writer.write_all(&piece).await.map_err(|source| file_error(file, source))?;
        }
        writer.flush().await.map_err(|source| file_error(file, source))?;
        Ok(length)
    }

    /// Reads what is under a key into memory: for logs, not for archives.
    ///
    /// # Errors
    ///
    /// Fails when there is nothing under the key.
    pub async fn read(&self, key: &str) -> Result<Bytes, Error> {
        let object = self.0.get(&Path::from(key)).await.map_err(|source| error(key, source))?;
        object.bytes().await.map_err(|source| error(key, source))
    }

    /// The length in bytes of what is under a key; `None` when there is nothing.
    ///
    /// # Errors
    ///
    /// Fails when the store does not answer.
    pub async fn size(&self, key: &str) -> Result<Option<u64>, Error> {
        match self.0.head(&Path::from(key)).await {
            Ok(found) => Ok(Some(found.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(error(key, source)),
        }
    }

    /// Deletes what is under a key; nothing there is fine.
    ///
    /// # Errors
    ///
    /// Fails when the store cannot be written.
    pub async fn delete(&self, key: &str) -> Result<(), Error> {
        match self.0.delete(&Path::from(key)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(error(key, source)),
        }
    }

    /// The keys that begin with a folder's name.
    ///
    /// # Errors
    ///
    /// Fails when the store does not answer.
    pub async fn list(&self, folder: &str) -> Result<Vec<String>, Error> {
        let found = self.0.list(Some(&Path::from(folder)));
        let keys = found.map_ok(|object| object.location.to_string()).try_collect().await;
        keys.map_err(|source| error(folder, source))
    }
}

fn error(key: &str, source: object_store::Error) -> Error {
    let key = key.to_owned();
    match source {
        object_store::Error::NotFound { .. } => Error::NotFound { key },
        source if is_full(&source) => Error::Full { key },
        source => Error::Store { key, source },
    }
}

fn file_error(path: &FilePath, source: std::io::Error) -> Error {
    let path = path.display().to_string();
    match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Error::Full { key: path },
        _ => Error::File { path, source },
    }
}

/// Whether some error in the chain says that the disk is full.
fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && matches!(io.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
        {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_put_is_fetched_listed_and_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("store").to_str().unwrap()).unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let content: Vec<u8> = (0..3 * PIECE + 17).map(|n| (n % 251) as u8).collect();
        std::fs::write(&from, &content).unwrap();

        store.put_file("archives/a.zip", &from).await.unwrap();
        assert_eq!(store.size("archives/a.zip").await.unwrap(), Some(content.len() as u64));
        assert_eq!(store.fetch("archives/a.zip", &to).await.unwrap(), content.len() as u64);
        assert_eq!(std::fs::read(&to).unwrap(), content);

        store.put_bytes("logs/b", "text").await.unwrap();
        assert_eq!(store.read("logs/b").await.unwrap(), "text");
        assert_eq!(store.list("archives").await.unwrap(), ["archives/a.zip"]);

        store.delete("archives/a.zip").await.unwrap();
        store.delete("archives/a.zip").await.unwrap();
        assert_eq!(store.size("archives/a.zip").await.unwrap(), None);
        assert!(matches!(store.fetch("archives/a.zip", &to).await, Err(Error::NotFound { .. })));
    }

    #[test]
    fn an_address_of_another_kind_is_refused() {
        assert!(matches!(Store::open("s3://bucket"), Err(Error::Address { .. })));
    }
}
