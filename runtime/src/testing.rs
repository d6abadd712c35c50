//! What tests need: a real `nats-server` of their own and a runtime on it, a real registry of images, and real object stores.

mod conformance;
mod registry;
mod small_disk;
mod stores;

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

pub use self::{
    conformance::conformance,
    registry::{Registry, base_image},
    small_disk::SmallDisk,
    stores::ObjectServer,
};
use crate::{
    Runtime,
    config::{BusSettings, Settings, new_instance},
};

/// A real `nats-server` with JetStream on a free loopback port, ended when it is dropped.
pub struct Nats {
    child: Option<Child>,
    folder: TempDir,
    port: u16,
    program: PathBuf,
}

impl Nats {
    /// Starts one and waits until it is healthy.
    ///
    /// # Panics
    ///
    /// When no `nats-server` is found, or it is not healthy within ten seconds.
    pub async fn start() -> Self {
        let program = program("nats-server").expect("nats-server is on PATH or in .tools/bin: run `make tools`");
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let mut nats = Self { child: None, folder, port: free_port(), program };
        nats.resume().await;
        nats
    }

    /// Its address.
    pub fn address(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Ends the server at once, as `kill -9` does; what it has acknowledged stays on disk.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the server can be killed");
            child.wait().expect("the server ends");
        }
    }

    /// Starts the server again on the same port and the same files.
    ///
    /// # Panics
    ///
    /// When it is not healthy within ten seconds.
    pub async fn resume(&mut self) {
        let config = self.folder.path().join("nats.conf");
        let store = self.folder.path().join("jetstream");
        let text = format!(
            "host: \"127.0.0.1\"\nport: {}\njetstream {{ store_dir: {store:?}, sync_interval: always }}\n",
            self.port
        );
        std::fs::write(&config, text).expect("the configuration can be written");
        let child = Command::new(&self.program)
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server can be started");
        self.child = Some(child);
        let address = self.address();
        until("nats-server is healthy", Duration::from_secs(10), async || {
            let client = async_nats::connect(&address).await.ok()?;
            async_nats::jetstream::new(client).query_account().await.ok()
        })
        .await;
    }

    /// Settings for a component on this server, with an object store in the server's folder.
    pub fn settings(&self, component: &str) -> Settings {
        Settings {
            bus: BusSettings { address: self.address(), login: None },
            store: Some(self.folder.path().join("store").as_path().into()),
            instance: new_instance(component),
            drain: Duration::from_secs(10),
        }
    }

    /// A runtime for a component on this server.
    ///
    /// # Panics
    ///
    /// When the component cannot connect.
    pub async fn runtime(&self, component: &'static str) -> Runtime {
        let settings = self.settings(component);
        Runtime::new(component, &settings, CancellationToken::new()).await.expect("a component can connect")
    }

    /// A folder that is there as long as the server.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // A server that has ended by itself is fine too.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Finds a program that tests use: in `.tools/bin` of this or a parent folder, else on PATH.
pub fn program(name: &str) -> Option<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let ours = here.ancestors().map(|folder| folder.join(".tools/bin").join(name)).find(|path| path.is_file());
    ours.or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file())
    })
}

/// Whether a test must run whatever it needs: set by CI, so that nothing is skipped there.
pub fn must_run_all() -> bool {
    std::env::var_os("KAAI_REQUIRE_ALL").is_some_and(|value| value == "1")
}

/// Says that a test is left out and why.
///
/// # Panics
///
/// In CI, where no test may be left out.
#[expect(clippy::print_stderr, reason = "a test speaks to whoever runs it")]
pub fn skip(test: &str, reason: &str) {
    assert!(!must_run_all(), "{test} cannot be left out in CI: {reason}");
    eprintln!("LEFT OUT {test}: {reason}");
}

/// A loopback port that nobody listens on.
///
/// # Panics
///
/// When no port is free.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// Asks again and again until the answer is `Some`, and returns it.
///
/// # Panics
///
/// When the time is over.
pub async fn until<T>(what: &str, limit: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
