//! Docker steps and Dockerfiles as what an engine is given: pinned to digests, with caches and certificates mounted. Pure.
//!
//! It knows instructions. It does not know the engine.

use oci_distribution::Reference;
use sha2::{Digest as _, Sha256};

use crate::{
    docker,
    environment::{Definition, Problem},
};

/// Where the certificates of the build are while an instruction runs; they stay in no image.
const CERTIFICATES: &str = "/run/kaai/certificates.pem";
/// Their file in what is sent to the engine.
pub(crate) const CERTIFICATES_FILE: &str = "certificates.pem";
/// Variables by which programs are told of certificates: uv and OpenSSL, pip, requests, curl, Node, git.
const CERTIFICATE_VARIABLES: [&str; 6] =
    ["SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO"];
/// What packages are downloaded to, kept between builds and out of the image. Nothing that a step may want to keep lies there.
const CACHES: [&str; 2] = ["/root/.cache/pip", "/root/.cache/uv"];

/// The names of the images that a Dockerfile stands on and that can be resolved now, each once.
pub(crate) fn images(dockerfile: &[String]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    each_from(dockerfile, |name| {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
        None
    });
    names
}

/// The same Dockerfile with what `write` makes of the images in place of names; `resolved` has the pairs.
pub(crate) fn pinned(
    dockerfile: &[String],
    resolved: &[(String, Reference)],
    write: impl Fn(&Reference) -> String,
) -> Vec<String> {
    each_from(dockerfile, |name| resolved.iter().find(|(known, _)| known == name).map(|(_, image)| write(image)))
}

/// Goes through the images of a Dockerfile, and puts in what is given for one. Stages, `scratch` and variables are no images.
fn each_from(dockerfile: &[String], mut each: impl FnMut(&str) -> Option<String>) -> Vec<String> {
    let mut stages: Vec<String> = Vec::new();
    let line = |line: &String| {
        let Some(rest) = line.strip_prefix("FROM ") else { return line.clone() };
        let mut words: Vec<String> = rest.split_whitespace().map(str::to_owned).collect();
        let Some(at) = words.iter().position(|word| !word.starts_with("--")) else { return line.clone() };
        let own = stages.iter().any(|stage| stage.eq_ignore_ascii_case(&words[at]));
        if !own && words[at] != "scratch" && !words[at].contains('$') {
            words[at] = each(&docker::image(&words[at])).unwrap_or_else(|| words[at].clone());
        }
        if let [.., word, stage] = words.as_slice()
            && word.eq_ignore_ascii_case("as")
        {
            stages.push(stage.clone());
        }
        format!("FROM {}", words.join(" "))
    };
    dockerfile.iter().map(line).collect()
}

/// What an engine is given: the user's Dockerfile, or his steps on a base image.
pub(crate) fn text(base: &str, definition: &Definition, certificates: bool) -> String {
    let own = &definition.dockerfile;
    let lines: Vec<_> = if own.is_empty() { definition.docker_steps.clone() } else { own.clone() };
    let (directives, lines): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| line.starts_with("# "));
    let mut text: Vec<String> = directives.into_iter().filter(|line| line.starts_with("# escape=")).collect();
    if own.is_empty() {
        text.push(format!("FROM {base}"));
        text.extend(arguments(certificates));
    }
    let mounts = mounts(certificates);
    for line in lines {
        let stage = line.starts_with("FROM ");
        text.push(match line.strip_prefix("RUN ") {
            Some(command) => format!("RUN {mounts} {command}"),
            None => line,
        });
        if stage {
            text.extend(arguments(certificates));
        }
    }
    text.join("\n") + "\n"
}

/// Names a result: equal text and equal certificates make an equal one, as far as steps do the same twice.
pub(crate) fn name(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Arguments are variables while instructions run, and are in no image.
fn arguments(certificates: bool) -> impl Iterator<Item = String> {
    let variables = if certificates { &CERTIFICATE_VARIABLES[..] } else { &[] };
    variables.iter().map(|name| format!("ARG {name}={CERTIFICATES}"))
}

fn mounts(certificates: bool) -> String {
    let caches = CACHES.iter().map(|cache| format!("--mount=type=cache,target={cache}"));
    let file = format!("--mount=type=bind,source={CERTIFICATES_FILE},target={CERTIFICATES}");
    caches.chain(certificates.then_some(file)).collect::<Vec<_>>().join(" ")
}

/// What is refused whatever the engine: a frontend is a program that the engine would fetch and run in place of its own.
pub(crate) fn problem(definition: &Definition) -> Option<Problem> {
    let lines = definition.docker_steps.iter().chain(&definition.dockerfile);
    let syntax = lines.into_iter().any(|line| line.starts_with("# syntax="));
    if syntax {
        return Some(Problem::new(
            "the Dockerfile names a frontend of its own (`# syntax=`), which is not run",
            "leave that line out; `RUN --mount` works without it",
        ));
    }
    let stage = definition.docker_steps.iter().any(|line| line.starts_with("FROM "));
    stage.then(|| {
        Problem::new(
            "the docker steps hold a FROM",
            "name the image as baseImage, or give a whole Dockerfile (baseDockerfile)",
        )
    })
}

#[cfg(test)]
mod tests {
    use proto::spec::EnvironmentSpec;

    use super::*;

    fn definition(steps: &str, dockerfile: &str) -> Definition {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let spec =
            EnvironmentSpec { docker_steps: text(steps), dockerfile: text(dockerfile), ..EnvironmentSpec::default() };
        Definition::read(&spec).unwrap()
    }

    #[test]
    fn steps_run_on_the_base_image_with_caches_and_certificates() {
        let given = text("r/python@sha256:aa", &definition("run pip install x\nENV A=1", ""), true);
        let lines: Vec<_> = given.lines().collect();
        assert_eq!((lines[0], lines[1]), ("FROM r/python@sha256:aa", "ARG SSL_CERT_FILE=/run/kaai/certificates.pem"));
        let run = lines.iter().find(|line| line.starts_with("RUN ")).unwrap();
        assert!(run.contains("target=/root/.cache/pip ") && run.ends_with("certificates.pem pip install x"), "{run}");
        assert_eq!(lines.last(), Some(&"ENV A=1"));
        assert!(!text("b", &definition("RUN x", ""), false).contains("certificates"));
    }

    #[test]
    fn a_dockerfile_is_pinned_to_what_its_names_stand_for() {
        let dockerfile = definition(
            "",
            "# escape=`\nFROM python:3.11 AS Build\nRUN x\nFROM --platform=$P build\nFROM $BASE\nFROM scratch\nFROM python:3.11",
        );
        assert_eq!(images(&dockerfile.dockerfile), ["docker.io/library/python:3.11"]);
        let digest = format!("docker.io/library/python@sha256:{}", "a".repeat(64));
        let resolved = [("docker.io/library/python:3.11".to_owned(), digest.parse().unwrap())];
        let lines = pinned(&dockerfile.dockerfile, &resolved, Reference::whole);
        let froms: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix("FROM ")).collect();
        assert_eq!(froms, [&format!("{digest} AS Build"), "--platform=$P build", "$BASE", "scratch", &digest]);
        assert!(
            text("", &Definition { dockerfile: lines, ..dockerfile }, false).starts_with("# escape=`\nFROM docker.io")
        );
    }

    #[test]
    fn frontends_and_second_bases_are_refused() {
        assert!(problem(&definition("", "# syntax=docker/dockerfile:1\nFROM x")).unwrap().cause.contains("frontend"));
        assert!(problem(&definition("RUN x\nFROM y", "")).unwrap().remedy.contains("baseImage"));
        assert!(problem(&definition("RUN x", "FROM y")).is_none());
    }
}
