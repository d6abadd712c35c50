//! Reading a project as Azure ML v1 did: its configuration files, its entry script, its models, or conventions in their place.
//!
//! Owns the meaning of v1's files (facts from azureml-core 1.61 and its documentation). It reads a folder and nothing else:
//! it sends nothing, asks nobody, and runs none of the user's code.

mod conda;
mod deployment;
mod document;
mod inference;
pub mod models;
mod script;

use std::path::{Path, PathBuf};

use proto::{
    failure::{Failure, Stage},
    id::{ModelName, ServiceName},
    packager::ProjectOptions,
    query::Keys,
    spec::{MAX_MODELS, ServiceSpec},
};

use self::{
    conda::Conda,
    deployment::Deployment,
    document::Document,
    inference::{Inference, missing_script},
    models::{Models, NamedModel},
};
use crate::walk::{self, Limits, Links, Walk};

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
    /// What the user should know though it stops nothing.
    pub warnings: Vec<String>,
}

/// Reads the project in `folder`, with what `options` say in place of its files.
///
/// # Errors
///
/// Fails at the stage *reading* with what is wrong, where, and what to do; all violations of one file are told together.
pub fn read(folder: &Path, options: &ProjectOptions, service: &ServiceName) -> Result<Project, Failure> {
    read_within(folder, options, service, Limits::PROJECT)
}

/// As [`read`], with other limits of what a project may hold.
///
/// # Errors
///
/// As [`read`].
pub fn read_within(
    folder: &Path,
    options: &ProjectOptions,
    service: &ServiceName,
    limits: Limits,
) -> Result<Project, Failure> {
    let mut warnings = Vec::new();
    let (file, mut inference) = inference(folder, options)?;
    warnings.append(&mut inference.warnings);
    let deployment = deployment(folder, options)?;
    warnings.extend(deployment.warnings);

    let base = source(folder, inference.source_directory.as_deref(), file)?;
    let script = match (&options.entry_script, &inference.entry_script) {
        (Some(script), _) | (None, Some(script)) => clean(script),
        (None, None) => return Err(missing_script(file)),
    };
    script::check(&base.join(&script), &script)?;
    if let Some(conda) = options.conda_file.as_ref().or(inference.conda_file.as_ref()) {
        // A path that was typed is relative to where the project is; one in a file, to the source directory.
        let root = if options.conda_file.is_some() { folder } else { &base };
        inference.conda(Conda::read_file(&root.join(conda), conda)?);
    }
    let found = match (options.models.is_empty(), options.no_models) {
        (false, _) => Models::said(&options.models, folder)?,
        (true, true) => Models::default(),
        (true, false) => Models::found(folder, service)?,
    };
    let count = found.named.len() + found.registered.len();
    if count > MAX_MODELS {
        let cause = format!("{count} models are more than the {MAX_MODELS} that a deployment may have");
        return Err(Failure::project(Stage::Reading, cause, "put several files into one model"));
    }
    let (files, entry_script, source_directory) = match inference.source_directory {
        Some(_) => (Walk::project(&base, limits).map_err(walked)?, script, Some(directory_name(&base)?)),
        None => {
            let files = Walk::entry(&base.join(&script), Links::Anywhere).map_err(walked)?;
            (files, file_name(&script), None)
        }
    };
    if !files.contains(&entry_script) {
        let cause = format!("the entry script {entry_script} is left out by the ignore rules");
        return Err(Failure::project(Stage::Reading, cause, "take it out of .amlignore or .gitignore"));
    }
    warnings.extend(files.warnings.iter().cloned());
    let spec = ServiceSpec {
        entry_script,
        source_directory,
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
    Ok(Project { spec, files, models: found.named, registered: found.registered, keys: deployment.keys, warnings })
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
fn inference<'a>(folder: &Path, options: &'a ProjectOptions) -> Result<(&'a str, Inference), Failure> {
    let file = options.inference_config.as_deref().or_else(|| first(folder, &INFERENCE));
    if let Some(file) = file {
        let inference = Inference::read(&Document::read(&folder.join(file), file)?, folder)?;
        return Ok((file, inference));
    }
    let script = options.entry_script.is_none() && !folder.join("score.py").is_file();
    if script {
        let cause = "there is neither inferenceconfig.json nor score.py";
        return Err(Failure::project(Stage::Reading, cause, "add one of them, or name the script with --entry-script"));
    }
    let mut inference = Inference {
        entry_script: Some("score.py".to_owned()),
        source_directory: Some(".".to_owned()),
        conda_file: first(folder, &CONDA).map(str::to_owned),
        ..Inference::default()
    };
    if inference.conda_file.is_none() && options.conda_file.is_none() {
        inference
            .warnings
            .push("there is no environment.yml: the environment has nothing but the scoring server".to_owned());
    }
    Ok(("the project", inference))
}

fn deployment(folder: &Path, options: &ProjectOptions) -> Result<Deployment, Failure> {
    match options.deployment_config.as_deref().or_else(|| first(folder, &DEPLOYMENT)) {
        Some(file) => Deployment::read(&Document::read(&folder.join(file), file)?),
        None => Ok(Deployment::default()),
    }
}

fn first(folder: &Path, names: &[&'static str]) -> Option<&'static str> {
    names.iter().copied().find(|name| folder.join(name).is_file())
}

/// The folder that paths in the inference configuration are relative to.
fn source(folder: &Path, directory: Option<&str>, file: &str) -> Result<PathBuf, Failure> {
    let path = folder.join(directory.unwrap_or("."));
    std::fs::canonicalize(&path).ok().filter(|path| path.is_dir()).ok_or_else(|| {
        let cause = format!("the sourceDirectory {} of {file} is no folder", path.display());
        Failure::project(Stage::Reading, cause, "name a folder relative to the project's")
    })
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

/// What keeps a folder from being sent, with what to do about it.
fn walked(error: walk::Error) -> Failure {
    let remedy = match &error {
        walk::Error::TooBig { .. } | walk::Error::TooMany { .. } => {
            "leave files out with .amlignore, register large ones as models, or have --max-project-size of the packager raised"
        }
        walk::Error::Unreadable(_) => "see that you may read them, or leave them out with .amlignore",
        walk::Error::NotUtf8(_) => "rename it, or leave its folder out with .amlignore",
        walk::Error::Link { .. } => "put the file itself in its place, or leave the link out with .amlignore",
        walk::Error::NoSuch { .. } => "name a folder that is there",
    };
    let biggest: Vec<String> = match &error {
        walk::Error::TooBig { biggest, .. } => {
            biggest.iter().map(|(size, path)| format!("{size:>14} bytes  {path}")).collect()
        }
        _ => Vec::new(),
    };
    Failure::project(Stage::Reading, error.to_string(), remedy).with_details(biggest.iter().map(String::as_str))
}

#[cfg(test)]
mod tests;
