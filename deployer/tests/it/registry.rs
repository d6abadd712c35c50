//! A real registry that asks for a login.

use std::{
    fs::{self, File},
    process::{Child, Command, Stdio},
    time::Duration,
};

use bollard::{auth::DockerCredentials, query_parameters as query};
use runtime::testing::until;

use crate::{containers::all, dock::Dock};

/// `ci` with the password `s3cret`, as htpasswd writes it.
const USERS: &str = "ci:$2y$05$GuwQCBSV6Ol/eIwK584PRuhAjRNt2w8gvgY/Nm7H.0NX9dTRpQCGy\n";

pub(crate) struct Registry {
    port: u16,
    child: Child,
    _folder: tempfile::TempDir,
}

impl Registry {
    /// `None`, said aloud, where there is no registry to start.
    pub(crate) async fn start(test: &str) -> Option<Self> {
        let Some(program) = runtime::testing::program("docker-registry") else {
            runtime::testing::skip(test, "there is no docker-registry");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let port = runtime::testing::free_port();
        let (users, settings) = (folder.path().join("users"), folder.path().join("registry.yml"));
        fs::write(&users, USERS).unwrap();
        let data = folder.path().join("data");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n\
             auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
            data.display(),
            users.display()
        );
        fs::write(&settings, text).unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        let child = Command::new(program)
            .arg("serve")
            .arg(settings)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        until("the registry listens", Duration::from_secs(30), async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()
        })
        .await;
        Some(Self { port, child, _folder: folder })
    }

    /// A `config.json` with its login.
    pub(crate) fn login(&self) -> String {
        // `ci:s3cret` in base64.
        format!(r#"{{"auths": {{"127.0.0.1:{}": {{"auth": "Y2k6czNjcmV0"}}}}}}"#, self.port)
    }

    /// Puts the base image there and nowhere else; returns its reference with its digest.
    pub(crate) async fn push(&self, dock: &Dock) -> String {
        let repository = format!("127.0.0.1:{}/kaai/environments", self.port);
        let base = dock.base().await;
        let tag = query::TagImageOptions { repo: Some(repository.clone()), tag: Some("t".to_owned()) };
        dock.docker.tag_image(&base, Some(tag)).await.unwrap();
        let login = DockerCredentials {
            username: Some("ci".to_owned()),
            password: Some("s3cret".to_owned()),
            ..DockerCredentials::default()
        };
        let options = query::PushImageOptions { tag: Some("t".to_owned()), ..Default::default() };
        all(dock.docker.push_image(&repository, Some(options), Some(login))).await;
        let tagged = format!("{repository}:t");
        let image = dock.docker.inspect_image(&tagged).await.unwrap();
        let digests = image.repo_digests.unwrap();
        let reference = digests.into_iter().find(|digest| digest.starts_with(&repository)).unwrap();
        for name in [&tagged, &reference] {
            let options = query::RemoveImageOptions { force: false, noprune: true, ..Default::default() };
            let _ = dock.docker.remove_image(name, Some(options), None).await;
        }
        assert!(dock.docker.inspect_image(&reference).await.is_err(), "the engine has it no more");
        reference
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
