//! The program as its callers see it: a request in, a lock and a prefix out, on channels that each test makes for itself.

#![expect(clippy::unwrap_used, reason = "this is a test from end to end")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use rattler_conda_types::compression_level::CompressionLevel;
use rattler_digest::{Sha256, compute_file_digest};
use serde_json::{Value, json};

/// A prefix as long as those of real packages.
fn placeholder() -> String {
    format!("/opt/placeholder{}", "_hold".repeat(40))
}

/// A folder with channels, and what a request needs besides.
struct Scene {
    folder: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Puts a package with one text that names its prefix into a channel.
    fn put(&self, channel: &str, name: &str, version: &str, depends: &[&str]) -> PathBuf {
        let (subdir, made) = (self.at(channel).join("noarch"), tempfile::tempdir().unwrap());
        fs::create_dir_all(&subdir).unwrap();
        let record = json!({
            "name": name, "version": version, "build": "0", "build_number": 0, "subdir": "noarch", "noarch": "generic", "depends": depends,
        });
        let text = format!("{version} in {}\n", placeholder());
        let path = json!({ "_path": format!("etc/{name}"), "path_type": "hardlink", "file_mode": "text", "prefix_placeholder": placeholder() });
        let files = [
            (format!("etc/{name}"), text),
            ("info/index.json".to_owned(), record.to_string()),
            ("info/paths.json".to_owned(), json!({ "paths": [path], "paths_version": 1 }).to_string()),
        ];
        for (file, text) in &files {
            let file = made.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let paths: Vec<_> = files.iter().map(|(file, _)| made.path().join(file)).collect();
        self.pack(&subdir, made.path(), &paths, record)
    }

    /// Puts a package whose one file is a link.
    fn put_link(&self, channel: &str, name: &str, target: &str) {
        let (subdir, made) = (self.at(channel).join("noarch"), tempfile::tempdir().unwrap());
        fs::create_dir_all(&subdir).unwrap();
        let record = json!({
            "name": name, "version": "1", "build": "0", "build_number": 0, "subdir": "noarch", "noarch": "generic", "depends": [],
        });
        fs::create_dir_all(made.path().join("info")).unwrap();
        fs::create_dir_all(made.path().join("share")).unwrap();
        std::os::unix::fs::symlink(target, made.path().join("share/link")).unwrap();
        let paths = json!({ "paths": [{ "_path": "share/link", "path_type": "softlink" }], "paths_version": 1 });
        fs::write(made.path().join("info/index.json"), record.to_string()).unwrap();
        fs::write(made.path().join("info/paths.json"), paths.to_string()).unwrap();
        let files = ["share/link", "info/index.json", "info/paths.json"].map(|file| made.path().join(file));
        self.pack(&subdir, made.path(), &files, record);
    }

    /// Makes a package of files and puts it into the channel's list.
    fn pack(&self, subdir: &Path, made: &Path, files: &[PathBuf], record: Value) -> PathBuf {
        let name = format!("{}-{}-0", record["name"].as_str().unwrap(), record["version"].as_str().unwrap());
        let package = subdir.join(format!("{name}.conda"));
        let (file, level) = (fs::File::create(&package).unwrap(), CompressionLevel::Lowest);
        rattler_package_streaming::write::write_conda_package(file, made, files, level, Some(1), &name, None, None)
            .unwrap();
        self.list(subdir, &package, record);
        package
    }

    fn list(&self, subdir: &Path, package: &Path, mut record: Value) {
        let list = subdir.join("repodata.json");
        let known = fs::read(&list).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let mut known: Value =
            known.unwrap_or_else(|| json!({ "info": { "subdir": "noarch" }, "packages": {}, "packages.conda": {} }));
        let hash = compute_file_digest::<Sha256>(package).unwrap();
        record["sha256"] = json!(hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        record["size"] = json!(fs::metadata(package).unwrap().len());
        known["packages.conda"][package.file_name().unwrap().to_str().unwrap()] = record;
        fs::write(list, known.to_string()).unwrap();
    }

    fn address(&self, channel: &str) -> String {
        format!("file://{}", self.at(channel).display())
    }

    fn request(&self, channels: &[&str], specs: &[&str]) -> Value {
        let channels: Vec<_> = channels.iter().map(|channel| self.address(channel)).collect();
        json!({ "channels": channels, "specs": specs, "cache": self.at("cache"), "lock": self.at("lock.json") })
    }

    fn run(&self, verb: &str, request: &Value) -> Output {
        let file = self.at("request.json");
        fs::write(&file, request.to_string()).unwrap();
        Command::new(env!("CARGO_BIN_EXE_kaai-conda")).arg(verb).arg(file).env_remove("HTTPS_PROXY").output().unwrap()
    }

    /// What was chosen, as `name version`.
    fn chosen(&self, request: &Value) -> Vec<String> {
        let output = self.run("solve", request);
        assert!(output.status.success(), "{}", words(&output));
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let packages = said["packages"].as_array().unwrap().iter();
        packages.map(|package| format!("{} {}", text(&package["name"]), text(&package["version"]))).collect()
    }

    fn refused(&self, verb: &str, request: &Value, code: i32) -> String {
        let output = self.run(verb, request);
        assert_eq!(output.status.code(), Some(code), "{}", words(&output));
        assert!(output.stdout.is_empty());
        words(&output).lines().last().unwrap().strip_prefix("error: ").unwrap().to_owned()
    }
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A channel in which `stats` wants an older `arrays` than there is.
fn stats() -> Scene {
    let scene = Scene::new();
    scene.put("one", "arrays", "1.5", &[]);
    scene.put("one", "arrays", "2.0", &[]);
    scene.put("one", "stats", "1.1", &["arrays >=1,<2"]);
    scene
}

#[test]
fn packages_are_chosen_with_what_they_need_and_the_lock_says_which() {
    let scene = stats();
    assert_eq!(scene.chosen(&scene.request(&["one"], &["stats"])), ["arrays 1.5", "stats 1.1"]);
    assert_eq!(scene.chosen(&scene.request(&["one"], &["arrays"])), ["arrays 2.0"]);
    assert_eq!(scene.chosen(&scene.request(&["one"], &["arrays[version=\"1.*\"]"])), ["arrays 1.5"]);
    let lock: Value = serde_json::from_slice(&fs::read(scene.at("lock.json")).unwrap()).unwrap();
    assert_eq!(lock["packages"][0]["sha256"].as_str().unwrap().len(), 64);
    assert!(!scene.at("prefix").exists(), "nothing is installed");
    let mut held = scene.request(&["one"], &["stats"]);
    held["constraints"] = json!(["unknown <1"]);
    assert_eq!(scene.chosen(&held).len(), 2, "what need not be there is not missed");
}

#[test]
fn the_first_channel_that_has_a_package_is_the_one_unless_another_is_named() {
    let scene = Scene::new();
    scene.put("one", "arrays", "1.0", &[]);
    scene.put("two", "arrays", "2.0", &[]);
    assert_eq!(scene.chosen(&scene.request(&["one", "two"], &["arrays"])), ["arrays 1.0"]);
    assert_eq!(scene.chosen(&scene.request(&["two", "one"], &["arrays"])), ["arrays 2.0"]);
    let mut named = scene.request(&["one"], &["two::arrays"]);
    named["channelAlias"] = json!(format!("file://{}", scene.folder.path().display()));
    assert_eq!(scene.chosen(&named), ["arrays 2.0"], "it need not be listed");
}

#[test]
fn a_prefix_says_where_it_is_going_to_lie_and_nothing_of_how_it_was_made() {
    let scene = stats();
    let mut kept = Vec::new();
    for folder in ["here", "there"] {
        let mut request = scene.request(&["one"], &["stats"]);
        (request["prefix"], request["finalPrefix"]) = (json!(scene.at(folder)), json!("/opt/kaai/environment"));
        let output = scene.run("install", &request);
        assert!(output.status.success(), "{}", words(&output));
        assert!(words(&output).contains("Solved 2 packages") && words(&output).contains("Installed 2 packages"));
        assert_eq!(fs::read_to_string(scene.at(folder).join("etc/arrays")).unwrap(), "1.5 in /opt/kaai/environment\n");
        kept.push(fs::read_to_string(scene.at(folder).join("conda-meta/stats-1.1-0.json")).unwrap());
    }
    assert_eq!(kept[0], kept[1]);
    assert!(!kept[0].contains("cache"), "{}", kept[0]);
}

#[test]
fn a_lock_is_enough_to_install_from_even_without_its_channel() {
    let scene = stats();
    let mut request = scene.request(&["one"], &["stats"]);
    request["prefix"] = json!(scene.at("prefix"));
    assert!(scene.run("install", &request).status.success());
    fs::remove_dir_all(scene.at("one")).unwrap();
    (request["specs"], request["prefix"], request["offline"]) = (json!([]), json!(scene.at("again")), json!(true));
    let output = scene.run("install", &request);
    assert!(output.status.success(), "{}", words(&output));
    let text = fs::read_to_string(scene.at("again/etc/stats")).unwrap();
    assert_eq!(text, format!("1.1 in {}\n", scene.at("again").display()));
}

#[test]
fn the_machine_that_is_meant_decides_and_not_the_one_that_runs() {
    let scene = Scene::new();
    scene.put("one", "tool", "1.0", &["__glibc >=2.17"]);
    scene.put("one", "tool", "2.0", &["__glibc >=2.99"]);
    let mut request = scene.request(&["one"], &["tool"]);
    for (glibc, chosen) in [("2.31", "tool 1.0"), ("3.0", "tool 2.0")] {
        request["virtualPackages"] = json!([format!("__glibc={glibc}=0")]);
        assert_eq!(scene.chosen(&request), [chosen]);
    }
}

#[test]
fn what_does_not_go_together_is_told_in_words() {
    let scene = stats();
    let why = scene.refused("solve", &scene.request(&["one"], &["stats", "arrays >=2"]), 3);
    assert!(why.contains("stats") && why.contains("arrays >=1,<2"), "{why}");
    let why = scene.refused("solve", &scene.request(&["one"], &["nothing-of-the-kind"]), 3);
    assert!(why.contains("nothing-of-the-kind"), "{why}");
    assert!(!scene.at("lock.json").exists());
}

#[test]
fn a_package_that_is_another_than_its_channel_says_is_found_out() {
    let scene = stats();
    let package = scene.put("one", "evil", "1.0", &[]);
    fs::copy(scene.at("one/noarch/stats-1.1-0.conda"), package).unwrap();
    let mut request = scene.request(&["one"], &["evil"]);
    request["prefix"] = json!(scene.at("prefix"));
    let why = scene.refused("install", &request, 5);
    assert!(why.starts_with("evil-1.0-0.conda is not what its channel says it is"), "{why}");
    assert!(scene.at("lock.json").exists(), "the lock is written first");
}

#[test]
fn channels_that_are_not_there_or_give_no_answer_are_told_apart() {
    let scene = Scene::new();
    let why = scene.refused("solve", &scene.request(&["none"], &["x"]), 7);
    assert!(why.starts_with("there is no channel at file://"), "{why}");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut request = scene.request(&[], &["x"]);
    request["channels"] = json!([format!("http://{closed}/channel")]);
    let why = scene.refused("solve", &request, 4);
    assert!(why.contains(&closed.to_string()), "{why}");
}

#[test]
fn a_request_that_is_not_understood_is_refused() {
    let scene = stats();
    for (key, value, expected) in [
        ("specs", json!(["a[version=\"<<1\"]"]), "is not understood"),
        ("specs", json!([]), "no package is asked for"),
        ("channels", json!([]), "no channel is named"),
        ("other", json!(1), "unknown field `other`"),
    ] {
        let mut request = scene.request(&["one"], &["stats"]);
        request[key] = value;
        let why = scene.refused("solve", &request, 2);
        assert!(why.contains(expected), "{why}");
    }
    assert!(scene.refused("install", &scene.request(&["one"], &["stats"]), 2).contains("no prefix"));
}

#[test]
fn a_package_with_a_link_out_of_its_prefix_is_refused() {
    let scene = Scene::new();
    let elsewhere = scene.at("elsewhere");
    scene.put("one", "data", "1", &[]);
    scene.put_link("one", "inside", "../etc/data");
    scene.put_link("one", "outside", elsewhere.to_str().unwrap());
    let install = |specs: &[&str]| {
        let mut request = scene.request(&["one"], specs);
        request["prefix"] = json!(scene.at(&format!("prefix-{}", specs.len())));
        request
    };
    let good = scene.run("install", &install(&["data", "inside"]));
    assert!(good.status.success(), "{}", words(&good));
    let bad = scene.run("install", &install(&["outside"]));
    assert!(!bad.status.success(), "{}", words(&bad));
    assert!(words(&bad).lines().last().unwrap().contains("outside"), "{}", words(&bad));
}
