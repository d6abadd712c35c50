//! The names of subjects, streams, consumers and buckets, as functions: no other code spells one.

use crate::{
    event::{Event, catalogue},
    id::{ModelName, ServiceName, Workspace},
};

/// What every subject begins with: the version is in it because consumers filter on subjects.
pub const PREFIX: &str = "kaai.v1";

/// The stream of pipeline events: work to be done and the history of it.
pub const EVENTS: &str = "KAAI_EVENTS";

/// The stream of messages that can never succeed, each with its reason.
pub const DEAD_LETTERS: &str = "KAAI_DEAD_LETTERS";

/// Desired and observed state of services, by [`service_key`]; owned by the deployer.
pub const SERVICES: &str = "kaai_services";

/// What routers need, by [`service_key`]; owned by the deployer.
pub const ROUTES: &str = "kaai_routes";

/// Registered models, by [`model_key`]; owned by the packager.
pub const MODELS: &str = "kaai_models";

/// Who counts on an archive, and which are about to be deleted, by the digits of their digests; owned by the packager.
pub const ARCHIVES: &str = "kaai_archives";

/// What is known of environments, by hash; owned by the builder.
pub const ENVIRONMENTS: &str = "kaai_environments";

/// Who leads, by component; entries expire.
pub const LEASES: &str = "kaai_leases";

/// Public facts about the installation, the deployer's public key for example.
pub const FACTS: &str = "kaai_facts";

/// The entry of [`FACTS`] that holds the public key which keys of services are encrypted to.
pub const DEPLOYER_KEY: &str = "deployer.public-key";

/// The entry of [`FACTS`] that holds the public key which logins at registries are encrypted to.
pub const BUILDER_KEY: &str = "builder.public-key";

/// Pieces of archives on their way to the packager, in the bus's object store.
pub const UPLOADS: &str = "kaai_uploads";

/// The subject of an event about a service.
pub fn event<E: Event>(workspace: &Workspace, service: &ServiceName) -> String {
    format!("{PREFIX}.{workspace}.{}.{service}", E::TYPE)
}

/// The subjects of an event about any service of any workspace.
pub fn any<E: Event>() -> String {
    format!("{PREFIX}.*.{}.*", E::TYPE)
}

/// The subjects of all events about any service of one workspace.
pub fn all_of(workspace: &Workspace) -> String {
    format!("{PREFIX}.{workspace}.>")
}

/// The subjects that the stream of pipeline events keeps.
pub fn stored() -> Vec<String> {
    catalogue().iter().filter(|entry| entry.stored).map(|entry| format!("{PREFIX}.*.{}.*", entry.event_type)).collect()
}

/// The subject of a dead letter; `subject` is where the message came from.
pub fn dead_letter(component: &str, subject: &str) -> String {
    format!("kaai.dead-letter.v1.{component}.{subject}")
}

/// The subjects of all dead letters.
pub const ANY_DEAD_LETTER: &str = "kaai.dead-letter.v1.>";

/// The subject of a query: a question with one answer, at most once.
pub fn query(workspace: &str, name: &str) -> String {
    format!("{PREFIX}.{workspace}.query.{name}")
}

/// Reads workspace, type and service from the subject of an event; `None` for any other subject.
pub fn parse(subject: &str) -> Option<(Workspace, &str, ServiceName)> {
    let rest = subject.strip_prefix(PREFIX)?.strip_prefix('.')?;
    let (workspace, rest) = rest.split_once('.')?;
    let (event_type, service) = rest.rsplit_once('.')?;
    Some((workspace.parse().ok()?, event_type, service.parse().ok()?))
}

/// The entry of a service in a bucket.
pub fn service_key(workspace: &Workspace, service: &ServiceName) -> String {
    format!("{workspace}.{service}")
}

/// Reads workspace and service from [`service_key`].
pub fn parse_service_key(key: &str) -> Option<(Workspace, ServiceName)> {
    let (workspace, service) = key.split_once('.')?;
    Some((workspace.parse().ok()?, service.parse().ok()?))
}

/// The entry of a model in a bucket. Dots would be separators there, so they are written `=2E`.
pub fn model_key(workspace: &Workspace, model: &ModelName) -> String {
    format!("{workspace}.{}", model.as_str().replace('.', "=2E"))
}

/// Reads the model's name from [`model_key`].
pub fn parse_model_key(key: &str) -> Option<(Workspace, ModelName)> {
    let (workspace, model) = key.split_once('.')?;
    Some((workspace.parse().ok()?, model.replace("=2E", ".").parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packager::DeploymentRequested;

    #[test]
    fn a_subject_is_read_as_it_is_written() {
        let (workspace, service) = (Workspace::default(), "ridge".parse::<ServiceName>().unwrap());
        let subject = event::<DeploymentRequested>(&workspace, &service);
        assert_eq!(subject, "kaai.v1.default.deployment.requested.ridge");
        assert_eq!(parse(&subject), Some((workspace, "deployment.requested", service)));
    }

    #[test]
    fn other_subjects_are_no_events() {
        for other in
            ["", "kaai.v1", "kaai.v2.default.deployment.requested.ridge", "kaai.v1.default.deployment.requested.No"]
        {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn the_stream_keeps_no_event_that_is_delivered_at_most_once() {
        let stored = stored();
        assert!(stored.contains(&"kaai.v1.*.deployment.requested.*".to_owned()));
        assert!(!stored.iter().any(|subject| subject.contains("utilization") || subject.contains("progressed")));
    }

    #[test]
    fn a_model_key_keeps_its_dots() {
        let (workspace, model) = (Workspace::default(), "a..b.".parse::<ModelName>().unwrap());
        let key = model_key(&workspace, &model);
        assert_eq!(key, "default.a=2E=2Eb=2E");
        assert_eq!(parse_model_key(&key), Some((workspace, model)));
    }
}
