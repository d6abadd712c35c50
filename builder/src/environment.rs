//! An environment, understood: the specification with every spelling taken out of it, or refused by name.
//!
//! It knows what counts for an environment's identity and what may be said in one. It does not know how, where or whether it is built.

use std::collections::BTreeMap;

use proto::{
    failure::{Failure, Stage},
    secret,
    spec::EnvironmentSpec,
};

use crate::{
    conda::{self, Versions},
    docker,
    pip::List,
};

/// The Python of a definition that names none: v1's, whose SDK put in 3.10.18.
const DEFAULT_PYTHON: &str = "python=3.10";

/// What an environment means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// The file of the conda definition, for messages; nothing depends on it.
    pub(crate) file: String,
    pub(crate) base_image: Option<String>,
    pub(crate) docker_steps: Vec<String>,
    pub(crate) dockerfile: Vec<String>,
    /// Whether the base image brings the packages; then there is nothing below.
    pub(crate) user_managed: bool,
    pub(crate) channels: Vec<String>,
    /// Conda's packages other than Python, by name and build string.
    pub(crate) conda: BTreeMap<(String, Option<String>), Versions>,
    /// Which versions of Python are wanted.
    pub(crate) python: Versions,
    pub(crate) pip: List,
}

/// One thing that is wrong with an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong, a lower-case fragment; it holds no credential.
    pub cause: String,
    /// What the user can do.
    pub remedy: String,
}

impl Problem {
    pub(crate) fn new(cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { cause: cause.into(), remedy: remedy.into() }
    }
}

/// An environment is not understood or not supported; the user can mend it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.iter().map(|problem| problem.cause.as_str()).collect::<Vec<_>>().join("; "))]
pub struct Refused {
    /// All that is wrong; never empty.
    pub problems: Vec<Problem>,
}

impl Refused {
    /// The failure of a deployment that is refused for this.
    pub fn into_failure(self) -> Failure {
        let mut problems = self.problems.into_iter();
        let first = problems.next().unwrap_or_else(|| Problem::new("the environment is not understood", "check it"));
        let more: Vec<_> = problems.map(|problem| format!("{}; {}", problem.cause, problem.remedy)).collect();
        Failure::project(Stage::Building, first.cause, first.remedy).with_details(more.iter().map(String::as_str))
    }

    pub(crate) fn unless_empty(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self { problems }) }
    }
}

impl Definition {
    /// Whether something has to be run on the base image before packages are installed.
    pub(crate) fn has_steps(&self) -> bool {
        !self.docker_steps.is_empty() || !self.dockerfile.is_empty()
    }

    /// Whether the image brings the packages itself: it is said so, or a Dockerfile stands alone.
    pub(crate) fn brings_packages(&self) -> bool {
        self.user_managed || !self.dockerfile.is_empty() && self.pip.wanted.is_empty()
    }

    /// Understands a specification.
    ///
    /// # Errors
    ///
    /// Fails with all that is not understood or not supported in any place, and with every address that carries a credential.
    pub fn read(spec: &EnvironmentSpec) -> Result<Self, Refused> {
        let file = spec.conda.file.clone().unwrap_or_else(|| "the conda definition".to_owned());
        let mut problems = Vec::new();
        let text = |text: &Option<String>| text.clone().filter(|text| !text.trim().is_empty());
        let mut definition = Self {
            file,
            base_image: text(&spec.base_image).as_deref().map(docker::image),
            docker_steps: text(&spec.docker_steps).as_deref().map(docker::steps).unwrap_or_default(),
            dockerfile: text(&spec.dockerfile).as_deref().map(docker::steps).unwrap_or_default(),
            user_managed: spec.user_managed,
            channels: Vec::new(),
            conda: BTreeMap::new(),
            python: Versions::default(),
            pip: List::default(),
        };
        for (name, steps) in [("docker steps", &definition.docker_steps), ("Dockerfile", &definition.dockerfile)] {
            if steps.iter().any(|step| secret::is_in(step)) {
                problems.push(credential(&format!("an address in the {name}")));
            }
        }
        if spec.base_image.as_deref().is_some_and(secret::is_in_image) {
            problems.push(credential("the base image"));
        }
        if !spec.user_managed {
            definition.read_channels(&spec.conda.channels, &mut problems);
            definition.read_conda(&spec.conda.dependencies, &mut problems);
            definition.pip = List::read(&spec.conda.pip, &definition.file, &mut problems);
        }
        Refused::unless_empty(problems)?;
        Ok(definition)
    }

    fn read_channels(&mut self, channels: &[String], problems: &mut Vec<Problem>) {
        for channel in channels {
            let channel = channel.trim().trim_end_matches('/');
            if secret::is_in_channel(channel) {
                problems.push(credential(&format!("a channel in {}", self.file)));
                continue;
            }
            let name = channel.strip_prefix("https://conda.anaconda.org/").unwrap_or(channel).to_owned();
            if !name.is_empty() && !self.channels.contains(&name) {
                self.channels.push(name);
            }
        }
    }

    fn read_conda(&mut self, dependencies: &[String], problems: &mut Vec<Problem>) {
        let mut python = Versions::default();
        for line in dependencies {
            let dependency = match conda::parse(line) {
                Ok(Some(dependency)) => dependency,
                Ok(None) => continue,
                Err(_) if secret::is_in(line) => {
                    problems.push(credential(&format!("a dependency in {}", self.file)));
                    continue;
                }
                Err(what) => {
                    let cause = format!("`{}` in {} {what}", line.trim(), self.file);
                    problems.push(Problem::new(cause, "write it as `name=version`"));
                    continue;
                }
            };
            if dependency.name == "python" && dependency.build.is_none() {
                python = python.and(&dependency.versions);
                continue;
            }
            let versions = self.conda.entry((dependency.name, dependency.build)).or_default();
            *versions = versions.and(&dependency.versions);
        }
        if python.is_any() {
            let default = conda::parse(DEFAULT_PYTHON).ok().flatten();
            python = default.map_or(python, |dependency| dependency.versions);
        }
        self.python = python;
    }
}

fn credential(what: &str) -> Problem {
    Problem::new(format!("{what} {}", secret::CARRIES), secret::REMEDY)
}

#[cfg(test)]
mod tests {
    use proto::spec::CondaSpec;

    use super::*;

    fn spec(dependencies: &[&str], pip: &[&str]) -> EnvironmentSpec {
        let own = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
        let conda = CondaSpec { dependencies: own(dependencies), pip: own(pip), ..CondaSpec::default() };
        EnvironmentSpec { conda, ..EnvironmentSpec::default() }
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let refused = Definition::read(&spec(&["numpy[build=x]"], &["-r x.txt", "a=1"])).unwrap_err();
        assert_eq!(refused.problems.len(), 3);
        let failure = refused.into_failure();
        assert!(failure.cause.contains("numpy[build=x]"), "{failure:?}");
        assert_eq!(failure.details.len(), 2);
    }

    #[test]
    fn a_definition_without_python_means_v1s() {
        let default = Definition::read(&EnvironmentSpec::default()).unwrap();
        assert_eq!(default, Definition::read(&spec(&["python=3.10"], &[])).unwrap());
        assert_eq!(default, Definition::read(&spec(&["python"], &[])).unwrap());
        assert_ne!(default, Definition::read(&spec(&["python=3.11"], &[])).unwrap());
    }

    #[test]
    fn credentials_are_refused_wherever_they_stand() {
        let mut steps = spec(&[], &[]);
        steps.docker_steps = Some("RUN pip install -i https://u:hunter2@h/s x".to_owned());
        let mut channel = spec(&[], &[]);
        channel.conda.channels = vec!["https://conda.example.org/t/hunter2/main".to_owned()];
        let mut image = spec(&[], &[]);
        image.base_image = Some("u:hunter2@h.example.org/a".to_owned());
        let dependency = spec(&["https://u:hunter2@h/x.conda"], &[]);
        for spec in [steps, channel, image, dependency] {
            let refused = Definition::read(&spec).unwrap_err();
            assert!(refused.to_string().contains("password or token"), "{refused}");
            assert!(!format!("{refused:?}").contains("hunter2"));
        }
    }
}
