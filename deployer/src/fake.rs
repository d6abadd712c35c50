//! A place that runs nothing: for tests of what stands above a backend.
//!
//! The name of the entry script says how a replica behaves: `raises.py` fails in `init()`, `exits.py` ends before it is ready,
//! `hangs.py` never becomes ready, and any other is ready at once.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use proto::{
    deployer::StartParts,
    id::{Generation, ReplicaId, ServiceName, Workspace},
    query::LogText,
};
use tokio::sync::mpsc;

use crate::backend::{Backend, Ended, Exit, LogWanted, Observed, Order, Phase, ReplicaLog, Report, Status};

/// The place. Clones share it, so that a second deployer finds what a first one left.
#[derive(Clone, Default)]
pub struct FakeBackend(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    replicas: BTreeMap<ReplicaId, Observed>,
    /// Every order to start, in order.
    started: Vec<Order>,
    logs: Vec<(Order, Vec<String>)>,
    news: Option<mpsc::UnboundedSender<Observed>>,
}

impl FakeBackend {
    /// Every order to start that was taken, in order.
    pub fn started(&self) -> Vec<Order> {
        self.state().started.clone()
    }

    /// Ends a replica as a crash would.
    pub fn crash(&self, replica: &ReplicaId) {
        let exit = Exit { how: Ended::Signal(11), tail: vec!["Segmentation fault".to_owned()], ..Exit::default() };
        self.state().tell(replica, Status::Exited(Box::new(exit)));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tell(&mut self, replica: &ReplicaId, status: Status) {
        let Some(observed) = self.replicas.get_mut(replica) else { return };
        observed.status = status;
        if observed.status == Status::Ready {
            observed.address = Some(format!("unix:/nowhere/{replica}"));
            observed.start = StartParts { fetch_ms: 1, interpreter_ms: 2, init_ms: 3, probe_ms: 1 };
        }
        let observed = observed.clone();
        if observed.status == Status::Gone {
            self.replicas.remove(replica);
        }
        if let Some(news) = &self.news {
            // A reader that is gone has no use for news.
            let _ = news.send(observed);
        }
    }
}

impl Backend for FakeBackend {
    async fn start(&self, order: Order) {
        let mut state = self.state();
        let replica = order.replica.clone();
        if state.replicas.contains_key(&replica) {
            return;
        }
        let observed = Observed {
            replica: replica.clone(),
            workspace: order.workspace.clone(),
            service: order.service.clone(),
            generation: order.release.generation,
            status: Status::Preparing,
            address: None,
            start: StartParts::default(),
            unlimited: None,
        };
        state.replicas.insert(replica.clone(), observed);
        state.started.push(order.clone());
        let (status, line) = behave(&order.release.spec.entry_script);
        state.logs.push((order, vec!["init begins".to_owned(), line.to_owned()]));
        state.tell(&replica, Status::Preparing);
        state.tell(&replica, Status::Starting(Duration::ZERO));
        if let Some(status) = status {
            state.tell(&replica, status);
        }
    }

    async fn stop(&self, replica: &ReplicaId, _grace: Duration) {
        self.state().tell(replica, Status::Gone);
    }

    async fn list(&self) -> Vec<Observed> {
        self.state().replicas.values().cloned().collect()
    }

    fn changes(&self) -> mpsc::UnboundedReceiver<Observed> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.state().news = Some(sender);
        receiver
    }

    async fn logs(&self, wanted: &LogWanted) -> Vec<ReplicaLog> {
        let state = self.state();
        let of_service =
            |order: &&(Order, Vec<String>)| order.0.workspace == wanted.workspace && order.0.service == wanted.service;
        let logs: Vec<_> = state.logs.iter().filter(of_service).collect();
        let newest = logs.iter().map(|(order, _)| order.release.generation).max();
        let generation: Option<Generation> = wanted.generation.or(newest);
        let matching = logs.into_iter().filter(|(order, _)| {
            Some(order.release.generation) == generation
                && wanted.replica.as_ref().is_none_or(|replica| *replica == order.replica)
        });
        let log = |(order, lines): &(Order, Vec<String>)| {
            let from = lines.len().saturating_sub(wanted.lines);
            let text = LogText { lines: lines[from..].to_vec(), cut: from > 0 };
            ReplicaLog { replica: order.replica.clone(), generation: order.release.generation, text }
        };
        matching.map(log).collect()
    }

    async fn forget(&self, workspace: &Workspace, service: &ServiceName) {
        self.state().logs.retain(|(order, _)| order.workspace != *workspace || order.service != *service);
    }

    async fn end(&self, grace: Duration) {
        let all: Vec<_> = self.state().replicas.keys().cloned().collect();
        for replica in all {
            self.stop(&replica, grace).await;
        }
    }

    fn leave(&self) {}
}

/// What becomes of a replica, and the last line of its log.
fn behave(script: &str) -> (Option<Status>, &'static str) {
    match script {
        "raises.py" => {
            let report = Report {
                phase: Phase::Init,
                kind: "RuntimeError".to_owned(),
                message: "the weights file is damaged".to_owned(),
                module: None,
                file: Some(script.to_owned()),
                line: Some(3),
                traceback: vec!["RuntimeError: the weights file is damaged".to_owned()],
            };
            let exit = Exit { how: Ended::Code(3), report: Some(report), ..Exit::default() };
            (Some(Status::Exited(Box::new(exit))), "RuntimeError: the weights file is damaged")
        }
        "exits.py" => {
            let exit = Exit { how: Ended::Code(7), ..Exit::default() };
            (Some(Status::Exited(Box::new(exit))), "bye")
        }
        "hangs.py" => (None, "waiting"),
        _ => (Some(Status::Ready), "ready"),
    }
}
