//! Reading v1's files: JSON or YAML, mistakes with line and column, unknown keys warned of, violations collected.

use std::{collections::BTreeSet, path::Path};

use proto::failure::{Failure, Stage};
use serde_json::{Map, Value};

use super::place::Place;

/// One of v1's files, as an object whose keys are asked for one by one.
pub(crate) struct Document {
    /// Its name, for messages.
    pub(crate) file: String,
    /// What it says.
    pub(crate) root: Map<String, Value>,
    /// The same as it stands there.
    pub(crate) text: String,
}

impl Document {
    /// Reads a file whose path is relative to `base`: as JSON if it looks like it, else as YAML.
    pub(crate) fn read(place: &Place, base: &Path, file: &str) -> Result<Self, Failure> {
        let text = place.text(base, file, "the file")?;
        match parse(&text, file)? {
            Value::Object(root) => Ok(Self { file: file.to_owned(), root, text }),
            Value::Null => Ok(Self { file: file.to_owned(), root: Map::new(), text }),
            other => Err(Failure::project(
                Stage::Reading,
                format!("{file} holds {}, not an object", kind(&other)),
                format!("write {file} as keys and values"),
            )),
        }
    }
}

/// Parses JSON or YAML; a mistake is told with its line and column.
pub(crate) fn parse(text: &str, file: &str) -> Result<Value, Failure> {
    let text = text.trim_start_matches('\u{feff}');
    let malformed = |error: String, line: usize, column: usize| {
        // Both parsers end their message with the place, which is told apart.
        let what = error.split(" at line ").next().unwrap_or_default();
        let cause = format!("{file} is malformed at line {line}, column {column}: {what}");
        let failure = Failure::project(Stage::Reading, cause, format!("mend {file}"));
        let shown = text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
        if may_hold_secrets(text) {
            return failure;
        }
        let pointer = format!("{}^", " ".repeat(column.saturating_sub(1).min(shown.chars().count())));
        failure.with_details([shown, pointer.as_str()])
    };
    let yaml = file.ends_with(".yml") || file.ends_with(".yaml");
    if !yaml && text.trim_start().starts_with(['{', '[']) {
        return serde_json::from_str(text)
            .map_err(|error| malformed(error.to_string(), error.line(), error.column().max(1)));
    }
    serde_yaml_ng::from_str(text).map_err(|error| {
        let (line, column) = error.location().map_or((1, 1), |location| (location.line(), location.column()));
        malformed(error.to_string(), line, column)
    })
}

/// Whether a line of a file must not be shown: failures travel in events, and keys and passwords never do.
fn may_hold_secrets(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    ["key", "password", "secret", "token", "/t/"].iter().any(|word| text.contains(word))
}

/// What kind of value it is, for a person.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// What was found while a file was read.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// What stops the deployment.
    pub(crate) violations: Vec<String>,
    /// What only the user should know.
    pub(crate) warnings: Vec<String>,
}

impl Findings {
    /// All violations as one failure, if there are any.
    pub(crate) fn check(&self, file: &str) -> Result<(), Failure> {
        let cause = match self.violations.as_slice() {
            [] => return Ok(()),
            [one] => format!("{file}: {one}"),
            [first, rest @ ..] => format!("{file} has {} mistakes, the first: {first}", rest.len() + 1),
        };
        let failure = Failure::project(Stage::Reading, cause, format!("mend {file}, then deploy again"));
        Err(match self.violations.len() {
            1 => failure,
            _ => failure.with_details(self.violations.iter().map(String::as_str)),
        })
    }
}

/// One object of a file. Each key is asked for by its name; those nobody asked for are unknown.
pub(crate) struct Section<'a> {
    object: &'a Map<String, Value>,
    path: String,
    asked: BTreeSet<&'static str>,
}

impl<'a> Section<'a> {
    pub(crate) fn root(object: &'a Map<String, Value>) -> Self {
        Self { object, path: String::new(), asked: BTreeSet::new() }
    }

    /// The name of a key with the objects that it lies in.
    pub(crate) fn name(&self, key: &str) -> String {
        format!("{}{key}", self.path)
    }

    /// The value of a key; missing and null are the same.
    pub(crate) fn value(&mut self, key: &'static str) -> Option<&'a Value> {
        self.asked.insert(key);
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// Whether nothing is said but some of these keys.
    pub(crate) fn only_has(&self, keys: &[&str]) -> bool {
        self.object.iter().all(|(key, value)| value.is_null() || keys.contains(&key.as_str()))
    }

    /// An object in this one.
    pub(crate) fn section(&mut self, key: &'static str, found: &mut Findings) -> Option<Section<'a>> {
        match self.value(key)? {
            Value::Object(object) => {
                Some(Section { object, path: format!("{}.", self.name(key)), asked: BTreeSet::new() })
            }
            other => {
                self.wrong(key, key, &format!("must be an object, not {}", kind(other)), found);
                None
            }
        }
    }

    pub(crate) fn text(&mut self, key: &'static str, found: &mut Findings) -> Option<&'a str> {
        match self.value(key)? {
            Value::String(text) => Some(text),
            other => {
                self.wrong(key, key, &format!("must be a text, not {}", kind(other)), found);
                None
            }
        }
    }

    pub(crate) fn boolean(&mut self, key: &'static str, found: &mut Findings) -> Option<bool> {
        match self.value(key)? {
            Value::Bool(value) => Some(*value),
            // v1's reader took YAML 1.1, in which these words are booleans.
            Value::String(text) if ["true", "yes", "on"].iter().any(|yes| text.eq_ignore_ascii_case(yes)) => Some(true),
            Value::String(text) if ["false", "no", "off"].iter().any(|no| text.eq_ignore_ascii_case(no)) => Some(false),
            other => {
                self.wrong(key, key, &format!("must be true or false, not {}", kind(other)), found);
                None
            }
        }
    }

    /// A number greater than zero; `parameter` is its name in v1's SDK, whose wording the message keeps.
    pub(crate) fn positive(&mut self, key: &'static str, parameter: &str, found: &mut Findings) -> Option<f64> {
        let number = self.number(key, parameter, found)?;
        if number > 0.0 && number.is_finite() {
            return Some(number);
        }
        self.wrong(key, parameter, "must be greater than zero", found);
        None
    }

    /// A whole number greater than zero.
    pub(crate) fn count(&mut self, key: &'static str, parameter: &str, found: &mut Findings) -> Option<u32> {
        self.count_up_to(u32::MAX, key, parameter, found)
    }

    /// A whole number greater than zero and not more than `most`.
    pub(crate) fn count_up_to(
        &mut self,
        most: u32,
        key: &'static str,
        parameter: &str,
        found: &mut Findings,
    ) -> Option<u32> {
        let number = self.positive(key, parameter, found)?;
        if number.fract() != 0.0 {
            self.wrong(key, parameter, "must be a whole number", found);
            return None;
        }
        if number > f64::from(most) {
            self.wrong(key, parameter, &format!("must be {most} at most"), found);
            return None;
        }
        Some(number as u32)
    }

    /// A whole number, zero included.
    pub(crate) fn count_or_zero(&mut self, key: &'static str, parameter: &str, found: &mut Findings) -> Option<u32> {
        let number = self.number(key, parameter, found)?;
        if number >= 0.0 && number.fract() == 0.0 && number <= f64::from(u32::MAX) {
            return Some(number as u32);
        }
        self.wrong(key, parameter, "must be a whole number, at least zero", found);
        None
    }

    fn number(&mut self, key: &'static str, parameter: &str, found: &mut Findings) -> Option<f64> {
        match self.value(key)? {
            Value::Number(number) => number.as_f64(),
            other => {
                self.wrong(key, parameter, &format!("must be a number, not {}", kind(other)), found);
                None
            }
        }
    }

    /// Adds a violation in v1's wording, with the file's own key.
    pub(crate) fn wrong(&self, key: &str, parameter: &str, what: &str, found: &mut Findings) {
        let name = self.name(key);
        let key = if name == parameter { String::new() } else { format!(" ({name})") };
        found.violations.push(format!("Invalid configuration, {parameter} {what}.{key}"));
    }

    /// Warns of each key that nobody asked for. v1 ignored them without a word.
    pub(crate) fn unknown(&self, file: &str, found: &mut Findings) {
        for key in self.object.keys().filter(|key| !self.asked.contains(key.as_str())) {
            let meant = self.asked.iter().find(|known| is_near(key, known));
            let meant = meant.map(|known| format!("; did you mean {known}?")).unwrap_or_default();
            found.warnings.push(format!("{file}: {} is not known and has no effect{meant}", self.name(key)));
        }
    }
}

/// Whether two keys differ by case, or by one letter that is missing, added or another.
fn is_near(one: &str, other: &str) -> bool {
    let (one, other) = (one.to_ascii_lowercase(), other.to_ascii_lowercase());
    let (one, other) = (one.as_bytes(), other.as_bytes());
    // Of shorter ones too many would be near.
    if one.len().min(other.len()) < 3 {
        return false;
    }
    let same = one.iter().zip(other).take_while(|(a, b)| a == b).count();
    let (one, other) = (&one[same..], &other[same..]);
    let same = one.iter().rev().zip(other.iter().rev()).take_while(|(a, b)| a == b).count();
    one.len() - same <= 1 && other.len() - same <= 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_told_with_line_and_column_and_shown() {
        let failure = parse("{\"a\": 1,\n  \"b\": 2,,\n}", "x.json").unwrap_err();
        assert!(failure.cause.starts_with("x.json is malformed at line 2, column 10"), "{failure}");
        assert_eq!(failure.details[0], "  \"b\": 2,,");
        let failure = parse("a: [1\nb: 2\n", "x.yml").unwrap_err();
        assert!(failure.cause.contains("x.yml is malformed at line 2"), "{failure}");
    }

    #[test]
    fn json_and_yaml_say_the_same() {
        let json = parse(r#"{"a": {"b": [1, true, null, "t"]}}"#, "x").unwrap();
        let yaml = parse("a:\n  b: [1, true, null, t]\n", "x").unwrap();
        assert_eq!(json, yaml);
        assert_eq!(parse("\u{feff}{\"a\": 1}", "x.json").unwrap()["a"], 1, "a byte order mark is no mistake");
    }

    #[test]
    fn a_line_that_may_hold_a_key_is_not_shown() {
        let failure = parse("{\"keys\": {\"primaryKey\": \"hidden-word\",,}}", "x.json").unwrap_err();
        assert!(!format!("{failure:?}").contains("hidden-word"), "{failure:?}");
        let failure = parse("password: [hidden-word\nb: 2", "x.yml").unwrap_err();
        assert!(!format!("{failure:?}").contains("hidden-word"), "{failure:?}");
    }

    #[test]
    fn yaml_is_read_whatever_the_file_is_called() {
        assert_eq!(parse("a: 1\n", "x.json").unwrap()["a"], 1);
        assert_eq!(parse("{a: 1}\n", "x.yml").unwrap()["a"], 1);
    }

    #[test]
    fn a_key_that_is_nearly_right_is_told() {
        for (key, known) in
            [("autoscaleEnabled", "autoScaleEnabled"), ("cpus", "cpu"), ("memryInGB", "memoryInGB"), ("cpa", "cpu")]
        {
            assert!(is_near(key, known), "{key}");
        }
        for (key, known) in [("cpu", "memoryInGB"), ("cpu", "cpuLimit"), ("aabb", "abab")] {
            assert!(!is_near(key, known), "{key}");
        }
    }

    #[test]
    fn unknown_keys_are_warned_of_by_their_whole_name() {
        let root = parse(r#"{"a": {"b": 1, "c": 2}, "d": null}"#, "x").unwrap();
        let (mut found, mut section) = (Findings::default(), Section::root(root.as_object().unwrap()));
        let mut inner = section.section("a", &mut found).unwrap();
        assert_eq!(inner.count("b", "b", &mut found), Some(1));
        inner.unknown("x.json", &mut found);
        section.unknown("x.json", &mut found);
        assert_eq!(
            found.warnings,
            ["x.json: a.c is not known and has no effect", "x.json: d is not known and has no effect"]
        );
    }
}
