//! The entry script, looked at without running it: a cheap check that never refuses what it cannot judge.

use std::path::Path;

use proto::failure::{Failure, Stage};

use super::document::read_text;

/// Python's keywords: a script named so cannot be imported.
const KEYWORDS: [&str; 35] = [
    "False", "None", "True", "and", "as", "assert", "async", "await", "break", "class", "continue", "def", "del",
    "elif", "else", "except", "finally", "for", "from", "global", "if", "import", "in", "is", "lambda", "nonlocal",
    "not", "or", "pass", "raise", "return", "try", "while", "with", "yield",
];

/// Checks name and content of an entry script at `path`, which messages call `file`.
///
/// # Errors
///
/// Fails when the name is not one that v1 takes, the file is not there, or it defines no `init()` or `run()`.
pub(crate) fn check(path: &Path, file: &str) -> Result<(), Failure> {
    let wrong = |cause: String, remedy: &str| Failure::project(Stage::Reading, cause, remedy);
    let name = Path::new(file).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(stem) = name.strip_suffix(".py") else {
        return Err(wrong(format!("the entry script {file} does not end in .py"), "name a Python script"));
    };
    let mut characters = stem.chars();
    let identifier = characters.next().is_some_and(|first| first == '_' || first.is_alphabetic())
        && characters.all(|character| character == '_' || character.is_alphanumeric());
    if !identifier || KEYWORDS.contains(&stem) {
        return Err(wrong(
            format!("the entry script {file} cannot be imported under the name {stem:?}"),
            "rename it to a Python identifier, score.py for example",
        ));
    }
    let text = read_text(path, file).map_err(|failure| match path.exists() {
        true => failure,
        false => wrong(
            format!("the entry script {file} does not exist"),
            "create it, or name another with entryScript in inferenceconfig.json or --entry-script",
        ),
    })?;
    for function in ["init", "run"] {
        if !may_define(&text, function) {
            return Err(wrong(
                format!("{file} defines no {function}()"),
                &format!("add `def {function}(…):` at the top level of {file}"),
            ));
        }
    }
    Ok(())
}

/// Whether a script may define a function at its top level: by `def`, an assignment, or an import.
fn may_define(text: &str, function: &str) -> bool {
    let word = |line: &str| {
        let is_name = |character: char| character == '_' || character.is_alphanumeric();
        line.match_indices(function).any(|(at, _)| {
            let before = line[..at].chars().next_back().is_none_or(|character| !is_name(character));
            let after = line[at + function.len()..].chars().next().is_none_or(|character| !is_name(character));
            before && after
        })
    };
    let hides = |line: &str| {
        let line = line.trim_start();
        (line.starts_with("from ") && line.contains('*'))
            || ["exec(", "globals(", "setattr(", "__import__"].iter().any(|call| line.contains(call))
    };
    // `def`, `run = …`, `from x import run`, a name in a bracketed import: any mention outside a comment is left to Python.
    text.lines().map(|line| line.split('#').next().unwrap_or_default()).any(|line| hides(line) || word(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_text(file: &str, text: &str) -> Result<(), Failure> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("script");
        std::fs::write(&path, text).unwrap();
        check(&path, file)
    }

    #[test]
    fn a_script_may_define_its_functions_in_any_way() {
        for good in [
            "def init():\n    pass\ndef run(data):\n    return data\n",
            "async def init(): ...\nrun = lambda data: data\n",
            "from model import init, run\n",
            "from model import (\n    init,\n    run,\n)\n",
            "from model import *\n",
            "if True:\n    def init(): pass\n    def run(x): pass\n",
        ] {
            assert!(check_text("score.py", good).is_ok(), "{good}");
        }
    }

    #[test]
    fn a_script_without_its_functions_is_refused() {
        for (bad, word) in [
            ("def init():\n    pass\n", "run()"),
            ("def run(data):\n    pass\n", "init()"),
            ("# def run\ndef init(): pass\ndef runner(): pass\n", "run()"),
            ("", "init()"),
        ] {
            assert!(check_text("score.py", bad).unwrap_err().cause.contains(word), "{bad}");
        }
    }

    #[test]
    fn the_name_must_be_one_that_can_be_imported() {
        for bad in ["score.txt", "my-score.py", "1score.py", "class.py", ".py"] {
            assert!(check_text(bad, "def init(): pass\ndef run(x): pass\n").is_err(), "{bad}");
        }
        assert!(check_text("src/score.py", "def init(): pass\ndef run(x): pass\n").is_ok());
    }
}
