//! Who may do what on the bus: least privilege, as the table of components in the README says it.

use runtime::streams::KEEPER;

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
    /// Entries of others' buckets that it writes: bucket and key.
    writes: &'static [&'static str],
    /// Buckets it reads.
    reads: &'static [&'static str],
    /// Whether it reads the stream of events as a history.
    history: bool,
    /// Whether it reads and writes pieces of uploads.
    uploads: bool,
}

const NOTHING: Rights = Rights {
    says: &[],
    hears: &[],
    works: false,
    answers: &[],
    owns: &[],
    writes: &[],
    reads: &[],
    history: false,
    uploads: false,
};

fn rights(user: &str) -> Rights {
    match user {
        "packager" => Rights {
            says: &["project.packaged", "deployment.failed", "deployment.progressed"],
            works: true,
            answers: &["upload-ticket", "upload-done", "register-model", "list-models", "prune"],
            owns: &["kaai_models", "kaai_archives"],
            reads: &["kaai_facts", "kaai_services"],
            history: true,
            uploads: true,
            ..NOTHING
        },
        "builder" => Rights {
            says: &["image.resolved", "deployment.failed", "deployment.progressed"],
            works: true,
            answers: &["get-build-log", "forget-failure", "get-scan-report", "describe-environment"],
            owns: &["kaai_environments"],
            writes: &["kaai_facts.builder.public-key"],
            reads: &["kaai_facts"],
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
            history: true,
            uploads: true,
            ..NOTHING
        },
    }
}

/// The entry of a user in the configuration of nats-server; `password` is as the configuration spells it, quoted or a variable.
pub fn entry(user: &str, password: &str) -> String {
    let (publish, subscribe) = subjects(user);
    let list =
        |subjects: &[String]| subjects.iter().map(|subject| format!("\"{subject}\"")).collect::<Vec<_>>().join(", ");
    format!(
        "    {{ user: {user}, password: {password}, permissions: {{ publish: {{ allow: [{}], deny: [{}] }}, subscribe: [{}], allow_responses: true }} }}\n",
        list(&publish),
        list(&denied(user)),
        list(&subscribe)
    )
}

/// All of `deploy/nats/users.conf`, for components that run as processes of their own.
pub fn users_file() -> String {
    let entries: String = USERS.iter().map(|user| entry(user, &format!("${}_PASSWORD", user.to_uppercase()))).collect();
    format!(
        "# Who may do what on the bus: the same as `kaai up` gives its components (cli/src/permissions.rs; `make schema` writes this).\n\
         # The passwords come from passwords.conf.\ninclude \"passwords.conf\"\nusers: [\n{entries}]\n"
    )
}

/// What a user may not publish to though a wider subject allows it: a reader of the stream makes consumers of its own,
/// and must not change those that hand out the components' work.
pub fn denied(user: &str) -> Vec<String> {
    let workers = USERS.iter().filter(|other| **other != user && rights(other).works);
    workers
        .flat_map(|other| {
            let changing =
                ["CREATE", "DELETE", "INFO"].map(|verb| format!("$JS.API.CONSUMER.{verb}.KAAI_EVENTS.{other}"));
            changing.into_iter().chain([format!("$JS.API.CONSUMER.CREATE.KAAI_EVENTS.{other}.>")])
        })
        .collect()
}

/// What a user may publish to and subscribe to.
pub fn subjects(user: &str) -> (Vec<String>, Vec<String>) {
    let rights = rights(user);
    let mut publish = vec!["$JS.API.INFO".to_owned()];
    let mut subscribe = vec![format!("_INBOX_{user}.>")];
    for stream in ["KAAI_EVENTS", "KAAI_DEAD_LETTERS"] {
        publish.extend(["INFO", "CREATE"].map(|verb| format!("$JS.API.STREAM.{verb}.{stream}")));
        // Whoever may change a stream may let it forget: one alone.
        publish.extend((user == KEEPER).then(|| format!("$JS.API.STREAM.UPDATE.{stream}")));
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
    publish.extend(rights.writes.iter().map(|entry| format!("$KV.{entry}")));
    if rights.uploads {
        let stream = "OBJ_kaai_uploads";
        publish.extend(["INFO", "CREATE", "PURGE"].map(|verb| format!("$JS.API.STREAM.{verb}.{stream}")));
        publish.extend(reading(stream));
        publish.push("$O.kaai_uploads.>".to_owned());
    }
    if rights.history {
        publish.extend(reading("KAAI_EVENTS"));
    }
    if user == "cli" {
        publish.push("kaai.v1.*.query.*".to_owned());
        publish.extend(reading("KAAI_DEAD_LETTERS"));
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
    ];
    for verb in ["CREATE", "DELETE", "INFO"] {
        subjects.push(format!("$JS.API.CONSUMER.{verb}.{stream}"));
        subjects.push(format!("$JS.API.CONSUMER.{verb}.{stream}.>"));
    }
    subjects
}
