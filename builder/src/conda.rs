//! Conda's dependency lines (match specifications) in one canonical spelling.
//!
//! It knows how conda reads `python=3.11` and its like. It solves nothing and knows no package but Python.
//!
//! Source: conda's `MatchSpec` and `VersionSpec`: `=1.2` begins with 1.2, `==1.2` and `name 1.2` are exactly 1.2, `|` is or, `,` is and.

use std::{cmp::Ordering, collections::BTreeSet, fmt};

/// A dependency: a package of a channel, and which of its versions are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dependency {
    /// The name with its channel, if one is named: `numpy`, `conda-forge::numpy`.
    pub(crate) name: String,
    /// The versions.
    pub(crate) versions: Versions,
    /// The build string, if one is named.
    pub(crate) build: Option<String>,
}

/// Which versions are wanted: one of several conjunctions. The default admits all.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Versions(BTreeSet<BTreeSet<Clause>>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Clause {
    relation: Relation,
    version: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Relation {
    AtLeast,
    Above,
    AtMost,
    Below,
    Exactly,
    Begins,
    Not,
    NotBegins,
    Compatible,
}

impl Default for Versions {
    fn default() -> Self {
        Self(BTreeSet::from([BTreeSet::new()]))
    }
}

/// Reads one line; `None` for a blank or a comment.
///
/// # Errors
///
/// Fails, saying what is not understood, for what only conda itself could read: addresses, `[key=value]` lists, patterns.
pub(crate) fn parse(line: &str) -> Result<Option<Dependency>, &'static str> {
    let line = line.split_once('#').map_or(line, |(before, _)| before).trim();
    let line = line.trim_matches(['"', '\'']).trim();
    if line.is_empty() {
        return Ok(None);
    }
    if line.contains("://") || line.ends_with(".conda") || line.ends_with(".tar.bz2") {
        return Err("names a package by its address");
    }
    if line.contains(['[', '(', '^', '$']) {
        return Err("uses a form of conda's match specifications that is not supported");
    }
    let (channel, rest) = match line.split_once("::") {
        Some((channel, rest)) => (Some(channel.trim()), rest.trim()),
        None => (None, line),
    };
    let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))).unwrap_or(rest.len());
    let (name, rest) = (rest[..end].to_ascii_lowercase(), rest[end..].trim());
    if name.is_empty() {
        return Err("names no package");
    }
    let (mut versions, build) = versions_and_build(rest)?;
    if name == "python" {
        versions = versions.with_three_parts_exact();
    }
    let name = channel.map_or(name.clone(), |channel| format!("{channel}::{name}"));
    Ok(Some(Dependency { name, versions, build }))
}

fn versions_and_build(rest: &str) -> Result<(Versions, Option<String>), &'static str> {
    let rest = join_operators(rest);
    let single = rest.strip_prefix('=').filter(|rest| !rest.starts_with('='));
    let (versions, build) = match single {
        // `=1.2=build`, and the odd but accepted `=>=1.2`.
        Some(rest) if rest.starts_with(['<', '>', '!', '~']) => (rest.to_owned(), None),
        Some(rest) => {
            let (version, build) = rest.split_once(['=', ' ']).map_or((rest, None), |(v, b)| (v, Some(b)));
            let plain = !version.contains([',', '|', '<', '>', '!', '~']) && version != "*";
            (if plain { format!("={version}") } else { version.to_owned() }, build)
        }
        None => rest.split_once(' ').map_or((rest.clone(), None), |(v, b)| (v.to_owned(), Some(b))),
    };
    let build = build.map(|build| build.trim().to_owned()).filter(|build| !build.is_empty() && build != "*");
    Ok((Versions::parse(&versions)?, build))
}

/// Takes out blanks around operators, commas and bars.
fn join_operators(text: &str) -> String {
    let mut joined = String::new();
    for word in text.split_whitespace() {
        let glued = joined.ends_with(['=', '<', '>', '!', '~', ',', '|'])
            || word.starts_with(['=', '<', '>', '!', '~', ',', '|']);
        if !joined.is_empty() && !glued {
            joined.push(' ');
        }
        joined.push_str(word);
    }
    joined
}

impl Versions {
    fn parse(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let mut all = BTreeSet::new();
        for alternative in text.split('|') {
            let clauses = alternative.split(',').filter_map(|clause| Clause::parse(clause.trim()).transpose());
            all.insert(clauses.collect::<Result<_, _>>()?);
        }
        Ok(Self(all).simplified())
    }

    /// What both want.
    pub(crate) fn and(&self, other: &Self) -> Self {
        let both = |one: &BTreeSet<Clause>| {
            let one = one.clone();
            other.0.iter().map(move |two| one.union(two).cloned().collect())
        };
        Self(self.0.iter().flat_map(both).collect()).simplified()
    }

    /// An alternative that wants everything makes the others moot.
    fn simplified(self) -> Self {
        if self.0.iter().any(BTreeSet::is_empty) { Self::default() } else { self }
    }

    /// Whether all versions are welcome.
    pub(crate) fn is_any(&self) -> bool {
        *self == Self::default()
    }

    /// Versions of Python have three parts, so that to begin with all three is to be exactly that.
    fn with_three_parts_exact(self) -> Self {
        let exact = |mut clause: Clause| {
            let parts = clause.version.split('.').count();
            match clause.relation {
                Relation::Begins if parts >= 3 => clause = Clause::new(Relation::Exactly, &clause.version),
                Relation::NotBegins if parts >= 3 => clause = Clause::new(Relation::Not, &clause.version),
                _ => {}
            }
            clause
        };
        Self(self.0.into_iter().map(|clauses| clauses.into_iter().map(exact).collect()).collect())
    }

    /// Whether a release made of numbers is wanted; a version that is not made of numbers admits none.
    pub(crate) fn admit(&self, release: &[u64]) -> bool {
        self.0.iter().any(|clauses| clauses.iter().all(|clause| clause.admits(release)))
    }

    /// The same for pip, as the part after the package's name; `None` where pip cannot say it.
    pub(crate) fn for_pip(&self) -> Option<String> {
        let mut alternatives = self.0.iter();
        let (Some(clauses), None) = (alternatives.next(), alternatives.next()) else { return None };
        let text: Vec<_> = clauses
            .iter()
            .map(|clause| match clause.relation {
                // Conda's `=1.19.2` names one release in the way people write it.
                Relation::Begins if clause.version.split('.').count() >= 3 => format!("=={}", clause.version),
                Relation::Begins => format!("=={}.*", clause.version),
                Relation::NotBegins => format!("!={}.*", clause.version),
                _ => clause.to_string(),
            })
            .collect();
        Some(text.join(","))
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_any() {
            return f.write_str("any");
        }
        for (n, clauses) in self.0.iter().enumerate() {
            f.write_str(if n == 0 { "" } else { "|" })?;
            for (n, clause) in clauses.iter().enumerate() {
                write!(f, "{}{clause}", if n == 0 { "" } else { "," })?;
            }
        }
        Ok(())
    }
}

impl Clause {
    fn parse(text: &str) -> Result<Option<Self>, &'static str> {
        const RELATIONS: [(&str, Relation); 8] = [
            (">=", Relation::AtLeast),
            ("<=", Relation::AtMost),
            ("==", Relation::Exactly),
            ("!=", Relation::Not),
            ("~=", Relation::Compatible),
            (">", Relation::Above),
            ("<", Relation::Below),
            ("=", Relation::Begins),
        ];
        let found = RELATIONS.iter().find_map(|(sign, relation)| Some((*relation, text.strip_prefix(sign)?)));
        let (relation, version) = found.unwrap_or((Relation::Exactly, text));
        let version = version.trim().to_ascii_lowercase();
        if version == "*" {
            return Ok(None);
        }
        let (version, begins) = match version.strip_suffix(".*").or_else(|| version.strip_suffix('*')) {
            Some(stem) => (stem.to_owned(), true),
            None => (version, false),
        };
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '!' | '-');
        if version.is_empty() || !version.chars().all(valid) {
            return Err("wants a version that is not understood");
        }
        let relation = match relation {
            Relation::Exactly if begins => Relation::Begins,
            Relation::Not if begins => Relation::NotBegins,
            // With the other relations conda ignores the star.
            relation => relation,
        };
        Ok(Some(Self::new(relation, &version)))
    }

    /// Zeros at the end do not count, except where a version is a beginning.
    fn new(relation: Relation, version: &str) -> Self {
        let mut version = version;
        if !matches!(relation, Relation::Begins | Relation::NotBegins | Relation::Compatible) {
            while let Some(shorter) = version.strip_suffix(".0") {
                version = shorter;
            }
        }
        Self { relation, version: version.to_owned() }
    }

    fn admits(&self, release: &[u64]) -> bool {
        let Ok(wanted) = self.version.split('.').map(str::parse).collect::<Result<Vec<u64>, _>>() else { return false };
        let begins = |wanted: &[u64]| wanted.iter().enumerate().all(|(n, part)| release.get(n).unwrap_or(&0) == part);
        let order = compare(release, &wanted);
        match self.relation {
            Relation::AtLeast => order.is_ge(),
            Relation::Above => order.is_gt(),
            Relation::AtMost => order.is_le(),
            Relation::Below => order.is_lt(),
            Relation::Exactly => order.is_eq(),
            Relation::Not => order.is_ne(),
            Relation::Begins => begins(&wanted),
            Relation::NotBegins => !begins(&wanted),
            Relation::Compatible => order.is_ge() && begins(&wanted[..wanted.len().saturating_sub(1)]),
        }
    }
}

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = &self.version;
        match self.relation {
            Relation::AtLeast => write!(f, ">={version}"),
            Relation::Above => write!(f, ">{version}"),
            Relation::AtMost => write!(f, "<={version}"),
            Relation::Below => write!(f, "<{version}"),
            Relation::Exactly => write!(f, "=={version}"),
            Relation::Begins => write!(f, "{version}.*"),
            Relation::Not => write!(f, "!={version}"),
            Relation::NotBegins => write!(f, "!={version}.*"),
            Relation::Compatible => write!(f, "~={version}"),
        }
    }
}

/// Compares releases, missing parts being zero.
fn compare(one: &[u64], two: &[u64]) -> Ordering {
    let part = |release: &[u64], n: usize| release.get(n).copied().unwrap_or(0);
    (0..one.len().max(two.len()))
        .map(|n| part(one, n).cmp(&part(two, n)))
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(line: &str) -> String {
        let dependency = parse(line).unwrap().unwrap();
        let build = dependency.build.map_or(String::new(), |build| format!(" build {build}"));
        format!("{} {}{build}", dependency.name, dependency.versions)
    }

    #[test]
    fn equal_dependencies_have_one_spelling() {
        for (written, expected) in [
            ("python=3.11", "python 3.11.*"),
            ("python = 3.11", "python 3.11.*"),
            ("Python=3.11.*", "python 3.11.*"),
            ("python==3.11.*", "python 3.11.*"),
            ("python 3.11.*", "python 3.11.*"),
            ("'python=3.11'  # why", "python 3.11.*"),
            ("python=3.11.4", "python ==3.11.4"),
            ("python==3.11.4", "python ==3.11.4"),
            ("python 3.11.4", "python ==3.11.4"),
            ("python=3.11.0", "python ==3.11"),
            ("python==3.11", "python ==3.11"),
            ("python >= 3.10 , <3.12.0", "python >=3.10,<3.12"),
            ("python=>=3.8", "python >=3.8"),
            ("python", "python any"),
            ("python *", "python any"),
            ("python=*", "python any"),
            ("numpy=1.19.2", "numpy 1.19.2.*"),
            ("numpy==1.19.0", "numpy ==1.19"),
            ("numpy=1.19.2=py38_0", "numpy 1.19.2.* build py38_0"),
            ("numpy 1.19.2 py38_0", "numpy ==1.19.2 build py38_0"),
            ("numpy 1.8|1.9*", "numpy ==1.8|1.9.*"),
            ("numpy <2,>=1,<2", "numpy >=1,<2"),
            ("conda-forge::numpy", "conda-forge::numpy any"),
            ("scikit_learn", "scikit_learn any"),
        ] {
            assert_eq!(canonical(written), expected, "{written}");
        }
        assert_eq!(parse("  # only a comment"), Ok(None));
    }

    #[test]
    fn what_only_conda_can_read_is_refused() {
        for line in ["https://conda.anaconda.org/x/y.conda", "numpy[build=x]", "numpy ^1.*$", "=3.8", "numpy==é"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn versions_admit_what_conda_would_take() {
        let admits = |line: &str, release: &[u64]| parse(line).unwrap().unwrap().versions.admit(release);
        assert!(admits("python=3.11", &[3, 11, 7]));
        assert!(!admits("python=3.1", &[3, 11, 7]));
        assert!(admits("python", &[3, 6, 0]));
        assert!(admits("python>=3.8,<3.11", &[3, 10, 13]) && !admits("python>=3.8,<3.11", &[3, 11, 0]));
        assert!(admits("python ~=3.8", &[3, 12, 1]) && !admits("python ~=3.8.2", &[3, 9, 0]));
        assert!(admits("python 3.7.*|3.9.*", &[3, 9, 1]) && !admits("python 3.7.*|3.9.*", &[3, 8, 1]));
        assert!(admits("python!=3.9.*", &[3, 8, 1]) && !admits("python!=3.9.*", &[3, 9, 1]));
        assert!(!admits("python=3.8rc1", &[3, 8, 0]));
    }

    #[test]
    fn two_lines_for_a_package_want_both() {
        let versions = |line: &str| parse(line).unwrap().unwrap().versions;
        assert_eq!(versions("a>=1").and(&versions("a<2")), versions("a>=1,<2"));
        assert_eq!(versions("a 1|2").and(&versions("a")), versions("a 2|1"));
    }

    #[test]
    fn a_conda_dependency_is_said_in_pips_words() {
        let pip = |line: &str| parse(line).unwrap().unwrap().versions.for_pip();
        assert_eq!(pip("numpy=1.19.2").unwrap(), "==1.19.2");
        assert_eq!(pip("numpy=1.19").unwrap(), "==1.19.*");
        assert_eq!(pip("numpy").unwrap(), "");
        assert_eq!(pip("numpy 1|2"), None);
    }
}
