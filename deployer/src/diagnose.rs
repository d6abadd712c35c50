//! Why a replica ended, in words for the user: from its exit, what the server reported, and the end of its log.
//!
//! Pure. It knows the shapes of Python's tracebacks and of the scoring server's complaints, and nothing about processes.

use proto::{
    deployer::Release,
    failure::{Failure, Stage},
    id::ServiceName,
    spec::CondaSpec,
};

use crate::backend::{Ended, Exit, Phase, Report};

/// Modules whose distribution has another name, among those that v1's users import most.
const DISTRIBUTIONS: &[(&str, &str)] = &[
    ("Crypto", "pycryptodome"),
    ("PIL", "Pillow"),
    ("azureml", "azureml-defaults"),
    ("bs4", "beautifulsoup4"),
    ("cv2", "opencv-python-headless"),
    ("dateutil", "python-dateutil"),
    ("dotenv", "python-dotenv"),
    ("google", "protobuf"),
    ("inference_schema", "inference-schema"),
    ("lightgbm", "lightgbm"),
    ("onnx", "onnx"),
    ("skimage", "scikit-image"),
    ("sklearn", "scikit-learn"),
    ("yaml", "PyYAML"),
];

/// What a replica's end says about the generation it ran.
pub fn failure(exit: &Exit, release: &Release, service: &ServiceName) -> Failure {
    let mut failure = if let Some(cause) = &exit.cause {
        cause.clone()
    } else if exit.out_of_memory {
        out_of_memory(release)
    } else if let Some(report) = &exit.report {
        reported(report, release)
    } else {
        silent(exit)
    };
    if failure.details.is_empty() {
        let lines = exit.report.as_ref().map_or(&exit.tail, |report| &report.traceback);
        failure = failure.with_details(lines.iter().map(String::as_str));
    }
    failure.with_log(format!("kaai logs {service} --generation {}", release.generation))
}

/// `init()` took longer than it may.
pub fn slow_init(seconds: u32) -> Failure {
    Failure::project(
        Stage::Starting,
        format!("init() did not finish within {seconds} s"),
        "make init() faster, or raise livenessProbeRequirements.initialDelaySeconds in deploymentconfig.json",
    )
}

/// A replica was killed at its memory limit.
fn out_of_memory(release: &Release) -> Failure {
    let limit = release.spec.resources.memory_gb_limit.unwrap_or(release.spec.resources.memory_gb);
    Failure::project(
        Stage::Starting,
        format!("killed at its memory limit of {limit} GiB"),
        "raise containerResourceRequirements.memoryInGBLimit in deploymentconfig.json, or load less",
    )
}

fn reported(report: &Report, release: &Release) -> Failure {
    let script = script_name(release);
    if report.phase == Phase::Server {
        return server_cannot_run(report, release);
    }
    match (report.kind.as_str(), &report.module) {
        ("ModuleNotFoundError", Some(module)) => missing_module(report, module, release),
        ("SyntaxError" | "IndentationError" | "TabError", _) => {
            let place = place(report, script);
            let text = report.message.split(" (").next().unwrap_or(&report.message);
            Failure::project(Stage::Starting, format!("{place}: {text}"), format!("mend {place}, then deploy again"))
        }
        ("UserScriptError", _) => unusable_script(report, script),
        ("SystemExit", _) => {
            let step = step(report, script);
            let cause = format!("{step} ended the process with exit({})", report.message);
            Failure::project(Stage::Starting, cause, "raise an exception instead, which says why")
        }
        (kind, _) => {
            let text =
                if report.message.is_empty() { String::new() } else { format!(": {}", one_line(&report.message)) };
            let cause = format!("{} raised {kind}{text}", step(report, script));
            Failure::project(Stage::Starting, cause, format!("mend {}, then deploy again", place(report, script)))
        }
    }
}

/// What was being run: `init() of score.py` or `importing score.py`.
fn step(report: &Report, script: &str) -> String {
    match report.phase {
        Phase::Init => format!("init() of {script}"),
        Phase::Import | Phase::Server => format!("importing {script}"),
    }
}

fn place(report: &Report, script: &str) -> String {
    match (&report.file, report.line) {
        (Some(file), Some(line)) => format!("{file} line {line}"),
        (Some(file), None) => file.clone(),
        _ => script.to_owned(),
    }
}

fn missing_module(report: &Report, module: &str, release: &Release) -> Failure {
    let top = module.split('.').next().unwrap_or(module);
    let package = DISTRIBUTIONS.iter().find(|(name, _)| *name == top).map_or(top, |(_, package)| package);
    let conda = &release.spec.environment.conda;
    let conda_file = conda.file.as_deref().unwrap_or("the conda file");
    let from = report.file.as_deref().unwrap_or_else(|| script_name(release));
    if lists(conda, package) {
        return Failure::project(
            Stage::Starting,
            format!("{from} cannot import {module}, though {conda_file} lists {package}"),
            format!("check which version of {package} has {module}"),
        );
    }
    let own = if release.spec.source_directory.is_none() {
        format!(
            "; if {top} is a file of your own, set sourceDirectory in inferenceconfig.json, since only the entry script was sent"
        )
    } else {
        String::new()
    };
    Failure::project(
        Stage::Starting,
        format!("{from} needs {module}, which {conda_file} does not list"),
        format!("add `{package}` to {conda_file} under pip, then deploy again{own}"),
    )
}

/// Whether a conda definition names a distribution.
fn lists(conda: &CondaSpec, package: &str) -> bool {
    let normal = |name: &str| name.to_lowercase().replace(['_', '.'], "-");
    let wanted = normal(package);
    let named = |line: &String| {
        let line = line.rsplit("::").next().unwrap_or(line);
        let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c))).unwrap_or(line.len());
        normal(&line[..end]) == wanted
    };
    conda.pip.iter().chain(&conda.dependencies).any(named)
}

/// The server's own complaints about the script.
fn unusable_script(report: &Report, script: &str) -> Failure {
    for function in ["init", "run"] {
        if report.message.contains(&format!("does not have a {function}() function")) {
            let example = if function == "init" { "def init():" } else { "def run(data):" };
            return Failure::project(
                Stage::Starting,
                format!("{script} has no {function}()"),
                format!("define `{example}` in {script}, then deploy again"),
            );
        }
    }
    let cause = format!("{script} cannot be served: {}", one_line(report.message.trim_end_matches('.')));
    Failure::project(Stage::Starting, cause, format!("mend run() in {script}, then deploy again"))
}

fn server_cannot_run(report: &Report, release: &Release) -> Failure {
    let conda_file = release.spec.environment.conda.file.as_deref().unwrap_or("the conda file");
    let top = report.module.as_deref().and_then(|module| module.split('.').next());
    if let Some("azureml_inference_server_http" | "gunicorn") = top {
        return Failure::project(
            Stage::Starting,
            "the environment has no azureml-inference-server-http",
            format!("add `azureml-inference-server-http` to {conda_file} under pip, then deploy again"),
        );
    }
    Failure::project(
        Stage::Starting,
        format!("the scoring server cannot be imported: {}: {}", report.kind, one_line(&report.message)),
        format!("look for a pin in {conda_file} that clashes with azureml-inference-server-http"),
    )
}

/// A process that ended without the server saying why.
fn silent(exit: &Exit) -> Failure {
    let how = match exit.how {
        Ended::Code(code) => format!("the replica ended with exit code {code}"),
        Ended::Signal(signal) => format!("the replica was killed by {}", signal_name(signal)),
        Ended::Unknown => "the replica ended".to_owned(),
    };
    let last = exit.tail.iter().rev().find_map(|line| words(line));
    let cause = match last {
        Some(last) => format!("{how}; its last words: {}", one_line(last)),
        None => format!("{how} without a word"),
    };
    Failure::project(Stage::Starting, cause, "look at the whole log")
}

/// What a line of the log says of the script or of trouble: the server's own chatter is passed over.
fn words(line: &str) -> Option<&str> {
    let line = line.trim();
    let text = match line.split_once(" azmlinfsrv") {
        None => line,
        // `2026-11-25 02:15:07,358 E [30742] azmlinfsrv.print - text`: what is printed by the script goes by the name of `print`.
        Some((head, rest)) => {
            let (logger, text) = rest.split_once(" - ")?;
            let routine = head.contains(" I [") || head.contains(" D [");
            if routine && logger != ".print" {
                return None;
            }
            text.trim()
        }
    };
    let noise = ["Found extra keys in the config file", "Extra keys = ", "Initializing logger"];
    (!text.is_empty() && !noise.iter().any(|noise| text.starts_with(noise))).then_some(text)
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        4 => "SIGILL (an instruction that this processor does not have)",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV (a crash in compiled code)",
        15 => "SIGTERM",
        _ => return format!("signal {signal}"),
    };
    name.to_owned()
}

fn script_name(release: &Release) -> &str {
    &release.spec.entry_script
}

fn one_line(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use proto::{
        builder::Image,
        failure::Blame,
        id::{Digest, EnvironmentHash, Generation},
        spec::ServiceSpec,
    };

    use super::*;

    fn release(source_directory: Option<&str>) -> Release {
        let spec = serde_json::json!({
            "entryScript": "score.py",
            "sourceDirectory": source_directory,
            "environment": { "conda": { "file": "environment.yml", "pip": ["numpy==2.4", "Scikit_Learn>=1"], "dependencies": ["python=3.11", "conda-forge::lightgbm=4"] } },
            "resources": { "cpu": 0.1, "memoryGb": 0.5, "memoryGbLimit": 1.0 },
        });
        Release {
            generation: Generation(8),
            archive: Digest::from_sha256([1; 32]),
            environment: EnvironmentHash::from_sha256([2; 32]),
            image: Image::VirtualEnvironment { path: "/env".into(), python: "3.11.7".into() },
            lookup: None,
            asked: Vec::new(),
            scan: None,
            spec: serde_json::from_value::<ServiceSpec>(spec).unwrap(),
        }
    }

    fn report(phase: Phase, kind: &str, message: &str) -> Report {
        Report {
            phase,
            kind: kind.into(),
            message: message.into(),
            module: None,
            file: Some("score.py".into()),
            line: Some(3),
            traceback: vec!["Traceback (most recent call last):".into(), format!("{kind}: {message}")],
        }
    }

    fn said(report: Report) -> Failure {
        let exit = Exit { how: Ended::Code(3), report: Some(report), ..Exit::default() };
        failure(&exit, &release(Some("project")), &"legacy-fraud".parse().unwrap())
    }

    fn missing(module: &str) -> Report {
        let module = Some(module.to_owned());
        Report { module, ..report(Phase::Import, "ModuleNotFoundError", "No module named 'x'") }
    }

    #[test]
    fn a_missing_package_is_named_with_the_file_that_should_list_it() {
        let failure = said(missing("pandas"));
        assert_eq!(failure.cause, "score.py needs pandas, which environment.yml does not list");
        assert_eq!(failure.remedy, "add `pandas` to environment.yml under pip, then deploy again");
        assert_eq!(failure.blame, Blame::Project);
        assert_eq!(failure.log.as_deref(), Some("kaai logs legacy-fraud --generation 8"));
        assert_eq!(failure.details.len(), 2);
    }

    #[test]
    fn a_package_is_called_by_its_own_name_and_not_by_its_modules() {
        assert!(said(missing("cv2.dnn")).remedy.contains("`opencv-python-headless`"));
        assert!(said(missing("yaml")).remedy.contains("`PyYAML`"));
    }

    #[test]
    fn a_listed_package_is_not_called_unlisted() {
        for (module, package) in [("sklearn.old", "scikit-learn"), ("numpy", "numpy"), ("lightgbm", "lightgbm")] {
            let failure = said(missing(module));
            assert!(failure.cause.contains(&format!("though environment.yml lists {package}")), "{}", failure.cause);
        }
    }

    #[test]
    fn a_file_of_ones_own_is_thought_of_when_only_the_script_was_sent() {
        let exit = Exit { report: Some(missing("features")), ..Exit::default() };
        let failure = failure(&exit, &release(None), &"ridge".parse().unwrap());
        assert!(failure.remedy.contains("set sourceDirectory"), "{}", failure.remedy);
    }

    #[test]
    fn each_way_to_fail_has_its_cause() {
        let init = report(Phase::Init, "RuntimeError", "the weights file is damaged: checksum 41 instead of 42");
        let no_run = "User script at /x/score.py does not have a run() function defined.";
        let server = Report {
            module: Some("pydantic_settings".into()),
            ..report(Phase::Server, "ImportError", "cannot import name 'BaseSettings'")
        };
        let no_server = Report {
            module: Some("azureml_inference_server_http".into()),
            ..report(Phase::Server, "ModuleNotFoundError", "No module named 'azureml_inference_server_http'")
        };
        for (report, cause) in [
            (init, "init() of score.py raised RuntimeError: the weights file is damaged: checksum 41 instead of 42"),
            (report(Phase::Import, "KeyError", "'A'"), "importing score.py raised KeyError: 'A'"),
            (report(Phase::Init, "AssertionError", ""), "init() of score.py raised AssertionError"),
            (report(Phase::Import, "SyntaxError", "expected ':' (score.py, line 3)"), "score.py line 3: expected ':'"),
            (report(Phase::Import, "UserScriptError", no_run), "score.py has no run()"),
            (report(Phase::Init, "SystemExit", "2"), "init() of score.py ended the process with exit(2)"),
            (no_server, "the environment has no azureml-inference-server-http"),
            (server, "the scoring server cannot be imported: ImportError: cannot import name 'BaseSettings'"),
        ] {
            assert_eq!(said(report).cause, cause);
        }
    }

    #[test]
    fn an_end_without_a_report_is_told_by_code_and_last_words() {
        let (release, name) = (release(None), "ridge".parse().unwrap());
        let tail = vec!["loading".to_owned(), "terminate called".to_owned(), String::new()];
        let exit = Exit { how: Ended::Signal(11), tail, ..Exit::default() };
        assert_eq!(
            failure(&exit, &release, &name).cause,
            "the replica was killed by SIGSEGV (a crash in compiled code); its last words: terminate called"
        );
        let exit = Exit { how: Ended::Code(7), ..Exit::default() };
        assert_eq!(failure(&exit, &release, &name).cause, "the replica ended with exit code 7 without a word");
    }

    #[test]
    fn the_servers_chatter_is_nobodys_last_words() {
        let lines = [
            "Found extra keys in the config file that are not supported by the server.",
            "2026-11-25 04:09:28,300 I [1] azmlinfsrv.print - out of paper",
            "2026-11-25 04:09:28,397 I [1] azmlinfsrv - Worker with pid 1 ready for serving traffic",
            "2026-11-25 04:09:29,001 I [1] azmlinfsrv - POST /score 200 1.059ms 13",
            "",
        ];
        let exit = |lines: &[&str]| Exit {
            how: Ended::Code(1),
            tail: lines.iter().map(|line| (*line).to_owned()).collect(),
            ..Exit::default()
        };
        let cause = |exit: Exit| failure(&exit, &release(None), &"ridge".parse().unwrap()).cause;
        assert_eq!(cause(exit(&lines)), "the replica ended with exit code 1; its last words: out of paper");
        assert_eq!(cause(exit(&lines[2..])), "the replica ended with exit code 1 without a word");
        let error = ["2026-11-25 04:09:29,001 E [1] azmlinfsrv - Encountered Exception: x"];
        assert!(cause(exit(&error)).ends_with("its last words: Encountered Exception: x"));
    }

    #[test]
    fn the_memory_limit_is_named() {
        let exit = Exit { how: Ended::Signal(9), out_of_memory: true, ..Exit::default() };
        let failure = failure(&exit, &release(None), &"ridge".parse().unwrap());
        assert_eq!(failure.cause, "killed at its memory limit of 1 GiB");
    }
}
