//! The streams of the contract, created or compatibly updated, never deleted.

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use proto::subject;

use crate::bus::Error;

/// The component that alone may change the streams once they are there.
pub const KEEPER: &str = "deployer";
/// For how long a repeated event is dropped by its id.
pub const DUPLICATE_WINDOW: Duration = Duration::from_secs(600);

/// The stream of pipeline events: work to be done, and the history of it for 30 days or 1 GiB.
pub fn events() -> stream::Config {
    stream::Config {
        name: subject::EVENTS.to_owned(),
        description: Some("what was asked of kaai and what became of it".to_owned()),
        subjects: subject::stored(),
        retention: stream::RetentionPolicy::Limits,
        max_age: Duration::from_secs(30 * 24 * 3600),
        max_bytes: 1 << 30,
        discard: stream::DiscardPolicy::Old,
        duplicate_window: DUPLICATE_WINDOW,
        allow_direct: true,
        ..stream::Config::default()
    }
}

/// The stream of messages that can never succeed, for 30 days or 256 MiB.
pub fn dead_letters() -> stream::Config {
    stream::Config {
        name: subject::DEAD_LETTERS.to_owned(),
        description: Some("messages that can never succeed, each with its reason".to_owned()),
        subjects: vec![subject::ANY_DEAD_LETTER.to_owned()],
        max_age: Duration::from_secs(30 * 24 * 3600),
        max_bytes: 256 << 20,
        duplicate_window: DUPLICATE_WINDOW,
        allow_direct: true,
        ..stream::Config::default()
    }
}

/// Makes a stream as configured, or leaves one that is there; its keeper adds the subjects that it lacks.
///
/// # Errors
///
/// Fails when the bus does not answer, subjects are missing and somebody else is to add them, or the stream that is there keeps messages in another way: that is never changed here,
/// since it would lose what the stream holds.
pub async fn ensure(context: &jetstream::Context, wanted: stream::Config, component: &str) -> Result<(), Error> {
    let unavailable = |error: &dyn std::fmt::Display| Error::of(&format!("stream {}", wanted.name), error);
    let found = context.get_or_create_stream(wanted.clone()).await.map_err(|error| unavailable(&error))?;
    let there = &found.cached_info().config;
    if there.retention != wanted.retention || there.storage != wanted.storage {
        return Err(Error::Incompatible(format!(
            "the stream {} keeps messages in another way ({:?}, {:?}) than kaai needs; look at it with `nats stream info {0}`, \
             and move it away with `nats stream backup {0} FOLDER` and `nats stream rm {0}` if it is not kaai's",
            wanted.name, there.retention, there.storage
        )));
    }
    let missing: Vec<_> = wanted.subjects.iter().filter(|subject| !there.subjects.contains(subject)).cloned().collect();
    if missing.is_empty() {
        return Ok(());
    }
    if component != KEEPER {
        return Err(Error::Unavailable(format!(
            "the stream {} is of an older version and lacks {}: the {KEEPER} of this version adds them when it starts",
            wanted.name,
            missing.join(", ")
        )));
    }
    // Subjects of a newer version stay: an older component beside it must not take them away.
    let mut changed = there.clone();
    changed.subjects.extend(missing);
    context.update_stream(changed).await.map(drop).map_err(|error| unavailable(&error))
}
