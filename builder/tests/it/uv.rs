//! With uv: real environments, and real processes that are killed.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use builder::{Config, config::Limits};
use proto::{
    builder::{EnvironmentRecord, Image, ImageResolved, Lookup},
    deployer::DeploymentFailed,
    failure::{Blame, Failure},
    id::EnvironmentHash,
    spec::EnvironmentSpec,
};
use runtime::{
    Runtime,
    testing::{program, skip, until},
};

use crate::harness::{Scene, World, environment};

/// How long an environment may take on a slow machine with a slow network.
const VERY_LONG: Duration = Duration::from_secs(300);

/// The uv program, unless the test has to be left out.
pub(crate) fn uv(test: &str) -> Option<PathBuf> {
    let found = program("uv");
    if found.is_none() {
        skip(test, "uv is neither on PATH nor in .tools/bin");
    }
    found
}

/// Whether a failure means that this machine cannot reach an index at all.
pub(crate) fn offline(test: &str, failure: &Failure) -> bool {
    let offline = failure.blame == Blame::Platform && failure.cause.contains("cannot be reached");
    if offline {
        skip(test, &failure.cause);
    }
    offline
}

pub(crate) struct Real {
    scene: Scene,
    rt: Runtime,
    asked: AtomicU64,
}

impl Real {
    /// A builder that makes virtual environments in the folder of the bus.
    pub(crate) async fn new(uv: PathBuf, change: impl FnOnce(&mut Config)) -> Self {
        let scene = Scene::new(World::default()).await;
        let rt = scene.nats.runtime("builder").await;
        let mut config = Config { environments: scene.nats.folder().join("environments"), uv, ..Config::default() };
        change(&mut config);
        let own = rt.clone();
        rt.tasks.spawn(async move { builder::run(config, own).await.unwrap() });
        until("the builder is ready", VERY_LONG, async || rt.health.reason().is_none().then_some(())).await;
        Self { scene, rt, asked: AtomicU64::new(0) }
    }

    pub(crate) async fn ask(&self, spec: EnvironmentSpec) -> Result<ImageResolved, Failure> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let service = format!("service-{number}");
        self.scene.request(&service, number, spec).await;
        answer(&self.scene, &service).await
    }

    /// What lies in the folder of an environment.
    fn attempts(&self, hash: &EnvironmentHash) -> Vec<PathBuf> {
        let folder = self.scene.nats.folder().join("environments").join(hash.as_str());
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        self.rt.shutdown.cancel();
    }
}

async fn answer(scene: &Scene, service: &str) -> Result<ImageResolved, Failure> {
    until("the request is answered", VERY_LONG, async || {
        if let Some(resolved) = scene.said::<ImageResolved>(service).await.pop() {
            return Some(Ok(resolved));
        }
        scene.said::<DeploymentFailed>(service).await.pop().map(|failed| Err(failed.failure))
    })
    .await
}

fn folder_of(image: &Image) -> PathBuf {
    match image {
        Image::VirtualEnvironment { path, .. } => path.into(),
        other @ Image::Container { .. } => panic!("{other:?} is no folder"),
    }
}

fn python(image: &Image, code: &str) -> bool {
    let program = folder_of(image).join("bin/python");
    Command::new(program).args(["-c", code]).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
}

/// An environment with any Python that this machine has.
pub(crate) fn any_python(pip: &[&str]) -> EnvironmentSpec {
    let mut spec = environment(pip);
    spec.conda.dependencies = vec!["python>=3.9".to_owned()];
    spec
}

#[tokio::test]
async fn an_environment_is_made_once_and_made_again_when_it_is_gone() {
    const TEST: &str = "an_environment_is_made_once_and_made_again_when_it_is_gone";
    let Some(uv) = uv(TEST) else { return };
    let real = Real::new(uv, |_| ()).await;
    let spec = any_python(&["toolz"]);
    let first = match real.ask(spec.clone()).await {
        Err(failure) if offline(TEST, &failure) => return,
        answer => answer.unwrap(),
    };
    assert_eq!(first.lookup, Lookup::Built);
    assert!(python(&first.image, "import toolz, pkg_resources, azureml_inference_server_http.server.create_app"));
    let folder = folder_of(&first.image);
    assert!(folder.is_absolute() && real.attempts(&first.environment).contains(&folder));
    let library = std::fs::read_dir(folder.join("lib")).unwrap().next().unwrap().unwrap().path();
    assert!(library.join("site-packages/toolz/__pycache__").is_dir(), "starts are slow without compiled files");

    let again = real.ask(spec.clone()).await.unwrap();
    assert_eq!((again.lookup, &again.image), (Lookup::Cached, &first.image));

    // An unfinished one of a builder that was killed lies beside it.
    let orphan = folder.parent().unwrap().join("orphan");
    std::fs::create_dir(&orphan).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let anew = real.ask(spec).await.unwrap();
    assert_eq!(anew.lookup, Lookup::Built);
    assert!(python(&anew.image, "import toolz") && anew.image != first.image);
    assert!(!orphan.exists(), "what was left unfinished is swept");
}

#[tokio::test]
async fn a_package_that_does_not_exist_is_named_with_the_file_and_the_log() {
    const TEST: &str = "a_package_that_does_not_exist_is_named_with_the_file_and_the_log";
    let Some(uv) = uv(TEST) else { return };
    let real = Real::new(uv, |_| ()).await;
    let spec = any_python(&["kaai-has-no-such-package==1"]);
    let failure = real.ask(spec.clone()).await.unwrap_err();
    if offline(TEST, &failure) {
        return;
    }
    assert_eq!(failure.cause, "there is no package kaai-has-no-such-package on the index, which environment.yml lists");
    assert_eq!(failure.blame, Blame::Project);
    assert!(failure.details.iter().any(|line| line.contains("kaai-has-no-such-package")), "{failure:?}");
    let hash = builder::identity::hash(&spec).unwrap();
    let kept = real.scene.rt.store.read(&runtime::store::build_log_key(&hash)).await.unwrap();
    assert!(String::from_utf8_lossy(&kept).contains("No solution found"));
    assert_eq!(real.attempts(&hash), Vec::<PathBuf>::new(), "nothing is left of what failed");
}

#[tokio::test]
async fn packages_that_clash_are_named() {
    const TEST: &str = "packages_that_clash_are_named";
    let Some(uv) = uv(TEST) else { return };
    let real = Real::new(uv, |_| ()).await;
    let failure = real.ask(any_python(&["pydantic<2", "pydantic-settings>=2"])).await.unwrap_err();
    if !offline(TEST, &failure) {
        assert!(failure.cause.contains("do not go together: pydantic<2 and pydantic-settings>=2"), "{}", failure.cause);
    }
}

#[tokio::test]
async fn packages_that_install_and_cannot_be_imported_together_are_told() {
    const TEST: &str = "packages_that_install_and_cannot_be_imported_together_are_told";
    let Some(uv) = uv(TEST) else { return };
    let real = Real::new(uv, |_| ()).await;
    // flask 1.0 takes any jinja2, and works with none of today.
    let failure = real.ask(any_python(&["flask==1.0.3"])).await.unwrap_err();
    if !offline(TEST, &failure) {
        assert!(failure.cause.contains("cannot be imported with the packages of environment.yml: "), "{failure:?}");
        assert!(failure.remedy.contains("leave the version of flask==1.0.3 open"), "{failure:?}");
    }
}

#[tokio::test]
async fn a_python_that_this_machine_does_not_have_is_a_clear_error() {
    let Some(uv) = uv("a_python_that_this_machine_does_not_have_is_a_clear_error") else { return };
    let real = Real::new(uv, |config| {
        config.python_downloads = false;
        config.pyenv = None;
    })
    .await;
    let mut spec = environment(&["x"]);
    spec.conda.dependencies = vec!["python=3.6".to_owned()];
    let failure = real.ask(spec).await.unwrap_err();
    assert!(failure.cause.starts_with("no Python 3.6 on this machine, which environment.yml asks for"), "{failure:?}");
    assert!(failure.remedy.contains("environment.yml"), "{failure:?}");
}

#[tokio::test]
async fn a_full_disk_is_not_taken_for_a_python_that_is_missing() {
    let Some(uv) = uv("a_full_disk_is_not_taken_for_a_python_that_is_missing") else { return };
    let folder = tempfile::tempdir().unwrap();
    // What uv 0.13.9 says when its cache lies on a full disk.
    let said = "error: Failed to initialize cache at `c`\n  cause: failed to write to file `/c/.gitignore`: No space left on device (os error 28)";
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *'python find'*)\n  echo '{said}' >&2; exit 2\nesac\nexec {} \"$@\"\n",
        uv.display()
    );
    let real = Real::new(program_of(folder.path(), &script), |config| config.python_downloads = false).await;
    let spec = any_python(&["toolz"]);
    let failure = real.ask(spec.clone()).await.unwrap_err();
    assert_eq!(failure.cause, "no space is left on the disk while a Python is looked for");
    assert!(failure.blame == Blame::Platform && failure.remedy.contains("uv cache clean"), "{failure:?}");
    let Some(EnvironmentRecord::Failed { expires_ms, .. }) = real.scene.record(&spec).await else {
        panic!("it is not remembered")
    };
    let most = runtime::clock::now_ms() + Limits::default().remember_platform.as_millis() as u64;
    assert!(expires_ms <= most, "there may be space again soon");
}

#[tokio::test]
async fn an_index_that_cannot_be_reached_is_not_the_projects_fault() {
    let Some(uv) = uv("an_index_that_cannot_be_reached_is_not_the_projects_fault") else { return };
    let real = Real::new(uv, |_| ()).await;
    let spec = any_python(&["--index-url http://127.0.0.1:1/simple", "x"]);
    let failure = real.ask(spec.clone()).await.unwrap_err();
    assert_eq!(failure.blame, Blame::Platform);
    assert_eq!(failure.cause, "127.0.0.1, which environment.yml names, cannot be reached: the connection is refused");
    let Some(EnvironmentRecord::Failed { expires_ms, .. }) = real.scene.record(&spec).await else {
        panic!("it is not remembered")
    };
    let most = runtime::clock::now_ms() + Limits::default().remember_platform.as_millis() as u64;
    assert!(expires_ms <= most, "the network may be back soon");
}

#[tokio::test]
async fn a_build_ends_at_its_deadline_and_leaves_nothing() {
    let Some(uv) = uv("a_build_ends_at_its_deadline_and_leaves_nothing") else { return };
    let folder = tempfile::tempdir().unwrap();
    let slow = wrapper(folder.path(), &uv);
    let real = Real::new(slow, |config| config.limits.build_deadline = Duration::from_secs(1)).await;
    let spec = any_python(&["toolz"]);
    let failure = real.ask(spec.clone()).await.unwrap_err();
    assert_eq!(failure.cause, "the environment was not built within 1 s");
    assert_eq!(real.attempts(&builder::identity::hash(&spec).unwrap()), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_builder_process_that_is_killed_is_replaced_by_another() {
    const TEST: &str = "a_builder_process_that_is_killed_is_replaced_by_another";
    let Some(uv) = uv(TEST) else { return };
    let folder = tempfile::tempdir().unwrap();
    let slow = wrapper(folder.path(), &uv);
    let scene = Scene::new(World::default()).await;
    let mut first = process(&scene, &slow);
    scene.request("service", 1, any_python(&["toolz"])).await;
    let waiting = folder.path().join("waiting");
    until("uv installs", VERY_LONG, async || waiting.exists().then_some(())).await;
    first.kill().unwrap();
    first.wait().unwrap();
    let _second = Ended(process(&scene, &slow));
    std::fs::remove_file(&waiting).unwrap();
    until("uv installs again", VERY_LONG, async || waiting.exists().then_some(())).await;
    // Both go on from here: the orphan of the killed builder and the one that replaced it.
    std::fs::write(folder.path().join("gate"), "").unwrap();
    let resolved = match answer(&scene, "service").await {
        Err(failure) if offline(TEST, &failure) => return,
        answer => answer.unwrap(),
    };
    assert!(python(&resolved.image, "import toolz"));
    assert_eq!(scene.said::<ImageResolved>("service").await.len(), 1);
}

/// A uv that waits before it installs until there is a file `gate`, and says with a file `waiting` that it does.
fn wrapper(folder: &Path, uv: &Path) -> PathBuf {
    let (here, uv) = (folder.display(), uv.display());
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *\"pip install -r\"*)\n  : > {here}/waiting\n  \
         while [ -d {here} ] && [ ! -e {here}/gate ]; do sleep 0.05; done\nesac\nexec {uv} \"$@\"\n"
    );
    program_of(folder, &script)
}

/// A script in place of uv.
fn program_of(folder: &Path, script: &str) -> PathBuf {
    let path = folder.join("uv");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn process(scene: &Scene, uv: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_kaai-builder"))
        .args(["--bus", &scene.nats.address(), "--build-lease-seconds", "2", "--log-level", "warn"])
        .arg("--store")
        .arg(scene.nats.folder().join("store"))
        .arg("--environments")
        .arg(scene.nats.folder().join("environments"))
        .arg("--uv")
        .arg(uv)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}
