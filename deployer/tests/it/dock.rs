//! A place for containers: a real Docker engine, and an image of a small environment that is made once.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use bollard::{Docker, models::Mount, query_parameters as query};
use deployer::docker::{DockerBackend, Settings};
use futures::TryStreamExt;
use proto::builder::Image;
use runtime::shutdown::Tasks;

use crate::place::Place;

/// Where the environment is in the image.
const INTERPRETER: &str = "/opt/kaai/environment/bin/python";
const PACKAGES: &str = "opt/kaai/environment/lib/python3.11/site-packages";
pub(crate) const LABEL: &str = "io.kaai.place";

/// A Docker engine of this machine, if there is one.
pub(crate) async fn engine() -> Option<Docker> {
    let docker = Docker::connect_with_unix("/var/run/docker.sock", 60, bollard::API_DEFAULT_VERSION).ok()?;
    docker.negotiate_version().await.ok()
}

/// Files for `docker load`: the base image with and without an environment in it, and the ids of both images.
struct Made {
    archive: PathBuf,
    image: String,
    base: String,
}

/// Made once, and kept in the target folder; an error says what is missing.
fn images() -> Result<&'static Made, &'static str> {
    static MADE: OnceLock<Result<Made, &'static str>> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("deployer-images");
        fs::create_dir_all(&folder).unwrap();
        let lock = File::create(folder.with_extension("lock")).unwrap();
        lock.lock().unwrap();
        let (archive, ids) = (folder.join("images.tar"), folder.join("ids"));
        if !ids.exists() {
            let (image, base) = make(&folder, &archive)?;
            fs::write(&ids, format!("{image}\n{base}\n")).unwrap();
        }
        let text = fs::read_to_string(ids).unwrap();
        let (image, base) = text.trim().split_once('\n').unwrap();
        Ok(Made { archive, image: image.to_owned(), base: base.to_owned() })
    })
    .as_ref()
    .map_err(|why| *why)
}

fn run(command: &mut Command, or: &'static str) -> Result<(), &'static str> {
    if command.status().is_ok_and(|status| status.success()) { Ok(()) } else { Err(or) }
}

/// Writes both images as `docker save` would.
fn make(folder: &Path, archive: &Path) -> Result<(String, String), &'static str> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    run(Command::new("python3").arg(root.join("tools/base_image.py")), "a base image needs Debian's packages")?;
    let blobs = root.join(".tools/base-image/python3.11");
    let read = |path: &Path| serde_json::from_slice::<serde_json::Value>(&fs::read(path).unwrap()).unwrap();
    let blob = |digest: &serde_json::Value| blobs.join("blobs").join(digest.as_str().unwrap().replace(':', "/"));
    let manifest = read(&blob(&read(&blobs.join("index.json"))["manifests"][0]["digest"]));
    let mut config = read(&blob(&manifest["config"]["digest"]));
    let base_layer = blob(&manifest["layers"][0]["digest"]);

    let tree = folder.join("tree");
    let _ = fs::remove_dir_all(&tree);
    fs::create_dir_all(tree.join("opt/kaai/environment/bin")).unwrap();
    fs::write(tree.join("opt/kaai/environment/pyvenv.cfg"), "home = /usr/bin\ninclude-system-site-packages = false\n")
        .unwrap();
    std::os::unix::fs::symlink("/usr/bin/python3.11", tree.join(&INTERPRETER[1..])).unwrap();
    let uv = runtime::testing::program("uv").ok_or("an image needs uv")?;
    let install = ["pip", "install", "--quiet", "--python", "3.11", "--compile-bytecode", "--target"];
    let install =
        Command::new(uv).args(install).arg(tree.join(PACKAGES)).arg("azureml-inference-server-http==1.5.1").status();
    install
        .ok()
        .filter(std::process::ExitStatus::success)
        .ok_or("an image needs uv, Python 3.11 and a package index")?;

    let pack = folder.join("pack");
    let _ = fs::remove_dir_all(&pack);
    fs::create_dir_all(&pack).unwrap();
    fs::copy(base_layer, pack.join("base.tar.gz")).unwrap();
    let tar = |into: &Path, from: &Path, what: &str| {
        let owner = ["--owner=0", "--group=0", "--sort=name"];
        run(Command::new("tar").args(owner).arg("-cf").arg(into).arg("-C").arg(from).arg(what), "an image needs tar")
    };
    tar(&pack.join("environment.tar"), &tree, "opt")?;
    let write = |name: &str, config: &serde_json::Value| {
        let bytes = serde_json::to_vec(config).unwrap();
        fs::write(pack.join(name), &bytes).unwrap();
        deployer::keys::digest_of(&bytes).to_string()
    };
    // Told apart from every other image with this layer, so that a test may remove it.
    config["config"]["Labels"] = serde_json::json!({ "io.kaai.test": "base" });
    let base = write("base.json", &config);
    let layer = deployer::keys::digest_of(&fs::read(pack.join("environment.tar")).unwrap());
    config["rootfs"]["diff_ids"].as_array_mut().unwrap().push(layer.to_string().into());
    config["history"] = serde_json::json!([]);
    let image = write("environment.json", &config);
    let manifest = serde_json::json!([
        { "Config": "base.json", "RepoTags": [], "Layers": ["base.tar.gz"] },
        { "Config": "environment.json", "RepoTags": [], "Layers": ["base.tar.gz", "environment.tar"] },
    ]);
    fs::write(pack.join("manifest.json"), manifest.to_string()).unwrap();
    tar(archive, &pack, ".")?;
    fs::remove_dir_all(tree).and_then(|()| fs::remove_dir_all(pack)).unwrap();
    Ok((image, base))
}

/// A place for containers.
pub(crate) struct Dock {
    pub(crate) place: Place,
    pub(crate) docker: Docker,
}

impl Dock {
    /// `None`, said aloud, where there is no Docker engine, or no image for it.
    pub(crate) async fn new(test: &str) -> Option<Self> {
        let Some(docker) = engine().await else {
            runtime::testing::skip(test, "there is no Docker engine at /var/run/docker.sock");
            return None;
        };
        let made = match images() {
            Ok(made) => made,
            Err(why) => {
                runtime::testing::skip(test, why);
                return None;
            }
        };
        if docker.inspect_image(&made.image).await.is_err() {
            load(&docker, &made.archive).await;
        }
        let (reference, interpreter) = (made.image.clone(), INTERPRETER.to_owned());
        let place = Place::of(Image::Container { reference, interpreter, python: Some("3.11.2".to_owned()) });
        Some(Self { place, docker })
    }

    /// An image without an environment, under its id.
    pub(crate) async fn base(&self) -> String {
        let made = images().unwrap();
        if self.docker.inspect_image(&made.base).await.is_err() {
            load(&self.docker, &made.archive).await;
        }
        made.base.clone()
    }

    pub(crate) async fn backend(&self) -> DockerBackend {
        self.backend_with(Settings::default()).await
    }

    pub(crate) async fn backend_with(&self, settings: Settings) -> DockerBackend {
        DockerBackend::open(self.place.settings(), settings, self.place.store.clone(), Tasks::default()).await.unwrap()
    }

    /// What tells this place's containers from others.
    pub(crate) fn identity(&self) -> String {
        fs::read_to_string(self.place.folder.path().join("state/identity")).unwrap()
    }

    pub(crate) fn name(&self, replica: &str) -> String {
        format!("kaai-{}-{replica}", self.identity())
    }

    /// The containers of this place, whatever their state.
    pub(crate) async fn containers(&self) -> Vec<String> {
        labelled(&self.docker, &self.identity()).await
    }

    /// A folder of a replica that it sees as `/run/kaai`.
    pub(crate) fn own(&self, replica: &str) -> PathBuf {
        self.place.folder.path().join("state/replicas").join(replica).join("own")
    }

    /// A container that sleeps, with a label of somebody's own.
    pub(crate) async fn stranger(&self, name: &str, label: Option<&str>) -> String {
        let Image::Container { reference, .. } = self.place.image.clone() else { unreachable!() };
        let labels = label.map(|place| {
            [(LABEL.to_owned(), place.to_owned()), ("io.kaai.replica".to_owned(), "r-1".to_owned())].into()
        });
        let body = bollard::models::ContainerCreateBody {
            image: Some(reference),
            entrypoint: Some(["/usr/bin/python3.11", "-c", "import time; time.sleep(600)"].map(str::to_owned).to_vec()),
            labels,
            host_config: Some(bollard::models::HostConfig { init: Some(true), ..Default::default() }),
            ..Default::default()
        };
        let options = query::CreateContainerOptions { name: Some(name.to_owned()), ..Default::default() };
        let id = self.docker.create_container(Some(options), body).await.unwrap().id;
        self.docker.start_container(&id, None::<query::StartContainerOptions>).await.unwrap();
        id
    }

    pub(crate) async fn is_running(&self, id: &str) -> bool {
        let container = self.docker.inspect_container(id, None).await;
        container.is_ok_and(|container| container.state.unwrap().running.unwrap())
    }

    pub(crate) async fn remove(&self, id: &str) {
        remove(&self.docker, id).await;
    }

    pub(crate) async fn mounts(&self, replica: &str) -> Vec<Mount> {
        let container = self.docker.inspect_container(&self.name(replica), None).await.unwrap();
        container.host_config.unwrap().mounts.unwrap()
    }
}

async fn load(docker: &Docker, archive: &Path) {
    let bytes = fs::read(archive).unwrap().into();
    let steps = docker.import_image(query::ImportImageOptions::default(), bollard::body_full(bytes), None);
    steps.try_for_each(|_| async { Ok(()) }).await.unwrap();
}

async fn labelled(docker: &Docker, identity: &str) -> Vec<String> {
    let filters = Some([("label".to_owned(), vec![format!("{LABEL}={identity}")])].into());
    let options = query::ListContainersOptions { all: true, filters, ..Default::default() };
    let containers = docker.list_containers(Some(options)).await.unwrap_or_default();
    containers.into_iter().filter_map(|container| container.id).collect()
}

async fn remove(docker: &Docker, id: &str) {
    let options = query::RemoveContainerOptions { force: true, v: true, link: false };
    let _ = docker.remove_container(id, Some(options)).await;
}

impl Drop for Dock {
    /// A test that fails leaves no container and no network behind.
    fn drop(&mut self) {
        let Ok(identity) = fs::read_to_string(self.place.folder.path().join("state/identity")) else { return };
        // A test's own runtime may be in the middle of a panic.
        let clearing = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let Some(docker) = engine().await else { return };
                for id in labelled(&docker, &identity).await {
                    remove(&docker, &id).await;
                }
                let _ = docker.remove_network(&format!("kaai-{identity}")).await;
            });
        });
        let _ = clearing.join();
    }
}
