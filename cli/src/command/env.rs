//! `kaai env`: the identity of an environment, and why two differ.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use builder::identity;
use clap::Subcommand;
use packager::{
    project,
    walk::{Limits, Links},
};
use proto::{
    id::ServiceName,
    query::{DescribeEnvironment, EnvironmentDescription, ForgetFailure, GetBuildLog, GetScanReport},
    spec::EnvironmentSpec,
};
use serde_json::json;

use crate::{
    command::{deploy::ProjectArgs, logs},
    connection::{ASK, Connection, Reach},
    ending::{Ending, Result},
    output::{self, Format},
};

/// How long the builder may take to find out what base images are.
const RESOLVE: Duration = Duration::from_secs(30);

/// Show the identity of an environment, why two differ, how one was built, and what a scan found
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show what a project's environment is made of, and its hash
    Show {
        /// The project's folder
        #[arg(default_value = ".")]
        folder: PathBuf,
        #[command(flatten)]
        project: ProjectArgs,
        #[command(flatten)]
        by: By,
    },
    /// Say in what the environments of two projects differ
    Why {
        /// A project's folder, or a service that runs
        a: String,
        /// Another
        b: String,
        #[command(flatten)]
        by: By,
    },
    /// Build an environment again that could not be built, without waiting until that is forgotten
    Retry {
        /// The environment's hash, or its first digits (at least 6)
        hash: String,
    },
    /// Show the report of an environment's newest scan, whether it passed or not
    Scan {
        /// The environment's hash, or its first digits (at least 6)
        hash: String,
    },
    /// Show the log of an environment's newest build
    Log {
        /// The environment's hash, or its first digits (at least 6)
        #[arg(required_unless_present = "folder")]
        hash: Option<String>,
        /// The project whose environment it is, in place of a hash
        #[arg(long, conflicts_with = "hash")]
        folder: Option<PathBuf>,
        /// How many of the last lines
        #[arg(long, short = 'n', default_value_t = 5000)]
        lines: u32,
    },
}

/// Who says what an environment is.
#[derive(Debug, Clone, Copy, clap::Args)]
struct By {
    /// Ask the builder, for which base images count by their digests of this moment, and not their names
    #[arg(long)]
    resolve: bool,
}

impl By {
    /// Describes an environment.
    async fn describe(self, spec: EnvironmentSpec, reach: &Reach) -> Result<EnvironmentDescription> {
        if self.resolve {
            return resolved(spec, &reach.connect().await?).await;
        }
        let refused = |refused: builder::environment::Refused| Ending::from(refused.into_failure());
        let hash = identity::hash(&spec).map_err(refused)?;
        Ok(EnvironmentDescription { hash, facts: identity::facts(&spec).map_err(refused)? })
    }
}

async fn resolved(environment: EnvironmentSpec, connection: &Connection) -> Result<EnvironmentDescription> {
    Ok(connection.bus.ask(connection.workspace(), &DescribeEnvironment { environment }, RESOLVE).await?)
}

/// Reads projects here; asks only for services, logs and digests.
pub async fn run(args: Args, reach: &Reach, format: Format) -> Result {
    match args.action {
        Action::Show { folder, project, by } => {
            show(by.describe(read(&folder, &project)?, reach).await?, by, format);
            Ok(())
        }
        Action::Why { a, b, by } => {
            let before = by.describe(one(&a, reach).await?, reach).await?;
            let after = by.describe(one(&b, reach).await?, reach).await?;
            why(&before, &after, format);
            Ok(())
        }
        Action::Retry { hash } => {
            let connection = reach.connect().await?;
            let query = ForgetFailure { environment: hash };
            let hash = connection.bus.ask(connection.workspace(), &query, ASK).await?;
            match format {
                Format::Json => output::json(&json!({ "environment": hash })),
                Format::Text => {
                    output::line(&format!("environment {} is built again when it is next asked for", hash.short()))
                }
            }
            Ok(())
        }
        Action::Scan { hash } => {
            let connection = reach.connect().await?;
            let report = connection.bus.ask(connection.workspace(), &GetScanReport { environment: hash }, ASK).await?;
            match format {
                Format::Json => output::json(&report),
                Format::Text => {
                    report.text.lines().for_each(output::line);
                    if report.cut {
                        output::aside(
                            "(the rest is left out; all of it is in the object store, and attached to the image)",
                        );
                    }
                }
            }
            Ok(())
        }
        Action::Log { hash, folder, lines } => {
            let connection = reach.connect().await?;
            let environment = match (hash, folder) {
                (Some(hash), _) => hash,
                (None, folder) => {
                    let spec = read(&folder.unwrap_or_else(|| ".".into()), &ProjectArgs::default())?;
                    resolved(spec, &connection).await?.hash.to_string()
                }
            };
            let query = GetBuildLog { environment, lines };
            logs::show(&connection.bus.ask(connection.workspace(), &query, ASK).await?, format)
        }
    }
}

/// The environment of a folder, else of the service of that name.
async fn one(name: &str, reach: &Reach) -> Result<EnvironmentSpec> {
    let folder = Path::new(name);
    if folder.is_dir() {
        return read(folder, &ProjectArgs::default());
    }
    let service: ServiceName = name.parse().map_err(|_| {
        Ending::usage(format!("{name} is neither a folder nor a service"), "give the folder of a project")
    })?;
    let record = reach.connect().await?.service(&service).await?.value;
    let release = record.active.or(record.candidate);
    let release = release
        .ok_or_else(|| Ending::mend(format!("{service} has no generation that serves"), "give a folder instead"))?;
    Ok(release.spec.environment)
}

fn read(folder: &Path, project: &ProjectArgs) -> Result<EnvironmentSpec> {
    let folder = std::fs::canonicalize(folder).map_err(|error| {
        Ending::mend(format!("{} cannot be read: {error}", folder.display()), "give the folder of a project")
    })?;
    // The name is no part of an environment: a folder whose name makes no service is fine here.
    let service = project::default_name(&folder)
        .or_else(|_| "environment".parse())
        .map_err(|error| Ending::platform(error.to_string(), ""))?;
    // Nothing is sent, so nothing is too much.
    let (options, limits) = (project.options(), Limits { bytes: u64::MAX, ..Limits::PROJECT });
    Ok(project::read_within(&folder, &options, &service, limits, Links::Anywhere)?.spec.environment)
}

fn show(environment: EnvironmentDescription, by: By, format: Format) {
    match format {
        Format::Json => output::json(&environment),
        Format::Text => {
            output::line(&format!("{}\n", environment.hash));
            let rows: Vec<_> = environment.facts.into_iter().map(|fact| vec![fact.path, fact.value]).collect();
            output::table(&["FACT", "VALUE"], &rows);
            if !by.resolve {
                output::aside(
                    "(where environments are images a base image counts by its digest of that moment: --resolve asks the builder)",
                );
            }
        }
    }
}

fn why(before: &EnvironmentDescription, after: &EnvironmentDescription, format: Format) {
    let differences = identity::differences(&before.facts, &after.facts);
    let (one, other) = (&before.hash, &after.hash);
    if format == Format::Json {
        output::json(
            &json!({ "same": differences.is_empty(), "before": one, "after": other, "differences": differences }),
        );
        return;
    }
    if differences.is_empty() {
        output::line(&format!("the same: {one}"));
        return;
    }
    let facts = before.facts.len();
    output::line(&format!("different: {} of {facts} facts  ({} → {})", differences.len(), one.short(), other.short()));
    let rows: Vec<_> = differences
        .into_iter()
        .map(|difference| {
            let none = || "–".to_owned();
            vec![
                String::new(),
                difference.path,
                difference.before.unwrap_or_else(none),
                "→".to_owned(),
                difference.after.unwrap_or_else(none),
            ]
        })
        .collect();
    output::table(&["", "FACT", "BEFORE", "", "AFTER"], &rows);
}
