//! Large things on their way over the bus, in pieces: the bus's object store, for senders that reach nothing else.

use std::time::Duration;

use async_nats::jetstream::object_store::{self, GetErrorKind, ObjectStore};
use bytes::Bytes;
use futures::StreamExt;
use tokio::io::AsyncReadExt;

use crate::bus::{Bus, Error};

/// The length of each piece but the last, in bytes.
pub const PIECE: u64 = 4 << 20;
/// How long a piece that nobody fetched is kept.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// How long making or finding the bucket may take.
const OPEN: Duration = Duration::from_secs(30);

/// A bucket of pieces. Clones share it.
#[derive(Clone)]
pub struct Pieces {
    bucket: &'static str,
    store: ObjectStore,
}

impl Bus {
    /// Opens a bucket of pieces, making it if it is missing.
    ///
    /// # Errors
    ///
    /// Fails when the server could not be had for 30 s.
    pub async fn pieces(&self, bucket: &'static str) -> Result<Pieces, Error> {
        let store = self.retry(OPEN, || open(self, bucket)).await?;
        Ok(Pieces { bucket, store })
    }
}

async fn open(bus: &Bus, bucket: &str) -> Result<ObjectStore, Error> {
    if let Ok(store) = bus.context.get_object_store(bucket).await {
        return Ok(store);
    }
    let config = object_store::Config {
        bucket: bucket.to_owned(),
        description: Some("pieces of archives on their way".to_owned()),
        // Bounded by age and by the server's own storage limit: a limit here would be reserved on the disk at once.
        max_age: KEPT,
        ..object_store::Config::default()
    };
    let made = bus.context.create_object_store(config).await;
    made.map_err(|error| Error::of(&format!("pieces {bucket}"), &error))
}

impl Pieces {
    /// Stores a piece under a name, in place of what was there.
    ///
    /// # Errors
    ///
    /// Fails when the server is away or has no room.
    pub async fn put(&self, name: &str, piece: Bytes) -> Result<(), Error> {
        let put = self.store.put(name, &mut &*piece).await;
        put.map(drop).map_err(|error| self.unavailable(name, &error))
    }

    /// Reads a piece; `None` when there is none of that name. A damaged one is an error.
    ///
    /// # Errors
    ///
    /// Fails when the server is away or the piece does not match its digest.
    pub async fn get(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let mut object = match self.store.get(name).await {
            Ok(object) => object,
            Err(error) if error.kind() == GetErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.unavailable(name, &error)),
        };
        let mut piece = Vec::with_capacity(object.info().size);
        object.read_to_end(&mut piece).await.map_err(|error| self.unavailable(name, &error))?;
        Ok(Some(piece))
    }

    /// The names and lengths of the pieces whose name begins with `prefix`.
    ///
    /// # Errors
    ///
    /// Fails when the server is away.
    pub async fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>, Error> {
        let mut list = self.store.list().await.map_err(|error| self.unavailable(prefix, &error))?;
        let mut found = Vec::new();
        while let Some(info) = list.next().await {
            let info = info.map_err(|error| self.unavailable(prefix, &error))?;
            if !info.deleted && info.name.starts_with(prefix) {
                found.push((info.name, info.size as u64));
            }
        }
        Ok(found)
    }

    /// Takes a piece away; none there is fine.
    ///
    /// # Errors
    ///
    /// Fails when the server is away.
    pub async fn delete(&self, name: &str) -> Result<(), Error> {
        match self.store.delete(name).await {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == object_store::DeleteErrorKind::NotFound => Ok(()),
            Err(error) => Err(self.unavailable(name, &error)),
        }
    }

    fn unavailable(&self, name: &str, error: &dyn std::fmt::Display) -> Error {
        Error::of(&format!("{}/{name}", self.bucket), &error)
    }
}
