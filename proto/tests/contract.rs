//! The contract does not move: documents are as generated, and every frozen example is read for ever.

use std::{fs, path::Path};

use proto::event::catalogue;

fn folder(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

#[test]
fn the_documents_are_as_generated() {
    for (name, text) in proto::schema::documents() {
        let there = fs::read_to_string(folder("schema").join(&name)).unwrap_or_default();
        assert!(there == text, "schema/{name} is out of date: run `make schema` and look at the difference");
    }
}

#[test]
fn every_event_has_a_frozen_example_that_is_read_and_written_unchanged() {
    for entry in catalogue() {
        let path = folder("examples").join(format!("{}.v1.json", entry.event_type));
        let frozen = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let rewritten = (entry.rewrite)(&frozen).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let (before, after): (serde_json::Value, serde_json::Value) =
            (serde_json::from_slice(&frozen).unwrap(), serde_json::from_slice(&rewritten).unwrap());
        assert_eq!(before, after, "{}", path.display());
    }
}

#[test]
fn every_event_keeps_what_a_newer_version_says() {
    for entry in catalogue() {
        let path = folder("examples").join(format!("{}.v1.json", entry.event_type));
        let mut event: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        event["fromTheFuture"] = serde_json::json!({ "nested": [1, 2.5, null] });
        let rewritten = (entry.rewrite)(&serde_json::to_vec(&event).unwrap()).unwrap();
        assert_eq!(event, serde_json::from_slice::<serde_json::Value>(&rewritten).unwrap(), "{}", entry.event_type);
    }
}

#[test]
fn a_request_by_hand_needs_nothing_but_a_source() {
    let request: proto::packager::DeploymentRequested =
        serde_json::from_str(r#"{"source": {"folder": "/projects/ridge"}}"#).unwrap();
    assert_eq!(request.source, proto::packager::Source::Folder("/projects/ridge".to_owned()));
    assert!(request.spec.is_none());
}

#[test]
fn the_catalogue_page_names_every_event() {
    let page = fs::read_to_string(folder("README.md")).unwrap();
    for entry in catalogue() {
        assert!(page.contains(&format!("`{}`", entry.event_type)), "README.md lacks {}", entry.event_type);
    }
}
