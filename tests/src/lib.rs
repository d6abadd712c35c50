//! The harness of the tests that cross components: a real kaai as its own process, the real command line, real requests.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

pub mod http;
pub mod project;
pub mod readme;
pub mod stack;

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take that installs packages or starts Python.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// A program of ours, as cargo built it beside this test.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join(name);
    assert!(
        path.is_file(),
        "{} is not built: run `cargo build --workspace` first, as `make test` does",
        path.display()
    );
    path
}

/// How a command ended.
#[derive(Debug)]
pub struct Ran {
    /// The exit code; -1 after a signal.
    pub code: i32,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Ran {
    /// Runs a command to its end.
    pub fn new(command: &mut Command) -> Self {
        let output = command.stdin(Stdio::null()).output().unwrap();
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The same, if it ended well.
    #[track_caller]
    pub fn good(self) -> Self {
        assert_eq!(self.code, 0, "{self:#?}");
        self
    }

    /// Its result as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

/// A `kaai up` of its own, in a process and a state folder of its own. It is ended when this is dropped.
pub struct Kaai {
    home: TempDir,
    child: Option<Child>,
    /// Where the router listens.
    pub router: String,
    /// Where the bus listens.
    pub bus: String,
    /// Where `/ready` and `/metrics` are.
    pub admin: String,
}

impl Kaai {
    /// Starts one on free ports and waits until it is up.
    pub fn start() -> Self {
        let mut kaai = Self {
            home: TempDir::new().unwrap(),
            child: None,
            router: String::new(),
            bus: String::new(),
            admin: String::new(),
        };
        kaai.resume(&[]);
        kaai
    }

    /// Starts it again on the same state folder, after it has ended somehow.
    pub fn resume(&mut self, more: &[&str]) {
        assert!(self.child.is_none(), "it still runs");
        let mut child = self
            .command(&["up", "--bus-port", "0", "--router-address", "127.0.0.1:0", "--output", "json"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let told: Value = serde_json::from_str(&line).unwrap_or_else(|error| {
            let log = std::fs::read_to_string(self.home().join("kaai.log")).unwrap_or_default();
            panic!("kaai up said {line:?}: {error}\n{log}")
        });
        let text = |key: &str| told[key].as_str().unwrap().to_owned();
        (self.router, self.bus, self.admin) = (text("router"), text("bus"), text("admin"));
        self.child = Some(child);
    }

    /// Its state folder.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// A `kaai` command that speaks to it.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary("kaai"));
        let tools = root().join(".tools/bin");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths([tools].into_iter().chain(std::env::split_paths(&path))).unwrap();
        // A configuration folder of its own: the user's contexts are left alone.
        command
            .args(args)
            .env("KAAI_HOME", self.home())
            .env("XDG_CONFIG_HOME", self.home().join("config"))
            .env("PATH", path);
        command
    }

    /// Runs a `kaai` command to its end.
    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::new(&mut self.command(args))
    }

    /// Runs a `kaai` command in a folder.
    pub fn run_in(&self, folder: &Path, args: &[&str]) -> Ran {
        Ran::new(self.command(args).current_dir(folder))
    }

    /// The result of a `kaai` command that must end well.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let mut all = args.to_vec();
        all.extend(["--output", "json"]);
        self.run(&all).good().json()
    }

    /// The address of a service's path.
    pub fn url(&self, service: &str, path: &str) -> String {
        format!("{}/api/v1/service/{service}/{path}", self.router)
    }

    /// The primary key of a service.
    pub fn key(&self, service: &str) -> String {
        self.json(&["keys", "show", service])["primary"].as_str().unwrap().to_owned()
    }

    /// Ends it as a person does, with Ctrl-C, and gives the exit code.
    pub fn interrupt(&mut self) -> i32 {
        let mut child = self.child.take().unwrap();
        signal("INT", child.id());
        child.wait().unwrap().code().unwrap_or(-1)
    }

    /// Has it ended, and its state folder taken away, when this process is over: for one in a static, which is never dropped.
    #[expect(clippy::zombie_processes, reason = "it outlives this process on purpose")]
    pub fn end_with_this_process(&self) {
        let script = "tail --pid=$1 -f /dev/null; kill -INT $2; tail --pid=$2 -f /dev/null; rm -rf \"$3\"";
        let (this, kaai) = (std::process::id().to_string(), self.pid().to_string());
        let mut guardian = Command::new("sh");
        guardian.args(["-c", script, "sh", &this, &kaai]).arg(self.home());
        guardian.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // A group of its own, so that Ctrl-C at the tests does not end it first.
        std::os::unix::process::CommandExt::process_group(&mut guardian, 0).spawn().unwrap();
    }

    /// Ends it at once, as the kernel does when memory is short.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Drop for Kaai {
    fn drop(&mut self) {
        if self.child.is_none() {
            // What a killed one has left behind is ended by the next one on the same folder.
            self.resume(&[]);
        }
        self.interrupt();
    }
}

/// Sends a signal to a process that we started.
pub fn signal(name: &str, pid: u32) {
    let status = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status().unwrap();
    assert!(status.success(), "process {pid} is not there");
}

/// The processes whose command line holds a text: to see that none is left.
pub fn processes_with(text: &str) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let whole = String::from_utf8_lossy(&[command.clone(), environment].concat()).into_owned();
        if pid != std::process::id() && !command.is_empty() && whole.contains(text) {
            found.push((pid, String::from_utf8_lossy(&command).replace('\0', " ")));
        }
    }
    found
}
