//! A whole kaai in one process: all five components on a `nats-server` of their own.
//!
//! The components share nothing here either: each has its own connection, its own login and its own loop, as if it were alone.

use std::{fs::File, net::SocketAddr, path::PathBuf, time::Duration};

use proto::{cli::Context, id::Workspace};
use runtime::{
    Runtime, admin,
    config::{Settings, new_instance},
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
    /// How long a lower need must hold before replicas go.
    pub scale_down_delay: Duration,
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
            scale_down_delay: Duration::from_secs(60),
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
    /// Starts everything and waits until all components are ready.
    ///
    /// # Errors
    ///
    /// Fails when another kaai uses the state folder, a port is taken, or a program is missing; then nothing is left running.
    pub async fn start(options: Options) -> Result<Self> {
        let lock = options.home.lock()?;
        server::free("the router", options.router, "--router-address")?;
        server::free("the admin address", options.admin, "--admin-address")?;
        let nats = find_program("nats-server", options.nats_server.as_deref(), "--nats-server")?;
        let uv = find_program("uv", options.uv.as_deref(), "--uv")?;
        let logins = Logins::prepare(&options.home)?;
        let server = Server::start(&options.home, &nats, options.bus_port, &logins).await?;
        let bus = server.url();
        let server_stop = CancellationToken::new();
        let mut starting = Starting { options: &options, logins: &logins, server: &server, ready: Vec::new() };
        let started = starting.components(uv).await;
        let ready = std::mem::take(&mut starting.ready);
        let server = Tasks::default().spawn(server.keep(server_stop.clone()));
        let (components, stops, router_bound) = match started {
            Ok(started) => started,
            Err(error) => {
                server_stop.cancel();
                // The server is stopped before the error is told; how it ended adds nothing.
                let _ = server.await;
                return Err(error);
            }
        };
        let context = Context {
            bus,
            user: Some("cli".to_owned()),
            password_file: Some(options.home.join("nats/passwords/cli").display().to_string()),
            router: String::new(),
            workspace: Workspace::default(),
            shared_files: true,
            extra: serde_json::Map::new(),
        };
        let admin_stop = CancellationToken::new();
        let mut up = Self {
            context,
            admin: options.admin,
            components,
            stops,
            server,
            server_stop,
            admin_stop: admin_stop.clone(),
            _lock: lock,
        };
        match up.settle(&options, ready, router_bound).await {
            Ok(()) => Ok(up),
            Err(error) => {
                up.stop().await;
                Err(error)
            }
        }
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

/// What is needed to start the components one after the other.
struct Starting<'a> {
    options: &'a Options,
    logins: &'a Logins,
    server: &'a Server,
    ready: Vec<Watched>,
}

impl Starting<'_> {
    async fn components(
        &mut self,
        uv: PathBuf,
    ) -> Result<(Components, Vec<CancellationToken>, oneshot::Receiver<SocketAddr>)> {
        let home = &self.options.home;
        let (mut components, mut stops) = (JoinSet::new(), Vec::new());

        let rt = self.runtime("packager").await?;
        stops.push(rt.shutdown.clone());
        components.spawn(alone(rt.clone(), packager::run(packager::Config::default(), rt)));

        let rt = self.runtime("builder").await?;
        stops.push(rt.shutdown.clone());
        let config = builder::Config { environments: home.join("environments"), uv, ..builder::Config::default() };
        components.spawn(alone(rt.clone(), builder::run(config, rt)));

        let rt = self.runtime("scaler").await?;
        stops.push(rt.shutdown.clone());
        let mut config = scaler::Config::default();
        config.timing.down = self.options.scale_down_delay;
        components.spawn(alone(rt.clone(), scaler::run(config, rt)));

        let rt = self.runtime("router").await?;
        stops.push(rt.shutdown.clone());
        let (told, bound) = oneshot::channel();
        let config = router::Config { address: self.options.router, bound: Some(told), ..router::Config::default() };
        components.spawn(alone(rt.clone(), router::run(config, rt)));

        let rt = self.runtime("deployer").await?;
        stops.push(rt.shutdown.clone());
        let config =
            deployer::Config { on_stop: deployer::OnStop::End, ..deployer::Config::new(home.join("deployer")) };
        components.spawn(alone(rt.clone(), deployer::run(config, rt)));
        Ok((components, stops, bound))
    }

    async fn runtime(&mut self, component: &'static str) -> Result<Runtime> {
        let settings = Settings {
            bus: self.server.settings(self.logins, component),
            store: self.options.home.join("store").display().to_string(),
            instance: new_instance(component),
            drain: DRAIN,
        };
        let rt = Runtime::new(component, &settings, CancellationToken::new())
            .await
            .map_err(|error| Ending::platform(error.to_string(), format!("the {component} cannot start")))?;
        self.ready.push((rt.health.clone(), rt.metrics.clone()));
        Ok(rt)
    }
}

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
