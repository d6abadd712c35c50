//! The identity of an environment: facts that can be shown, a hash over them, and why two differ.
//!
//! It knows how meaning becomes a hash. What counts as meaning is decided in [`crate::environment`].

use std::collections::{BTreeMap, BTreeSet};

pub use proto::query::EnvironmentFact as Fact;
use proto::{id::EnvironmentHash, spec::EnvironmentSpec};
use sha2::{Digest as _, Sha256};

use crate::environment::{Definition, Refused};

/// How this builder makes an environment of a definition; part of the hash, so that a change of it builds anew.
pub const RECIPE: u32 = 2;

/// A fact that two environments do not share.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    /// What it is about.
    pub path: String,
    /// What the first says; `None` where it says nothing.
    pub before: Option<String>,
    /// What the second says; `None` where it says nothing.
    pub after: Option<String>,
}

/// The canonical form of an environment, in the order in which it is hashed.
///
/// # Errors
///
/// Fails when the environment is not understood, or carries a credential.
pub fn facts(spec: &EnvironmentSpec) -> Result<Vec<Fact>, Refused> {
    Ok(facts_of(&Definition::read(spec)?))
}

/// The environment hash: SHA-256 over the canonical form.
///
/// # Errors
///
/// As [`facts`].
pub fn hash(spec: &EnvironmentSpec) -> Result<EnvironmentHash, Refused> {
    Ok(hash_of(&Definition::read(spec)?))
}

/// The facts in which two environments differ; none when, and only when, their hashes are equal.
///
/// # Errors
///
/// As [`facts`], for either.
pub fn why(before: &EnvironmentSpec, after: &EnvironmentSpec) -> Result<Vec<Difference>, Refused> {
    Ok(differences(&facts(before)?, &facts(after)?))
}

/// The facts in which two environments differ.
pub fn differences(before: &[Fact], after: &[Fact]) -> Vec<Difference> {
    let by_path = |facts: &[Fact]| -> BTreeMap<String, String> {
        facts.iter().map(|fact| (fact.path.clone(), fact.value.clone())).collect()
    };
    let (mut ones, mut twos) = (by_path(before), by_path(after));
    let difference = |fact: &Fact| {
        let (before, after) = (ones.remove(&fact.path), twos.remove(&fact.path));
        (before != after).then(|| Difference { path: fact.path.clone(), before, after })
    };
    before.iter().chain(after).filter_map(difference).collect()
}

/// The environment hash of a definition.
pub fn hash_of(definition: &Definition) -> EnvironmentHash {
    let pairs: Vec<_> = facts_of(definition).into_iter().map(|fact| (fact.path, fact.value)).collect();
    let text = serde_json::to_vec(&pairs).expect("pairs of strings are JSON");
    EnvironmentHash::from_sha256(Sha256::digest(&text).into())
}

pub(crate) fn facts_of(definition: &Definition) -> Vec<Fact> {
    let mut facts = vec![fact("recipe", RECIPE.to_string())];
    facts.extend(definition.base_image.clone().map(|image| fact("base image", image)));
    facts.extend(numbered("docker step", &definition.docker_steps));
    facts.extend(numbered("Dockerfile", &definition.dockerfile));
    if definition.user_managed {
        facts.push(fact("packages", "those of the base image".to_owned()));
        return facts;
    }
    facts.push(fact("python", definition.python.to_string()));
    facts.extend(numbered("channel", &definition.channels));
    for ((name, build), versions) in &definition.conda {
        let path = build.as_ref().map_or(format!("conda {name}"), |build| format!("conda {name} (build {build})"));
        facts.push(fact(path, versions.to_string()));
    }
    let options = &definition.pip.options;
    facts.extend(options.index_url.clone().map(|url| fact("pip --index-url", url)));
    facts.extend(numbered("pip --extra-index-url", &options.extra_index_urls));
    facts.extend(numbered("pip --find-links", &options.find_links));
    let set = |values: &BTreeSet<String>| values.iter().cloned().collect::<Vec<_>>().join(" ");
    for (name, value) in [
        ("pip --no-index", if options.no_index { "yes".to_owned() } else { String::new() }),
        ("pip --pre", if options.pre { "yes".to_owned() } else { String::new() }),
        ("pip --no-binary", set(&options.no_binary)),
        ("pip --only-binary", set(&options.only_binary)),
        ("pip --trusted-host", set(&options.trusted_hosts)),
    ] {
        facts.extend((!value.is_empty()).then(|| fact(name, value)));
    }
    let mut pip: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (key, wanted) in &definition.pip.wanted {
        let what = key.url.as_ref().map_or(wanted.canonical(), |url| format!("{} @ {url}", wanted.canonical()));
        let condition = key.marker.as_ref().map_or(String::new(), |marker| format!(" ; {marker}"));
        pip.entry(&key.name).or_default().push(what + &condition);
    }
    facts.extend(pip.into_iter().map(|(name, wanted)| fact(format!("pip {name}"), wanted.join(" & "))));
    facts
}

fn fact(path: impl Into<String>, value: String) -> Fact {
    Fact { path: path.into(), value }
}

fn numbered<'a>(path: &'a str, values: &'a [String]) -> impl Iterator<Item = Fact> + 'a {
    values.iter().enumerate().map(move |(n, value)| fact(format!("{path} {}", n + 1), value.clone()))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select, strategy::Union};
    use proto::spec::CondaSpec;

    use super::*;

    fn spec(python: &str, pip: &[&str]) -> EnvironmentSpec {
        let pip = pip.iter().map(|line| (*line).to_owned()).collect();
        let conda = CondaSpec {
            channels: vec!["conda-forge".to_owned()],
            dependencies: vec![python.to_owned()],
            pip,
            ..CondaSpec::default()
        };
        EnvironmentSpec { conda, ..EnvironmentSpec::default() }
    }

    fn everything() -> EnvironmentSpec {
        let mut spec = spec(
            "python=3.11",
            &[
                "Scikit_Learn==1.9.1",
                "inference-schema[numpy-support]",
                "x~=1.4.2; python_version<'3.12'",
                "y @ https://host/y.zip",
                "--pre",
            ],
        );
        spec.conda.dependencies.extend(["pip".to_owned(), "conda-forge::libgomp>=12".to_owned()]);
        spec.base_image = Some("python:3.11-slim".to_owned());
        spec.docker_steps = Some("env A=1\nRUN true".to_owned());
        spec
    }

    #[test]
    fn the_hash_is_frozen() {
        // An environment whose hash moves is built anew for everybody: change these only together with RECIPE.
        for (spec, frozen) in [
            (EnvironmentSpec::default(), "695521be043e3e02e0fba759cd16f3980a068ae46a595ed77d87932f2143365c"),
            (
                spec("python=3.11", &["azureml-inference-server-http"]),
                "9f6f6ce65d2a1f12bd038a00506dc6583961143baad451e8814b6e979f1e54c3",
            ),
            (everything(), "31968430e3fe4f004097be0f88390b7eca4988f0845379e17205c314ebf3867c"),
        ] {
            assert_eq!(hash(&spec).unwrap().as_str(), frozen, "{:#?}", facts(&spec));
        }
    }

    #[test]
    fn the_canonical_form_can_be_shown() {
        let shown: Vec<_> =
            facts(&everything()).unwrap().into_iter().map(|f| format!("{}: {}", f.path, f.value)).collect();
        let expected = [
            "recipe: 2",
            "base image: docker.io/library/python:3.11-slim",
            "docker step 1: ENV A=1",
            "docker step 2: RUN true",
            "python: 3.11.*",
            "channel 1: conda-forge",
            "conda conda-forge::libgomp: >=12",
            "conda pip: any",
            "pip --pre: yes",
            "pip inference-schema: [numpy-support]",
            "pip scikit-learn: ==1.9.1",
            "pip x: ==1.4.*,>=1.4.2 ; python_full_version < '3.12'",
            "pip y: any @ https://host/y.zip",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn names_variables_and_files_are_no_part_of_it() {
        let mut other = everything();
        other.name = Some("other".to_owned());
        other.conda.file = Some("elsewhere.yml".to_owned());
        other.variables.insert("A".to_owned(), "1".to_owned());
        other.gpu = true;
        assert_eq!(hash(&other), hash(&everything()));
    }

    #[test]
    fn order_counts_where_it_means_something() {
        let mut channels = everything();
        channels.conda.channels = vec!["defaults".to_owned(), "conda-forge".to_owned()];
        let mut turned = channels.clone();
        turned.conda.channels.reverse();
        assert_ne!(hash(&channels), hash(&turned));
        let mut steps = everything();
        steps.docker_steps = Some("RUN true\nENV A=1".to_owned());
        assert_ne!(hash(&steps), hash(&everything()));
    }

    #[test]
    fn what_a_user_managed_image_brings_is_not_looked_at() {
        let managed = |pip: &[&str]| EnvironmentSpec { user_managed: true, ..spec("python=3.11", pip) };
        assert_eq!(hash(&managed(&["x"])), hash(&managed(&["y"])));
        assert_ne!(hash(&managed(&["x"])), hash(&spec("python=3.11", &["x"])));
    }

    #[test]
    fn why_names_each_fact_that_differs() {
        let (before, after) = (spec("python=3.11", &["a==1.9.1", "b"]), spec("python=3.11", &["c", "a==1.9.2"]));
        let said: Vec<_> = why(&before, &after).unwrap().into_iter().map(|d| (d.path, d.before, d.after)).collect();
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            said,
            [
                ("pip a".to_owned(), some("==1.9.1"), some("==1.9.2")),
                ("pip b".to_owned(), some("any"), None),
                ("pip c".to_owned(), None, some("any")),
            ]
        );
        assert_eq!(why(&everything(), &everything()).unwrap(), []);
    }

    /// The meaning of a requirement, and ways to write it.
    #[derive(Debug, Clone, PartialEq)]
    struct Meaning {
        name: &'static str,
        extras: Vec<&'static str>,
        low: Option<u8>,
        pin: Option<(u8, u8)>,
        windows: bool,
    }

    fn meaning() -> impl Strategy<Value = Meaning> {
        let names = select(vec!["scikit-learn", "numpy", "azureml-defaults", "zope-interface", "pillow"]);
        let extras = proptest::sample::subsequence(vec!["a", "numpy-support"], 0..=2);
        let pin = proptest::option::of((0..3u8, 0..3u8));
        (names, extras, proptest::option::of(1..4u8), pin, any::<bool>()).prop_map(
            |(name, extras, low, pin, windows)| Meaning {
                name,
                extras,
                low: low.filter(|_| pin.is_none()),
                pin,
                windows,
            },
        )
    }

    /// Writes a requirement in one of many spellings, chosen by the bits of `style`.
    fn written(meaning: &Meaning, style: u32) -> String {
        let bit = |n: u32| style >> n & 1 == 1;
        let blank = if bit(0) { "  " } else { "" };
        let mut name = meaning.name.replace('-', if bit(1) { "_" } else { "." });
        if bit(2) {
            name = name.to_uppercase();
        }
        let mut extras: Vec<_> =
            meaning.extras.iter().map(|extra| extra.replace('-', if bit(3) { "_" } else { "-" })).collect();
        if bit(4) {
            extras.reverse();
        }
        let extras = if extras.is_empty() {
            String::new()
        } else {
            format!("[{}]", extras.join(if bit(5) { " , " } else { "," }))
        };
        let zero = if bit(6) { ".0" } else { "" };
        let mut conditions: Vec<String> = Vec::new();
        conditions.extend(meaning.low.map(|low| format!(">={blank}{low}{zero}")));
        conditions.extend(meaning.low.map(|_| format!("<{blank}9{zero}")));
        conditions.extend(meaning.pin.map(|(major, minor)| format!("=={blank}{major}.{minor}{zero}")));
        if bit(7) {
            conditions.reverse();
        }
        let marker = match (meaning.windows, bit(8)) {
            (false, _) => "",
            (true, false) => "; os_name=='nt'",
            (true, true) => " ;  (os_name  ==  \"nt\")",
        };
        let line = format!("{name}{extras}{blank}{}{marker}", conditions.join(if bit(9) { " ," } else { "," }));
        match style >> 10 & 3 {
            0 => format!("  {line}"),
            1 => format!("{line}  # because"),
            2 => format!("'{line}'").replace("'nt'", "\"nt\""),
            _ => line,
        }
    }

    /// Lines for requirements of different packages, repeated and in some order.
    fn lines(meanings: &[Meaning], styles: &[u32], turn: usize) -> Vec<String> {
        let mut lines: Vec<_> = styles
            .iter()
            .enumerate()
            .filter(|_| !meanings.is_empty())
            .map(|(n, style)| written(&meanings[n % meanings.len()], *style))
            .collect();
        lines.extend(["".to_owned(), "# only a comment".to_owned()]);
        let turn = turn % lines.len();
        lines.rotate_left(turn);
        lines
    }

    fn distinct(meanings: Vec<Meaning>) -> Vec<Meaning> {
        let mut by_name = BTreeMap::new();
        for meaning in meanings {
            by_name.entry(meaning.name).or_insert(meaning);
        }
        by_name.into_values().collect()
    }

    fn python(minor: u8, style: u8) -> String {
        let ways = ["python=3.M", "python 3.M.*", "Python==3.M.*", " python = 3.M.*  # it", "\"python=3.M\""];
        ways[usize::from(style) % ways.len()].replace('M', &minor.to_string())
    }

    fn environment(minor: u8, style: u8, pip: Vec<String>) -> EnvironmentSpec {
        let conda = CondaSpec { dependencies: vec![python(minor, style)], pip, ..CondaSpec::default() };
        EnvironmentSpec { conda, ..EnvironmentSpec::default() }
    }

    proptest! {
        #[test]
        fn equal_meaning_has_an_equal_hash(
            meanings in vec(meaning(), 1..5),
            minor in 6..14u8,
            styles in (vec(any::<u32>(), 5..12), vec(any::<u32>(), 5..12)),
            turns in any::<(usize, usize)>(),
            pythons in any::<(u8, u8)>(),
        ) {
            let meanings = distinct(meanings);
            let one = environment(minor, pythons.0, lines(&meanings, &styles.0, turns.0));
            let two = environment(minor, pythons.1, lines(&meanings, &styles.1, turns.1));
            prop_assert_eq!(facts(&one), facts(&two));
            prop_assert_eq!(hash(&one), hash(&two));
            prop_assert_eq!(why(&one, &two), Ok(Vec::new()));
        }

        #[test]
        fn different_meaning_has_a_different_hash(
            ones in vec(meaning(), 1..5), twos in vec(meaning(), 1..5), minors in (6..14u8, 6..14u8), style in any::<u32>(),
        ) {
            let (ones, twos) = (distinct(ones), distinct(twos));
            let styles = [style; 5];
            let one = environment(minors.0, 0, lines(&ones, &styles, 0));
            let two = environment(minors.1, 0, lines(&twos, &styles, 0));
            let same = ones == twos && minors.0 == minors.1;
            prop_assert_eq!(hash(&one) == hash(&two), same);
            prop_assert_eq!(why(&one, &two).unwrap().is_empty(), same);
        }

        #[test]
        fn no_environment_makes_it_panic(
            texts in vec(Union::new(["\\PC{0,30}", "[a-c0-9=<>!~,.;@#:/ \\[\\]_-]{0,20}", "a ?(\\[[ab., -]{0,6}\\])? ?[=<>~!]{0,2} ?[0-9.a*]{0,4} ?; ?[a-z_'\"=<> .0-9()]{0,40}"]), 4),
        ) {
            let conda = CondaSpec {
                channels: vec![texts[0].clone()],
                dependencies: vec![texts[1].clone()],
                pip: vec![texts[2].clone()],
                ..CondaSpec::default()
            };
            let spec = EnvironmentSpec {
                conda,
                base_image: Some(texts[0].clone()),
                docker_steps: Some(texts[3].clone()),
                ..EnvironmentSpec::default()
            };
            if let Ok(facts) = facts(&spec) {
                let paths: BTreeSet<_> = facts.iter().map(|fact| &fact.path).collect();
                prop_assert_eq!(paths.len(), facts.len());
            }
        }
    }
}
