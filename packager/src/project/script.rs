//! The entry script, looked at without running it: a cheap check that never refuses what it cannot judge.

use std::path::Path;

use proto::failure::{Failure, Stage};

/// Python's keywords: a script named so cannot be imported.
const KEYWORDS: [&str; 35] = [
    "False", "None", "True", "and", "as", "assert", "async", "await", "break", "class", "continue", "def", "del",
    "elif", "else", "except", "finally", "for", "from", "global", "if", "import", "in", "is", "lambda", "nonlocal",
    "not", "or", "pass", "raise", "return", "try", "while", "with", "yield",
];

/// Names that can define others in ways which only Python can follow.
const OPAQUE: [&str; 9] =
    ["exec", "eval", "globals", "locals", "vars", "setattr", "__dict__", "__import__", "__getattr__"];

fn wrong(cause: String, remedy: &str) -> Failure {
    Failure::project(Stage::Reading, cause, remedy)
}

/// Checks the name of an entry script: v1 takes `.py` files that can be imported.
///
/// # Errors
///
/// Fails when it cannot be imported under that name.
pub(crate) fn check_name(file: &str) -> Result<(), Failure> {
    let name = Path::new(file).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(stem) = name.strip_suffix(".py") else {
        return Err(wrong(format!("the entry script {file} does not end in .py"), "name a Python script"));
    };
    let mut characters = stem.chars();
    let identifier =
        characters.next().is_some_and(|first| first == '_' || first.is_alphabetic()) && characters.all(is_word);
    if identifier && !KEYWORDS.contains(&stem) {
        return Ok(());
    }
    Err(wrong(
        format!("the entry script {file} cannot be imported under the name {stem:?}"),
        "rename it to a Python identifier, score.py for example",
    ))
}

/// Checks the content of an entry script, which messages call `file`.
///
/// # Errors
///
/// Fails when it surely defines no `init()` or no `run()` at its top level.
pub(crate) fn check_content(content: &[u8], file: &str) -> Result<(), Failure> {
    // Python takes other encodings too; the names that are looked for look the same in them.
    let text = String::from_utf8_lossy(content);
    let Some(code) = code_only(&text) else { return Ok(()) };
    for function in ["init", "run"] {
        if !may_define(&code, function) {
            return Err(wrong(
                format!("{file} defines no {function}()"),
                &format!("add `def {function}(…):` at the top level of {file}"),
            ));
        }
    }
    Ok(())
}

fn is_word(character: char) -> bool {
    character == '_' || character.is_alphanumeric()
}

/// The logical lines of a script, without comments and what stands in strings; `None` when quotes or brackets do not match up.
fn code_only(text: &str) -> Option<String> {
    let mut code = String::with_capacity(text.len());
    let mut depth = 0_usize;
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        rest = &rest[character.len_utf8()..];
        match character {
            '#' => rest = &rest[rest.find('\n').unwrap_or(rest.len())..],
            '"' | '\'' => {
                rest = after_string(rest, character)?;
                code.push_str("''");
            }
            '\\' => rest = rest.strip_prefix("\r\n").or_else(|| rest.strip_prefix('\n'))?,
            '\n' | '\r' if depth > 0 => code.push(' '),
            _ => {
                match character {
                    '(' | '[' | '{' => depth += 1,
                    ')' | ']' | '}' => depth = depth.checked_sub(1)?,
                    _ => {}
                }
                code.push(character);
            }
        }
    }
    (depth == 0).then_some(code)
}

/// What follows a string, whose first quote has been read.
fn after_string(text: &str, quote: char) -> Option<&str> {
    let triple: String = [quote; 3].iter().collect();
    let (mut rest, long) = match text.strip_prefix(&triple[1..]) {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    loop {
        if long && let Some(after) = rest.strip_prefix(&triple) {
            return Some(after);
        }
        let character = rest.chars().next()?;
        rest = &rest[character.len_utf8()..];
        match character {
            '\\' => rest = &rest[rest.chars().next()?.len_utf8()..],
            '\n' if !long => return None,
            _ if character == quote && !long => return Some(rest),
            _ => {}
        }
    }
}

/// Whether code may bind a name at its top level: by `def`, an assignment, an import, a `global` in a function, or some way not seen here.
fn may_define(code: &str, name: &str) -> bool {
    // The indentation of the functions and classes that a line lies in.
    let mut scopes: Vec<usize> = Vec::new();
    code.lines().filter(|line| !line.trim().is_empty()).any(|line| {
        let trimmed = line.trim_start();
        let indentation = line.len() - trimmed.len();
        while scopes.last().is_some_and(|scope| indentation <= *scope) {
            scopes.pop();
        }
        let nested = !scopes.is_empty();
        let first = trimmed.split(|c: char| !is_word(c)).next().unwrap_or_default();
        if matches!(first, "def" | "class" | "async") {
            scopes.push(indentation);
        }
        let opaque = words(trimmed).any(|(_, word, _)| OPAQUE.contains(&word)) || trimmed.contains("import *");
        let binds = (!nested || first == "global")
            && words(trimmed).any(|(before, word, after)| word == name && is_bound(before, after));
        opaque || binds
    })
}

/// Whether a name is bound, or at least not only used, between what stands before and after it.
fn is_bound(before: &str, after: &str) -> bool {
    let before = before.trim_end();
    let defined = before.ends_with("def") || before.ends_with("class");
    defined || !(before.ends_with('.') || after.trim_start().starts_with('('))
}

/// The words of a line, each with what stands before and after it.
fn words(line: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + line[at..].find(is_word)?;
        let end = line[start..].find(|c| !is_word(c)).map_or(line.len(), |length| start + length);
        at = end;
        Some((&line[..start], &line[start..end], &line[end..]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<(), Failure> {
        check_content(text.as_bytes(), "score.py")
    }

    #[test]
    fn a_script_may_define_its_functions_in_any_way() {
        for good in [
            "def init():\n    pass\ndef run(data):\n    return data\n",
            "async def init(): ...\nrun = lambda data: data\n",
            "from model import init, run\n",
            "from model import (\n    init,\n    run as run,\n)\n",
            "from model import *\n",
            "if True:\n    def init(): pass\n    def run(x): pass\nelse:\n    pass\n",
            "try:\n\timport init\n\tfrom a import run\nexcept ImportError:\n\tpass\n",
            "def init():\n    global run\n    run = lambda x: x\n",
            "def init(): pass\nexec('def run(x): pass')\n",
            "init, run = make()\n",
            "init: object = 1\nclass run: pass\n",
            "x = '''\n  def \\'''\n'''\ndef init(): pass\n@rawhttp\ndef run(request): pass\n",
            "x = ''\ny = \"\"\"it's\"\"\"\ndef init(): pass\ndef run(request): pass\n",
            "def init(): pass\nclass A:\n    def f(self): pass\ndef run(x): pass\n",
            "def init(): pass\n\\\ndef run(x): pass\n",
            "def init(): pass\r\ndef run(x): pass\r\n",
            // What does not match up is left to Python, which says it better.
            "def init(: pass\n",
            "x = 'open\n",
            "x = )\n",
        ] {
            assert!(check(good).is_ok(), "{good}");
        }
        assert!(check_content(b"# \xe9\ndef init(): pass\ndef run(x): pass\n", "score.py").is_ok());
    }

    #[test]
    fn a_script_without_its_functions_is_refused() {
        for (bad, word) in [
            ("def init():\n    pass\n", "run()"),
            ("def run(data):\n    pass\n", "init()"),
            ("# def run\ndef init(): pass\ndef runner(): pass\n", "run()"),
            ("\"\"\"\ndef run(x): pass\n\"\"\"\ndef init(): pass\n", "run()"),
            ("def init(): pass\nclass Model:\n    def run(self): pass\n", "run()"),
            ("def init():\n    def run(x): pass\n", "run()"),
            ("import subprocess\ndef init(): pass\nsubprocess.run('x')\n", "run()"),
            ("def init(): pass\nif __name__ == '__main__':\n    run(1)\n", "run()"),
            ("def init(): pass\ndef Run(x): pass\n", "run()"),
            ("", "init()"),
        ] {
            assert!(check(bad).unwrap_err().cause.contains(word), "{bad}");
        }
    }

    #[test]
    fn the_name_must_be_one_that_can_be_imported() {
        for bad in ["score.txt", "my-score.py", "1score.py", "class.py", ".py", "score"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        for good in ["src/score.py", "_s.py", "score2.py"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
    }
}
