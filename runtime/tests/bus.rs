//! The bus against a real nats-server, and what becomes of everything when that server dies.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use proto::{
    deployer::{DeploymentDelete, DeploymentDeleted},
    id::{Generation, ServiceName, Workspace},
    query::{GetKeys, Keys, Refusal},
    subject,
};
use runtime::{
    bus::{AskError, Bus, Change, Error, WorkQueue},
    testing::{Nats, until},
};

const SOON: Duration = Duration::from_secs(20);

fn names() -> (Workspace, ServiceName) {
    (Workspace::default(), "ridge".parse().unwrap())
}

fn queue(ack_wait: Duration) -> WorkQueue {
    WorkQueue { consumer: "tester", subjects: vec![subject::any::<DeploymentDelete>()], ack_wait, max_in_flight: 8 }
}

async fn say(bus: &Bus, id: &str) -> u64 {
    let (workspace, service) = names();
    bus.say(&workspace, &service, id, &DeploymentDelete::default()).await.unwrap()
}

async fn dead_letters(bus: &Bus) -> Vec<runtime::bus::DeadLetter> {
    bus.dead_letters(100).await.unwrap()
}

#[tokio::test]
async fn an_event_said_twice_is_kept_and_handed_out_once() {
    let nats = Nats::start().await;
    let rt = nats.runtime("tester").await;
    let first = say(&rt.bus, "one").await;
    assert_eq!(say(&rt.bus, "one").await, first);
    let last = say(&rt.bus, "two").await;

    let mut deliveries = rt.bus.work(queue(SOON)).await.unwrap();
    for expected in [first, last] {
        let delivery = deliveries.next().await.unwrap();
        assert_eq!((delivery.sequence, delivery.attempt), (expected, 1));
        assert_eq!((delivery.workspace.clone(), delivery.service.clone()), names());
        assert!(delivery.envelope.traceparent.is_some());
        delivery.ack().await;
    }
}

#[tokio::test]
async fn what_is_not_settled_comes_again_and_what_is_worked_on_does_not() {
    let nats = Nats::start().await;
    let rt = nats.runtime("tester").await;
    say(&rt.bus, "one").await;
    let mut deliveries = rt.bus.work(queue(Duration::from_millis(500))).await.unwrap();
    let dropped = deliveries.next().await.unwrap().sequence;
    let again = deliveries.next().await.unwrap();
    assert_eq!((again.sequence, again.attempt), (dropped, 2));
    // Three times the acknowledgement wait: without signs of life the message would be handed out meanwhile.
    let handed_out = again.while_working(tokio::time::timeout(Duration::from_millis(1_500), deliveries.next())).await;
    assert!(handed_out.is_err());
    again.ack().await;
}

#[tokio::test]
async fn a_rejected_message_is_kept_with_its_reason_and_does_not_come_again() {
    let nats = Nats::start().await;
    let rt = nats.runtime("tester").await;
    let sequence = say(&rt.bus, "one").await;
    let mut deliveries = rt.bus.work(queue(SOON)).await.unwrap();
    deliveries.next().await.unwrap().reject("no such\nthing").await;
    let letters = dead_letters(&rt.bus).await;
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].reason.as_str(), letters[0].sequence), ("no such thing", sequence));
    assert_eq!(letters[0].subject, "kaai.v1.default.deployment.delete.ridge");
    let after = say(&rt.bus, "two").await;
    assert_eq!(deliveries.next().await.unwrap().sequence, after);
}

#[tokio::test]
async fn a_subject_that_names_no_service_becomes_a_dead_letter() {
    let nats = Nats::start().await;
    let rt = nats.runtime("tester").await;
    let client = async_nats::connect(nats.address()).await.unwrap();
    client.publish("kaai.v1.default.deployment.delete.NO", "{}".into()).await.unwrap();
    client.flush().await.unwrap();
    let mut deliveries = rt.bus.work(queue(SOON)).await.unwrap();
    let good = say(&rt.bus, "one").await;
    assert_eq!(deliveries.next().await.unwrap().sequence, good);
    assert_eq!(dead_letters(&rt.bus).await.len(), 1);
}

#[tokio::test]
async fn work_saying_and_watching_go_on_after_the_server_was_killed() {
    let mut nats = Nats::start().await;
    let rt = nats.runtime("tester").await;
    let bucket = rt.bus.bucket::<u32>("test_bucket").await.unwrap();
    bucket.create("a", &1).await.unwrap();
    let mut watch = bucket.watch();
    assert_eq!(watch.next().await.unwrap(), Change::Put { key: "a".into(), value: 1, revision: 1 });
    assert_eq!(watch.next().await.unwrap(), Change::Synced);
    let mut deliveries = rt.bus.work(queue(SOON)).await.unwrap();
    let before = say(&rt.bus, "before").await;

    nats.kill();
    let bus = rt.bus.clone();
    let saying = rt.tasks.spawn(async move { say(&bus, "meanwhile").await });
    nats.resume().await;

    let meanwhile = tokio::time::timeout(SOON, saying).await.unwrap().unwrap();
    let mut got = Vec::new();
    while got.len() < 2 {
        let delivery = tokio::time::timeout(SOON, deliveries.next()).await.unwrap().unwrap();
        delivery.ack().await;
        got.push(delivery.sequence);
    }
    got.sort_unstable();
    got.dedup();
    assert_eq!(got, [before, meanwhile]);

    until("the bucket can be written again", SOON, async || bucket.put("b", &2).await.ok()).await;
    let seen = async {
        loop {
            if let Some(Change::Put { key, value: 2, .. }) = watch.next().await {
                break key;
            }
        }
    };
    assert_eq!(tokio::time::timeout(SOON, seen).await.unwrap(), "b");
}

#[tokio::test]
async fn a_bucket_lets_only_the_first_of_two_writers_pass() {
    let nats = Nats::start().await;
    let rt = nats.runtime("tester").await;
    let bucket = rt.bus.bucket::<String>("test_bucket").await.unwrap();
    let revision = bucket.create("k", &"a".to_owned()).await.unwrap();
    assert!(matches!(bucket.create("k", &"b".to_owned()).await, Err(Error::Conflict(_))));
    let newer = bucket.update("k", &"b".to_owned(), revision).await.unwrap();
    assert!(matches!(bucket.update("k", &"c".to_owned(), revision).await, Err(Error::Conflict(_))));
    assert!(matches!(bucket.delete_at("k", revision).await, Err(Error::Conflict(_))));
    bucket.delete_at("k", newer).await.unwrap();
    assert_eq!(bucket.get("k").await.unwrap(), None);
    assert!(bucket.create("k", &"d".to_owned()).await.is_ok(), "a key may begin anew");
}

#[tokio::test]
async fn a_watch_tells_what_went_while_nobody_watched() {
    let nats = Nats::start().await;
    let rt = nats.runtime("tester").await;
    let bucket = rt.bus.bucket::<u32>("test_bucket").await.unwrap();
    let mut watch = bucket.watch();
    assert_eq!(watch.next().await.unwrap(), Change::Synced, "an empty bucket is synced at once");
    bucket.put("a", &1).await.unwrap();
    assert!(matches!(watch.next().await.unwrap(), Change::Put { .. }));
    bucket.delete("a").await.unwrap();
    assert!(matches!(watch.next().await.unwrap(), Change::Gone { .. }));
}

#[tokio::test]
async fn subjects_of_a_newer_version_are_added_by_one_and_waited_for_by_the_others() {
    let nats = Nats::start().await;
    let context = async_nats::jetstream::new(async_nats::connect(nats.address()).await.unwrap());
    let mut older = runtime::streams::events();
    let wanted = older.subjects.len();
    older.subjects.pop();
    context.create_stream(older).await.unwrap();
    let subjects = async || {
        let stream = context.get_stream(subject::EVENTS).await.unwrap();
        stream.cached_info().config.subjects.len()
    };
    let router = runtime::shutdown::Tasks::default().spawn({
        let settings = nats.settings("router");
        async move { runtime::Runtime::new("router", &settings, Default::default()).await.map(drop) }
    });
    let refused = runtime::streams::ensure(&context, runtime::streams::events(), "router").await.unwrap_err();
    assert!(refused.to_string().contains("the deployer of this version adds them"), "{refused}");
    assert_eq!(subjects().await, wanted - 1);
    nats.runtime(runtime::streams::KEEPER).await;
    assert_eq!(subjects().await, wanted);
    router.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_cannot_be_read_any_more_is_not_gone() {
    let mut nats = Nats::start().await;
    let rt = nats.runtime("tester").await;
    let newer = rt.bus.bucket::<String>("test_bucket").await.unwrap();
    let bucket = rt.bus.bucket::<u32>("test_bucket").await.unwrap();
    bucket.put("a", &1).await.unwrap();
    let mut watch = bucket.watch();
    assert!(matches!(watch.next().await.unwrap(), Change::Put { .. }));
    assert_eq!(watch.next().await.unwrap(), Change::Synced);
    newer.put("a", &"from the future".to_owned()).await.unwrap();
    nats.kill();
    nats.resume().await;
    assert_eq!(watch.next().await.unwrap(), Change::Synced);
    until("the bus takes it", SOON, async || bucket.put("b", &2).await.ok()).await;
    assert!(matches!(watch.next().await.unwrap(), Change::Put { key, .. } if key == "b"));
}

#[tokio::test]
async fn a_message_that_fits_only_without_its_reason_is_a_dead_letter_without_its_body() {
    let nats = Nats::start().await;
    let rt = nats.runtime("tester").await;
    let client = async_nats::connect(nats.address()).await.unwrap();
    let most = client.server_info().max_payload;
    client.publish("kaai.v1.default.deployment.delete.ridge", vec![b'x'; most].into()).await.unwrap();
    client.flush().await.unwrap();
    let mut deliveries = rt.bus.work(queue(Duration::from_millis(500))).await.unwrap();
    deliveries.next().await.unwrap().reject("not JSON").await;
    let letters = dead_letters(&rt.bus).await;
    assert_eq!((letters.len(), letters[0].reason.as_str(), letters[0].body.len()), (1, "not JSON", 0));
    let refused = rt.bus.replay_dead_letter(letters[0].letter).await.unwrap_err();
    assert!(refused.to_string().contains(&format!("{most} bytes was left out")), "{refused}");
    let after = say(&rt.bus, "after").await;
    assert_eq!(deliveries.next().await.unwrap().sequence, after, "it does not come again");
}

#[tokio::test]
async fn a_value_larger_than_the_server_takes_is_refused_as_such() {
    let nats = Nats::start().await;
    let rt = nats.runtime("tester").await;
    let bucket = rt.bus.bucket::<String>("test_bucket").await.unwrap();
    let large = "x".repeat(1 << 20);
    let revision = bucket.create("k", &"small".to_owned()).await.unwrap();
    assert!(matches!(bucket.create("l", &large).await, Err(Error::TooLarge(_))));
    assert!(matches!(bucket.update("k", &large, revision).await, Err(Error::TooLarge(_))));
    assert!(matches!(bucket.put("k", &large).await, Err(Error::TooLarge(_))));
}

#[tokio::test]
async fn a_question_gets_its_answer_its_refusal_or_a_word_that_nobody_is_there() {
    let nats = Nats::start().await;
    let rt = nats.runtime("tester").await;
    let (workspace, service) = names();
    let query = GetKeys { service };
    assert!(matches!(rt.bus.ask(&workspace, &query, SOON).await, Err(AskError::Nobody)));

    let mut questions = rt.bus.answer::<GetKeys>().await.unwrap();
    rt.tasks.spawn(async move {
        let keys = Keys { primary: "p".into(), secondary: "s".into() };
        questions.next().await.unwrap().reply(Ok(keys)).await;
        questions.next().await.unwrap().reply(Err(Refusal::new("not-found", "no such service", "look"))).await;
    });
    let keys = until("the question is heard", SOON, async || rt.bus.ask(&workspace, &query, SOON).await.ok()).await;
    assert_eq!(keys.primary, "p");
    assert_eq!(format!("{keys:?}"), "Keys(…)");
    assert!(
        matches!(rt.bus.ask(&workspace, &query, SOON).await, Err(AskError::Refused(refusal)) if refusal.kind == "not-found")
    );
}

#[tokio::test]
async fn what_is_said_comes_back_in_order_as_history() {
    let nats = Nats::start().await;
    let rt = nats.runtime("tester").await;
    let (workspace, service) = names();
    let first = say(&rt.bus, "one").await;
    let event = DeploymentDeleted { generation: Generation(first), extra: Default::default() };
    rt.bus.say(&workspace, &service, "gone", &event).await.unwrap();
    let mut history = rt.bus.history(&workspace, first).await.unwrap();
    let one = history.next().await.unwrap();
    assert_eq!((one.sequence, one.event_type.as_str()), (first, "deployment.delete"));
    let two = history.next().await.unwrap();
    assert_eq!((two.envelope.id.as_str(), two.event_type.as_str()), ("gone", "deployment.deleted"));
}

#[tokio::test]
async fn pieces_are_put_listed_read_and_taken_away() {
    let nats = Nats::start().await;
    let rt = nats.runtime("tester").await;
    let pieces = rt.bus.pieces("test_pieces").await.unwrap();
    let large = vec![7u8; 3 << 20];
    pieces.put("a/0", large.clone().into()).await.unwrap();
    pieces.put("b/0", "small".into()).await.unwrap();
    assert_eq!(pieces.list("a/").await.unwrap(), [("a/0".to_owned(), large.len() as u64)]);
    assert_eq!(pieces.get("a/0").await.unwrap(), Some(large));
    pieces.delete("a/0").await.unwrap();
    pieces.delete("a/0").await.unwrap();
    assert_eq!(pieces.get("a/0").await.unwrap(), None);
    assert!(pieces.list("a/").await.unwrap().is_empty());
}
