//! How long the place of a crashed replica stays empty.

use std::time::Duration;

use tokio::time::Instant;

/// The delay after the first crash.
const FIRST: Duration = Duration::from_secs(1);
/// The longest delay.
const MOST: Duration = Duration::from_secs(60);
/// A replica that was up for this long did not crash "again".
const STEADY: Duration = Duration::from_secs(60);

/// The crashes of one generation.
#[derive(Default)]
pub(super) struct Restarts {
    in_a_row: u32,
    /// For each place that a crash has emptied, when it may be filled.
    places: Vec<Instant>,
}

impl Restarts {
    /// Takes a crash into account; `ready_for` is how long the replica had been ready. Returns how many there were in a row.
    pub(super) fn crashed(&mut self, now: Instant, ready_for: Option<Duration>) -> u32 {
        if ready_for.is_some_and(|time| time >= STEADY) {
            self.in_a_row = 0;
        }
        let delay = FIRST.saturating_mul(1 << self.in_a_row.min(6)).min(MOST);
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.places.push(now + delay);
        self.in_a_row
    }

    /// A replica became ready: what comes next is not "in a row". Used for candidates; one that serves has to prove itself for longer.
    pub(super) fn succeeded(&mut self) {
        self.in_a_row = 0;
    }

    /// How many places must stay empty for now.
    pub(super) fn held(&mut self, now: Instant) -> usize {
        self.places.retain(|at| *at > now);
        self.places.len()
    }

    /// When the next place may be filled.
    pub(super) fn next(&self) -> Option<Instant> {
        self.places.iter().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_crashed_replica_stays_empty_for_longer_and_longer_up_to_a_minute() {
        let start = Instant::now();
        let mut restarts = Restarts::default();
        let mut delays = Vec::new();
        for _ in 0..9 {
            restarts.crashed(start, None);
            delays.push((*restarts.places.last().unwrap() - start).as_secs());
        }
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }

    #[test]
    fn a_minute_of_service_wipes_the_slate() {
        let start = Instant::now();
        let mut restarts = Restarts::default();
        for _ in 0..5 {
            restarts.crashed(start, Some(Duration::from_secs(59)));
        }
        assert_eq!(restarts.crashed(start, Some(Duration::from_secs(60))), 1);
    }

    #[test]
    fn only_the_places_of_crashed_replicas_are_held() {
        let start = Instant::now();
        let mut restarts = Restarts::default();
        restarts.crashed(start, None);
        restarts.crashed(start, None);
        assert_eq!(restarts.held(start), 2);
        assert_eq!(restarts.held(start + Duration::from_secs(1)), 1);
        assert_eq!(restarts.held(start + Duration::from_secs(2)), 0);
    }
}
