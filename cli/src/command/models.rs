//! `kaai models`: registered models.

use std::path::PathBuf;

use clap::Subcommand;
use packager::project::models::NamedModel;
use proto::query::ListModels;
use serde_json::json;

use crate::{
    connection::{ASK, Reach},
    ending::Result,
    output::{self, Format, Stages},
    upload,
};

/// Register models and list them
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Register a file or folder as the next version of a model
    ///
    /// A path laid out as v1 lays out models, azureml-models/NAME/VERSION/ENTRY, keeps its version.
    Register {
        /// The model, as NAME or NAME:VERSION
        model: String,
        /// The file or folder
        path: PathBuf,
    },
    /// List the models and their versions
    List,
}

/// Registers or lists.
pub async fn run(args: Args, reach: &Reach, format: Format) -> Result {
    match args.action {
        Action::Register { model, path } => {
            let named = NamedModel::new(&model, &path)?;
            let connection = reach.connect().await?;
            let mut stages = Stages::new(format);
            let version = upload::model(&connection, &named, false, &mut stages).await?;
            stages.clear();
            match format {
                Format::Json => output::json(
                    &json!({ "name": named.name, "version": version.version, "id": format!("{}:{}", named.name, version.version),
                    "digest": version.archive.digest, "size": version.archive.size, "entry": version.entry, "created": version.created }),
                ),
                Format::Text => output::line(&format!(
                    "{}:{}  {}  {}",
                    named.name,
                    version.version,
                    version.entry,
                    output::bytes(version.archive.size)
                )),
            }
        }
        Action::List => {
            let connection = reach.connect().await?;
            let models = connection.bus.ask(connection.workspace(), &ListModels {}, ASK).await?;
            if format == Format::Json {
                output::json(&models);
                return Ok(());
            }
            let rows: Vec<_> = models
                .iter()
                .flat_map(|model| model.versions.iter().rev().map(move |version| (model, version)))
                .map(|(model, version)| {
                    let size = output::bytes(version.archive.size);
                    let created = version.created.get(..19).unwrap_or(&version.created).replace('T', " ");
                    vec![model.name.to_string(), version.version.to_string(), version.entry.clone(), size, created]
                })
                .collect();
            output::table(&["MODEL", "VERSION", "ENTRY", "SIZE", "REGISTERED"], &rows);
        }
    }
    Ok(())
}
