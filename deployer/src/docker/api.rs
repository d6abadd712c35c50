//! The Docker engine's API as this place uses it: every call has a deadline, and every error is in words.

use std::{collections::HashMap, future::Future, path::PathBuf, time::Duration};

use bollard::{
    API_DEFAULT_VERSION, Docker,
    auth::DockerCredentials,
    models::{
        ContainerCreateBody, ContainerState, ContainerSummary, ImageInspect, NetworkCreateRequest, NetworkInspect,
    },
    query_parameters::{
        CreateContainerOptions, CreateImageOptions, KillContainerOptions, ListContainersOptions, LogsOptions,
        RemoveContainerOptions, StartContainerOptions, WaitContainerOptions,
    },
};
use futures::{StreamExt, TryStreamExt};
use tokio::time::{sleep, timeout};

use super::container::REPLICA;

/// How long one answer of the engine may take.
const ANSWER: Duration = Duration::from_secs(60);
/// How long an end is waited for before it is asked whether there was one: an engine that is gone may leave us waiting.
const WAIT: Duration = Duration::from_secs(60);
/// How long it may take to fetch an image.
const PULL: Duration = Duration::from_secs(900);
/// How long an engine that is away is waited for before something is given up.
const ATTEMPTS: u32 = 30;
/// How long to wait before the engine is asked again.
const PAUSE: Duration = Duration::from_secs(1);
/// How many of the last lines of a container's log are kept.
const LINES: &str = "20000";
/// How many of the last bytes of them.
const BYTES: usize = 4 << 20;

/// The engine. Clones share its connections.
#[derive(Clone)]
pub(super) struct Api(Docker);

/// What the engine's host can do.
pub(super) struct Abilities {
    /// Why CPU or memory cannot be limited; `None` when they can.
    pub(super) missing: Option<String>,
    /// How many cores there are.
    pub(super) cores: f64,
}

/// A call was not answered as wished.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// What was asked for is not there.
    #[error("{0}")]
    Missing(String),
    /// It is not in a state in which that can be done, or there already.
    #[error("{0}")]
    Conflict(String),
    /// The engine refused.
    #[error("{0}")]
    Refused(String),
    /// The engine is away, or too slow.
    #[error("the Docker engine {0}")]
    Away(String),
}

impl From<bollard::errors::Error> for Error {
    fn from(error: bollard::errors::Error) -> Self {
        use bollard::errors::Error as From;
        match error {
            From::DockerResponseServerError { status_code: 404, message } => Self::Missing(message),
            From::DockerResponseServerError { status_code: 304 | 409, message } => Self::Conflict(message),
            From::DockerResponseServerError { message, .. } => Self::Refused(message),
            From::DockerStreamError { error } => Self::Refused(error),
            From::RequestTimeoutError => Self::Away("does not answer".to_owned()),
            error => Self::Away(format!("cannot be asked: {error}")),
        }
    }
}

async fn within<T>(limit: Duration, call: impl Future<Output = Result<T, bollard::errors::Error>>) -> Result<T, Error> {
    match timeout(limit, call).await {
        Ok(answer) => answer.map_err(Error::from),
        Err(_) => Err(Error::Away(format!("has not answered for {} s", limit.as_secs()))),
    }
}

/// `None` for what is not there.
fn found<T>(answer: Result<T, Error>) -> Result<Option<T>, Error> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(Error::Missing(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Api {
    /// Reaches the engine behind a unix socket, in the newest version that both speak.
    pub(super) async fn connect(address: &str) -> Result<Self, super::Error> {
        let path = address.strip_prefix("unix://").unwrap_or(address);
        if !path.starts_with('/') {
            return Err(super::Error::Address(address.to_owned()));
        }
        let failed = |error: Error| super::Error::Engine { address: address.to_owned(), why: error.to_string() };
        // The limit is for the beginning of an answer; an image takes long before it begins to come.
        let docker = Docker::connect_with_unix(path, PULL.as_secs(), API_DEFAULT_VERSION);
        let docker = docker.map_err(|error| failed(error.into()))?;
        within(ANSWER, docker.negotiate_version()).await.map(Self).map_err(failed)
    }

    /// What the engine's host can do.
    pub(super) async fn abilities(&self) -> Result<Abilities, Error> {
        let info = within(ANSWER, self.0.info()).await?;
        let can = info.memory_limit.unwrap_or_default() && info.cpu_cfs_quota.unwrap_or_default();
        let missing = (!can).then(|| "the Docker engine cannot limit CPU and memory on this host".to_owned());
        Ok(Abilities {
            missing,
            cores: info.ncpu.filter(|cores| *cores > 0).map_or(f64::INFINITY, |cores| cores as f64),
        })
    }

    pub(super) async fn image(&self, reference: &str) -> Result<Option<ImageInspect>, Error> {
        found(within(ANSWER, self.0.inspect_image(reference)).await)
    }

    /// Fetches an image.
    pub(super) async fn pull(&self, reference: &str, login: Option<DockerCredentials>) -> Result<(), Error> {
        let options = CreateImageOptions { from_image: Some(reference.to_owned()), ..Default::default() };
        let steps = self.0.create_image(Some(options), None, login);
        within(PULL, steps.try_for_each(|_| async { Ok(()) })).await
    }

    /// Makes a container; returns its id.
    pub(super) async fn create(&self, name: &str, body: ContainerCreateBody) -> Result<String, Error> {
        let options = CreateContainerOptions { name: Some(name.to_owned()), ..Default::default() };
        Ok(within(ANSWER, self.0.create_container(Some(options), body)).await?.id)
    }

    pub(super) async fn start(&self, id: &str) -> Result<(), Error> {
        within(ANSWER, self.0.start_container(id, None::<StartContainerOptions>)).await
    }

    /// How a container is; `None` when it is not there.
    pub(super) async fn state(&self, id: &str) -> Result<Option<ContainerState>, Error> {
        let container = found(within(ANSWER, self.0.inspect_container(id, None)).await)?;
        Ok(container.map(|container| container.state.unwrap_or_default()))
    }

    /// How a container is, asked until the engine answers; `None` when it is not there, or nobody answers.
    pub(super) async fn state_patiently(&self, id: &str) -> Option<ContainerState> {
        for _ in 0..ATTEMPTS {
            match self.state(id).await {
                Ok(state) => return state,
                Err(error) => tracing::warn!(%error, "asking again"),
            }
            sleep(PAUSE).await;
        }
        None
    }

    /// Waits until a container ends, or something else makes it worth to look at it again.
    pub(super) async fn wait(&self, id: &str) {
        let options = WaitContainerOptions { condition: "not-running".to_owned() };
        // An exit code of another kind than 0 is an error here; the container's state says it in any case.
        let _ = timeout(WAIT, self.0.wait_container(id, Some(options)).next()).await;
    }

    /// Sends a signal to the main process; one that has ended is fine.
    pub(super) async fn signal(&self, id: &str, signal: &str) -> Result<(), Error> {
        let options = KillContainerOptions { signal: signal.to_owned() };
        match within(ANSWER, self.0.kill_container(id, Some(options))).await {
            Err(Error::Missing(_) | Error::Conflict(_)) => Ok(()),
            answer => answer,
        }
    }

    /// The end of what a container has written; `None` when it is not there.
    pub(super) async fn log(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let options = LogsOptions { stdout: true, stderr: true, tail: LINES.to_owned(), ..Default::default() };
        let pieces = self.0.logs(name, Some(options));
        let all = pieces.try_fold(Vec::new(), |mut all: Vec<u8>, piece| async move {
            all.extend_from_slice(piece.as_ref());
            if all.len() > 2 * BYTES {
                all.drain(..all.len() - BYTES);
            }
            Ok(all)
        });
        found(within(ANSWER, all).await)
    }

    /// Ends and takes away the containers that carry all these labels and whose replica is as said.
    pub(super) async fn remove_all(&self, labels: &[String], wanted: impl Fn(&str) -> bool) {
        for _ in 0..ATTEMPTS {
            match self.remove_once(labels, &wanted).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, ?labels, "containers cannot be removed yet"),
            }
            sleep(PAUSE).await;
        }
        tracing::warn!(?labels, "containers are left; the next start of the deployer removes them");
    }

    /// Removes what is there; whether that was nothing more than could be removed.
    async fn remove_once(&self, labels: &[String], wanted: impl Fn(&str) -> bool) -> Result<bool, Error> {
        let mut all = true;
        for container in self.labelled(labels).await? {
            let replica = container.labels.as_ref().and_then(|labels| labels.get(REPLICA));
            let Some(id) = container.id.as_ref().filter(|_| replica.is_some_and(|replica| wanted(replica))) else {
                continue;
            };
            let options = RemoveContainerOptions { v: true, force: true, link: false };
            match within(ANSWER, self.0.remove_container(id, Some(options))).await {
                Ok(()) | Err(Error::Missing(_)) => {}
                // Somebody is removing it at this moment.
                Err(Error::Conflict(_)) => all = false,
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    async fn labelled(&self, labels: &[String]) -> Result<Vec<ContainerSummary>, Error> {
        let filters = Some(HashMap::from([("label".to_owned(), labels.to_vec())]));
        let options = ListContainersOptions { all: true, filters, ..Default::default() };
        within(ANSWER, self.0.list_containers(Some(options))).await
    }

    /// The folder of a volume on the engine's host; `None` when there is no such volume.
    pub(super) async fn volume(&self, name: &str) -> Result<Option<PathBuf>, Error> {
        let volume = found(within(ANSWER, self.0.inspect_volume(name)).await)?;
        Ok(volume.map(|volume| volume.mountpoint.into()))
    }

    pub(super) async fn network(&self, name: &str) -> Result<Option<NetworkInspect>, Error> {
        found(within(ANSWER, self.0.inspect_network(name, None)).await)
    }

    /// Makes a network; one that is there is fine.
    pub(super) async fn create_network(&self, network: NetworkCreateRequest) -> Result<(), Error> {
        match within(ANSWER, self.0.create_network(network)).await {
            Ok(_) | Err(Error::Conflict(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn remove_network(&self, name: &str) -> Result<(), Error> {
        found(within(ANSWER, self.0.remove_network(name)).await).map(drop)
    }
}
