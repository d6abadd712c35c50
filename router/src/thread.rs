//! What one serving thread has to itself, and what it shares.

use std::sync::Arc;

use runtime::shutdown::Tasks;

use crate::{
    config::Limits,
    identity::Ids,
    leftover::{Janitor, Leftovers},
    metrics::Meters,
    pool::Pool,
    routes::Routes,
};

/// The surroundings of a request.
pub(crate) struct Thread {
    /// Limits of connections and requests.
    pub(crate) limits: Arc<Limits>,
    /// Which services there are; shared by all threads.
    pub(crate) routes: Arc<Routes>,
    /// What is measured; shared by all threads.
    pub(crate) meters: Arc<Meters>,
    /// Connections to replicas, of this thread alone.
    pub(crate) pool: Pool,
    /// Names for requests.
    pub(crate) ids: Ids,
    /// Where unfinished work is left.
    pub(crate) leftovers: Leftovers,
    /// Work that no caller waits for; it ends with the thread.
    pub(crate) background: Tasks,
}

impl Thread {
    /// Surroundings for one thread, and the janitor that must run on it.
    pub(crate) fn new(limits: Arc<Limits>, routes: Arc<Routes>, meters: Arc<Meters>) -> (Arc<Self>, Janitor) {
        let background = Tasks::default();
        let (leftovers, janitor) = Leftovers::new(limits.clone(), background.clone());
        let (pool, ids) = (Pool::new(limits.pool_idle), Ids::new());
        (Arc::new(Self { limits, routes, meters, pool, ids, leftovers, background }), janitor)
    }
}
