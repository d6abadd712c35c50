//! The lines of a `pip:` list in one canonical spelling, or refused by name.
//!
//! It knows PEP 440, 503 and 508 (through `pep440_rs` and `pep508_rs`) and pip's options for lists. It asks no index and installs nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
};

use pep440_rs::{Operator, Version, VersionSpecifier, VersionSpecifiers};
use pep508_rs::{PackageName, Requirement, VersionOrUrl};
use proto::secret;
use url::Url;

use crate::environment::Problem;

/// A `pip:` list, understood.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct List {
    /// What is to be installed, by package and marker.
    pub(crate) wanted: BTreeMap<Key, Wanted>,
    /// Where from and how.
    pub(crate) options: Options,
}

/// Which package, and in which environments.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    /// The normalised name (PEP 503), or the address where that does not tell a name.
    pub(crate) name: String,
    /// The address, for a package that comes from one.
    pub(crate) url: Option<String>,
    /// The marker in its canonical form; `None` where the package is always wanted.
    pub(crate) marker: Option<String>,
}

/// What is wanted of a package.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Its extras, normalised.
    pub(crate) extras: BTreeSet<String>,
    /// The conditions on its version.
    pub(crate) versions: BTreeSet<String>,
    /// The lines as written, without comments: what is handed to the installer.
    pub(crate) lines: BTreeSet<String>,
}

/// The options that a list may have. Their order counts where pip's does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) index_url: Option<String>,
    pub(crate) extra_index_urls: Vec<String>,
    pub(crate) find_links: Vec<String>,
    pub(crate) no_index: bool,
    pub(crate) pre: bool,
    pub(crate) no_binary: BTreeSet<String>,
    pub(crate) only_binary: BTreeSet<String>,
    pub(crate) trusted_hosts: BTreeSet<String>,
}

impl List {
    /// Reads the lines; `file` names where they are from.
    pub(crate) fn read(lines: &[String], file: &str, problems: &mut Vec<Problem>) -> Self {
        let mut list = Self::default();
        for line in lines {
            let read = match clean(line) {
                "" => continue,
                clean => list.add(clean),
            };
            if let Err(Trouble { what, remedy }) = read {
                let line = secret::redact(line.trim());
                problems.push(Problem::new(format!("`{line}` in the pip list of {file} {what}"), remedy));
            }
        }
        list
    }

    fn add(&mut self, line: &str) -> Result<(), Trouble> {
        if line.contains("${") {
            return Err(trouble("uses an environment variable", "write the value itself, if it is no secret"));
        }
        if secret::is_in(line) {
            return Err(trouble(secret::CARRIES, secret::REMEDY_OF_A_LIST));
        }
        if !line.is_ascii() {
            return Err(trouble("holds a character that is not ASCII", "write it in plain letters"));
        }
        if line.ends_with('\\') {
            return Err(trouble("goes on on another line", "write each requirement on one line"));
        }
        if line.starts_with('-') {
            return self.options.add(line);
        }
        let (key, wanted) = requirement(line)?;
        let entry = self.wanted.entry(key).or_default();
        entry.extras.extend(wanted.extras);
        entry.versions.extend(wanted.versions);
        entry.lines.extend(wanted.lines);
        Ok(())
    }
}

impl Wanted {
    /// The canonical form, without name, address and marker.
    pub(crate) fn canonical(&self) -> String {
        let extras = self.extras.iter().cloned().collect::<Vec<_>>().join(",");
        let versions = self.versions.iter().cloned().collect::<Vec<_>>().join(",");
        match (extras.is_empty(), versions.is_empty()) {
            (true, true) => "any".to_owned(),
            (true, false) => versions,
            (false, true) => format!("[{extras}]"),
            (false, false) => format!("[{extras}] {versions}"),
        }
    }
}

/// Why a line is not taken.
struct Trouble {
    what: String,
    remedy: String,
}

fn trouble(what: impl Into<String>, remedy: impl Into<String>) -> Trouble {
    Trouble { what: what.into(), remedy: remedy.into() }
}

/// A line without comment, blanks and quotes around it.
fn clean(line: &str) -> &str {
    let line = line.trim();
    if line.starts_with('#') {
        return "";
    }
    // In pip a comment in a line begins with a blank: the `#` of an address does not.
    let comment = line.match_indices('#').find(|(at, _)| line[..*at].ends_with(char::is_whitespace));
    let line = comment.map_or(line, |(at, _)| &line[..at]).trim();
    for quote in ['"', '\''] {
        if let Some(inner) = line.strip_prefix(quote).and_then(|line| line.strip_suffix(quote))
            && !inner.contains(quote)
        {
            return inner.trim();
        }
    }
    line
}

impl Options {
    fn add(&mut self, line: &str) -> Result<(), Trouble> {
        let (name, value) = match line.split_once(['=', ' ', '\t']) {
            Some((name, value)) => (name, value.trim_start_matches(['=', ' ', '\t']).trim()),
            // `-ihttps://…` is one word to pip.
            None if !line.starts_with("--") && line.len() > 2 && line.is_char_boundary(2) => line.split_at(2),
            None => (line, ""),
        };
        match name {
            "-i" | "--index-url" => self.index_url = Some(address(value)?),
            "--extra-index-url" => push_new(&mut self.extra_index_urls, address(value)?),
            "-f" | "--find-links" => push_new(&mut self.find_links, address(value)?),
            "--no-index" => self.no_index = true,
            "--pre" => self.pre = true,
            "--no-binary" => self.no_binary.extend(names(value)?),
            "--only-binary" => self.only_binary.extend(names(value)?),
            "--trusted-host" if !value.is_empty() => {
                self.trusted_hosts.insert(value.to_ascii_lowercase());
            }
            "-r" | "--requirement" | "-c" | "--constraint" => {
                return Err(trouble(
                    "names another file, which is not part of an environment",
                    "write the lines of that file into the pip list",
                ));
            }
            "-e" | "--editable" => {
                return Err(trouble(
                    "installs from a folder, but the environment is built without the project's files",
                    "leave the line out and import the package from the project's folder, or publish it and name it",
                ));
            }
            _ => {
                return Err(trouble(
                    format!("uses the option {name}, which is not supported"),
                    "leave the option out, or use one of --index-url, --extra-index-url, --find-links, --no-index, --pre, --no-binary, --only-binary, --trusted-host",
                ));
            }
        }
        Ok(())
    }

    /// The options as lines of a requirements file, in canonical order; `--pre` and trusted hosts are not among them.
    pub(crate) fn lines(&self) -> Vec<String> {
        let one = |name: &'static str, values: &[String]| -> Vec<String> {
            values.iter().map(|value| format!("{name} {value}")).collect()
        };
        let set = |values: &BTreeSet<String>| values.iter().cloned().collect::<Vec<_>>();
        let mut lines = one("--index-url", self.index_url.as_slice());
        lines.extend(one("--extra-index-url", &self.extra_index_urls));
        lines.extend(one("--find-links", &self.find_links));
        lines.extend(self.no_index.then(|| "--no-index".to_owned()));
        lines.extend(one("--no-binary", &set(&self.no_binary)));
        lines.extend(one("--only-binary", &set(&self.only_binary)));
        lines
    }
}

fn push_new(list: &mut Vec<String>, value: String) {
    if !list.contains(&value) {
        list.push(value);
    }
}

/// The address of an index or a page of links.
fn address(text: &str) -> Result<String, Trouble> {
    let refused = || trouble("names no http or https address", "give the address of a package index");
    let url = Url::parse(text.trim_matches(['"', '\''])).map_err(|_| refused())?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refused());
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// Package names in pip's list syntax.
fn names(text: &str) -> Result<Vec<String>, Trouble> {
    let one = |name: &str| match name.trim() {
        special @ (":all:" | ":none:") => Ok(special.to_owned()),
        name => normal_name(name),
    };
    text.split(',').map(one).collect()
}

fn normal_name(name: &str) -> Result<String, Trouble> {
    PackageName::from_str(name)
        .map(|name| name.to_string())
        .map_err(|_| trouble("has no valid package name", "check the spelling"))
}

fn requirement(line: &str) -> Result<(Key, Wanted), Trouble> {
    if let Some((_, option)) = line.split_once(" --") {
        let option = option.split(['=', ' ']).next().unwrap_or_default();
        return Err(trouble(format!("uses the option --{option}, which is not supported"), "leave the option out"));
    }
    let head = line.split([';', ' ']).next().unwrap_or_default();
    if is_address(head) {
        return from_address(line);
    }
    if head.starts_with(['.', '/', '~']) || [".whl", ".zip", ".tar.gz"].iter().any(|end| head.ends_with(end)) {
        return Err(trouble(
            "names a file, but the environment is built without the project's files",
            "publish the package on an index, or give an address that begins with https://",
        ));
    }
    let parsed = parsed(line)?;
    let mut wanted = Wanted { lines: BTreeSet::from([line.to_owned()]), ..Wanted::default() };
    wanted.extras.extend(parsed.extras.iter().map(ToString::to_string));
    let mut key = Key { name: parsed.name.to_string(), url: None, marker: parsed.marker.try_to_string() };
    match parsed.version_or_url {
        Some(VersionOrUrl::Url(url)) => key.url = Some(checked(url)?),
        Some(VersionOrUrl::VersionSpecifier(specifiers)) => wanted.versions.extend(versions(&specifiers)),
        None => {}
    }
    Ok((key, wanted))
}

/// Reads a line by PEP 508. Names that would make `pep508_rs` 0.9 panic (`a-`, `x[a-]`) are found beforehand.
fn parsed(line: &str) -> Result<Requirement<Url>, Trouble> {
    let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let end = line.find(|c| !part(c)).unwrap_or(line.len());
    let (name, rest) = (&line[..end], line[end..].trim_start());
    let extras = rest.strip_prefix('[').map_or("", |rest| rest.split(']').next().unwrap_or_default());
    let whole = |name: &str| !name.starts_with(['-', '_', '.']) && !name.ends_with(['-', '_', '.']);
    if !whole(name) || !extras.split(',').all(|extra| whole(extra.trim()) && extra.trim().chars().all(part)) {
        return Err(misread(line, "a name begins and ends with a letter or digit"));
    }
    Requirement::from_str(line).map_err(|error| misread(line, &error.message.to_string()))
}

fn is_address(head: &str) -> bool {
    head.split_once("://").is_some_and(|(scheme, _)| scheme.chars().all(|c| c.is_ascii_alphanumeric() || c == '+'))
}

/// A requirement that is an address alone: of a wheel, a source archive, or a git repository with `#egg=name`.
fn from_address(line: &str) -> Result<(Key, Wanted), Trouble> {
    let (text, marker) = line.split_once(" ;").map_or((line, None), |(text, marker)| (text, Some(marker)));
    let mut url = Url::parse(text.trim()).map_err(|error| misread(line, &error.to_string()))?;
    let parts: Vec<_> = url.fragment().unwrap_or_default().split('&').map(str::to_owned).collect();
    let (egg, others): (Vec<_>, Vec<_>) = parts.into_iter().partition(|part| part.starts_with("egg="));
    let others = others.join("&");
    url.set_fragment((!others.is_empty()).then_some(others.as_str()));
    let egg = egg.first().map(|egg| egg["egg=".len()..].to_owned());
    let (egg, extras) = match egg.as_deref().and_then(|egg| egg.split_once('[')) {
        Some((name, extras)) => (Some(name.to_owned()), extras.trim_end_matches(']').to_owned()),
        None => (egg, String::new()),
    };
    let name = match egg.or_else(|| file_name(&url)) {
        Some(name) => normal_name(&name)?,
        None => String::new(),
    };
    let address = checked(url)?;
    let marker = match marker {
        Some(text) => parsed(&format!("x ; {text}"))?.marker.try_to_string(),
        None => None,
    };
    let extras: BTreeSet<String> = match extras.as_str() {
        "" => BTreeSet::new(),
        extras => names(extras)?.into_iter().collect(),
    };
    let brackets = match extras.is_empty() {
        true => String::new(),
        false => format!("[{}]", extras.iter().cloned().collect::<Vec<_>>().join(",")),
    };
    let condition = marker.as_ref().map_or(String::new(), |marker| format!(" ; {marker}"));
    let written = match name.is_empty() {
        true => format!("{address}{condition}"),
        false => format!("{name}{brackets} @ {address}{condition}"),
    };
    let key = Key { name: if name.is_empty() { address.clone() } else { name }, url: Some(address), marker };
    Ok((key, Wanted { extras, versions: BTreeSet::new(), lines: BTreeSet::from([written]) }))
}

/// The name that the file of a wheel or a source archive tells.
fn file_name(url: &Url) -> Option<String> {
    let file = url.path().rsplit('/').next()?;
    if let Some(stem) = file.strip_suffix(".whl") {
        return stem.split('-').next().map(str::to_owned);
    }
    let stem = file.strip_suffix(".tar.gz").or_else(|| file.strip_suffix(".zip"))?;
    let (name, version) = stem.rsplit_once('-')?;
    version.starts_with(|c: char| c.is_ascii_digit()).then(|| name.to_owned())
}

/// An address that a package can be fetched from.
fn checked(url: Url) -> Result<String, Trouble> {
    match url.scheme() {
        "http" | "https" | "git+http" | "git+https" | "git+ssh" | "git+git" => Ok(url.into()),
        other => Err(trouble(
            format!("names an address with {other}://, which is not supported"),
            "use https:// or git+https://",
        )),
    }
}

/// A line that PEP 508 does not know, with the usual slips told.
fn misread(line: &str, why: &str) -> Trouble {
    let single = line
        .split_once('=')
        .filter(|(before, after)| !after.starts_with('=') && !before.ends_with(['=', '<', '>', '!', '~']));
    if let Some((name, version)) = single {
        let remedy = format!("write `{}=={}`: a single `=` is conda's", name.trim(), version.trim());
        return trouble("is not a requirement that pip understands", remedy);
    }
    let why = why.lines().next().unwrap_or_default();
    trouble(format!("is not a requirement that pip understands ({why})"), "write it as `name==version`, as pip does")
}

/// Conditions in one spelling: zeros at the end do not count where PEP 440 pads with zeros, and `~=` is written out.
fn versions(specifiers: &VersionSpecifiers) -> Vec<String> {
    specifiers.iter().flat_map(canonical).collect()
}

fn canonical(specifier: &VersionSpecifier) -> Vec<String> {
    let version = specifier.version();
    match specifier.operator() {
        Operator::TildeEqual => {
            let release = &version.release()[..version.release().len().saturating_sub(1)];
            let stem = Version::new(release.iter().copied()).with_epoch(version.epoch());
            vec![format!(">={}", unpadded(version)), format!("=={stem}.*")]
        }
        Operator::EqualStar => vec![format!("=={version}.*")],
        Operator::NotEqualStar => vec![format!("!={version}.*")],
        Operator::ExactEqual => vec![format!("==={version}")],
        operator => vec![format!("{operator}{}", unpadded(version))],
    }
}

fn unpadded(version: &Version) -> Version {
    let release = version.release();
    let end = release.iter().rposition(|part| *part != 0).map_or(1, |last| last + 1);
    version.clone().with_release(release[..end].iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> (List, Vec<Problem>) {
        let lines: Vec<_> = lines.iter().map(|line| (*line).to_owned()).collect();
        let mut problems = Vec::new();
        let mut list = List::read(&lines, "env.yml", &mut problems);
        for wanted in list.wanted.values_mut() {
            wanted.lines.clear();
        }
        (list, problems)
    }

    fn equal(one: &[&str], two: &[&str]) {
        let (one, two) = (read(one), read(two));
        assert!(one.1.is_empty(), "{:?}", one.1);
        assert_eq!(one, two);
    }

    #[test]
    fn equal_requirements_have_one_spelling() {
        equal(&["Scikit_Learn == 1.9.1"], &["scikit-learn==1.9.1"]);
        equal(&["a", "b", "a"], &["b", "a"]);
        equal(&["x[B,a]>=1,<2"], &["x[a, b] <2 , >=1"]);
        equal(&["x>=1", "x<2"], &["x>=1,<2"]);
        equal(&["x==1.0.0"], &["x==1"]);
        equal(&["x~=1.4.2"], &["x>=1.4.2,==1.4.*"]);
        equal(&["x==1.0RC1"], &["x==1.0.0rc1"]);
        equal(&["x  # why", "# nothing", ""], &["x"]);
        equal(&["'x==1'"], &["x==1"]);
        equal(&["x; python_version<'3.9' and os_name=='nt'"], &["x ;os_name == \"nt\" and python_version < '3.9'"]);
        equal(&["x ; python_version >= '3'  or python_version<'3'"], &["x"]);
        equal(&["git+https://host/x.git@v1#egg=X"], &["x @ git+https://host/x.git@v1"]);
        equal(
            &["https://host/some_pkg-1.0-py3-none-any.whl"],
            &["some-pkg @ https://host/some_pkg-1.0-py3-none-any.whl"],
        );
        equal(&["--extra-index-url=https://a/simple/"], &["--extra-index-url   https://a/simple"]);
        equal(&["-i https://a/"], &["--index-url https://a"]);
        equal(&["--no-binary B_b,a"], &["--no-binary a", "--no-binary b-b"]);
    }

    #[test]
    fn different_requirements_stay_different() {
        for (one, two) in [
            ("x==1.0.1", "x==1.0.2"),
            ("x~=1.0", "x~=1.0.0"),
            ("x==1.0.*", "x==1.*"),
            ("x>1", "x>=1"),
            ("x==1", "x===1"),
            ("x[a]", "x"),
            ("x", "y"),
            ("x; os_name=='nt'", "x"),
            ("x @ https://a/x.zip", "x @ https://b/x.zip"),
            ("x==1", "x==1+cpu"),
            ("--pre", "--no-index"),
            ("--extra-index-url https://a", "--index-url https://a"),
        ] {
            assert_ne!(read(&[one]).0, read(&[two]).0, "{one} {two}");
        }
        let order = ["--extra-index-url https://a", "--extra-index-url https://b"];
        assert_ne!(read(&order).0, read(&[order[1], order[0]]).0);
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (line, says) in [
            ("-r requirements.txt", "names another file"),
            ("-e .", "installs from a folder"),
            ("./wheels/x-1.0-py3-none-any.whl", "names a file"),
            ("--process-dependency-links", "uses the option --process-dependency-links"),
            ("x==1 --hash=sha256:00", "uses the option --hash"),
            ("x @ file:///tmp/x.whl", "file://"),
            ("hg+https://host/x", "hg+https://"),
            ("numpy=1.19", "is not a requirement"),
            ("some thing", "is not a requirement"),
            ("x==1 \\", "goes on"),
            ("A-\u{ed0}", "not ASCII"),
            ("a-@", "is not a requirement"),
            ("x[a-]", "is not a requirement"),
            ("x[a, b.] ==1", "is not a requirement"),
            ("--index-url https://${TOKEN}@host/simple", "environment variable"),
            ("--index-url nowhere", "no http or https address"),
        ] {
            let (list, problems) = read(&[line]);
            assert_eq!(list, List::default());
            assert_eq!(problems.len(), 1, "{line}");
            assert!(problems[0].cause.contains(says), "{line}: {:?}", problems[0]);
            assert!(problems[0].cause.contains("env.yml"), "{line}");
        }
        assert!(read(&["numpy=1.19"]).1[0].remedy.contains("`numpy==1.19`"));
    }

    #[test]
    fn a_credential_is_refused_and_not_repeated() {
        for line in [
            "--index-url https://user:hunter2@host/simple",
            "x @ git+https://hunter2@host/x.git",
            "https://acc.blob.core.windows.net/c/x-1-py3-none-any.whl?sig=hunter2",
        ] {
            let (_, problems) = read(&[line]);
            assert!(problems[0].cause.contains("password or token"), "{:?}", problems[0]);
            assert!(!format!("{problems:?}").contains("hunter2"), "{problems:?}");
        }
    }
}
