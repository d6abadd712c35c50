//! `kaai scale`: another number of replicas, or other bounds.

use std::time::Duration;

use proto::{
    id::ServiceName,
    scaler::ScaleRequested,
    spec::{MAX_REPLICAS, Scaling},
};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    connection::Reach,
    ending::{Ending, Result},
    output::{self, Format, Stages},
};

/// Hold a service at a number of replicas, or let it scale between bounds
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
pub struct Args {
    /// The service
    service: ServiceName,
    /// Hold this number of replicas; scaling is off until bounds are given again
    #[arg(long, conflicts_with_all = ["min", "max", "target"], value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_REPLICAS)))]
    replicas: Option<u32>,
    /// The fewest replicas
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_REPLICAS)))]
    min: Option<u32>,
    /// The most replicas
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_REPLICAS)))]
    max: Option<u32>,
    /// Busy replicas ÷ all replicas to aim at, in percent
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=100))]
    target: Option<u8>,
    /// Do not wait until the replicas are there
    #[arg(long)]
    no_wait: bool,
    /// Seconds to wait until the replicas are there
    #[arg(long, default_value_t = 300)]
    timeout: u64,
}

/// Says `scale.requested` and waits until the service has as many replicas as it should.
pub async fn run(args: Args, reach: &Reach, format: Format) -> Result {
    if args.replicas.is_none() && args.min.is_none() && args.max.is_none() && args.target.is_none() {
        return Err(Ending::usage("there is nothing to change", "give --replicas, or --min, --max and --target"));
    }
    let connection = reach.connect().await?;
    let record = connection.service(&args.service).await?.value;
    let scaling = wanted(&args, &record.scaling)?;
    let reason = match &scaling {
        Scaling::Fixed { replicas } => format!("held at {replicas} by hand"),
        Scaling::Auto { min_replicas, max_replicas, target_utilization, .. } => {
            format!("{min_replicas} to {max_replicas} at {target_utilization} %, set by hand")
        }
    };
    let request = ScaleRequested {
        by: "a user".to_owned(),
        generation: None,
        replicas: args.replicas,
        scaling: Some(scaling),
        reason,
        inputs: None,
        extra: serde_json::Map::new(),
    };
    let id = format!("scale/{}", uuid::Uuid::now_v7());
    let workspace = connection.workspace().clone();
    let sequence = connection.bus.say(&workspace, &args.service, &id, &request).await?;

    let mut stages = Stages::new(format);
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    let record = loop {
        let record = connection.service(&args.service).await?.value;
        if record.scale_sequence >= sequence && (args.no_wait || record.ready == record.replicas) {
            break record;
        }
        if Instant::now() >= deadline {
            let cause = format!("{} of {} replicas are ready after {} s", record.ready, record.replicas, args.timeout);
            return Err(Ending::platform(
                cause,
                format!("it goes on; look at `kaai status` and `kaai logs {}`", args.service),
            ));
        }
        stages.news("scaling", &format!("{} of {} replicas", record.ready, record.replicas));
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let took = stages.elapsed();
    stages.clear();
    match format {
        Format::Json => output::json(
            &json!({ "service": record.name, "replicas": record.replicas, "ready": record.ready, "scaling": record.scaling }),
        ),
        Format::Text => output::line(&format!(
            "{} has {} of {} replicas ({})",
            record.name,
            record.ready,
            record.replicas,
            output::seconds(took)
        )),
    }
    Ok(())
}

fn wanted(args: &Args, now: &Scaling) -> Result<Scaling> {
    if let Some(replicas) = args.replicas {
        return Ok(Scaling::Fixed { replicas });
    }
    let (target, refresh) = match *now {
        Scaling::Auto { target_utilization, refresh_seconds, .. } => (target_utilization, refresh_seconds),
        Scaling::Fixed { .. } => (70, 1),
    };
    let (min, max) = now.bounds();
    let min_replicas = args.min.unwrap_or(min);
    let max_replicas = args.max.unwrap_or(max.max(min_replicas));
    if min_replicas > max_replicas {
        let cause = format!("the minimum ({min_replicas}) is more than the maximum ({max_replicas})");
        return Err(Ending::usage(cause, "give both --min and --max"));
    }
    Ok(Scaling::Auto {
        min_replicas,
        max_replicas,
        target_utilization: args.target.unwrap_or(target),
        refresh_seconds: refresh,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(min: Option<u32>, max: Option<u32>) -> Args {
        let service = "ridge".parse().unwrap();
        Args { service, replicas: None, min, max, target: None, no_wait: false, timeout: 1 }
    }

    #[test]
    fn a_new_minimum_takes_the_maximum_along() {
        let now = Scaling::Fixed { replicas: 2 };
        assert_eq!(wanted(&args(Some(4), None), &now).unwrap().bounds(), (4, 4));
        assert_eq!(wanted(&args(None, Some(9)), &now).unwrap().bounds(), (2, 9));
        assert!(wanted(&args(Some(4), Some(3)), &now).is_err());
    }
}
