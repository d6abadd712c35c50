//! A revision in a git repository: what may be fetched, and how git is called for it.
//!
//! It knows git's command line and what git would take for something else than a repository. It reads no project.

use std::{
    path::{Component, Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use proto::{
    failure::{Failure, Stage},
    packager::GitSource,
    secret,
};
use tempfile::TempDir;
use tokio::process::Command;

use super::{Checkout, Means, named_folder};
use crate::{
    trouble::{Error, Full, io},
    walk::Links,
};

/// How long git may take in all.
const MOST: Duration = Duration::from_secs(300);

/// Fetches a revision into a temporary folder.
pub(super) async fn checkout(git: &GitSource, means: &Means<'_>) -> Result<Checkout, Error> {
    check(git)?;
    let own = git.address.strip_prefix("file://").filter(|_| !means.folders.is_empty());
    let own = own.map(|path| own_repository(path, means.folders)).transpose()?;
    let from: &[&str] = match &own {
        // Strict: git looks nowhere else, as it otherwise would when this is none (`<path>.git`).
        Some(path) => &["--upload-pack=git-upload-pack --strict", "--", path],
        None => &["--", &git.address],
    };
    let temporary = TempDir::new_in(means.work).map_err(|error| io(means.work, &error))?;
    let root = temporary.path().join(repository_name(&git.address));
    std::fs::create_dir(&root).map_err(|error| io(means.work, &error))?;
    let fetched = tokio::time::timeout(MOST, fetch(from, &git.revision, &root)).await;
    fetched.map_err(|_| {
        let cause = format!("git did not fetch {} within {} s", git.address, MOST.as_secs());
        Failure::platform(Stage::Packaging, cause, "see that the packager reaches the repository, then deploy again")
    })??;
    let folder = git.folder.as_ref().map_or_else(|| root.clone(), |folder| root.join(folder));
    // A repository may hold a link in place of the folder.
    let real = std::fs::canonicalize(&folder).ok().filter(|real| real.is_dir() && real.starts_with(&root));
    let real = real.ok_or_else(|| {
        let cause =
            format!("{} has no folder {} at {}", git.address, git.folder.as_deref().unwrap_or("."), git.revision);
        Failure::project(Stage::Packaging, cause, "name a folder that is there")
    })?;
    Ok(Checkout { folder: real, links: Links::Inside, _temporary: Some(temporary) })
}

/// Refuses what git would take for an option, a program to run, or a place of this machine that is not a repository, and an address with
/// a login or token in it.
///
/// # Errors
///
/// Fails without repeating the address.
pub fn check(git: &GitSource) -> Result<(), Failure> {
    let wrong = |cause: String| {
        Failure::project(
            Stage::Reading,
            cause,
            "give an https://, ssh:// or file:// address without a login, and a branch, tag or commit",
        )
    };
    let address = git.address.as_str();
    let known = ["https://", "http://", "ssh://", "file:///"].iter().any(|scheme| address.starts_with(scheme));
    let scp = address.split_once(':').is_some_and(|(host, path)| {
        host.contains('@') && !host.contains('/') && !path.starts_with("//") && !host.starts_with('-')
    });
    if !(known || scp) || address.contains(char::is_whitespace) {
        return Err(wrong("the git address is of a kind that is not fetched".to_owned()));
    }
    let authority = address.split_once("://").map_or("", |(_, rest)| rest.split('/').next().unwrap_or_default());
    // A token may stand where a user's name would; only ssh needs a name, which is no secret.
    let login = authority.rsplit_once('@').map(|(login, _)| login);
    if login.is_some_and(|login| login.contains(':') || !address.starts_with("ssh://")) || secret::is_in(address) {
        return Err(wrong("the git address holds a login, which would lie in the events".to_owned()));
    }
    if authority.starts_with('-') {
        return Err(wrong("the git address is of a kind that is not fetched".to_owned()));
    }
    let revision = git.revision.as_str();
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._/".contains(c);
    if revision.is_empty() || revision.starts_with('-') || !revision.chars().all(allowed) || revision.contains("..") {
        return Err(wrong(format!("{revision:?} is no branch, tag or commit")));
    }
    let leaves = |folder: &String| {
        Path::new(folder).components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir))
    };
    match git.folder.as_ref().filter(|folder| leaves(folder)) {
        Some(folder) => Err(wrong(format!("the folder {folder:?} leaves the repository"))),
        None => Ok(()),
    }
}

/// The repository that a `file://` address names, if it and all that it consists of lie in one of the folders that may be read.
fn own_repository(path: &str, folders: &[PathBuf]) -> Result<String, Failure> {
    let found = named_folder(path, folders)?.folder;
    let git = Some(found.join(".git")).filter(|git| git.symlink_metadata().is_ok()).unwrap_or_else(|| found.clone());
    let borrows = ["commondir", "objects/info/alternates"].iter().any(|file| git.join(file).exists());
    // A path, which git takes as it is: in an address it would decode `%2e`.
    match git.to_str().filter(|_| !borrows && is_plain(&git)) {
        Some(path) => Ok(path.to_owned()),
        None => Err(Failure::project(
            Stage::Packaging,
            format!("the repository {path} takes its content from another place"),
            "give a repository that is whole by itself, as `git clone --no-local` makes it",
        )),
    }
}

/// Whether it is a folder that holds no link, at any depth.
fn is_plain(folder: &Path) -> bool {
    let Ok(entries) = folder.read_dir() else { return false };
    folder.symlink_metadata().is_ok_and(|metadata| metadata.is_dir())
        && entries.flatten().all(|entry| {
            entry.file_type().is_ok_and(|kind| kind.is_file() || (kind.is_dir() && is_plain(&entry.path())))
        })
}

fn repository_name(address: &str) -> String {
    let last = address.trim_end_matches('/').rsplit(['/', ':']).next().unwrap_or_default().trim_end_matches(".git");
    let name: String = last.chars().filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect();
    if name.is_empty() { "repository".to_owned() } else { name }
}

/// Fetches one revision without its history; a commit that the server does not give alone comes with all of it.
async fn fetch(from: &[&str], revision: &str, root: &Path) -> Result<(), Error> {
    run(root, &["init", "--quiet"]).await?;
    let fetch =
        async |options: &[&str], what: &str| run(root, &[&["fetch", "--quiet"], options, from, &[what]].concat()).await;
    let target = match fetch(&["--depth", "1", "--no-tags"], revision).await {
        Ok(()) => "FETCH_HEAD",
        Err(first) => {
            let looks_like_commit = revision.len() >= 7 && revision.chars().all(|c| c.is_ascii_hexdigit());
            if !looks_like_commit || fetch(&[], "+refs/*:refs/fetched/*").await.is_err() {
                return Err(first);
            }
            revision
        }
    };
    run(root, &["checkout", "--quiet", "--detach", target]).await
}

async fn run(folder: &Path, args: &[&str]) -> Result<(), Error> {
    let output = Command::new("git")
        .args(["-c", "core.hooksPath=/dev/null", "-c", "protocol.ext.allow=never", "-c", "core.symlinks=true"])
        .args(args)
        .current_dir(folder)
        // Nobody is there to be asked for a password.
        .env("GIT_TERMINAL_PROMPT", "0")
        // Its words are read.
        .env("LC_ALL", "C")
        .env("GIT_ASKPASS", "true")
        .env("GIT_SSH_COMMAND", "ssh -o BatchMode=yes")
        .env("GIT_ALLOW_PROTOCOL", "https:http:ssh:file")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| {
            let cause = format!("git cannot be run: {error}");
            Failure::platform(Stage::Packaging, cause, "install git where the packager runs")
        })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.lines().any(says_full) {
        return Err(Failure::from(Full::around(folder)).with_details(said.lines()).into());
    }
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").trim().to_owned();
    let failure = Failure::project(
        Stage::Packaging,
        format!("git {}: {last}", args[0]),
        "check address and revision, and that the packager may read the repository",
    );
    Err(failure.with_details(said.lines()).into())
}

/// Whether git says that the disk of this machine, not of the one that it fetches from, is full.
fn says_full(line: &str) -> bool {
    let full = ["No space left on device", "Disk quota exceeded", "Out of diskspace"];
    !line.starts_with("remote:") && full.iter().any(|sign| line.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(address: &str, revision: &str, folder: Option<&str>) -> GitSource {
        GitSource { address: address.into(), revision: revision.into(), folder: folder.map(str::to_owned) }
    }

    #[test]
    fn only_what_is_safe_to_hand_to_git_is_handed_to_it() {
        for good in
            ["https://example.com/a/b.git", "git@example.com:a/b.git", "ssh://git@example.com/a", "file:///srv/a"]
        {
            assert!(check(&source(good, "main", Some("a/b"))).is_ok(), "{good}");
        }
        for bad in [
            "ext::sh -c id",
            "--upload-pack=id",
            "/srv/a",
            "https://user:secret@example.com/a",
            "https://secret-token@example.com/a",
            "ssh://git:secret@example.com/a",
            "ssh://-oProxyCommand=id/a",
            "-oProxyCommand=id@h:x",
            "https://h/a?token=secret",
            "https://a b",
        ] {
            let failure = check(&source(bad, "main", None)).unwrap_err();
            assert!(!failure.cause.contains("secret"), "{failure}");
        }
        for bad in ["", "-x", "a..b", "a b", "a:b", "$(id)"] {
            assert!(check(&source("https://example.com/a", bad, None)).is_err(), "{bad}");
        }
        for bad in ["../x", "/etc", "a/../../b"] {
            assert!(check(&source("https://example.com/a", "main", Some(bad))).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn where_folders_are_named_only_a_repository_that_is_whole_in_them_is_fetched() {
        let root = TempDir::new().unwrap();
        let base = std::fs::canonicalize(root.path()).unwrap();
        let (hidden, allowed, work) = (base.join("hidden"), base.join("allowed"), base.join("work"));
        for folder in [&hidden, &allowed, &work, &allowed.join("none")] {
            std::fs::create_dir(folder).unwrap();
        }
        std::fs::write(hidden.join("score.py"), "hidden").unwrap();
        let git = |folder: &Path, args: &[&str]| {
            let mut command = std::process::Command::new("git");
            command.args(["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main"]);
            let output = command.args(args).current_dir(folder).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        };
        git(&hidden, &["init", "-q"]);
        git(&hidden, &["add", "-A"]);
        git(&hidden, &["commit", "-qm", "one"]);
        git(&allowed, &["clone", "-q", "--no-local", "../hidden", "whole"]);
        git(&allowed, &["clone", "-q", "--no-local", "--bare", "../hidden", "bare.git"]);
        git(&allowed, &["clone", "-q", "--shared", "../hidden", "shared"]);
        git(&hidden, &["worktree", "add", "-q", "../allowed/worktree", "-b", "other"]);
        std::os::unix::fs::symlink(&hidden, allowed.join("link")).unwrap();
        // Git would go on to this one when the folder `none` is no repository.
        std::os::unix::fs::symlink(&hidden, allowed.join("none.git")).unwrap();

        let store = runtime::store::Store::open(base.join("store").as_path()).unwrap();
        let folders = [allowed.clone()];
        let means = Means { store: &store, work: &work, folders: &folders, bytes: 1 << 20 };
        let anywhere = Means { folders: &[], ..means };
        let address = |path: &str| source(&format!("file://{}/{path}", allowed.display()), "main", None);
        for path in ["whole", "bare.git"] {
            let checkout = checkout(&address(path), &means).await.unwrap();
            assert!(checkout.folder.join("score.py").is_file(), "{path}");
        }
        for (path, word) in [
            ("../hidden", "in none of the folders"),
            ("link", "in none of the folders"),
            ("%2e%2e/hidden", "does not exist"),
            ("shared", "from another place"),
            ("worktree", "from another place"),
            ("none", "git fetch"),
        ] {
            assert!(path == "none" || checkout(&address(path), &anywhere).await.is_ok(), "{path}");
            let refused = checkout(&address(path), &means).await.unwrap_err().to_string();
            assert!(refused.contains(word), "{path}: {refused}");
        }
    }

    #[test]
    fn only_the_disk_of_this_machine_is_told_to_be_full() {
        assert!(says_full("fatal: unable to write loose object file: No space left on device"));
        assert!(says_full("fatal: sha1 file '.git/index.lock' write error. Out of diskspace"));
        assert!(!says_full("remote: fatal: write error: No space left on device"));
        assert!(!says_full("fatal: couldn't find remote ref main"));
    }

    #[test]
    fn a_checkout_has_the_repositorys_name() {
        for (address, name) in
            [("https://h/a/b.git", "b"), ("git@h:c.git", "c"), ("file:///x/", "x"), ("https://h/..", "repository")]
        {
            assert_eq!(repository_name(address), name);
        }
    }
}
