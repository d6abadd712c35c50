//! Reading a project as Azure ML v1 did: its configuration files, its entry script, its models, or conventions in their place.
//!
//! Owns the meaning of v1's files (facts from azureml-core 1.61 and its documentation). It reads a folder and nothing else:
//! it sends nothing, asks nobody, and runs none of the user's code.

mod conda;
mod credential;
mod deployment;
mod document;
pub(crate) mod given;
mod inference;
pub mod models;
mod place;
mod script;

use std::path::{Component, Path};

use proto::{
    failure::{Failure, Stage},
    id::{ModelName, ServiceName},
    packager::{ProjectOptions, RegistryLogin},
    query::Keys,
    secret,
    spec::{MAX_MODELS, ServiceSpec},
};

use self::{
    conda::{Conda, names_python},
    deployment::Deployment,
    document::Document,
    inference::{Inference, missing_script, source_directory},
    models::{Models, NamedModel},
    place::Place,
};
use crate::{
    trouble::walked,
    walk::{self, Limits, Links, Walk},
};

/// Names that a configuration may have when none is given, in the order in which they are looked for.
const INFERENCE: [&str; 3] = ["inferenceconfig.json", "inferenceconfig.yml", "inferenceconfig.yaml"];
const DEPLOYMENT: [&str; 3] = ["deploymentconfig.json", "deploymentconfig.yml", "deploymentconfig.yaml"];
const CONDA: [&str; 8] = [
    "environment.yml",
    "environment.yaml",
    "conda.yml",
    "conda.yaml",
    "conda_dependencies.yml",
    "myenv.yml",
    "env.yml",
    "requirements.txt",
];

/// A project as its files describe it.
#[derive(Debug)]
pub struct Project {
    /// What was asked for; models that are still to be registered are not in it.
    pub spec: ServiceSpec,
    /// The files to send.
    pub files: Walk,
    /// Models to register.
    pub models: Vec<NamedModel>,
    /// Models that are registered already, with their versions.
    pub registered: Vec<(ModelName, u32)>,
    /// The keys of the deployment configuration, in the clear; an empty secondary key is to be kept or made.
    pub keys: Option<Keys>,
    /// The login at the registry of the base image, in the clear.
    pub login: Option<RegistryLogin>,
    /// What the user should know though it stops nothing.
    pub warnings: Vec<String>,
}

/// Reads the project in `folder`, a user's own, with what `options` say in place of its files.
///
/// # Errors
///
/// Fails at the stage *reading* with what is wrong, where, and what to do; all violations of one file are told together. An environment
/// with a password or token in it is refused too. No message holds one.
pub fn read(folder: &Path, options: &ProjectOptions, service: &ServiceName) -> Result<Project, Failure> {
    read_within(folder, options, service, Limits::PROJECT, Links::Anywhere)
}

/// As [`read`], with other limits of what a project may hold; with [`Links::Inside`] nothing outside the folder is read,
/// whatever the project's own files and links say.
///
/// # Errors
///
/// As [`read`].
pub fn read_within(
    folder: &Path,
    options: &ProjectOptions,
    service: &ServiceName,
    limits: Limits,
    links: Links,
) -> Result<Project, Failure> {
    let mut project = Place::new(folder, links)
        .and_then(|place| read_at(&place, options, service, limits))
        .map_err(credential::without)?;
    for warning in &mut project.warnings {
        *warning = secret::redact(warning);
    }
    Ok(project)
}

fn read_at(place: &Place, options: &ProjectOptions, service: &ServiceName, limits: Limits) -> Result<Project, Failure> {
    let (file, inference) = inference(place, options)?;
    credential::check(&inference.environment, &inference.origin)?;
    let deployment = deployment(place, options)?;
    let models = models(place, options, service)?;
    let mut warnings = [inference.warnings.clone(), deployment.warnings].concat();
    let sent = sent(place, options, &inference, file, limits)?;
    warnings.extend(warn(&sent.files, &inference.environment));
    if let Some(file) = deployment.file.filter(|file| deployment.keys.is_some() && sent.files.contains(file)) {
        warnings.push(format!("{file} holds keys and is sent with the project: leave it out with .amlignore"));
    }
    if inference.login.is_some() && sent.files.contains(file) {
        warnings.push(format!("{file} holds a login and is sent with the project: leave it out with .amlignore"));
    }
    let spec = ServiceSpec {
        entry_script: sent.entry_script,
        source_directory: sent.source_directory,
        environment: inference.environment,
        models: Vec::new(),
        auth: deployment.auth,
        scaling: deployment.scaling,
        resources: deployment.resources,
        requests: deployment.requests,
        liveness: deployment.liveness,
        collect_model_data: deployment.collect_model_data,
        request_telemetry: deployment.request_telemetry,
        description: inference.description,
        tags: Default::default(),
        properties: Default::default(),
        extra: Default::default(),
    };
    given::check_size(&spec)?;
    let (named, registered) = (models.named, models.registered);
    Ok(Project {
        spec,
        files: sent.files,
        models: named,
        registered,
        keys: deployment.keys,
        login: inference.login,
        warnings,
    })
}

/// What of a project is sent, and where its script lies in it.
struct Sent {
    files: Walk,
    entry_script: String,
    source_directory: Option<String>,
}

/// With a source directory all of it, else the entry script alone: v1's rule.
fn sent(
    place: &Place,
    options: &ProjectOptions,
    inference: &Inference,
    file: &str,
    limits: Limits,
) -> Result<Sent, Failure> {
    let base = source_directory(place, inference.source_directory.as_deref(), file)?;
    let script = match (&options.entry_script, &inference.entry_script) {
        (Some(script), _) | (None, Some(script)) => clean(script),
        (None, None) => return Err(missing_script(file)),
    };
    script::check_name(&script)?;
    script::check_content(&place.bytes(&base, &script, "the entry script")?, &script)?;
    if inference.source_directory.is_none() {
        let files = Walk::entry(&base.join(&script), place.links()).map_err(walked)?;
        return Ok(Sent { files, entry_script: file_name(&script), source_directory: None });
    }
    let files = Walk::project(&base, limits).map_err(walked)?;
    if !files.contains(&script) {
        let outside = Path::new(&script).components().any(|part| !matches!(part, Component::Normal(_)));
        let (what, remedy) = match outside {
            true => ("lies outside the sourceDirectory", "name it relative to that folder, and keep it there"),
            false => ("is left out by the ignore rules", "take it out of .amlignore or .gitignore"),
        };
        return Err(Failure::project(Stage::Reading, format!("the entry script {script} {what}"), remedy));
    }
    Ok(Sent { files, entry_script: script, source_directory: Some(directory_name(&base)?) })
}

/// The entry script alone, for a project without a source directory.
///
/// # Errors
///
/// Fails when it is not there, or outside a project that may not reach outside.
pub(crate) fn only_script(folder: &Path, script: &str, links: Links) -> Result<Walk, Failure> {
    let place = Place::new(folder, links)?;
    place.find(place.folder(), script, "the entry script")?;
    Walk::entry(&place.folder().join(script), links).map_err(walked)
}

/// What the user should know of the files and the environment.
fn warn(files: &Walk, environment: &proto::spec::EnvironmentSpec) -> Vec<String> {
    let mut warnings: Vec<String> = files.warnings.iter().take(walk::MAX_NAMED).cloned().collect();
    if let (Some(name), 1..) = (files.ignore_file, files.ignored) {
        warnings.push(format!(
            "{} left out by {name}; v1 applied ignore files to training runs only, not to deployments",
            if files.ignored == 1 {
                "1 file or folder was".to_owned()
            } else {
                format!("{} files or folders were", files.ignored)
            }
        ));
    }
    if let Some(file) = environment.conda.file.as_ref().filter(|_| !names_python(&environment.conda)) {
        warnings.push(format!("{file} asks for no version of Python; 3.10 is taken, as in v1"));
    }
    warnings
}

fn models(place: &Place, options: &ProjectOptions, service: &ServiceName) -> Result<Models, Failure> {
    let models = match (options.models.is_empty(), options.no_models) {
        (false, _) => Models::said(&options.models, place)?,
        (true, true) => Models::default(),
        (true, false) => Models::found(place, service)?,
    };
    let count = models.named.len() + models.registered.len();
    if count <= MAX_MODELS {
        return Ok(models);
    }
    let cause = format!("{count} models are more than the {MAX_MODELS} that a deployment may have");
    Err(Failure::project(Stage::Reading, cause, "put several files into one model"))
}

/// The service's name when none is given: that of the folder, made valid.
///
/// # Errors
///
/// Fails when nothing valid can be made of it.
pub fn default_name(folder: &Path) -> Result<ServiceName, Failure> {
    let name = std::path::absolute(folder).ok().map(|path| file_name(&path.to_string_lossy())).unwrap_or_default();
    let lower: String = name.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let cut: String = lower.trim_start_matches(|c: char| !c.is_ascii_lowercase()).chars().take(32).collect();
    cut.trim_end_matches('-').parse().map_err(|error: proto::id::InvalidId| {
        Failure::project(
            Stage::Reading,
            format!("the folder's name {name:?} gives no service name: {}", error.rule),
            "give one with --name",
        )
    })
}

/// The inference configuration, else what is found by convention. The name is that of the file that was read, for messages.
fn inference<'a>(place: &Place, options: &'a ProjectOptions) -> Result<(&'a str, Inference), Failure> {
    let folder = place.folder();
    let file = options.inference_config.as_deref().or_else(|| first(folder, &INFERENCE));
    let mut inference = match file {
        Some(file) => Inference::read(&Document::read(place, folder, file)?, place)?,
        None => by_convention(folder, options)?,
    };
    let file = file.unwrap_or("the project");
    if let Some(conda) = &options.conda_file {
        // A path that was typed is relative to where the project is; one in a file, to the source directory.
        inference.conda(Conda::read_file(place, folder, conda)?);
    } else if let Some(conda) = inference.conda_file.take() {
        let base = source_directory(place, inference.source_directory.as_deref(), file)?;
        inference.conda(Conda::read_file(place, &base, &conda)?);
    }
    Ok((file, inference))
}

fn by_convention(folder: &Path, options: &ProjectOptions) -> Result<Inference, Failure> {
    if options.entry_script.is_none() && !folder.join("score.py").is_file() {
        let cause = "there is neither inferenceconfig.json nor score.py";
        return Err(Failure::project(Stage::Reading, cause, "add one of them, or name the script with --entry-script"));
    }
    let conda_file = first(folder, &CONDA).map(str::to_owned);
    let nothing = conda_file.is_none() && options.conda_file.is_none();
    let warning = "there is no environment.yml: the environment has nothing but the scoring server";
    Ok(Inference {
        entry_script: Some("score.py".to_owned()),
        source_directory: Some(".".to_owned()),
        conda_file,
        warnings: if nothing { vec![warning.to_owned()] } else { Vec::new() },
        ..Inference::default()
    })
}

fn deployment(place: &Place, options: &ProjectOptions) -> Result<Deployment, Failure> {
    match options.deployment_config.as_deref().or_else(|| first(place.folder(), &DEPLOYMENT)) {
        Some(file) => Deployment::read(&Document::read(place, place.folder(), file)?),
        None => Ok(Deployment::default()),
    }
}

fn first(folder: &Path, names: &[&'static str]) -> Option<&'static str> {
    names.iter().copied().find(|name| folder.join(name).is_file())
}

fn directory_name(folder: &Path) -> Result<String, Failure> {
    folder.file_name().and_then(|name| name.to_str()).map(str::to_owned).ok_or_else(|| {
        let cause = format!("the folder {} has no name that a script could be found by", folder.display());
        Failure::project(Stage::Reading, cause, "deploy a folder with a name in plain characters")
    })
}

/// `./a//b.py` is `a/b.py`, as it stands in the archive.
fn clean(script: &str) -> String {
    let parts = script.split('/').filter(|part| !part.is_empty() && *part != ".");
    let cleaned = parts.collect::<Vec<_>>().join("/");
    if script.starts_with('/') { format!("/{cleaned}") } else { cleaned }
}

fn file_name(path: &str) -> String {
    Path::new(path).file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
