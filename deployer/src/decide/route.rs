//! The route that routers go by: what was written, and what it should be.

use proto::{
    deployer::{DeploymentProgressed, Endpoint, Route},
    failure::Stage,
    id::{Generation, ReplicaId},
    spec::Auth,
};
use tokio::time::Instant;

use super::{Action, Service, replica::Draining};

/// What the routes bucket holds for the service.
#[derive(Default)]
pub(super) struct Routed {
    known: bool,
    written: Option<Route>,
    revision: u64,
    /// What is being written.
    writing: Option<Option<Route>>,
}

impl Routed {
    pub(super) fn found(&mut self, route: Option<Route>, revision: u64) {
        (self.known, self.written, self.revision) = (true, route, revision);
    }

    pub(super) fn is_known(&self) -> bool {
        self.known
    }

    /// Whether no router can know the service.
    pub(super) fn is_absent(&self) -> bool {
        self.written.is_none() && self.writing.is_none()
    }

    /// Which generation is routed to, when that is settled.
    pub(super) fn generation(&self) -> Option<Generation> {
        if self.writing.is_some() { None } else { self.written.as_ref().map(|route| route.generation) }
    }

    /// Whether a router may have a request in the replica.
    pub(super) fn contains(&self, replica: &ReplicaId) -> bool {
        let routes = self.written.iter().chain(self.writing.iter().flatten());
        routes.flat_map(|route| &route.replicas).any(|endpoint| &endpoint.replica == replica)
    }
}

/// What whoever waits is told of a switch.
fn switched(old: Generation, new: Generation) -> Action {
    Action::Tell(DeploymentProgressed {
        generation: new,
        stage: Stage::Routing,
        message: format!("generation {old} → {new}"),
        log: Vec::new(),
        extra: proto::Extra::new(),
    })
}

impl Service {
    /// Writes the route if it is not what it should be.
    pub(super) fn lead(&mut self, actions: &mut Vec<Action>) {
        if self.route.writing.is_some() {
            return;
        }
        let wanted = self.wanted_route();
        if wanted != self.route.written {
            actions.push(Action::Route(wanted.clone().map(Box::new)));
            self.route.writing = Some(wanted);
        }
    }

    pub(super) fn routed(&mut self, now: Instant, revision: u64, actions: &mut Vec<Action>) {
        let Some(written) = self.route.writing.take() else { return };
        match (&self.route.written, &written) {
            (Some(old), Some(new)) if old.generation != new.generation => {
                actions.push(switched(old.generation, new.generation));
            }
            (None, _) => self.routers.first_routed(now),
            _ => {}
        }
        for endpoint in written.iter().flat_map(|route| &route.replicas) {
            if let Some(replica) = self.replicas.get_mut(&endpoint.replica) {
                replica.draining = match replica.draining {
                    // One that was taken back while this was being written is not being emptied: the next route says so.
                    _ if !endpoint.draining || !replica.leaving => None,
                    Some(draining) => Some(draining),
                    None => Some(Draining { since: now, revision }),
                };
            }
        }
        (self.route.written, self.route.revision) = (written, revision);
    }

    /// Counts replicas that are draining by a route that an earlier deployer wrote from now on.
    pub(super) fn adopt_draining(&mut self, now: Instant) {
        let (revision, routed) = (self.route.revision, &self.route.written);
        for endpoint in routed.iter().flat_map(|route| &route.replicas).filter(|endpoint| endpoint.draining) {
            if let Some(replica) = self.replicas.get_mut(&endpoint.replica)
                && replica.leaving
                && replica.draining.is_none()
                && self.route.writing.is_none()
            {
                replica.draining = Some(Draining { since: now, revision });
            }
        }
    }

    /// The route as the stored record and the replicas make it: what serves, and what is still to be emptied.
    fn wanted_route(&self) -> Option<Route> {
        let record = self.stored.as_ref()?;
        let active = record.active.as_ref()?;
        let endpoint = |(id, replica): (&ReplicaId, &super::Replica)| {
            let serving = replica.generation == active.generation && replica.is_live() && !record.deleting;
            let listed = replica.is_ready() && (serving || self.route.contains(id));
            let address = replica.address.clone().filter(|_| listed)?;
            Some(Endpoint { replica: id.clone(), address, draining: !serving })
        };
        let starting = |replica: &&super::Replica| {
            replica.generation == active.generation && replica.is_live() && !replica.is_ready()
        };
        Some(Route {
            workspace: self.workspace.clone(),
            service: self.name.clone(),
            generation: active.generation,
            replicas: self.replicas.iter().filter_map(endpoint).collect(),
            starting: self.replicas.values().filter(starting).count() as u32,
            auth: active.spec.auth,
            key_digests: if active.spec.auth == Auth::None { Vec::new() } else { record.key_digests.clone() },
            requests: active.spec.requests.clone(),
            scaling: record.scaling.clone(),
            extra: proto::Extra::new(),
        })
    }
}
