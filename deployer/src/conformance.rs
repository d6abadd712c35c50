//! What every backend must do, as code that a test of each backend runs.

use std::time::Duration;

use proto::{
    deployer::Release,
    id::{ReplicaId, ServiceName, Workspace},
};
use tokio::{sync::mpsc::UnboundedReceiver, time::timeout};

use crate::backend::{Backend, Ended, Exit, LogWanted, Observed, Order, Phase, Status};

/// How long a replica may take for what it should do.
const LIMIT: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(10);

/// Releases that behave in known ways, of ascending generations.
#[derive(Debug, Clone)]
pub struct Samples {
    /// Becomes ready; its log holds the line `ready` or one that ends so.
    pub good: Release,
    /// `init()` raises a `RuntimeError` whose text holds `damaged`.
    pub raises: Release,
    /// Ends with code 7 before it is ready, without a report.
    pub exits: Release,
    /// Never becomes ready.
    pub hangs: Release,
}

/// Runs all checks on a backend that has no replica yet. It has none afterwards.
///
/// # Panics
///
/// At the first thing that is not as it should be.
pub async fn conformance(backend: &impl Backend, samples: &Samples) {
    let mut case = Case { backend, changes: backend.changes(), service: name("conform") };
    assert!(backend.list().await.is_empty(), "the backend is used already");
    case.a_replica_becomes_ready_and_goes(&samples.good).await;
    case.a_second_order_changes_nothing(&samples.good).await;
    case.a_script_that_raises_is_reported(&samples.raises).await;
    case.an_early_exit_is_told_with_its_code(&samples.exits).await;
    case.a_replica_can_be_stopped_before_it_is_ready(&samples.hangs).await;
    case.logs_are_kept_and_found(samples).await;
    case.what_is_not_there_can_be_stopped().await;
    case.all_end_together(&samples.good).await;
    assert!(backend.list().await.is_empty(), "something is left");
}

struct Case<'a, B> {
    backend: &'a B,
    changes: UnboundedReceiver<Observed>,
    service: ServiceName,
}

impl<B: Backend> Case<'_, B> {
    fn order(&self, replica: &str, release: &Release) -> Order {
        Order {
            replica: replica.parse().expect("a replica's id"),
            workspace: Workspace::default(),
            service: self.service.clone(),
            release: release.clone(),
            from: None,
        }
    }

    async fn start(&self, replica: &str, release: &Release) -> ReplicaId {
        let order = self.order(replica, release);
        let id = order.replica.clone();
        self.backend.start(order).await;
        id
    }

    /// Waits for news of a replica that are `wanted`, and checks that its status never goes back.
    async fn until(&mut self, replica: &ReplicaId, wanted: impl Fn(&Status) -> bool) -> Observed {
        let mut furthest = 0;
        loop {
            let news = timeout(LIMIT, self.changes.recv()).await;
            let observed = news.unwrap_or_else(|_| panic!("no news of {replica}")).expect("the news go on");
            if observed.replica != *replica {
                continue;
            }
            let rank = rank(&observed.status);
            assert!(rank >= furthest, "{replica} went back to {:?}", observed.status);
            furthest = rank;
            if wanted(&observed.status) {
                return observed;
            }
        }
    }

    async fn exit(&mut self, replica: &ReplicaId) -> Exit {
        let observed = self.until(replica, |status| matches!(status, Status::Exited(_))).await;
        assert!(self.find(replica).await.is_some(), "one that has ended is listed until it is stopped");
        match observed.status {
            Status::Exited(exit) => *exit,
            other => panic!("{replica} is {other:?}"),
        }
    }

    async fn stop(&mut self, replica: &ReplicaId) {
        timeout(LIMIT, self.backend.stop(replica, GRACE)).await.expect("a replica can be stopped");
        assert!(self.find(replica).await.is_none(), "{replica} is still listed");
        self.until(replica, |status| *status == Status::Gone).await;
    }

    async fn find(&self, replica: &ReplicaId) -> Option<Observed> {
        self.backend.list().await.into_iter().find(|observed| observed.replica == *replica)
    }

    async fn a_replica_becomes_ready_and_goes(&mut self, release: &Release) {
        let replica = self.start("conform-ready", release).await;
        let observed = self.until(&replica, |status| *status == Status::Ready).await;
        assert!(observed.address.is_some_and(|address| address.starts_with("unix:") || address.starts_with("http://")));
        assert_eq!((observed.generation, &observed.service), (release.generation, &self.service));
        assert!(observed.start.init_ms > 0, "the parts of the start are measured");
        assert_eq!(self.find(&replica).await.map(|observed| observed.status), Some(Status::Ready));
        self.stop(&replica).await;
    }

    async fn a_second_order_changes_nothing(&mut self, release: &Release) {
        let replica = self.start("conform-twice", release).await;
        self.start("conform-twice", release).await;
        self.until(&replica, |status| *status == Status::Ready).await;
        self.start("conform-twice", release).await;
        let listed = self.backend.list().await;
        assert_eq!(listed.iter().filter(|observed| observed.replica == replica).count(), 1);
        self.stop(&replica).await;
    }

    async fn a_script_that_raises_is_reported(&mut self, release: &Release) {
        let replica = self.start("conform-raises", release).await;
        let exit = self.exit(&replica).await;
        assert_eq!(exit.how, Ended::Code(3), "{exit:?}");
        let report = exit.report.expect("the server has said why");
        assert_eq!((report.phase, report.kind.as_str()), (Phase::Init, "RuntimeError"));
        assert!(report.message.contains("damaged") && !report.traceback.is_empty(), "{report:?}");
        self.stop(&replica).await;
    }

    async fn an_early_exit_is_told_with_its_code(&mut self, release: &Release) {
        let replica = self.start("conform-exits", release).await;
        let exit = self.exit(&replica).await;
        assert_eq!((exit.how, exit.report, exit.out_of_memory), (Ended::Code(7), None, false));
        self.stop(&replica).await;
    }

    async fn a_replica_can_be_stopped_before_it_is_ready(&mut self, release: &Release) {
        let replica = self.start("conform-hangs", release).await;
        self.until(&replica, |status| matches!(status, Status::Starting(_))).await;
        self.stop(&replica).await;
        // At any earlier point as well.
        let replica = self.start("conform-hasty", release).await;
        self.stop(&replica).await;
    }

    async fn logs_are_kept_and_found(&self, samples: &Samples) {
        let wanted = |release: &Release| LogWanted {
            workspace: Workspace::default(),
            service: self.service.clone(),
            generation: Some(release.generation),
            replica: None,
            lines: 1000,
        };
        let logs = self.backend.logs(&wanted(&samples.raises)).await;
        assert_eq!(logs.len(), 1, "of the replicas of that generation alone");
        assert!(logs[0].text.lines.iter().any(|line| line.contains("damaged")), "{logs:?}");
        let good = self.backend.logs(&wanted(&samples.good)).await;
        assert!(good[0].text.lines.iter().any(|line| line.ends_with("ready")), "{good:?}");
        let short = LogWanted { lines: 1, ..wanted(&samples.raises) };
        let logs = self.backend.logs(&short).await;
        assert!(logs[0].text.lines.len() == 1 && logs[0].text.cut);
        let other = LogWanted { service: name("another"), ..short.clone() };
        assert!(self.backend.logs(&other).await.is_empty());
        self.backend.forget(&Workspace::default(), &name("another")).await;
        assert_eq!(self.backend.logs(&short).await.len(), 1, "another service's are left");
        self.backend.forget(&Workspace::default(), &self.service).await;
        assert!(self.backend.logs(&short).await.is_empty());
    }

    async fn what_is_not_there_can_be_stopped(&self) {
        let nobody = "conform-nobody".parse().expect("a replica's id");
        timeout(LIMIT, self.backend.stop(&nobody, GRACE)).await.expect("at once");
    }

    async fn all_end_together(&mut self, release: &Release) {
        let first = self.start("conform-end-1", release).await;
        let second = self.start("conform-end-2", release).await;
        self.until(&first, |status| *status == Status::Ready).await;
        timeout(LIMIT, self.backend.end(GRACE)).await.expect("they end");
        assert!(self.find(&first).await.is_none() && self.find(&second).await.is_none());
    }
}

fn rank(status: &Status) -> u8 {
    match status {
        Status::Preparing => 1,
        Status::Starting(_) => 2,
        Status::Ready => 3,
        Status::Exited(_) => 4,
        Status::Gone => 5,
    }
}

fn name(text: &str) -> ServiceName {
    text.parse().expect("a service's name")
}
