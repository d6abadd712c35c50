//! What uv's words mean: a failed installation turned into cause and remedy.
//!
//! It knows the messages of uv 0.4 to 0.13, which were collected by making each of these things happen. It runs nothing.

mod said;

use proto::failure::{Failure, Stage};

use self::said::Said;
use crate::plan::{Plan, SERVER};

/// Packages that the scoring server stands on, so that a user's own version of one may not go with it.
const SERVERS_OWN: [&str; 14] = [
    "flask",
    "flask-cors",
    "werkzeug",
    "jinja2",
    "markupsafe",
    "itsdangerous",
    "click",
    "gunicorn",
    "pydantic",
    "pydantic-core",
    "pydantic-settings",
    "inference-schema",
    "opentelemetry-api",
    "opentelemetry-sdk",
];

/// Turns the output of a failed `uv pip install` into a failure.
pub(crate) fn installation(lines: &[String], status: &str, plan: &Plan) -> Failure {
    let said = Said::new(lines);
    let failure = machine(&said, "the packages are installed")
        .or_else(|| network(&said, plan))
        .or_else(|| source_build(&said, plan))
        .or_else(|| resolution(&said, plan))
        .unwrap_or_else(|| unknown(&said, status));
    failure.with_details(said.shown())
}

/// Says so when uv failed to find a Python for want of space: it looks for one with the help of its cache.
pub(crate) fn no_space_to_look(lines: &[String]) -> Option<Failure> {
    let said = Said::new(lines);
    no_space(&said, LOOKING).map(|failure| failure.with_details(said.shown()))
}

/// Says that no Python could be had; `lines` are what uv said when it tried to fetch one.
pub(crate) fn no_python(lines: &[String], plan: &Plan, downloads: bool) -> Failure {
    let said = Said::new(lines);
    if let Some(failure) = machine(&said, LOOKING) {
        return failure.with_details(said.shown());
    }
    let minors: Vec<_> = plan.python.minors.iter().map(|minor| format!("3.{minor}")).collect();
    let wanted = minors.join(" or ");
    let tried = match (downloads, said.unreachable()) {
        (false, _) => "and kaai may not fetch one (--python-downloads never)",
        (true, Some(_)) => "and none could be fetched, since the download host cannot be reached",
        (true, None) => "and uv knows none to fetch",
    };
    let first = minors.first().map_or("3.11", String::as_str);
    let cause = format!("no Python {wanted} on this machine, which {} asks for, {tried}", plan.file);
    let remedy = format!(
        "install Python {first} (`uv python install {first}`, or the system's package), or ask for another Python in {}",
        plan.file
    );
    // One that nobody offers is the project's affair; one that could be had is the machine's, and may be there in a minute.
    let failure = match downloads && said.unreachable().is_none() {
        true => Failure::project(Stage::Building, cause, remedy),
        false => Failure::platform(Stage::Building, cause, remedy),
    };
    failure.with_details(said.shown())
}

/// Says that the packages were installed and cannot be imported together.
pub(crate) fn not_importable(lines: &[String], plan: &Plan) -> Failure {
    let said = Said::new(lines);
    let last =
        lines.iter().rev().find(|line| !line.trim().is_empty()).map_or("it ended without a word", |line| line.trim());
    let own: Vec<_> = pins(plan).collect();
    let remedy = match own.as_slice() {
        [] => format!("name a newer {SERVER} or azureml-defaults in {}, or leave its version open", plan.file),
        own => format!("leave the version of {} open in {}, or raise it", own.join(", "), plan.file),
    };
    Failure::project(
        Stage::Building,
        format!("the scoring server ({SERVER}) cannot be imported with the packages of {}: {last}", plan.file),
        remedy,
    )
    .with_details(said.shown())
}

/// The user's own lines about packages that the scoring server stands on.
fn pins(plan: &Plan) -> impl Iterator<Item = &str> {
    let own = |name: &str| SERVERS_OWN.contains(&name) || name == "azureml-defaults" || name == SERVER;
    plan.listed
        .iter()
        .filter(move |(name, line)| own(name) && line.contains(['=', '<', '>']))
        .map(|(_, line)| line.as_str())
}

/// Whether the user has named a host in an option or an address of his own.
fn named_by_user(plan: &Plan, host: &str) -> bool {
    plan.requirements.iter().any(|line| line.contains("://") && line.contains(host))
}

/// What the builder does before there is anything to install.
const LOOKING: &str = "a Python is looked for";

fn no_space(said: &Said, doing: &str) -> Option<Failure> {
    let full = said.has("No space left on device") || said.has("Disk quota exceeded");
    full.then(|| {
        Failure::platform(
            Stage::Building,
            format!("no space is left on the disk while {doing}"),
            "free some space where the environments and uv's cache lie (`uv cache clean` empties the latter), then deploy again",
        )
    })
}

fn machine(said: &Said, doing: &str) -> Option<Failure> {
    if let Some(failure) = no_space(said, doing) {
        return Some(failure);
    }
    said.has("Permission denied (os error 13)").then(|| {
        Failure::platform(
            Stage::Building,
            "the builder may not write where the environments or uv's cache lie",
            "give the builder's user the right to write there, then deploy again",
        )
    })
}

fn network(said: &Said, plan: &Plan) -> Option<Failure> {
    let host = said.host();
    let place = host.as_deref().unwrap_or("the package index");
    let named = host.as_deref().is_some_and(|host| named_by_user(plan, host));
    let whose = if named { format!("{place}, which {} names,", plan.file) } else { place.to_owned() };
    if said.has("invalid peer certificate") {
        let remedy = "have the builder trust the authority that signed it (SSL_CERT_FILE), then deploy again";
        return Some(Failure::platform(Stage::Building, format!("the certificate of {whose} is not trusted"), remedy));
    }
    if said.has("401 Unauthorized") || said.has("403 Forbidden") {
        let status = if said.has("401 Unauthorized") { "401 Unauthorized" } else { "403 Forbidden" };
        let remedy = "have the builder log in there (UV_INDEX_URL with user and password, or a netrc file)";
        return Some(match named {
            true => Failure::project(Stage::Building, format!("{whose} refuses the builder: {status}"), remedy),
            false => Failure::platform(Stage::Building, format!("{whose} refuses the builder: {status}"), remedy),
        });
    }
    if let Some(status) = said.between("HTTP status server error (", ")") {
        let cause = format!("{whose} failed: {status}");
        return Some(Failure::platform(Stage::Building, cause, "wait until it works again, then deploy again"));
    }
    if said.has("HTTP status client error (404") || said.has("404 Not Found") {
        let what = said.between("Failed to download `", "`").unwrap_or("an address");
        let cause = format!("there is nothing at the address of {what}");
        return Some(Failure::project(Stage::Building, cause, format!("correct the address in {}", plan.file)));
    }
    let why = said.unreachable()?;
    Some(Failure::platform(
        Stage::Building,
        format!("{whose} cannot be reached: {why}"),
        "mend the network, or set a reachable index for the builder (UV_DEFAULT_INDEX, HTTPS_PROXY), then deploy again",
    ))
}

fn source_build(said: &Said, plan: &Plan) -> Option<Failure> {
    let package =
        said.between("Failed to build `", "`").or_else(|| said.between("Failed to download and build `", "`"))?;
    let python = plan.python.minors.first().copied().unwrap_or_default();
    let why = said.lines.iter().map(|line| line.trim()).rfind(|line| tells_why(line));
    let cause = match why {
        Some(why) => format!("{package} cannot be built from its source: {}", shorten(why)),
        None => format!("{package} cannot be built from its source"),
    };
    let name = base_name(package);
    let remedy = match said.between("Did you mean to install `", "`") {
        Some(other) => format!("write `{other}` in place of `{name}` in {}", plan.file),
        None => match said.between("install a library that provides `", "`") {
            Some(header) => format!(
                "install the library that provides {header} on this machine, or choose a version of {name} that has a wheel for Python 3.{python}"
            ),
            None => format!(
                "choose a version of {name} that has a wheel for Python 3.{python}, or a Python that it has wheels for, in {}",
                plan.file
            ),
        },
    };
    Some(Failure::project(Stage::Building, cause, remedy))
}

/// Whether a line of a compiler or a build script says what was wrong.
fn tells_why(line: &str) -> bool {
    let error = line.split_once(": ").is_some_and(|(kind, _)| {
        kind.chars().all(|c| c.is_ascii_alphanumeric() || c == '.' || c == '_') && kind.ends_with("Error")
    });
    let noise = line.starts_with("error: Failed to build") || line.starts_with("error: Failed to download");
    (error
        || line.contains("fatal error: ")
        || line.ends_with("is deprecated, use 'scikit-learn'")
        || line.ends_with(": not found"))
        && !noise
}

fn shorten(line: &str) -> String {
    line.chars().take(200).collect()
}

fn resolution(said: &Said, plan: &Plan) -> Option<Failure> {
    if let Some(line) = said.between("Failed to parse: `", "`") {
        let cause = format!("`{line}` in {} is not a requirement that uv understands", plan.file);
        return Some(Failure::project(Stage::Building, cause, "write it as `name==version`"));
    }
    if !said.has("No solution found") {
        return None;
    }
    Some(
        missing_package(said, plan)
            .or_else(|| wrong_python(said, plan))
            .or_else(|| no_wheel(said, plan))
            .or_else(|| missing_version(said, plan))
            .unwrap_or_else(|| clash(said, plan)),
    )
}

/// Where a package is asked for: the user's line, or the package that needs it.
fn asked_for(said: &Said, plan: &Plan, package: &str) -> String {
    match plan.line_of(package) {
        Some(_) => format!("which {} lists", plan.file),
        None => match said.text.split_once(&format!(" depends on {package}")) {
            Some((before, _)) => format!("which {} needs", before.rsplit(' ').next().unwrap_or("another package")),
            None => "which another package needs".to_owned(),
        },
    }
}

fn missing_package(said: &Said, plan: &Plan) -> Option<Failure> {
    let at = said
        .text
        .find(" was not found in the package registry")
        .or_else(|| said.text.find(" was not found in the provided package locations"))?;
    let package = said.text[..at].rsplit(' ').next()?;
    let who = asked_for(said, plan, package);
    let remedy = match usual_slip(package) {
        Some(instead) => format!("{instead} in {}", plan.file),
        None => format!("check its spelling in {}, or name the index that has it with --extra-index-url", plan.file),
    };
    Some(Failure::project(Stage::Building, format!("there is no package {package} on the index, {who}"), remedy))
}

/// What to do about names that are imported but not installed so.
fn usual_slip(package: &str) -> Option<String> {
    let instead = |name: &str| Some(format!("write `{name}` in place of `{package}`"));
    match package {
        "cv2" => instead("opencv-python"),
        "pil" => instead("pillow"),
        "skimage" => instead("scikit-image"),
        "yaml" => instead("pyyaml"),
        "json" | "logging" | "os" | "pickle" | "re" | "sys" | "time" => {
            Some(format!("leave `{package}`, which is part of Python, out"))
        }
        _ => None,
    }
}

fn missing_version(said: &Said, plan: &Plan) -> Option<Failure> {
    let what = said
        .between("there is no version of ", " and ")
        .or_else(|| said.between("there are no versions of ", " and "))?;
    let package = base_name(what);
    let who = asked_for(said, plan, package);
    Some(Failure::project(
        Stage::Building,
        format!("there is no version {what} on the index, {who}"),
        format!("choose a version of {package} that exists, in {}", plan.file),
    ))
}

fn wrong_python(said: &Said, plan: &Plan) -> Option<Failure> {
    // Versions that need another Python are mentioned on the way to any clash: only a package whose version the user chose decides alone.
    let mentioned = said.text.split(") does not satisfy ").skip(1);
    let mut chosen = mentioned.filter_map(|rest| {
        let (needs, rest) = rest.split_once(" and ")?;
        let (package, _) = rest.split_once(" depends on")?;
        let name = base_name(package);
        let line = plan.line_of(name).filter(|line| name != SERVER && line.contains(['=', '<', '>']))?;
        line.starts_with(name).then_some((needs, package, name))
    });
    let (needs, package, name) = chosen.next()?;
    let have = said.between("the current Python version (", ")").unwrap_or("another");
    Some(Failure::project(
        Stage::Building,
        format!("{package} needs {needs}, and the environment has Python {have}"),
        format!("ask for another Python or another version of {name} in {}", plan.file),
    ))
}

/// The package of a requirement such as `numpy==1.2`.
fn base_name(requirement: &str) -> &str {
    requirement.split(['=', '<', '>', '!', '~', '[', '{', ' ']).next().unwrap_or(requirement)
}

fn no_wheel(said: &Said, plan: &Plan) -> Option<Failure> {
    let at = said.text.find(" has no wheels with a matching")?;
    let package = said.text[..at].rsplit(' ').next()?;
    let python = plan.python.minors.first().copied().unwrap_or_default();
    let name = base_name(package);
    let newest = said
        .between("ABI tags: ", "`.")
        .or_else(|| said.text.split_once("ABI tags: ").map(|(_, rest)| rest))
        .and_then(|tags| tags.split([',', ' ']).filter_map(minor_of_tag).max());
    let remedy = match newest {
        Some(minor) => format!("ask for python=3.{minor}, or another version of {name}, in {}", plan.file),
        None => format!("ask for another Python, or another version of {name}, in {}", plan.file),
    };
    Some(Failure::project(Stage::Building, format!("{package} has no build for Python 3.{python}"), remedy))
}

/// The minor of a tag such as `cp37m`.
fn minor_of_tag(tag: &str) -> Option<u64> {
    let digits = tag.trim_matches('`').strip_prefix("cp3")?;
    digits.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().ok()
}

fn clash(said: &Said, plan: &Plan) -> Failure {
    let required = required(said);
    let cause = match required.len() {
        0 => format!("the packages of {} do not go together", plan.file),
        1 => format!("{} cannot be installed with the other packages of {}", required[0], plan.file),
        _ => format!("the packages of {} do not go together: {}", plan.file, shorten(&required.join(" and "))),
    };
    let server = required.iter().any(|line| base_name(line) == SERVER && plan.line_of(SERVER) != Some(line.as_str()));
    let pins: Vec<_> = pins(plan).collect();
    let file = &plan.file;
    let remedy = match (server, pins.as_slice()) {
        (true, []) => {
            format!(
                "every service needs the scoring server ({SERVER}): loosen the versions in {file} that it does not go with"
            )
        }
        (true, pins) => format!(
            "every service needs the scoring server ({SERVER}), which does not go with {}: leave that version open in {file}, or raise it",
            pins.join(", "),
        ),
        (false, _) => format!("loosen one of these versions in {file}"),
    };
    Failure::project(Stage::Building, cause, remedy)
}

/// The requirements that were given and that uv names on the way to its conclusion, each once.
fn required(said: &Said) -> Vec<String> {
    let mut required: Vec<String> = Vec::new();
    let mut before = "";
    for piece in said.text.split("you require ") {
        // What was concluded is not what was given.
        if !before.is_empty() && !before.ends_with("conclude that ") {
            let end = piece.find(", we can conclude").unwrap_or(piece.len());
            for one in piece[..end].split(" and ").filter(|one| !one.contains(' ') && !one.is_empty()) {
                if !required.iter().any(|known| known == one) {
                    required.push(one.to_owned());
                }
            }
        }
        before = piece;
    }
    required
}

fn unknown(said: &Said, status: &str) -> Failure {
    let error = said
        .lines
        .iter()
        .find_map(|line| line.strip_prefix("error: ").or_else(|| line.trim_start().strip_prefix("× ")));
    let cause = match error {
        Some(error) => format!("the packages cannot be installed: {}", shorten(error)),
        None => format!("the packages cannot be installed: uv ended with {status}"),
    };
    Failure::project(Stage::Building, cause, "read the lines above and the whole log")
}

#[cfg(test)]
mod tests {
    use proto::{
        failure::Blame,
        spec::{CondaSpec, EnvironmentSpec},
    };

    use super::*;
    use crate::environment::Definition;

    fn plan(python: &str, pip: &[&str]) -> Plan {
        let conda = CondaSpec {
            file: Some("environment.yml".to_owned()),
            dependencies: vec![python.to_owned()],
            pip: pip.iter().map(|line| (*line).to_owned()).collect(),
            ..CondaSpec::default()
        };
        Plan::without_images(
            &Definition::read(&EnvironmentSpec { conda, ..EnvironmentSpec::default() }).unwrap(),
            false,
        )
        .unwrap()
    }

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    /// What uv said (as collected) about a pip list, and the words that the failure must have.
    struct Case {
        said: &'static str,
        pip: &'static [&'static str],
        blame: Blame,
        cause: &'static str,
        remedy: &'static str,
    }

    macro_rules! case {
        ($file:literal, [$($pip:literal),*], $blame:ident, $cause:literal, $remedy:literal) => {
            Case {
                said: include_str!(concat!("diagnosis/", $file, ".txt")),
                pip: &[$($pip),*],
                blame: Blame::$blame,
                cause: $cause,
                remedy: $remedy,
            }
        };
    }

    fn check(cases: &[Case]) {
        for case in cases {
            let failure = installation(&lines(case.said), "exit status: 1", &plan("python=3.11", case.pip));
            assert_eq!(failure.cause, case.cause, "{}", case.said);
            assert!(failure.remedy.contains(case.remedy), "{} is not in {}", case.remedy, failure.remedy);
            assert_eq!(failure.blame, case.blame);
            assert!(!failure.details.is_empty());
        }
    }

    #[test]
    fn packages_that_cannot_be_had_are_named() {
        check(&[
            case!(
                "missing-package",
                ["this_package-does-not-exist-kaai"],
                Project,
                "there is no package this-package-does-not-exist-kaai on the index, which environment.yml lists",
                "spelling in environment.yml"
            ),
            case!(
                "missing-version",
                ["numpy==99.1"],
                Project,
                "there is no version numpy==99.1 on the index, which environment.yml lists",
                "version of numpy"
            ),
            case!(
                "wrong-python",
                ["numpy==2.3.0"],
                Project,
                "numpy==2.3.0 needs Python>=3.11, and the environment has Python 3.9.18",
                "another Python"
            ),
            case!(
                "no-wheel",
                ["tensorflow==1.15"],
                Project,
                "tensorflow==1.15.0 has no build for Python 3.11",
                "python=3.7"
            ),
            case!(
                "address",
                ["https://files.pythonhosted.org/nosuch-1.0-py3-none-any.whl"],
                Project,
                "there is nothing at the address of nosuch @ https://files.pythonhosted.org/nosuch-1.0-py3-none-any.whl",
                "environment.yml"
            ),
        ]);
    }

    #[test]
    fn clashes_name_what_does_not_go_together() {
        check(&[
            case!(
                "clash",
                ["pydantic<2", "pydantic-settings>=2"],
                Project,
                "the packages of environment.yml do not go together: pydantic<2 and pydantic-settings>=2",
                "loosen one"
            ),
            case!(
                "clash-0.8",
                ["pydantic<2", "pydantic-settings>=2"],
                Project,
                "the packages of environment.yml do not go together: pydantic<2 and pydantic-settings>=2",
                "loosen one"
            ),
            case!(
                "two-pins",
                ["scikit-learn==1.5.0", "numpy==1.16.0"],
                Project,
                "the packages of environment.yml do not go together: scikit-learn==1.5.0 and numpy==1.16.0",
                "loosen one"
            ),
            case!(
                "server-too-old",
                ["azureml-defaults==1.40.0"],
                Project,
                "the packages of environment.yml do not go together: azureml-defaults==1.40.0 and azureml-inference-server-http>=0.7.7",
                "does not go with azureml-defaults==1.40.0"
            ),
            case!(
                "server-clash",
                ["azureml-defaults==1.20.0"],
                Project,
                "the packages of environment.yml do not go together: azureml-defaults==1.20.0 and azureml-inference-server-http>=0.7.7",
                "scoring server"
            ),
            case!(
                "dependency-missing",
                ["azureml-defaults==1.33.0"],
                Project,
                "the packages of environment.yml do not go together: azureml-defaults==1.33.0 and azureml-inference-server-http>=0.7.7",
                "scoring server"
            ),
        ]);
    }

    #[test]
    fn builds_from_source_tell_the_line_that_matters() {
        check(&[
            case!(
                "source-header",
                ["pyodbc==4.0.30"],
                Project,
                "pyodbc==4.0.30 cannot be built from its source: src/pyodbc.h:56:10: fatal error: sql.h: No such file or directory",
                "install the library that provides sql.h"
            ),
            case!(
                "source-script",
                ["mysqlclient==2.0.0"],
                Project,
                "mysqlclient==2.0.0 cannot be built from its source: OSError: mysql_config not found",
                "wheel for Python 3.11"
            ),
            case!(
                "source-renamed",
                ["sklearn"],
                Project,
                "sklearn==0.0.post12 cannot be built from its source: The 'sklearn' PyPI package is deprecated, use 'scikit-learn'",
                "write `scikit-learn` in place of `sklearn`"
            ),
            case!(
                "source-renamed-0.8",
                ["sklearn"],
                Project,
                "sklearn==0.0.post12 cannot be built from its source: The 'sklearn' PyPI package is deprecated, use 'scikit-learn'",
                "sklearn"
            ),
        ]);
    }

    #[test]
    fn a_network_that_fails_is_not_the_users_fault() {
        check(&[
            case!(
                "no-name",
                [],
                Platform,
                "index.example.invalid cannot be reached: its name cannot be resolved",
                "mend the network"
            ),
            case!(
                "no-name-0.8",
                [],
                Platform,
                "index.example.invalid cannot be reached: its name cannot be resolved",
                "mend the network"
            ),
            case!(
                "no-name",
                ["--index-url https://index.example.invalid/simple"],
                Platform,
                "index.example.invalid, which environment.yml names, cannot be reached: its name cannot be resolved",
                "mend"
            ),
            case!(
                "refused-connection",
                [],
                Platform,
                "127.0.0.1 cannot be reached: the connection is refused",
                "mend the network"
            ),
            case!(
                "offline",
                ["this-is-not-cached"],
                Platform,
                "the package index cannot be reached: uv is set to work without the network",
                "mend the network"
            ),
            case!(
                "git",
                ["foo @ git+https://index.example.invalid/x.git"],
                Platform,
                "index.example.invalid, which environment.yml names, cannot be reached: its name cannot be resolved",
                "mend"
            ),
        ]);
    }

    #[test]
    fn an_index_or_a_disk_that_fails_is_not_the_users_fault() {
        check(&[
            case!("status-401", [], Platform, "127.0.0.1 refuses the builder: 401 Unauthorized", "log in"),
            case!(
                "status-403",
                ["--extra-index-url http://127.0.0.1:18403/simple"],
                Project,
                "127.0.0.1, which environment.yml names, refuses the builder: 403 Forbidden",
                "log in"
            ),
            case!("status-500", [], Platform, "127.0.0.1 failed: 500 Internal Server Error", "wait"),
            case!("certificate", [], Platform, "the certificate of localhost is not trusted", "SSL_CERT_FILE"),
            case!(
                "disk-full",
                [],
                Platform,
                "no space is left on the disk while the packages are installed",
                "free some space"
            ),
        ]);
    }

    #[test]
    fn what_is_not_known_is_shown_as_it_was_said() {
        let failure = installation(
            &lines("Resolved 1 package\nerror: something new\n  cause: x"),
            "exit status: 9",
            &plan("python=3.11", &[]),
        );
        assert_eq!(failure.cause, "the packages cannot be installed: something new");
        assert_eq!(failure.details, ["error: something new", "  cause: x"]);
        let silent = installation(&[], "signal: 9 (SIGKILL)", &plan("python=3.11", &[]));
        assert_eq!(silent.cause, "the packages cannot be installed: uv ended with signal: 9 (SIGKILL)");
    }

    #[test]
    fn a_python_that_cannot_be_had_is_named() {
        let lines = lines("error: Request failed after 3 retries\n  cause: dns error");
        let failure = no_python(&lines, &plan("python=3.14", &[]), true);
        assert_eq!(
            failure.cause,
            "no Python 3.14 on this machine, which environment.yml asks for, and none could be fetched, since the download host cannot be reached"
        );
        assert!(failure.remedy.contains("uv python install 3.14"), "{}", failure.remedy);
        assert_eq!(failure.blame, Blame::Platform);
        let nobody = no_python(&["error: No interpreter found".to_owned()], &plan("python=3.6", &[]), true);
        assert!(nobody.cause.ends_with("and uv knows none to fetch") && nobody.blame == Blame::Project, "{nobody:?}");
        // What uv 0.13.9 said with its cache, and with its folder of Pythons, on a full disk.
        for said in [
            "error: Failed to initialize cache at `cache`\n  cause: failed to write to file `/c/CACHEDIR.TAG`: No space left on device (os error 28)",
            "error: Failed to install cpython\n  cause: failed to unpack: Disk quota exceeded (os error 122)",
        ] {
            let failure = no_python(&self::lines(said), &plan("python=3.6", &[]), true);
            assert!(failure.cause == "no space is left on the disk while a Python is looked for", "{failure}");
            assert!(failure.blame == Blame::Platform && failure.remedy.contains("free some space"), "{failure:?}");
        }
        let never = no_python(&[], &plan("python>=3.12,<3.14", &[]), false);
        assert!(
            never.cause.contains("no Python 3.13 or 3.12 on this machine")
                && never.cause.contains("--python-downloads never")
        );
    }

    #[test]
    fn packages_that_cannot_be_imported_together_name_the_users_pins() {
        let said = lines(
            "Traceback (most recent call last):\n  File x\nImportError: cannot import name 'Markup' from 'jinja2'\n",
        );
        let failure = not_importable(&said, &plan("python=3.9", &["flask==1.0.3", "numpy==1.20"]));
        assert!(failure.cause.ends_with("ImportError: cannot import name 'Markup' from 'jinja2'"), "{}", failure.cause);
        assert_eq!(failure.remedy, "leave the version of flask==1.0.3 open in environment.yml, or raise it");
    }
}
