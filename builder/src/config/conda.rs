//! Settings of conda packages.

use std::path::{Path, PathBuf};

use proto::secret;

/// The program that installs conda packages, as typed.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Conda packages")]
pub struct CondaArgs {
    /// The kaai-conda program, which installs conda packages; looked for beside this program and on PATH, and without it they are refused
    #[arg(long, env = "KAAI_CONDA_PROGRAM", value_name = "FILE")]
    pub conda_program: Option<PathBuf>,
    /// Address that stands before the names of conda channels, for a mirror; that of conda.anaconda.org if none is given
    #[arg(long, env = "KAAI_CONDA_CHANNEL_ALIAS", value_name = "URL")]
    pub conda_channel_alias: Option<String>,
}

/// The program that installs conda packages, and where its channels are.
#[derive(Debug, Clone)]
pub struct CondaSettings {
    /// The program; looked for where none is named.
    pub program: Option<PathBuf>,
    /// What stands before the names of channels.
    pub alias: String,
}

impl Default for CondaSettings {
    fn default() -> Self {
        Self { program: None, alias: "https://conda.anaconda.org".to_owned() }
    }
}

impl CondaArgs {
    /// What the arguments say.
    ///
    /// # Errors
    ///
    /// Fails in words when the program is not there, or the address is none or has a password in it.
    pub fn read(&self) -> Result<CondaSettings, String> {
        let mut settings = CondaSettings { program: self.conda_program.clone(), ..CondaSettings::default() };
        if let Some(program) = self.conda_program.as_ref().filter(|program| !program.is_file()) {
            return Err(format!("--conda-program {}: there is no such file", program.display()));
        }
        if let Some(alias) = &self.conda_channel_alias {
            if secret::is_in_channel(alias) {
                return Err(format!("the address of --conda-channel-alias {}", secret::CARRIES));
            }
            url::Url::parse(alias)
                .map_err(|error| format!("--conda-channel-alias {alias:?} is no address: {error}"))?;
            settings.alias = alias.clone();
        }
        Ok(settings)
    }
}

impl CondaSettings {
    /// The program: the one that is named, else the one beside this program, else one on PATH.
    pub(crate) fn found(&self, path: &[PathBuf]) -> Option<PathBuf> {
        if let Some(program) = &self.program {
            return std::path::absolute(program).ok();
        }
        let beside = std::env::current_exe().ok();
        let beside = beside.as_deref().and_then(Path::parent).map(Path::to_owned);
        let folders = beside.into_iter().chain(path.iter().cloned());
        folders.map(|folder| folder.join("kaai-conda")).find(|candidate| candidate.is_file())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_there_and_an_alias_with_a_password_are_refused() {
        let read = |program: Option<&str>, alias: Option<&str>| {
            let args = CondaArgs { conda_program: program.map(Into::into), conda_channel_alias: alias.map(Into::into) };
            args.read()
        };
        assert!(read(Some("/nowhere/kaai-conda"), None).unwrap_err().contains("there is no such file"));
        let refused = read(None, Some("https://u:hunter2@conda.example.org")).unwrap_err();
        assert!(refused.contains("password or token") && !refused.contains("hunter2"), "{refused}");
        assert!(read(None, Some("conda")).unwrap_err().contains("is no address"));
        assert_eq!(read(None, None).unwrap().alias, "https://conda.anaconda.org");
    }

    #[test]
    fn the_program_is_looked_for_on_the_path() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(CondaSettings::default().found(&[folder.path().to_owned()]), None);
        std::fs::write(folder.path().join("kaai-conda"), "").unwrap();
        let found = CondaSettings::default().found(&[folder.path().to_owned()]);
        assert_eq!(found, Some(folder.path().join("kaai-conda")));
    }
}
