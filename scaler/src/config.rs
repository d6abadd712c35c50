//! The scaler's settings: as typed ([`Args`]) and as checked ([`Config`]).

use std::time::Duration;

use runtime::config::CommonArgs;

use crate::decide::Timing;

/// Decides how many replicas each service needs, from what the routers say.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "kaai-scaler", version)]
pub struct Args {
    /// Settings that every component has.
    #[command(flatten)]
    pub common: CommonArgs,
    /// How long a service must have needed more replicas before it gets them; 0 follows the first news, within a second
    #[arg(long, env = "KAAI_SCALE_UP_DELAY", value_name = "SECONDS", default_value_t = 0.0)]
    pub scale_up_delay: f64,
    /// How long a service must have needed fewer replicas before some go
    #[arg(long, env = "KAAI_SCALE_DOWN_DELAY", value_name = "SECONDS", default_value_t = 60.0)]
    pub scale_down_delay: f64,
    /// How old the newest news of a router may be before the load counts as unknown and nothing is scaled down
    #[arg(long, env = "KAAI_STALE_AFTER", value_name = "SECONDS", default_value_t = 3.0)]
    pub stale_after: f64,
}

/// Checked settings of the scaler. `Config::default()` is what a scaler without arguments has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// The times that govern decisions.
    pub timing: Timing,
}

/// A setting is wrong.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{flag} is {value} s; choose a number of seconds from {least} to {most}")]
pub struct Error {
    flag: &'static str,
    value: f64,
    least: f64,
    most: f64,
}

impl TryFrom<Args> for Config {
    type Error = Error;

    fn try_from(args: Args) -> Result<Self, Error> {
        let most = 86_400.0;
        Ok(Self {
            timing: Timing {
                up: seconds("--scale-up-delay", args.scale_up_delay, 0.0, most)?,
                down: seconds("--scale-down-delay", args.scale_down_delay, 0.0, most)?,
                // Routers speak once a second: below two, one lost event would make a service unknown.
                stale: seconds("--stale-after", args.stale_after, 2.0, 60.0)?,
                ..Timing::default()
            },
        })
    }
}

fn seconds(flag: &'static str, value: f64, least: f64, most: f64) -> Result<Duration, Error> {
    let error = Error { flag, value, least, most };
    if (least..=most).contains(&value) { Ok(Duration::from_secs_f64(value)) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn read(arguments: &[&str]) -> Result<Config, Error> {
        Args::parse_from([&["kaai-scaler"], arguments].concat()).try_into()
    }

    #[test]
    fn without_arguments_the_times_are_v1s() {
        let config = read(&[]).unwrap();
        assert_eq!(config, Config::default());
        assert_eq!((config.timing.up, config.timing.down), (Duration::ZERO, Duration::from_secs(60)));
    }

    #[test]
    fn times_may_be_fractions_within_their_bounds() {
        let config = read(&["--scale-up-delay", "2.5", "--scale-down-delay", "1"]).unwrap();
        assert_eq!(config.timing.up, Duration::from_millis(2500));
        for wrong in ["-1", "nan", "inf", "1e9"] {
            let error = read(&[&format!("--scale-down-delay={wrong}")]).unwrap_err();
            assert!(error.to_string().contains("--scale-down-delay"), "{error}");
        }
    }
}
