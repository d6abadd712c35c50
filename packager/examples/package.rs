//! Writes the zip of a folder: what `kaai package FOLDER -o OUT.zip` does, for measuring this library alone.

use std::path::PathBuf;

use clap::Parser;
use packager::walk::{Limits, Walk};

#[derive(Parser)]
enum Command {
    /// Writes the zip of a folder.
    Package {
        /// The folder.
        folder: PathBuf,
        /// The zip.
        #[arg(short, long)]
        output: PathBuf,
    },
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Command::Package { folder, output } = Command::parse();
    let limits = Limits { bytes: u64::MAX, ..Limits::PROJECT };
    packager::archive::write(&Walk::project(&folder, limits)?, &output)?;
    Ok(())
}
