//! The object store: archives, models and logs by key. Everything written is durable before the call returns.
//!
//! A store is a folder, or a bucket of a cloud ([`Address`]); whoever reads and writes does not know which. Every call ends within a
//! bounded time: what the server does not answer is asked again a few times, then told as [`Error::Store`].

mod address;
mod cloud;
mod fault;
mod folder;
mod upload;

use std::{path::Path as FilePath, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, path::Path};
use proto::id::{Digest, EnvironmentHash};
use tokio::io::AsyncWriteExt;

pub use self::address::{Address, Cloud};
use crate::config::StoreSettings;

/// How long a component looks for its store when it starts.
const START: Duration = Duration::from_secs(30);
/// A key that is asked for at the start and never written.
const NO_KEY: &str = "kaai-looks-whether-it-may-read";

/// A store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is not one of a store.
    #[error("{address:?} is no object store: {why}")]
    Address {
        /// As given, without what may be a login.
        address: String,
        /// What is wrong with it, and what to write.
        why: String,
    },
    /// A setting is wrong.
    #[error("{0}")]
    Setting(String),
    /// The store cannot be used as it is configured.
    #[error("the object store {address} cannot be used: {cause}")]
    Start {
        /// Which one.
        address: String,
        /// Why, and what to do.
        cause: String,
    },
    /// The folder of the store cannot be used.
    #[error("the object store {folder} cannot be used: {source}")]
    Folder {
        /// The folder.
        folder: String,
        /// Why.
        source: std::io::Error,
    },
    /// The component keeps nothing, so it was started without a store.
    #[error("this component has no object store")]
    None,
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
    #[error("the object store failed at {key}: {cause}")]
    Store {
        /// The key.
        key: String,
        /// Why, without anything secret.
        cause: String,
    },
}

/// A handle to the object store. Clones share it.
#[derive(Clone)]
pub struct Store {
    objects: Option<Arc<dyn ObjectStore>>,
    address: Address,
}

/// Something in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its key.
    pub key: String,
    /// Its length in bytes.
    pub size: u64,
    /// When it was last written (Unix milliseconds), by the store's clock.
    pub written_ms: u64,
}

/// Where the archive with this digest lies.
pub fn archive_key(digest: &Digest) -> String {
    format!("archives/{}.zip", digest.hex())
}

/// Where the log of the newest build of an environment lies.
pub fn build_log_key(environment: &EnvironmentHash) -> String {
    format!("logs/builds/{environment}.log")
}

impl Store {
    /// Opens a store: a folder is made if it is missing, for its owner alone; of a bucket nothing is asked yet ([`Store::check`]).
    ///
    /// # Errors
    ///
    /// Fails when the folder cannot be made, or a setting does not go with the others.
    pub fn open(settings: impl Into<StoreSettings>) -> Result<Self, Error> {
        let settings = settings.into();
        let objects = match &settings.address {
            Address::Folder(folder) => folder::open(folder)?,
            Address::Bucket { cloud, bucket, prefix } => cloud::open(&settings, *cloud, bucket, prefix)?,
        };
        Ok(Self { objects: Some(objects), address: settings.address })
    }

    /// No store: whatever is asked of it fails with [`Error::None`].
    pub fn none() -> Self {
        Self { objects: None, address: Address::Folder("/dev/null".into()) }
    }

    /// Sees within 30 s whether the store can be read; one that is away for a moment is waited for.
    ///
    /// # Errors
    ///
    /// Fails in words that tell apart a server that is away, a bucket that is not there, and credentials that are not accepted.
    pub async fn check(&self) -> Result<(), Error> {
        if matches!(self.address, Address::Folder(_)) {
            return Ok(());
        }
        let cause = match tokio::time::timeout(START, self.objects()?.get(&Path::from(NO_KEY))).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) if fault::is_missing_key(&error) => return Ok(()),
            Ok(Err(error)) => fault::explain(&error),
            Err(_) => format!("its server gave no answer within {START:?}; look at --store-endpoint and the network"),
        };
        Err(Error::Start { address: self.address.to_string(), cause })
    }

    fn objects(&self) -> Result<&Arc<dyn ObjectStore>, Error> {
        self.objects.as_ref().ok_or(Error::None)
    }

    /// Stores bytes under a key, in place of what was there.
    ///
    /// # Errors
    ///
    /// Fails when the store cannot be written.
    pub async fn put_bytes(&self, key: &str, bytes: impl Into<Bytes>) -> Result<(), Error> {
        let payload = PutPayload::from_bytes(bytes.into());
        self.objects()?.put(&path(key)?, payload).await.map(drop).map_err(|source| write_error(key, source))
    }

    /// Stores a file under a key, a large one in parts of which few are in memory; what was there is replaced when the last part is
    /// written.
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be read or the store cannot be written; then nothing is under the key that was not there before.
    pub async fn put_file(&self, key: &str, file: &FilePath) -> Result<(), Error> {
        upload::file(self.objects()?, key, file).await
    }

    /// Writes what is under a key to a file.
    ///
    /// # Errors
    ///
    /// Fails when there is nothing under the key or the file cannot be written; then the file may be there in part.
    pub async fn fetch(&self, key: &str, file: &FilePath) -> Result<u64, Error> {
        let mut stream = self.objects()?.get(&path(key)?).await.map_err(|source| error(key, source))?.into_stream();
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
        let object = self.objects()?.get(&path(key)?).await.map_err(|source| error(key, source))?;
        object.bytes().await.map_err(|source| error(key, source))
    }

    /// The length in bytes of what is under a key; `None` when there is nothing.
    ///
    /// # Errors
    ///
    /// Fails when the store does not answer.
    pub async fn size(&self, key: &str) -> Result<Option<u64>, Error> {
        match self.objects()?.head(&path(key)?).await {
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
        match self.objects()?.delete(&path(key)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(error(key, source)),
        }
    }

    /// What lies in a folder of the store and below it, by key.
    ///
    /// # Errors
    ///
    /// Fails when the store does not answer.
    pub async fn list(&self, folder: &str) -> Result<Vec<Object>, Error> {
        let found = self.objects()?.list(Some(&path(folder)?)).map_ok(|found| Object {
            key: found.location.to_string(),
            size: found.size,
            written_ms: u64::try_from(found.last_modified.timestamp_millis()).unwrap_or(0),
        });
        let mut objects: Vec<_> = found.try_collect().await.map_err(|source| error(folder, source))?;
        objects.sort_by(|one, two| one.key.cmp(&two.key));
        Ok(objects)
    }

    /// Files that uploads have left behind which were killed. Only a folder has such: a cloud is told by a rule of the bucket for how
    /// long it keeps parts of uploads that were never finished.
    ///
    /// # Errors
    ///
    /// Fails when the folder cannot be read.
    pub async fn leftovers(&self) -> Result<Vec<Object>, Error> {
        match &self.address {
            Address::Folder(folder) if self.objects.is_some() => folder::leftovers(folder).await,
            _ => Ok(Vec::new()),
        }
    }

    /// Deletes what [`Store::leftovers`] found; one that is gone is fine.
    ///
    /// # Errors
    ///
    /// Fails when the folder cannot be written.
    pub async fn delete_leftover(&self, key: &str) -> Result<(), Error> {
        match &self.address {
            Address::Folder(folder) if self.objects.is_some() => folder::delete_leftover(folder, key).await,
            _ => Ok(()),
        }
    }
}

fn path(key: &str) -> Result<Path, Error> {
    Path::parse(key).map_err(|error| Error::Store { key: key.to_owned(), cause: error.to_string() })
}

/// What is missing when something is written is the bucket.
fn write_error(key: &str, source: object_store::Error) -> Error {
    match error(key, source) {
        Error::NotFound { key } => Error::Store { key, cause: "the bucket or folder is not there any more".to_owned() },
        error => error,
    }
}

fn error(key: &str, source: object_store::Error) -> Error {
    let key = key.to_owned();
    match source {
        source if fault::is_missing_key(&source) => Error::NotFound { key },
        source if is_full(&source) => Error::Full { key },
        source => Error::Store { key, cause: fault::explain(&source) },
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
    async fn a_component_without_a_store_can_neither_read_nor_write() {
        let store = Store::none();
        assert!(matches!(store.put_bytes("a", "b").await, Err(Error::None)));
        assert!(matches!(store.list("a").await, Err(Error::None)));
    }
}
