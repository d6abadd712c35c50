//! The packager on a real bus: requests in, archives and specifications out.

use std::{fs, path::Path, time::Duration};

use packager::upload::{piece_count, piece_name};
use proto::{
    deployer::DeploymentFailed,
    event::Event,
    id::{Digest, Generation, ServiceName, Workspace},
    packager::{DeploymentRequested, ProjectOptions, ProjectPackaged, Source},
    query::{ListModels, UploadDone, UploadRoute, UploadTicket},
    subject,
};
use runtime::{
    Runtime,
    bus::Past,
    store::archive_key,
    testing::{Nats, until},
};
use sha2::{Digest as _, Sha256};

const SOON: Duration = Duration::from_secs(30);

struct Bench {
    nats: Nats,
    rt: Runtime,
    service: ServiceName,
}

impl Bench {
    async fn start() -> Self {
        let nats = Nats::start().await;
        let rt = nats.runtime("packager").await;
        let (config, alone) = (packager::Config::default(), rt.clone());
        rt.tasks.spawn(async move { packager::run(config, alone).await.unwrap() });
        Self { nats, rt, service: "ridge".parse().unwrap() }
    }

    fn workspace(&self) -> Workspace {
        Workspace::default()
    }

    fn project(&self) -> String {
        let folder = self.nats.folder().join("ridge");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("score.py"), "def init():\n    pass\n\ndef run(data):\n    return data\n").unwrap();
        fs::write(folder.join("environment.yml"), "dependencies:\n  - python=3.11\n").unwrap();
        folder.display().to_string()
    }

    async fn request(&self, source: Source, options: ProjectOptions) -> u64 {
        let request = DeploymentRequested { source, spec: None, options, sealed_keys: None, extra: Default::default() };
        let id = format!("test/{}", runtime::config::new_instance("t"));
        self.rt.bus.say(&self.workspace(), &self.service, &id, &request).await.unwrap()
    }

    /// The first event about the service after `from` that is no request.
    async fn outcome(&self, from: u64) -> Past {
        let mut history = self.rt.bus.history(&self.workspace(), from + 1).await.unwrap();
        let outcome = async {
            loop {
                let past = history.next().await.unwrap();
                if past.event_type != DeploymentRequested::TYPE {
                    return past;
                }
            }
        };
        tokio::time::timeout(SOON, outcome).await.unwrap()
    }

    async fn packaged(&self, from: u64) -> ProjectPackaged {
        let past = self.outcome(from).await;
        assert_eq!(past.event_type, ProjectPackaged::TYPE, "{:?}", past.body);
        serde_json::from_slice(&past.body).unwrap()
    }
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

#[tokio::test]
async fn a_folder_becomes_an_archive_and_a_specification_once() {
    let bench = Bench::start().await;
    let generation = bench.request(Source::Folder(bench.project()), ProjectOptions::default()).await;
    let packaged = bench.packaged(generation).await;
    assert_eq!(packaged.generation, Generation(generation));
    assert_eq!(packaged.spec.entry_script, "score.py");
    assert_eq!(packaged.spec.source_directory.as_deref(), Some("ridge"));
    let stored = bench.rt.store.size(&archive_key(&packaged.archive.digest)).await.unwrap();
    assert_eq!(stored, Some(packaged.archive.size));

    let again = bench.request(Source::Folder(bench.project()), ProjectOptions::default()).await;
    let repeated = bench.packaged(again).await;
    assert_eq!(repeated.archive, packaged.archive, "same content, same digest");
    assert_eq!(bench.rt.store.list("archives").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_folder_that_is_not_there_fails_in_words() {
    let bench = Bench::start().await;
    let generation = bench.request(Source::Folder("/no/such/folder".into()), ProjectOptions::default()).await;
    let past = bench.outcome(generation).await;
    assert_eq!(past.event_type, DeploymentFailed::TYPE);
    let failed: DeploymentFailed = serde_json::from_slice(&past.body).unwrap();
    assert!(failed.failure.cause.contains("/no/such/folder"), "{failed:?}");
    assert_eq!(past.envelope.id, format!("deployment.failed/default/ridge/{generation}"));
}

#[tokio::test]
async fn models_are_registered_once_and_named_with_their_version() {
    let bench = Bench::start().await;
    let folder = bench.project();
    fs::write(Path::new(&folder).join("weights.bin"), b"w1").unwrap();
    let options = ProjectOptions { models: vec!["weights=weights.bin".into()], ..ProjectOptions::default() };
    for (content, version) in [(b"w1", 1), (b"w1", 1), (b"w2", 2)] {
        fs::write(Path::new(&folder).join("weights.bin"), content).unwrap();
        let generation = bench.request(Source::Folder(folder.clone()), options.clone()).await;
        let packaged = bench.packaged(generation).await;
        assert_eq!((packaged.spec.models.len(), packaged.spec.models[0].version), (1, version));
    }
    let listed = bench.rt.bus.ask(&bench.workspace(), &ListModels {}, SOON).await.unwrap();
    assert_eq!(listed[0].versions.len(), 2);
    assert_eq!(listed[0].versions[0].entry, "weights.bin");
}

#[tokio::test]
async fn an_upload_that_was_cut_goes_on_where_it_was_and_is_checked() {
    let bench = Bench::start().await;
    // A zip of more than one piece: stored, not compressed, so that its size is known.
    let zip = bench.nats.folder().join("big.zip");
    let folder = bench.nats.folder().join("big");
    fs::create_dir(&folder).unwrap();
    let mut state = 1_u64;
    let noise: Vec<u8> = (0..9 << 20)
        .map(|_| {
            // Xorshift: bytes that do not compress.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect();
    fs::write(folder.join("noise.bin"), &noise).unwrap();
    fs::write(folder.join("score.py"), "def init(): pass\ndef run(data): return data\n").unwrap();
    let walk = packager::walk::Walk::project(&folder, packager::walk::Limits::PROJECT).unwrap();
    let archive = packager::archive::write(&walk, &zip).unwrap();
    let bytes = fs::read(&zip).unwrap();
    let (ask, workspace) = (&bench.rt.bus, bench.workspace());
    let ticket = UploadTicket { digest: archive.digest.clone(), size: archive.size };
    let route = until("the packager answers", SOON, async || ask.ask(&workspace, &ticket, SOON).await.ok()).await;
    assert!(matches!(route, UploadRoute::Pieces { ref present, .. } if present.is_empty()), "{route:?}");

    let pieces = ask.pieces(subject::UPLOADS).await.unwrap();
    let size = usize::try_from(runtime::pieces::PIECE).unwrap();
    let count = piece_count(archive.size);
    assert!(count >= 2);
    let piece = |number: u32| bytes[number as usize * size..bytes.len().min((number as usize + 1) * size)].to_vec();
    pieces.put(&piece_name(&archive.digest, 0), piece(0).into()).await.unwrap();
    let done = UploadDone { digest: archive.digest.clone(), size: archive.size };
    assert!(ask.ask(&workspace, &done, SOON).await.is_err(), "pieces are missing");
    let resumed = ask.ask(&workspace, &ticket, SOON).await.unwrap();
    assert!(matches!(resumed, UploadRoute::Pieces { ref present, .. } if *present == [0]), "{resumed:?}");

    for number in 1..count {
        pieces.put(&piece_name(&archive.digest, number), piece(number).into()).await.unwrap();
    }
    ask.ask(&workspace, &done, SOON).await.unwrap();
    ask.ask(&workspace, &done, SOON).await.unwrap();
    assert_eq!(ask.ask(&workspace, &ticket, SOON).await.unwrap(), UploadRoute::Present);
    assert!(pieces.list(archive.digest.hex()).await.unwrap().is_empty(), "the pieces are taken away");

    let generation = bench.request(Source::Upload(archive.digest.clone()), ProjectOptions::default()).await;
    assert_eq!(bench.packaged(generation).await.spec.entry_script, "score.py");
}

#[tokio::test]
async fn an_upload_that_is_not_what_it_says_is_refused() {
    let bench = Bench::start().await;
    let (ask, workspace) = (&bench.rt.bus, bench.workspace());
    let pieces = ask.pieces(subject::UPLOADS).await.unwrap();
    let promised = digest(b"promised");
    pieces.put(&piece_name(&promised, 0), "sent".into()).await.unwrap();
    let done = UploadDone { digest: promised.clone(), size: 4 };
    let error = until("the packager refuses", SOON, async || match ask.ask(&workspace, &done, SOON).await {
        Err(runtime::bus::AskError::Refused(refusal)) => Some(refusal),
        _ => None,
    })
    .await;
    assert!(error.cause.contains("digest"), "{error}");
    assert_eq!(bench.rt.store.size(&archive_key(&promised)).await.unwrap(), None);

    let no_zip = digest(b"text");
    pieces.put(&piece_name(&no_zip, 0), "text".into()).await.unwrap();
    let error = ask.ask(&workspace, &UploadDone { digest: no_zip, size: 4 }, SOON).await.unwrap_err();
    assert!(error.to_string().contains("no zip"), "{error}");
}
