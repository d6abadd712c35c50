//! The scan gate: a command of the operator's looks at an environment before anything may run in it.
//!
//! The command is told where the image is, or which packages the environment has. Its exit status and its report decide together: with
//! status 0 and a report the environment passes; with another status and a report it is refused; without a report nothing was found out,
//! and nothing passes that was not looked at. It knows commands and reports. It does not know how environments are made.

mod report;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use proto::{
    builder::Scan,
    failure::{Failure, Stage},
    id::EnvironmentHash,
};
use runtime::store::Store;
use tokio::{io::AsyncReadExt, process::Command, time::timeout};

use crate::{build_log::BuildLog, disk::disk, process, process::Ended};

/// How much of a report is read.
const LARGEST_REPORT: u64 = 16 << 20;
/// What stands for the reference of the image.
const IMAGE: &str = "{image}";
/// What stands for a file with the list of packages.
const PACKAGES: &str = "{sbom}";
/// What stands for the file that the report is written to.
const REPORT: &str = "{report}";

/// The command that looks, as configured and checked.
#[derive(Debug, Clone)]
pub struct ScanSettings {
    /// As typed.
    command: String,
    words: Vec<String>,
    deadline: Duration,
    /// All environment variables of the scanner.
    variables: Vec<(String, OsString)>,
}

/// Has environments scanned, and keeps the reports.
#[derive(Clone)]
pub(crate) struct Scanner {
    settings: ScanSettings,
    store: Store,
}

/// What is looked at.
pub(crate) struct Subject<'a> {
    pub(crate) environment: &'a EnvironmentHash,
    /// The image, by digest.
    pub(crate) image: Option<&'a str>,
    /// Its packages, as CycloneDX; none where an image brought its own.
    pub(crate) packages: Option<&'a [u8]>,
}

/// Where the report of the newest scan of an environment lies.
pub(crate) fn report_key(environment: &EnvironmentHash) -> String {
    format!("logs/scans/{environment}")
}

impl ScanSettings {
    /// Reads a command: words as a shell splits them, of which `{image}`, `{sbom}` and `{report}` stand for what is filled in.
    ///
    /// # Errors
    ///
    /// Fails when the command says nothing of what is to be scanned, or asks for an image where there are none.
    pub(crate) fn read(
        command: &str,
        with_images: bool,
        deadline: Duration,
        variables: Vec<(String, OsString)>,
    ) -> Result<Self, String> {
        let wrong = |why: &str| Err(format!("--scan-command {command:?}: {why}"));
        let Some(words) = shlex::split(command).filter(|words| !words.is_empty()) else {
            return wrong("a quote is not closed, or nothing is there");
        };
        let told = |what: &str| words.iter().any(|word| word.contains(what));
        if !told(IMAGE) && !told(PACKAGES) {
            return wrong("it is not told what to look at; write {image} or {sbom} where that belongs");
        }
        if told(IMAGE) && !with_images {
            return wrong("there are no images here (no --registry); let it look at {sbom}");
        }
        Ok(Self { command: command.to_owned(), words, deadline, variables })
    }

    /// The program, as typed.
    pub(crate) fn program(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    fn name(&self) -> &str {
        self.program().rsplit('/').next().unwrap_or_default()
    }

    fn looks_at(&self, what: &str) -> bool {
        self.words.iter().any(|word| word.contains(what))
    }
}

impl Scanner {
    pub(crate) fn new(settings: ScanSettings, store: Store) -> Self {
        Self { settings, store }
    }

    /// Whether a scan that was passed is one that this scanner would have made.
    pub(crate) fn knows(&self, scan: Option<&Scan>) -> bool {
        scan.is_some_and(|scan| scan.command == self.settings.command)
    }

    /// Has something scanned, and returns what was found and the report.
    ///
    /// # Errors
    ///
    /// Fails when the scanner refuses it, or found nothing out.
    pub(crate) async fn scan(&self, subject: &Subject<'_>, log: &BuildLog) -> Result<(Scan, Vec<u8>), Failure> {
        let (name, settings) = (self.settings.name(), &self.settings);
        if !settings.looks_at(IMAGE) && subject.packages.is_none() {
            return Err(Failure::project(
                Stage::Building,
                format!(
                    "{name} looks at lists of packages, and this environment's image brings packages that no list has"
                ),
                "let the operator have images scanned (`{image}` in --scan-command), or leave the packages to kaai",
            ));
        }
        let folder = tempfile::tempdir().map_err(|error| disk(&std::env::temp_dir(), &error))?;
        let (list, report) = (folder.path().join("sbom.cdx.json"), folder.path().join("report"));
        tokio::fs::write(&list, subject.packages.unwrap_or(b"{}")).await.map_err(|error| disk(&list, &error))?;
        log.line(&format!("scanning with {name}"));
        let filled = [
            (IMAGE, subject.image.unwrap_or_default()),
            (PACKAGES, &*list.to_string_lossy()),
            (REPORT, &*report.to_string_lossy()),
        ];
        let running = process::run(settings.command(&filled, folder.path()), |_| ());
        let ended = match timeout(settings.deadline, running).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(error)) => return Err(settings.failed(&format!("cannot be run: {error}"))),
            Err(_) => return Err(settings.failed(&format!("was not ready within {} s", settings.deadline.as_secs()))),
        };
        let report = settings.report(&ended, &report).await?;
        self.keep(subject.environment, &report).await;
        settings
            .verdict(&ended, &report, subject.environment)
            .inspect(|scan| log.line(&format!("{name} found {}", scan.found)))
            .map(|scan| (scan, report))
    }

    /// Keeps a report where it can be asked for. A store that fails costs the report, not the build.
    async fn keep(&self, environment: &EnvironmentHash, report: &[u8]) {
        if let Err(error) = self.store.put_bytes(&report_key(environment), report.to_vec()).await {
            tracing::warn!(%environment, %error, "the report of the scan is not kept in the store");
        }
    }
}

impl ScanSettings {
    fn command(&self, filled: &[(&str, &str)], folder: &Path) -> Command {
        let fill = |word: &String| filled.iter().fold(word.clone(), |word, (what, value)| word.replace(what, value));
        let mut words = self.words.iter().map(fill);
        let mut command = Command::new(words.next().unwrap_or_default());
        command
            .args(words)
            .env_clear()
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .current_dir(folder);
        command
    }

    /// The report: the file that the command was told to write, else what it wrote to its standard output.
    async fn report(&self, ended: &Ended, file: &PathBuf) -> Result<Vec<u8>, Failure> {
        let mut report = Vec::new();
        if !self.looks_at(REPORT) {
            report.extend(ended.stdout.join("\n").into_bytes());
        } else if let Ok(file) = tokio::fs::File::open(file).await {
            let read = file.take(LARGEST_REPORT).read_to_end(&mut report).await;
            read.map_err(|error| self.failed(&format!("wrote a report that cannot be read: {error}")))?;
        }
        Ok(report)
    }

    fn verdict(&self, ended: &Ended, report: &[u8], environment: &EnvironmentHash) -> Result<Scan, Failure> {
        if report.trim_ascii().is_empty() {
            let last = ended.stderr.iter().rev().find(|line| !line.trim().is_empty());
            let last = last.map_or_else(|| "it said nothing".to_owned(), |line| line.trim().to_owned());
            return Err(self.failed(&format!("gave no report ({}): {last}", ended.status)));
        }
        let found = report::found(report);
        if !ended.status.success() {
            return Err(Failure::project(
                Stage::Building,
                format!("{} refuses the environment: {found}", self.name()),
                format!(
                    "see its report with `kaai env scan {}`, and ask for versions without what it names",
                    environment.short()
                ),
            ));
        }
        Ok(Scan { command: self.command.clone(), found, scanned: runtime::clock::now_rfc3339() })
    }

    fn failed(&self, what: &str) -> Failure {
        Failure::platform(
            Stage::Building,
            format!("the scanner {} {what}", self.name()),
            "mend it where the builder runs (--scan-command); nothing passes that was not looked at",
        )
    }
}

#[cfg(test)]
mod tests {
    use proto::failure::Blame;

    use super::*;

    fn read(command: &str) -> Result<ScanSettings, String> {
        ScanSettings::read(command, true, Duration::from_secs(20), vec![("PATH".to_owned(), "/usr/bin:/bin".into())])
    }

    async fn scan(script: &str) -> (Result<(Scan, Vec<u8>), Failure>, Option<Vec<u8>>) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("store").as_path()).unwrap();
        let script = script.replace('\'', "'\\''");
        let scanner = Scanner::new(
            read(&format!("/bin/sh -c '{script}' x {{image}} {{sbom}} {{report}}")).unwrap(),
            store.clone(),
        );
        let environment = EnvironmentHash::from_sha256([7; 32]);
        let subject =
            Subject { environment: &environment, image: Some("r/e@sha256:0"), packages: Some(b"{\"components\":[]}") };
        let log = BuildLog::new(folder.path().join("log"));
        let answer = scanner.scan(&subject, &log).await;
        (answer, store.read(&report_key(&environment)).await.ok().map(Into::into))
    }

    #[test]
    fn a_command_that_cannot_scan_is_refused_at_the_start() {
        for (command, why) in [
            ("", "nothing is there"),
            ("trivy 'image", "a quote is not closed"),
            ("trivy image", "write {image} or {sbom}"),
        ] {
            assert!(read(command).unwrap_err().contains(why), "{command}");
        }
        let here = ScanSettings::read("trivy image {image}", false, Duration::ZERO, Vec::new()).unwrap_err();
        assert!(here.contains("there are no images here"), "{here}");
        assert!(read("trivy sbom {sbom} --output={report}").is_ok());
    }

    #[tokio::test]
    async fn status_and_report_decide_together() {
        let (passed, kept) = scan("echo \"$1\"; cat \"$2\"; echo fine > \"$3\"").await;
        let (passed, report) = passed.unwrap();
        assert_eq!((passed.found.as_str(), passed.scanner(), report.as_slice()), ("fine", "sh", b"fine\n".as_slice()));
        assert_eq!(kept.unwrap(), b"fine\n");

        let matches = r#"echo "{\"matches\":[{\"vulnerability\":{\"severity\":\"High\"}}]}" > "$3"; exit 2"#;
        let (refused, kept) = scan(matches).await;
        let refused = refused.unwrap_err();
        assert_eq!((refused.blame, refused.cause.as_str()), (Blame::Project, "sh refuses the environment: 1 high"));
        assert!(refused.remedy.contains("kaai env scan 07070707"), "{}", refused.remedy);
        assert!(kept.is_some(), "the report of a refusal is what the user needs");

        for (script, why) in [
            ("exit 0", "gave no report (exit status: 0): it said nothing"),
            ("echo no database >&2; exit 1", "gave no report (exit status: 1): no database"),
        ] {
            let failure = scan(script).await.0.unwrap_err();
            assert_eq!(failure.blame, Blame::Platform, "{script}");
            assert!(failure.cause.contains(why), "{}", failure.cause);
        }
    }

    #[tokio::test]
    async fn what_has_no_list_of_packages_does_not_pass_a_scanner_of_lists() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let scanner = Scanner::new(read("cat {sbom}").unwrap(), store);
        let environment = EnvironmentHash::from_sha256([7; 32]);
        let subject = Subject { environment: &environment, image: Some("r/e@sha256:0"), packages: None };
        let failure = scanner.scan(&subject, &BuildLog::new(folder.path().join("log"))).await.unwrap_err();
        assert!(failure.cause.contains("brings packages that no list has"), "{}", failure.cause);
    }
}
