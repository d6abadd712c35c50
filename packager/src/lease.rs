//! Who counts on an archive, and who may delete it: the rules, without a bus or a clock.
//!
//! Whoever tells somebody that an archive is there has first written that it is in use; whoever deletes one has first written that it
//! is going. Both change one entry and only if nobody else has changed it since, so one of them comes second and sees the other.

use std::time::Duration;

use proto::packager::ArchiveLease;

/// How long an archive stays after somebody was told that it is there, for the event that names it to be in the stream.
const USE: Duration = Duration::from_secs(3600);
/// A use is written anew when less than this is left of it.
const RENEW: Duration = Duration::from_secs(1800);
/// How long a claim holds.
const CLAIM: Duration = Duration::from_secs(120);
/// How long after its claim an archive may still be deleted: a request to the store that is on its way ends before the claim does.
pub(crate) const DELETE_WITHIN: Duration = Duration::from_secs(60);

/// What to do before counting on an archive.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Nothing: it is held already.
    Held,
    /// Write this, if nobody else has changed the entry.
    Write(ArchiveLease),
    /// Look again soon: it is being deleted.
    Wait,
}

/// Decides how an archive comes to be in use.
pub(crate) fn hold(there: Option<ArchiveLease>, now_ms: u64) -> Hold {
    match there {
        Some(ArchiveLease::InUse { until_ms }) if until_ms > now_ms + millis(RENEW) => Hold::Held,
        Some(ArchiveLease::Going { until_ms }) if until_ms > now_ms => Hold::Wait,
        _ => Hold::Write(ArchiveLease::InUse { until_ms: now_ms + millis(USE) }),
    }
}

/// The entry of an archive that is to be deleted; `None` when somebody counts on it or deletes it already.
pub(crate) fn claim(there: Option<ArchiveLease>, now_ms: u64) -> Option<ArchiveLease> {
    match there {
        Some(ArchiveLease::InUse { until_ms } | ArchiveLease::Going { until_ms }) if until_ms > now_ms => None,
        _ => Some(ArchiveLease::Going { until_ms: now_ms + millis(CLAIM) }),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const NOW: u64 = 1_000_000_000;

    #[test]
    fn what_is_in_use_is_not_claimed_and_what_is_going_is_waited_for() {
        let used = ArchiveLease::InUse { until_ms: NOW + 1 };
        let going = ArchiveLease::Going { until_ms: NOW + 1 };
        assert_eq!(claim(Some(used), NOW), None);
        assert_eq!(claim(Some(going), NOW), None);
        assert_eq!(hold(Some(going), NOW), Hold::Wait);
        assert!(matches!(hold(Some(used), NOW), Hold::Write(_)), "it is nearly over");
        assert_eq!(hold(Some(ArchiveLease::InUse { until_ms: NOW + millis(USE) }), NOW), Hold::Held);
        for over in [None, Some(ArchiveLease::InUse { until_ms: NOW }), Some(ArchiveLease::Going { until_ms: NOW })] {
            assert!(claim(over, NOW).is_some() && matches!(hold(over, NOW), Hold::Write(_)), "{over:?}");
        }
    }

    /// One who uses the archive and one who prunes, step by step: what each has seen and is about to do.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum User {
        Begin,
        Seen(Option<ArchiveLease>, u64),
        Held,
        Missing,
        There,
        Said,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Pruner {
        Begin,
        Seen(Option<ArchiveLease>, u64),
        Claimed(u64),
        Unneeded(u64),
        Deleted(u64),
        End,
    }

    #[derive(Debug, Clone, Copy)]
    struct World {
        entry: Option<ArchiveLease>,
        revision: u64,
        stored: bool,
        mentioned: bool,
        users: [User; 2],
        pruners: [Pruner; 2],
    }

    impl World {
        fn write(&mut self, seen: u64, entry: Option<ArchiveLease>) -> bool {
            let first = self.revision == seen;
            if first {
                (self.entry, self.revision) = (entry, seen + 1);
            }
            first
        }

        /// One step of a user; `None` when it has none to take now.
        fn user(mut self, who: usize) -> Option<Self> {
            self.users[who] = match self.users[who] {
                User::Begin => User::Seen(self.entry, self.revision),
                User::Seen(entry, revision) => match hold(entry, NOW) {
                    Hold::Held => User::Held,
                    Hold::Write(lease) if self.write(revision, Some(lease)) => User::Held,
                    // Waiting is looking again; nothing new is seen unless somebody has written.
                    Hold::Wait if self.revision == revision => return None,
                    _ => User::Begin,
                },
                User::Held if self.stored => User::There,
                User::Held => User::Missing,
                User::Missing => {
                    self.stored = true;
                    User::There
                }
                User::There => {
                    self.mentioned = true;
                    User::Said
                }
                User::Said => return None,
            };
            Some(self)
        }

        fn pruner(mut self, who: usize) -> Option<Self> {
            self.pruners[who] = match self.pruners[who] {
                Pruner::Begin => Pruner::Seen(self.entry, self.revision),
                Pruner::Seen(entry, revision) => match claim(entry, NOW) {
                    Some(lease) if self.write(revision, Some(lease)) => Pruner::Claimed(self.revision),
                    _ => Pruner::End,
                },
                Pruner::Claimed(revision) if self.mentioned => Pruner::Deleted(revision),
                Pruner::Claimed(revision) => Pruner::Unneeded(revision),
                Pruner::Unneeded(revision) => {
                    self.stored = false;
                    Pruner::Deleted(revision)
                }
                Pruner::Deleted(revision) => {
                    self.write(revision, None);
                    Pruner::End
                }
                Pruner::End => return None,
            };
            Some(self)
        }
    }

    /// Follows every order in which the steps can be taken; what was met before is not followed again.
    fn explore(world: World, met: &mut HashSet<String>, ends: &mut u64) {
        if !met.insert(format!("{world:?}")) {
            return;
        }
        assert!(world.stored || !world.mentioned, "an archive that a deployment names was deleted");
        let next = (0..2).flat_map(|who| [world.user(who), world.pruner(who)]).flatten().collect::<Vec<_>>();
        if next.is_empty() {
            assert!(world.users.iter().all(|user| *user == User::Said), "somebody waits for ever");
            *ends += 1;
        }
        for world in next {
            explore(world, met, ends);
        }
    }

    #[test]
    fn in_no_order_of_steps_is_an_archive_deleted_that_somebody_counts_on() {
        for stored in [true, false] {
            for entry in
                [None, Some(ArchiveLease::InUse { until_ms: NOW }), Some(ArchiveLease::Going { until_ms: NOW })]
            {
                let world = World {
                    entry,
                    revision: 1,
                    stored,
                    mentioned: false,
                    users: [User::Begin; 2],
                    pruners: [Pruner::Begin; 2],
                };
                let mut ends = 0;
                explore(world, &mut HashSet::new(), &mut ends);
                assert!(ends > 0);
            }
        }
    }
}
