//! `inferenceconfig.json`: the entry script, where its files are, and what it runs in.

use std::path::{Path, PathBuf};

use proto::{
    failure::{Failure, Stage},
    packager::RegistryLogin,
    spec::EnvironmentSpec,
};
use serde_json::Value;

use super::{
    conda::{Conda, inline, variables},
    credential::Origin,
    document::{Document, Findings, Section},
    place::Place,
};

/// What an inference configuration says.
#[derive(Debug, Default)]
pub(crate) struct Inference {
    /// Relative to the source directory, else to the project's folder.
    pub(crate) entry_script: Option<String>,
    /// Relative to the project's folder; without it only the entry script is sent.
    pub(crate) source_directory: Option<String>,
    pub(crate) environment: EnvironmentSpec,
    /// Where the environment's texts stand.
    pub(crate) origin: Origin,
    /// Relative as the entry script is.
    pub(crate) conda_file: Option<String>,
    pub(crate) description: Option<String>,
    /// The login at the base image's registry, in the clear.
    pub(crate) login: Option<RegistryLogin>,
    pub(crate) warnings: Vec<String>,
}

/// The keys that describe an environment in the old way; v1's SDK refuses them beside `environment`.
const LEGACY: [&str; 7] =
    ["runtime", "condaFile", "extraDockerfileSteps", "extraDockerFileSteps", "enableGpu", "cudaVersion", "baseImage"];

/// The CUDA versions that v1 knew; JSON may have them as numbers.
const CUDA: [&str; 5] = ["9.0", "9.1", "10.0", "9", "10"];

impl Inference {
    /// Reads a configuration that lies in the project's folder.
    pub(crate) fn read(document: &Document, place: &Place) -> Result<Self, Failure> {
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
        let base = source_directory(place, inference.source_directory.as_deref(), file)?;
        let mut reader = Reader { place, base: &base, file, found };
        match root.section("environment", &mut reader.found) {
            Some(section) => {
                let given: Vec<_> = LEGACY.into_iter().filter(|key| is_given(root.value(key))).collect();
                if !given.is_empty() {
                    let cause = format!("environment excludes {}; keep one of the two", given.join(", "));
                    reader.found.violations.push(cause);
                }
                if is_given(root.value("baseImageRegistry")) {
                    let warning = format!("{file}: baseImageRegistry has no effect beside environment");
                    reader.found.warnings.push(warning);
                }
                reader.environment(section, &mut inference)?;
            }
            None => reader.legacy(&mut root, &mut inference)?,
        }
        let mut found = reader.found;
        root.unknown(file, &mut found);
        found.check(file)?;
        inference.warnings = found.warnings;
        Ok(inference)
    }

    /// Takes a conda definition in; what the environment says of a variable counts more.
    pub(crate) fn conda(&mut self, conda: Conda) {
        self.environment.conda = conda.spec;
        self.origin.conda = conda.text;
        for (name, value) in conda.variables {
            self.environment.variables.entry(name).or_insert(value);
        }
    }
}

/// The folder that paths in the inference configuration are relative to.
pub(crate) fn source_directory(place: &Place, directory: Option<&str>, file: &str) -> Result<PathBuf, Failure> {
    let Some(directory) = directory else { return Ok(place.folder().to_owned()) };
    let found = place.find(place.folder(), directory, "the sourceDirectory")?;
    if found.is_dir() {
        return Ok(found);
    }
    let cause = format!("the sourceDirectory {directory} of {file} is no folder");
    Err(Failure::project(Stage::Reading, cause, "name a folder relative to the project's"))
}

/// Reads what lies in an inference configuration, and the files that it names.
struct Reader<'a> {
    place: &'a Place,
    base: &'a Path,
    file: &'a str,
    found: Findings,
}

impl Reader<'_> {
    fn refuse(&mut self, violation: impl Into<String>) {
        self.found.violations.push(violation.into());
    }

    fn warn(&mut self, warning: &str) {
        self.found.warnings.push(format!("{}: {warning}", self.file));
    }

    fn legacy(&mut self, root: &mut Section<'_>, inference: &mut Inference) -> Result<(), Failure> {
        let runtime = root.text("runtime", &mut self.found).map(str::to_ascii_lowercase);
        let image = root.text("baseImage", &mut self.found);
        match runtime.as_deref() {
            None | Some("python") => {}
            Some("python-slim") if image.is_none() => {}
            Some("python-slim") => self.refuse("baseImage needs runtime python"),
            Some("spark-py") => self.refuse("runtime spark-py is not supported; use python"),
            Some(other) => self.refuse(format!("runtime {other:?} is not known; use python")),
        }
        inference.conda_file = root.text("condaFile", &mut self.found).map(str::to_owned);
        // Both spellings are documented.
        let steps = root.text("extraDockerfileSteps", &mut self.found);
        let steps = steps.or_else(|| root.text("extraDockerFileSteps", &mut self.found));
        let environment = &mut inference.environment;
        if let Some(steps) = steps {
            environment.docker_steps = Some(self.place.text(self.base, steps, "the file of docker steps")?);
            inference.origin.steps = Some(steps.to_owned());
        }
        environment.base_image = self.image(image, root, &mut inference.login);
        environment.gpu = root.boolean("enableGpu", &mut self.found).unwrap_or(false);
        let cuda = root
            .value("cudaVersion")
            .map(|version| version.as_str().map_or_else(|| version.to_string(), str::to_owned));
        if let Some(version) = cuda.filter(|version| !CUDA.contains(&version.as_str())) {
            self.refuse(format!("cudaVersion {version} is not known; there are 9.0, 9.1 and 10.0"));
        }
        Ok(())
    }

    /// The environment object of v1, in camelCase.
    fn environment(&mut self, mut section: Section<'_>, inference: &mut Inference) -> Result<(), Failure> {
        let name = section.text("name", &mut self.found).map(str::to_owned);
        section.value("version");
        if section.only_has(&["name", "version"]) {
            let name = name.as_deref().unwrap_or("without a name");
            self.refuse(format!(
                "environment only names the registered environment {name}, and there is no registry of them here; write it out"
            ));
        }
        if let Some(name) = name.as_deref().filter(|name| name.starts_with("Microsoft") || name.starts_with("AzureML"))
        {
            self.refuse(format!("the name {name} is Azure's own; give the environment another"));
        }
        inference.environment.name = name;
        if let Some(given) = section.value("environmentVariables") {
            inference.environment.variables = variables(given, &mut self.found);
        }
        if let Some(python) = section.section("python", &mut self.found) {
            self.python(python, inference)?;
        }
        if let Some(docker) = section.section("docker", &mut self.found) {
            self.docker(docker, inference);
        }
        if is_given(section.value("r")) {
            self.refuse("environment.r is not supported: kaai runs Python; take it out");
        }
        // v1's own default environments list packages for Spark, which a service in Python never sees.
        if section.value("spark").is_some_and(|spark| is_given(spark.get("packages"))) {
            self.warn("environment.spark has no effect: kaai runs Python");
        }
        for key in ["databricks", "inferencingStackVersion"] {
            section.value(key);
        }
        section.unknown(self.file, &mut self.found);
        Ok(())
    }

    fn python(&mut self, mut python: Section<'_>, inference: &mut Inference) -> Result<(), Failure> {
        let managed = python.boolean("userManagedDependencies", &mut self.found).unwrap_or(false);
        inference.environment.user_managed = managed;
        if python.text("interpreterPath", &mut self.found).is_some_and(|path| path != "python") {
            self.warn("environment.python.interpreterPath has no effect: the environment's own Python is used");
        }
        if let Some(name) = python.text("baseCondaEnvironment", &mut self.found) {
            self.refuse(format!(
                "environment.python.baseCondaEnvironment {name:?} is not supported; list its packages"
            ));
        }
        let path = python.text("condaDependenciesFile", &mut self.found);
        match (python.value("condaDependencies"), path) {
            (Some(given), path) => {
                if path.is_some() {
                    self.warn("environment.python.condaDependenciesFile has no effect beside condaDependencies");
                }
                inference.conda(inline(given, self.file)?);
            }
            (None, Some(path)) => inference.conda(Conda::read_file(self.place, self.base, path)?),
            (None, None) => {}
        }
        python.unknown(self.file, &mut self.found);
        Ok(())
    }

    fn docker(&mut self, mut docker: Section<'_>, inference: &mut Inference) {
        let Inference { environment, login, .. } = inference;
        let image = docker.text("baseImage", &mut self.found);
        environment.base_image = self.image(image, &mut docker, login);
        environment.dockerfile = docker.text("baseDockerfile", &mut self.found).map(str::to_owned);
        if is_given(docker.value("buildContext")) {
            self.refuse("environment.docker.buildContext is not supported yet; use baseImage or baseDockerfile");
        }
        if environment.base_image.is_some() && environment.dockerfile.is_some() {
            self.refuse("environment.docker.baseImage and baseDockerfile exclude each other");
        }
        if let Some(mut platform) = docker.section("platform", &mut self.found) {
            for (key, only) in [("os", "linux"), ("architecture", "amd64")] {
                let given = platform.text(key, &mut self.found).unwrap_or(only);
                if !given.eq_ignore_ascii_case(only) {
                    self.refuse(format!("environment.docker.platform.{key} is {given}; only {only} is supported"));
                }
            }
            platform.unknown(self.file, &mut self.found);
        }
        if is_given(docker.value("arguments")) {
            self.warn("environment.docker.arguments have no effect");
        }
        for key in ["enabled", "sharedVolumes", "shmSize"] {
            docker.value(key);
        }
        docker.unknown(self.file, &mut self.found);
    }

    /// The base image with its registry, which is a text, or an object of address, username and password, all three or none.
    ///
    /// The login is no part of the specification: a password there would travel in events.
    fn image(
        &mut self,
        image: Option<&str>,
        section: &mut Section<'_>,
        login: &mut Option<RegistryLogin>,
    ) -> Option<String> {
        let address = match section.value("baseImageRegistry") {
            Some(Value::String(address)) => Some(address.as_str()),
            Some(Value::Object(object)) => {
                let given = ["address", "username", "password"].map(|key| is_given(object.get(key)));
                if given[1] != given[2] || (given[1] && !given[0]) {
                    self.refuse("baseImageRegistry needs address, username and password, all three or none");
                }
                *login = self.login(object);
                object.get("address").and_then(Value::as_str)
            }
            Some(_) => {
                self.refuse("baseImageRegistry must be a text, or an object of address, username and password");
                None
            }
            None => None,
        };
        let image = image.filter(|image| !image.is_empty())?;
        let bare = |address: &str| {
            address.split_once("://").map_or(address, |(_, rest)| rest).trim_end_matches('/').to_owned()
        };
        match address.map(bare).filter(|address| !address.is_empty()) {
            Some(address) if !image.starts_with(&format!("{address}/")) => Some(format!("{address}/{image}")),
            _ => Some(image.to_owned()),
        }
    }
}

impl Reader<'_> {
    /// The login of a registry that is given with one. Its address may be written as one of the web, or with a path behind.
    fn login(&mut self, registry: &serde_json::Map<String, Value>) -> Option<RegistryLogin> {
        let text = |key| registry.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
        let (address, username, password) = (text("address")?, text("username")?, text("password")?);
        let host = address.split_once("://").map_or(address.as_str(), |(_, rest)| rest);
        let host = host.split('/').next().unwrap_or_default().to_owned();
        if host.is_empty() {
            self.refuse("the address of baseImageRegistry names no host");
            return None;
        }
        Some(RegistryLogin { host, username, password })
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
    use crate::walk::Links;

    fn read(text: &str, folder: &Path) -> Result<Inference, Failure> {
        let root = parse(text, "x").unwrap().as_object().unwrap().clone();
        let place = Place::new(folder, Links::Anywhere)?;
        Inference::read(&Document { file: "inferenceconfig.json".into(), root, text: text.to_owned() }, &place)
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
            assert_eq!(inference.environment.base_image.as_deref(), Some("here.example.com/python:3.11"));
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
            (r#""environment": {"name": "AzureML-x", "python": {}}"#, "AzureML-x is Azure's own"),
            (r#""environment": {"python": {"baseCondaEnvironment": "x"}}"#, "baseCondaEnvironment"),
            (r#""environment": {"docker": {"platform": {"os": "Windows"}}}"#, "only linux"),
            (r#""runtime": "python-slim", "baseImage": "x""#, "needs runtime python"),
            (r#""baseImageRegistry": 3"#, "must be a text"),
            (r#""baseImageRegistry": {"address": "a", "username": "u"}"#, "all three or none"),
            (r#""extraDockerfileSteps": "no-such-file""#, "no-such-file"),
        ] {
            let failure = read(&format!(r#"{{"entryScript": "score.py", {members}}}"#), Path::new("/")).unwrap_err();
            assert!(failure.cause.contains(word), "{members}: {failure}");
        }
    }

    #[test]
    fn what_has_no_effect_here_is_warned_of() {
        let text = r#"{"entryScript": "s.py", "baseImageRegistry": "r.example.com", "environment": {
            "environmentVariables": {"A": "B"}, "docker": {"arguments": ["--gpus"]},
            "python": {"interpreterPath": "/usr/bin/python3", "condaDependenciesFile": "x.yml", "condaDependencies": {"dependencies": []}},
            "spark": {"repositories": ["r"], "packages": [{"group": "g", "artifact": "a", "version": "1"}]}}}"#;
        assert_eq!(read(text, Path::new("/")).unwrap().warnings.len(), 5);
    }

    #[test]
    fn variables_alone_are_an_environment() {
        let text = r#"{"entryScript": "s.py", "environment": {"name": "e", "environmentVariables": {"A": "B"}}}"#;
        assert_eq!(read(text, Path::new("/")).unwrap().environment.variables["A"], "B");
    }

    #[test]
    fn the_login_of_a_registry_is_no_part_of_the_environment() {
        let text = r#"{"entryScript": "s.py", "baseImage": "team/base:1", "baseImageRegistry":
            {"address": "https://r.example.com:5000/", "username": "u", "password": "hidden-word"}}"#;
        let inference = read(text, Path::new("/")).unwrap();
        assert!(!format!("{inference:?}").contains("hidden-word"));
        assert_eq!(inference.environment.base_image.as_deref(), Some("r.example.com:5000/team/base:1"));
        let login = inference.login.unwrap();
        assert_eq!((login.host.as_str(), login.username.as_str()), ("r.example.com:5000", "u"));
        assert_eq!((login.password.as_str(), inference.warnings.len()), ("hidden-word", 0));
    }
}
