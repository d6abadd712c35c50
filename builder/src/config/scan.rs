//! Settings of the scan gate.

use std::{ffi::OsString, time::Duration};

use super::found_on;
use crate::scan::ScanSettings;

/// The scanner, as typed.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Scanning environments")]
pub struct ScanArgs {
    /// Command that every environment has to pass: {image} in it becomes the image by digest, {sbom} a file with its packages (CycloneDX), {report} the file for the report, which is standard output without it
    #[arg(long, env = "KAAI_SCAN_COMMAND", value_name = "COMMAND")]
    pub scan_command: Option<String>,
    /// How many seconds one scan may take
    #[arg(long, env = "KAAI_SCAN_DEADLINE_SECONDS", default_value_t = 300, value_name = "SECONDS")]
    pub scan_deadline_seconds: u64,
}

impl ScanArgs {
    /// What the arguments say; none without a command.
    ///
    /// # Errors
    ///
    /// Fails in words when the command cannot scan anything, or its program is not there.
    pub fn read(&self, with_images: bool) -> Result<Option<ScanSettings>, String> {
        let Some(command) = &self.scan_command else { return Ok(None) };
        if self.scan_deadline_seconds == 0 {
            return Err("--scan-deadline-seconds is 0; choose at least 1".to_owned());
        }
        let deadline = Duration::from_secs(self.scan_deadline_seconds);
        let settings = ScanSettings::read(command, with_images, deadline, variables())?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let program = settings.program();
        let there = match program.contains('/') {
            true => std::path::Path::new(program).is_file(),
            false => found_on(&std::env::split_paths(&path).collect::<Vec<_>>(), program.as_ref()).is_some(),
        };
        match there {
            true => Ok(Some(settings)),
            false => Err(format!(
                "--scan-command {command:?}: there is no program {program} here; install it where the builder runs"
            )),
        }
    }
}

/// A scanner has settings, logins and a cache of its own, which it finds by its variables; ours are none of its business.
fn variables() -> Vec<(String, OsString)> {
    let all = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    all.filter(|(name, _)| !name.starts_with("KAAI_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scanner_that_is_not_there_is_told_at_the_start() {
        let read = |command: &str| {
            ScanArgs { scan_command: Some(command.to_owned()), scan_deadline_seconds: 9 }
                .read(true)
                .map(|scan| scan.is_some())
        };
        assert!(read("cat {sbom}").unwrap());
        assert!(read("no-such-scanner {image}").unwrap_err().contains("there is no program no-such-scanner"));
        assert!(read("/nowhere/trivy {image}").unwrap_err().contains("there is no program /nowhere/trivy"));
        assert!(ScanArgs::default().read(true).unwrap().is_none());
    }
}
