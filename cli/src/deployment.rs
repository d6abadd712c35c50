//! Following one deployment from its request to its end.

use std::time::Duration;

use proto::{
    builder::ImageResolved,
    deployer::{DeploymentFailed, DeploymentProgressed, DeploymentReady},
    event::Event,
    failure::Stage,
    id::{Generation, ServiceName},
    packager::{DeploymentRequested, ProjectPackaged},
};
use runtime::bus::{Listener, Past};
use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use crate::{
    connection::Connection,
    ending::{Ending, Result},
    environment,
    output::{self, Stages},
};

/// After how long without any sign of the packager the user is told what may be wrong.
const SILENCE: Duration = Duration::from_secs(10);

/// What became of a deployment that succeeded.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Deployed {
    /// The service.
    pub service: ServiceName,
    /// The generation that serves.
    pub generation: Generation,
    /// The generation that served before.
    pub previous: Option<Generation>,
    /// Where it is reached.
    pub scoring_uri: String,
    /// What the user should know though it stopped nothing.
    pub warnings: Vec<String>,
    /// When each stage was over, in milliseconds from the request.
    pub stages_ms: Vec<(String, u64)>,
    /// The parts of the first replica's start.
    pub start: proto::deployer::StartParts,
    /// How long packaging and finding the environment took, by those who did it, in milliseconds.
    pub package_ms: u64,
    /// See `package_ms`.
    pub resolve_ms: u64,
}

/// A deployment that is being followed.
pub struct Follow<'a> {
    connection: &'a Connection,
    service: ServiceName,
    progress: Listener<DeploymentProgressed>,
    stages: &'a mut Stages,
    deployed: Deployed,
    begun: Instant,
    stage_begun: Instant,
    building: Vec<String>,
}

impl<'a> Follow<'a> {
    /// Listens before anything is asked, so that no news is missed.
    ///
    /// # Errors
    ///
    /// Fails when the bus does not answer.
    pub async fn prepare(connection: &'a Connection, service: &ServiceName, stages: &'a mut Stages) -> Result<Self> {
        let progress = connection.bus.listen::<DeploymentProgressed>().await?;
        let deployed = Deployed {
            service: service.clone(),
            generation: Generation(0),
            previous: None,
            scoring_uri: String::new(),
            warnings: Vec::new(),
            stages_ms: Vec::new(),
            start: proto::deployer::StartParts::default(),
            package_ms: 0,
            resolve_ms: 0,
        };
        let now = Instant::now();
        Ok(Self {
            connection,
            service: service.clone(),
            progress,
            stages,
            deployed,
            begun: now,
            stage_begun: now,
            building: Vec::new(),
        })
    }

    /// Says the request and returns its generation.
    ///
    /// # Errors
    ///
    /// Fails when the bus does not take it.
    pub async fn request(&mut self, request: &DeploymentRequested) -> Result<Generation> {
        let workspace = self.connection.workspace();
        let id = format!("{}/{workspace}/{}/{}", DeploymentRequested::TYPE, self.service, uuid::Uuid::now_v7());
        let sequence = self.connection.bus.say(workspace, &self.service, &id, request).await?;
        self.deployed.generation = Generation(sequence);
        Ok(self.deployed.generation)
    }

    /// Waits until the deployment has ended, showing each stage.
    ///
    /// # Errors
    ///
    /// Fails with the deployment's failure, or when it has not ended in time (it goes on all the same).
    pub async fn end(mut self, limit: Duration) -> Result<Deployed> {
        let (workspace, generation) = (self.connection.workspace().clone(), self.deployed.generation);
        let mut history = self.connection.bus.history(&workspace, generation.0).await?;
        let deadline = self.begun + limit;
        let mut silence = Some(self.begun + SILENCE);
        self.stages.news("packaging", "");
        loop {
            tokio::select! {
                past = history.next() => {
                    let past = past.ok_or_else(|| Ending::platform("the bus was closed", "try again"))?;
                    if past.service != self.service || past.event_type == DeploymentRequested::TYPE {
                        continue;
                    }
                    silence = None;
                    if let Some(result) = self.event(&past) {
                        self.stages.clear();
                        return result.map(|()| self.deployed);
                    }
                }
                news = self.progress.next() => {
                    if let Some((_, service, news)) = news && service == self.service && news.generation == generation {
                        silence = None;
                        self.news(&news);
                    }
                }
                () = sleep_until(silence.unwrap_or(deadline)), if silence.is_some() => {
                    silence = None;
                    self.stages.clear();
                    output::aside("  nothing has been heard of the packager for 10 s; is it running? (waiting on)");
                }
                () = sleep_until(deadline) => {
                    let cause = format!("generation {generation} of {} has not ended after {} s", self.service, limit.as_secs());
                    return Err(Ending::platform(cause, format!("it goes on; look at `kaai status {}` and `kaai events`", self.service)));
                }
            }
        }
    }

    fn news(&mut self, news: &DeploymentProgressed) {
        let stage = match news.stage {
            Stage::Reading | Stage::Packaging => "packaging",
            Stage::Building => "building",
            Stage::Starting => "starting",
            Stage::Routing => "switching",
        };
        if news.stage == Stage::Building {
            self.building.extend(news.log.iter().cloned());
        }
        let last = news.log.last().map(String::as_str).unwrap_or_default();
        self.stages.news(stage, if news.message.is_empty() { last } else { &news.message });
    }

    /// One event of the service; `Some` when it ends the deployment.
    fn event(&mut self, past: &Past) -> Option<Result> {
        let generation = self.deployed.generation;
        match past.event_type.as_str() {
            ProjectPackaged::TYPE => {
                let event: ProjectPackaged = ours(past, generation, |event: &ProjectPackaged| event.generation)?;
                self.deployed.package_ms = event.took_ms;
                self.warn(&event.warnings);
                let left_out = match event.archive.ignored {
                    0 => String::new(),
                    ignored => format!(" ({ignored} left out)"),
                };
                let what = format!(
                    "{}, {}{left_out}",
                    output::count(event.archive.files, "file"),
                    output::bytes(event.archive.size)
                );
                self.over("packaged", &what);
                self.stages.news("environment", "");
                None
            }
            ImageResolved::TYPE => {
                let event: ImageResolved = ours(past, generation, |event: &ImageResolved| event.generation)?;
                self.deployed.resolve_ms = event.took_ms;
                self.warn(&event.warnings);
                let had = environment::had(event.lookup, &event.asked);
                self.over("environment", &format!("{}  {had}", event.environment.short()));
                if let Some(scan) = &event.scan {
                    self.stages.done("scanned", &environment::scanned(scan), None);
                }
                self.stages.news("starting", "");
                None
            }
            DeploymentReady::TYPE => {
                let event: DeploymentReady = ours(past, generation, |event: &DeploymentReady| event.generation)?;
                self.ready(&event);
                Some(Ok(()))
            }
            DeploymentFailed::TYPE => {
                let event: DeploymentFailed = ours(past, generation, |event: &DeploymentFailed| event.generation)?;
                self.warn(&event.warnings);
                let serving = event.serving;
                let mut ending = Ending::from(event.failure);
                if let Some(serving) = serving {
                    ending = ending.note(format!("generation {serving} goes on serving; nothing was switched"));
                }
                Some(Err(ending))
            }
            _ => None,
        }
    }

    fn ready(&mut self, event: &DeploymentReady) {
        self.deployed.previous = event.previous;
        self.deployed.start = event.start;
        self.deployed.scoring_uri = self.connection.url(&event.scoring_path);
        let part = |ms: u64| output::seconds(Duration::from_millis(ms));
        let start = event.start;
        let what = format!(
            "{} · python {} · init() {}",
            output::count(u64::from(event.replicas), "replica"),
            part(start.interpreter_ms),
            part(start.init_ms)
        );
        self.over("starting", &what);
        if let Some(previous) = event.previous {
            self.stages.done("switched", &format!("generation {previous} → {}", event.generation), None);
        }
    }

    fn over(&mut self, stage: &str, what: &str) {
        let now = Instant::now();
        self.stages.done(stage, what, Some(now - self.stage_begun));
        self.stage_begun = now;
        let since = u64::try_from((now - self.begun).as_millis()).unwrap_or(u64::MAX);
        self.deployed.stages_ms.push((stage.to_owned(), since));
    }

    fn warn(&mut self, warnings: &[String]) {
        for warning in warnings {
            if !self.deployed.warnings.contains(warning) {
                self.stages.done("warning", warning, None);
                self.deployed.warnings.push(warning.clone());
            }
        }
    }
}

/// Reads an event if it is about the generation that is followed.
fn ours<E: Event>(past: &Past, generation: Generation, of: impl Fn(&E) -> Generation) -> Option<E> {
    serde_json::from_slice::<E>(&past.body).ok().filter(|event| of(event) == generation)
}
