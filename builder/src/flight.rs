//! One build for many requests: all requests of this process for one environment share a flight, and flights of different processes
//! share a lease.
//!
//! It performs what [`crate::decide`] decides. It does not know events, nor what is made and how.

mod lease;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use proto::{
    builder::{EnvironmentRecord, Lookup, RegistryAsked},
    failure::{Blame, Failure, Stage},
    id::EnvironmentHash,
    packager::RegistryLogin,
};
use runtime::{
    Runtime,
    backoff::Backoff,
    bus::{Bucket, Change, Error as BusError},
    clock,
    store::build_log_key,
};
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{Instant, sleep, timeout},
};

use crate::{
    build_log::{BuildLog, Follower},
    config::Limits,
    decide::{self, Step},
    environment::Definition,
    maker::{Found, Made, Maker, Planned},
    metrics::{During, Metrics},
    plan::Plan,
};

/// How often a log that another builder writes is looked at.
const FOLLOW: Duration = Duration::from_millis(500);

/// What became of an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is there.
    Ready {
        /// Where, and scanned by what.
        made: Made,
        /// Whether it had been there before.
        lookup: Lookup,
        /// The registries that were asked for it.
        asked: Vec<RegistryAsked>,
    },
    /// It cannot be built.
    Failed {
        /// Why.
        failure: Failure,
        /// Until when that is remembered (Unix milliseconds), if it was found out by an earlier request.
        remembered_until_ms: Option<u64>,
    },
    /// This builder stops before it is known: another one will find out.
    Interrupted,
}

/// A request's part in a flight.
#[derive(Clone)]
pub(crate) struct Flight {
    outcome: watch::Receiver<Option<Outcome>>,
    /// The lines of the build, as they come.
    pub(crate) log: Arc<BuildLog>,
    news: Arc<Notify>,
}

impl Flight {
    /// Waits until it has landed.
    pub(crate) async fn landed(&mut self) -> Outcome {
        match self.outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Outcome::Interrupted),
            // Its task has ended without a word, as it does when the process ends.
            Err(_) => Outcome::Interrupted,
        }
    }
}

/// All flights of this builder.
pub(crate) struct Flights<M> {
    maker: M,
    rt: Runtime,
    bucket: Bucket<EnvironmentRecord>,
    limits: Limits,
    metrics: Metrics,
    permits: Semaphore,
    aloft: Mutex<HashMap<EnvironmentHash, Flight>>,
}

impl<M: Maker> Flights<M> {
    pub(crate) fn new(
        maker: M,
        rt: Runtime,
        bucket: Bucket<EnvironmentRecord>,
        limits: Limits,
        metrics: Metrics,
    ) -> Self {
        let permits = Semaphore::new(limits.concurrent_builds.max(1));
        Self { maker, rt, bucket, limits, metrics, permits, aloft: Mutex::default() }
    }

    /// What the builder lives on.
    pub(crate) fn rt(&self) -> &Runtime {
        &self.rt
    }

    /// Understands an environment in terms of this place.
    pub(crate) async fn plan(&self, definition: Definition, login: Option<RegistryLogin>) -> Result<Planned, Failure> {
        self.maker.plan(definition, login).await
    }

    /// Joins the flight of an environment, beginning it if there is none.
    pub(crate) fn join(self: &Arc<Self>, hash: &EnvironmentHash, plan: Plan) -> Flight {
        let mut aloft = self.aloft();
        // A flight whose task has died has nobody left to say how it went.
        if let Some(flight) = aloft.get(hash).filter(|flight| flight.outcome.has_changed().is_ok()) {
            return flight.clone();
        }
        let (landing, outcome) = watch::channel(None);
        let log = Arc::new(BuildLog::new(self.log_path(hash)));
        let flight = Flight { outcome, log, news: Arc::default() };
        aloft.insert(hash.clone(), flight.clone());
        drop(aloft);
        let (flights, hash, this) = (self.clone(), hash.clone(), flight.clone());
        self.rt.tasks.spawn(async move {
            let outcome = flights.fly(&hash, &plan, &this).await;
            flights.aloft().remove(&hash);
            landing.send_replace(Some(outcome));
        });
        flight
    }

    /// Hears that the record of an environment has changed.
    pub(crate) fn hear(&self, change: &Change<EnvironmentRecord>) {
        let aloft = self.aloft();
        match change {
            Change::Put { key, .. } | Change::Gone { key, .. } => {
                key.parse()
                    .ok()
                    .and_then(|hash: EnvironmentHash| aloft.get(&hash))
                    .iter()
                    .for_each(|flight| flight.news.notify_one());
            }
            // The bus was away: anything may have happened meanwhile.
            Change::Synced => aloft.values().for_each(|flight| flight.news.notify_one()),
        }
    }

    /// Where the log of a build is while it is written.
    pub(crate) fn log_path(&self, hash: &EnvironmentHash) -> std::path::PathBuf {
        self.limits.logs.join(format!("{hash}.log"))
    }

    fn aloft(&self) -> std::sync::MutexGuard<'_, HashMap<EnvironmentHash, Flight>> {
        self.aloft.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn fly(&self, hash: &EnvironmentHash, plan: &Plan, flight: &Flight) -> Outcome {
        let (mut gone, mut waited) = (None, false);
        let mut follower = Follower::new(self.log_path(hash));
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        while !self.rt.shutdown.is_cancelled() {
            let entry = match self.bucket.get(hash.as_str()).await {
                Ok(entry) => entry,
                Err(why) if why.may_pass() => {
                    tracing::debug!(%hash, %why, "what is known of the environment cannot be read; trying again");
                    self.pause(backoff.next_delay()).await;
                    continue;
                }
                Err(error) => return unreadable(&error),
            };
            backoff.reset();
            match decide::next(clock::now_ms(), entry.as_ref(), gone) {
                Step::Look { made, revision } => {
                    match self.maker.is_there(&made).await {
                        Ok(true) => {
                            let lookup = if waited { Lookup::Built } else { Lookup::Cached };
                            return Outcome::Ready { made, lookup, asked: Vec::new() };
                        }
                        Ok(false) => {}
                        Err(failure) => return Outcome::Failed { failure, remembered_until_ms: None },
                    }
                    tracing::warn!(%hash, ?made, "the environment is recorded and cannot be used; it is looked for, else built again");
                    gone = Some(revision);
                }
                Step::Refuse { failure, expires_ms } => {
                    return Outcome::Failed { failure, remembered_until_ms: (!waited).then_some(expires_ms) };
                }
                Step::Wait { builder, most } => {
                    if !waited {
                        flight.log.hand_on(format!("{builder} is building this environment"));
                    }
                    waited = true;
                    self.wait(flight, most, &mut follower).await;
                }
                Step::Take(revision) => match self.take(hash, plan, flight, revision).await {
                    Some(outcome) => return outcome,
                    None => waited = true,
                },
            }
        }
        Outcome::Interrupted
    }

    /// Waits for news of the record, and hands on meanwhile what the builder that is at it writes to its log.
    async fn wait(&self, flight: &Flight, most: Duration, follower: &mut Follower) {
        let deadline = Instant::now() + most;
        loop {
            follower.lines().into_iter().for_each(|line| flight.log.hand_on(line));
            tokio::select! {
                () = self.rt.shutdown.cancelled() => return,
                () = flight.news.notified() => return,
                () = tokio::time::sleep_until(deadline) => return,
                () = sleep(FOLLOW) => {}
            }
        }
    }

    /// Takes the lease and builds; `None` when another was faster, or has taken over.
    async fn take(
        &self,
        hash: &EnvironmentHash,
        plan: &Plan,
        flight: &Flight,
        revision: Option<u64>,
    ) -> Option<Outcome> {
        let _permit = tokio::select! {
            permit = self.permits.acquire() => permit.ok()?,
            // Another builder may have been faster.
            () = flight.news.notified() => return None,
            () = self.rt.shutdown.cancelled() => return None,
        };
        let record = self.lease();
        let taken = match revision {
            Some(revision) => self.bucket.update(hash.as_str(), &record, revision).await,
            None => self.bucket.create(hash.as_str(), &record).await,
        };
        match taken {
            Ok(revision) => self.build(hash, plan, flight, revision).await,
            Err(error) => {
                if !matches!(error, BusError::Conflict(_)) {
                    tracing::debug!(%hash, %error, "the lease cannot be taken; trying again");
                    self.pause(Duration::from_millis(500)).await;
                }
                None
            }
        }
    }

    async fn build(&self, hash: &EnvironmentHash, plan: &Plan, flight: &Flight, revision: u64) -> Option<Outcome> {
        let (started, revision, log) = (Instant::now(), AtomicU64::new(revision), &flight.log);
        let work = async {
            let asked = match self.maker.find(hash, plan, log).await {
                Err(failure) => return (Err(failure), Lookup::Built, Vec::new()),
                Ok(Found { made: Some((made, lookup)), asked }) => return (Ok(made), lookup, asked),
                Ok(Found { made: None, asked }) => asked,
            };
            log.begin();
            log.line(&format!("building environment {} ({})", hash.short(), self.rt.instance));
            self.metrics.builds.inc();
            let _building = During::new(&self.metrics.building);
            (self.maker.make(hash, plan, log).await, Lookup::Built, asked)
        };
        let (made, lookup, asked) = tokio::select! {
            done = work => done,
            () = self.keep_lease(hash, &revision) => {
                tracing::warn!(%hash, "another builder has taken over; this build is given up");
                self.metrics.lost_leases.inc();
                return None;
            }
            () = self.rt.shutdown.cancelled() => {
                // Others need not wait until the lease lapses. If the bus is away they do.
                let _ = self.bucket.delete_at(hash.as_str(), revision.load(Ordering::Relaxed)).await;
                return Some(Outcome::Interrupted);
            }
        };
        let took = started.elapsed();
        let (record, outcome) = match made {
            Ok(made) => {
                log.line(&format!("ready after {:.1} s", took.as_secs_f64()));
                if lookup == Lookup::Built {
                    self.metrics.build_seconds.observe(took.as_secs_f64());
                }
                self.ready(made, lookup, asked, took)
            }
            Err(failure) => {
                log.line(&format!("failed: {}", failure.cause));
                self.metrics.build_failures.inc();
                self.failed(hash, failure)
            }
        };
        if lookup == Lookup::Built {
            self.keep_log(hash, log).await;
        }
        self.settle(hash, &record, &revision).await.then_some(outcome)
    }

    fn ready(
        &self,
        made: Made,
        lookup: Lookup,
        asked: Vec<RegistryAsked>,
        took: Duration,
    ) -> (EnvironmentRecord, Outcome) {
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let Made { image, scan } = made.clone();
        let record = EnvironmentRecord::Ready { image, built: clock::now_rfc3339(), took_ms, scan };
        (record, Outcome::Ready { made, lookup, asked })
    }

    fn failed(&self, hash: &EnvironmentHash, failure: Failure) -> (EnvironmentRecord, Outcome) {
        let failure = failure.with_log(format!("kaai env log {}", hash.short()));
        let remembered = match failure.blame {
            Blame::Project => self.limits.remember_project,
            Blame::Platform => self.limits.remember_platform,
        };
        let expires_ms = clock::now_ms() + u64::try_from(remembered.as_millis()).unwrap_or(u64::MAX / 2);
        let record = EnvironmentRecord::Failed { failure: failure.clone(), expires_ms };
        (record, Outcome::Failed { failure, remembered_until_ms: None })
    }

    /// Keeps the log where every component can read it. A store that fails costs the log, not the build.
    async fn keep_log(&self, hash: &EnvironmentHash, log: &BuildLog) {
        let put =
            async { self.rt.store.put_file(&build_log_key(hash), log.path()).await.map_err(|error| error.to_string()) };
        let kept =
            timeout(self.limits.lease / 2, put).await.unwrap_or_else(|_| Err("the store does not answer".to_owned()));
        if let Err(error) = kept {
            tracing::warn!(%hash, error, "the log of the build is not kept in the store");
        }
    }

    /// Waits; `false` once shutdown has begun.
    async fn pause(&self, time: Duration) -> bool {
        tokio::select! {
            () = self.rt.shutdown.cancelled() => false,
            () = sleep(time) => true,
        }
    }
}

fn unreadable(error: &BusError) -> Outcome {
    let failure = Failure::platform(
        Stage::Building,
        format!("what is known of the environment cannot be read: {error}"),
        "upgrade all builders to the same version, or delete the entry from the bucket kaai_environments",
    );
    Outcome::Failed { failure, remembered_until_ms: None }
}
