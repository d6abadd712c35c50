//! The zip: always the same bytes, and read by everybody's tools.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use packager::{
    archive::{self, Error},
    walk::{Limits, Links, Walk},
};
use proto::packager::Archive;
use tempfile::TempDir;

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..length).map(next).collect()
}

/// Short and long files, of which some compress.
fn project() -> TempDir {
    let folder = TempDir::new().unwrap();
    let write = |path: &str, content: &[u8], mode| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    write("score.py", b"def init():\n    pass\n\ndef run(data):\n    return data\n", 0o640);
    write("run.sh", b"#!/bin/sh\n", 0o710);
    write("empty", b"", 0o600);
    write("naïve/ünï code.txt", "grüße\n".repeat(500).as_bytes(), 0o644);
    write("long/text.csv", "1,2,3,four\n".repeat(150_000).as_bytes(), 0o644);
    write("long/noise.bin", &noise(1_300_000), 0o644);
    for n in 0..300 {
        write(&format!("many/{}/{n}.json", n % 7), format!("{{\"n\": {n}}}\n").repeat(n % 40).as_bytes(), 0o644);
    }
    folder
}

fn written(folder: &Path, out: &TempDir) -> (Archive, PathBuf) {
    let path = out.path().join("out.zip");
    (archive::write(&Walk::project(folder, Limits::PROJECT).unwrap(), &path).unwrap(), path)
}

#[test]
fn the_digest_is_the_same_on_every_machine_and_in_every_release() {
    // If this changes, every project is stored and sent once more: see that a newer library is worth it, and write the new one down.
    let out = TempDir::new().unwrap();
    let (archive, path) = written(project().path(), &out);
    assert_eq!(archive.digest.as_str(), "sha256:c37d91d5dd47ca2fe25b6ae34b00dacf6c512a5d180b73dd4a048561710945ec");
    assert_eq!((archive.files, archive.ignored, archive.size), (306, 0, fs::metadata(path).unwrap().len()));
}

#[test]
fn times_owners_modes_and_the_order_of_making_do_not_show() {
    let (one, other, out) = (project(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let walk = Walk::project(one.path(), Limits::PROJECT).unwrap();
    for file in walk.files.iter().rev() {
        let path = other.path().join(&file.path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::copy(walk.location(file), &path).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(if file.executable { 0o777 } else { 0o400 })).unwrap();
    }
    assert_eq!(written(one.path(), &out).0, written(other.path(), &out).0);
    fs::set_permissions(other.path().join("score.py"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_ne!(
        written(one.path(), &out).0.digest,
        written(other.path(), &out).0.digest,
        "the executable bit is content"
    );
}

#[test]
fn the_runtime_unpacks_what_was_packed() {
    let (folder, out) = (project(), TempDir::new().unwrap());
    let (archive, path) = written(folder.path(), &out);
    let into = out.path().join("into");
    fs::create_dir(&into).unwrap();
    let unpacked = runtime::archive::unpack(&path, &into, runtime::archive::Limits::default()).unwrap();
    assert_eq!(unpacked.files, archive.files);
    let walk = Walk::project(folder.path(), Limits::PROJECT).unwrap();
    let again = Walk::project(&into, Limits::PROJECT).unwrap();
    for (file, copy) in walk.files.iter().zip(&again.files) {
        assert_eq!((&file.path, file.size, file.executable), (&copy.path, copy.size, copy.executable));
        assert_eq!(fs::read(walk.location(file)).unwrap(), fs::read(again.location(copy)).unwrap(), "{}", file.path);
    }
}

#[test]
fn other_tools_read_it() {
    let (folder, out) = (project(), TempDir::new().unwrap());
    let (_, path) = written(folder.path(), &out);
    let script = "import sys, zipfile, os\n\
        zip = zipfile.ZipFile(sys.argv[1])\n\
        assert zip.testzip() is None\n\
        for entry in zip.infolist():\n\
        \x20   assert entry.date_time == (1980, 1, 1, 0, 0, 0), entry\n\
        \x20   mode = entry.external_attr >> 16\n\
        \x20   assert mode == (0o100755 if entry.filename == 'run.sh' else 0o100644), (entry.filename, oct(mode))\n\
        \x20   assert zip.read(entry) == open(os.path.join(sys.argv[2], entry.filename), 'rb').read(), entry\n\
        assert zip.namelist() == sorted(zip.namelist(), key=str.encode)\n\
        print(len(zip.namelist()))\n";
    let python =
        Command::new("python3").args(["-c", script]).arg(&path).arg(folder.path()).output().expect("python3 is there");
    assert!(python.status.success(), "{}", String::from_utf8_lossy(&python.stderr));
    assert_eq!(String::from_utf8_lossy(&python.stdout).trim(), "306");
    match Command::new("unzip").arg("-tqq").arg(&path).output() {
        Ok(unzip) => assert!(unzip.status.success(), "{}", String::from_utf8_lossy(&unzip.stdout)),
        Err(error) => runtime::testing::skip("other_tools_read_it with unzip", &error.to_string()),
    }
}

#[test]
fn an_empty_project_and_an_empty_folder_of_a_model_are_zips_too() {
    let (folder, out) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (archive, path) = written(folder.path(), &out);
    assert_eq!((archive.files, archive.size), (0, 22));
    assert!(fs::read(path).unwrap().starts_with(b"PK\x05\x06"));
    fs::create_dir_all(folder.path().join("m/assets")).unwrap();
    let zip = out.path().join("m.zip");
    let archive = archive::write(&Walk::entry(&folder.path().join("m"), Links::Inside).unwrap(), &zip).unwrap();
    assert_eq!(archive.files, 0);
    let into = out.path().join("into");
    fs::create_dir(&into).unwrap();
    runtime::archive::unpack(&zip, &into, runtime::archive::Limits::default()).unwrap();
    assert!(into.join("m/assets").is_dir());
}

#[test]
fn a_zip_appears_whole_or_not_at_all() {
    let (folder, out) = (project(), TempDir::new().unwrap());
    let walk = Walk::project(folder.path(), Limits::PROJECT).unwrap();
    let error = archive::write(&walk, &out.path().join("no/such/folder/out.zip")).unwrap_err();
    assert!(matches!(error, Error::Write { .. }), "{error}");
    let path = out.path().join("out.zip");
    fs::write(&path, "what was there").unwrap();
    fs::remove_dir_all(folder.path()).unwrap();
    assert!(archive::write(&walk, &path).is_err());
    assert_eq!(fs::read_to_string(&path).unwrap(), "what was there");
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 1);
}
