//! Who may do what on the bus: least privilege, as the table of components in the README says it.

use std::fmt::Write;

/// The users of the bus.
pub const USERS: [&str; 6] = ["packager", "builder", "deployer", "router", "scaler", "cli"];

/// What a user may do, beyond what all may.
struct Rights {
    /// Events it says, as `<noun>.<event>`.
    says: &'static [&'static str],
    /// Events it hears over core NATS.
    hears: &'static [&'static str],
    /// Whether it works on the stream of events as a durable consumer of its own name.
    works: bool,
    /// Questions it answers.
    answers: &'static [&'static str],
    /// Buckets it writes.
    owns: &'static [&'static str],
    /// Buckets it reads.
    reads: &'static [&'static str],
    /// Whether it reads and writes pieces of uploads.
    uploads: bool,
}

const NOTHING: Rights =
    Rights { says: &[], hears: &[], works: false, answers: &[], owns: &[], reads: &[], uploads: false };

fn rights(user: &str) -> Rights {
    match user {
        "packager" => Rights {
            says: &["project.packaged", "deployment.failed", "deployment.progressed"],
            works: true,
            answers: &["upload-ticket", "upload-done", "register-model", "list-models"],
            owns: &["kaai_models"],
            reads: &["kaai_facts"],
            uploads: true,
            ..NOTHING
        },
        "builder" => Rights {
            says: &["image.resolved", "deployment.failed", "deployment.progressed"],
            works: true,
            answers: &["get-build-log"],
            owns: &["kaai_environments"],
            ..NOTHING
        },
        "deployer" => Rights {
            says: &["deployment.ready", "deployment.failed", "deployment.deleted", "deployment.progressed"],
            hears: &["service.utilization"],
            works: true,
            answers: &["get-keys", "regenerate-key", "get-log"],
            owns: &["kaai_services", "kaai_routes", "kaai_facts"],
            ..NOTHING
        },
        "router" => Rights { says: &["service.utilization"], reads: &["kaai_routes"], ..NOTHING },
        "scaler" => Rights {
            says: &["scale.requested"],
            hears: &["service.utilization", "scale.requested", "deployment.deleted"],
            owns: &["kaai_leases"],
            ..NOTHING
        },
        // A person: asks for everything that a person may ask for, and reads what a person may read.
        _ => Rights {
            says: &["deployment.requested", "deployment.delete", "scale.requested"],
            hears: &["deployment.progressed", "service.utilization"],
            reads: &["kaai_services", "kaai_facts"],
            uploads: true,
            ..NOTHING
        },
    }
}

/// The entry of a user in the configuration of nats-server.
pub fn entry(user: &str, password: &str) -> String {
    let (publish, subscribe) = subjects(user);
    let list =
        |subjects: &[String]| subjects.iter().map(|subject| format!("\"{subject}\"")).collect::<Vec<_>>().join(", ");
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "    {{ user: {user}, password: \"{password}\", permissions: {{ publish: [{}], subscribe: [{}], allow_responses: true }} }}",
        list(&publish),
        list(&subscribe)
    );
    text
}

/// What a user may publish to and subscribe to.
pub fn subjects(user: &str) -> (Vec<String>, Vec<String>) {
    let rights = rights(user);
    let mut publish = vec!["$JS.API.INFO".to_owned()];
    let mut subscribe = vec![format!("_INBOX_{user}.>")];
    for stream in ["KAAI_EVENTS", "KAAI_DEAD_LETTERS"] {
        publish.extend(["INFO", "CREATE", "UPDATE"].map(|verb| format!("$JS.API.STREAM.{verb}.{stream}")));
    }
    publish.extend(rights.says.iter().map(|event| format!("kaai.v1.*.{event}.*")));
    subscribe.extend(rights.hears.iter().map(|event| format!("kaai.v1.*.{event}.*")));
    subscribe.extend(rights.answers.iter().map(|query| format!("kaai.v1.*.query.{query}")));
    if rights.works {
        publish.push(format!("$JS.API.CONSUMER.CREATE.KAAI_EVENTS.{user}"));
        publish.push(format!("$JS.API.CONSUMER.DURABLE.CREATE.KAAI_EVENTS.{user}"));
        publish.push(format!("$JS.API.CONSUMER.CREATE.KAAI_EVENTS.{user}.>"));
        publish.push(format!("$JS.API.CONSUMER.INFO.KAAI_EVENTS.{user}"));
        publish.push(format!("$JS.API.CONSUMER.MSG.NEXT.KAAI_EVENTS.{user}"));
        publish.push(format!("$JS.ACK.KAAI_EVENTS.{user}.>"));
        publish.push(format!("kaai.dead-letter.v1.{user}.>"));
    }
    for bucket in rights.owns.iter().chain(rights.reads) {
        publish.extend(["INFO", "CREATE"].map(|verb| format!("$JS.API.STREAM.{verb}.KV_{bucket}")));
        publish.extend(reading(&format!("KV_{bucket}")));
    }
    publish.extend(rights.owns.iter().map(|bucket| format!("$KV.{bucket}.>")));
    if rights.uploads {
        let stream = "OBJ_kaai_uploads";
        publish.extend(["INFO", "CREATE", "PURGE"].map(|verb| format!("$JS.API.STREAM.{verb}.{stream}")));
        publish.extend(reading(stream));
        publish.push("$O.kaai_uploads.>".to_owned());
    }
    if user == "cli" {
        publish.push("kaai.v1.*.query.*".to_owned());
        for stream in ["KAAI_EVENTS", "KAAI_DEAD_LETTERS"] {
            publish.extend(reading(stream));
        }
        publish.push("$JS.API.STREAM.MSG.DELETE.KAAI_DEAD_LETTERS".to_owned());
    }
    (publish, subscribe)
}

/// What reading a stream takes: its messages one by one, and consumers that nobody else shares.
fn reading(stream: &str) -> Vec<String> {
    let mut subjects = vec![
        format!("$JS.API.STREAM.MSG.GET.{stream}"),
        format!("$JS.API.DIRECT.GET.{stream}"),
        format!("$JS.API.DIRECT.GET.{stream}.>"),
        format!("$JS.FC.{stream}.>"),
        format!("$JS.ACK.{stream}.>"),
    ];
    for verb in ["CREATE", "DELETE", "INFO"] {
        subjects.push(format!("$JS.API.CONSUMER.{verb}.{stream}"));
        // A durable consumer of KAAI_EVENTS is a component's: a reader may make only consumers of its own, which have no fixed name.
        subjects.push(format!("$JS.API.CONSUMER.{verb}.{stream}.>"));
    }
    subjects
}
