//! What is to be installed for a definition: pure, nothing is looked up here.
//!
//! It knows what a place with or without images can give and what a service needs besides. It does not know which Pythons there are, nor how packages are installed.

use proto::packager::RegistryLogin;

use crate::{
    conda::Versions,
    conda_packages::{self, Wanted},
    environment::{Definition, Problem, Refused},
    identity::Fact,
    image::steps,
};

/// The scoring server, which every service needs. Older ones cannot be served as `server.entry:app`.
pub(crate) const SERVER: &str = "azureml-inference-server-http";
const SERVER_REQUIREMENT: &str = "azureml-inference-server-http>=0.7.7";

/// Conda's `pip` brought setuptools with it, so that scripts and old servers (gunicorn 20 among them) find `pkg_resources`,
/// which setuptools has lost since. It is only put in beforehand: whatever needs a newer one gets it.
pub(crate) const COMPATIBLE_SETUPTOOLS: &str = "setuptools<81";

/// The minors of Python 3 that a service can run on, the oldest and the newest.
const MINORS: std::ops::RangeInclusive<u64> = 6..=14;

/// What is to be installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The file of the conda definition, for messages.
    pub(crate) file: String,
    /// The Python.
    pub(crate) python: Python,
    /// What conda installs first, with a Python of its own; none where pip's packages are all.
    pub(crate) conda: Option<Wanted>,
    /// What is put in first and gives way to the requirements.
    pub(crate) seeds: Vec<String>,
    /// The lines of the requirements file: options, the user's requirements, and the server.
    pub(crate) requirements: Vec<String>,
    /// Whether versions before a release may be taken (pip's `--pre`).
    pub(crate) prereleases: bool,
    /// Hosts whose certificate is not looked at (pip's `--trusted-host`).
    pub(crate) trusted_hosts: Vec<String>,
    /// The packages that the user names, each with the line that does.
    pub(crate) listed: Vec<(String, String)>,
    /// What the user should know.
    pub(crate) warnings: Vec<String>,
    /// The image that it stands on, by digest; none in a place without images.
    pub(crate) base: Option<String>,
    /// What an engine runs before packages are installed, if anything.
    pub(crate) dockerfile: Option<String>,
    /// Whether that image brings the packages, so that none are installed.
    pub(crate) user_managed: bool,
    /// The user's own login at the base image's registry; no part of the identity.
    pub(crate) login: Option<RegistryLogin>,
    /// What was hashed, for the image's statement of origin.
    pub(crate) facts: Vec<Fact>,
}

/// Which Python is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Python {
    /// The minors that will do, the best first: 11 for 3.11.
    pub(crate) minors: Vec<u64>,
    /// The versions as the user wants them.
    pub(crate) versions: Versions,
}

impl Plan {
    /// Says what is to be installed on a machine without images; `conda` says whether conda packages can be.
    ///
    /// # Errors
    ///
    /// Fails with all that such a place cannot give.
    pub fn without_images(definition: &Definition, conda: bool) -> Result<Self, Refused> {
        let mut problems = Vec::new();
        refuse_what_only_an_image_has(definition, &mut problems);
        let plan = Self::of(definition, conda, problems)?;
        Ok(Self { warnings: warnings(definition), ..plan })
    }

    /// Says what is to be installed on an image.
    ///
    /// # Errors
    ///
    /// Fails with all that cannot be installed there.
    pub(crate) fn on_image(definition: &Definition, engine: bool, conda: bool) -> Result<Self, Refused> {
        let mut problems = Vec::new();
        if engine {
            problems.extend(steps::problem(definition));
        } else {
            refuse_what_only_docker_builds(definition, &mut problems);
        }
        if definition.user_managed && definition.base_image.is_none() && definition.dockerfile.is_empty() {
            problems.push(Problem::new(
                "the environment's packages are those of its image (userManagedDependencies), and it names none",
                "name a baseImage",
            ));
        }
        Self::of(definition, conda, problems)
    }

    /// The same with one Python alone.
    pub(crate) fn with_python(&self, minor: u64) -> Self {
        Self { python: Python { minors: vec![minor], versions: self.python.versions.clone() }, ..self.clone() }
    }

    fn of(definition: &Definition, conda: bool, mut problems: Vec<Problem>) -> Result<Self, Refused> {
        let mut requirements = definition.pip.options.lines();
        let (tools, others) = conda_tools(definition);
        let wanted = (conda && !others.is_empty()).then(|| Wanted::of(definition));
        match &wanted {
            Some(_) => conda_packages::refuse_paths(definition, &mut problems),
            None => {
                refuse_conda_packages(definition, &others, &mut problems);
                requirements.extend(tools);
            }
        }
        requirements.extend(definition.pip.wanted.values().flat_map(|wanted| wanted.lines.clone()));
        requirements.push(SERVER_REQUIREMENT.to_owned());
        let minors: Vec<_> =
            MINORS.rev().filter(|minor| (0..64).any(|patch| definition.python.admit(&[3, *minor, patch]))).collect();
        if minors.is_empty() {
            problems.push(Problem::new(
                format!("no Python from 3.{} to 3.{} is python {}", MINORS.start(), MINORS.end(), definition.python),
                format!("ask for another Python in {}, python=3.11 for example", definition.file),
            ));
        }
        Refused::unless_empty(problems)?;
        let tools = definition.conda.keys().any(|(name, _)| name == "setuptools");
        let options = &definition.pip.options;
        Ok(Self {
            file: definition.file.clone(),
            python: Python { minors, versions: definition.python.clone() },
            conda: wanted,
            seeds: if tools { Vec::new() } else { vec![COMPATIBLE_SETUPTOOLS.to_owned()] },
            requirements,
            prereleases: options.pre,
            trusted_hosts: options.trusted_hosts.iter().cloned().collect(),
            listed: listed(definition),
            warnings: Vec::new(),
            base: None,
            dockerfile: None,
            user_managed: definition.brings_packages(),
            facts: Vec::new(),
            login: None,
        })
    }

    /// Whether a Python of this version, `3.11.7` for example, is as the user wants it.
    pub(crate) fn admits_python(&self, version: &str) -> bool {
        let release: Result<Vec<u64>, _> = version.split('.').map(str::parse).collect();
        release.is_ok_and(|release| self.python.versions.admit(&release))
    }

    /// The line by which the user asks for a package, if he does.
    pub(crate) fn line_of(&self, package: &str) -> Option<&str> {
        self.listed.iter().find(|(name, _)| name == package).map(|(_, line)| line.as_str())
    }
}

fn listed(definition: &Definition) -> Vec<(String, String)> {
    let pip = definition.pip.wanted.iter();
    pip.flat_map(|(key, wanted)| wanted.lines.iter().map(|line| (key.name.clone(), line.clone()))).collect()
}

fn refuse_what_only_an_image_has(definition: &Definition, problems: &mut Vec<Problem>) {
    if definition.brings_packages() {
        let whose = match (&definition.base_image, definition.user_managed) {
            (Some(image), true) => format!("the image {image} (userManagedDependencies)"),
            (None, true) => "the image (userManagedDependencies)".to_owned(),
            _ => "a Dockerfile".to_owned(),
        };
        problems.push(Problem::new(
            format!("the environment's packages come from {whose}, and this place has no images"),
            "list the packages in a conda file, or deploy to a place with Docker",
        ));
    }
}

fn refuse_what_only_docker_builds(definition: &Definition, problems: &mut Vec<Problem>) {
    for (what, lines) in [("docker steps", &definition.docker_steps), ("a Dockerfile", &definition.dockerfile)] {
        if !lines.is_empty() {
            problems.push(Problem::new(
                format!("the environment has {what}, which this builder cannot run: it has no Docker"),
                "put what they do into a base image, and name that as baseImage",
            ));
        }
    }
}

/// Pip, setuptools and wheel may be named as conda packages and are had from pip's index; the others, with pip's word for their versions,
/// need conda itself.
fn conda_tools(definition: &Definition) -> (Vec<String>, Vec<(String, String)>) {
    let mut tools = Vec::new();
    let mut others = Vec::new();
    for ((name, build), versions) in &definition.conda {
        let for_pip = versions.for_pip();
        match (conda_packages::bare(name), build, for_pip) {
            (tool @ ("pip" | "setuptools" | "wheel"), None, Some(versions)) => tools.push(format!("{tool}{versions}")),
            (other, _, for_pip) => others.push((other.to_owned(), for_pip.unwrap_or_default())),
        }
    }
    (tools, others)
}

/// Refuses conda packages where nothing can install them.
fn refuse_conda_packages(definition: &Definition, others: &[(String, String)], problems: &mut Vec<Problem>) {
    if let Some((first, _)) = others.first() {
        let names: Vec<_> = others.iter().map(|(name, _)| name.as_str()).collect();
        let file = &definition.file;
        let (cause, them) = match names.len() {
            1 => (
                format!(
                    "{file} asks for the conda package {first}, which this place cannot install: it has pip packages alone"
                ),
                "it",
            ),
            _ => (
                format!(
                    "{file} asks for the conda packages {}, which this place cannot install: it has pip packages alone",
                    names.join(", ")
                ),
                "them",
            ),
        };
        let lines: Vec<_> = others.iter().map(|(name, versions)| pip_line(name, versions)).collect();
        let remedy = format!(
            "move {them} under `pip:` in {file}: {}; or have the builder find kaai-conda (`make conda`, --conda-program)",
            lines.join(", ")
        );
        problems.push(Problem::new(cause, remedy));
    }
}

/// How pip's index calls a conda package; names that differ are the few that v1's users meet.
fn pip_line(conda: &str, versions: &str) -> String {
    match conda {
        "pytorch" => format!("`torch{versions}`"),
        "opencv" => format!("`opencv-python{versions}`"),
        "py-xgboost" => format!("`xgboost{versions}`"),
        "tensorflow-gpu" => format!("`tensorflow{versions}`"),
        "cudatoolkit" | "libgcc" | "libgcc-ng" | "libgomp" | "libstdcxx-ng" | "blas" | "mkl" | "gcc_linux-64" => {
            format!("leave out {conda}, which pip's packages bring themselves")
        }
        name => format!("`{name}{versions}`"),
    }
}

fn warnings(definition: &Definition) -> Vec<String> {
    let mut left_out = Vec::new();
    left_out.extend(definition.base_image.as_ref().map(|image| format!("base image {image}")));
    left_out.extend((!definition.docker_steps.is_empty()).then(|| "docker steps".to_owned()));
    left_out.extend((!definition.dockerfile.is_empty()).then(|| "Dockerfile".to_owned()));
    match left_out.is_empty() {
        true => Vec::new(),
        false => {
            let what = left_out.join(", ");
            vec![format!("this place has no images: left out are {what}; the Python packages are installed")]
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::spec::{CondaSpec, EnvironmentSpec};

    use super::*;

    fn spec(dependencies: &[&str], pip: &[&str]) -> EnvironmentSpec {
        let own = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
        let conda = CondaSpec {
            file: Some("environment.yml".to_owned()),
            dependencies: own(dependencies),
            pip: own(pip),
            ..CondaSpec::default()
        };
        EnvironmentSpec { conda, ..EnvironmentSpec::default() }
    }

    fn plan(spec: &EnvironmentSpec) -> Result<Plan, Refused> {
        Plan::without_images(&Definition::read(spec).unwrap(), false)
    }

    #[test]
    fn the_usual_conda_file_is_understood() {
        let plan = plan(&spec(
            &["python=3.11", "pip"],
            &["azureml-inference-server-http", "inference-schema[numpy-support]", "scikit-learn==1.9.1  # pinned"],
        ))
        .unwrap();
        assert_eq!(plan.python.minors, [11]);
        assert_eq!(plan.seeds, ["setuptools<81"]);
        let expected = [
            "pip",
            "azureml-inference-server-http",
            "inference-schema[numpy-support]",
            "scikit-learn==1.9.1",
            "azureml-inference-server-http>=0.7.7",
        ];
        assert_eq!(plan.requirements, expected);
        assert_eq!(plan.line_of("scikit-learn"), Some("scikit-learn==1.9.1"));
        assert_eq!(plan.line_of("numpy"), None);
        assert!(plan.warnings.is_empty());
    }

    #[test]
    fn a_minor_is_found_for_each_way_to_ask_for_python() {
        let minors = |line: &str| plan(&spec(&[line], &[])).map(|plan| plan.python.minors);
        assert_eq!(minors("python=3.11").unwrap(), [11]);
        assert_eq!(minors("python==3.11.4").unwrap(), [11]);
        assert_eq!(minors("python>=3.10,<3.13").unwrap(), [12, 11, 10]);
        assert_eq!(minors("python").unwrap(), [10]);
        assert_eq!(minors("python 3.8.*|3.9.*").unwrap(), [9, 8]);
        let refused = minors("python=2.7").unwrap_err();
        assert_eq!(refused.to_string(), "no Python from 3.6 to 3.14 is python 2.7.*");
    }

    #[test]
    fn conda_packages_are_refused_by_name_with_what_to_write_instead() {
        let refused = plan(&spec(&["python=3.8", "numpy=1.19.2", "pytorch=1.6", "pip=20.2"], &[])).unwrap_err();
        let problem = &refused.problems[0];
        assert!(problem.cause.contains("environment.yml asks for the conda packages numpy, pytorch,"), "{problem:?}");
        let instead = "move them under `pip:` in environment.yml: `numpy==1.19.2`, `torch==1.6.*`; or have ";
        assert!(problem.remedy.starts_with(instead) && problem.remedy.contains("kaai-conda"), "{problem:?}");
    }

    #[test]
    fn conda_packages_are_left_to_conda_where_it_is() {
        let plan =
            |conda: &[&str]| Plan::without_images(&Definition::read(&spec(conda, &["x"])).unwrap(), true).unwrap();
        let real = plan(&["python=3.8", "numpy=1.19.2", "pip=20.2"]);
        assert!(real.conda.is_some());
        assert_eq!(real.requirements, ["x", SERVER_REQUIREMENT], "its pip is conda's own affair");
        let usual = plan(&["python=3.8", "pip=20.2"]);
        assert_eq!((usual.conda, usual.requirements[0].as_str()), (None, "pip==20.2.*"));
    }

    #[test]
    fn conda_tools_are_installed_as_asked_for() {
        let plan = plan(&spec(&["pip=20.2.4", "setuptools=65", "conda-forge::wheel"], &[])).unwrap();
        assert_eq!(plan.requirements[..3], ["wheel", "pip==20.2.4", "setuptools==65.*"]);
        assert!(plan.seeds.is_empty(), "the user's own setuptools is not put in beforehand");
    }

    #[test]
    fn what_an_image_would_bring_is_left_out_with_a_warning() {
        let mut spec = spec(&["python=3.11"], &["x"]);
        spec.base_image = Some("python:3.11".to_owned());
        spec.docker_steps = Some("RUN true".to_owned());
        let warning = &plan(&spec).unwrap().warnings[0];
        assert!(warning.contains("left out are base image docker.io/library/python:3.11, docker steps;"), "{warning}");
    }

    #[test]
    fn packages_that_only_an_image_has_are_refused() {
        let mut managed = spec(&[], &[]);
        managed.user_managed = true;
        managed.base_image = Some("x/y".to_owned());
        let mut dockerfile = spec(&[], &[]);
        dockerfile.dockerfile = Some("FROM x\nRUN pip install y".to_owned());
        assert!(plan(&managed).unwrap_err().to_string().contains("the image docker.io/x/y:latest"));
        assert!(plan(&dockerfile).unwrap_err().to_string().contains("come from a Dockerfile"));
        dockerfile.conda.pip = vec!["y".to_owned()];
        assert!(plan(&dockerfile).unwrap().warnings[0].contains("Dockerfile"));
    }
}
