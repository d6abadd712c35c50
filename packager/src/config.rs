//! The packager's settings: as typed ([`Args`]) and as checked ([`Config`]).

use std::path::PathBuf;

use runtime::config::{CommonArgs, StoreArgs};

use crate::walk::Limits;

/// Turns a project into an archive and a complete specification.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "kaai-packager", version)]
pub struct Args {
    /// Settings that every component has.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Where archives, models and logs lie.
    #[command(flatten)]
    pub store: StoreArgs,
    /// How many projects are packaged at a time
    #[arg(long, env = "KAAI_PACKAGER_JOBS", default_value_t = 4, value_name = "NUMBER")]
    pub jobs: usize,
    /// The most bytes of a project's files together, in MiB (v1's limit is 300)
    #[arg(long, env = "KAAI_MAX_PROJECT_SIZE", default_value_t = 300, value_name = "MIB")]
    pub max_project_size: u64,
    /// The most bytes of one archive that is sent over the bus, in MiB
    #[arg(long, env = "KAAI_MAX_UPLOAD_SIZE", default_value_t = 102_400, value_name = "MIB")]
    pub max_upload_size: u64,
    /// Folder for what is being packaged [default: the system's temporary folder]
    #[arg(long, env = "KAAI_PACKAGER_WORK", value_name = "FOLDER")]
    pub work: Option<PathBuf>,
    /// A folder in which projects may lie that are named by their path; may be given several times [default: any folder]
    #[arg(long, env = "KAAI_PROJECT_FOLDERS", value_delimiter = ':', value_name = "FOLDER")]
    pub project_folder: Vec<PathBuf>,
}

/// Checked settings of the packager. `Config::default()` is what a packager without arguments has.
#[derive(Debug, Clone)]
pub struct Config {
    /// How many projects are packaged at a time; at least 1.
    pub jobs: usize,
    /// What a project may hold.
    pub limits: Limits,
    /// The most bytes of one archive that is sent over the bus.
    pub max_upload: u64,
    /// Where zips are written before they are stored.
    pub work: PathBuf,
    /// Where projects may lie that are named by their path, and nothing outside which they may then reach; anywhere when empty,
    /// which is for a packager that serves the user whose machine it runs on.
    pub folders: Vec<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            jobs: 4,
            limits: Limits::PROJECT,
            max_upload: 100 << 30,
            work: std::env::temp_dir(),
            folders: Vec::new(),
        }
    }
}

/// A setting is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No work could ever be done.
    #[error("--jobs is 0; choose at least 1")]
    NoJobs,
    /// A folder for projects is not there.
    #[error("the folder {folder} for --project-folder cannot be used: {source}")]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl TryFrom<Args> for Config {
    type Error = Error;

    fn try_from(args: Args) -> Result<Self, Error> {
        if args.jobs == 0 {
            return Err(Error::NoJobs);
        }
        let real = |folder: PathBuf| std::fs::canonicalize(&folder).map_err(|source| Error::Folder { folder, source });
        let folders = args.project_folder.into_iter().map(real).collect::<Result<_, _>>()?;
        let limits = Limits { bytes: args.max_project_size.saturating_mul(1 << 20), ..Limits::PROJECT };
        let max_upload = args.max_upload_size.saturating_mul(1 << 20);
        let work = args.work.unwrap_or_else(std::env::temp_dir);
        Ok(Self { jobs: args.jobs, limits, max_upload, work, folders })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn config(args: &[&str]) -> Result<Config, Error> {
        Args::try_parse_from(["kaai-packager"].iter().chain(args)).unwrap().try_into()
    }

    #[test]
    fn without_arguments_the_settings_are_the_default_ones() {
        let (config, default) = (config(&[]).unwrap(), Config::default());
        assert_eq!(format!("{config:?}"), format!("{default:?}"));
    }

    #[test]
    fn a_setting_with_which_nothing_could_work_is_refused() {
        assert!(matches!(config(&["--jobs", "0"]), Err(Error::NoJobs)));
        assert!(matches!(config(&["--project-folder", "/no/such/folder"]), Err(Error::Folder { .. })));
    }
}
