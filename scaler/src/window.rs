//! The highest and the lowest value of the last stretch of time, in bounded memory.
//!
//! Owns the slots that values are gathered in. It does not know what the values mean, nor what follows from them.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// Into how many slots a span is divided; a value may be remembered for one slot longer than the span, never shorter.
const SLOTS: u32 = 60;

/// The extremes of the values noted within a span of time.
#[derive(Debug)]
pub(crate) struct Window {
    span: Duration,
    since: Option<Instant>,
    slots: VecDeque<Slot>,
}

#[derive(Debug)]
struct Slot {
    start: Instant,
    low: f64,
    high: f64,
}

impl Window {
    /// An empty window; with a span of zero it holds the newest value alone.
    pub(crate) fn new(span: Duration) -> Self {
        Self { span, since: None, slots: VecDeque::new() }
    }

    /// Notes a value; `now` must not go backwards.
    pub(crate) fn note(&mut self, now: Instant, value: f64) {
        let (span, width) = (self.span, self.span / SLOTS);
        self.slots.retain(|slot| slot.start + width + span > now);
        self.since.get_or_insert(now);
        match self.slots.back_mut() {
            Some(slot) if now < slot.start + width => {
                slot.low = slot.low.min(value);
                slot.high = slot.high.max(value);
            }
            _ => self.slots.push_back(Slot { start: now, low: value, high: value }),
        }
    }

    /// Forgets every value: what was is no longer known without a gap.
    pub(crate) fn clear(&mut self) {
        self.since = None;
        self.slots.clear();
    }

    /// Keeps the values, but lets the span begin anew; an empty window stays empty.
    pub(crate) fn restart(&mut self, now: Instant) {
        self.since = self.since.map(|_| now);
    }

    /// For how long values have been noted without a gap, at most the span.
    pub(crate) fn held(&self, now: Instant) -> Duration {
        self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since)).min(self.span)
    }

    /// Whether values have been noted over the whole span without a gap.
    pub(crate) fn is_full(&self, now: Instant) -> bool {
        self.since.is_some() && self.held(now) >= self.span
    }

    /// The highest value; `None` when nothing was noted.
    pub(crate) fn high(&self) -> Option<f64> {
        self.slots.iter().map(|slot| slot.high).reduce(f64::max)
    }

    /// The lowest value; `None` when nothing was noted.
    pub(crate) fn low(&self) -> Option<f64> {
        self.slots.iter().map(|slot| slot.low).reduce(f64::min)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_window_of_no_length_knows_only_the_newest_value() {
        let (mut window, now) = (Window::new(Duration::ZERO), Instant::now());
        window.note(now, 5.0);
        window.note(now, 2.0);
        assert_eq!((window.low(), window.high()), (Some(2.0), Some(2.0)));
        assert!(window.is_full(now));
    }

    #[test]
    fn a_cleared_window_is_filled_from_the_start() {
        let (mut window, start) = (Window::new(Duration::from_secs(60)), Instant::now());
        window.note(start, 1.0);
        window.clear();
        assert_eq!(window.high(), None);
        window.note(start + Duration::from_secs(50), 1.0);
        assert!(!window.is_full(start + Duration::from_secs(70)));
        assert!(window.is_full(start + Duration::from_secs(110)));
    }

    proptest! {
        #[test]
        fn extremes_are_those_of_the_span_and_memory_is_bounded(
            steps in proptest::collection::vec((0_u64..9_000, 0.0_f64..100.0), 1..300)
        ) {
            let span = Duration::from_secs(60);
            let (mut window, mut now, mut all) = (Window::new(span), Instant::now(), Vec::new());
            for (step, value) in steps {
                now += Duration::from_millis(step);
                window.note(now, value);
                all.push((now, value));
                let within = |reach: Duration| all.iter().filter(move |(at, _)| now - *at < reach).map(|(_, value)| *value);
                let (high, low) = (window.high().unwrap(), window.low().unwrap());
                prop_assert!(high >= within(span).reduce(f64::max).unwrap());
                prop_assert!(low <= within(span).reduce(f64::min).unwrap());
                // No longer than the span and one slot.
                prop_assert!(high <= within(Duration::from_millis(61_001)).reduce(f64::max).unwrap());
                prop_assert!(window.slots.len() <= SLOTS as usize + 2);
            }
        }
    }
}
