//! Quantiles of a second's latencies, in fixed memory.

use tokio::time::Duration;

/// Eight steps to each doubling: a quantile is at most 1/16 off.
const STEPS: u32 = 8;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// Up to 2³² µs, a little over an hour.
const BUCKETS: usize = (STEPS * (32 - STEP_BITS + 1)) as usize;

/// Counts latencies in buckets that grow with them. Takes no memory before the first one.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    counts: Vec<u32>,
    total: u64,
}

impl Latencies {
    /// Counts one.
    pub(crate) fn record(&mut self, latency: Duration) {
        if self.counts.is_empty() {
            self.counts = vec![0; BUCKETS];
        }
        let count = &mut self.counts[bucket(latency)];
        *count = count.saturating_add(1);
        self.total += 1;
    }

    /// The latency in milliseconds that a share `q` of all (0 to 1) does not pass; 0 when there was none.
    pub(crate) fn quantile_ms(&self, q: f64) -> f64 {
        let wanted = (self.total as f64 * q).ceil().max(1.0);
        let mut seen = 0.0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += f64::from(*count);
            if seen >= wanted {
                return middle_us(index) / 1000.0;
            }
        }
        0.0
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        if self.total > 0 {
            self.counts.fill(0);
            self.total = 0;
        }
    }
}

fn bucket(latency: Duration) -> usize {
    let us = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
    if us < STEPS {
        return us as usize;
    }
    let doubling = us.ilog2() - STEP_BITS;
    // The leading one is left out: it is what `doubling` says.
    let step = (us >> doubling) - STEPS;
    ((doubling + 1) * STEPS + step) as usize
}

fn middle_us(index: usize) -> f64 {
    let index = u32::try_from(index).unwrap_or(u32::MAX);
    if index < STEPS {
        return f64::from(index);
    }
    let (doubling, step) = (index / STEPS - 1, index % STEPS);
    let width = f64::from(1u32 << doubling);
    (f64::from(STEPS + step) + 0.5) * width
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantiles_of_a_known_series_are_found() {
        let mut latencies = Latencies::default();
        assert!(latencies.quantile_ms(0.5).abs() < f64::EPSILON);
        for ms in 1..=1000 {
            latencies.record(Duration::from_millis(ms));
        }
        let (p50, p99) = (latencies.quantile_ms(0.5), latencies.quantile_ms(0.99));
        assert!((p50 / 500.0 - 1.0).abs() < 0.07, "{p50}");
        assert!((p99 / 990.0 - 1.0).abs() < 0.07, "{p99}");
        latencies.clear();
        assert!(latencies.quantile_ms(0.99).abs() < f64::EPSILON);
    }

    proptest! {
        #[test]
        fn every_latency_has_a_bucket_near_it(us in 0u64..20_000_000_000) {
            let index = bucket(Duration::from_micros(us));
            prop_assert!(index < BUCKETS);
            let held = us.min(u64::from(u32::MAX)) as f64;
            prop_assert!((middle_us(index) - held).abs() <= held / 8.0 + 0.5, "{} {}", us, middle_us(index));
        }
    }
}
