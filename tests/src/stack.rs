//! The compose stack as an operator has it: real Compose, a real engine, and images that are made here without a registry.
//!
//! Where no public image can be had, NATS and the registry stand on the base image of `tools/base_image.py`, and so do the components.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use runtime::testing::{base_image, free_port, program};
use serde_json::Value;
use tempfile::TempDir;

use crate::{Ran, binary, root};

/// What the images of NATS and of the registry are asked for in their health checks.
const WGET: &str =
    "#!/usr/bin/python3 -I\nimport sys, urllib.request\nurllib.request.urlopen(sys.argv[-1], timeout=5)\n";

/// The label of what is built here.
const MARK: &str = "io.kaai.test.stack";

/// A version of Compose.
#[derive(Clone)]
pub struct Compose(Vec<PathBuf>);

impl Compose {
    /// Compose 2: the one that `tools/compose.py` fetches, else the engine's own plugin.
    pub fn second() -> Option<Self> {
        let fetched = root().join(".tools/cli-plugins/docker-compose");
        if fetched.is_file() {
            return Some(Self(vec![fetched]));
        }
        Self(vec![program("docker")?, "compose".into()]).of_version("2")
    }

    /// Compose 1.29, as Debian 12 has it.
    pub fn first() -> Option<Self> {
        Self(vec![program("docker-compose")?]).of_version("1.29")
    }

    fn of_version(self, wanted: &str) -> Option<Self> {
        let said = Command::new(&self.0[0]).args(&self.0[1..]).args(["version", "--short"]).output().ok()?;
        String::from_utf8_lossy(&said.stdout).trim_start_matches('v').starts_with(wanted).then_some(self)
    }
}

/// One stack of its own. Whatever it has made on the engine is taken away when it is dropped.
pub struct Stack {
    folder: TempDir,
    name: String,
    variables: Vec<(&'static str, String)>,
    registry: u16,
    /// Identities of the deployers that there were: their networks are not Compose's.
    identities: Vec<String>,
    /// Where requests go.
    pub router: String,
    bus: String,
}

impl Stack {
    /// Prepares one; an error says what is missing here.
    ///
    /// # Errors
    ///
    /// Fails without an engine, a base image, `docker`, `docker-registry`, `nats-server`, `weed` or uv.
    pub fn new() -> Result<Self, &'static str> {
        let layout = base_image().ok_or("there is no base image: python3 tools/base_image.py makes it")?;
        let needed = |name| program(name).ok_or("it needs docker, docker-registry, nats-server, uv and weed");
        let (docker, uv) = (needed("docker")?, needed("uv")?);
        let servers = [needed("nats-server")?, needed("docker-registry")?, needed("weed")?];
        if !Command::new(docker).arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
        {
            return Err("there is no Docker engine");
        }
        let name = format!("kaai-test-{}", std::process::id());
        let ports = [free_port(), free_port(), free_port()];
        let mut stack = Self {
            folder: TempDir::new().unwrap(),
            variables: Vec::new(),
            registry: ports[0],
            identities: Vec::new(),
            router: format!("http://127.0.0.1:{}", ports[1]),
            bus: format!("nats://127.0.0.1:{}", ports[2]),
            name,
        };
        stack.lay_out(&uv, &servers);
        let base = stack.import(&layout);
        let context = stack.path("context").display().to_string();
        let ports = ports.map(|port| port.to_string());
        stack.variables = vec![
            ("COMPOSE_PROJECT_NAME", stack.name.clone()),
            ("KAAI_BUILD_CONTEXT", context),
            ("KAAI_BINARIES", "prebuilt".to_owned()),
            ("KAAI_PREBUILT", "programs".to_owned()),
            ("KAAI_IMAGES", stack.name.clone()),
            ("KAAI_BASE_IMAGE", base.clone()),
            ("KAAI_BUILDER_BASE_IMAGE", base.clone()),
            ("KAAI_PACKAGER_BASE_IMAGE", base.clone()),
            ("KAAI_DEPLOYER_BASE_IMAGE", base),
            ("KAAI_NATS_IMAGE", format!("{}/nats", stack.name)),
            ("KAAI_REGISTRY_IMAGE", format!("{}/registry", stack.name)),
            ("KAAI_OBJECTS_IMAGE", format!("{}/objects", stack.name)),
            ("KAAI_BASE_IMAGES", format!("3.11={}", stack.base_image())),
            ("KAAI_HEALTH_INTERVAL", "2s".to_owned()),
        ];
        stack.variables.extend(["KAAI_REGISTRY_PORT", "KAAI_ROUTER_PORT", "KAAI_BUS_PORT"].into_iter().zip(ports));
        Ok(stack)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What is built from, and what is other here than in `compose.yaml`.
    fn lay_out(&self, uv: &Path, [nats, registry, weed]: &[PathBuf; 3]) {
        for folder in ["context/programs", "context/.tools/bin", "context/deploy", "nats", "registry", "objects"] {
            fs::create_dir_all(self.path(folder)).unwrap();
        }
        for component in ["packager", "builder", "deployer", "router", "scaler"] {
            let name = format!("kaai-{component}");
            put(&binary(&name), &self.path("context/programs").join(name));
        }
        put(uv, &self.path("context/.tools/bin/uv"));
        for part in ["nats", "compose"] {
            copy(&root().join("deploy").join(part), &self.path("context/deploy").join(part));
        }
        fs::copy(root().join("deploy/Containerfile"), self.path("context/deploy/Containerfile")).unwrap();
        for (folder, file, name) in
            [("nats", nats, "nats-server"), ("registry", registry, "registry"), ("objects", weed, "weed")]
        {
            put(file, &self.path(folder).join(name));
            fs::write(self.path(folder).join("wget"), WGET).unwrap();
            fs::set_permissions(self.path(folder).join("wget"), fs::Permissions::from_mode(0o755)).unwrap();
            let text = format!("FROM {}/python:3.11\nCOPY {name} wget /usr/local/bin/\n", self.name);
            fs::write(self.path(folder).join("Dockerfile"), text).unwrap();
        }
        let cache = std::env::var_os("UV_CACHE_DIR").map_or_else(|| root().join(".tools/uv-cache"), PathBuf::from);
        fs::create_dir_all(&cache).unwrap();
        let certificates = "/etc/ssl/certs/ca-certificates.crt";
        let mut mounts = vec![format!("{}:/var/cache/uv", cache.display())];
        if Path::new(certificates).is_file() {
            mounts.push(format!("{certificates}:{certificates}:ro"));
        }
        let own = serde_json::json!({ "services": {
            "nats": { "build": { "context": self.path("nats") } },
            "registry": { "build": { "context": self.path("registry") } },
            "objects": { "build": { "context": self.path("objects") } },
            "builder": {
                "environment": { "UV_CACHE_DIR": "/var/cache/uv", "SSL_CERT_FILE": certificates },
                "volumes": mounts,
            },
        }});
        fs::write(self.path("own.yaml"), own.to_string()).unwrap();
    }

    /// The base image for the engine.
    fn import(&self, layout: &Path) -> String {
        let read = |path: &Path| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap();
        let blob = |digest: &Value| layout.join("blobs").join(digest.as_str().unwrap().replace(':', "/"));
        let manifest = read(&blob(&read(&layout.join("index.json"))["manifests"][0]["digest"]));
        let name = format!("{}/python:3.11", self.name);
        let change = "ENV PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8";
        let layer = blob(&manifest["layers"][0]["digest"]).display().to_string();
        // All that is built on it has the label too, by which it is found when it has lost its name to another build.
        let label = format!("LABEL {MARK}={}", self.name);
        docker(&["import", "--change", change, "--change", &label, &layer, &name]).good();
        name
    }

    fn base_image(&self) -> String {
        format!("127.0.0.1:{}/python:3.11", self.registry)
    }

    /// Puts the base image for environments into the stack's registry.
    pub fn push_base_image(&self) {
        let name = self.base_image();
        docker(&["tag", &format!("{}/python:3.11", self.name), &name]).good();
        docker(&["push", "--quiet", &name]).good();
    }

    /// A command of Compose in the folder in which an operator types it.
    pub fn compose(&self, compose: &Compose, args: &[&str]) -> Ran {
        let mut command = Command::new(&compose.0[0]);
        command.args(&compose.0[1..]).args(["-f", "compose.yaml", "-f"]).arg(self.path("own.yaml")).args(args);
        command.current_dir(root().join("deploy")).envs(self.variables.clone());
        if args.contains(&"--remove-orphans") {
            // 1.29 wants it said.
            command.env("COMPOSE_IGNORE_ORPHANS", "0");
        }
        Ran::new(&mut command)
    }

    /// Makes a context of the command line for it.
    pub fn introduce(&self, compose: &Compose) {
        let password = self.compose(compose, &["run", "--rm", "-T", "setup", "show", "cli"]).good().stdout;
        let path = self.path("password");
        let mut file = fs::File::create(&path).unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
        file.write_all(password.as_bytes()).unwrap();
        let path = path.display().to_string();
        let login = ["--user", "cli", "--password-file", &path];
        self.kaai(&[&["context", "set", "stack", "--bus", &self.bus, "--router", &self.router][..], &login].concat())
            .good();
    }

    /// A command of kaai that speaks to it.
    pub fn kaai(&self, args: &[&str]) -> Ran {
        let mut command = Command::new(binary("kaai"));
        Ran::new(command.args(args).env("XDG_CONFIG_HOME", self.path("config")).env_remove("KAAI_HOME"))
    }

    /// The containers of replicas.
    pub fn replicas(&mut self) -> Vec<String> {
        let (project, service) = (self.label("project", &self.name), self.label("service", "replicas"));
        let format = "{{.ID}} {{.Label \"io.kaai.place\"}}";
        let filters = ["--filter", &project, "--filter", &service, "--no-trunc", "--format", format];
        let told = docker(&[&["ps"][..], &filters].concat()).good().stdout;
        let (mut ids, mut places): (Vec<_>, Vec<_>) = told
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(id, place)| (id.to_owned(), place.to_owned()))
            .unzip();
        ids.sort();
        self.identities.append(&mut places);
        ids
    }

    /// All containers of the stack, whatever their state.
    pub fn containers(&self) -> Vec<String> {
        lines(&["ps", "--all", "--quiet", "--filter", &self.label("project", &self.name)])
    }

    fn label(&self, key: &str, value: &str) -> String {
        format!("label=com.docker.compose.{key}={value}")
    }

    /// What the components wrote last, for whoever looks for the cause of a failure.
    pub fn logs(&self, compose: &Compose) -> String {
        let told = self.compose(compose, &["logs", "--no-color", "--tail", "40"]);
        told.stdout + &told.stderr
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.replicas();
        let project = self.label("project", &self.name);
        // Each may have gone already, which is as well.
        let away = |what: &[&str], found: Vec<String>| {
            for id in found {
                docker(&[what, &[&id]].concat());
            }
        };
        away(&["rm", "--force", "--volumes"], self.containers());
        away(&["network", "rm"], lines(&["network", "ls", "--quiet", "--filter", &project]));
        away(&["network", "rm"], self.identities.iter().map(|identity| format!("kaai-{identity}")).collect());
        away(&["volume", "rm", "--force"], lines(&["volume", "ls", "--quiet", "--filter", &project]));
        for filter in [
            format!("reference=127.0.0.1:{}/*", self.registry),
            format!("reference=127.0.0.1:{}/*/*", self.registry),
            format!("reference={}/*", self.name),
            format!("label={MARK}={}", self.name),
        ] {
            away(&["rmi", "--force"], lines(&["images", "--quiet", "--filter", &filter]));
        }
    }
}

fn docker(args: &[&str]) -> Ran {
    Ran::new(Command::new(program("docker").unwrap()).args(args))
}

fn lines(args: &[&str]) -> Vec<String> {
    docker(args).stdout.lines().map(str::to_owned).collect()
}

/// A file under another name, without a copy where that can be.
fn put(from: &Path, to: &Path) {
    let from = from.canonicalize().unwrap();
    if fs::hard_link(&from, to).is_err() {
        fs::copy(&from, to).unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}
