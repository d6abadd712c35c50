//! Writes the zip of a folder: what `kaai package FOLDER ZIP` does, for measuring this library alone.

use std::path::PathBuf;

use clap::Parser;
use packager::walk::{Limits, Walk};

#[derive(Parser)]
#[command(version)]
enum Command {
    /// Writes the zip of a folder.
    Package {
        /// The folder.
        folder: PathBuf,
        /// The zip.
        zip: PathBuf,
        /// The most bytes of files together, in MiB.
        #[arg(long, default_value_t = 300)]
        max_project_size: u64,
    },
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Command::Package { folder, zip, max_project_size } = Command::parse();
    let limits = Limits { bytes: max_project_size.saturating_mul(1 << 20), ..Limits::PROJECT };
    packager::archive::write(&Walk::project(&folder, limits)?, &zip)?;
    Ok(())
}
