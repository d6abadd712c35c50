//! One request: a packaged project whose environment is found or built, and what is said about that.
//!
//! It knows the events on either side. It does not know how many ask for the same environment, nor who builds it.

use std::{sync::Arc, time::Duration};

use proto::{
    builder::{Image, ImageResolved},
    deployer::{DeploymentFailed, DeploymentProgressed},
    event::Event,
    failure::{Failure, Stage},
    id::EnvironmentHash,
    packager::{ProjectPackaged, RegistryLogin},
};
use runtime::{
    bus::{Bus, Delivery, Disposition, Error as BusError},
    sealing::KeyPair,
};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    environment::{Definition, Refused},
    flight::{Flight, Flights, Outcome},
    maker::{Made, Maker, Planned},
    metrics::{During, Metrics},
    plan::Plan,
};

/// The shortest time between two pieces of news to whoever waits.
const NEWS: Duration = Duration::from_millis(250);
/// How many lines one piece of news holds.
const NEWS_LINES: usize = 50;
/// How many characters of a line are told.
const LINE_CHARS: usize = 500;
/// After how long a request that this builder did not finish is handed to another.
const HAND_BACK: Duration = Duration::from_millis(500);

/// How a message is settled.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Ack,
    Retry(Duration),
    Reject(String),
}

/// Carries out a request and settles its message.
pub(crate) async fn serve<M: Maker>(
    flights: Arc<Flights<M>>,
    keys: Arc<KeyPair>,
    metrics: Metrics,
    delivery: Delivery,
) {
    let packaged = match delivery.parse::<ProjectPackaged>() {
        Ok(packaged) => packaged,
        Err(reason) => return delivery.reject(reason).await,
    };
    let bus = flights.rt().bus.following(&delivery.envelope);
    let request = Request { bus, keys: &keys, delivery: &delivery, packaged, metrics };
    match delivery.while_working(request.carry_out(&flights)).await {
        Verdict::Ack => delivery.ack().await,
        Verdict::Retry(after) => delivery.retry(after).await,
        Verdict::Reject(reason) => delivery.reject(reason).await,
    }
}

struct Request<'a> {
    bus: Bus,
    keys: &'a KeyPair,
    delivery: &'a Delivery,
    packaged: ProjectPackaged,
    metrics: Metrics,
}

impl Request<'_> {
    async fn carry_out<M: Maker>(mut self, flights: &Arc<Flights<M>>) -> Verdict {
        let started = Instant::now();
        let read = Definition::read(&self.packaged.spec.environment).map_err(Refused::into_failure);
        let planned = match read.and_then(|definition| Ok((definition, self.login()?))) {
            Ok((definition, login)) => flights.plan(definition, login).await,
            Err(failure) => Err(failure),
        };
        let Planned { hash, plan } = match planned {
            Ok(planned) => planned,
            Err(failure) => return self.fail(failure).await,
        };
        let flight = flights.join(&hash, plan.clone());
        let outcome = {
            let _waiting = During::new(&self.metrics.waiting);
            self.follow(flight).await
        };
        match outcome {
            Outcome::Ready { made: Made { image, scan }, lookup, asked } => {
                if lookup == proto::builder::Lookup::Cached {
                    self.metrics.cache_hits.inc();
                }
                self.packaged.warnings.extend(warnings(&plan, &image));
                let packaged = self.packaged.clone();
                let resolved = ImageResolved {
                    generation: packaged.generation,
                    archive: packaged.archive,
                    spec: packaged.spec,
                    sealed_keys: packaged.sealed_keys,
                    warnings: packaged.warnings,
                    environment: hash,
                    image,
                    lookup,
                    asked,
                    scan,
                    took_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
                    extra: packaged.extra,
                };
                self.say(&resolved).await
            }
            Outcome::Failed { failure, remembered_until_ms: None } => self.fail(failure).await,
            Outcome::Failed { failure, remembered_until_ms: Some(until_ms) } => {
                self.metrics.remembered_failures.inc();
                self.fail(remembered(failure, &hash, until_ms)).await
            }
            Outcome::Interrupted => Verdict::Retry(HAND_BACK),
        }
    }

    /// The user's own login at the base image's registry.
    fn login(&self) -> Result<Option<RegistryLogin>, Failure> {
        let opened = self.packaged.sealed_login.as_ref().map(|sealed| self.keys.unseal(sealed)).transpose();
        opened.map_err(|error| {
            let cause = format!("the login of baseImageRegistry cannot be read: {error}");
            Failure::platform(Stage::Building, cause, "deploy again, which encrypts it to the builder that runs now")
        })
    }

    /// Waits for the outcome and tells the lines of the build meanwhile, at most four times a second.
    async fn follow(&self, mut flight: Flight) -> Outcome {
        let (recent, mut lines) = flight.log.subscribe();
        let mut news = News::default();
        recent.into_iter().for_each(|line| news.add(line));
        let mut tick = interval(NEWS);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                outcome = flight.landed() => {
                    self.tell(&mut news).await;
                    return outcome;
                }
                () = news.hear(&mut lines) => {}
                _ = tick.tick() => self.tell(&mut news).await,
            }
        }
    }

    async fn tell(&self, news: &mut News) {
        if let Some((message, log)) = news.take() {
            let generation = self.packaged.generation;
            let progress =
                DeploymentProgressed { generation, stage: Stage::Building, message, log, extra: proto::Extra::new() };
            self.bus.tell(&self.delivery.workspace, &self.delivery.service, &progress).await;
        }
    }

    async fn fail(&self, failure: Failure) -> Verdict {
        tracing::info!(service = %self.delivery.service, generation = %self.packaged.generation, cause = failure.cause, "no environment");
        let failed = DeploymentFailed {
            generation: self.packaged.generation,
            failure,
            serving: None,
            warnings: self.packaged.warnings.clone(),
            extra: proto::Extra::new(),
        };
        self.say(&failed).await
    }

    async fn say<E: Event>(&self, event: &E) -> Verdict {
        let (workspace, service) = (&self.delivery.workspace, &self.delivery.service);
        let id = format!("{}/{workspace}/{service}/{}", E::TYPE, self.packaged.generation);
        verdict(self.bus.say(workspace, service, &id, event).await)
    }
}

/// What was asked for is acknowledged only once what follows from it is kept.
fn verdict(said: Result<u64, BusError>) -> Verdict {
    let Err(error) = said else { return Verdict::Ack };
    match error.disposition() {
        Disposition::Retry(after) => Verdict::Retry(after),
        Disposition::Reject => Verdict::Reject(error.to_string()),
        Disposition::Fatal => Verdict::Retry(Duration::from_secs(10)),
    }
}

/// What the user should know of the environment that he gets.
fn warnings(plan: &Plan, image: &Image) -> Vec<String> {
    let python = match image {
        Image::VirtualEnvironment { python, .. } => python,
        Image::Container { .. } => return plan.warnings.clone(),
    };
    let other = (!plan.admits_python(python)).then(|| {
        format!("{} asks for python {}; this machine has {python}, which is used", plan.file, plan.python.versions)
    });
    plan.warnings.iter().cloned().chain(other).collect()
}

fn remembered(failure: Failure, hash: &EnvironmentHash, until_ms: u64) -> Failure {
    let until = i64::try_from(until_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    let until = until.map_or("later".to_owned(), |time| format!("after {time:.0}"));
    Failure {
        cause: format!("{} (remembered from an earlier build)", failure.cause),
        remedy: format!(
            "{}; the same environment is built again {until} or after `kaai env retry {}`, a changed one at once",
            failure.remedy,
            hash.short()
        ),
        ..failure
    }
}

/// Lines that have come and were not told yet.
#[derive(Default)]
struct News {
    lines: Vec<String>,
    headline: String,
    closed: bool,
}

impl News {
    /// Takes in the next line.
    async fn hear(&mut self, lines: &mut Receiver<String>) {
        if self.closed {
            return std::future::pending().await;
        }
        match lines.recv().await {
            Ok(line) => self.add(line),
            // The log file has all of them.
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => self.closed = true,
        }
    }

    fn add(&mut self, line: String) {
        if let Some(headline) = headline(&line) {
            self.headline = headline;
        }
        if self.lines.len() == NEWS_LINES {
            self.lines.remove(0);
        }
        self.lines.push(line.chars().take(LINE_CHARS).collect());
    }

    fn take(&mut self) -> Option<(String, Vec<String>)> {
        if self.lines.is_empty() {
            return None;
        }
        let message = if self.headline.is_empty() { "building".to_owned() } else { self.headline.clone() };
        Some((message, std::mem::take(&mut self.lines)))
    }
}

/// What a line says in short, if it says how far the build is.
fn headline(line: &str) -> Option<String> {
    let line = line.trim();
    if let Some(count) = line.strip_prefix("Resolved ").and_then(|rest| rest.split(' ').next()) {
        return Some(if count == "1" { "1 package".to_owned() } else { format!("{count} packages") });
    }
    if let Some(count) = line.strip_prefix("Solved ") {
        return Some(format!("conda: {count}"));
    }
    if let Some(package) = line.strip_prefix("Downloading ").or_else(|| line.strip_prefix("Building ")) {
        let verb = if line.starts_with('D') { "fetching" } else { "building" };
        return Some(format!("{verb} {}", package.split(' ').next().unwrap_or(package)));
    }
    let told = ["building environment ", "asking ", "Python ", "no Python ", "copying ", "compiling ", "pushing "]
        .iter()
        .any(|start| line.starts_with(start));
    if ["Prepared ", "Installed ", "Bytecode "].iter().any(|start| line.starts_with(start)) {
        return Some(line[..1].to_ascii_lowercase() + &line[1..]);
    }
    (told || line.ends_with("is building this environment")).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_uv_and_conda_become_news() {
        for (line, news) in [
            ("Resolved 38 packages in 1.2s", Some("38 packages")),
            ("Downloading numpy (16.1MiB)", Some("fetching numpy")),
            ("   Building psycopg2==2.9.13", Some("building psycopg2==2.9.13")),
            ("asking conda-forge", Some("asking conda-forge")),
            ("Solved 12 packages", Some("conda: 12 packages")),
            ("Downloading numpy-2.4.6-py311_0.conda (7.2 MB)", Some("fetching numpy-2.4.6-py311_0.conda")),
            ("Installed 38 packages in 40ms", Some("installed 38 packages in 40ms")),
            ("compiling bytecode", Some("compiling bytecode")),
            ("Bytecode compiled: 10 modules, 2 known before", Some("bytecode compiled: 10 modules, 2 known before")),
            (" + numpy==2.4.6", None),
            ("builder-1 is building this environment", Some("builder-1 is building this environment")),
        ] {
            assert_eq!(headline(line).as_deref(), news, "{line}");
        }
    }

    #[test]
    fn news_are_bounded_and_told_once() {
        let mut news = News::default();
        assert!(news.take().is_none());
        (0..80).for_each(|n| news.add(format!("{n} {}", "x".repeat(2000))));
        let (message, lines) = news.take().unwrap();
        assert_eq!(message, "building");
        assert_eq!(lines.len(), NEWS_LINES);
        assert!(lines[49].starts_with("79 ") && lines[49].chars().count() == LINE_CHARS);
        assert!(news.take().is_none());
    }

    #[test]
    fn a_remembered_failure_says_so_and_until_when() {
        let hash = EnvironmentHash::from_sha256([7; 32]);
        let failure = remembered(Failure::project(Stage::Building, "no x", "write y"), &hash, 1_700_000_000_000);
        assert_eq!(failure.cause, "no x (remembered from an earlier build)");
        assert!(
            failure.remedy.contains("built again after 2023-11-14T22:13:20Z or after `kaai env retry 07070707`"),
            "{}",
            failure.remedy
        );
    }

    #[test]
    fn a_request_is_acknowledged_only_when_what_follows_is_kept() {
        assert_eq!(verdict(Ok(1)), Verdict::Ack);
        assert!(matches!(verdict(Err(BusError::Unavailable("x".into()))), Verdict::Retry(_)));
        assert!(matches!(verdict(Err(BusError::TooLarge("x".into()))), Verdict::Reject(_)));
    }
}
