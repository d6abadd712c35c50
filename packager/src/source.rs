//! Where a project's files come from: a folder that the packager sees, a git revision, or an archive sent before.
//!
//! Whatever it is, it ends as a folder. What came from elsewhere lies in a temporary one that goes when the [`Checkout`] goes.

use std::{
    path::{Component, Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use proto::{
    failure::{Failure, Stage},
    id::{Digest, ServiceName},
    packager::{GitSource, Source},
};
use runtime::{
    archive::{self, Limits},
    store::{self, Store, archive_key},
};
use tempfile::TempDir;
use tokio::process::Command;

use crate::{
    trouble::{Error, full, io},
    walk::Links,
};

/// How long git may take in all.
const GIT: Duration = Duration::from_secs(300);

/// A project's files on this machine.
#[derive(Debug)]
pub(crate) struct Checkout {
    /// The project's folder.
    pub(crate) folder: PathBuf,
    /// How far its paths and links may reach: anywhere only if it is the user's own folder on the user's own machine.
    pub(crate) links: Links,
    _temporary: Option<TempDir>,
}

/// What it takes to make a source available.
pub(crate) struct Means<'a> {
    pub(crate) store: &'a Store,
    /// For temporary folders.
    pub(crate) work: &'a Path,
    /// Where folders may lie that are named by their path; anywhere when empty.
    pub(crate) folders: &'a [PathBuf],
    /// The most bytes that an archive may unpack to.
    pub(crate) bytes: u64,
}

/// Makes the files of a source available.
pub(crate) async fn checkout(source: &Source, service: &ServiceName, means: &Means<'_>) -> Result<Checkout, Error> {
    match source {
        Source::Folder(folder) => named_folder(folder, means.folders).map_err(Error::from),
        Source::Git(git) => from_git(git, means.work).await,
        Source::Upload(digest) => from_upload(digest, service, means).await,
    }
}

fn named_folder(folder: &str, allowed: &[PathBuf]) -> Result<Checkout, Failure> {
    let path = PathBuf::from(folder);
    let wrong = |what: &str| {
        Failure::project(
            Stage::Packaging,
            format!("the folder {folder} {what}"),
            "name a folder that the packager can see, by its absolute path; `kaai deploy` sends one from elsewhere",
        )
    };
    if !path.is_absolute() {
        return Err(wrong("is no absolute path"));
    }
    if !path.is_dir() {
        return Err(wrong(if path.exists() { "is no folder" } else { "does not exist where the packager runs" }));
    }
    if allowed.is_empty() {
        return Ok(Checkout { folder: path, links: Links::Anywhere, _temporary: None });
    }
    match std::fs::canonicalize(&path) {
        Ok(real) if allowed.iter().any(|root| real.starts_with(root)) => {
            Ok(Checkout { folder: real, links: Links::Inside, _temporary: None })
        }
        _ => Err(wrong("is in none of the folders that the packager may read")),
    }
}

async fn from_upload(digest: &Digest, service: &ServiceName, means: &Means<'_>) -> Result<Checkout, Error> {
    let temporary = TempDir::new_in(means.work).map_err(|error| io(&error))?;
    let zip = fetch_archive(digest, means.store, temporary.path()).await?;
    // The folder has the service's name: it becomes the source directory's, which scripts can see.
    let folder = temporary.path().join("project").join(service.as_str());
    std::fs::create_dir_all(&folder).map_err(|error| io(&error))?;
    let (into, limits) = (folder.clone(), Limits { bytes: means.bytes, ..Limits::default() });
    let unpacked = tokio::task::spawn_blocking(move || archive::unpack(&zip, &into, limits)).await;
    match unpacked.map_err(|error| Error::Transient(error.to_string()))? {
        Ok(_) => Ok(Checkout { folder, links: Links::Inside, _temporary: Some(temporary) }),
        Err(error @ archive::Error::Full(_)) => Err(full(error.to_string()).into()),
        Err(error @ archive::Error::File { .. }) => Err(Error::Transient(error.to_string())),
        Err(error @ archive::Error::TooLarge { .. }) => {
            let remedy = "leave files out with .amlignore, or raise --max-project-size of the packager";
            Err(Failure::project(Stage::Packaging, error.to_string(), remedy).into())
        }
        Err(error) => Err(Failure::project(Stage::Packaging, error.to_string(), "send a zip of plain files").into()),
    }
}

/// Brings an archive that was sent before into a folder.
pub(crate) async fn fetch_archive(digest: &Digest, store: &Store, folder: &Path) -> Result<PathBuf, Error> {
    let zip = folder.join("archive.zip");
    match store.fetch(&archive_key(digest), &zip).await {
        Ok(_) => Ok(zip),
        Err(store::Error::NotFound { .. }) => {
            let cause = format!("the archive {digest} was not sent");
            Err(Failure::project(Stage::Packaging, cause, "send it first, or use `kaai deploy`, which does").into())
        }
        Err(error) => Err(error.into()),
    }
}

async fn from_git(git: &GitSource, work: &Path) -> Result<Checkout, Error> {
    check(git)?;
    let temporary = TempDir::new_in(work).map_err(|error| io(&error))?;
    let root = temporary.path().join(repository_name(&git.address));
    std::fs::create_dir(&root).map_err(|error| io(&error))?;
    let fetched = tokio::time::timeout(GIT, fetch(git, &root)).await;
    fetched.map_err(|_| {
        let cause = format!("git did not fetch {} within {} s", git.address, GIT.as_secs());
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

/// Refuses what git would take for an option, a program to run, or a place of this machine that is not a repository.
fn check(git: &GitSource) -> Result<(), Failure> {
    let wrong = |cause: String| {
        Failure::project(
            Stage::Packaging,
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
    if login.is_some_and(|login| login.contains(':') || !address.starts_with("ssh://")) {
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

fn repository_name(address: &str) -> String {
    let last = address.trim_end_matches('/').rsplit(['/', ':']).next().unwrap_or_default().trim_end_matches(".git");
    let name: String = last.chars().filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect();
    if name.is_empty() { "repository".to_owned() } else { name }
}

/// Fetches one revision without its history; a commit that the server does not give alone comes with all of it.
async fn fetch(git: &GitSource, root: &Path) -> Result<(), Error> {
    run(root, &["init", "--quiet"]).await?;
    let shallow =
        run(root, &["fetch", "--quiet", "--depth", "1", "--no-tags", "--", &git.address, &git.revision]).await;
    let target = match shallow {
        Ok(()) => "FETCH_HEAD",
        Err(first) => {
            let all = "+refs/*:refs/fetched/*";
            let looks_like_commit = git.revision.len() >= 7 && git.revision.chars().all(|c| c.is_ascii_hexdigit());
            if !looks_like_commit || run(root, &["fetch", "--quiet", "--", &git.address, all]).await.is_err() {
                return Err(first);
            }
            git.revision.as_str()
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
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").trim().to_owned();
    let failure = Failure::project(
        Stage::Packaging,
        format!("git {}: {last}", args[0]),
        "check address and revision, and that the packager may read the repository",
    );
    Err(failure.with_details(said.lines()).into())
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

    #[test]
    fn a_folder_must_be_absolute_and_there() {
        for (folder, word) in
            [("relative", "absolute"), ("/no/such/folder", "does not exist"), ("/etc/passwd", "is no folder")]
        {
            assert!(named_folder(folder, &[]).unwrap_err().cause.contains(word), "{folder}");
        }
        assert_eq!(named_folder("/", &[]).unwrap().links, Links::Anywhere);
    }

    #[test]
    fn where_folders_are_named_no_other_is_read() {
        let root = TempDir::new().unwrap();
        let allowed = std::fs::canonicalize(root.path()).unwrap();
        std::fs::create_dir(allowed.join("project")).unwrap();
        std::os::unix::fs::symlink("/etc", allowed.join("link")).unwrap();
        let found = |path: &str| named_folder(&format!("{}/{path}", allowed.display()), std::slice::from_ref(&allowed));
        assert_eq!(found("project").unwrap().links, Links::Inside);
        for path in ["link", "..", "project/../../.."] {
            assert!(found(path).unwrap_err().cause.contains("in none of the folders"), "{path}");
        }
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
