//! Conda packages: a channel of our own with a Python in it, the real `kaai-conda`, real environments.

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
    process::Command,
};

use builder::config::CondaSettings;
use flate2::{Compression, read::MultiGzDecoder, write::GzEncoder};
use oci_distribution::{Client, Reference, client::ClientConfig, secrets::RegistryAuth};
use proto::{
    failure::{Blame, Failure},
    spec::EnvironmentSpec,
};
use runtime::testing::{Registry, base_image, program, skip};
use serde_json::{Value, json};
use sha2::Digest;

use crate::{
    ground::{Place, documents, engine, pull, reference},
    harness::environment,
    uv::{Real, offline, uv},
};

/// What conda packages need on this machine.
pub(crate) struct Conda {
    pub(crate) program: PathBuf,
    /// What stands before the names of channels: `tests` is the one.
    pub(crate) alias: String,
}

impl Conda {
    pub(crate) fn new(test: &str) -> Option<Self> {
        let Some(program) = program("kaai-conda") else {
            skip(test, "kaai-conda was not built: run `make conda`");
            return None;
        };
        let channels = base_image().map(|base| base.join("../../conda-channel"));
        let channels = channels.and_then(|channels| channels.canonicalize().ok());
        let Some(channels) = channels.filter(|channels| channels.join("tests/edition.json").is_file()) else {
            skip(test, "there is no channel for tests: run `python3 tools/conda_channel.py` on Debian");
            return None;
        };
        Some(Self { program, alias: format!("file://{}", channels.display()) })
    }

    pub(crate) fn settings(&self) -> CondaSettings {
        CondaSettings { program: Some(self.program.clone()), alias: self.alias.clone() }
    }

    fn arguments(&self) -> [String; 2] {
        [format!("--conda-program={}", self.program.display()), format!("--conda-channel-alias={}", self.alias)]
    }
}

pub(crate) fn with_conda(conda: &[&str], pip: &[&str]) -> EnvironmentSpec {
    let mut spec = environment(pip);
    spec.conda.channels = vec!["tests".to_owned()];
    spec.conda.dependencies.extend(conda.iter().map(|line| (*line).to_owned()));
    spec
}

/// Conda's packages, and one of pip that is on no index: conda has it.
fn everything() -> EnvironmentSpec {
    with_conda(&["kaai-stats", "hello-conda=1.0"], &["threadpoolctl==3.6.0", "kaai-arrays>=1.2"])
}

#[tokio::test]
async fn an_environment_of_conda_packages_can_serve() {
    const TEST: &str = "an_environment_of_conda_packages_can_serve";
    let (Some(uv), Some(conda)) = (uv(TEST), Conda::new(TEST)) else { return };
    let real = Real::new(uv, |config| config.conda = conda.settings()).await;
    let made = match real.ask(everything()).await {
        Err(failure) if offline(TEST, &failure) => return,
        answer => answer.unwrap(),
    };
    let proto::builder::Image::VirtualEnvironment { path, python } = &made.image else { panic!() };
    assert_eq!(python, "3.11.2", "conda's own");
    let run = |program: &str, arguments: &[&str]| {
        let ended = Command::new(Path::new(path).join(program)).args(arguments).output().unwrap();
        assert!(ended.status.success(), "{program}: {}", String::from_utf8_lossy(&ended.stderr));
        String::from_utf8(ended.stdout).unwrap()
    };
    let imports = "import sys, kaai_arrays, kaai_stats, threadpoolctl, azureml_inference_server_http.server.create_app";
    let said = run("bin/python", &["-c", &format!("{imports}; print(sys.prefix, kaai_arrays.__version__)")]);
    assert_eq!(said.trim(), format!("{path} 1.5"), "below 2, since kaai-stats wants that");
    assert_eq!(run("bin/hello-conda", &[]).trim(), format!("hello 1.0 {path}"));
    let lock = std::fs::read_to_string(Path::new(path).join("conda.lock")).unwrap();
    let lock: Value = serde_json::from_str(&lock).unwrap();
    let names: Vec<_> = lock["packages"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["hello-conda", "kaai-arrays", "kaai-stats", "python"]);
}

#[tokio::test]
async fn what_conda_cannot_give_is_told_in_words() {
    const TEST: &str = "what_conda_cannot_give_is_told_in_words";
    let (Some(uv), Some(conda)) = (uv(TEST), Conda::new(TEST)) else { return };
    let real = Real::new(uv, |config| config.conda = conda.settings()).await;
    let refused = async |spec: EnvironmentSpec| -> Failure { real.ask(spec).await.unwrap_err() };
    let clash = refused(with_conda(&["kaai-stats", "kaai-clash"], &[])).await;
    assert!(clash.cause.contains("of environment.yml cannot be had together: "), "{clash:?}");
    assert!(clash.cause.contains("kaai-arrays") && clash.blame == Blame::Project, "{clash:?}");
    let missing = refused(with_conda(&["kaai-nothing"], &[])).await;
    assert!(missing.cause.contains("kaai-nothing"), "{missing:?}");
    let glibc = refused(with_conda(&["hello-conda=2.0"], &[])).await;
    assert!(glibc.cause.contains("__glibc >=99"), "{glibc:?}");
    let damaged = refused(with_conda(&["kaai-damaged"], &[])).await;
    assert!(damaged.cause.contains("kaai-damaged-1.0-0.tar.bz2 is not what its channel says it is"), "{damaged:?}");
    assert_eq!(damaged.blame, Blame::Platform);
    let mut elsewhere = with_conda(&["hello-conda"], &[]);
    elsewhere.conda.channels = vec!["no-such".to_owned()];
    let elsewhere = refused(elsewhere).await;
    assert!(
        elsewhere.cause.contains("there is no channel at ") && elsewhere.cause.contains("no-such"),
        "{elsewhere:?}"
    );
    let mut path = with_conda(&["hello-conda"], &[]);
    path.conda.channels = vec!["../tests".to_owned()];
    assert!(refused(path).await.cause.contains("is no channel that can be asked"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_conda_packages_needs_no_python_below_and_is_the_same_each_time() {
    const TEST: &str = "an_image_of_conda_packages_needs_no_python_below_and_is_the_same_each_time";
    let (Some(uv), Some(conda)) = (uv(TEST), Conda::new(TEST)) else { return };
    let Some(base) = base_image() else { return skip(TEST, "there is no base image") };
    let bare = tempfile::tempdir().unwrap();
    without_python(&base, bare.path());
    let mut layers = Vec::new();
    let mut registries = Vec::new();
    for _ in 0..2 {
        let Some(registry) = Registry::start().await else {
            return skip(TEST, "there is no docker-registry on PATH");
        };
        registry.put(bare.path(), "python", "3.11");
        let arguments = conda.arguments();
        let more: Vec<_> = arguments.iter().map(String::as_str).collect();
        let mut place = Place::new(&uv, &registry.address(), &more).await;
        let built = match place.ask(everything()).await {
            Err(failure) if offline(TEST, &failure) => return,
            answer => answer.unwrap(),
        };
        let image = reference(&built);
        let (manifest, config) = pull(&image).await;
        let variables = config["config"]["Env"].to_string();
        assert!(variables.contains("CONDA_PREFIX=/opt/kaai/environment") && !variables.contains("VIRTUAL_ENV"));
        layers.push(manifest.layers[1].digest.clone());
        registries.push((registry, image, manifest));
    }
    assert_eq!(layers[0], layers[1], "made twice, in two folders");
    let (registry, image, manifest) = &registries[0];
    let files = files(image, &manifest.layers[1]).await;
    let at = |name: &str| String::from_utf8_lossy(&files[&format!("opt/kaai/environment/{name}")]).into_owned();
    assert!(at("bin/hello-conda").starts_with("#!/opt/kaai/environment/bin/python\n"));
    assert_eq!(at("etc/hello.conf"), "data = /opt/kaai/environment/share/hello\n");
    assert!(at("lib/hello.bin").starts_with("\x7fKAAI\0/opt/kaai/environment/share/hello\0"));
    assert!(at("bin/gunicorn").starts_with("#!/opt/kaai/environment/bin/python"), "uv's, made in another folder");
    assert!(at("requirements.lock").contains("threadpoolctl==3.6.0") && !at("requirements.lock").contains("kaai-"));
    assert!(at("conda.lock").contains("kaai-arrays-1.5-0.tar.bz2"));
    assert!(!files.contains_key("opt/kaai/environment/pyvenv.cfg"));
    let packages = documents(image).await.iter().map(Value::to_string).collect::<String>();
    for name in
        ["pkg:conda/kaai-arrays@1.5?build=0&channel=", "pkg:conda/python@3.11.2?", "pkg:pypi/threadpoolctl@3.6.0"]
    {
        assert!(packages.contains(name), "{name} in {packages}");
    }
    it_runs(TEST, &uv, (registry, image)).await;
}

/// Has an engine run what the image is for.
async fn it_runs(test: &str, uv: &Path, (registry, image): (&Registry, &Reference)) {
    let Some(engine) = engine(test) else { return };
    let mut place = Place::new(uv, &registry.address(), &[&format!("--build-engine={engine}")]).await;
    let program = "/opt/kaai/environment/bin/python";
    let code = "import kaai_stats, azureml_inference_server_http.server.create_app";
    let dockerfile = format!(
        "FROM {}\nRUN [\"{program}\", \"-c\", \"{code}\"]\nRUN [\"/opt/kaai/environment/bin/hello-conda\"]",
        image.whole()
    );
    place.ask(EnvironmentSpec { dockerfile: Some(dockerfile), ..EnvironmentSpec::default() }).await.unwrap();
}

/// The files of a layer.
async fn files(image: &Reference, layer: &oci_distribution::manifest::OciDescriptor) -> BTreeMap<String, Vec<u8>> {
    let config = ClientConfig { protocol: oci_distribution::client::ClientProtocol::Http, ..ClientConfig::default() };
    let client = Client::new(config);
    client.store_auth_if_needed(image.resolve_registry(), &RegistryAuth::Anonymous).await;
    let mut blob = Vec::new();
    client.pull_blob(image, layer, &mut blob).await.unwrap();
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(MultiGzDecoder::new(blob.as_slice())).entries().unwrap() {
        let mut entry = entry.unwrap();
        let (name, mut content) = (entry.path().unwrap().display().to_string(), Vec::new());
        entry.read_to_end(&mut content).unwrap();
        files.insert(name, content);
    }
    files
}

/// The same base image without its Python.
fn without_python(layout: &Path, into: &Path) {
    let blob = |digest: &Value| {
        std::fs::read(layout.join("blobs/sha256").join(digest.as_str().unwrap().trim_start_matches("sha256:"))).unwrap()
    };
    let blobs = into.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = proto::id::Digest::from_sha256(sha2::Sha256::digest(bytes).into());
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        (json!(digest.to_string()), json!(bytes.len()))
    };
    let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    let mut index = read(&std::fs::read(layout.join("index.json")).unwrap());
    let mut manifest = read(&blob(&index["manifests"][0]["digest"]));
    let mut config = read(&blob(&manifest["config"]["digest"]));
    let layer = blob(&manifest["layers"][0]["digest"]);
    let mut tar = tar::Builder::new(Vec::new());
    for entry in tar::Archive::new(MultiGzDecoder::new(layer.as_slice())).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        if path.to_string_lossy().contains("python3") {
            continue;
        }
        let mut header = entry.header().clone();
        match entry.link_name().unwrap().map(|target| target.into_owned()) {
            Some(target) => tar.append_link(&mut header, path, target).unwrap(),
            None => tar.append_data(&mut header, path, &mut entry).unwrap(),
        }
    }
    let tar = tar.into_inner().unwrap();
    config["rootfs"]["diff_ids"] = json!([put(&tar).0]);
    let mut zipped = GzEncoder::new(Vec::new(), Compression::fast());
    std::io::Write::write_all(&mut zipped, &tar).unwrap();
    let (digest, size) = put(&zipped.finish().unwrap());
    (manifest["layers"][0]["digest"], manifest["layers"][0]["size"]) = (digest, size);
    let (digest, size) = put(config.to_string().as_bytes());
    (manifest["config"]["digest"], manifest["config"]["size"]) = (digest, size);
    let (digest, size) = put(manifest.to_string().as_bytes());
    (index["manifests"][0]["digest"], index["manifests"][0]["size"]) = (digest, size);
    std::fs::write(into.join("index.json"), index.to_string()).unwrap();
}
