//! How busy a service is, on average over a window: integrals over time, not samples.

use tokio::time::{Duration, Instant};

/// What is so at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Gauges {
    /// Replicas that may be chosen and have at least one request.
    pub(crate) busy: u32,
    /// Requests in replicas.
    pub(crate) concurrent: u32,
    /// Requests in the queue.
    pub(crate) queued: u32,
}

/// Averages over a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Window {
    /// Its length.
    pub(crate) length: Duration,
    /// See [`Gauges::busy`].
    pub(crate) busy: f64,
    /// See [`Gauges::concurrent`].
    pub(crate) concurrent: f64,
    /// See [`Gauges::queued`].
    pub(crate) queued: f64,
}

/// Integrates gauges over time.
#[derive(Debug)]
pub(crate) struct Load {
    opened: Instant,
    until: Instant,
    now: Gauges,
    busy: f64,
    concurrent: f64,
    queued: f64,
}

impl Load {
    /// A window that opens now, with nothing going on.
    pub(crate) fn new(now: Instant) -> Self {
        Self { opened: now, until: now, now: Gauges::default(), busy: 0.0, concurrent: 0.0, queued: 0.0 }
    }

    /// What is so now.
    pub(crate) fn gauges(&self) -> Gauges {
        self.now
    }

    /// Says what is so from now on. Threads read their clocks before they come here, so `now` may be a little late; it never goes back.
    pub(crate) fn set(&mut self, now: Instant, gauges: Gauges) {
        let passed = now.saturating_duration_since(self.until).as_secs_f64();
        self.busy += f64::from(self.now.busy) * passed;
        self.concurrent += f64::from(self.now.concurrent) * passed;
        self.queued += f64::from(self.now.queued) * passed;
        self.until = self.until.max(now);
        self.now = gauges;
    }

    /// Closes the window and opens the next one.
    pub(crate) fn close(&mut self, now: Instant) -> Window {
        self.set(now, self.now);
        let length = self.until - self.opened;
        let seconds = length.as_secs_f64();
        // A window without length has only this moment to tell of.
        let mean = |sum: f64, moment: u32| if seconds > 0.0 { sum / seconds } else { f64::from(moment) };
        let window = Window {
            length,
            busy: mean(self.busy, self.now.busy),
            concurrent: mean(self.concurrent, self.now.concurrent),
            queued: mean(self.queued, self.now.queued),
        };
        *self = Self { now: self.now, ..Self::new(self.until) };
        window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gauges(concurrent: u32) -> Gauges {
        Gauges { busy: concurrent.min(1), concurrent, queued: 2 * concurrent }
    }

    #[test]
    fn a_window_weighs_each_moment_by_its_length() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut load = Load::new(start);
        load.set(at(250), gauges(4));
        load.set(at(500), gauges(0));
        let window = load.close(at(1000));
        assert_eq!(window.length, Duration::from_secs(1));
        assert!((window.concurrent - 1.0).abs() < 1e-9, "{window:?}");
        assert!((window.busy - 0.25).abs() < 1e-9, "{window:?}");
        assert!((window.queued - 2.0).abs() < 1e-9, "{window:?}");
    }

    #[test]
    fn what_goes_on_goes_on_in_the_next_window() {
        let start = Instant::now();
        let mut load = Load::new(start);
        load.set(start, gauges(3));
        load.close(start + Duration::from_secs(1));
        let window = load.close(start + Duration::from_secs(3));
        assert_eq!(window.length, Duration::from_secs(2));
        assert!((window.concurrent - 3.0).abs() < 1e-9, "{window:?}");
    }

    #[test]
    fn a_window_without_length_tells_the_moment() {
        let start = Instant::now();
        let mut load = Load::new(start);
        load.set(start, gauges(3));
        assert!((load.close(start).concurrent - 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_late_clock_does_not_turn_time_back() {
        let start = Instant::now();
        let mut load = Load::new(start);
        load.set(start + Duration::from_secs(1), gauges(2));
        load.set(start, gauges(1));
        let window = load.close(start + Duration::from_secs(2));
        assert_eq!(window.length, Duration::from_secs(2));
        assert!((window.concurrent - 0.5).abs() < 1e-9, "{window:?}");
    }
}
