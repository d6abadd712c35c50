//! Each component can do on the bus what its row in the README's table says, and nothing else.

use std::{collections::BTreeMap, time::Duration};

use proto::event::catalogue;
use tests::Kaai;

use crate::shared;

/// What each user may say, by the table of events in `proto/README.md`.
fn may_say() -> BTreeMap<&'static str, Vec<&'static str>> {
    let mut table: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for entry in catalogue() {
        for user in ["packager", "builder", "deployer", "router", "scaler"] {
            if entry.said_by.contains(user) {
                table.entry(user).or_default().push(entry.event_type);
            }
        }
        if entry.said_by.contains("the CLI") {
            table.entry("cli").or_default().push(entry.event_type);
        }
    }
    table
}

/// Connects as a user and gives what the server refuses.
async fn refusals(kaai: &Kaai, user: &str, subjects: &[String]) -> Vec<String> {
    let password = std::fs::read_to_string(kaai.home().join(format!("nats/passwords/{user}"))).unwrap();
    let (told, mut refused) = tokio::sync::mpsc::unbounded_channel();
    let client = async_nats::ConnectOptions::new()
        .user_and_password(user.to_owned(), password)
        .custom_inbox_prefix(format!("_INBOX_{user}"))
        .event_callback(move |event| {
            let told = told.clone();
            async move {
                if let async_nats::Event::ServerError(error) = event {
                    let _ = told.send(error.to_string());
                }
            }
        })
        .connect(&kaai.bus)
        .await
        .unwrap();
    let mut all = Vec::new();
    for subject in subjects {
        // The body is no event: what is allowed by mistake would become a dead letter, not a deployment.
        client.publish(subject.clone(), "not an event".into()).await.unwrap();
        client.flush().await.unwrap();
        while let Ok(Some(error)) = tokio::time::timeout(Duration::from_millis(100), refused.recv()).await {
            all.push(error.to_lowercase());
            if all.last().is_some_and(|error| error.contains(&subject.to_lowercase())) {
                break;
            }
        }
    }
    all
}

#[tokio::test]
async fn every_user_is_refused_every_event_that_is_not_its_own() {
    let kaai = shared();
    let table = may_say();
    for (user, own) in &table {
        let others: Vec<_> = catalogue()
            .iter()
            .filter(|entry| !own.contains(&entry.event_type))
            .map(|entry| format!("kaai.v1.default.{}.permissions-test", entry.event_type))
            .collect();
        let refused = refusals(kaai, user, &others).await;
        for subject in &others {
            assert!(refused.iter().any(|error| error.contains(subject)), "{user} may say {subject}: {refused:#?}");
        }
    }
}

#[tokio::test]
async fn no_user_writes_a_bucket_of_another_or_deletes_a_stream() {
    let kaai = shared();
    let owners = [
        ("packager", "kaai_models"),
        ("packager", "kaai_archives"),
        ("builder", "kaai_environments"),
        ("deployer", "kaai_services"),
        ("deployer", "kaai_routes"),
        ("deployer", "kaai_facts"),
        ("scaler", "kaai_leases"),
    ];
    for user in ["packager", "builder", "deployer", "router", "scaler", "cli"] {
        let mut subjects: Vec<_> = owners
            .iter()
            .filter(|(owner, _)| *owner != user)
            .map(|(_, bucket)| format!("$KV.{bucket}.permissions-test"))
            .collect();
        subjects.extend(
            ["$JS.API.STREAM.DELETE.KAAI_EVENTS", "$JS.API.STREAM.PURGE.KAAI_EVENTS", "$SYS.REQ.SERVER.PING"]
                .map(str::to_owned),
        );
        let refused = refusals(kaai, user, &subjects).await;
        for subject in &subjects {
            assert!(
                refused.iter().any(|error| error.contains(&subject.to_lowercase())),
                "{user} may publish to {subject}: {refused:#?}"
            );
        }
    }
}

#[tokio::test]
async fn the_router_reads_only_routes() {
    let (publish, subscribe) = cli::permissions::subjects("router");
    for bucket in ["kaai_services", "kaai_models", "kaai_environments", "kaai_facts"] {
        assert!(!publish.iter().any(|subject| subject.contains(bucket)), "{bucket}");
    }
    assert_eq!(subscribe, ["_INBOX_router.>"]);
}

#[test]
fn files_with_passwords_and_keys_are_their_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let home = shared().home();
    for path in ["nats/nats.conf", "nats/passwords/cli", "nats/passwords/deployer"] {
        let mode = std::fs::metadata(home.join(path)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{path}");
    }
    assert_eq!(std::fs::metadata(home).unwrap().permissions().mode() & 0o077, 0);
}

#[test]
fn the_file_for_operators_gives_the_same_permissions() {
    let there = std::fs::read_to_string(tests::root().join("deploy/nats/users.conf")).unwrap();
    assert!(there == cli::permissions::users_file(), "deploy/nats/users.conf is out of date: run `make schema`");
}

#[tokio::test]
async fn a_person_cannot_change_the_consumers_that_hand_out_work() {
    let subjects =
        ["packager", "builder", "deployer"].map(|component| format!("$JS.API.CONSUMER.DELETE.KAAI_EVENTS.{component}"));
    let refused = refusals(shared(), "cli", &subjects).await;
    for subject in &subjects {
        assert!(refused.iter().any(|error| error.contains(&subject.to_lowercase())), "{subject}: {refused:#?}");
    }
}
