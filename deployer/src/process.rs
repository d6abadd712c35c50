//! Replicas as processes of this machine.
//!
//! Each replica is a process group with limits where the machine allows them.
//! Processes of one user are not kept from each other's files: this place is for one user's own services.

mod cgroup;
mod main_process;
mod table;

use std::path::{Path, PathBuf};

use proto::{
    builder::Image,
    failure::{Failure, Stage},
    id::ReplicaId,
};
use runtime::{shutdown::Tasks, store::Store};
use rustix::process::Signal;
use tokio_util::sync::CancellationToken;

use self::{
    cgroup::{Group, Limits},
    main_process::{MainProcess, Program},
    table::ProcessId,
};
pub use crate::host::{Error, Settings};
use crate::{
    backend::{Ended, Order},
    host::{
        Host,
        archives::Archives,
        engine::{Engine, Environment, Made, Start, Unit, View},
        ground::Ground,
        kept::{Folder, Kept, Layout},
        mark, model_path,
    },
};

/// The place. Clones share it.
pub type ProcessBackend = Host<Processes>;

/// The whole of a replica's folder is its own, and nobody else's.
const LAYOUT: Layout = Layout { own: "", mode: 0o700 };

/// Runs replicas as processes of this machine.
pub struct Processes {
    /// Tells the processes of this place from those of another on the same machine.
    identity: String,
    processes: u64,
    limits: Limits,
    archives: Archives,
    tasks: Tasks,
}

/// The processes of one replica.
pub struct Process {
    main: MainProcess,
    id: ProcessId,
    group: Option<Group>,
}

impl ProcessBackend {
    /// Takes the state folder, adopts the replicas that still run and clears away what is left of others.
    ///
    /// # Errors
    ///
    /// Fails when a folder cannot be used, or another deployer uses it.
    pub async fn open(settings: Settings, store: Store, tasks: Tasks) -> Result<Self, Error> {
        let ground = Ground::take(&settings, "process", LAYOUT)?;
        let archives = ground.archives(&settings, store, &tasks);
        let engine = Processes {
            identity: ground.identity.clone(),
            processes: settings.processes,
            limits: Limits::find(&format!("kaai-{}", ground.identity)),
            archives: archives.clone(),
            tasks: tasks.clone(),
        };
        Ok(Self::begin(ground, engine, archives, settings.variables, tasks).await)
    }
}

impl Engine for Processes {
    type Unit = Process;

    fn limits_missing(&self) -> Option<&str> {
        self.limits.missing()
    }

    async fn environment(&self, image: &Image) -> Result<Environment, Failure> {
        let folder = match image {
            Image::VirtualEnvironment { path, .. } => PathBuf::from(path),
            Image::Container { reference, .. } => {
                let cause = format!("this place runs processes, and the environment is an image ({reference})");
                let remedy = "let builder and deployer agree: both with images, or neither";
                return Err(Failure::platform(Stage::Starting, cause, remedy));
            }
        };
        let interpreter = folder.join("bin/python");
        if !interpreter.exists() {
            let cause = format!("the environment is gone: there is no {}", interpreter.display());
            return Err(Failure::platform(Stage::Starting, cause, "deploy again, which builds it anew"));
        }
        let path = format!("{}:/usr/local/bin:/usr/bin:/bin", folder.join("bin").display());
        Ok(Environment { interpreter, path, folder: Some(folder) })
    }

    fn view(&self, folder: &Folder) -> View {
        let own = folder.link().to_owned();
        View { app_root: folder.app_root(), temporary: own.join("tmp"), own, mode: None }
    }

    async fn bring_models(&self, folder: &Folder, order: &Order, given_up: &CancellationToken) -> Result<(), Failure> {
        for model in &order.release.spec.models {
            let what = format!("the model {}:{}", model.name, model.version);
            let into = folder.app_root().join(model_path(model));
            self.archives.unpack(&model.digest, &into, &what, given_up).await?;
        }
        Ok(())
    }

    async fn make(&self, start: &Start<'_>) -> Result<Made<Process>, Failure> {
        let (group, unlimited) = self.limit(start.order);
        let program = Program {
            python: &start.environment.interpreter,
            launcher: &start.folder.launcher(),
            app_root: &start.folder.app_root(),
            variables: start.variables,
            log: start.log,
        };
        let make = || {
            let main = MainProcess::spawn(&program)?;
            let pid = main.pid().unsigned_abs();
            let id = ProcessId::of(pid)?;
            if let Some(Err(error)) = group.as_ref().map(|group| group.add(pid)) {
                tracing::warn!(replica = %start.order.replica, %error, "runs without limits");
            }
            Ok(Process { main, id, group })
        };
        make().map(|unit| Made { unit, unlimited }).map_err(|error| cannot_start(&error))
    }

    /// Replicas have the deployer's own user, who may do anything.
    fn seal(&self, _folder: &Folder) -> std::io::Result<()> {
        Ok(())
    }

    async fn adopt(&self, kept: &Kept, _folder: &Folder) -> Option<Process> {
        let id: ProcessId = serde_json::from_value(kept.handle.clone()?).ok()?;
        let main = MainProcess::adopt(&id).ok()?;
        Some(Process { main, id, group: self.limits.named(kept.replica.as_str()) })
    }

    /// A process writes to its log directly.
    async fn bring_log(&self, _replica: &ReplicaId, _path: &Path) {}

    async fn clear(&self, replica: &ReplicaId) {
        let (group, mark) = (self.limits.named(replica.as_str()), mark(&self.identity, replica));
        let clearing = self.tasks.spawn_blocking(move || {
            if let Some(group) = group {
                group.end();
            }
            table::kill_marked(&mark);
        });
        // A panic in there leaves processes for the next start of the deployer.
        let _ = clearing.await;
    }

    async fn clear_strays(&self, running: &[ReplicaId]) {
        let (limits, running) = (self.limits.clone(), running.to_vec());
        let clearing = self.tasks.spawn_blocking(move || {
            let strays =
                limits.names().into_iter().filter(|name| running.iter().all(|replica| replica.as_str() != name));
            strays.filter_map(|name| limits.named(&name)).for_each(|group| group.end());
        });
        // A panic in there leaves what it has not cleared for the next time.
        let _ = clearing.await;
    }

    async fn close(&self) {
        self.limits.remove();
    }
}

impl Processes {
    /// Makes the group with a replica's limits; where that fails, it runs without them, and why is said.
    fn limit(&self, order: &Order) -> (Option<Group>, Option<String>) {
        let resources = &order.release.spec.resources;
        let asked = resources.cpu_limit.is_some() || resources.memory_gb_limit.is_some();
        let (group, why) = match self.limits.group(order.replica.as_str(), resources, self.processes) {
            Ok(group) => (group, self.limits.missing().map(str::to_owned)),
            Err(error) => {
                tracing::warn!(replica = %order.replica, %error, "runs without limits");
                (None, Some(error.to_string()))
            }
        };
        (group, why.filter(|_| asked))
    }
}

impl Unit for Process {
    fn handle(&self) -> serde_json::Value {
        serde_json::to_value(&self.id).unwrap_or_default()
    }

    async fn go(&mut self, order: &str) -> Result<(), Failure> {
        self.main.go(order).await.map_err(|error| cannot_start(&error))
    }

    async fn ended(&mut self) -> Ended {
        self.main.ended().await
    }

    async fn out_of_memory(&self) -> bool {
        self.group.as_ref().is_some_and(|group| group.out_of_memory_kills() > 0)
    }

    async fn ask_to_end(&mut self) {
        self.main.signal(Signal::TERM);
    }

    async fn kill(&mut self) {
        // Its group is certainly its own as long as it has not been waited for.
        table::signal_group(self.main.pid(), Signal::KILL);
    }
}

fn cannot_start(error: &std::io::Error) -> Failure {
    let cause = format!("the process cannot be started: {error}");
    Failure::platform(Stage::Starting, cause, "mend that, then deploy again")
}
