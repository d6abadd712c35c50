//! The house: which crate may lean on which, and what every module and binary owes its reader.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

const COMPONENTS: [&str; 5] = ["packager", "builder", "deployer", "router", "scaler"];

/// The only edges between our crates: `proto ← runtime ← components ← cli ← tests`. A new one is a numbered decision in ARCHITECTURE.md.
fn allowed(name: &str) -> BTreeSet<&'static str> {
    match name {
        "proto" => BTreeSet::new(),
        "runtime" => BTreeSet::from(["proto"]),
        "cli" => BTreeSet::from(["proto", "runtime", "packager", "builder", "deployer", "router", "scaler"]),
        "tests" => BTreeSet::from(["proto", "runtime", "cli"]),
        component if COMPONENTS.contains(&component) => BTreeSet::from(["proto", "runtime"]),
        other => panic!("{other} is a new crate: say in ARCHITECTURE.md what it may lean on, and here"),
    }
}

fn metadata() -> serde_json::Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn no_crate_leans_on_another_than_it_may() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    let ours: BTreeSet<_> = packages.iter().map(|package| package["name"].as_str().unwrap()).collect();
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let edges: BTreeSet<_> = package["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .map(|dependency| dependency["name"].as_str().unwrap())
            .filter(|dependency| ours.contains(dependency))
            .collect();
        let allowed = allowed(name);
        let forbidden: Vec<_> = edges.iter().filter(|edge| !allowed.contains(**edge)).collect();
        assert!(forbidden.is_empty(), "{name} must not depend on {forbidden:?}");
    }
}

#[test]
fn only_the_runtime_knows_nats() {
    for package in metadata()["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let knows = package["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .any(|dependency| dependency["name"] == "async-nats" && dependency["kind"].is_null());
        assert_eq!(knows, name == "runtime", "{name}");
    }
}

#[test]
fn proto_has_no_io() {
    let text = fs::read_to_string(root().join("proto/Cargo.toml")).unwrap();
    for library in ["tokio", "async-nats", "hyper", "futures"] {
        assert!(!text.contains(&format!("{library}.workspace")), "proto depends on {library}");
    }
}

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let crates = ["proto", "runtime", "cli"].into_iter().chain(COMPONENTS);
    let mut folders: Vec<_> = crates.map(|name| root().join(name).join("src")).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.retain(|path| !is_test(path));
    found.sort();
    found
}

/// Whether a module is compiled for tests alone: its parent says so.
fn is_test(path: &Path) -> bool {
    let name = path.file_stem().unwrap().to_str().unwrap();
    let folder = path.parent().unwrap();
    let parents = [folder.with_extension("rs"), folder.join("lib.rs"), folder.join("main.rs")];
    let says = format!("#[cfg(test)]\nmod {name};");
    parents.iter().any(|parent| fs::read_to_string(parent).is_ok_and(|text| text.contains(&says)))
}

#[test]
fn every_module_says_first_what_it_owns() {
    let silent: Vec<_> = sources()
        .into_iter()
        .filter(|path| !fs::read_to_string(path).unwrap().trim_start().starts_with("//!"))
        .collect();
    assert!(silent.is_empty(), "no //! in {silent:?}");
}

#[test]
fn no_file_is_a_drawer_and_none_is_endless() {
    let mut long = BTreeMap::new();
    for path in sources() {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let banned = ["mod", "utils", "util", "helpers", "common", "manager", "misc"];
        assert!(!banned.contains(&name.as_str()), "{} says nothing of what is in it", path.display());
        let text = fs::read_to_string(&path).unwrap();
        let before_tests = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count();
        if before_tests > 450 {
            long.insert(path, before_tests);
        }
    }
    assert!(long.is_empty(), "look again at {long:?}");
}

#[test]
fn every_main_is_short_and_every_component_has_its_page() {
    for component in COMPONENTS {
        let main = fs::read_to_string(root().join(component).join("src/main.rs")).unwrap();
        assert!(main.lines().count() <= 25, "{component}/src/main.rs has more than 25 lines");
        let page = fs::read_to_string(root().join(component).join("README.md")).unwrap();
        assert!(page.lines().count() <= 60, "{component}/README.md has more than 60 lines");
        let readme = fs::read_to_string(root().join("README.md")).unwrap();
        assert!(readme.contains(&format!("({component}/README.md)")));
    }
}
