//! State that is kept under keys, read and written as JSON, changed only by who has seen the newest revision.

use std::{collections::HashSet, marker::PhantomData};

use async_nats::jetstream::{
    consumer::{DeliverPolicy, push},
    kv,
};
use futures::TryStreamExt;
use serde::{Serialize, de::DeserializeOwned};

use super::{Bus, CALL, CONNECT, Error, reading::Reading};

/// A bucket whose values are all of one kind. Clones share it.
pub struct Bucket<T> {
    bus: Bus,
    name: &'static str,
    store: kv::Store,
    kind: PhantomData<fn() -> T>,
}

impl<T> Clone for Bucket<T> {
    fn clone(&self) -> Self {
        Self { bus: self.bus.clone(), name: self.name, store: self.store.clone(), kind: PhantomData }
    }
}

/// A value and the revision it was read at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<T> {
    /// The value.
    pub value: T,
    /// Grows with each change in the bucket; what [`Bucket::update`] wants to see.
    pub revision: u64,
}

/// News from a [`Watch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<T> {
    /// A key has this value.
    Put {
        /// The key.
        key: String,
        /// Its value.
        value: T,
        /// Its revision.
        revision: u64,
    },
    /// A key has no value any more.
    Gone {
        /// The key.
        key: String,
        /// The revision of its end; 0 when it ended while nobody watched.
        revision: u64,
    },
    /// All that was there has been told; said again after each time the bus was away.
    Synced,
}

impl Bus {
    /// Opens a bucket, making it if it is missing.
    ///
    /// # Errors
    ///
    /// Fails when the server could not be had for 30 s.
    pub async fn bucket<T>(&self, name: &'static str) -> Result<Bucket<T>, Error> {
        let store = self.retry(CONNECT, || open(self, name)).await?;
        Ok(Bucket { bus: self.clone(), name, store, kind: PhantomData })
    }
}

async fn open(bus: &Bus, name: &str) -> Result<kv::Store, Error> {
    if let Ok(store) = bus.context.get_key_value(name).await {
        return Ok(store);
    }
    let config = kv::Config { bucket: name.to_owned(), history: 1, ..kv::Config::default() };
    bus.context.create_key_value(config).await.map_err(|error| Error::of(&format!("bucket {name}"), &error))
}

impl<T: Serialize + DeserializeOwned> Bucket<T> {
    /// The value of a key.
    ///
    /// # Errors
    ///
    /// Fails when the server is away or the value is of another kind.
    pub async fn get(&self, key: &str) -> Result<Option<Entry<T>>, Error> {
        let entry = self.store.entry(key).await.map_err(|error| self.unavailable(key, &error))?;
        match entry {
            Some(entry) if entry.operation == kv::Operation::Put => {
                Ok(Some(Entry { value: self.decode(key, &entry.value)?, revision: entry.revision }))
            }
            _ => Ok(None),
        }
    }

    /// Gives a key its first value, and returns the revision.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`] when it has one already, [`Error::TooLarge`] when the value is larger than the server takes.
    pub async fn create(&self, key: &str, value: &T) -> Result<u64, Error> {
        let body = self.encode(key, value)?;
        self.store.create(key, body).await.map_err(|error| match error.kind() {
            kv::CreateErrorKind::AlreadyExists => self.conflict(key),
            _ => self.unavailable(key, &error),
        })
    }

    /// Changes a value that nobody else has changed since it was read, and returns the new revision.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`] when somebody has, [`Error::TooLarge`] when the value is larger than the server takes.
    pub async fn update(&self, key: &str, value: &T, revision: u64) -> Result<u64, Error> {
        let body = self.encode(key, value)?;
        self.store.update(key, body, revision).await.map_err(|error| match error.kind() {
            kv::UpdateErrorKind::WrongLastRevision => self.conflict(key),
            _ => self.unavailable(key, &error),
        })
    }

    /// Gives a key a value, whatever it had, and returns the revision.
    ///
    /// # Errors
    ///
    /// Fails when the server is away or the value is larger than it takes.
    pub async fn put(&self, key: &str, value: &T) -> Result<u64, Error> {
        self.store.put(key, self.encode(key, value)?).await.map_err(|error| self.unavailable(key, &error))
    }

    /// Ends a key; none there is fine.
    ///
    /// # Errors
    ///
    /// Fails when the server is away.
    pub async fn delete(&self, key: &str) -> Result<(), Error> {
        self.store.delete(key).await.map_err(|error| self.unavailable(key, &error))
    }

    /// Ends a key that nobody else has changed since it was read.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`] when somebody has.
    pub async fn delete_at(&self, key: &str, revision: u64) -> Result<(), Error> {
        self.store.delete_expect_revision(key, Some(revision)).await.map_err(|error| match error.kind() {
            kv::UpdateErrorKind::WrongLastRevision => self.conflict(key),
            _ => self.unavailable(key, &error),
        })
    }

    /// All keys that have a value.
    ///
    /// # Errors
    ///
    /// Fails when the server is away.
    pub async fn keys(&self) -> Result<Vec<String>, Error> {
        let keys = self.store.keys().await.map_err(|error| self.unavailable("", &error))?;
        keys.try_collect().await.map_err(|error| self.unavailable("", &error))
    }

    /// Watches all keys: first all that is there, then [`Change::Synced`], then each change.
    pub fn watch(&self) -> Watch<T> {
        Watch {
            bucket: self.clone(),
            reading: Reading::new(&self.bus, self.name),
            synced: false,
            last_came: false,
            known: HashSet::new(),
            seen: HashSet::new(),
            lost: Vec::new(),
        }
    }

    fn decode(&self, key: &str, body: &[u8]) -> Result<T, Error> {
        let name = || format!("{}/{key}", self.name);
        serde_json::from_slice(body).map_err(|error| Error::Unreadable(name(), error.to_string()))
    }

    fn encode(&self, key: &str, value: &T) -> Result<bytes::Bytes, Error> {
        let body = super::encode(value)?;
        self.bus.fits(&format!("{}/{key}", self.name), body.len())?;
        Ok(body.into())
    }

    fn conflict(&self, key: &str) -> Error {
        Error::Conflict(format!("{}/{key}", self.name))
    }

    fn unavailable(&self, key: &str, error: &dyn std::fmt::Display) -> Error {
        Error::of(&format!("{}/{key}", self.name), error)
    }
}

/// The changes of a bucket, endless until shutdown. After the bus was away everything is told anew, and what went meanwhile is told gone.
pub struct Watch<T> {
    bucket: Bucket<T>,
    reading: Reading<push::Ordered>,
    synced: bool,
    /// Whether the last of what was there when the watch was opened has come.
    last_came: bool,
    /// Keys that have been told as put.
    known: HashSet<String>,
    /// Keys met since the watch was last opened.
    seen: HashSet<String>,
    /// Known keys that were not met again.
    lost: Vec<String>,
}

impl<T: Serialize + DeserializeOwned> Watch<T> {
    /// The next change; `None` once shutdown has begun. A value of another kind is passed over with an error in the log.
    pub async fn next(&mut self) -> Option<Change<T>> {
        let shutdown = self.bucket.bus.shutdown.clone();
        tokio::select! {
            biased;
            () = shutdown.cancelled() => None,
            change = self.next_or_reopen() => Some(change),
        }
    }

    async fn next_or_reopen(&mut self) -> Change<T> {
        loop {
            if let Some(key) = self.lost.pop() {
                return Change::Gone { key, revision: 0 };
            }
            if !self.reading.is_open() {
                match self.open().await {
                    Ok((messages, pending)) => {
                        self.reading.opened(Ok(messages)).await;
                        if pending == 0 {
                            return self.finish_sync();
                        }
                    }
                    Err(error) => self.reading.opened(Err(error)).await,
                }
            }
            if !self.synced && self.last_came {
                return self.finish_sync();
            }
            if let Some(message) = self.reading.next().await
                && let Some(change) = self.accept(&message)
            {
                return change;
            }
        }
    }

    /// Opens an ordered consumer over the newest value of each key and returns how many there are.
    async fn open(&mut self) -> Result<(push::Ordered, u64), Error> {
        self.synced = false;
        self.last_came = false;
        self.seen.clear();
        self.reading.about_to_open();
        let failed = |error: &dyn std::fmt::Display| Error::Unavailable(error.to_string());
        let config = push::OrderedConfig {
            deliver_subject: self.bucket.bus.client.new_inbox(),
            filter_subject: format!("{}>", self.bucket.store.prefix),
            deliver_policy: DeliverPolicy::LastPerSubject,
            ..push::OrderedConfig::default()
        };
        let opening = async {
            let consumer = self.bucket.store.stream.create_consumer(config).await.map_err(|error| failed(&error))?;
            let pending = consumer.cached_info().num_pending;
            let messages = consumer.messages().await.map_err(|error| failed(&error))?;
            Ok::<_, Error>((messages, pending))
        };
        tokio::time::timeout(CALL, opening).await.map_err(|error| failed(&error))?
    }

    fn finish_sync(&mut self) -> Change<T> {
        self.synced = true;
        self.lost = self.known.difference(&self.seen).cloned().collect();
        for key in &self.lost {
            self.known.remove(key);
        }
        self.seen.clear();
        Change::Synced
    }

    fn accept(&mut self, message: &async_nats::jetstream::Message) -> Option<Change<T>> {
        let key = message.subject.strip_prefix(self.bucket.store.prefix.as_str())?.to_owned();
        let info = message.info().ok()?;
        let revision = info.stream_sequence;
        self.last_came |= info.pending == 0;
        let ended = message.headers.as_ref().is_some_and(|headers| {
            headers.get("KV-Operation").is_some_and(|value| matches!(value.as_str(), "DEL" | "PURGE"))
                || headers.get("Nats-Marker-Reason").is_some()
        });
        if ended {
            return self.known.remove(&key).then_some(Change::Gone { key, revision });
        }
        // One that cannot be read is there still: what was told of it before stays.
        if !self.synced {
            self.seen.insert(key.clone());
        }
        match self.bucket.decode(&key, &message.payload) {
            Ok(value) => {
                self.known.insert(key.clone());
                Some(Change::Put { key, value, revision })
            }
            Err(error) => {
                tracing::error!(%error, "passed over");
                None
            }
        }
    }
}
