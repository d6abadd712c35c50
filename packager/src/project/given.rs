//! A specification that came with its request: whoever sent it may have written it by hand, so it is checked as a file would be.

use std::path::{Component, Path};

use proto::{
    failure::{Failure, Stage},
    spec::ServiceSpec,
};

use super::{
    credential::{self, Origin},
    document::Findings,
    script,
};

/// Checks the bounds that `proto::spec` names, that its paths stay where they belong, and that it holds no credential.
///
/// # Errors
///
/// Fails with all violations together.
pub(crate) fn check(spec: &ServiceSpec) -> Result<(), Failure> {
    let mut found = Findings::default();
    let mut must = |holds: bool, rule: &str| {
        if !holds {
            found.violations.push(rule.to_owned());
        }
    };
    must(is_inside(&spec.entry_script), "entryScript must be a path within the archive");
    let named = spec.source_directory.as_deref().is_none_or(|name| is_inside(name) && !name.contains('/'));
    must(named, "sourceDirectory must be the name of a folder");
    found.violations.extend(spec.violations());
    found.check("the specification")?;
    credential::check(&spec.environment, &Origin::default())?;
    script::check_name(&spec.entry_script)?;
    check_size(spec)
}

/// The longest specification, as JSON: events carry it, and the bus takes messages of 1 MiB.
const MAX_BYTES: usize = 512 * 1024;

/// Checks that an event can carry it.
///
/// # Errors
///
/// Fails when it is longer than half of what the bus takes.
pub(crate) fn check_size(spec: &ServiceSpec) -> Result<(), Failure> {
    let length = serde_json::to_vec(spec).map_or(0, |json| json.len());
    if length <= MAX_BYTES {
        return Ok(());
    }
    let cause = format!("the specification has {length} bytes, more than the {MAX_BYTES} that an event carries");
    Err(Failure::project(Stage::Reading, cause, "shorten the docker steps, the package list or the variables"))
}

fn is_inside(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(members: &str) -> Result<(), Failure> {
        let json = format!(r#"{{"entryScript": "score.py"{members}}}"#);
        check(&serde_json::from_str::<ServiceSpec>(&json).unwrap())
    }

    #[test]
    fn the_defaults_hold() {
        read("").unwrap();
        read(r#", "sourceDirectory": "ridge", "scaling": {"kind": "fixed", "replicas": 2}"#).unwrap();
    }

    #[test]
    fn a_credential_is_refused_and_not_repeated() {
        let environment = r#", "environment": {"conda": {"pip": ["numpy", "x @ https://u:hunter2@h/x.whl"]}}"#;
        let failure = read(environment).unwrap_err();
        assert!(failure.cause.starts_with("entry 2 of the list pip of the specification"), "{failure}");
        assert!(!format!("{failure:?}").contains("hunter2"), "{failure:?}");
    }

    #[test]
    fn what_no_file_could_say_is_refused() {
        for (members, word) in [
            (r#", "sourceDirectory": "../x""#, "sourceDirectory"),
            (r#", "sourceDirectory": "a/b""#, "sourceDirectory"),
            (r#", "sourceDirectory": """#, "sourceDirectory"),
            (r#", "scaling": {"kind": "fixed", "replicas": 0}"#, "replicas"),
            (
                r#", "scaling": {"kind": "auto", "minReplicas": 2, "maxReplicas": 1, "targetUtilization": 0, "refreshSeconds": 1}"#,
                "2 mistakes",
            ),
        ] {
            assert!(read(members).unwrap_err().cause.contains(word), "{members}");
        }
        for script in ["/etc/x.py", "../x.py", "a/../../x.py"] {
            let spec = serde_json::from_str(&format!(r#"{{"entryScript": "{script}"}}"#)).unwrap();
            assert!(check(&spec).unwrap_err().cause.contains("entryScript"), "{script}");
        }
    }
}
