//! `deploymentconfig.json`: Azure ML v1's deployment configuration for `aks`, `aci` and `local`.

use proto::{
    failure::{Failure, Stage},
    query::Keys,
    spec::{Auth, Liveness, MAX_CONCURRENT, MAX_REPLICAS, RequestLimits, Resources, Scaling},
};

use super::document::{Document, Findings, Section};

/// What a deployment configuration says; the defaults are those of `aks`.
#[derive(Debug, Default)]
pub(crate) struct Deployment {
    /// The file that it was read from.
    pub(crate) file: Option<String>,
    pub(crate) auth: Auth,
    pub(crate) scaling: Scaling,
    pub(crate) resources: Resources,
    pub(crate) requests: RequestLimits,
    pub(crate) liveness: Liveness,
    pub(crate) collect_model_data: bool,
    pub(crate) request_telemetry: bool,
    pub(crate) keys: Option<Keys>,
    pub(crate) warnings: Vec<String>,
}

impl Deployment {
    /// Reads a configuration, collecting all violations.
    pub(crate) fn read(document: &Document) -> Result<Self, Failure> {
        let file = document.file.as_str();
        let mut found = Findings::default();
        let mut root = Section::root(&document.root);
        let compute = root.text("computeType", &mut found).unwrap_or_default().to_ascii_lowercase();
        let mut deployment = match compute.as_str() {
            "aks" => aks(&mut root, file, &mut found),
            "aci" => aci(&mut root, file, &mut found),
            "local" => local(&mut root),
            "aksendpoint" => {
                return Err(Failure::project(
                    Stage::Reading,
                    format!(
                        "{file}: computeType aksendpoint (several versions behind one address) is not supported yet"
                    ),
                    "use computeType aks, and one service for each version",
                ));
            }
            _ => {
                let what = match root.value("computeType") {
                    None => "computeType is missing".to_owned(),
                    Some(value) => format!("computeType {value} is not known"),
                };
                return Err(Failure::project(
                    Stage::Reading,
                    format!("{file}: {what}"),
                    "write \"computeType\": \"aks\" (or aci, local)",
                ));
            }
        };
        root.unknown(file, &mut found);
        found.check(file)?;
        if deployment.auth != Auth::Key && deployment.keys.take().is_some() {
            found.warnings.push(format!("{file}: keys have no effect, because keys are not what opens this service"));
        }
        deployment.warnings = found.warnings;
        deployment.file = Some(file.to_owned());
        Ok(deployment)
    }
}

fn aks(root: &mut Section<'_>, file: &str, found: &mut Findings) -> Deployment {
    let mut deployment = Deployment {
        scaling: scaling(root, file, found),
        auth: auth(root, true, found),
        resources: resources(root, file, found),
        keys: keys(root, file, found),
        liveness: liveness(root, file, found),
        ..Deployment::default()
    };
    if let Some(mut collection) = root.section("dataCollection", found) {
        deployment.collect_model_data = collection.boolean("storageEnabled", found).unwrap_or(false);
        collection.unknown(file, found);
    }
    deployment.request_telemetry = root.boolean("appInsightsEnabled", found).unwrap_or(false);
    let requests = &mut deployment.requests;
    if let Some(ms) = root.count("scoringTimeoutMs", "scoring_timeout_ms", found) {
        requests.scoring_timeout_ms = ms.into();
    }
    if let Some(count) =
        root.count_up_to(MAX_CONCURRENT, "maxConcurrentRequestsPerContainer", "replica_max_concurrent_requests", found)
    {
        requests.max_concurrent_per_replica = count;
    }
    if let Some(ms) = root.count("maxQueueWaitMs", "max_request_wait_time", found) {
        requests.max_queue_wait_ms = ms.into();
    }
    if let Some(namespace) = root.text("namespace", found) {
        if is_namespace(namespace) {
            found.warnings.push(format!("{file}: namespace has no effect yet: kaai chooses where a service runs"));
        } else {
            root.wrong("namespace", "namespace", "must be lower-case letters, digits and hyphens, at most 63", found);
        }
    }
    root.text("computeTargetName", found);
    deployment
}

/// Keys of `aci` that v1 took together only.
const TOGETHER: [(&str, &[&str]); 2] = [
    ("all or none of them", &["vaultBaseUrl", "keyName", "keyVersion"]),
    ("both or none of them", &["vnetName", "subnetName"]),
];

/// Azure Container Instances had one replica, no autoscaling, and no keys unless asked for.
fn aci(root: &mut Section<'_>, file: &str, found: &mut Findings) -> Deployment {
    let deployment = Deployment {
        scaling: Scaling::Fixed { replicas: 1 },
        auth: auth(root, false, found),
        resources: resources(root, file, found),
        keys: keys(root, file, found),
        request_telemetry: root.boolean("appInsightsEnabled", found).unwrap_or(false),
        ..Deployment::default()
    };
    for key in ["location", "sslEnabled", "sslCertificate", "sslKey", "cname", "dnsNameLabel"] {
        if root.value(key).is_some_and(|value| value != false) {
            found.warnings.push(format!("{file}: {key} has no meaning here and has no effect"));
        }
    }
    for (rule, keys) in TOGETHER {
        let given = keys.iter().filter(|key| root.value(key).is_some()).count();
        if given == keys.len() {
            found.warnings.push(format!("{file}: {} have no meaning here and have no effect", keys.join(", ")));
        } else if given > 0 {
            found.violations.push(format!("Invalid configuration, {}: give {rule}.", keys.join(", ")));
        }
    }
    deployment
}

/// v1's local deployment: one replica, open to whoever reaches it.
fn local(root: &mut Section<'_>) -> Deployment {
    root.value("port");
    Deployment { scaling: Scaling::Fixed { replicas: 1 }, auth: Auth::None, ..Deployment::default() }
}

/// v1's rules (azureml-core 1.61): `autoscaleEnabled: true` and `numReplicas` exclude each other, false needs `numReplicas`,
/// and the other keys are refused unless it is true.
fn scaling(root: &mut Section<'_>, file: &str, found: &mut Findings) -> Scaling {
    let replicas = root.count_up_to(MAX_REPLICAS, "numReplicas", "num_replicas", found);
    let has_replicas = root.value("numReplicas").is_some();
    let Some(mut section) = root.section("autoScaler", found) else {
        return replicas.map_or_else(Scaling::default, |replicas| Scaling::Fixed { replicas });
    };
    let enabled = section.boolean("autoscaleEnabled", found);
    let min = section.count_up_to(MAX_REPLICAS, "minReplicas", "autoscale_min_replicas", found);
    let max = section.count_up_to(MAX_REPLICAS, "maxReplicas", "autoscale_max_replicas", found);
    let refresh = section.count("refreshPeriodInSeconds", "autoscale_refresh_seconds", found);
    let target = section.count("targetUtilization", "autoscale_target_utilization", found);
    let given = ["minReplicas", "maxReplicas", "refreshPeriodInSeconds", "targetUtilization"]
        .map(|key| section.value(key).is_some());
    section.unknown(file, found);
    if enabled != Some(true) {
        if given.contains(&true) {
            section.wrong(
                "autoscaleEnabled",
                "autoscale_enabled",
                "must be true when minReplicas, maxReplicas, refreshPeriodInSeconds or targetUtilization is given",
                found,
            );
        }
        if enabled == Some(false) && !has_replicas {
            section.wrong("autoscaleEnabled", "autoscale_enabled", "is false, so num_replicas must be given", found);
        }
        return replicas.map_or_else(Scaling::default, |replicas| Scaling::Fixed { replicas });
    }
    if has_replicas {
        section.wrong("autoscaleEnabled", "autoscale_enabled", "and num_replicas exclude each other", found);
    }
    let (min_replicas, max_replicas) = (min.unwrap_or(1), max.unwrap_or(10));
    if min_replicas > max_replicas {
        section.wrong(
            "minReplicas",
            "autoscale_min_replicas",
            &format!("must not be more than autoscale_max_replicas ({max_replicas})"),
            found,
        );
    }
    let target_utilization = target.unwrap_or(70);
    if target_utilization > 100 {
        section.wrong("targetUtilization", "autoscale_target_utilization", "must be from 1 to 100", found);
    }
    Scaling::Auto {
        min_replicas,
        max_replicas,
        target_utilization: u8::try_from(target_utilization).unwrap_or(100),
        refresh_seconds: refresh.unwrap_or(1),
    }
}

/// Keys unless said otherwise; a token-auth service whose `authEnabled` is unset has tokens alone, as in the SDK.
fn auth(root: &mut Section<'_>, default: bool, found: &mut Findings) -> Auth {
    let keys = root.boolean("authEnabled", found);
    let tokens =
        root.boolean("tokenAuthEnabled", found).or_else(|| root.boolean("aadAuthEnabled", found)).unwrap_or(false);
    if keys == Some(true) && tokens {
        root.wrong("tokenAuthEnabled", "token_auth_enabled", "and auth_enabled exclude each other", found);
    }
    match (keys.unwrap_or(default && !tokens), tokens) {
        (_, true) => Auth::Token,
        (true, false) => Auth::Key,
        (false, false) => Auth::None,
    }
}

fn resources(root: &mut Section<'_>, file: &str, found: &mut Findings) -> Resources {
    let mut resources = Resources::default();
    // At the top level, not among the requirements: so v1's files have it.
    if let Some(gpu) = root.count_or_zero("gpuCores", "gpu_cores", found) {
        resources.gpu = gpu;
    }
    let Some(mut section) = root.section("containerResourceRequirements", found) else { return resources };
    if let Some(cpu) = section.positive("cpu", "cpu_cores", found) {
        resources.cpu = cpu;
    }
    if let Some(memory) = section.positive("memoryInGB", "memory_gb", found) {
        resources.memory_gb = memory;
    }
    resources.cpu_limit = section.positive("cpuLimit", "cpu_cores_limit", found);
    resources.memory_gb_limit = section.positive("memoryInGBLimit", "memory_gb_limit", found);
    if resources.cpu_limit.is_some_and(|limit| limit < resources.cpu) {
        section.wrong("cpuLimit", "cpu_cores_limit", "must not be less than cpu_cores", found);
    }
    if resources.memory_gb_limit.is_some_and(|limit| limit < resources.memory_gb) {
        section.wrong("memoryInGBLimit", "memory_gb_limit", "must not be less than memory_gb", found);
    }
    section.unknown(file, found);
    resources
}

/// A secondary key counts only beside a primary one, as in v1's SDK; left out, the deployer keeps or makes one.
fn keys(root: &mut Section<'_>, file: &str, found: &mut Findings) -> Option<Keys> {
    let mut section = root.section("keys", found)?;
    let primary = section.text("primaryKey", found).filter(|key| !key.is_empty());
    let secondary = section.text("secondaryKey", found).filter(|key| !key.is_empty());
    section.unknown(file, found);
    match (primary, secondary) {
        (Some(primary), secondary) => {
            if !is_key(primary) {
                section.wrong("primaryKey", "primary_key", KEY_RULE, found);
            }
            if secondary.is_some_and(|secondary| !is_key(secondary)) {
                section.wrong("secondaryKey", "secondary_key", KEY_RULE, found);
            }
            if secondary == Some(primary) {
                section.wrong("secondaryKey", "secondary_key", "must differ from primary_key", found);
            }
            Some(Keys { primary: primary.to_owned(), secondary: secondary.unwrap_or_default().to_owned() })
        }
        (None, Some(_)) => {
            found.warnings.push(format!("{file}: keys.secondaryKey has no effect without keys.primaryKey"));
            None
        }
        (None, None) => None,
    }
}

/// What a key may be: it travels in a header.
const KEY_RULE: &str = "must have 1 to 4096 visible characters without a space at either end";

fn is_key(text: &str) -> bool {
    (1..=4096).contains(&text.len()) && text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) && text.trim() == text
}

fn liveness(root: &mut Section<'_>, file: &str, found: &mut Findings) -> Liveness {
    let mut liveness = Liveness::default();
    let Some(mut section) = root.section("livenessProbeRequirements", found) else { return liveness };
    let mut set = |key, parameter, target: &mut u32| {
        if let Some(count) = section.count(key, parameter, found) {
            *target = count;
        }
    };
    set("periodSeconds", "period_seconds", &mut liveness.period_seconds);
    set("initialDelaySeconds", "initial_delay_seconds", &mut liveness.initial_delay_seconds);
    set("timeoutSeconds", "timeout_seconds", &mut liveness.timeout_seconds);
    set("successThreshold", "success_threshold", &mut liveness.success_threshold);
    set("failureThreshold", "failure_threshold", &mut liveness.failure_threshold);
    section.unknown(file, found);
    liveness
}

/// `^[a-z0-9]([a-z0-9-]{,61}[a-z0-9])?$`, as in v1.
fn is_namespace(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::super::document::parse;
    use super::*;

    fn read(text: &str) -> Result<Deployment, Failure> {
        let file = "deploymentconfig.json".to_owned();
        let root = parse(text, "x").unwrap().as_object().unwrap().clone();
        Deployment::read(&Document { file, root, text: text.to_owned() })
    }

    #[test]
    fn the_defaults_are_v1s() {
        let deployment = read(r#"{"computeType": "AKS"}"#).unwrap();
        assert_eq!(deployment.auth, Auth::Key);
        assert_eq!(
            deployment.scaling,
            Scaling::Auto { min_replicas: 1, max_replicas: 10, target_utilization: 70, refresh_seconds: 1 }
        );
        assert_eq!((deployment.resources.cpu, deployment.resources.memory_gb), (0.1, 0.5));
        assert_eq!((deployment.requests.scoring_timeout_ms, deployment.requests.max_queue_wait_ms), (60_000, 500));
        assert_eq!(deployment.liveness.initial_delay_seconds, 310);
        let aci = read(r#"{"computeType": "aci"}"#).unwrap();
        assert_eq!((aci.auth, aci.scaling), (Auth::None, Scaling::Fixed { replicas: 1 }));
        assert_eq!(read(r#"{"computeType": "local", "port": 6789}"#).unwrap().auth, Auth::None);
    }

    #[test]
    fn each_rule_of_v1_is_kept() {
        for (members, word) in [
            (r#""numReplicas": 0"#, "num_replicas must be greater than zero"),
            (r#""numReplicas": 1.5"#, "num_replicas must be a whole number"),
            (r#""numReplicas": "two""#, "num_replicas must be a number"),
            (r#""autoScaler": {"autoscaleEnabled": true}, "numReplicas": 2"#, "exclude each other"),
            (r#""autoScaler": {"autoscaleEnabled": false}"#, "num_replicas must be given"),
            (r#""autoScaler": {"minReplicas": 2}"#, "autoscale_enabled must be true"),
            (
                r#""autoScaler": {"autoscaleEnabled": true, "minReplicas": 5, "maxReplicas": 2}"#,
                "must not be more than",
            ),
            (r#""autoScaler": {"autoscaleEnabled": true, "targetUtilization": 101}"#, "from 1 to 100"),
            (r#""authEnabled": true, "tokenAuthEnabled": true"#, "exclude each other"),
            (r#""containerResourceRequirements": {"cpu": 0}"#, "cpu_cores must be greater than zero"),
            (r#""containerResourceRequirements": {"cpu": 2, "cpuLimit": 1}"#, "must not be less than cpu_cores"),
            (r#""gpuCores": -1"#, "gpu_cores"),
            (r#""maxQueueWaitMs": 0"#, "max_request_wait_time"),
            (r#""namespace": "No_Space""#, "namespace"),
            (r#""livenessProbeRequirements": {"periodSeconds": 0}"#, "period_seconds"),
            (r#""autoScaler": 3"#, "must be an object"),
            (r#""keys": {"primaryKey": "a\nb"}"#, "primary_key must have"),
            (r#""keys": {"primaryKey": "a", "secondaryKey": " b"}"#, "secondary_key must have"),
            (r#""keys": {"primaryKey": "a", "secondaryKey": "a"}"#, "must differ"),
            (r#""autoScaler": {"autoscaleEnabled": "sometimes"}"#, "must be true or false"),
        ] {
            let failure = read(&format!(r#"{{"computeType": "aks", {members}}}"#)).unwrap_err();
            assert!(failure.cause.contains(word), "{members}: {failure}");
        }
    }

    #[test]
    fn all_violations_are_told_together_with_the_files_own_keys() {
        let failure = read(r#"{"computeType": "aks", "numReplicas": 0, "maxQueueWaitMs": -1}"#).unwrap_err();
        assert_eq!(failure.details.len(), 2);
        let many = read(r#"{"computeType": "aks", "numReplicas": 4000000000}"#).unwrap_err();
        assert!(many.cause.contains("must be 10000 at most"), "{many}");
        assert!(
            failure.details[0].contains("num_replicas") && failure.details[0].contains("(numReplicas)"),
            "{failure:?}"
        );
        assert!(
            failure.details[1].contains("max_request_wait_time") && failure.details[1].contains("(maxQueueWaitMs)"),
            "{failure:?}"
        );
    }

    #[test]
    fn what_is_seen_in_the_wild_is_warned_of_only() {
        let deployment =
            read(r#"{"computeType": "aks", "sslEnabled": true, "ComputeTarget": "x", "numReplicas": null}"#).unwrap();
        assert_eq!(deployment.warnings.len(), 2, "{:?}", deployment.warnings);
        assert_eq!(deployment.scaling, Scaling::default());
    }

    #[test]
    fn tokens_alone_need_no_word_about_keys() {
        assert_eq!(read(r#"{"computeType": "aks", "tokenAuthEnabled": true}"#).unwrap().auth, Auth::Token);
        assert_eq!(read(r#"{"computeType": "aks", "authEnabled": false}"#).unwrap().auth, Auth::None);
    }

    #[test]
    fn keys_are_never_shown() {
        let deployment =
            read(r#"{"computeType": "aks", "keys": {"primaryKey": "secret-one", "secondaryKey": "secret-two"}}"#)
                .unwrap();
        assert_eq!(deployment.keys.as_ref().unwrap().primary, "secret-one");
        assert!(!format!("{deployment:?}").contains("secret-"));
    }

    #[test]
    fn keys_that_open_nothing_are_warned_of_and_dropped() {
        let deployment =
            read(r#"{"computeType": "aks", "authEnabled": false, "keys": {"primaryKey": "secret-one"}}"#).unwrap();
        assert!(deployment.keys.is_none() && deployment.warnings.len() == 1, "{:?}", deployment.warnings);
        assert!(read(r#"{"computeType": "aks", "keys": {"secondaryKey": "b"}}"#).unwrap().keys.is_none());
    }

    #[test]
    fn what_aci_takes_together_is_asked_for_together() {
        let failure = read(r#"{"computeType": "aci", "keyName": "k", "vnetName": "v"}"#).unwrap_err();
        assert_eq!(failure.details.len(), 2, "{failure:?}");
        let aci = read(r#"{"computeType": "aci", "vnetName": "v", "subnetName": "s", "location": "west"}"#).unwrap();
        assert_eq!(aci.warnings.len(), 2, "{:?}", aci.warnings);
    }

    #[test]
    fn a_compute_type_that_is_not_known_is_refused() {
        for (text, word) in [
            ("{}", "missing"),
            (r#"{"computeType": "acs"}"#, "not known"),
            (r#"{"computeType": "aksendpoint"}"#, "not supported yet"),
        ] {
            assert!(read(text).unwrap_err().cause.contains(word), "{text}");
        }
    }
}
