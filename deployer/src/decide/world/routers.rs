//! Routers: each goes by a route that it has seen some time, and has requests in hand.

use proto::router::ServiceUtilization;

use super::{SimReplica, World};
use crate::{backend::Status, decide::Input};

impl World {
    /// A router sees the route as it is now.
    pub(in crate::decide) fn apply_route(&mut self, pick: usize) {
        if self.routers.is_empty() {
            return;
        }
        let index = pick % self.routers.len();
        self.routers[index].route = self.route.as_ref().map(|(route, _)| route.clone());
        self.routers[index].revision = self.route_revision;
    }

    /// A router sends a request to a replica, by the route it has.
    pub(in crate::decide) fn request(&mut self, pick: usize) {
        if self.routers.is_empty() {
            return;
        }
        let index = pick % self.routers.len();
        let router = &mut self.routers[index];
        let endpoints: Vec<_> =
            router.route.iter().flat_map(|route| &route.replicas).filter(|endpoint| !endpoint.draining).collect();
        if endpoints.is_empty() {
            return;
        }
        let id = endpoints[pick / 7 % endpoints.len()].replica.clone();
        match self.replicas.get(&id) {
            Some(SimReplica { status: Status::Ready, .. }) => *router.in_flight.entry(id).or_default() += 1,
            // A connection that is refused is tried elsewhere; a replica that was stopped while routed is a request lost.
            Some(_) => {}
            None if self.crashed => {}
            None => self.lost += 1,
        }
    }

    pub(in crate::decide) fn complete(&mut self, pick: usize) {
        if self.routers.is_empty() {
            return;
        }
        let index = pick % self.routers.len();
        let router = &mut self.routers[index];
        if let Some(id) = router.in_flight.keys().nth(pick / 7 % router.in_flight.len().max(1)).cloned() {
            router.in_flight.remove(&id);
        }
    }

    pub(super) fn report(&mut self) {
        let mut said = Vec::new();
        for router in &mut self.routers {
            let Some(route) = &router.route else { continue };
            router.sequence += 1;
            said.push(ServiceUtilization {
                sequence: router.sequence,
                generation: route.generation,
                revision: router.revision,
                replicas: 0,
                scaling: route.scaling.clone(),
                draining: router.in_flight.clone(),
                ..ServiceUtilization::idle(router.id.clone())
            });
        }
        for utilization in said {
            self.feed(Input::Utilization(Box::new(utilization)));
        }
    }
}
