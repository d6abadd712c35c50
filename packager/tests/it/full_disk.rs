//! A packager whose disks are full says so, says where, and blames nobody's project.

use std::{
    fs,
    path::{Path, PathBuf},
};

use packager::upload::{piece_count, piece_length, piece_name};
use proto::{
    failure::{Blame, Failure},
    packager::{GitSource, ProjectOptions, Source},
    query::UploadDone,
    subject,
};
use runtime::{
    bus::AskError,
    pieces::PIECE,
    testing::{Nats, SmallDisk, until},
};

use crate::component::{Bench, SOON, digest, git};

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

/// A project that is larger than the small file system.
fn large(bench: &Bench) -> String {
    let folder = bench.project();
    fs::write(Path::new(&folder).join("noise.bin"), noise(2 << 20)).unwrap();
    folder
}

#[track_caller]
fn is_told(failure: &Failure, cause: &str, remedy: &str) {
    assert_eq!((failure.blame, failure.cause.as_str(), failure.remedy.as_str()), (Blame::Platform, cause, remedy));
}

#[tokio::test]
async fn a_full_folder_for_work_is_named_whatever_the_source() {
    let nats = Nats::start().await;
    let work = nats.folder().join("work");
    let test = "a_full_folder_for_work_is_named_whatever_the_source";
    let Some(_small) = SmallDisk::mount(test, work.clone(), 512) else { return };
    let bench = Bench::start_on(nats).await;
    let folder = large(&bench);
    let cause = format!("no space is left on the disk of {}", work.display());
    let remedy = format!("free some space in {}, where the packager writes, then deploy again", work.display());

    let generation = bench.request(Source::Folder(folder.clone()), ProjectOptions::default()).await;
    is_told(&bench.failed(generation).await.failure, &cause, &remedy);

    git(Path::new(&folder), &["init", "-q"]);
    git(Path::new(&folder), &["add", "-A"]);
    git(Path::new(&folder), &["commit", "-q", "-m", "one"]);
    let address = format!("file://{folder}");
    let source = Source::Git(GitSource { address, revision: "main".into(), folder: None });
    let generation = bench.request(source, ProjectOptions::default()).await;
    is_told(&bench.failed(generation).await.failure, &cause, &remedy);

    // Compressed it fits, unpacked it does not.
    let sent = packed(&bench, &vec![b'x'; 4 << 20]);
    let key = runtime::store::archive_key(&digest(&sent));
    bench.rt.store.put_bytes(&key, sent.clone()).await.unwrap();
    let generation = bench.request(Source::Upload(digest(&sent)), ProjectOptions::default()).await;
    is_told(&bench.failed(generation).await.failure, &cause, &remedy);

    let refusal = send(&bench, &packed(&bench, &noise(2 << 20))).await;
    assert_eq!((refusal.kind.as_str(), &refusal.cause), ("unavailable", &cause));
    assert_eq!(refusal.remedy, remedy.replace("deploy", "send"));
}

#[tokio::test]
async fn a_full_object_store_is_told_as_one() {
    let nats = Nats::start().await;
    let test = "a_full_object_store_is_told_as_one";
    let Some(_small) = SmallDisk::mount(test, nats.folder().join("store"), 512) else { return };
    let bench = Bench::start_on(nats).await;
    let cause = "no space is left in the object store";
    let remedy = "free some space in the folder of the packager's --store, then deploy again";

    let generation = bench.request(Source::Folder(large(&bench)), ProjectOptions::default()).await;
    is_told(&bench.failed(generation).await.failure, cause, remedy);
    let refusal = send(&bench, &packed(&bench, &noise(2 << 20))).await;
    assert_eq!((refusal.kind.as_str(), refusal.cause.as_str()), ("unavailable", cause));
    assert_eq!(refusal.remedy, remedy.replace("deploy", "send"));
}

/// The zip of a project with one more file of this content.
fn packed(bench: &Bench, content: &[u8]) -> Vec<u8> {
    let folder = PathBuf::from(bench.project());
    fs::write(folder.join("noise.bin"), content).unwrap();
    let walk = packager::walk::Walk::project(&folder, packager::walk::Limits::PROJECT).unwrap();
    let zip = bench.nats.folder().join("sent.zip");
    packager::archive::write(&walk, &zip).unwrap();
    fs::read(zip).unwrap()
}

/// Sends an archive in pieces, and gives the packager's refusal.
async fn send(bench: &Bench, bytes: &[u8]) -> proto::query::Refusal {
    let (digest, size) = (digest(bytes), bytes.len() as u64);
    let pieces = bench.rt.bus.pieces(subject::UPLOADS).await.unwrap();
    for number in 0..piece_count(size) {
        let from = usize::try_from(u64::from(number) * PIECE).unwrap();
        let piece = &bytes[from..from + usize::try_from(piece_length(size, number)).unwrap()];
        pieces.put(&piece_name(&digest, number), piece.to_vec().into()).await.unwrap();
    }
    let done = UploadDone { digest, size };
    until("the packager refuses", SOON, async || match bench.rt.bus.ask(&bench.workspace(), &done, SOON).await {
        Err(AskError::Refused(refusal)) => Some(refusal),
        _ => None,
    })
    .await
}
