//! `kaai deploy`: from a folder to an endpoint.

use std::{path::PathBuf, time::Duration};

use packager::{
    project,
    walk::{Limits, Links},
};
use proto::{
    id::ServiceName,
    packager::{DeploymentRequested, GitSource, ProjectOptions, Source},
    spec::Auth,
};
use serde_json::json;

use crate::{
    connection::{Connection, Reach},
    deployment::{Deployed, Follow},
    ending::{Ending, Result},
    output::{self, Format, Stages},
    upload,
};

/// Deploy a project: its folder, or a revision in a git repository
///
/// Reads inferenceconfig.json and deploymentconfig.json as Azure ML v1 did; a project without them is found by convention
/// (score.py, environment.yml) or described by options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The project's folder
    #[arg(default_value = ".", conflicts_with = "git")]
    folder: PathBuf,
    /// The service's name [default: the folder's]
    #[arg(long, short)]
    name: Option<ServiceName>,
    #[command(flatten)]
    project: ProjectArgs,
    #[command(flatten)]
    size: SizeArgs,
    /// A git repository in place of a folder, as `git clone` takes it
    #[arg(long, requires_all = ["revision", "name"])]
    git: Option<String>,
    /// The branch, tag or commit in that repository
    #[arg(long, requires = "git")]
    revision: Option<String>,
    /// The project's folder in that repository
    #[arg(long, requires = "git")]
    git_folder: Option<String>,
    /// Do not wait until it serves
    #[arg(long)]
    no_wait: bool,
    /// Seconds to wait until it serves
    #[arg(long, default_value_t = 1800)]
    timeout: u64,
}

/// How much a project may hold.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct SizeArgs {
    /// The most bytes of a project's files together, in MiB (v1's limit is 300); the packager has the same setting
    #[arg(long, env = "KAAI_MAX_PROJECT_SIZE", default_value_t = 300, value_name = "MIB")]
    max_project_size: u64,
}

impl SizeArgs {
    /// The same as the packager has it.
    pub fn limits(self) -> Limits {
        Limits { bytes: self.max_project_size.saturating_mul(1 << 20), ..Limits::PROJECT }
    }
}

/// What describes a project, beside or in place of its own files.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ProjectArgs {
    /// The inference configuration [default: inferenceconfig.json, if there]
    #[arg(long, visible_alias = "ic", value_name = "FILE")]
    inference_config: Option<String>,
    /// The deployment configuration [default: deploymentconfig.json, if there]
    #[arg(long, visible_alias = "dc", value_name = "FILE")]
    deployment_config: Option<String>,
    /// The script with init() and run()
    #[arg(long, visible_alias = "es", value_name = "FILE")]
    entry_script: Option<String>,
    /// The conda file
    #[arg(long, visible_alias = "cf", value_name = "FILE")]
    conda: Option<String>,
    /// A model: NAME:VERSION as registered, or NAME[:VERSION]=PATH to register it now
    #[arg(long, short, value_name = "MODEL")]
    model: Vec<String>,
    /// Leave models alone that lie in the folder by convention (azureml-models/, models/)
    #[arg(long, conflicts_with = "model")]
    no_models: bool,
}

impl ProjectArgs {
    /// The same in the words of a request. Paths are relative to the project's folder.
    pub fn options(&self) -> ProjectOptions {
        ProjectOptions {
            inference_config: self.inference_config.clone(),
            deployment_config: self.deployment_config.clone(),
            entry_script: self.entry_script.clone(),
            conda_file: self.conda.clone(),
            models: self.model.clone(),
            no_models: self.no_models,
        }
    }
}

/// Reads the project here, so that its mistakes are told at once, then asks for the deployment and follows it.
pub async fn run(args: Args, reach: &Reach, format: Format) -> Result {
    let connection;
    let (service, request) = match &args.git {
        Some(address) => {
            let asked = from_git(&args, address)?;
            connection = reach.connect().await?;
            asked
        }
        None => {
            let folder = std::fs::canonicalize(&args.folder).map_err(|error| {
                Ending::mend(
                    format!("{} cannot be read: {error}", args.folder.display()),
                    "give the folder of a project",
                )
            })?;
            let options = args.project.options();
            let service = match &args.name {
                Some(name) => name.clone(),
                None => project::default_name(&folder)?,
            };
            let project = project::read_within(&folder, &options, &service, args.size.limits(), Links::Anywhere)?;
            connection = reach.connect().await?;
            let request = match connection.context.shared_files {
                true => plain_request(Source::Folder(folder.display().to_string()), options),
                false => upload::send(&connection, project, format).await?,
            };
            (service, request)
        }
    };
    if args.no_wait {
        let mut stages = Stages::new(format);
        let generation = Follow::prepare(&connection, &service, &mut stages).await?.request(&request).await?;
        match format {
            Format::Json => output::json(&json!({ "service": service, "generation": generation })),
            Format::Text => {
                output::line(&format!("generation {generation} of {service} is on its way; kaai status {service}"))
            }
        }
        return Ok(());
    }
    let deployed = deploy(&connection, &service, &request, format, Duration::from_secs(args.timeout)).await?;
    match format {
        Format::Json => output::json(&deployed),
        Format::Text => hint(&connection, &deployed).await,
    }
    Ok(())
}

/// Asks for a deployment and follows it to its end.
///
/// # Errors
///
/// Fails with the deployment's failure, or when it has not ended in time.
pub async fn deploy(
    connection: &Connection,
    service: &ServiceName,
    request: &DeploymentRequested,
    format: Format,
    limit: Duration,
) -> Result<Deployed> {
    let mut stages = Stages::new(format);
    let mut follow = Follow::prepare(connection, service, &mut stages).await?;
    follow.request(request).await?;
    let deployed = follow.end(limit).await?;
    stages.done("ready", &deployed.scoring_uri, None);
    Ok(deployed)
}

/// A request whose project's files the packager reads by itself.
pub fn plain_request(source: Source, options: ProjectOptions) -> DeploymentRequested {
    DeploymentRequested {
        source,
        spec: None,
        options,
        sealed_keys: None,
        sealed_login: None,
        extra: serde_json::Map::new(),
    }
}

fn from_git(args: &Args, address: &str) -> Result<(ServiceName, DeploymentRequested)> {
    let (Some(name), Some(revision)) = (&args.name, &args.revision) else {
        return Err(Ending::usage("a git source needs --name and --revision", "give both"));
    };
    let source = GitSource { address: address.to_owned(), revision: revision.clone(), folder: args.git_folder.clone() };
    packager::check_git(&source)?;
    Ok((name.clone(), plain_request(Source::Git(source), args.project.options())))
}

/// Prints a command that works, without the key itself.
async fn hint(connection: &Connection, deployed: &Deployed) {
    let open = match connection.find_service(&deployed.service).await {
        Ok(Some(entry)) => entry.value.active.is_some_and(|release| release.spec.auth == Auth::None),
        _ => return,
    };
    let kaai = output::program();
    let key = match open {
        true => String::new(),
        false => format!(" -H \"Authorization: Bearer $({kaai} keys show {} --only primary)\"", deployed.service),
    };
    output::aside(&format!(
        "\nask it   {kaai} invoke {} --data '…'\n         curl{key} -H 'Content-Type: application/json' -d '…' {}",
        deployed.service, deployed.scoring_uri
    ));
}
