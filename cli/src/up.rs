//! A whole kaai in one process: all five components on a `nats-server` of their own.
//!
//! The components share nothing here either: each has its own connection, its own login and its own loop, as if it were alone.

use std::{fs::File, net::SocketAddr, path::PathBuf, time::Duration};

use builder::config::{CondaSettings, ImageSettings, ScanSettings};
use packager::walk::Limits;
use proto::{cli::Context, id::Workspace};
use runtime::{
    Runtime, admin,
    config::{BusSettings, Settings, new_instance},
    shutdown::Tasks,
};
use tokio::{sync::oneshot, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    ending::{Ending, Result},
    home::Home,
    server::{self, Logins, Server, find_program},
};

/// How long the components may take to be ready.
const READY: Duration = Duration::from_secs(30);
/// The components that keep or read archives, models and logs.
const STORING: [&str; 3] = ["packager", "builder", "deployer"];
/// How long a component may take to finish what it has in hand.
const DRAIN: Duration = Duration::from_secs(20);

/// What may be chosen about a kaai in one process.
#[derive(Debug, Clone)]
pub struct Options {
    /// The state folder.
    pub home: Home,
    /// The port of the bus on 127.0.0.1; 0 takes any.
    pub bus_port: u16,
    /// Where the router listens; port 0 takes any.
    pub router: SocketAddr,
    /// Where `/live`, `/ready` and `/metrics` are served for all components.
    pub admin: SocketAddr,
    /// The program of the bus, when it is not to be looked for.
    pub nats_server: Option<PathBuf>,
    /// The program that builds environments, when it is not to be looked for.
    pub uv: Option<PathBuf>,
    /// What installs conda packages; looked for as uv is, and done without where it is not there.
    pub conda: CondaSettings,
    /// How long a lower need must hold before replicas go.
    pub scale_down_delay: Duration,
    /// How much a project may hold.
    pub project_limits: Limits,
    /// Registries and base images; with them environments are images and replicas containers of this machine's Docker engine.
    pub images: Option<ImageSettings>,
    /// What environments have to pass.
    pub scan: Option<ScanSettings>,
    /// A Docker `config.json` with logins at those registries.
    pub registry_login: Option<PathBuf>,
}

impl Options {
    /// What `kaai up` takes without flags.
    pub fn new(home: Home) -> Self {
        Self {
            home,
            bus_port: 4222,
            router: SocketAddr::from(([127, 0, 0, 1], 8080)),
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
            nats_server: None,
            uv: None,
            conda: CondaSettings::default(),
            scale_down_delay: Duration::from_secs(60),
            project_limits: Limits::PROJECT,
            images: None,
            scan: None,
            registry_login: None,
        }
    }

    /// The same with whatever ports are free: for tests, and for a second kaai on a machine.
    #[must_use]
    pub fn any_ports(mut self) -> Self {
        self.bus_port = 0;
        self.router.set_port(0);
        self
    }
}

/// A kaai that runs in this process.
pub struct Up {
    /// How it is reached.
    pub context: Context,
    /// Where `/live`, `/ready` and `/metrics` are.
    pub admin: SocketAddr,
    components: Components,
    /// In the order in which they are stopped, the deployer last.
    stops: Vec<CancellationToken>,
    server: tokio::task::JoinHandle<()>,
    server_stop: CancellationToken,
    admin_stop: CancellationToken,
    /// Holds the state folder for as long as this kaai runs.
    _lock: File,
}

impl Up {
    /// Starts everything and waits until all components are ready; gives nothing when it should stop before that.
    ///
    /// # Errors
    ///
    /// Fails when another kaai uses the state folder, a port is taken, or a program is missing. Whenever no kaai is given, nothing is left
    /// running.
    pub async fn start(options: Options, shutdown: &CancellationToken) -> Result<Option<Self>> {
        let lock = options.home.lock()?;
        server::free("the router", options.router, "--router-address")?;
        server::free("the admin address", options.admin, "--admin-address")?;
        let nats = find_program("nats-server", options.nats_server.as_deref(), "--nats-server")?;
        let uv = find_program("uv", options.uv.as_deref(), "--uv")?;
        let logins = Logins::prepare(&options.home)?;
        let started = tokio::select! {
            server = Server::start(&options.home, &nats, options.bus_port, &logins) => server,
            () = shutdown.cancelled() => return Ok(None),
        };
        let mut server = started?;
        let ready = tokio::select! {
            ready = server.ready() => ready.map(Some),
            () = shutdown.cancelled() => Ok(None),
        };
        if !matches!(ready, Ok(Some(()))) {
            server.stop().await;
            return ready.map(|_| None);
        }
        let mut up = Self::with(server, &options, lock);
        let started = tokio::select! {
            started = up.components(&options, &logins, uv) => started.map(Some),
            () = shutdown.cancelled() => Ok(None),
        };
        if matches!(started, Ok(Some(()))) {
            return Ok(Some(up));
        }
        up.stop().await;
        started.map(|_| None)
    }

    /// A kaai of which only the bus runs.
    fn with(server: Server, options: &Options, lock: File) -> Self {
        let context = Context {
            bus: server.url(),
            user: Some("cli".to_owned()),
            password_file: Some(options.home.join("nats/passwords/cli").display().to_string()),
            router: String::new(),
            workspace: Workspace::default(),
            shared_files: true,
            extra: serde_json::Map::new(),
        };
        let server_stop = CancellationToken::new();
        Self {
            context,
            admin: options.admin,
            components: JoinSet::new(),
            stops: Vec::new(),
            server: Tasks::default().spawn(server.keep(server_stop.clone())),
            server_stop,
            admin_stop: CancellationToken::new(),
            _lock: lock,
        }
    }

    /// Starts the components one after the other and waits until they are ready.
    async fn components(&mut self, options: &Options, logins: &Logins, uv: PathBuf) -> Result {
        let home = &options.home;
        let mut ready = Vec::new();

        let rt = self.runtime("packager", options, logins).await?;
        let config = packager::Config { limits: options.project_limits, ..packager::Config::default() };
        self.spawn(&mut ready, &rt, packager::run(config, rt.clone()));

        let rt = self.runtime("builder", options, logins).await?;
        let config = builder::Config {
            environments: home.join("environments"),
            uv,
            conda: options.conda.clone(),
            images: options.images.clone(),
            scan: options.scan.clone(),
            ..builder::Config::default()
        };
        self.spawn(&mut ready, &rt, builder::run(config, rt.clone()));

        let rt = self.runtime("scaler", options, logins).await?;
        let mut config = scaler::Config::default();
        config.timing.down = options.scale_down_delay;
        self.spawn(&mut ready, &rt, scaler::run(config, rt.clone()));

        let rt = self.runtime("router", options, logins).await?;
        let (told, bound) = oneshot::channel();
        let config = router::Config { address: options.router, bound: Some(told), ..router::Config::default() };
        self.spawn(&mut ready, &rt, router::run(config, rt.clone()));

        let rt = self.runtime("deployer", options, logins).await?;
        let containers = || deployer::docker::Settings { login: options.registry_login.clone(), ..Default::default() };
        let config = deployer::Config {
            on_stop: deployer::OnStop::End,
            docker: options.images.as_ref().map(|_| containers()),
            ..deployer::Config::new(home.join("deployer"))
        };
        self.spawn(&mut ready, &rt, deployer::run(config, rt.clone()));
        self.settle(options, ready, bound).await
    }

    async fn runtime(&self, component: &'static str, options: &Options, logins: &Logins) -> Result<Runtime> {
        let settings = Settings {
            bus: BusSettings { address: self.context.bus.clone(), login: logins.of(component) },
            store: STORING.contains(&component).then(|| options.home.join("store").as_path().into()),
            instance: new_instance(component),
            drain: DRAIN,
        };
        Runtime::new(component, &settings, CancellationToken::new())
            .await
            .map_err(|error| Ending::platform(error.to_string(), format!("the {component} cannot start")))
    }

    /// Runs a component beside the others.
    fn spawn<E: std::fmt::Display + 'static>(
        &mut self,
        ready: &mut Vec<Watched>,
        rt: &Runtime,
        run: impl Future<Output = std::result::Result<(), E>> + Send + 'static,
    ) {
        ready.push((rt.health.clone(), rt.metrics.clone()));
        self.stops.push(rt.shutdown.clone());
        self.components.spawn(alone(rt.clone(), run));
    }

    /// Waits until every component is ready, and tells others how this kaai is reached.
    async fn settle(
        &mut self,
        options: &Options,
        ready: Vec<Watched>,
        router: oneshot::Receiver<SocketAddr>,
    ) -> Result {
        let router = tokio::select! {
            // A router that ends before it is bound drops its end; the reason comes from the component itself.
            Ok(router) = router => router,
            failed = self.failed() => return Err(failed),
        };
        self.context.router = format!("http://{router}");
        let deadline = Instant::now() + READY;
        while let Some(reason) = ready.iter().find_map(|(health, _)| health.reason()) {
            tokio::select! {
                failed = self.failed() => return Err(failed),
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
            if Instant::now() > deadline {
                return Err(Ending::platform(
                    format!("not ready after 30 s: {reason}"),
                    format!("its log is {}", options.home.join("kaai.log").display()),
                ));
            }
        }
        self.admin =
            admin::serve(options.admin, ready, &Tasks::default(), &self.admin_stop).await.map_err(|error| {
                Ending::mend(error.to_string(), "end what uses that port, or choose another --admin-address")
            })?;
        let text = serde_json::to_vec_pretty(&self.context).unwrap_or_default();
        options.home.write("context.json", &text).map(drop)
    }

    /// Waits until a component ends by itself, which it never should.
    pub async fn failed(&mut self) -> Ending {
        match self.components.join_next().await {
            Some(Ok((component, Err(error)))) => Ending::platform(error, format!("the {component} cannot go on")),
            Some(Ok((component, Ok(())))) => {
                Ending::platform(format!("the {component} ended by itself"), "see kaai.log in the state folder")
            }
            Some(Err(error)) => {
                Ending::platform(format!("a component failed: {error}"), "this is a defect of kaai; please report it")
            }
            None => std::future::pending().await,
        }
    }

    /// Stops everything in order: nothing new, the last requests, the replicas, the bus.
    pub async fn stop(mut self) {
        let deployer = self.stops.pop();
        for stop in &self.stops {
            stop.cancel();
        }
        // The deployer ends the replicas, so it is told last, when the router has had its last answer.
        while self.components.len() > 1
            && let Some(ended) = self.components.join_next().await
        {
            report(ended);
        }
        if let Some(deployer) = deployer {
            deployer.cancel();
        }
        while let Some(ended) = self.components.join_next().await {
            report(ended);
        }
        self.admin_stop.cancel();
        self.server_stop.cancel();
        if let Err(error) = self.server.await {
            tracing::error!(%error, "the keeper of nats-server failed");
        }
    }
}

fn report(ended: std::result::Result<(&'static str, std::result::Result<(), String>), tokio::task::JoinError>) {
    match ended {
        Ok((_, Ok(()))) => {}
        Ok((component, Err(error))) => tracing::warn!(component, error, "did not end well"),
        Err(error) => tracing::error!(%error, "a component failed"),
    }
}

type Watched = (admin::Health, runtime::telemetry::Metrics);
type Components = JoinSet<(&'static str, std::result::Result<(), String>)>;

/// Runs a component to its end, as its own `main` would.
async fn alone<E: std::fmt::Display>(
    rt: Runtime,
    run: impl Future<Output = std::result::Result<(), E>>,
) -> (&'static str, std::result::Result<(), String>) {
    let component = rt.component;
    let ran = run.await.map_err(|error| error.to_string());
    let finished = rt.finish().await.map_err(|error| error.to_string());
    (component, ran.and(finished))
}
