//! A place for replicas to run in: a real virtual environment, an object store, and small projects.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, OnceLock},
    time::Duration,
};

use deployer::{
    backend::{Backend, Observed, Order, Status},
    process::{ProcessBackend, Settings},
};
use proto::{
    builder::Image,
    deployer::Release,
    id::{Digest, EnvironmentHash, Generation, ReplicaId, Workspace},
    spec::ServiceSpec,
};
use runtime::{shutdown::Tasks, store::Store};
use tokio::sync::mpsc::UnboundedReceiver;

/// A script that answers with what it is asked, and does what the request says.
pub(crate) const GOOD: &str = r#"
import json, os, subprocess, time

def init():
    print("ready")

def run(data):
    order = json.loads(data)
    if "exit" in order:
        os._exit(order["exit"])
    if "touch" in order:
        open(order["touch"], "w").close()
    if "sleep" in order:
        time.sleep(order["sleep"])
    if "child" in order:
        # A process that leaves the group, as a careless library may start.
        return subprocess.Popen(["sleep", "600"], start_new_session=True).pid
    if "read" in order:
        return open(order["read"]).read()
    if "environment" in order:
        return dict(os.environ)
    return {"pid": os.getpid(), "ppid": os.getppid(), "cwd": os.getcwd()}
"#;

pub(crate) const RAISES: &str =
    "def init():\n    raise RuntimeError('the weights file is damaged')\n\ndef run(data):\n    return 1\n";
pub(crate) const EXITS: &str = "import os\n\ndef init():\n    os._exit(7)\n\ndef run(data):\n    return 1\n";
pub(crate) const HANGS: &str = "import time\n\ndef init():\n    time.sleep(600)\n\ndef run(data):\n    return 1\n";

/// The virtual environment that all tests share; made once by uv, and kept in the target folder.
pub(crate) fn environment() -> Option<&'static Path> {
    static ENVIRONMENT: OnceLock<Option<PathBuf>> = OnceLock::new();
    ENVIRONMENT
        .get_or_init(|| {
            let uv = runtime::testing::program("uv")?;
            let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("deployer-environment");
            let lock = File::create(folder.with_extension("lock")).unwrap();
            lock.lock().unwrap();
            let made = folder.join("made");
            if !made.exists() {
                run(Command::new(&uv).args(["venv", "--quiet", "--clear"]).arg(&folder))?;
                let install =
                    ["pip", "install", "--quiet", "--compile-bytecode", "azureml-inference-server-http==1.5.1"];
                run(Command::new(&uv).args(install).arg("--python").arg(folder.join("bin/python")))?;
                File::create(made).unwrap();
            }
            Some(folder)
        })
        .as_deref()
}

fn run(command: &mut Command) -> Option<()> {
    command.status().ok()?.success().then_some(())
}

#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) folder: Arc<tempfile::TempDir>,
    pub(crate) store: Store,
    /// The environment of its releases.
    pub(crate) image: Image,
}

impl Drop for Place {
    /// A test that fails leaves no replica behind: each has the folder's path among its arguments.
    fn drop(&mut self) {
        let path = self.folder.path().display().to_string();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if String::from_utf8_lossy(&arguments).contains(&format!("{path}/"))
                && let Some(pid) = pid.and_then(rustix::process::Pid::from_raw)
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

impl Place {
    /// `None`, said aloud, where no environment can be had.
    pub(crate) fn new(test: &str) -> Option<Self> {
        let Some(environment) = environment() else {
            runtime::testing::skip(test, "a virtual environment needs uv and a package index");
            return None;
        };
        let (path, python) = (environment.display().to_string(), "3.11.7".to_owned());
        Some(Self::of(Image::VirtualEnvironment { path, python }))
    }

    pub(crate) fn of(image: Image) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let store = Store::open(folder.path().join("store").as_path()).unwrap();
        Self { folder, store, image }
    }

    pub(crate) fn settings(&self) -> Settings {
        Settings::new(self.folder.path().join("state"))
    }

    pub(crate) async fn backend(&self) -> ProcessBackend {
        ProcessBackend::open(self.settings(), self.store.clone(), Tasks::default()).await.unwrap()
    }

    /// Stores a zip of these files and returns its digest.
    pub(crate) async fn archive(&self, files: &[(&str, &str)]) -> Digest {
        let path = self.folder.path().join("archive.zip");
        let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
        for (name, text) in files {
            zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(text.as_bytes()).unwrap();
        }
        zip.finish().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let digest = deployer::keys::digest_of(&bytes);
        self.store.put_bytes(&runtime::store::archive_key(&digest), bytes).await.unwrap();
        digest
    }

    /// A release of one script.
    pub(crate) async fn release(&self, generation: u64, script: &str) -> Release {
        self.release_with(generation, &[("score.py", script)], serde_json::json!({})).await
    }

    pub(crate) async fn release_with(
        &self,
        generation: u64,
        files: &[(&str, &str)],
        more: serde_json::Value,
    ) -> Release {
        let mut spec = serde_json::json!({ "entryScript": "score.py" });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Release {
            generation: Generation(generation),
            archive: self.archive(files).await,
            environment: EnvironmentHash::from_sha256([7; 32]),
            image: self.image.clone(),
            lookup: None,
            asked: Vec::new(),
            scan: None,
            spec: serde_json::from_value::<ServiceSpec>(spec).unwrap(),
        }
    }
}

pub(crate) fn order(replica: &str, release: &Release) -> Order {
    Order {
        replica: replica.parse().unwrap(),
        workspace: Workspace::default(),
        service: "ridge".parse().unwrap(),
        release: release.clone(),
        from: None,
    }
}

/// Starts a replica and waits until it is as wanted.
pub(crate) async fn start(backend: &impl Backend, order: Order, wanted: impl Fn(&Status) -> bool) -> Observed {
    let mut changes = backend.changes();
    let replica = order.replica.clone();
    backend.start(order).await;
    news(&mut changes, &replica, wanted).await
}

pub(crate) async fn news(
    changes: &mut UnboundedReceiver<Observed>,
    replica: &ReplicaId,
    wanted: impl Fn(&Status) -> bool,
) -> Observed {
    loop {
        let observed =
            tokio::time::timeout(Duration::from_secs(60), changes.recv()).await.expect("news in time").unwrap();
        if observed.replica == *replica && wanted(&observed.status) {
            return observed;
        }
        let ended = matches!(observed.status, Status::Exited(_) | Status::Gone);
        assert!(!ended || observed.replica != *replica, "{observed:?}");
    }
}

/// Asks a replica; `None` when the connection is closed without an answer.
pub(crate) async fn ask(observed: &Observed, body: &serde_json::Value) -> Option<(u16, String)> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let socket = observed.address.as_ref().unwrap().strip_prefix("unix:").unwrap();
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let body = body.to_string();
    let request = format!("POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer.split("\r\n\r\n").nth(1)?.to_owned()))
}
