//! `kaai package`: the zip of a folder, as the packager would make it.

use std::path::{Path, PathBuf};

use packager::{archive, walk::Walk};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    command::deploy::SizeArgs,
    ending::{Ending, Result},
    output::{self, Format, Stages},
};

/// Write the zip of a folder, as kaai would make it, or list what would be in it
///
/// Git's ignore rules hold; an .amlignore at the root replaces every .gitignore.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// The zip to write [default: the folder's name and .zip, in the current folder]
    #[arg(value_name = "ZIP")]
    zip: Option<PathBuf>,
    /// Only list what would be in it
    #[arg(long, short, conflicts_with = "zip")]
    list: bool,
    #[command(flatten)]
    size: SizeArgs,
}

/// Walks, and writes unless it should only list.
pub async fn run(args: Args, format: Format) -> Result {
    let (folder, limits) = (args.folder.clone(), args.size.limits());
    let walk = tokio::task::spawn_blocking(move || Walk::project(&folder, limits))
        .await
        .map_err(|error| Ending::platform(error.to_string(), "this is a defect of kaai; please report it"))?
        .map_err(packager::walked)?;
    if args.list {
        list(&walk, format);
        return Ok(());
    }
    let zip = match args.zip {
        Some(zip) => zip,
        None => default_zip(&args.folder)?,
    };
    write(walk, &zip, format).await
}

fn list(walk: &Walk, format: Format) {
    for warning in &walk.warnings {
        output::aside(&format!("warning  {warning}"));
    }
    match format {
        Format::Json => output::json(&walk.files.iter().map(|file| &file.path).collect::<Vec<_>>()),
        Format::Text => {
            let text: String = walk.files.iter().map(|file| format!("{}\n", file.path)).collect();
            output::raw(text.as_bytes());
        }
    }
}

async fn write(walk: Walk, zip: &Path, format: Format) -> Result {
    for warning in &walk.warnings {
        output::aside(&format!("warning  {warning}"));
    }
    let begun = Instant::now();
    let mut stages = Stages::new(format);
    stages.news("packaging", &output::count(walk.files.len() as u64, "file"));
    let (out, ignored) = (zip.to_owned(), walk.ignored);
    let written = tokio::task::spawn_blocking(move || archive::write(&walk, &out)).await;
    stages.clear();
    let archive = written
        .map_err(|error| Ending::platform(error.to_string(), "this is a defect of kaai; please report it"))?
        .map_err(packager::not_packed)?;
    match format {
        Format::Json => output::json(
            &json!({ "zip": zip, "digest": archive.digest, "size": archive.size, "files": archive.files, "ignored": ignored }),
        ),
        Format::Text => {
            let what = format!(
                "{}, {}, {ignored} left out",
                output::count(archive.files, "file"),
                output::bytes(archive.size)
            );
            output::line(&format!(
                "{}  {}  {what} ({})",
                zip.display(),
                archive.digest,
                output::seconds(begun.elapsed())
            ));
        }
    }
    Ok(())
}

fn default_zip(folder: &Path) -> Result<PathBuf> {
    let real = std::fs::canonicalize(folder)
        .map_err(|error| Ending::mend(format!("{}: {error}", folder.display()), "give a folder"))?;
    let name = real
        .file_name()
        .ok_or_else(|| Ending::usage("the folder has no name", "name the zip: kaai package FOLDER ZIP"))?;
    let mut zip = PathBuf::from(name);
    zip.as_mut_os_string().push(".zip");
    Ok(zip)
}
