//! How a kaai is reached: the context, the bus, and the questions that several commands ask.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use proto::{
    cli::Context,
    deployer::ServiceRecord,
    id::{ServiceName, Workspace},
    query::{GetKeys, Keys},
    subject,
};
use runtime::{
    bus::{Bus, Entry},
    config::{BusSettings, new_instance, read_password},
};
use tokio_util::sync::CancellationToken;

use crate::{
    ending::{Ending, Result},
    home::{Contexts, Home},
};

/// How long a question may take.
pub const ASK: Duration = Duration::from_secs(10);

/// Which kaai is spoken to.
#[derive(Debug, Clone, Args)]
pub struct Reach {
    /// The kaai to speak to, by the name of its context [default: the current one]
    #[arg(long, global = true, env = "KAAI_CONTEXT", value_name = "NAME")]
    pub context: Option<String>,
    /// State folder of a kaai on this machine [default: $XDG_DATA_HOME/kaai]
    #[arg(long, global = true, env = "KAAI_HOME", value_name = "FOLDER")]
    pub home: Option<PathBuf>,
    /// The tenant [default: the context's]
    #[arg(long, global = true, env = "KAAI_WORKSPACE", value_name = "NAME")]
    pub workspace: Option<Workspace>,
}

impl Reach {
    /// Finds the context: by name, else of the given home, else the current one, else of the default home.
    ///
    /// # Errors
    ///
    /// Fails when there is none.
    pub fn context(&self) -> Result<Context> {
        let contexts = Contexts::read()?;
        let found = if let Some(name) = &self.context {
            let known = contexts.contexts.keys().cloned().collect::<Vec<_>>().join(", ");
            Some(contexts.contexts.get(name).cloned().ok_or_else(|| {
                Ending::usage(format!("there is no context {name:?}"), format!("the known ones are: {known}"))
            })?)
        } else if self.home.is_some() {
            Home::locate(self.home.as_deref())?.context()
        } else {
            let current = contexts.current.as_ref().and_then(|name| contexts.contexts.get(name)).cloned();
            match current {
                Some(current) => Some(current),
                None => Home::locate(None)?.context(),
            }
        };
        let mut context = found.ok_or_else(|| {
            Ending::mend("no kaai is known here", "start one with `kaai up`, or name one with `kaai context set`")
        })?;
        if let Some(workspace) = &self.workspace {
            context.workspace = workspace.clone();
        }
        Ok(context)
    }

    /// Connects to the bus of the context.
    ///
    /// # Errors
    ///
    /// Fails when there is no context or its bus does not answer within five seconds.
    pub async fn connect(&self) -> Result<Connection> {
        let context = self.context()?;
        let login = match (&context.user, &context.password_file) {
            (Some(user), Some(file)) => {
                let password = read_password(file.as_ref()).map_err(|error| {
                    Ending::mend(
                        error.to_string(),
                        "is this kaai's state folder still there? `kaai context list` shows it",
                    )
                })?;
                Some((user.clone(), password))
            }
            _ => None,
        };
        let settings = BusSettings { address: context.bus.clone(), login };
        let instance = new_instance("cli");
        let connecting = Bus::connect("cli", &instance, &settings, CancellationToken::new());
        let bus = tokio::time::timeout(Duration::from_secs(5), connecting).await.map_err(|_| {
            Ending::platform(
                format!("no kaai answers at {}", context.bus),
                "start it with `kaai up`, or choose another with --context",
            )
        })??;
        Ok(Connection { context, bus })
    }
}

/// A kaai that answers.
pub struct Connection {
    /// How it was reached.
    pub context: Context,
    /// Its bus.
    pub bus: Bus,
}

impl Connection {
    /// The tenant.
    pub fn workspace(&self) -> &Workspace {
        &self.context.workspace
    }

    /// The address of a path at the router.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.context.router.trim_end_matches('/'))
    }

    /// What is known of a service.
    ///
    /// # Errors
    ///
    /// Fails when there is no such service.
    pub async fn service(&self, name: &ServiceName) -> Result<Entry<ServiceRecord>> {
        self.find_service(name).await?.ok_or_else(|| no_service(name))
    }

    /// What is known of a service, if there is one.
    ///
    /// # Errors
    ///
    /// Fails when the bus does not answer.
    pub async fn find_service(&self, name: &ServiceName) -> Result<Option<Entry<ServiceRecord>>> {
        let services = self.bus.bucket::<ServiceRecord>(subject::SERVICES).await?;
        let entry = services.get(&subject::service_key(self.workspace(), name)).await?;
        Ok(entry.filter(|entry| !entry.value.deleting))
    }

    /// All services of the workspace, by name.
    ///
    /// # Errors
    ///
    /// Fails when the bus does not answer.
    pub async fn services(&self) -> Result<Vec<ServiceRecord>> {
        let bucket = self.bus.bucket::<ServiceRecord>(subject::SERVICES).await?;
        let mut records = Vec::new();
        for key in bucket.keys().await? {
            let ours = subject::parse_service_key(&key).is_some_and(|(workspace, _)| workspace == *self.workspace());
            if let Some(entry) = if ours { bucket.get(&key).await? } else { None } {
                records.push(entry.value);
            }
        }
        records.retain(|record| !record.deleting);
        records.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(records)
    }

    /// The keys of a service.
    ///
    /// # Errors
    ///
    /// Fails when the deployer does not answer or knows no such service.
    pub async fn keys(&self, service: &ServiceName) -> Result<Keys> {
        Ok(self.bus.ask(self.workspace(), &GetKeys { service: service.clone() }, ASK).await?)
    }
}

/// There is no such service.
pub fn no_service(name: &ServiceName) -> Ending {
    Ending::mend(format!("there is no service {name}"), "`kaai status` lists them; `kaai deploy FOLDER` makes one")
}
