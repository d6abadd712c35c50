//! The rule: from a load to a number of replicas, with the sentence that explains it.
//!
//! Owns the formula. It does not know time, routers, or what was decided before.
//!
//! Demand is a number of requests at a time. v1 documents `replicas = ceil(rps × seconds ÷ target ÷ concurrency)` for sizing
//! and counts the queue into the utilization; neither serves alone. Requests in replicas can never exceed what the replicas
//! hold, so they do not show how much is missing. A queue of 50 requests of 30 ms is 1.5 replica-seconds of work, not 50
//! replicas. And six requests of ten seconds that come at once are six, not six a second times ten seconds. So:
//!
//! - *at least* what is in replicas, and what waits in proportion to how much of a second each waiting request will take;
//! - *as much as* arrivals × time a request, when requests wait or are refused,
//! - *but not more than* what is in replicas, in queues, and was refused.

use std::{fmt, time::Duration};

use proto::spec::Scaling;

use crate::aggregate::{Facts, Load};

/// Fewer replicas have to serve this much more than the highest demand: it is not measured to the percent, and one that was asked for
/// because of noise must not go because of it.
const SLACK: f64 = 0.02;

/// How many requests at a time a service has to serve, and how that was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Demand {
    /// Requests at a time.
    pub requests: f64,
    basis: Basis,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Basis {
    /// Requests come at a rate and take a time, in seconds.
    Rate { a_second: f64, seconds: f64 },
    /// Requests in replicas, waiting, and refused.
    Count { concurrent: f64, waiting: f64, refused: f64 },
    /// The highest demand of a time.
    Highest { requests: f64, time: Duration },
    /// The lowest demand of a time.
    Lowest(Duration),
}

impl Demand {
    /// The demand that a load shows; `time` is the mean time of a request in a replica, in seconds, where it is known.
    pub fn of(load: &Load, time: Option<f64>) -> Self {
        let Load { concurrent, queued, refused, arrivals, completed, .. } = *load;
        let count = |waiting: f64, refused: f64| Self {
            requests: concurrent + waiting + refused,
            basis: Basis::Count { concurrent, waiting, refused },
        };
        let Some(time) = time else { return count(0.0, 0.0) };
        let least = count(queued * time.min(1.0), 0.0);
        let most = count(queued, refused * time);
        let offered = Self { requests: arrivals * time, basis: Basis::Rate { a_second: arrivals, seconds: time } };
        let shown = if offered.requests < most.requests { offered } else { most };
        if shown.requests > least.requests {
            shown
        } else if least.requests > concurrent || completed <= 0.0 {
            least
        } else {
            Self { requests: concurrent, basis: Basis::Rate { a_second: completed, seconds: concurrent / completed } }
        }
    }

    /// The highest demand of the last `time`, and 2 % more: what fewer replicas have to serve.
    pub fn highest(requests: f64, time: Duration) -> Self {
        Self { requests: requests * (1.0 + SLACK), basis: Basis::Highest { requests, time } }
    }

    /// The lowest demand of the last `time`.
    pub fn lowest(requests: f64, time: Duration) -> Self {
        Self { requests, basis: Basis::Lowest(time) }
    }

    /// How many replicas serve this demand at the target, within the bounds; `None` when their number is fixed.
    pub fn needed(&self, facts: &Facts) -> Option<u32> {
        let Scaling::Auto { target_utilization, .. } = facts.scaling else { return None };
        // A float above u32::MAX becomes u32::MAX, and a maximum holds anyway.
        Some(facts.scaling.clamp(self.replicas(target_utilization, facts.concurrency).ceil() as u32))
    }

    /// Replicas without rounding and bounds.
    fn replicas(&self, target: u8, concurrency: u32) -> f64 {
        // Sums of measured figures carry rounding errors; one in a million is no further replica.
        (self.requests * 100.0 / (f64::from(target) * f64::from(concurrency)) * 1e6).round() / 1e6
    }

    /// The rule in one sentence for a person; empty when the number of replicas is fixed.
    pub fn explain(&self, facts: &Facts) -> String {
        let Scaling::Auto { min_replicas, max_replicas, target_utilization, .. } = facts.scaling else {
            return String::new();
        };
        let (exact, concurrency) = (self.replicas(target_utilization, facts.concurrency), facts.concurrency);
        let each = if concurrency == 1 { String::new() } else { format!(" of {concurrency} at a time") };
        let bound = if exact > f64::from(max_replicas) {
            format!("{max_replicas} fit (maximum {max_replicas})")
        } else if exact <= f64::from(min_replicas) {
            format!("{min_replicas} is the minimum")
        } else {
            format!("so {}", exact.ceil())
        };
        format!("{self}; at {target_utilization} %{each} that is {} replicas; {bound}", brief(exact))
    }
}

impl fmt::Display for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.basis {
            Basis::Rate { a_second, seconds } => {
                write!(f, "{} requests/s × {} = {:.2} busy", brief(a_second), duration(seconds), self.requests)
            }
            Basis::Count { concurrent, waiting, refused } => {
                write!(f, "{concurrent:.2} in replicas")?;
                if waiting > 0.0 {
                    write!(f, " + {waiting:.2} waiting")?;
                }
                if refused > 0.0 {
                    write!(f, " + {refused:.2} refused")?;
                }
                write!(f, " = {:.2} busy", self.requests)
            }
            Basis::Highest { requests, time } => {
                let time = duration(time.as_secs_f64());
                write!(f, "at most {requests:.2} busy for {time}, and {} % to be sure", brief(SLACK * 100.0))
            }
            Basis::Lowest(time) => write!(f, "at least {:.2} busy for {}", self.requests, duration(time.as_secs_f64())),
        }
    }
}

/// A number as a person writes it: one decimal, and none where it says nothing.
fn brief(value: f64) -> String {
    let text = format!("{value:.1}");
    match text.strip_suffix(".0") {
        Some(whole) => whole.to_owned(),
        None if value >= 100.0 => format!("{value:.0}"),
        None => text,
    }
}

fn duration(seconds: f64) -> String {
    if seconds < 10.0 { format!("{} ms", brief(seconds * 1000.0)) } else { format!("{} s", brief(seconds)) }
}
