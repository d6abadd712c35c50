//! Settings of the place with images: registries, logins, base images.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use crate::image::{Access, Engine, Logins, Repository, Settings};

/// Registries and base images, as typed.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Environments as images")]
pub struct ImageArgs {
    /// Registry (HOST:PORT/PREFIX, or less) that environments are pushed to as images; without it they are virtual environments of this machine
    #[arg(long, env = "KAAI_REGISTRY", value_name = "REGISTRY")]
    pub registry: Option<String>,
    /// Registry with images that others have built, looked into before one is built here
    #[arg(long, env = "KAAI_GLOBAL_REGISTRY", value_name = "REGISTRY", requires = "registry")]
    pub global_registry: Option<String>,
    /// Base image for environments that name none, for each Python: 3.11=registry.example.com/python:3.11
    #[arg(long = "base-image", env = "KAAI_BASE_IMAGES", value_delimiter = ',', value_name = "3.MINOR=IMAGE")]
    pub base_images: Vec<String>,
    /// File with logins at registries, as Docker's config.json
    #[arg(long, env = "KAAI_REGISTRY_LOGIN", value_name = "FILE")]
    pub registry_login: Option<PathBuf>,
    /// Certificate of an authority (PEM) to trust at registries besides the system's
    #[arg(long, env = "KAAI_REGISTRY_CA", value_delimiter = ',', value_name = "FILE")]
    pub registry_ca: Vec<PathBuf>,
    /// Docker engine (unix:// and the path of its socket) that runs docker steps and Dockerfiles; without it they are refused
    #[arg(long, env = "KAAI_BUILD_ENGINE", value_name = "ADDRESS")]
    pub build_engine: Option<String>,
    /// Certificates of authorities (PEM) that docker steps should trust; they stay in no image
    #[arg(long, env = "KAAI_BUILD_CA", value_name = "FILE", requires = "build_engine")]
    pub build_ca: Option<PathBuf>,
    /// Host (and port) of a registry that is spoken to without TLS, besides those on this machine
    #[arg(long, env = "KAAI_INSECURE_REGISTRIES", value_delimiter = ',', value_name = "HOST[:PORT]")]
    pub insecure_registry: Vec<String>,
}

/// The registries and base images of a place with images, as read from [`ImageArgs`].
#[derive(Debug, Clone)]
pub struct ImageSettings {
    workspace: Repository,
    global: Option<Repository>,
    bases: BTreeMap<u64, String>,
    access: Access,
    engine: Option<Engine>,
}

impl ImageArgs {
    /// What the arguments say, read whole: a wrong file or name is found out at the start. None without a registry.
    ///
    /// # Errors
    ///
    /// Fails in words at the first argument that is wrong.
    pub fn read(&self) -> Result<Option<ImageSettings>, String> {
        let Some(registry) = &self.registry else { return Ok(None) };
        let base = |text: &String| {
            let (minor, image) =
                text.split_once('=').and_then(|(python, image)| Some((python.strip_prefix("3.")?, image)))?;
            Some((minor.parse().ok()?, image.to_owned()))
        };
        let bases = self.base_images.iter().map(|text| {
            base(text)
                .ok_or_else(|| format!("--base-image {text:?} is none: write 3.11=registry.example.com/python:3.11"))
        });
        let read = |name: &str, path: &PathBuf| {
            std::fs::read(path).map_err(|error| format!("{name} {}: {error}", path.display()))
        };
        let authority = |path: &PathBuf| read("--registry-ca", path);
        let build_ca = self.build_ca.as_ref().map(|path| read("--build-ca", path)).transpose()?;
        Ok(Some(ImageSettings {
            workspace: Repository::read(registry)?,
            global: self.global_registry.as_deref().map(Repository::read).transpose()?,
            bases: bases.collect::<Result<_, _>>()?,
            access: Access {
                logins: {
                    let read = self.registry_login.as_deref().map(Logins::read).transpose();
                    read.map_err(|error| format!("--registry-login: {error}"))?.unwrap_or_default()
                },
                authorities: self.registry_ca.iter().map(authority).collect::<Result<_, _>>()?,
                insecure: self.insecure_registry.clone(),
            },
            engine: self.build_engine.as_deref().map(|address| Engine::at(address, build_ca)).transpose()?,
        }))
    }
}

impl ImageSettings {
    /// What the maker of images needs.
    pub(crate) fn with(self, scratch: PathBuf, deadline: Duration) -> Settings {
        let Self { workspace, global, bases, access, engine } = self;
        Settings { workspace, global, bases, access, engine, scratch, deadline }
    }
}
