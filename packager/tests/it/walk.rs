//! Each odd thing that lies on disks has one answer.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
        net::UnixListener,
    },
    path::Path,
};

use packager::walk::{Error, Limits, LinkProblem, Links, Walk};
use tempfile::TempDir;

fn tree(files: &[&str]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for file in files {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, file).unwrap();
    }
    folder
}

fn project(folder: &Path) -> Result<Walk, Error> {
    Walk::project(folder, Limits::PROJECT)
}

fn paths(walk: &Walk) -> Vec<&str> {
    walk.files.iter().map(|file| file.path.as_str()).collect()
}

#[test]
fn files_are_sorted_by_their_whole_path_with_size_and_executable_bit() {
    let folder = tree(&["b/x", "b.txt", "a/z", "a/y"]);
    fs::set_permissions(folder.path().join("b.txt"), fs::Permissions::from_mode(0o744)).unwrap();
    let walk = project(folder.path()).unwrap();
    assert_eq!(paths(&walk), ["a/y", "a/z", "b.txt", "b/x"]);
    assert_eq!(walk.files.iter().map(|file| file.executable).collect::<Vec<_>>(), [false, false, true, false]);
    assert_eq!(walk.bytes, 14);
    assert_eq!(fs::read_to_string(walk.location(&walk.files[3])).unwrap(), "b/x");
}

#[test]
fn git_folders_are_left_out_and_not_counted() {
    let folder = tree(&["a", ".git/HEAD", "sub/.git/HEAD", "sub/b", "other/.git"]);
    let walk = project(folder.path()).unwrap();
    assert_eq!((paths(&walk), walk.ignored), (vec!["a", "sub/b"], 0));
}

#[test]
fn what_is_left_out_is_counted_a_folder_as_one() {
    let folder = tree(&["a", "x/1", "x/2", "x/3/4", "b.log"]);
    fs::write(folder.path().join(".gitignore"), "x\n*.log\n").unwrap();
    let walk = project(folder.path()).unwrap();
    assert_eq!((walk.ignored, walk.ignore_file), (2, Some(".gitignore")));
    fs::write(folder.path().join(".amlignore"), "").unwrap();
    assert_eq!(
        (project(folder.path()).unwrap().ignored, project(folder.path()).unwrap().ignore_file),
        (0, Some(".amlignore"))
    );
}

#[test]
fn a_link_inside_is_followed_and_matched_as_what_it_points_to() {
    let folder = tree(&["data/a", "real/b"]);
    symlink("data/a", folder.path().join("file")).unwrap();
    symlink("real", folder.path().join("linked")).unwrap();
    assert_eq!(paths(&project(folder.path()).unwrap()), ["data/a", "file", "linked/b", "real/b"]);
    fs::write(folder.path().join(".gitignore"), "linked/\nfile/\n").unwrap();
    assert_eq!(paths(&project(folder.path()).unwrap()), [".gitignore", "data/a", "file", "real/b"]);
}

#[test]
fn a_link_that_cannot_be_followed_is_named_unless_it_is_ignored() {
    for (target, problem) in [
        ("/etc/hostname", LinkProblem::Leaves("/etc/hostname".into())),
        ("../..", LinkProblem::Leaves("../..".into())),
        ("..", LinkProblem::Loops),
        (".", LinkProblem::Loops),
        ("bad", LinkProblem::Loops),
        ("nowhere", LinkProblem::Dangles),
        ("a/x", LinkProblem::Dangles),
    ] {
        let folder = tree(&["sub/a"]);
        symlink(target, folder.path().join("sub/bad")).unwrap();
        let error = project(folder.path()).unwrap_err();
        assert!(
            matches!(&error, Error::Link { path, problem: found } if path == "sub/bad" && *found == problem),
            "{target}: {error}"
        );
        fs::write(folder.path().join(".amlignore"), "bad\n").unwrap();
        assert_eq!(paths(&project(folder.path()).unwrap()), [".amlignore", "sub/a"], "{target}");
    }
}

#[test]
fn links_that_multiply_are_stopped_by_the_limit_of_files() {
    let folder = tree(&["d0/a", "d0/b"]);
    for level in 1..12 {
        let place = folder.path().join(format!("d{level}"));
        fs::create_dir(&place).unwrap();
        for name in ["x", "y"] {
            symlink(format!("../d{}", level - 1), place.join(name)).unwrap();
        }
    }
    let error = Walk::project(folder.path(), Limits { files: 1000, ..Limits::PROJECT }).unwrap_err();
    assert!(matches!(error, Error::TooMany { limit: 1000 }), "{error}");
}

#[test]
fn a_models_links_may_lead_anywhere_if_its_owner_says_so() {
    let folder = tree(&["blobs/w", "snapshot/config"]);
    symlink("../blobs/w", folder.path().join("snapshot/weights")).unwrap();
    let path = folder.path().join("snapshot");
    assert_eq!(paths(&Walk::entry(&path, Links::Anywhere).unwrap()), ["snapshot/config", "snapshot/weights"]);
    assert!(matches!(Walk::entry(&path, Links::Inside), Err(Error::Link { .. })));
}

#[test]
fn a_model_is_one_entry_just_as_it_is() {
    let folder = tree(&["m/.gitignore", "m/.git/x", "m/a.log", "m/variables/v"]);
    fs::write(folder.path().join("m/.gitignore"), "*.log\n").unwrap();
    fs::create_dir(folder.path().join("m/assets")).unwrap();
    let all = ["m/.git/x", "m/.gitignore", "m/a.log", "m/assets/", "m/variables/v"];
    let walk = Walk::entry(&folder.path().join("m"), Links::Inside).unwrap();
    assert_eq!(paths(&walk), all);
    assert!(walk.files[3].is_folder());
    assert_eq!(paths(&Walk::entry(&folder.path().join("m/."), Links::Inside).unwrap()), all);
    assert_eq!(paths(&Walk::entry(&folder.path().join("m/a.log"), Links::Inside).unwrap()), ["a.log"]);
}

#[test]
fn an_empty_folder_is_no_part_of_a_project() {
    let folder = tree(&["a"]);
    fs::create_dir_all(folder.path().join("outputs/x")).unwrap();
    assert_eq!(paths(&project(folder.path()).unwrap()), ["a"]);
}

#[test]
fn a_socket_and_a_pipe_are_left_out_with_a_warning() {
    let folder = tree(&["a"]);
    let _socket = UnixListener::bind(folder.path().join("s")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(folder.path().join("p")).status().unwrap();
    assert!(made.success());
    let mut walk = project(folder.path()).unwrap();
    assert_eq!(paths(&walk), ["a"]);
    walk.warnings.sort();
    assert_eq!(walk.warnings, ["p is left out: it is a pipe", "s is left out: it is a socket"]);
}

#[test]
fn a_name_that_is_not_utf8_is_named_unless_it_is_ignored() {
    let folder = tree(&["a"]);
    fs::create_dir(folder.path().join("sub")).unwrap();
    fs::write(folder.path().join("sub").join(OsStr::from_bytes(b"caf\xe9")), "x").unwrap();
    let error = project(folder.path()).unwrap_err();
    assert!(matches!(&error, Error::NotUtf8(path) if path == "sub/caf\u{fffd}"), "{error}");
    fs::write(folder.path().join(".amlignore"), b"caf\xe9\n").unwrap();
    assert_eq!(paths(&project(folder.path()).unwrap()), [".amlignore", "a"]);
}

#[test]
fn a_name_with_a_backslash_is_named() {
    let folder = tree(&["sub/a\\b"]);
    let error = project(folder.path()).unwrap_err();
    assert!(matches!(&error, Error::Backslash(path) if path == "sub/a\\b"), "{error}");
}

#[test]
fn what_cannot_be_read_is_named() {
    // The superuser may read everything: only the walk's own trouble shows there.
    let folder = tree(&["a", "closed/b", "open/c"]);
    fs::set_permissions(folder.path().join("closed"), fs::Permissions::from_mode(0o000)).unwrap();
    let result = project(folder.path());
    fs::set_permissions(folder.path().join("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    match result {
        Ok(walk) => assert_eq!(paths(&walk), ["a", "closed/b", "open/c"]),
        Err(error) => assert_eq!(error.to_string(), "cannot read closed/ (permission denied)"),
    }
}

#[test]
fn a_project_that_is_too_big_names_its_biggest_files() {
    let folder = tree(&["a", "bbb", "cc"]);
    let error = Walk::project(folder.path(), Limits { bytes: 5, ..Limits::PROJECT }).unwrap_err();
    let Error::TooBig { bytes: 6, limit: 5, biggest } = error else { panic!("{error}") };
    assert_eq!(biggest, [(3, "bbb".to_owned()), (2, "cc".to_owned()), (1, "a".to_owned())]);
    fs::write(folder.path().join(".gitignore"), "bbb\n").unwrap();
    assert!(
        Walk::project(folder.path(), Limits { bytes: 10, ..Limits::PROJECT }).is_ok(),
        "what is left out does not count"
    );
}

#[test]
fn only_a_folder_that_is_there_is_a_project() {
    let folder = tree(&["a"]);
    for path in ["a", "nowhere"] {
        assert!(matches!(project(&folder.path().join(path)), Err(Error::NoSuch { .. })), "{path}");
    }
    assert!(matches!(Walk::entry(&folder.path().join("nowhere"), Links::Inside), Err(Error::NoSuch { .. })));
}

#[test]
fn an_ignore_file_is_bounded_and_a_linked_one_is_not_read() {
    let folder = tree(&["a", "rules"]);
    fs::write(folder.path().join("rules"), "a\n").unwrap();
    symlink("rules", folder.path().join(".gitignore")).unwrap();
    assert_eq!(paths(&project(folder.path()).unwrap()), [".gitignore", "a", "rules"], "git does not follow it either");
    fs::write(folder.path().join(".amlignore"), "x\n".repeat(600_000)).unwrap();
    assert!(project(folder.path()).unwrap_err().to_string().contains("1 MiB at most"));
}
