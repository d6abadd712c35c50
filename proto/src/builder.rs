//! What the builder says: which environment a project runs in, and where that is.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Extra,
    event::Event,
    failure::Failure,
    id::{EnvironmentHash, Generation, InstanceId},
    packager::{Archive, Sealed},
    spec::ServiceSpec,
};

/// The environment of a generation is there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageResolved {
    /// Which change of the service this is.
    pub generation: Generation,
    /// The project's files.
    pub archive: Archive,
    /// What was asked for.
    pub spec: ServiceSpec,
    /// The service's keys, encrypted to the deployer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_keys: Option<Sealed>,
    /// What the user should know though it stops nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The identity of the environment.
    pub environment: EnvironmentHash,
    /// The built environment.
    pub image: Image,
    /// How it was had.
    pub lookup: Lookup,
    /// The registries that were asked for it by this request, in order; none in a place without images, or where the builder remembered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asked: Vec<RegistryAsked>,
    /// The scan that the environment has passed; none where no scanner is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scan: Option<Scan>,
    /// How long that took, in milliseconds.
    #[serde(default)]
    pub took_ms: u64,
    /// What a newer version says and this one does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Event for ImageResolved {
    const TYPE: &'static str = "image.resolved";
}

/// A built environment, in the form that its place can run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Image {
    /// A virtual environment on this machine.
    #[serde(rename_all = "camelCase")]
    VirtualEnvironment {
        /// Its folder, as an absolute path; the interpreter is `bin/python` in it.
        path: String,
        /// The version of its Python, `3.11.7` for example.
        python: String,
    },
    /// An image in a registry.
    #[serde(rename_all = "camelCase")]
    Container {
        /// Registry, repository and digest: `registry.example.com/kaai/environments@sha256:…`.
        reference: String,
        /// The interpreter in it that has the environment's packages: an absolute path, or a name on the image's PATH.
        interpreter: String,
        /// The version of that Python, `3.11.7` for example; none where an image brought its own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        python: Option<String>,
    },
}

/// A scan that an environment has passed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Scan {
    /// The command that looked, as it is configured: where it is another one, the environment is scanned again.
    pub command: String,
    /// What it found, in a few words: `2 medium, 5 low` for example.
    pub found: String,
    /// When it looked (RFC 3339, UTC).
    pub scanned: String,
}

impl Scan {
    /// The scanner's name: that of its program, without the folder.
    pub fn scanner(&self) -> &str {
        let program = self.command.split_whitespace().next().unwrap_or_default();
        program.rsplit('/').next().unwrap_or(program)
    }
}

/// A registry that was asked for an image, and what it said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RegistryAsked {
    /// Which one.
    pub registry: RegistryRole,
    /// Host and port of it, with the repository behind.
    pub repository: String,
    /// What it said.
    pub outcome: RegistryOutcome,
    /// How long the answer took, in milliseconds.
    pub took_ms: u64,
}

/// What a registry is to the builder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RegistryRole {
    /// The one that images are pushed to and run from.
    Workspace,
    /// One with images that others have built; only read.
    Global,
}

/// What a registry said of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RegistryOutcome {
    /// It has it.
    Found,
    /// It does not have it.
    Missing,
    /// It could not be asked, and why; the lookup went on without it.
    Unavailable(String),
}

/// How an environment was had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Lookup {
    /// It was there.
    Cached,
    /// The global registry had it; it was copied from there.
    Copied,
    /// It was built for this request, or for another that asked at the same time.
    Built,
}

/// What is known of an environment: one entry of the environments bucket, under its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum EnvironmentRecord {
    /// One builder is at it.
    #[serde(rename_all = "camelCase")]
    Building {
        /// Who.
        builder: InstanceId,
        /// Until when the others leave it alone (Unix milliseconds); the builder pushes it on while it works.
        lease_until_ms: u64,
    },
    /// It was built.
    #[serde(rename_all = "camelCase")]
    Ready {
        /// Where it is.
        image: Image,
        /// When it was built (RFC 3339, UTC).
        built: String,
        /// How long that took, in milliseconds.
        took_ms: u64,
        /// The scan that it has passed, if there was one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scan: Option<Scan>,
    },
    /// It could not be built; the same request is answered from here until it expires.
    #[serde(rename_all = "camelCase")]
    Failed {
        /// Why.
        failure: Failure,
        /// Until when this is remembered (Unix milliseconds).
        expires_ms: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_an_image_are_read_as_they_are_written() {
        let container = r#"{"container":{"reference":"r:5000/kaai/environments@sha256:00","interpreter":"/opt/kaai/environment/bin/python"}}"#;
        let machine = r#"{"virtualEnvironment":{"path":"/e/1","python":"3.11.7"}}"#;
        for text in [container, machine] {
            let image: Image = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&image).unwrap(), text);
        }
    }

    #[test]
    fn a_scanner_is_called_by_the_name_of_its_program() {
        let scan = |command: &str| Scan { command: command.to_owned(), found: String::new(), scanned: String::new() };
        assert_eq!(scan("/opt/bin/trivy image {image}").scanner(), "trivy");
        assert_eq!(scan("grype").scanner(), "grype");
    }

    #[test]
    fn an_event_without_registries_is_written_as_before() {
        let asked = RegistryAsked {
            registry: RegistryRole::Global,
            repository: "r:5000/kaai/environments".to_owned(),
            outcome: RegistryOutcome::Unavailable("no route".to_owned()),
            took_ms: 3,
        };
        let text = serde_json::to_string(&asked).unwrap();
        assert!(text.contains(r#""outcome":{"unavailable":"no route"}"#), "{text}");
        let frozen = include_str!("../examples/image.resolved.v1.json");
        let event: ImageResolved = serde_json::from_str(frozen).unwrap();
        assert!(event.asked.is_empty() && !serde_json::to_string(&event).unwrap().contains("asked"));
    }
}
