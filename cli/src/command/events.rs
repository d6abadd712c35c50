//! `kaai events`: what was asked and what became of it.

use std::time::Duration;

use proto::id::ServiceName;
use runtime::bus::Past;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    connection::Reach,
    ending::Result,
    output::{self, Format},
};

/// Show the events of the workspace, oldest first
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only those of this service
    #[arg(long)]
    service: Option<ServiceName>,
    /// Go on with new ones as they come, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    /// Begin at this place in the stream [default: the last 200]
    #[arg(long)]
    since: Option<u64>,
}

/// Reads the stream of pipeline events. JSON is one object a line, so that it can be followed.
pub async fn run(args: Args, reach: &Reach, format: Format) -> Result {
    let connection = reach.connect().await?;
    let last = connection.bus.last_sequence().await?;
    let from = args.since.unwrap_or(last.saturating_sub(199));
    if from > last && !args.follow {
        return Ok(());
    }
    let mut history = connection.bus.history(connection.workspace(), from).await?;
    loop {
        // Without --follow the end is where nothing more lies in the stream; a quiet second is the end as well,
        // since the last message may be of another workspace.
        let next = match args.follow {
            true => history.next().await,
            false => timeout(Duration::from_secs(1), history.next()).await.unwrap_or(None),
        };
        let Some(past) = next else { return Ok(()) };
        if args.service.as_ref().is_none_or(|service| *service == past.service) {
            print(&past, format);
        }
        if !args.follow && past.pending == 0 {
            return Ok(());
        }
    }
}

fn print(past: &Past, format: Format) {
    let body: Value = serde_json::from_slice(&past.body).unwrap_or(Value::Null);
    if format == Format::Json {
        let event = json!({ "sequence": past.sequence, "time": past.time, "type": past.event_type, "service": past.service,
            "id": past.envelope.id, "source": past.envelope.source, "traceparent": past.envelope.traceparent, "data": body });
        output::line(&event.to_string());
        return;
    }
    let time = past.time.get(11..23).unwrap_or(&past.time);
    output::line(&format!(
        "{:>6}  {time}  {:22} {:20} {}",
        past.sequence,
        past.event_type,
        past.service,
        summary(&past.event_type, &body)
    ));
}

/// The news of an event in one line.
fn summary(event_type: &str, body: &Value) -> String {
    let text = |pointer: &str| {
        body.pointer(pointer).map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    };
    let generation = text("/generation").map(|generation| format!("generation {generation}")).unwrap_or_default();
    match event_type {
        "deployment.requested" => body.get("source").map(Value::to_string).unwrap_or_default(),
        "project.packaged" => format!(
            "{generation}, {} files, {} bytes",
            text("/archive/files").unwrap_or_default(),
            text("/archive/size").unwrap_or_default()
        ),
        "image.resolved" => {
            let environment = text("/environment").unwrap_or_default();
            format!(
                "{generation}, environment {} {}",
                environment.get(..8).unwrap_or(&environment),
                text("/lookup").unwrap_or_default()
            )
        }
        "deployment.failed" => format!(
            "{generation}, at {}: {}",
            text("/failure/stage").unwrap_or_default(),
            text("/failure/cause").unwrap_or_default()
        ),
        "scale.requested" => format!(
            "to {}: {}",
            text("/replicas").unwrap_or_else(|| "other bounds".to_owned()),
            text("/reason").unwrap_or_default()
        ),
        _ => generation,
    }
}
