//! A Docker engine that runs docker steps by BuildKit, and pushes what comes of it.
//!
//! It knows the engine's API. It does not know what the steps are for.

use std::{collections::HashMap, time::Duration};

use bollard::{
    API_DEFAULT_VERSION, Docker,
    auth::DockerCredentials,
    errors::Error,
    models::BuildInfoAux,
    query_parameters::{BuildImageOptionsBuilder, BuilderVersion, PushImageOptionsBuilder, RemoveImageOptions},
};
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{Either, Full};
use oci_distribution::Reference;
use proto::failure::{Failure, Stage};

use super::{login::Logins, steps::CERTIFICATES_FILE};
use crate::build_log::BuildLog;

/// How long the engine may take to answer anything but a build.
const ANSWER: u64 = 120;
/// How many of the last lines of a step are told of a failure.
const LINES: usize = 40;
/// How long the engine may take to say that it is there.
const HELLO: Duration = Duration::from_secs(10);

/// An engine, not connected yet.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    /// The path of its socket.
    socket: String,
    /// Certificates of authorities (PEM) that steps should trust.
    certificates: Option<Vec<u8>>,
}

impl Engine {
    /// An engine at an address such as `unix:///var/run/docker.sock`.
    pub(crate) fn at(address: &str, certificates: Option<Vec<u8>>) -> Result<Self, String> {
        match address.strip_prefix("unix://") {
            Some(socket) if socket.starts_with('/') => Ok(Self { socket: socket.to_owned(), certificates }),
            _ => Err(format!("{address:?} is no engine: give unix:// and the path of its socket")),
        }
    }

    pub(crate) fn has_certificates(&self) -> bool {
        self.certificates.is_some()
    }

    async fn connect(&self) -> Result<Docker, Failure> {
        let away = |why: String| {
            Failure::platform(
                Stage::Building,
                format!("the Docker engine at {} does not answer: {why}", self.socket),
                "start it, or give the builder's user the right to use its socket",
            )
        };
        let docker = Docker::connect_with_unix(&self.socket, ANSWER, API_DEFAULT_VERSION);
        let docker = docker.map_err(|error| away(error.to_string()))?;
        let negotiated = tokio::time::timeout(HELLO, docker.negotiate_version()).await;
        negotiated.map_err(|_| away("no answer within 10 s".to_owned()))?.map_err(|error| away(error.to_string()))
    }

    /// Runs a Dockerfile and pushes the image that comes of it.
    ///
    /// # Errors
    ///
    /// Fails with the step that failed and its last lines. Dropping the future ends the build.
    pub(crate) async fn build(
        &self,
        dockerfile: &str,
        image: &Reference,
        logins: &Logins,
        log: &BuildLog,
    ) -> Result<(), Failure> {
        let docker = self.connect().await?;
        let name = image.whole();
        let options = BuildImageOptionsBuilder::default().t(&name).dockerfile("Dockerfile");
        let context = context(dockerfile, self.certificates.as_deref());
        run(&docker, options, context, logins, log).await?;
        let pushed = push(&docker, image, logins, log).await;
        // The registry has it, and BuildKit its cache; an image that stays only fills the engine's disk.
        if let Err(error) = docker.remove_image(&name, None::<RemoveImageOptions>, None).await {
            tracing::debug!(%error, name, "an image stays in the engine");
        }
        pushed
    }
}

async fn run(
    docker: &Docker,
    options: BuildImageOptionsBuilder,
    context: Vec<u8>,
    logins: &Logins,
    log: &BuildLog,
) -> Result<(), Failure> {
    let session = uuid::Uuid::new_v4().to_string();
    let options = options.version(BuilderVersion::BuilderBuildKit).session(&session).build();
    let body = Either::Left(Full::new(Bytes::from(context)));
    let mut news = docker.build_image(options, Some(logins.all()), Some(body));
    let mut said = Said::default();
    while let Some(news) = news.next().await {
        let news = news.map_err(|error| said.failure(&error))?;
        if let Some(BuildInfoAux::BuildKit(status)) = news.aux {
            for vertex in status.vertexes.iter().filter(|vertex| vertex.started.is_some()) {
                said.step(&vertex.digest, &vertex.name, log);
            }
            for text in &status.logs {
                said.lines(&String::from_utf8_lossy(&text.msg), log);
            }
        }
    }
    Ok(())
}

async fn push(docker: &Docker, image: &Reference, logins: &Logins, log: &BuildLog) -> Result<(), Failure> {
    let failed = |why: String| {
        Failure::platform(
            Stage::Building,
            format!("the engine cannot push {}: {why}", image.whole()),
            "see whether the engine reaches the registry under that name, and the builder has a login for it (--registry-login)",
        )
    };
    log.line(&format!("pushing {}", image.whole()));
    let options = PushImageOptionsBuilder::default().tag(image.tag().unwrap_or("latest")).build();
    let repository = format!("{}/{}", image.registry(), image.repository());
    let mut news = docker.push_image(&repository, Some(options), logins.all().remove(image.resolve_registry()));
    while let Some(news) = news.next().await {
        let news = news.map_err(|error| failed(error.to_string()))?;
        if let Some(error) = news.error_detail.and_then(|detail| detail.message) {
            return Err(failed(error));
        }
    }
    Ok(())
}

/// What was heard of a build so far.
#[derive(Default)]
struct Said {
    /// The steps that were begun, each with its digest.
    steps: HashMap<String, String>,
    last: Vec<String>,
}

impl Said {
    fn step(&mut self, digest: &str, name: &str, log: &BuildLog) {
        // What the engine does for itself is no step of the user's.
        if name.starts_with("[internal]") || self.steps.insert(digest.to_owned(), name.to_owned()).is_some() {
            return;
        }
        log.line(&without_mounts(name));
    }

    fn lines(&mut self, text: &str, log: &BuildLog) {
        for line in text.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
            log.line(line);
            if self.last.len() == LINES {
                self.last.remove(0);
            }
            self.last.push(proto::secret::redact(line));
        }
    }

    fn failure(&self, error: &Error) -> Failure {
        let Error::DockerStreamError { error } = error else {
            return Failure::platform(
                Stage::Building,
                format!("the Docker engine failed: {error}"),
                "look at the engine's log, then deploy again",
            );
        };
        let error = without_mounts(&proto::secret::redact(error));
        let full =
            error.contains("no space left on device") || self.last.iter().any(|line| line.contains("No space left"));
        let failure = if full {
            let remedy = "free some space there (`docker builder prune`), then deploy again";
            Failure::platform(Stage::Building, "no space is left on the disk of the Docker engine", remedy)
        } else {
            let cause = format!("a docker step failed: {}", error.trim_start_matches("failed to solve: "));
            Failure::project(Stage::Building, cause, "mend the docker steps; the lines above are what the step said")
        };
        failure.with_details(self.last.iter().map(String::as_str))
    }
}

/// A step as the user wrote it.
fn without_mounts(step: &str) -> String {
    let word =
        |word: &&str| !(word.starts_with("--mount=type=cache,target=/root/.cache/") || word.contains("/run/kaai/"));
    step.split(' ').filter(word).collect::<Vec<_>>().join(" ")
}

/// What the engine is sent: a tar of the Dockerfile, and the certificates.
fn context(dockerfile: &str, certificates: Option<&[u8]>) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let files = [("Dockerfile", Some(dockerfile.as_bytes())), (CERTIFICATES_FILE, certificates)];
    for (name, content) in files.into_iter().filter_map(|(name, content)| Some((name, content?))) {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content).expect("a tar in memory can be written");
    }
    tar.into_inner().expect("a tar in memory can be ended")
}

impl Logins {
    /// All logins in the engine's form, in which Docker's own hub has the name that the engine asks for.
    fn all(&self) -> HashMap<String, DockerCredentials> {
        let login = |(host, user, password): (&str, &str, &str)| {
            let credentials = DockerCredentials {
                username: Some(user.to_owned()),
                password: Some(password.to_owned()),
                serveraddress: Some(host.to_owned()),
                ..DockerCredentials::default()
            };
            let host = if host == "docker.io" { "registry-1.docker.io" } else { host };
            (host.to_owned(), credentials)
        };
        self.each().map(login).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_shown_as_it_was_written() {
        let step = "[2/3] RUN --mount=type=cache,target=/root/.cache/pip --mount=type=bind,source=certificates.pem,target=/run/kaai/certificates.pem apt-get install x";
        assert_eq!(without_mounts(step), "[2/3] RUN apt-get install x");
    }

    #[test]
    fn a_full_disk_is_not_the_projects_fault() {
        let error = |text: &str| Error::DockerStreamError { error: text.to_owned() };
        let said = Said { last: vec!["E: x".to_owned()], ..Said::default() };
        let failure = said.failure(&error(
            "failed to solve: process \"/bin/sh -c false\" did not complete successfully: exit code: 1",
        ));
        assert_eq!(failure.blame, proto::failure::Blame::Project);
        assert!(
            failure.cause.starts_with("a docker step failed: process") && failure.details == ["E: x"],
            "{failure:?}"
        );
        let full = said.failure(&error("write /x: no space left on device"));
        assert_eq!(full.blame, proto::failure::Blame::Platform);
    }

    #[test]
    fn only_a_socket_is_an_engine() {
        assert!(Engine::at("unix:///var/run/docker.sock", None).is_ok());
        assert!(Engine::at("tcp://host:2375", None).unwrap_err().contains("is no engine"));
    }
}
