//! What a replica's container is made of. Pure: a plan in, the body of a request out.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use bollard::models::{
    ContainerCreateBody, DeviceRequest, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountType,
};
use proto::{
    failure::{Failure, Stage},
    id::ReplicaId,
    spec::Resources,
};

use super::User;
use crate::host::engine::Start;

/// v1's app root.
pub(super) const APP_ROOT: &str = "/var/azureml-app";
/// The folder in which a replica may write, and in which its socket is.
pub(super) const OWN: &str = "/run/kaai";
/// The folder of launcher and order.
const PROGRAM: &str = "/opt/kaai/replica";
/// The label that says whose a container or a network is.
const PLACE: &str = "io.kaai.place";
/// The label with the replica's name.
pub(super) const REPLICA: &str = "io.kaai.replica";
const GIB: f64 = 1_073_741_824.0;

/// The name of a replica's container.
pub(super) fn name(identity: &str, replica: &ReplicaId) -> String {
    format!("kaai-{identity}-{replica}")
}

/// The label of all that belongs to a place, as a filter.
pub(super) fn place_label(identity: &str) -> String {
    format!("{PLACE}={identity}")
}

/// The label of all that belongs to a replica, as a filter.
pub(super) fn replica_label(replica: &ReplicaId) -> String {
    format!("{REPLICA}={replica}")
}

/// The labels of what belongs to all replicas of a place.
pub(super) fn place_labels(identity: &str) -> HashMap<String, String> {
    HashMap::from([(PLACE.to_owned(), identity.to_owned())])
}

/// What a container is to be.
pub(super) struct Plan<'a> {
    pub(super) identity: &'a str,
    /// Labels besides those of the place.
    pub(super) labels: &'a BTreeMap<String, String>,
    pub(super) start: &'a Start<'a>,
    /// Folders of models on this host, each with its path in the app root.
    pub(super) models: Vec<(PathBuf, PathBuf)>,
    pub(super) user: User,
    pub(super) network: &'a str,
    pub(super) processes: u64,
    /// How many cores there are.
    pub(super) cores: f64,
    /// A path of this host as the engine sees it.
    pub(super) on_host: &'a (dyn Fn(&Path) -> PathBuf + Sync),
}

impl Plan<'_> {
    /// The body of the request that makes it.
    ///
    /// # Errors
    ///
    /// Fails in words for the user when no image is named.
    pub(super) fn body(&self) -> Result<ContainerCreateBody, Failure> {
        let Start { order, environment, variables, .. } = self.start;
        let proto::builder::Image::Container { reference, .. } = &order.release.image else {
            return Err(Failure::platform(Stage::Starting, "there is no image", "deploy again, which builds one"));
        };
        let program = Path::new(PROGRAM);
        let entrypoint = [&environment.interpreter, &program.join("launch.py"), &program.join("order.json")];
        Ok(ContainerCreateBody {
            image: Some(reference.clone()),
            entrypoint: Some(entrypoint.map(|path| path.display().to_string()).to_vec()),
            cmd: Some(Vec::new()),
            env: Some(variables.iter().map(|(name, value)| format!("{name}={value}")).collect()),
            user: Some(format!("{}:{}", self.user.uid, self.user.gid)),
            working_dir: Some(APP_ROOT.to_owned()),
            labels: Some(self.labels()),
            // How a replica is, is asked on its socket.
            healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() }),
            host_config: Some(self.host_config()),
            ..ContainerCreateBody::default()
        })
    }

    fn labels(&self) -> HashMap<String, String> {
        let order = self.start.order;
        // The place's own come last, and so win.
        let mut labels: HashMap<_, _> = self.labels.clone().into_iter().collect();
        labels.extend(place_labels(self.identity));
        labels.extend([
            (REPLICA.to_owned(), order.replica.to_string()),
            ("io.kaai.workspace".to_owned(), order.workspace.to_string()),
            ("io.kaai.service".to_owned(), order.service.to_string()),
            ("io.kaai.generation".to_owned(), order.release.generation.to_string()),
        ]);
        labels
    }

    fn host_config(&self) -> HostConfig {
        let log = [("max-size", "10m"), ("max-file", "2")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let config = HostConfig {
            // Python as the first process of all would not hear SIGTERM.
            init: Some(true),
            readonly_rootfs: Some(true),
            tmpfs: Some(HashMap::from([("/tmp".to_owned(), "rw,nosuid,nodev,mode=1777".to_owned())])),
            cap_drop: Some(vec!["ALL".to_owned()]),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            network_mode: Some(self.network.to_owned()),
            mounts: Some(self.mounts()),
            log_config: Some(HostConfigLogConfig { typ: Some("json-file".to_owned()), config: Some(log.into()) }),
            pids_limit: Some(i64::try_from(self.processes).unwrap_or(i64::MAX)),
            ..HostConfig::default()
        };
        limited(config, &self.start.order.release.spec.resources, self.cores)
    }

    fn mounts(&self) -> Vec<Mount> {
        let folder = self.start.folder;
        let mount = |source: &Path, target: PathBuf, read_only| Mount {
            typ: Some(MountType::BIND),
            source: Some((self.on_host)(source).display().to_string()),
            target: Some(target.display().to_string()),
            read_only: Some(read_only),
            ..Mount::default()
        };
        let mut mounts = vec![
            mount(&folder.app_root(), APP_ROOT.into(), false),
            mount(&folder.own(), OWN.into(), false),
            mount(&folder.program(), PROGRAM.into(), true),
        ];
        let models = self.models.iter();
        mounts.extend(models.map(|(files, path)| mount(files, Path::new(APP_ROOT).join(path), true)));
        mounts
    }
}

/// Adds what a replica may use.
fn limited(config: HostConfig, resources: &Resources, cores: f64) -> HostConfig {
    let memory = resources.memory_gb_limit.map(|limit| (limit * GIB) as i64);
    let gpu = DeviceRequest {
        driver: Some("nvidia".to_owned()),
        count: Some(i64::from(resources.gpu)),
        capabilities: Some(vec![vec!["gpu".to_owned()]]),
        ..DeviceRequest::default()
    };
    HostConfig {
        cpu_shares: Some((resources.cpu * 1024.0).clamp(2.0, 262_144.0) as i64),
        // The engine takes no less than a hundredth of a core, and no more than there are.
        nano_cpus: resources.cpu_limit.map(|limit| (limit.min(cores) * 1e9) as i64).map(|limit| limit.max(10_000_000)),
        memory,
        // Equal to the memory: nothing is swapped out beyond the limit.
        memory_swap: memory,
        device_requests: (resources.gpu > 0).then(|| vec![gpu]),
        ..config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_of_the_specification_and_no_more() {
        let none = limited(HostConfig::default(), &Resources { cpu: 0.5, ..Resources::default() }, 2.0);
        assert_eq!((none.cpu_shares, none.nano_cpus, none.memory, none.device_requests), (Some(512), None, None, None));
        let resources = Resources { cpu_limit: Some(1.5), memory_gb_limit: Some(0.5), gpu: 2, ..Resources::default() };
        let some = limited(HostConfig::default(), &resources, 2.0);
        assert_eq!(some.nano_cpus, Some(1_500_000_000));
        assert_eq!((some.memory, some.memory_swap), (Some(1 << 29), Some(1 << 29)));
        let few = limited(HostConfig::default(), &resources, 1.0);
        assert_eq!(few.nano_cpus, Some(1_000_000_000), "a host with fewer cores gives all it has");
        assert_eq!(some.device_requests.unwrap()[0].count, Some(2));
    }
}
