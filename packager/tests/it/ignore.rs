//! The ignore rules, held against the real git.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use packager::walk::{Limits, Walk};
use proptest::prelude::*;
use tempfile::TempDir;

/// A repository without files whose work tree is said anew for each question.
struct Git {
    repository: TempDir,
}

impl Git {
    fn new() -> Self {
        let repository = TempDir::new().unwrap();
        let status = Command::new("git").args(["init", "-q", "--bare"]).arg(repository.path()).status();
        assert!(status.expect("git must be installed").success());
        Self { repository }
    }

    /// The files of a folder that git would add.
    fn files(&self, folder: &Path) -> Vec<String> {
        let output = Command::new("git")
            .arg("--git-dir")
            .arg(self.repository.path())
            .arg("--work-tree")
            .arg(folder)
            .args(["ls-files", "-z", "--others", "--exclude-per-directory=.gitignore"])
            .current_dir(folder)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut files: Vec<String> =
            output.stdout.split(|&byte| byte == 0).filter(|name| !name.is_empty()).map(utf8).collect();
        files.sort();
        files
    }
}

fn utf8(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn ours(folder: &Path) -> Vec<String> {
    let walk = Walk::project(folder, Limits::PROJECT).unwrap();
    walk.files.into_iter().map(|file| file.path).collect()
}

/// Writes a tree; of two paths of which one would lie in the other as in a folder, the first wins.
fn write(folder: &Path, files: &BTreeMap<String, Vec<u8>>) {
    for (path, content) in files {
        let path = folder.join(path);
        if fs::create_dir_all(path.parent().unwrap()).is_ok() {
            let _ = fs::write(path, content);
        }
    }
}

fn check(git: &Git, files: &BTreeMap<String, Vec<u8>>) -> (Vec<String>, Vec<String>) {
    let folder = TempDir::new().unwrap();
    write(folder.path(), files);
    (ours(folder.path()), git.files(folder.path()))
}

fn atom() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "a",
        "b",
        "ab",
        "c",
        "A",
        "foo",
        "x.log",
        ".log",
        "*",
        "*",
        "**",
        "***",
        "?",
        "/",
        "/",
        "/",
        "**/",
        "/**",
        "[a-c]",
        "[!a]",
        "[^b]",
        "[]a]",
        "[[:alpha:]]",
        "[[:digit:]b]",
        "[[:bad:]]",
        "[a",
        "[a-",
        "\\",
        "\\*",
        "\\ ",
        " ",
        "!",
        "#",
        "{a,b}",
        ".",
        "\r",
        "\t",
        "é",
        "-",
        "]",
        "[\\]]",
        "[b-\\d]",
        "[--0]",
        "[[:a]",
        "[/]",
        "\\/",
    ])
}

fn line() -> impl Strategy<Value = String> {
    (prop::bool::weighted(0.25), prop::collection::vec(atom(), 1..6), prop::bool::weighted(0.2)).prop_map(
        |(negated, atoms, folder)| {
            format!("{}{}{}", if negated { "!" } else { "" }, atoms.concat(), if folder { "/" } else { "" })
        },
    )
}

fn ignore_file() -> impl Strategy<Value = String> {
    (prop::bool::weighted(0.1), prop::collection::vec(line(), 0..5), prop::bool::ANY).prop_map(
        |(mark, lines, ended)| {
            let mark = if mark { "\u{feff}" } else { "" };
            format!("{mark}{}{}", lines.join("\n"), if ended { "\n" } else { "" })
        },
    )
}

fn name() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "a", "b", "ab", "abc", "c", "A", "foo", "foob", "x.log", "a.log", "#", "!a", "a ", " ", "*", "[a]", "[a",
        "{a,b}", "é", "-", "]", "a]", "d", "a\t", ".hidden",
    ])
}

fn tree() -> impl Strategy<Value = BTreeMap<String, Vec<u8>>> {
    let path = prop::collection::vec(name(), 1..5).prop_map(|names| names.join("/"));
    let folder = prop::collection::vec(name(), 0..3).prop_map(|names| names.iter().map(|n| format!("{n}/")).collect());
    let files = prop::collection::vec(path, 1..25);
    let ignores = prop::collection::vec((prop_oneof![2 => Just(String::new()), 1 => folder], ignore_file()), 1..4);
    (files, ignores).prop_map(|(files, ignores)| {
        let files = files.into_iter().map(|path| (path, b"x".to_vec()));
        let ignores = ignores.into_iter().map(|(folder, text)| (format!("{folder}.gitignore"), text.into_bytes()));
        files.chain(ignores).collect()
    })
}

#[test]
fn a_folder_has_the_files_that_git_would_add() {
    let git = Git::new();
    proptest!(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() }, |(files in tree())| {
        let (ours, theirs) = check(&git, &files);
        let shown: Vec<_> = files.iter().filter(|(path, _)| path.ends_with("ignore")).map(|(path, text)| (path, String::from_utf8_lossy(text))).collect();
        prop_assert_eq!(ours, theirs, "{:?}", shown);
    });
}

#[test]
fn well_known_cases_are_as_in_git() {
    let git = Git::new();
    let all = [
        "a",
        "b/a",
        "b/c/a",
        "b/c/d.log",
        "build/out",
        "x/build/out",
        "foo/bar",
        "foobar",
        "foo/x/bar",
        "n/keep",
        "n/drop",
    ];
    for ignore in [
        "a",
        "/a",
        "b/",
        "b",
        "*.log\n!d.log",
        "build/",
        "/build/",
        "**/build",
        "b/**",
        "b/**/a",
        "**/a",
        "foo**/bar",
        "n/*\n!n/keep",
        "n/\n!n/keep",
        "*\n!*/\n!a",
        "b/c/*\n!b/c/a",
        "!a\na",
        "a/",
        "{a,foobar}",
        "/*\n!/b",
        "foo/**bar",
        "f*r",
        "[!a]",
        "**",
        "/**",
        "b\\/c",
        "b/./a",
        "b//a",
        "#\n",
        "a \n",
        "**/",
        "*/",
        "x/**/",
        "/",
    ] {
        let mut files: BTreeMap<_, _> = all.iter().map(|path| ((*path).to_owned(), b"x".to_vec())).collect();
        files.insert(".gitignore".to_owned(), ignore.as_bytes().to_vec());
        let (ours, theirs) = check(&git, &files);
        assert_eq!(ours, theirs, "{ignore:?}");
    }
}

#[test]
fn a_root_amlignore_stands_in_place_of_every_gitignore() {
    let git = Git::new();
    proptest!(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() }, |(files in tree(), text in ignore_file())| {
        // What .amlignore does is what git does with the same text as the one .gitignore there is.
        let without: BTreeMap<_, _> = files.into_iter().filter(|(path, _)| !path.ends_with(".gitignore")).collect();
        let mut theirs = without.clone();
        theirs.insert(".gitignore".to_owned(), text.clone().into_bytes());
        let mut ours_files = without;
        ours_files.insert(".amlignore".to_owned(), text.into_bytes());
        ours_files.insert("nested.file/.gitignore".to_owned(), b"*".to_vec());
        let (ours, _) = check(&git, &ours_files);
        let (_, theirs) = check(&git, &theirs);
        let ours: Vec<_> = ours.into_iter().filter(|path| !path.ends_with("ignore")).collect();
        let theirs: Vec<_> = theirs.into_iter().filter(|path| !path.ends_with("ignore")).collect();
        prop_assert_eq!(ours, theirs);
    });
}

#[test]
fn an_empty_amlignore_leaves_nothing_out() {
    let folder = TempDir::new().unwrap();
    let files = [(".amlignore", ""), (".gitignore", "*\n"), ("a", "x")];
    files.iter().for_each(|(path, text)| fs::write(folder.path().join(path), text).unwrap());
    assert_eq!(ours(folder.path()), [".amlignore", ".gitignore", "a"]);
}
