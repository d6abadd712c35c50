//! A real registry of images for tests.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use super::{free_port, program, until};

/// A real `docker-registry` on a free loopback port, ended when it is dropped.
pub struct Registry {
    child: Child,
    folder: TempDir,
    port: u16,
}

impl Registry {
    /// Starts one and waits until it answers; `None` where there is no `docker-registry`.
    ///
    /// # Panics
    ///
    /// When it does not answer within ten seconds.
    pub async fn start() -> Option<Self> {
        Self::with(|_| String::new()).await
    }

    /// Starts one that wants a login; `htpasswd` is a line of that file, whose password is hashed by bcrypt.
    ///
    /// # Panics
    ///
    /// As [`Registry::start`].
    pub async fn with_login(htpasswd: &str) -> Option<Self> {
        Self::with(|folder| {
            let file = folder.join("htpasswd");
            fs::write(&file, format!("{htpasswd}\n")).expect("a file can be written");
            format!("auth:\n  htpasswd:\n    realm: kaai\n    path: {}\n", file.display())
        })
        .await
    }

    async fn with(more: impl FnOnce(&Path) -> String) -> Option<Self> {
        let program = program("docker-registry")?;
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let (port, config) = (free_port(), folder.path().join("registry.yml"));
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:{port}\n{}",
            folder.path().join("images").display(),
            more(folder.path()),
        );
        fs::write(&config, text).expect("the configuration can be written");
        let child = Command::new(program)
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry can be started");
        let registry = Self { child, folder, port };
        let address = registry.address();
        until("the registry answers", Duration::from_secs(10), async || {
            tokio::net::TcpStream::connect(&address).await.ok()
        })
        .await;
        Some(registry)
    }

    /// Host and port.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Puts an image in the form of an OCI layout under a repository and a tag, and returns its digest.
    ///
    /// # Panics
    ///
    /// When the layout is none.
    pub fn put(&self, layout: &Path, repository: &str, tag: &str) -> String {
        let index: Value = read(&layout.join("index.json"));
        let digest = index["manifests"][0]["digest"].as_str().expect("the layout has an image").to_owned();
        let manifest: Value = read(&layout.join("blobs/sha256").join(hex(&digest)));
        let layers = manifest["layers"].as_array().into_iter().flatten();
        let blobs: Vec<_> = layers.chain([&manifest["config"]]).filter_map(|blob| blob["digest"].as_str()).collect();
        let home = self.root().join("repositories").join(repository);
        for blob in blobs.iter().copied().chain([digest.as_str()]) {
            let data = self.blob(blob);
            make_parent(&data);
            fs::copy(layout.join("blobs/sha256").join(hex(blob)), data).expect("a blob can be copied");
        }
        for blob in blobs {
            link(&home.join("_layers/sha256").join(hex(blob)), blob);
        }
        link(&home.join("_manifests/revisions/sha256").join(hex(&digest)), &digest);
        link(&home.join("_manifests/tags").join(tag).join("current"), &digest);
        link(&home.join("_manifests/tags").join(tag).join("index/sha256").join(hex(&digest)), &digest);
        digest
    }

    /// The file that holds a blob.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = hex(digest);
        self.root().join("blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }

    /// How many blobs it has.
    pub fn blobs(&self) -> usize {
        let folders = fs::read_dir(self.root().join("blobs/sha256")).into_iter().flatten().flatten();
        folders.map(|folder| fs::read_dir(folder.path()).into_iter().flatten().count()).sum()
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("images/docker/registry/v2")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // One that has ended by itself is fine too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The base image that `tools/base_image.py` makes, as an OCI layout with Python 3.11; `None` where it was not made.
pub fn base_image() -> Option<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let layout = here.ancestors().map(|folder| folder.join(".tools/base-image/python3.11"));
    layout.into_iter().find(|layout| layout.join("index.json").is_file())
}

fn hex(digest: &str) -> &str {
    digest.trim_start_matches("sha256:")
}

fn read(path: &Path) -> Value {
    let text = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).expect("the layout's files are JSON")
}

fn link(folder: &Path, digest: &str) {
    fs::create_dir_all(folder).expect("a folder can be made");
    fs::write(folder.join("link"), digest).expect("a link can be written");
}

fn make_parent(path: &Path) {
    fs::create_dir_all(path.parent().expect("it has one")).expect("a folder can be made");
}
