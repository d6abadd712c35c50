//! What to do next about one environment: a function of what is known of it and of the time.
//!
//! It knows the record of an environment. It does no I/O and reads no clock.

use std::time::Duration;

use proto::{builder::EnvironmentRecord, failure::Failure};
use runtime::bus::Entry;

use crate::maker::Made;

/// How long after a lease has lapsed it is looked at again: clocks of one machine agree, timers do not quite.
const GRACE: Duration = Duration::from_millis(100);

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is said to be there: see whether it is.
    Look {
        /// Where, and scanned by what.
        made: Made,
        /// The revision that says so.
        revision: u64,
    },
    /// It could not be built a moment ago, and would not be now.
    Refuse {
        /// Why.
        failure: Failure,
        /// Until when that is remembered (Unix milliseconds).
        expires_ms: u64,
    },
    /// Another builder is at it: wait for news, at most this long.
    Wait {
        /// Who is at it.
        builder: String,
        /// How long.
        most: Duration,
    },
    /// Nobody is at it: take the lease, in place of this revision or of nothing.
    Take(Option<u64>),
}

/// Decides. `gone` is the revision whose image was looked for and not found.
pub(crate) fn next(now_ms: u64, entry: Option<&Entry<EnvironmentRecord>>, gone: Option<u64>) -> Step {
    let Some(Entry { value, revision }) = entry else { return Step::Take(None) };
    match value {
        EnvironmentRecord::Ready { image, scan, .. } if gone != Some(*revision) => {
            Step::Look { made: Made { image: image.clone(), scan: scan.clone() }, revision: *revision }
        }
        EnvironmentRecord::Failed { failure, expires_ms } if now_ms < *expires_ms => {
            Step::Refuse { failure: failure.clone(), expires_ms: *expires_ms }
        }
        EnvironmentRecord::Building { builder, lease_until_ms } if now_ms < *lease_until_ms => {
            Step::Wait { builder: builder.to_string(), most: Duration::from_millis(lease_until_ms - now_ms) + GRACE }
        }
        _ => Step::Take(Some(*revision)),
    }
}

/// What to do about a conflict when the holder of a lease writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Conflict {
    /// The write had been done after all, as this revision; only its answer was lost.
    Done(u64),
    /// A sign of life of our own had gone unnoticed: write again, over this revision.
    Again(u64),
    /// Another builder has it.
    Lost,
}

/// Decides what a conflict means to `me`, who wanted to write `wanted` and found `entry`.
pub(crate) fn conflict(me: &str, wanted: &EnvironmentRecord, entry: Option<&Entry<EnvironmentRecord>>) -> Conflict {
    match entry {
        Some(Entry { value, revision }) if value == wanted => Conflict::Done(*revision),
        Some(Entry { value: EnvironmentRecord::Building { builder, .. }, revision }) if builder.as_str() == me => {
            Conflict::Again(*revision)
        }
        _ => Conflict::Lost,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proto::{builder::Image, failure::Stage};

    use super::*;

    fn made() -> Made {
        let image = Image::VirtualEnvironment { path: "/e/1".to_owned(), python: "3.11.7".to_owned() };
        Made { image, scan: None }
    }

    fn building(builder: &str, lease_until_ms: u64) -> EnvironmentRecord {
        EnvironmentRecord::Building { builder: builder.parse().unwrap(), lease_until_ms }
    }

    fn ready() -> EnvironmentRecord {
        EnvironmentRecord::Ready { image: made().image, built: String::new(), took_ms: 1, scan: None }
    }

    fn failed(expires_ms: u64) -> EnvironmentRecord {
        EnvironmentRecord::Failed { failure: Failure::project(Stage::Building, "c", "r"), expires_ms }
    }

    fn at(now_ms: u64, value: EnvironmentRecord, gone: Option<u64>) -> Step {
        next(now_ms, Some(&Entry { value, revision: 7 }), gone)
    }

    #[test]
    fn an_environment_that_nobody_knows_is_taken() {
        assert_eq!(next(1, None, None), Step::Take(None));
    }

    #[test]
    fn one_that_is_ready_is_looked_at_once_and_built_again_when_it_is_gone() {
        assert_eq!(at(1, ready(), None), Step::Look { made: made(), revision: 7 });
        assert_eq!(at(1, ready(), Some(7)), Step::Take(Some(7)));
        assert_eq!(at(1, ready(), Some(6)), Step::Look { made: made(), revision: 7 }, "it was built again meanwhile");
    }

    #[test]
    fn one_that_is_being_built_is_waited_for_until_the_lease_lapses() {
        let Step::Wait { builder, most } = at(1000, building("other", 3000), None) else { panic!() };
        assert_eq!((builder.as_str(), most), ("other", Duration::from_millis(2100)));
        assert_eq!(at(3000, building("other", 3000), None), Step::Take(Some(7)));
        assert!(
            matches!(at(1000, building("me", 3000), None), Step::Wait { .. }),
            "an earlier life's lease is no different"
        );
    }

    #[test]
    fn a_failure_is_remembered_until_it_expires() {
        assert!(matches!(at(999, failed(1000), None), Step::Refuse { expires_ms: 1000, .. }));
        assert_eq!(at(1000, failed(1000), None), Step::Take(Some(7)));
    }

    #[test]
    fn a_conflict_is_lost_only_to_another() {
        let entry = |value| Some(Entry { value, revision: 9 });
        assert_eq!(conflict("me", &ready(), entry(ready()).as_ref()), Conflict::Done(9));
        assert_eq!(conflict("me", &ready(), entry(building("me", 1)).as_ref()), Conflict::Again(9));
        assert_eq!(conflict("me", &ready(), entry(building("other", 1)).as_ref()), Conflict::Lost);
        assert_eq!(conflict("me", &ready(), entry(failed(1)).as_ref()), Conflict::Lost);
        assert_eq!(conflict("me", &ready(), None), Conflict::Lost);
    }

    proptest! {
        #[test]
        fn nobody_waits_for_ever(now_ms in 0..10_000u64, until in 0..10_000u64) {
            match at(now_ms, building("other", until), None) {
                Step::Wait { most, .. } => {
                    let after = now_ms + u64::try_from(most.as_millis()).unwrap();
                    prop_assert_eq!(at(after, building("other", until), None), Step::Take(Some(7)));
                }
                step => prop_assert_eq!(step, Step::Take(Some(7))),
            }
        }
    }
}
