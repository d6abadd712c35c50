//! `inferenceconfig.json`: the entry script, where its files are, and what it runs in.

use std::path::Path;

use proto::{
    failure::{Failure, Stage},
    spec::EnvironmentSpec,
};
use serde_json::Value;

use super::{
    conda::{Conda, inline, variables},
    document::{Document, Findings, Section, read_text},
};

/// What an inference configuration says.
#[derive(Debug, Default)]
pub(crate) struct Inference {
    /// Relative to the source directory, else to the project's folder.
    pub(crate) entry_script: Option<String>,
    /// Relative to the project's folder; without it only the entry script is sent.
    pub(crate) source_directory: Option<String>,
    pub(crate) environment: EnvironmentSpec,
    /// Relative as the entry script is.
    pub(crate) conda_file: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) warnings: Vec<String>,
}

/// The keys that describe an environment in the old way; v1's SDK refuses them beside `environment`.
const LEGACY: [&str; 8] = [
    "runtime",
    "condaFile",
    "extraDockerfileSteps",
    "extraDockerFileSteps",
    "enableGpu",
    "cudaVersion",
    "baseImage",
    "baseImageRegistry",
];

impl Inference {
    /// Reads a configuration that lies in the project's folder.
    pub(crate) fn read(document: &Document, folder: &Path) -> Result<Self, Failure> {
        let file = document.file.as_str();
        let mut found = Findings::default();
        let mut root = Section::root(&document.root);
        let text = |root: &mut Section<'_>, key, found: &mut Findings| root.text(key, found).map(str::to_owned);
        let mut inference = Self {
            entry_script: text(&mut root, "entryScript", &mut found),
            source_directory: text(&mut root, "sourceDirectory", &mut found),
            description: text(&mut root, "description", &mut found),
            ..Self::default()
        };
        root.value("schemaFile");
        let base = inference.source_directory.as_ref().map_or_else(|| folder.to_owned(), |source| folder.join(source));
        match root.section("environment", &mut found) {
            Some(section) => {
                let given: Vec<_> = LEGACY.into_iter().filter(|key| is_given(root.value(key))).collect();
                if !given.is_empty() {
                    found.violations.push(format!("environment excludes {}; keep one of the two", given.join(", ")));
                }
                inference.environment(section, &base, file, &mut found)?;
            }
            None => inference.legacy(&mut root, &base, file, &mut found)?,
        }
        root.unknown(file, &mut found);
        found.check(file)?;
        inference.warnings = found.warnings;
        Ok(inference)
    }

    fn legacy(&mut self, root: &mut Section<'_>, base: &Path, file: &str, found: &mut Findings) -> Result<(), Failure> {
        let runtime = root.text("runtime", found).map(str::to_ascii_lowercase);
        match runtime.as_deref() {
            None | Some("python" | "python-slim") => {}
            Some("spark-py") => found.violations.push("runtime spark-py is not supported; use python".to_owned()),
            Some(other) => found.violations.push(format!("runtime {other:?} is not known; use python")),
        }
        self.conda_file = root.text("condaFile", found).map(str::to_owned);
        let both = root.text("extraDockerfileSteps", found);
        // Both spellings are documented.
        if let Some(steps) = both.or_else(|| root.text("extraDockerFileSteps", found)) {
            self.environment.docker_steps = Some(read_text(&base.join(steps), steps)?);
        }
        self.environment.base_image = root.text("baseImage", found).map(str::to_owned);
        registry(root, file, found);
        self.environment.gpu = root.boolean("enableGpu", found).unwrap_or(false);
        let cuda = root
            .value("cudaVersion")
            .map(|version| version.as_str().map_or_else(|| version.to_string(), str::to_owned));
        if let Some(version) = cuda.filter(|version| !["9.0", "9.1", "10.0", "9", "10"].contains(&version.as_str())) {
            found.violations.push(format!("cudaVersion {version} is not known; there are 9.0, 9.1 and 10.0"));
        }
        Ok(())
    }

    /// The environment object of v1, in camelCase.
    fn environment(
        &mut self,
        mut section: Section<'_>,
        base: &Path,
        file: &str,
        found: &mut Findings,
    ) -> Result<(), Failure> {
        let environment = &mut self.environment;
        environment.name = section.text("name", found).map(str::to_owned);
        section.value("version");
        if let Some(given) = section.value("environmentVariables") {
            environment.variables = variables(given, found);
        }
        let python = section.section("python", found);
        let docker = section.section("docker", found);
        if python.is_none() && docker.is_none() {
            let name = environment.name.as_deref().unwrap_or("?");
            found.violations.push(format!("environment only names the registered environment {name}, and there is no registry of them here; write it out"));
        }
        if let Some(python) = python {
            self.python(python, base, file, found)?;
        }
        if let Some(docker) = docker {
            self.docker(docker, file, found);
        }
        for key in ["spark", "r", "databricks"] {
            let given = section.value(key).cloned().unwrap_or(Value::Null);
            let packages = given.get("packages").or_else(|| given.get("cranPackages")).unwrap_or(&Value::Null);
            if is_given(Some(packages)) || (key == "r" && is_given(Some(&given))) {
                found.violations.push(format!("environment.{key} is not supported; take it out"));
            }
        }
        section.value("inferencingStackVersion");
        section.unknown(file, found);
        Ok(())
    }

    fn python(
        &mut self,
        mut python: Section<'_>,
        base: &Path,
        file: &str,
        found: &mut Findings,
    ) -> Result<(), Failure> {
        self.environment.user_managed = python.boolean("userManagedDependencies", found).unwrap_or(false);
        python.value("interpreterPath");
        if let Some(name) = python.text("baseCondaEnvironment", found) {
            found.warnings.push(format!("{file}: environment.python.baseCondaEnvironment {name:?} has no effect"));
        }
        if let Some(path) = python.text("condaDependenciesFile", found) {
            self.conda(Conda::read_file(&base.join(path), path)?);
        } else if let Some(given) = python.value("condaDependencies") {
            self.conda(inline(given, file)?);
        }
        python.unknown(file, found);
        Ok(())
    }

    /// Takes a conda definition in; what the environment says of a variable counts more.
    pub(crate) fn conda(&mut self, conda: Conda) {
        self.environment.conda = conda.spec;
        for (name, value) in conda.variables {
            self.environment.variables.entry(name).or_insert(value);
        }
    }

    fn docker(&mut self, mut docker: Section<'_>, file: &str, found: &mut Findings) {
        self.environment.base_image = docker.text("baseImage", found).map(str::to_owned);
        self.environment.dockerfile = docker.text("baseDockerfile", found).map(str::to_owned);
        if is_given(docker.value("buildContext")) {
            found.violations.push(
                "environment.docker.buildContext is not supported yet; use baseImage or baseDockerfile".to_owned(),
            );
        }
        if self.environment.base_image.is_some() && self.environment.dockerfile.is_some() {
            found.violations.push("environment.docker.baseImage and baseDockerfile exclude each other".to_owned());
        }
        registry(&mut docker, file, found);
        if let Some(platform) = docker.section("platform", found) {
            let (mut platform, mut wrong) = (platform, Vec::new());
            for (key, only) in [("os", "linux"), ("architecture", "amd64")] {
                let given = platform.text(key, found).unwrap_or(only);
                if !given.eq_ignore_ascii_case(only) {
                    wrong.push(format!("environment.docker.platform.{key} is {given}; only {only} is supported"));
                }
            }
            found.violations.extend(wrong);
        }
        for key in ["enabled", "sharedVolumes", "shmSize", "arguments"] {
            docker.value(key);
        }
        docker.unknown(file, found);
    }
}

/// The registry of a base image: a text, or address, username and password, all three or none. The password goes nowhere.
fn registry(section: &mut Section<'_>, file: &str, found: &mut Findings) {
    let Some(Value::Object(object)) = section.value("baseImageRegistry") else { return };
    let given = ["address", "username", "password"].map(|key| is_given(object.get(key)));
    if given.contains(&true) && given[1] != given[2] {
        found.violations.push("baseImageRegistry needs address, username and password, all three or none".to_owned());
    }
    if given[2] {
        found.warnings.push(format!(
            "{file}: the login of baseImageRegistry is not used, and not sent: this place has no images"
        ));
    }
}

/// Whether a value says anything: not null, not empty, not false.
fn is_given(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::Object(object)) => object.values().any(|value| is_given(Some(value))),
        Some(_) => true,
    }
}

/// The entry script as a failure would name it.
pub(crate) fn missing_script(file: &str) -> Failure {
    Failure::project(
        Stage::Reading,
        format!("{file} names no entryScript"),
        format!("add \"entryScript\": \"score.py\" to {file}"),
    )
}

#[cfg(test)]
mod tests {
    use super::super::document::parse;
    use super::*;

    fn read(text: &str, folder: &Path) -> Result<Inference, Failure> {
        let root = parse(text, "x").unwrap().as_object().unwrap().clone();
        Inference::read(&Document { file: "inferenceconfig.json".into(), root }, folder)
    }

    #[test]
    fn the_old_keys_are_read() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("src")).unwrap();
        std::fs::write(folder.path().join("src/steps"), "RUN true\n").unwrap();
        for spelling in ["extraDockerfileSteps", "extraDockerFileSteps"] {
            let text = format!(
                r#"{{"entryScript": "score.py", "sourceDirectory": "src", "runtime": "Python", "condaFile": "env.yml", "{spelling}": "steps",
                    "baseImage": "python:3.11", "baseImageRegistry": "here.example.com", "enableGpu": true, "schemaFile": "x", "description": "d"}}"#
            );
            let inference = read(&text, folder.path()).unwrap();
            assert_eq!(inference.environment.docker_steps.as_deref(), Some("RUN true\n"), "{spelling}");
            assert_eq!(inference.environment.base_image.as_deref(), Some("python:3.11"));
            assert_eq!((inference.conda_file.as_deref(), inference.environment.gpu), (Some("env.yml"), true));
            assert!(inference.warnings.is_empty(), "{:?}", inference.warnings);
        }
    }

    #[test]
    fn the_environment_object_is_read() {
        let text = r#"{"entryScript": "score.py", "sourceDirectory": ".", "environment": {"name": "e", "version": "1",
            "environmentVariables": {"A": "B"}, "python": {"userManagedDependencies": false, "interpreterPath": "python",
            "condaDependencies": {"dependencies": ["python=3.11", {"pip": ["pillow"]}], "variables": {"A": "C", "D": 1}}},
            "docker": {"enabled": false, "baseImage": "python:3.11", "baseDockerfile": null, "arguments": [], "shmSize": null,
            "baseImageRegistry": {"address": null, "username": null, "password": null}}, "inferencingStackVersion": null}}"#;
        let inference = read(text, Path::new("/")).unwrap();
        let environment = &inference.environment;
        assert_eq!(environment.conda.pip, ["pillow"]);
        assert_eq!((environment.variables["A"].as_str(), environment.variables["D"].as_str()), ("B", "1"));
        assert!(inference.warnings.is_empty(), "{:?}", inference.warnings);
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (members, word) in [
            (r#""runtime": "spark-py""#, "spark-py"),
            (r#""runtime": "java""#, "java"),
            (r#""cudaVersion": "8.0""#, "cudaVersion 8.0"),
            (r#""environment": {"name": "e", "version": "1"}"#, "registered environment e"),
            (r#""environment": {"python": {}}, "condaFile": "x.yml", "enableGpu": true"#, "condaFile, enableGpu"),
            (r#""environment": {"docker": {"baseImage": "a", "baseDockerfile": "FROM b"}}"#, "exclude each other"),
            (r#""environment": {"docker": {"buildContext": {"location": "x"}}}"#, "buildContext"),
            (r#""environment": {"python": {}, "r": {"rVersion": "3"}}"#, "environment.r"),
            (r#""environment": {"python": {}, "spark": {"packages": [{"group": "g"}]}}"#, "environment.spark"),
            (r#""baseImageRegistry": {"address": "a", "username": "u"}"#, "all three or none"),
            (r#""extraDockerfileSteps": "no-such-file""#, "no-such-file"),
        ] {
            let failure =
                read(&format!(r#"{{"entryScript": "score.py", {members}}}"#), Path::new("/nowhere")).unwrap_err();
            assert!(failure.cause.contains(word), "{members}: {failure}");
        }
    }

    #[test]
    fn the_password_of_a_registry_goes_nowhere() {
        let text = r#"{"entryScript": "s.py", "baseImageRegistry": {"address": "a", "username": "u", "password": "hidden-word"}}"#;
        let inference = read(text, Path::new("/")).unwrap();
        assert!(!format!("{inference:?}").contains("hidden-word"));
        assert_eq!(inference.warnings.len(), 1);
    }
}
