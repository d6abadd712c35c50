//! An image assembled without a daemon: the base image's layers, and one layer of packages on top.

use std::path::Path;

use oci_distribution::manifest::{
    IMAGE_CONFIG_MEDIA_TYPE, IMAGE_DOCKER_LAYER_GZIP_MEDIA_TYPE, IMAGE_DOCKER_LAYER_TAR_MEDIA_TYPE,
    IMAGE_LAYER_GZIP_MEDIA_TYPE, IMAGE_LAYER_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageManifest,
};
use proto::{failure::Failure, id::EnvironmentHash};
use serde_json::{Value, json};
use tokio::try_join;

use super::{
    Images, PYTHON, attest,
    base::{Base, without_python},
    copy, defect,
    glibc::without_glibc,
    image,
    layer::{self, HOME, LOCK, Layer},
    registry::{self, describe},
    scratch::scratch,
};
use crate::{
    build_log::BuildLog,
    bytecode::Modules,
    conda_packages::{self, CondaPackage, Place, Wanted},
    disk::{blocking, disk, replace},
    kept::Kept,
    maker::Made,
    plan::Plan,
    sbom,
    uv::Room,
};

/// When every image of ours was made: an equal one has an equal digest.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// The layer of packages, and what is in it.
struct Packages {
    layer: Layer,
    /// The minor of its Python.
    minor: u64,
    lock: String,
    /// What conda has installed, with its own Python; none where pip's packages are all.
    conda: Option<Vec<CondaPackage>>,
}

impl Packages {
    fn python(&self) -> String {
        format!("3.{}", self.minor)
    }

    fn list(&self, hash: &EnvironmentHash) -> Value {
        sbom::list(hash, &self.lock, self.conda.as_deref().unwrap_or_default())
    }
}

impl Images {
    pub(super) async fn assemble(&self, hash: &EnvironmentHash, plan: &Plan, log: &BuildLog) -> Result<Made, Failure> {
        let failed = registry::Error::into_failure;
        let base = self.ground(plan, log).await?;
        log.line(&format!("base image {}", base.whole()));
        let base = Base::fetch(&self.registries, base).await.map_err(failed)?;
        let to = self.workspace.image(hash);
        let copying =
            async { copy::blobs(&self.registries, &base.reference, &to, &base.manifest).await.map_err(failed) };
        let (parent, deadline) = (self.scratch.clone(), self.deadline);
        let folder =
            blocking(move || Ok(scratch(&parent, deadline))).await.map_err(|error| disk(&self.scratch, &error))??;
        let environment = folder.path().join("environment");
        let room = Room { environment: &environment, notes: folder.path() };
        let making = async {
            let ((), packages) = try_join!(copying, self.packages(room, &base, plan, log))?;
            if let Some(Packages { layer, minor, .. }) = &packages {
                let size = layer.descriptor.size as f64 / 1e6;
                log.line(&format!("pushing {size:.1} MB to {}", self.workspace.shown()));
                let pushing = async {
                    self.registries.push_file(&to, &layer.descriptor, layer.file.path()).await.map_err(failed)
                };
                // What is imported may write where it lies: it is packed by now. Nothing has a name yet by which it would be found.
                let plan = plan.with_python(*minor);
                try_join!(pushing, self.uv.try_imports(room, &plan, log))?;
            }
            self.push((hash, plan), &base, packages.as_ref(), log).await
        };
        let made = making.await;
        // Thousands of files are not removed between two other tasks' turns.
        let _ = tokio::task::spawn_blocking(move || drop(folder)).await;
        made
    }

    /// The layer of packages; none where the base image brings them.
    async fn packages(
        &self,
        room: Room<'_>,
        base: &Base,
        plan: &Plan,
        log: &BuildLog,
    ) -> Result<Option<Packages>, Failure> {
        if plan.user_managed {
            return Ok(None);
        }
        let (minor, interpreter, conda) = match &plan.conda {
            None => {
                let (minor, interpreter) = self.python_of(base, plan).await?;
                self.uv.bare(&room.environment.display().to_string(), &plan.with_python(minor), log).await?;
                (minor, Some(interpreter), None)
            }
            Some(wanted) => {
                let (minor, packages) = self.conda(room, (base, &plan.file), wanted, log).await?;
                (minor, None, Some(packages))
            }
        };
        let plan = plan.with_python(minor);
        let lock = self.uv.install_locked(room, &plan, log).await?;
        let lock = tokio::fs::read_to_string(&lock).await.map_err(|error| disk(&lock, &error))?;
        let (parent, notes) = (self.scratch.clone(), room.notes.to_owned());
        let kept = blocking(move || Kept::open(&parent, &notes)).await.map_err(|error| disk(&self.scratch, &error))?;
        let modules = Modules {
            environment: room.environment,
            with_library: plan.conda.is_some(),
            home: Path::new(HOME),
            kept: Some(&kept),
        };
        modules.compile(&self.uv, log).await?;
        let (environment, notes, noted) = (room.environment.to_owned(), room.notes.to_owned(), lock.clone());
        let packing = blocking(move || {
            // Nothing but packing comes after it, so that no package has the last word about what is in here.
            conda_packages::keep_lock(Room { environment: &environment, notes: &notes })?;
            replace(&environment.join(LOCK), noted.as_bytes())?;
            let layer = layer::pack(&environment, interpreter.as_deref(), &kept, &notes);
            kept.trim();
            layer
        });
        let layer = packing.await.map_err(|error| disk(room.environment, &error))?;
        Ok(Some(Packages { layer, minor, lock, conda }))
    }

    /// The Python of a base image that is as wanted: its minor and its path.
    async fn python_of(&self, base: &Base, plan: &Plan) -> Result<(u64, String), Failure> {
        let pythons = base.pythons(&self.registries, &self.scratch.join("bases")).await;
        let pythons = pythons.map_err(registry::Error::into_failure)?;
        let found = plan.python.minors.iter().find_map(|minor| Some((*minor, pythons.get(minor)?.clone())));
        found.ok_or_else(|| without_python(base, &plan.python.minors, &pythons))
    }

    /// Has conda packages installed that run on a base image, and returns the minor of their Python with them.
    async fn conda(
        &self,
        room: Room<'_>,
        (base, file): (&Base, &str),
        wanted: &Wanted,
        log: &BuildLog,
    ) -> Result<(u64, Vec<CondaPackage>), Failure> {
        let glibc = base.glibc(&self.registries, &self.scratch.join("bases")).await;
        let Some(glibc) = glibc.map_err(registry::Error::into_failure)? else { return Err(without_glibc(base)) };
        let place = Place { room, home: Some(HOME), glibc: Some(&glibc) };
        let packages = self.conda.install((&self.uv, file), wanted, place, log).await?;
        let version = packages.iter().find(|package| package.name == "python").map(|package| package.version.as_str());
        let minor = version.and_then(|version| version.strip_prefix("3.")?.split('.').next()?.parse().ok());
        Ok((minor.ok_or_else(|| defect(format!("conda has installed Python {version:?}")))?, packages))
    }

    /// Pushes configuration, manifest and what is attached to it, has all that scanned, and pushes the tag last.
    async fn push(
        &self,
        (hash, plan): (&EnvironmentHash, &Plan),
        base: &Base,
        packages: Option<&Packages>,
        log: &BuildLog,
    ) -> Result<Made, Failure> {
        let (to, failed) = (self.workspace.image(hash), registry::Error::into_failure);
        let config = config(base, hash, packages).to_string();
        let config =
            self.registries.push_bytes(&to, IMAGE_CONFIG_MEDIA_TYPE, config.as_bytes()).await.map_err(failed)?;
        let manifest = manifest(base, config, packages);
        let bytes = serde_json::to_vec(&manifest).unwrap_or_default();
        let subject = describe(OCI_IMAGE_MEDIA_TYPE, &bytes);
        let by_digest = to.clone_with_digest(subject.digest.clone());
        self.registries.push_manifest(&by_digest, OCI_IMAGE_MEDIA_TYPE, bytes.clone()).await.map_err(failed)?;
        let name = base.reference.whole();
        let origin = attest::provenance(&subject.digest, hash, &plan.facts, (&name, base.digest()));
        let mut documents = vec![(attest::PROVENANCE, origin)];
        documents.extend(packages.map(|packages| (attest::SBOM, packages.list(hash))));
        attest::attach(&self.registries, &by_digest, &documents).await.map_err(failed)?;
        let scan = self.scan(hash, &by_digest, log).await?;
        self.registries.push_manifest(&to, OCI_IMAGE_MEDIA_TYPE, bytes).await.map_err(failed)?;
        Ok(Made { image: image(&by_digest, packages.map(Packages::python)), scan })
    }
}

/// The base image's configuration, with our layer, our Python in front of its PATH, and labels.
fn config(base: &Base, hash: &EnvironmentHash, packages: Option<&Packages>) -> Value {
    let mut config = base.config.clone();
    config["created"] = json!(CREATED);
    let labels = [
        ("io.kaai.environment", hash.as_str()),
        ("org.opencontainers.image.base.name", &base.reference.whole()),
        ("org.opencontainers.image.base.digest", base.digest()),
    ];
    for (name, value) in labels {
        config["config"]["Labels"][name] = json!(value);
    }
    let Some(Packages { layer, conda, .. }) = packages else { return config };
    let mut variables = variables(&config);
    let path = variables.iter().position(|(name, _)| name == "PATH");
    let path = path.map_or("/usr/local/bin:/usr/bin:/bin".to_owned(), |at| variables.remove(at).1);
    variables.retain(|(name, _)| name != "VIRTUAL_ENV" && name != "CONDA_PREFIX");
    variables.push(("PATH".to_owned(), format!("{HOME}/bin:{path}")));
    let kind = if conda.is_some() { "CONDA_PREFIX" } else { "VIRTUAL_ENV" };
    variables.push((kind.to_owned(), HOME.to_owned()));
    config["config"]["Env"] = variables.iter().map(|(name, value)| json!(format!("{name}={value}"))).collect();
    push(&mut config["rootfs"]["diff_ids"], json!(layer.diff_id));
    push(&mut config["history"], json!({ "created": CREATED, "created_by": format!("kaai environment {hash}") }));
    config
}

fn variables(config: &Value) -> Vec<(String, String)> {
    let pairs = config["config"]["Env"].as_array().into_iter().flatten().filter_map(Value::as_str);
    pairs.filter_map(|pair| pair.split_once('=')).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn push(list: &mut Value, value: Value) {
    match list.as_array_mut() {
        Some(list) => list.push(value),
        None => *list = json!([value]),
    }
}

fn manifest(base: &Base, config: OciDescriptor, packages: Option<&Packages>) -> OciImageManifest {
    let own = packages.map(|packages| packages.layer.descriptor.clone());
    let annotations = packages.map(|packages| [(PYTHON.to_owned(), packages.python())].into());
    OciImageManifest {
        media_type: Some(OCI_IMAGE_MEDIA_TYPE.to_owned()),
        config,
        layers: base.manifest.layers.iter().map(in_oci_words).chain(own).collect(),
        annotations,
        ..OciImageManifest::default()
    }
}

/// A layer of an image in Docker's own format is the same under OCI's name for it; a manifest has layers of one family.
fn in_oci_words(layer: &OciDescriptor) -> OciDescriptor {
    let media_type = match layer.media_type.as_str() {
        IMAGE_DOCKER_LAYER_GZIP_MEDIA_TYPE => IMAGE_LAYER_GZIP_MEDIA_TYPE,
        IMAGE_DOCKER_LAYER_TAR_MEDIA_TYPE => IMAGE_LAYER_MEDIA_TYPE,
        other => other,
    };
    OciDescriptor { media_type: media_type.to_owned(), ..layer.clone() }
}
