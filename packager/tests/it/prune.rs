//! Pruning on a real bus: what nobody needs goes, and nothing else, whatever happens at the same time.

use std::{
    fs::File,
    io::Write,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use proto::{
    id::Digest,
    packager::{Archive, ArchiveLease, ProjectOptions, Source},
    query::{Prune, PruneOutcome, Pruned, Refusal, RegisterModel, StoredKind, UploadRoute, UploadTicket},
    subject,
};
use runtime::{
    bus::AskError,
    store::{archive_key, build_log_key},
    testing::until,
};

use crate::component::{Bench, SOON, digest};

const DAY: u64 = 86_400;

impl Bench {
    /// One that answers.
    async fn ready() -> Self {
        let bench = Self::start().await;
        until("the packager answers", SOON, async || {
            bench.rt.bus.ask(&bench.workspace(), &Prune { older_than_seconds: DAY, apply: false }, SOON).await.ok()
        })
        .await;
        bench
    }

    async fn prune(&self, apply: bool) -> Pruned {
        self.rt.bus.ask(&self.workspace(), &Prune { older_than_seconds: 30 * DAY, apply }, SOON).await.unwrap()
    }

    async fn refused(&self, query: Prune) -> Refusal {
        match self.rt.bus.ask(&self.workspace(), &query, SOON).await {
            Err(AskError::Refused(refusal)) => refusal,
            other => panic!("{other:?}"),
        }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.nats.folder().join("store").join(key)
    }

    /// Makes an object look as if it had been written 40 days ago.
    fn age(&self, key: &str) {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(runtime::clock::now_ms());
        let then = now - Duration::from_secs(40 * DAY);
        File::options().write(true).open(self.path(key)).unwrap().set_modified(then).unwrap();
    }

    /// An archive that lies in the store for 40 days and holds a script.
    async fn old_archive(&self, content: &str) -> (Digest, u64) {
        let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        zip.start_file("score.py", zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(content.as_bytes()).unwrap();
        let bytes = zip.finish().unwrap().into_inner();
        let digest = digest(&bytes);
        self.rt.store.put_bytes(&archive_key(&digest), bytes.clone()).await.unwrap();
        self.age(&archive_key(&digest));
        (digest, bytes.len() as u64)
    }

    async fn has(&self, digest: &Digest) -> bool {
        self.rt.store.size(&archive_key(digest)).await.unwrap().is_some()
    }
}

#[tokio::test]
async fn what_nobody_needs_is_told_and_then_deleted() {
    let bench = Bench::ready().await;
    let (archive, size) = bench.old_archive("nobody's").await;
    let log = build_log_key(&"ab".repeat(32).parse().unwrap());
    bench.rt.store.put_bytes(&log, "a log").await.unwrap();
    bench.age(&log);
    let half = format!("{}#1", archive_key(&digest(b"killed")));
    std::fs::write(bench.path(&half), "half").unwrap();
    bench.age(&half);
    let new = digest(b"new");
    bench.rt.store.put_bytes(&archive_key(&new), "new").await.unwrap();
    bench.rt.store.put_bytes("archives/README", "a person's").await.unwrap();
    bench.age("archives/README");

    let told = bench.prune(false).await;
    let kinds: Vec<_> = told.objects.iter().map(|object| object.kind).collect();
    assert_eq!(kinds.len(), 3, "{told:?}");
    for kind in [StoredKind::Archive, StoredKind::BuildLog, StoredKind::UnfinishedUpload] {
        assert!(kinds.contains(&kind), "{told:?}");
    }
    assert_eq!((told.bytes, told.more), (size + 5 + 4, 0));
    assert!(bench.has(&archive).await && bench.path(&half).exists(), "telling deletes nothing");

    let done = bench.prune(true).await;
    assert!(done.objects.iter().all(|object| object.outcome == PruneOutcome::Deleted), "{done:?}");
    assert!(!bench.has(&archive).await && !bench.path(&half).exists() && !bench.path(&log).exists());
    assert!(bench.has(&new).await && bench.path("archives/README").exists());
    assert_eq!(bench.prune(true).await, Pruned::default(), "again is fine");
    let leases = bench.rt.bus.bucket::<ArchiveLease>(subject::ARCHIVES).await.unwrap();
    assert_eq!(leases.keys().await.unwrap(), Vec::<String>::new(), "no claim is left");
}

#[tokio::test]
async fn what_a_service_a_model_or_a_deployment_needs_stays() {
    let bench = Bench::ready().await;
    let (served, _) = bench.old_archive("served").await;
    let record = serde_json::json!({ "name": "ridge", "whatever": { "a newer version says": served } });
    let services = bench.rt.bus.bucket::<serde_json::Value>(subject::SERVICES).await.unwrap();
    services.put("default.ridge", &record).await.unwrap();

    let (model, size) = bench.old_archive("model").await;
    let archive = Archive { digest: model.clone(), size, files: 1, ignored: 0 };
    let wanted =
        RegisterModel { name: "m".parse().unwrap(), version: None, archive, entry: "score.py".into(), reuse: false };
    bench.rt.bus.ask(&bench.workspace(), &wanted, SOON).await.unwrap();
    let (asked, _) = bench.old_archive("asked").await;
    bench.request(Source::Upload(asked.clone()), ProjectOptions::default()).await;

    let (gone, _) = bench.old_archive("gone").await;
    let done = bench.prune(true).await;
    assert_eq!(done.objects.len(), 1, "{done:?}");
    for needed in [&served, &model, &asked] {
        assert!(bench.has(needed).await);
    }
    assert!(!bench.has(&gone).await);
}

#[tokio::test]
async fn what_cannot_be_read_keeps_everything() {
    let bench = Bench::ready().await;
    let (archive, _) = bench.old_archive("old").await;
    let client = async_nats::connect(bench.nats.address()).await.unwrap();
    let services = async_nats::jetstream::new(client).get_key_value(subject::SERVICES).await.unwrap();
    services.put("default.broken", "no JSON".into()).await.unwrap();
    for apply in [false, true] {
        let refusal = bench.refused(Prune { older_than_seconds: 30 * DAY, apply }).await;
        assert!(refusal.cause.contains("default.broken") && refusal.cause.contains("nothing is deleted"), "{refusal}");
    }
    assert!(bench.has(&archive).await);
    let refusal = bench.refused(Prune { older_than_seconds: 60, apply: true }).await;
    assert_eq!(refusal.kind, "invalid");
}

#[tokio::test]
async fn an_archive_that_somebody_was_told_of_is_never_deleted_meanwhile() {
    let bench = Bench::ready().await;
    let (mut present, mut deleted) = (0, 0);
    for round in 0..40 {
        let (archive, size) = bench.old_archive(&format!("round {round}")).await;
        let ticket = UploadTicket { digest: archive.clone(), size };
        let workspace = bench.workspace();
        let asking = async {
            // Now one, now the other comes first.
            for _ in 0..round % 8 {
                bench.rt.bus.last_sequence().await.unwrap();
            }
            bench.rt.bus.ask(&workspace, &ticket, SOON).await.unwrap()
        };
        let (route, done) = tokio::join!(asking, bench.prune(true));
        let was_deleted = done.objects.iter().any(|object| object.outcome == PruneOutcome::Deleted);
        if route == UploadRoute::Present {
            present += 1;
            assert!(bench.has(&archive).await, "round {round}: {done:?}");
            assert!(!was_deleted, "round {round}");
            assert!(bench.prune(true).await.objects.is_empty(), "it stays for a while");
            assert!(bench.has(&archive).await, "round {round}");
        } else {
            deleted += 1;
            assert!(was_deleted, "round {round}: {route:?} {done:?}");
        }
    }
    assert_eq!(present + deleted, 40);
}

#[tokio::test]
async fn a_claim_of_a_packager_that_was_killed_ends_by_itself() {
    let bench = Bench::ready().await;
    let (archive, size) = bench.old_archive("claimed").await;
    let leases = bench.rt.bus.bucket::<ArchiveLease>(subject::ARCHIVES).await.unwrap();
    let until_ms = runtime::clock::now_ms() + 1500;
    leases.create(archive.hex(), &ArchiveLease::Going { until_ms }).await.unwrap();
    assert!(bench.prune(true).await.objects.is_empty(), "another one is at it");
    let ticket = UploadTicket { digest: archive.clone(), size };
    let route = bench.rt.bus.ask(&bench.workspace(), &ticket, SOON).await.unwrap();
    assert_eq!(route, UploadRoute::Present);
    assert!(runtime::clock::now_ms() >= until_ms, "it was told of before the claim had ended");
    assert!(bench.has(&archive).await);
}
