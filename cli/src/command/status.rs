//! `kaai status`: all services at once.

use std::{collections::HashMap, time::Duration};

use proto::{
    deployer::{ServiceRecord, ServiceState},
    id::{InstanceId, ServiceName},
    router::ServiceUtilization,
};
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use crate::{
    connection::{Connection, Reach},
    ending::Result,
    environment,
    output::{self, Format},
};

/// Show all services: their state, replicas and traffic
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this one
    service: Option<ServiceName>,
}

/// Reads the services and listens to the routers for as long as one round of news takes.
pub async fn run(args: Args, reach: &Reach, format: Format) -> Result {
    let connection = reach.connect().await?;
    let mut records = match &args.service {
        Some(name) => vec![connection.service(name).await?.value],
        None => connection.services().await?,
    };
    let traffic = traffic(&connection, &records).await?;
    if format == Format::Json {
        let services: Vec<_> = records
            .iter_mut()
            .map(|record| {
                let news: Vec<_> = traffic.get(&record.name).into_iter().flat_map(HashMap::values).collect();
                // What only the deployer can open is of no use to anybody else.
                record.sealed_keys = None;
                record.key_digests.clear();
                json!({ "service": record, "scoringUri": connection.url(&format!("/api/v1/service/{}/score", record.name)), "utilization": news })
            })
            .collect();
        output::json(&services);
        return Ok(());
    }
    if records.is_empty() {
        output::line("no services yet; `kaai deploy FOLDER` makes one");
        return Ok(());
    }
    let rows: Vec<_> = records.iter().map(|record| row(record, traffic.get(&record.name))).collect();
    output::table(&["SERVICE", "GEN", "STATE", "REPLICAS", "BUSY", "REQ/S", "P50", "P99", "REFUSED", "WHY"], &rows);
    if let (Some(_), [record]) = (&args.service, records.as_slice()) {
        detail(record);
    }
    Ok(())
}

/// What a service runs in, for whoever asks for this one.
fn detail(record: &ServiceRecord) {
    let Some(release) = record.active.as_ref().or(record.candidate.as_ref()) else { return };
    let mut rows = vec![vec!["environment".to_owned(), release.environment.to_string()]];
    rows.push(vec!["runs from".to_owned(), environment::place(&release.image).to_owned()]);
    rows.extend(release.lookup.map(|lookup| vec!["lookup".to_owned(), environment::had(lookup, &release.asked)]));
    let scan = release.scan.as_ref();
    let scan = scan.map_or(
        "none: no scanner was configured (--scan-command) when it was deployed".to_owned(),
        environment::scanned,
    );
    rows.push(vec!["scan".to_owned(), scan]);
    output::line("");
    output::table(&["", ""], &rows);
}

type News = HashMap<ServiceName, HashMap<InstanceId, ServiceUtilization>>;

async fn traffic(connection: &Connection, records: &[ServiceRecord]) -> Result<News> {
    let mut news = News::new();
    let serving = records.iter().filter(|record| record.active.is_some()).count();
    let mut listener = connection.bus.listen::<ServiceUtilization>().await?;
    // Routers speak once a second.
    let deadline = Instant::now() + Duration::from_millis(1_200);
    while news.len() < serving {
        let Ok(Some((workspace, service, sample))) = timeout_at(deadline, listener.next()).await else { break };
        let wanted = workspace == *connection.workspace() && records.iter().any(|record| record.name == service);
        // News of less than half a second were sent because a replica was emptied; they say little about traffic.
        if wanted && sample.window_ms >= 500 {
            news.entry(service).or_default().insert(sample.router.clone(), sample);
        }
    }
    Ok(news)
}

fn row(record: &ServiceRecord, news: Option<&HashMap<InstanceId, ServiceUtilization>>) -> Vec<String> {
    let none = || "–".to_owned();
    let generation = record.active.as_ref().map_or(record.latest, |release| release.generation);
    let mut cells = vec![
        record.name.to_string(),
        generation.to_string(),
        state(record).to_owned(),
        format!("{} of {}", record.ready, record.replicas),
    ];
    match news {
        Some(news) if !news.is_empty() => {
            let sum = |of: fn(&ServiceUtilization) -> f64| news.values().map(of).sum::<f64>();
            let most = |of: fn(&ServiceUtilization) -> f64| news.values().map(of).fold(0.0, f64::max);
            let per_second = sum(|sample| sample.arrivals as f64 * 1000.0 / sample.window_ms.max(1) as f64);
            let refused = sum(|sample| sample.refused.values().sum::<u64>() as f64);
            let arrivals = sum(|sample| sample.arrivals as f64);
            cells.push(format!("{:.0}%", 100.0 * sum(|sample| sample.busy) / f64::from(record.ready.max(1))));
            cells.push(format!("{per_second:.1}"));
            cells.push(format!("{:.1}ms", most(|sample| sample.p50_ms)));
            cells.push(format!("{:.1}ms", most(|sample| sample.p99_ms)));
            cells.push(if refused == 0.0 {
                "0".to_owned()
            } else {
                format!("{:.1}%", 100.0 * refused / arrivals.max(refused))
            });
        }
        _ => cells.extend([none(), none(), none(), none(), none()]),
    }
    cells.push(why(record));
    cells
}

fn state(record: &ServiceRecord) -> &'static str {
    match record.state {
        ServiceState::Transitioning if record.candidate.is_some() => "deploying",
        ServiceState::Transitioning => "scaling",
        ServiceState::Healthy => "healthy",
        ServiceState::Unhealthy => "unhealthy",
        ServiceState::Failed => "failed",
        ServiceState::Deleting => "deleting",
    }
}

fn why(record: &ServiceRecord) -> String {
    match (&record.failure, &record.candidate) {
        (_, Some(candidate)) => format!("generation {} is starting", candidate.generation),
        (Some(failed), None) => format!("generation {}: {}", failed.generation, failed.failure.cause),
        (None, None) if record.ready < record.replicas => "replicas are starting".to_owned(),
        (None, None) => String::new(),
    }
}
