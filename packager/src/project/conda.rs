//! Conda files and `requirements.txt`: what they list, as written. What it means is the builder's business.

use std::{collections::BTreeMap, path::Path};

use proto::{
    failure::{Failure, Stage},
    spec::CondaSpec,
};
use serde_json::{Map, Value};

use super::{
    document::{Document, Findings, kind},
    place::Place,
};

/// A conda definition and the environment variables that it sets.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Conda {
    pub(crate) spec: CondaSpec,
    /// The text of its file; empty where it lies in another one.
    pub(crate) text: String,
    pub(crate) variables: BTreeMap<String, String>,
}

impl Conda {
    /// Reads a conda file whose path is relative to `base`, or a `requirements.txt` in its place.
    pub(crate) fn read_file(place: &Place, base: &Path, file: &str) -> Result<Self, Failure> {
        if file.ends_with(".txt") {
            let text = place.text(base, file, "the file")?;
            let spec = CondaSpec { file: Some(file.to_owned()), pip: requirements(&text), ..CondaSpec::default() };
            return Ok(Self { spec, text, variables: BTreeMap::new() });
        }
        let document = Document::read(place, base, file)?;
        Ok(Self { text: document.text, ..Self::read(&document.root, file)? })
    }

    /// Reads a conda definition. Keys other than v1's (azureml-core 1.61) are an error there, and so here.
    pub(crate) fn read(root: &Map<String, Value>, file: &str) -> Result<Self, Failure> {
        let mut found = Findings::default();
        let mut conda =
            Self { spec: CondaSpec { file: Some(file.to_owned()), ..CondaSpec::default() }, ..Self::default() };
        for (key, value) in root.iter().filter(|(_, value)| !value.is_null()) {
            match key.as_str() {
                "name" | "prefix" => {}
                "channels" => conda.spec.channels = texts(value, "channels", &mut found),
                "variables" => conda.variables = variables(value, &mut found),
                "dependencies" => dependencies(value, &mut conda.spec, &mut found),
                other => found.violations.push(format!(
                    "{other} is no key of a conda file; there are name, channels, dependencies, prefix and variables"
                )),
            }
        }
        found.check(file)?;
        Ok(conda)
    }
}

/// Whether a definition says which Python it wants. v1's SDK put in 3.10.18 where it did not, and the builder takes 3.10.
pub(crate) fn names_python(spec: &CondaSpec) -> bool {
    let is_version = |rest: &str| rest.trim_start().starts_with(|c: char| "=<>!~".contains(c) || c.is_ascii_digit());
    spec.dependencies.iter().any(|line| {
        let name = line.rsplit("::").next().unwrap_or(line).trim_start();
        name.strip_prefix("python").is_some_and(is_version)
    })
}

fn dependencies(value: &Value, spec: &mut CondaSpec, found: &mut Findings) {
    let Value::Array(entries) = value else {
        found.violations.push(format!("dependencies must be a list, not {}", kind(value)));
        return;
    };
    for entry in entries {
        match entry {
            Value::String(text) => spec.dependencies.push(text.trim().to_owned()),
            Value::Object(object) => {
                for (key, list) in object {
                    match key.as_str() {
                        "pip" => spec.pip.extend(texts(list, "pip", found)),
                        other => found
                            .violations
                            .push(format!("dependencies hold {other}: only a list named pip may lie in them")),
                    }
                }
            }
            Value::Null => {}
            other => found.violations.push(format!("dependencies hold {}, where a package is expected", kind(other))),
        }
    }
}

fn texts(value: &Value, name: &str, found: &mut Findings) -> Vec<String> {
    match value {
        Value::Null => Vec::new(),
        Value::String(text) => vec![text.trim().to_owned()],
        Value::Array(entries) => entries
            .iter()
            .filter_map(|entry| match entry {
                Value::String(text) => Some(text.trim().to_owned()).filter(|text| !text.is_empty()),
                Value::Null => None,
                other => {
                    found.violations.push(format!("{name} holds {}, where a text is expected", kind(other)));
                    None
                }
            })
            .collect(),
        other => {
            found.violations.push(format!("{name} must be a list, not {}", kind(other)));
            Vec::new()
        }
    }
}

/// Environment variables; numbers and booleans become their text.
pub(crate) fn variables(value: &Value, found: &mut Findings) -> BTreeMap<String, String> {
    let Value::Object(object) = value else {
        found.violations.push(format!("environment variables must be an object, not {}", kind(value)));
        return BTreeMap::new();
    };
    let mut variables = BTreeMap::new();
    for (name, value) in object {
        let text = match value {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            other => {
                found.violations.push(format!("environment variable {name} must be a text, not {}", kind(other)));
                continue;
            }
        };
        if name.is_empty() || name.contains(['=', '\0']) || text.contains('\0') {
            found.violations.push(format!("{name:?} cannot be an environment variable"));
            continue;
        }
        variables.insert(name.clone(), text);
    }
    variables
}

/// The lines of a `requirements.txt` without comments; a backslash joins a line with the next.
fn requirements(text: &str) -> Vec<String> {
    let joined = text.replace("\\\r\n", " ").replace("\\\n", " ");
    let without_comment = |line: &str| match line.find(" #") {
        Some(comment) => line[..comment].trim().to_owned(),
        None => line.trim().to_owned(),
    };
    joined.lines().map(without_comment).filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

/// A conda definition that lies in an object of another file.
pub(crate) fn inline(value: &Value, file: &str) -> Result<Conda, Failure> {
    match value {
        Value::Object(root) => Conda::read(root, file),
        other => {
            let cause = format!("{file}: the conda dependencies must be an object, not {}", kind(other));
            Err(Failure::project(Stage::Reading, cause, format!("mend {file}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::document::parse;
    use super::*;

    fn read(text: &str) -> Result<Conda, Failure> {
        Conda::read(parse(text, "environment.yml").unwrap().as_object().unwrap(), "environment.yml")
    }

    #[test]
    fn the_usual_file_is_read_as_written() {
        let text = "name: x\nchannels:\n  - conda-forge\ndependencies:\n  - python=3.11\n  - pip\n  - pip:\n      - numpy\n      - scikit-learn==1.9.1\nvariables:\n  A: 1\n";
        let conda = read(text).unwrap();
        assert_eq!(conda.spec.channels, ["conda-forge"]);
        assert_eq!(conda.spec.dependencies, ["python=3.11", "pip"]);
        assert_eq!(conda.spec.pip, ["numpy", "scikit-learn==1.9.1"]);
        assert_eq!(conda.variables["A"], "1");
    }

    #[test]
    fn a_python_is_named_only_with_a_version() {
        let named =
            |line: &str| names_python(&CondaSpec { dependencies: vec![line.to_owned()], ..CondaSpec::default() });
        for line in ["python=3.11", "python 3.11", "python >=3.9,<3.12", "conda-forge::python==3.11.4"] {
            assert!(named(line), "{line}");
        }
        for line in ["python", "python-dateutil=2", "pip", "ipython=8"] {
            assert!(!named(line), "{line}");
        }
    }

    #[test]
    fn another_key_and_another_shape_are_refused() {
        for (text, word) in [
            ("dependency: []\n", "dependency is no key"),
            ("dependencies: {a: 1}\n", "must be a list"),
            ("dependencies:\n  - conda: [x]\n", "only a list named pip"),
            ("dependencies:\n  - pip: {a: 1}\n", "pip must be a list"),
            ("dependencies:\n  - 3.11\n", "a number, where a package"),
        ] {
            assert!(read(text).unwrap_err().cause.contains(word), "{text}");
        }
    }

    #[test]
    fn requirements_lose_comments_and_keep_markers() {
        let text = "# top\nnumpy>=1  # why\nfoo \\\n  ==1\n\nbar; python_version > '3' \n-e .#egg=x\n";
        assert_eq!(requirements(text), ["numpy>=1", "foo    ==1", "bar; python_version > '3'", "-e .#egg=x"]);
    }
}
