//! The plumbing that the components share: bus, object store, configuration, telemetry, health and shutdown.
//!
//! This crate owns *how* things are carried, kept and stopped. It knows no service, replica or route: no domain noun is in its API
//! beyond the names that a subject is made of.

pub mod admin;
pub mod archive;
pub mod backoff;
pub mod bus;
pub mod clock;
pub mod config;
pub mod logins;
pub mod pieces;
pub mod sealing;
pub mod shutdown;
pub mod store;
pub mod streams;
pub mod telemetry;
pub mod testing;
pub mod tls;

use std::time::Duration;

use proto::id::InstanceId;
use tokio_util::sync::CancellationToken;

use crate::{
    admin::Health,
    bus::Bus,
    config::{CommonArgs, Settings, StoreArgs},
    shutdown::Tasks,
    store::Store,
    telemetry::Metrics,
};

/// What a component needs to run, and nothing it needs to decide.
#[derive(Clone)]
pub struct Runtime {
    /// The component's name, `router` for example.
    pub component: &'static str,
    /// This process among others of the same component.
    pub instance: InstanceId,
    /// The bus.
    pub bus: Bus,
    /// The object store; one that refuses everything for a component that was started without.
    pub store: Store,
    /// Cancelled when the component should stop: finish what is in hand, take nothing new.
    pub shutdown: CancellationToken,
    /// Where tasks are spawned, so that none is forgotten at the end.
    pub tasks: Tasks,
    /// What `/ready` answers.
    pub health: Health,
    /// What `/metrics` answers.
    pub metrics: Metrics,
    drain: Duration,
}

/// Why a component could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The bus cannot be used.
    #[error(transparent)]
    Bus(#[from] bus::Error),
    /// The object store cannot be used.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The admin address cannot be listened on.
    #[error(transparent)]
    Admin(#[from] admin::Error),
    /// A setting is wrong.
    #[error(transparent)]
    Config(#[from] config::Error),
}

/// Work was still going on when the time to drain was over.
#[derive(Debug, thiserror::Error)]
#[error("{component} still had work in hand after {drain:?}; it will be delivered again")]
pub struct Unfinished {
    component: &'static str,
    drain: Duration,
}

/// Starts what a lone component stands on: logs, signals, bus, admin address, and object store where it uses one.
///
/// # Errors
///
/// Fails when a setting is wrong, the bus or the object store cannot be reached within 30 s each, or the admin address is taken.
pub async fn start(
    component: &'static str,
    args: &CommonArgs,
    store: Option<&StoreArgs>,
) -> Result<Runtime, StartError> {
    telemetry::init(args.log_format, &args.log_level);
    let shutdown = shutdown::on_signal();
    let mut settings = args.settings(component)?;
    settings.store = store.map(StoreArgs::settings).transpose()?;
    let runtime = Runtime::new(component, &settings, shutdown).await?;
    admin::serve(
        args.admin_address,
        vec![(runtime.health.clone(), runtime.metrics.clone())],
        &runtime.tasks,
        &runtime.shutdown,
    )
    .await?;
    tracing::info!(component, instance = %runtime.instance, bus = %settings.bus.address, "started");
    Ok(runtime)
}

impl Runtime {
    /// Connects to the bus and the object store for one component; `kaai up` makes five of these in one process.
    ///
    /// # Errors
    ///
    /// Fails when the bus cannot be reached within 30 s or is too old, or the object store cannot be used.
    pub async fn new(
        component: &'static str,
        settings: &Settings,
        shutdown: CancellationToken,
    ) -> Result<Self, StartError> {
        let tasks = Tasks::default();
        let instance = settings.instance.clone();
        let bus = Bus::connect(component, &instance, &settings.bus, shutdown.clone()).await?;
        let store = settings.store.clone().map_or_else(|| Ok(Store::none()), Store::open)?;
        store.check().await?;
        let health = Health::new(component, bus.clone());
        Ok(Self {
            component,
            instance,
            bus,
            store,
            shutdown,
            tasks,
            health,
            metrics: Metrics::new(component),
            drain: settings.drain,
        })
    }

    /// Waits until every task has ended, at most the configured time, then closes the bus.
    ///
    /// # Errors
    ///
    /// Fails when tasks were still running at the deadline; whatever they worked on was not acknowledged and comes again.
    pub async fn finish(self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        let drained = tokio::time::timeout(self.drain, self.tasks.wait()).await;
        self.bus.close().await;
        drained.map_err(|_| Unfinished { component: self.component, drain: self.drain })?;
        tracing::info!(component = self.component, "stopped");
        Ok(())
    }
}
