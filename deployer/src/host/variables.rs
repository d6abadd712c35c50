//! The environment variables of a replica: v1's contract, the user's own, and nothing else of this machine.
//!
//! Pure: paths and names in, variables out. Source of the contract: Azure ML v1's inference images.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use proto::{
    id::{ReplicaId, ServiceName, Workspace},
    spec::{ModelRef, ServiceSpec},
};

use super::engine::{Environment, View};

/// Marks every process of a replica, so that one that has left its process group is still found.
pub(crate) const MARK: &str = "KAAI_REPLICA";
/// The folder of models, in the app root.
pub(super) const MODELS: &str = "azureml-models";
/// How long a worker may go without a sign of life, unless requests may take longer (v1's `WORKER_TIMEOUT`).
const WORKER_TIMEOUT: u64 = 300;
/// How much longer than a request a worker may go without a sign of life, in seconds.
const BEYOND_REQUEST: u64 = 30;

/// Where a replica's things are.
pub(super) struct Places<'a> {
    pub(super) environment: &'a Environment,
    pub(super) view: &'a View,
}

/// Whose replica it is.
pub(super) struct Identity<'a> {
    pub(super) replica: &'a ReplicaId,
    pub(super) workspace: &'a Workspace,
    pub(super) service: &'a ServiceName,
    pub(super) generation: u64,
    /// See [`MARK`].
    pub(super) mark: &'a str,
}

/// What is written into the environment of every process of a replica; other deployers of this machine write something else.
pub(crate) fn mark(place: &str, replica: &ReplicaId) -> String {
    format!("{place}/{replica}")
}

/// All variables of a replica. `given` are the operator's, for every replica of this place.
///
/// The user's variables go before the operator's, and what the contract promises goes before both.
pub(super) fn variables(
    places: &Places<'_>,
    identity: &Identity<'_>,
    spec: &ServiceSpec,
    given: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let Places { environment, view } = places;
    let mut all = BTreeMap::from([
        ("PATH".to_owned(), environment.path.clone()),
        ("LANG".to_owned(), "C.UTF-8".to_owned()),
        ("WORKER_TIMEOUT".to_owned(), worker_timeout(spec).to_string()),
        ("AZUREML_LOG_LEVEL".to_owned(), "INFO".to_owned()),
    ]);
    all.extend(given.clone());
    all.extend(spec.environment.variables.clone());
    let telemetry = spec.request_telemetry && all.contains_key("AML_APP_INSIGHTS_KEY");
    let path = |path: &Path| path.display().to_string();
    all.extend(
        [
            ("HOME", path(&view.own.join("home"))),
            ("TMPDIR", path(&view.temporary)),
            ("XDG_RUNTIME_DIR", path(&view.own.join("run"))),
            ("HOSTNAME", identity.replica.to_string()),
            ("PYTHONUNBUFFERED", "1".to_owned()),
            ("PYTHONNOUSERSITE", "1".to_owned()),
            ("AML_APP_ROOT", path(&view.app_root)),
            ("AZUREML_ENTRY_SCRIPT", path(&entry_script(spec))),
            ("AZUREML_MODEL_DIR", path(&view.app_root.join(model_folder(&spec.models)))),
            ("SERVICE_NAME", identity.service.to_string()),
            ("WORKSPACE_NAME", identity.workspace.to_string()),
            ("SERVICE_PATH_PREFIX", format!("api/v1/service/{}", identity.service)),
            ("SERVICE_VERSION", identity.generation.to_string()),
            ("SCORING_TIMEOUT_MS", spec.requests.scoring_timeout_ms.to_string()),
            ("WORKER_COUNT", spec.requests.max_concurrent_per_replica.to_string()),
            ("AML_APP_INSIGHTS_ENABLED", telemetry.to_string()),
            // The collector reads the first, the server the second.
            ("AML_MODEL_DC_STORAGE_ENABLED", spec.collect_model_data.to_string()),
            ("AML_MDC_STORAGE_ENABLED", spec.collect_model_data.to_string()),
            (MARK, identity.mark.to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    all.extend(environment.folder.as_deref().map(|folder| ("VIRTUAL_ENV".to_owned(), path(folder))));
    all.extend(spec.source_directory.clone().map(|folder| ("AZUREML_SOURCE_DIRECTORY".to_owned(), folder)));
    all
}

/// How many seconds a worker may go without a sign of life.
pub(super) fn worker_timeout(spec: &ServiceSpec) -> u64 {
    let given = spec.environment.variables.get("WORKER_TIMEOUT").and_then(|text| text.parse().ok());
    given.unwrap_or(WORKER_TIMEOUT).max(spec.requests.scoring_timeout_ms.div_ceil(1000) + BEYOND_REQUEST)
}

/// The entry script relative to the app root.
pub(super) fn entry_script(spec: &ServiceSpec) -> PathBuf {
    match &spec.source_directory {
        Some(folder) => Path::new(folder).join(&spec.entry_script),
        None => PathBuf::from(&spec.entry_script),
    }
}

/// Where a model's files are, relative to the app root.
pub(crate) fn model_path(model: &ModelRef) -> PathBuf {
    Path::new(MODELS).join(model.name.as_str()).join(model.version.to_string())
}

/// What `AZUREML_MODEL_DIR` names, relative to the app root: the one model's folder, or the folder of all.
fn model_folder(models: &[ModelRef]) -> PathBuf {
    match models {
        [one] => model_path(one),
        _ => PathBuf::from(MODELS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(more: serde_json::Value) -> ServiceSpec {
        let mut all = serde_json::json!({ "entryScript": "score.py" });
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    }

    fn model(name: &str, version: u32) -> serde_json::Value {
        serde_json::json!({ "name": name, "version": version, "digest": format!("sha256:{}", "0".repeat(64)) })
    }

    fn all(spec: &ServiceSpec) -> BTreeMap<String, String> {
        let environment = Environment {
            interpreter: "/envs/e/bin/python".into(),
            path: "/envs/e/bin:/usr/bin".to_owned(),
            folder: Some("/envs/e".into()),
        };
        let view =
            View { app_root: "/r/1/azureml-app".into(), own: "/s/1".into(), temporary: "/s/1/tmp".into(), mode: None };
        let places = Places { environment: &environment, view: &view };
        let (replica, workspace, service) =
            ("ridge-7-abc".parse().unwrap(), Workspace::default(), "ridge".parse().unwrap());
        let identity =
            Identity { replica: &replica, workspace: &workspace, service: &service, generation: 7, mark: "p/r" };
        let given = BTreeMap::from([("HTTPS_PROXY".to_owned(), "http://proxy".to_owned())]);
        variables(&places, &identity, spec, &given)
    }

    #[test]
    fn a_script_alone_is_named_by_its_base_name() {
        let all = all(&spec(serde_json::json!({})));
        assert_eq!(all["AZUREML_ENTRY_SCRIPT"], "score.py");
        assert!(!all.contains_key("AZUREML_SOURCE_DIRECTORY"));
        assert_eq!(all["AML_APP_ROOT"], "/r/1/azureml-app");
        assert_eq!(all["SERVICE_PATH_PREFIX"], "api/v1/service/ridge");
        assert_eq!(all["PATH"], "/envs/e/bin:/usr/bin");
        assert_eq!(all["HTTPS_PROXY"], "http://proxy");
    }

    #[test]
    fn a_source_directory_comes_before_the_script() {
        let all = all(&spec(serde_json::json!({ "sourceDirectory": "churn", "entryScript": "src/score.py" })));
        assert_eq!(all["AZUREML_ENTRY_SCRIPT"], "churn/src/score.py");
        assert_eq!(all["AZUREML_SOURCE_DIRECTORY"], "churn");
    }

    #[test]
    fn one_model_has_the_model_folder_to_itself_and_several_share_it() {
        let one = all(&spec(serde_json::json!({ "models": [model("scale", 2)] })));
        assert_eq!(one["AZUREML_MODEL_DIR"], "/r/1/azureml-app/azureml-models/scale/2");
        let several = all(&spec(serde_json::json!({ "models": [model("scale", 2), model("offset", 1)] })));
        assert_eq!(several["AZUREML_MODEL_DIR"], "/r/1/azureml-app/azureml-models");
        assert_eq!(all(&spec(serde_json::json!({})))["AZUREML_MODEL_DIR"], "/r/1/azureml-app/azureml-models");
    }

    #[test]
    fn the_users_variables_count_except_against_the_contract() {
        let variables = serde_json::json!({ "LANG": "nl_BE.UTF-8", "AML_APP_ROOT": "/evil", "WORKER_TIMEOUT": "600" });
        let all = all(&spec(serde_json::json!({ "environment": { "variables": variables } })));
        assert_eq!(all["LANG"], "nl_BE.UTF-8");
        assert_eq!(all["AML_APP_ROOT"], "/r/1/azureml-app");
        assert_eq!(all["WORKER_TIMEOUT"], "600");
    }

    #[test]
    fn a_worker_has_longer_than_a_request() {
        let requests =
            serde_json::json!({ "maxConcurrentPerReplica": 1, "maxQueueWaitMs": 500, "scoringTimeoutMs": 900_000 });
        assert_eq!(worker_timeout(&spec(serde_json::json!({ "requests": requests }))), 930);
        assert_eq!(worker_timeout(&spec(serde_json::json!({}))), 300);
    }

    #[test]
    fn nothing_of_this_machine_leaks() {
        let all = all(&spec(serde_json::json!({})));
        assert!(!all.keys().any(|name| name.starts_with("CARGO") || name == "USER" || name == "NATS_URL"));
        assert_eq!(all["HOME"], "/s/1/home");
    }
}
