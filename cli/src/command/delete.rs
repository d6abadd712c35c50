//! `kaai delete`: takes a service away.

use std::time::Duration;

use proto::{deployer::DeploymentDelete, id::ServiceName};
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use crate::{
    connection::Reach,
    ending::{Ending, Result},
    output::{self, Format, Stages},
};

/// Delete a service: its route, its replicas and their temporary storage
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The service
    service: ServiceName,
    /// Do not wait until it is gone
    #[arg(long)]
    no_wait: bool,
    /// Seconds to wait until it is gone
    #[arg(long, default_value_t = 120)]
    timeout: u64,
}

/// Says `deployment.delete` and waits for `deployment.deleted`. A service that does not exist is deleted already, as in v1.
pub async fn run(args: Args, reach: &Reach, format: Format) -> Result {
    let connection = reach.connect().await?;
    let (workspace, service) = (connection.workspace().clone(), &args.service);
    if connection.find_service(service).await?.is_none() {
        match format {
            Format::Json => {
                output::json(&json!({ "service": service, "deleted": false, "reason": "there is no such service" }))
            }
            Format::Text => output::line(&format!("there is no service {service}; nothing to delete")),
        }
        return Ok(());
    }
    let id = format!("delete/{workspace}/{service}/{}", uuid::Uuid::now_v7());
    let generation = connection.bus.say(&workspace, service, &id, &DeploymentDelete::default()).await?;
    if args.no_wait {
        return Ok(());
    }
    let mut stages = Stages::new(format);
    stages.news("deleting", "waiting for the last requests");
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    let mut history = connection.bus.history(&workspace, generation).await?;
    loop {
        let next = timeout_at(deadline, history.next()).await.map_err(|_| {
            Ending::platform(
                format!("{service} is not gone after {} s", args.timeout),
                "it goes on; look again with `kaai status`",
            )
        })?;
        let Some(past) = next else { break };
        if past.service == *service && past.event_type == "deployment.deleted" && past.sequence > generation {
            break;
        }
    }
    let took = stages.elapsed();
    stages.clear();
    match format {
        Format::Json => output::json(&json!({ "service": service, "deleted": true, "tookMs": took.as_millis() })),
        Format::Text => output::line(&format!("{service} is gone ({})", output::seconds(took))),
    }
    Ok(())
}
