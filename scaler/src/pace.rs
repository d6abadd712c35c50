//! How long a request of a service takes in a replica, on average over the last while.
//!
//! Owns the estimate. It does not know what is decided from it.

use std::time::Duration;

use tokio::time::Instant;

use crate::aggregate::Load;

/// After this time a past request counts half.
const HALF_LIFE: Duration = Duration::from_secs(15);

/// What one look at the load covers at most: over a longer gap nothing is known.
const LONGEST: Duration = Duration::from_secs(3);

/// The mean time of a request in a replica.
///
/// The time that all requests spent in replicas, divided by how many began: those that were answered, and those that are
/// at it. Counting the latter makes it a lower bound while requests last longer than they have been watched, and it grows
/// with them, so that a service of slow requests is not taken for one without any.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    at: Option<Instant>,
    spent: f64,
    answered: f64,
    running: f64,
}

impl Pace {
    /// Looks at the load as it is now; it stands for the time since the last look.
    pub(crate) fn look(&mut self, now: Instant, load: &Load) {
        let since = self.at.map_or(Duration::from_secs(1), |at| now.saturating_duration_since(at));
        let kept = 0.5_f64.powf(since.as_secs_f64() / HALF_LIFE.as_secs_f64());
        let covered = since.min(LONGEST).as_secs_f64();
        self.spent = self.spent * kept + load.concurrent * covered;
        self.answered = self.answered * kept + load.completed * covered;
        self.running = load.concurrent;
        self.at = Some(now);
    }

    /// The mean time in seconds; `None` while no request was ever seen in a replica, or long ago.
    pub(crate) fn seconds(&self) -> Option<f64> {
        let began = self.answered + self.running;
        (self.spent > 1e-6 && began > 1e-6).then(|| self.spent / began)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(pace: &mut Pace, seconds: u64, load: Load) -> f64 {
        let start = pace.at.unwrap_or_else(Instant::now);
        for second in 1..=seconds {
            pace.look(start + Duration::from_secs(second), &load);
        }
        pace.seconds().unwrap()
    }

    #[test]
    fn short_requests_are_measured_to_a_percent() {
        let load = Load { concurrent: 3.66, completed: 118.0, ..Load::default() };
        let seconds = watch(&mut Pace::default(), 20, load);
        assert!((seconds / 0.031 - 1.0).abs() < 0.01, "{seconds}");
    }

    #[test]
    fn requests_that_never_ended_yet_have_taken_as_long_as_they_were_watched() {
        let load = Load { concurrent: 100.0, ..Load::default() };
        let seconds = watch(&mut Pace::default(), 5, load);
        assert!((4.0..=6.0).contains(&seconds), "{seconds}");
    }

    #[test]
    fn nothing_is_known_of_a_service_that_was_never_called() {
        let mut pace = Pace::default();
        pace.look(Instant::now(), &Load { refused: 100.0, ..Load::default() });
        assert_eq!(pace.seconds(), None);
    }
}
