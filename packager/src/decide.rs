//! What becomes of a request: which event is said of it, and when its message is settled. Pure: no bus, no clock, no files.
//!
//! A message is acknowledged only after the server has its outcome on disk. Killed before that, the packager gets it again and does it
//! again, with the same archive, the same models and an event of the same id, which the stream keeps once.

use std::time::Duration;

use proto::{
    deployer::DeploymentFailed,
    failure::{Failure, Stage},
    id::Generation,
    packager::ProjectPackaged,
};
use runtime::bus::Disposition;

use crate::job::Done;

/// How often a request is tried that fails for reasons of the platform: with the growing delays, for some two minutes.
const ATTEMPTS: u64 = 10;

/// One time that a request is handed out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempt {
    pub(crate) generation: Generation,
    /// How many times it has been handed out, from 1.
    pub(crate) number: u64,
}

/// How the work on a request ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The message is no request.
    Malformed(String),
    /// The project is packaged.
    Done(Box<Done>, Duration),
    /// It cannot be, as it is.
    Failed(Box<Failure>),
    /// It may be, later.
    Transient(String),
    /// The packager is being stopped.
    Stopped,
}

/// What is to be done now.
#[derive(Debug, PartialEq)]
pub(crate) enum Action {
    /// Say that it is packaged, then [`settle`].
    Packaged(Box<ProjectPackaged>),
    /// Say that it failed, then [`settle`].
    Failed(Box<DeploymentFailed>),
    /// Settle the message at once.
    Settle(Settlement),
}

/// How a message is given back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Settlement {
    /// Its effect is durable.
    Ack,
    /// It is wanted again after a while.
    Retry(Duration),
    /// It can never succeed.
    Reject(String),
}

/// Decides what follows from the end of the work.
pub(crate) fn decide(attempt: Attempt, outcome: Outcome) -> Action {
    let generation = attempt.generation;
    match outcome {
        Outcome::Malformed(reason) => Action::Settle(Settlement::Reject(reason)),
        Outcome::Done(done, took) => Action::Packaged(Box::new(ProjectPackaged {
            generation,
            archive: done.archive,
            spec: done.spec,
            sealed_keys: done.sealed_keys,
            sealed_login: done.sealed_login,
            warnings: done.warnings,
            took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            extra: serde_json::Map::new(),
        })),
        Outcome::Failed(failure) => failed(generation, *failure),
        Outcome::Stopped => Action::Settle(Settlement::Retry(Duration::ZERO)),
        Outcome::Transient(_) if attempt.number < ATTEMPTS => Action::Settle(Settlement::Retry(delay(attempt.number))),
        Outcome::Transient(cause) => {
            let remedy = "look at the packager's log and the object store, then deploy again";
            failed(generation, Failure::platform(Stage::Packaging, cause, remedy))
        }
    }
}

/// Half a second after the first attempt, twice as long after each, at most 16 s.
fn delay(attempt: u64) -> Duration {
    Duration::from_millis(500 << attempt.saturating_sub(1).min(5))
}

fn failed(generation: Generation, failure: Failure) -> Action {
    Action::Failed(Box::new(DeploymentFailed {
        generation,
        failure,
        serving: None,
        warnings: Vec::new(),
        extra: serde_json::Map::new(),
    }))
}

/// Decides what becomes of the message once its outcome was said, or could not be.
pub(crate) fn settle(said: Result<(), Disposition>) -> Settlement {
    match said {
        Ok(()) => Settlement::Ack,
        Err(Disposition::Retry(after)) => Settlement::Retry(after),
        Err(Disposition::Fatal) => Settlement::Retry(delay(ATTEMPTS)),
        Err(Disposition::Reject) => Settlement::Reject("its outcome is larger than the bus takes".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proto::{id::Digest, packager::Archive};

    use super::*;

    fn attempt(number: u64) -> Attempt {
        Attempt { generation: Generation(7), number }
    }

    fn done() -> Done {
        let spec = serde_json::from_str(r#"{"entryScript": "score.py"}"#).unwrap();
        let archive = Archive { digest: Digest::from_sha256([1; 32]), size: 3, files: 2, ignored: 1 };
        Done { archive, spec, sealed_keys: None, sealed_login: None, warnings: vec!["w".to_owned()] }
    }

    #[test]
    fn what_is_packaged_is_said_with_its_generation() {
        let action = decide(attempt(1), Outcome::Done(Box::new(done()), Duration::from_millis(12)));
        let Action::Packaged(event) = action else { panic!("{action:?}") };
        assert_eq!((event.generation, event.took_ms, event.archive.files), (Generation(7), 12, 2));
        assert_eq!(event.warnings, ["w"]);
    }

    #[test]
    fn what_is_no_request_goes_to_the_dead_letters() {
        let action = decide(attempt(1), Outcome::Malformed("no".to_owned()));
        assert_eq!(action, Action::Settle(Settlement::Reject("no".to_owned())));
    }

    #[test]
    fn a_users_mistake_is_told_at_once() {
        let failure = Failure::project(Stage::Reading, "c", "r");
        let Action::Failed(event) = decide(attempt(1), Outcome::Failed(Box::new(failure.clone()))) else { panic!() };
        assert_eq!((event.generation, event.failure), (Generation(7), failure));
    }

    #[test]
    fn trouble_is_tried_again_with_growing_delays_and_told_in_the_end() {
        let mut last = Duration::ZERO;
        for number in 1..ATTEMPTS {
            let action = decide(attempt(number), Outcome::Transient("store".to_owned()));
            let Action::Settle(Settlement::Retry(after)) = action else { panic!("{action:?}") };
            assert!(after >= last && after <= Duration::from_secs(16), "{number}: {after:?}");
            last = after;
        }
        let Action::Failed(event) = decide(attempt(ATTEMPTS), Outcome::Transient("store".to_owned())) else { panic!() };
        assert_eq!(event.failure.blame, proto::failure::Blame::Platform);
    }

    #[test]
    fn being_stopped_is_no_attempt_that_counts() {
        let action = decide(attempt(ATTEMPTS + 5), Outcome::Stopped);
        assert_eq!(action, Action::Settle(Settlement::Retry(Duration::ZERO)));
    }

    #[test]
    fn a_message_is_acknowledged_only_after_its_outcome_is_durable() {
        assert_eq!(settle(Ok(())), Settlement::Ack);
        let later = Duration::from_secs(1);
        assert_eq!(settle(Err(Disposition::Retry(later))), Settlement::Retry(later));
        assert!(matches!(settle(Err(Disposition::Fatal)), Settlement::Retry(_)));
        assert!(matches!(settle(Err(Disposition::Reject)), Settlement::Reject(_)));
    }
}
