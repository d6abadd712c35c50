//! What tests of images share: a real registry, a real base image, a builder with both on a bus of its own.

use std::{path::PathBuf, time::Duration};

use builder::{Args, Config};
use clap::Parser;
use oci_distribution::{Client, Reference, client::ClientConfig, manifest::OciImageManifest, secrets::RegistryAuth};
use proto::{
    builder::{Image, ImageResolved, RegistryAsked, RegistryOutcome, RegistryRole},
    deployer::DeploymentFailed,
    failure::{Blame, Failure},
    id::Workspace,
    packager::{ProjectPackaged, RegistryLogin},
    query::{DescribeEnvironment, EnvironmentDescription, GetBuildLog, Refusal},
    spec::EnvironmentSpec,
    subject,
};
use runtime::{
    Runtime,
    sealing::seal,
    testing::{Registry, base_image, program, skip, until},
};

use crate::harness::{Scene, World, packaged};

/// How long an image may take on a slow machine with a slow network.
pub(crate) const VERY_LONG: Duration = Duration::from_secs(300);

/// What images need on this machine.
pub(crate) struct Ground {
    pub(crate) uv: PathBuf,
    pub(crate) base: PathBuf,
    pub(crate) registry: Registry,
}

impl Ground {
    pub(crate) async fn new(test: &str) -> Option<Self> {
        let (Some(uv), Some(base)) = (program("uv"), base_image()) else {
            skip(test, "there is no uv, or no base image: run `make tools` on Debian");
            return None;
        };
        let Some(registry) = Registry::start().await else {
            skip(test, "there is no docker-registry on PATH");
            return None;
        };
        registry.put(&base, "python", "3.11");
        Some(Self { uv, base, registry })
    }
}

/// A builder of images on a bus of its own.
pub(crate) struct Place {
    pub(crate) scene: Scene,
    rt: Runtime,
    asked: u64,
}

impl Place {
    pub(crate) async fn new(uv: &std::path::Path, registry: &str, more: &[&str]) -> Self {
        let scene = Scene::new(World::default()).await;
        let rt = scene.nats.runtime("builder").await;
        let environments = scene.nats.folder().join("environments");
        let base = format!("--base-image=3.11={registry}/python:3.11");
        let mut words =
            vec!["kaai-builder".into(), "--uv".into(), uv.into(), "--environments".into(), environments.into()];
        words.extend(["--registry".into(), format!("{registry}/kaai").into(), base.into()] as [std::ffi::OsString; 3]);
        words.extend(more.iter().map(std::ffi::OsString::from));
        let config = Config::try_from(Args::parse_from(words)).unwrap();
        let own = rt.clone();
        rt.tasks.spawn(async move { builder::run(config, own).await.unwrap() });
        until("the builder is ready", VERY_LONG, async || rt.health.reason().is_none().then_some(())).await;
        Self { scene, rt, asked: 0 }
    }

    pub(crate) async fn ask(&mut self, spec: EnvironmentSpec) -> Result<ImageResolved, Failure> {
        let service = self.next();
        self.scene.request(&service, self.asked, spec).await;
        self.answer(&service).await
    }

    /// The same with a user's own login at the base image's registry.
    pub(crate) async fn ask_with(
        &mut self,
        spec: EnvironmentSpec,
        login: &RegistryLogin,
    ) -> Result<ImageResolved, Failure> {
        let service = self.next();
        let facts = self.scene.rt.bus.bucket::<String>(subject::FACTS).await.unwrap();
        let key = facts.get(subject::BUILDER_KEY).await.unwrap().unwrap().value;
        let sealed_login = Some(seal(login, &key).unwrap());
        self.scene.say(&service, ProjectPackaged { sealed_login, ..packaged(self.asked, spec) }).await;
        self.answer(&service).await
    }

    fn next(&mut self) -> String {
        self.asked += 1;
        format!("service-{}", self.asked)
    }

    async fn answer(&self, service: &str) -> Result<ImageResolved, Failure> {
        until("the request is answered", VERY_LONG, async || {
            if let Some(resolved) = self.scene.said::<ImageResolved>(service).await.pop() {
                return Some(Ok(resolved));
            }
            self.scene.said::<DeploymentFailed>(service).await.pop().map(|failed| Err(failed.failure))
        })
        .await
    }

    /// What the builder says that an environment is.
    pub(crate) async fn describe(&self, environment: EnvironmentSpec) -> Result<EnvironmentDescription, Refusal> {
        match self.scene.rt.bus.ask(&Workspace::default(), &DescribeEnvironment { environment }, VERY_LONG).await {
            Err(runtime::bus::AskError::Refused(refusal)) => Err(refusal),
            answer => Ok(answer.unwrap()),
        }
    }

    /// The log of an environment's build.
    pub(crate) async fn log(&self, resolved: &ImageResolved) -> String {
        let query = GetBuildLog { environment: resolved.environment.to_string(), lines: 1000 };
        self.scene.rt.bus.ask(&Workspace::default(), &query, VERY_LONG).await.unwrap().lines.join("\n")
    }

    /// Has the builder forget what it knows of an environment.
    pub(crate) async fn forget(&self, resolved: &ImageResolved) {
        let key = resolved.environment.as_str();
        let entry = self.scene.bucket.get(key).await.unwrap().unwrap();
        self.scene.bucket.delete_at(key, entry.revision).await.unwrap();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.rt.shutdown.cancel();
    }
}

pub(crate) fn reference(resolved: &ImageResolved) -> Reference {
    match &resolved.image {
        Image::Container { reference, .. } => reference.parse().unwrap(),
        other @ Image::VirtualEnvironment { .. } => panic!("{other:?} is no image"),
    }
}

/// Manifest and configuration of an image.
pub(crate) async fn pull(reference: &Reference) -> (OciImageManifest, serde_json::Value) {
    runtime::tls::install();
    let config = ClientConfig { protocol: oci_distribution::client::ClientProtocol::Http, ..ClientConfig::default() };
    let client = Client::new(config);
    let (manifest, _) = client.pull_image_manifest(reference, &RegistryAuth::Anonymous).await.unwrap();
    let mut config = Vec::new();
    client.pull_blob(reference, &manifest.config, &mut config).await.unwrap();
    (manifest, serde_json::from_slice(&config).unwrap())
}

pub(crate) async fn documents(reference: &Reference) -> Vec<serde_json::Value> {
    let config = ClientConfig { protocol: oci_distribution::client::ClientProtocol::Http, ..ClientConfig::default() };
    let client = Client::new(config);
    client.store_auth_if_needed(reference.resolve_registry(), &RegistryAuth::Anonymous).await;
    let mut documents = Vec::new();
    for entry in client.pull_referrers(reference, None).await.unwrap().manifests {
        let at = reference.clone_with_digest(entry.digest);
        let (manifest, _) = client.pull_image_manifest(&at, &RegistryAuth::Anonymous).await.unwrap();
        let mut document = Vec::new();
        client.pull_blob(&at, &manifest.layers[0], &mut document).await.unwrap();
        documents.push(serde_json::from_slice(&document).unwrap());
    }
    documents
}

pub(crate) fn outcomes(asked: &[RegistryAsked]) -> Vec<(RegistryRole, RegistryOutcome)> {
    asked.iter().map(|one| (one.registry, one.outcome.clone())).collect()
}

/// Whether a failure means that this machine cannot reach an index at all.
pub(crate) fn offline(test: &str, failure: &Failure) -> bool {
    let offline = failure.blame == Blame::Platform && failure.cause.contains("package index cannot be reached");
    if offline {
        skip(test, &failure.cause);
    }
    offline
}

/// The socket of a Docker engine on this machine.
pub(crate) fn engine(test: &str) -> Option<String> {
    let socket = "/var/run/docker.sock";
    if std::os::unix::net::UnixStream::connect(socket).is_err() {
        skip(test, &format!("no Docker engine answers at {socket}"));
        return None;
    }
    Some(format!("unix://{socket}"))
}
