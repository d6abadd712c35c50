//! The packager on a real bus: requests in, archives and specifications out.

use std::{fs, os::unix::fs::MetadataExt, path::Path, process::Command, time::Duration};

use packager::upload::{piece_count, piece_name};
use proto::{
    deployer::DeploymentFailed,
    event::Event,
    id::{Digest, Generation, ServiceName, Workspace},
    packager::{DeploymentRequested, GitSource, ProjectOptions, ProjectPackaged, RegistryLogin, Source},
    query::{Keys, ListModels, UploadDone, UploadRoute, UploadTicket},
    spec::{ModelRef, ServiceSpec},
    subject,
};
use runtime::{
    Runtime,
    bus::{History, Past},
    sealing::KeyPair,
    store::archive_key,
    testing::{Nats, until},
};
use sha2::{Digest as _, Sha256};

pub(crate) const SOON: Duration = Duration::from_secs(30);

pub(crate) struct Bench {
    pub(crate) nats: Nats,
    pub(crate) rt: Runtime,
    service: ServiceName,
}

impl Bench {
    pub(crate) async fn start() -> Self {
        Self::start_on(Nats::start().await).await
    }

    /// One whose folders may be there already.
    pub(crate) async fn start_on(nats: Nats) -> Self {
        let rt = nats.runtime("packager").await;
        let bench = Self { nats, rt, service: "ridge".parse().unwrap() };
        bench.run(bench.rt.clone());
        bench
    }

    fn run(&self, rt: Runtime) {
        let config = packager::Config { work: self.nats.folder().join("work"), ..packager::Config::default() };
        self.rt.tasks.spawn(async move { packager::run(config, rt).await.unwrap() });
    }

    pub(crate) fn workspace(&self) -> Workspace {
        Workspace::default()
    }

    /// A client of the bus alone, for what no component does.
    async fn client(&self) -> async_nats::Client {
        async_nats::connect(self.nats.address()).await.unwrap()
    }

    pub(crate) fn project(&self) -> String {
        let folder = self.nats.folder().join("ridge");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("score.py"), "def init():\n    pass\n\ndef run(data):\n    return data\n").unwrap();
        fs::write(folder.join("environment.yml"), "dependencies:\n  - python=3.11\n").unwrap();
        folder.display().to_string()
    }

    pub(crate) async fn request(&self, source: Source, options: ProjectOptions) -> u64 {
        self.ask_for(DeploymentRequested {
            source,
            spec: None,
            options,
            sealed_keys: None,
            sealed_login: None,
            extra: Default::default(),
        })
        .await
    }

    async fn with_spec(&self, source: Source, spec: ServiceSpec) -> u64 {
        let (options, extra) = (ProjectOptions::default(), Default::default());
        self.ask_for(DeploymentRequested {
            source,
            spec: Some(spec),
            options,
            sealed_keys: None,
            sealed_login: None,
            extra,
        })
        .await
    }

    async fn ask_for(&self, request: DeploymentRequested) -> u64 {
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

    pub(crate) async fn failed(&self, from: u64) -> DeploymentFailed {
        let past = self.outcome(from).await;
        assert_eq!(past.event_type, DeploymentFailed::TYPE, "{:?}", past.body);
        serde_json::from_slice(&past.body).unwrap()
    }

    /// How many requests the packager has been handed and has settled, from the consumer that it works from.
    async fn settled(&self) -> Option<u64> {
        let stream = async_nats::jetstream::new(self.client().await).get_stream(subject::EVENTS).await.ok()?;
        let info = stream.consumer_info("packager").await.ok()?;
        (info.num_ack_pending == 0 && info.num_pending == 0).then_some(info.ack_floor.stream_sequence)
    }
}

pub(crate) fn digest(bytes: &[u8]) -> Digest {
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

    let path = bench.nats.folder().join("store").join(archive_key(&packaged.archive.digest));
    let written = fs::metadata(&path).unwrap();

    let again = bench.request(Source::Folder(bench.project()), ProjectOptions::default()).await;
    let repeated = bench.packaged(again).await;
    assert_eq!(repeated.archive, packaged.archive, "same content, same digest");
    let there = fs::metadata(&path).unwrap();
    assert_eq!((there.ino(), there.mtime_nsec()), (written.ino(), written.mtime_nsec()), "it is not written again");
    assert_eq!(bench.rt.store.list("archives").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_request_that_is_delivered_twice_is_packaged_once() {
    let bench = Bench::start().await;
    let generation = bench.request(Source::Folder(bench.project()), ProjectOptions::default()).await;
    let first = bench.packaged(generation).await;
    until("the request is settled", SOON, async || bench.settled().await.filter(|floor| *floor >= generation)).await;

    // As if the packager had been killed before it could acknowledge: everything is handed out once more.
    let context = async_nats::jetstream::new(bench.client().await);
    context.get_stream(subject::EVENTS).await.unwrap().delete_consumer("packager").await.unwrap();
    bench.run(bench.nats.runtime("packager").await);
    until("it is settled again", SOON, async || bench.settled().await.filter(|floor| *floor >= generation)).await;

    let last = bench.request(Source::Folder(bench.project()), ProjectOptions::default()).await;
    let mut history: History = bench.rt.bus.history(&bench.workspace(), 1).await.unwrap();
    let mut generations = Vec::new();
    while generations.last() != Some(&Generation(last)) {
        let past = tokio::time::timeout(SOON, history.next()).await.unwrap().unwrap();
        if past.event_type == ProjectPackaged::TYPE {
            generations.push(serde_json::from_slice::<ProjectPackaged>(&past.body).unwrap().generation);
        }
    }
    assert_eq!(generations, [first.generation, Generation(last)]);
}

#[tokio::test]
async fn what_is_no_request_goes_to_the_dead_letters_with_its_reason() {
    let bench = Bench::start().await;
    let client = bench.client().await;
    let subject = subject::event::<DeploymentRequested>(&bench.workspace(), &bench.service);
    for body in ["no json", r#"{"source": {"floppy": "a:"}}"#] {
        client.publish(subject.clone(), body.into()).await.unwrap();
        client.flush().await.unwrap();
        let letter = until("the dead letter is kept", SOON, async || {
            let letters = bench.rt.bus.dead_letters(10).await.ok()?;
            letters.into_iter().find(|letter| letter.body == body.as_bytes())
        })
        .await;
        assert!(letter.reason.contains("no deployment.requested"), "{}", letter.reason);
    }
}

#[tokio::test]
async fn a_folder_that_is_not_there_fails_in_words() {
    let bench = Bench::start().await;
    let generation = bench.request(Source::Folder("/no/such/folder".into()), ProjectOptions::default()).await;
    let failed = bench.failed(generation).await;
    assert!(failed.failure.cause.contains("/no/such/folder"), "{failed:?}");
    let past = bench.outcome(generation).await;
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

    let archive = |version: usize| listed[0].versions[version - 1].archive.digest.clone();
    let spec = |version: u32, digest: Digest| ServiceSpec {
        models: vec![ModelRef { name: "weights".parse().unwrap(), version, digest }],
        ..serde_json::from_str(r#"{"entryScript": "score.py", "sourceDirectory": "ridge"}"#).unwrap()
    };
    let generation = bench.with_spec(Source::Folder(folder.clone()), spec(1, archive(1))).await;
    assert_eq!(bench.packaged(generation).await.spec.models[0].version, 1);
    for (wrong, word) in [(spec(3, archive(2)), "no model weights:3"), (spec(1, archive(2)), "not the ones")] {
        let generation = bench.with_spec(Source::Folder(folder.clone()), wrong).await;
        let failure = bench.failed(generation).await.failure;
        assert!(failure.cause.contains(word), "{failure:?}");
    }
}

#[tokio::test]
async fn the_keys_of_a_project_are_read_by_the_deployer_alone() {
    let bench = Bench::start().await;
    let folder = bench.project();
    let config =
        r#"{"computeType": "aks", "keys": {"primaryKey": "plain-primary", "secondaryKey": "plain-secondary"}}"#;
    fs::write(Path::new(&folder).join("deploymentconfig.json"), config).unwrap();
    let generation = bench.request(Source::Folder(folder), ProjectOptions::default()).await;
    // The deployer comes later than the request.
    let deployer = KeyPair::open(&bench.nats.folder().join("deployer.seed")).unwrap();
    let facts = bench.rt.bus.bucket::<String>(subject::FACTS).await.unwrap();
    facts.put(subject::DEPLOYER_KEY, &deployer.public_key()).await.unwrap();

    let past = bench.outcome(generation).await;
    assert!(!String::from_utf8_lossy(&past.body).contains("plain-"), "a key in the clear");
    let packaged: ProjectPackaged = serde_json::from_slice(&past.body).unwrap();
    let keys: Keys = deployer.unseal(&packaged.sealed_keys.unwrap()).unwrap();
    assert_eq!((keys.primary.as_str(), keys.secondary.as_str()), ("plain-primary", "plain-secondary"));
    assert!(packaged.warnings.iter().any(|warning| warning.contains("holds keys")), "{:?}", packaged.warnings);
}

#[tokio::test]
async fn the_login_of_a_base_image_is_read_by_the_builder_alone() {
    let bench = Bench::start().await;
    let folder = bench.project();
    let config = r#"{"entryScript": "score.py", "sourceDirectory": ".", "baseImage": "base:1",
        "baseImageRegistry": {"address": "r.example.com", "username": "u", "password": "plain-password"}}"#;
    fs::write(Path::new(&folder).join("inferenceconfig.json"), config).unwrap();
    let builder = KeyPair::open(&bench.nats.folder().join("builder.seed")).unwrap();
    let facts = bench.rt.bus.bucket::<String>(subject::FACTS).await.unwrap();
    facts.put(subject::BUILDER_KEY, &builder.public_key()).await.unwrap();
    let generation = bench.request(Source::Folder(folder), ProjectOptions::default()).await;

    let past = bench.outcome(generation).await;
    assert!(!String::from_utf8_lossy(&past.body).contains("plain-"), "a password in the clear");
    let packaged: ProjectPackaged = serde_json::from_slice(&past.body).unwrap();
    assert_eq!(packaged.spec.environment.base_image.as_deref(), Some("r.example.com/base:1"));
    let login: RegistryLogin = builder.unseal(&packaged.sealed_login.unwrap()).unwrap();
    assert_eq!((login.host.as_str(), login.password.as_str()), ("r.example.com", "plain-password"));
    assert!(packaged.warnings.iter().any(|warning| warning.contains("holds a login")), "{:?}", packaged.warnings);
}

/// Runs git in a folder, as nobody in particular.
pub(crate) fn git(folder: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main"])
        .args(args)
        .current_dir(folder)
        .output()
        .expect("git must be installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn a_revision_in_a_git_repository_is_a_source() {
    let bench = Bench::start().await;
    let repository = bench.nats.folder().join("fraud.git");
    fs::create_dir_all(repository.join("src")).unwrap();
    git(&repository, &["init", "-q"]);
    let script = "def init(): pass\ndef run(data): return 1\n";
    fs::write(repository.join("src/score.py"), script).unwrap();
    git(&repository, &["add", "-A"]);
    git(&repository, &["commit", "-q", "-m", "one"]);
    let first = git(&repository, &["rev-parse", "HEAD"]);
    fs::write(repository.join("src/score.py"), script.replace('1', "2")).unwrap();
    git(&repository, &["commit", "-q", "-a", "-m", "two"]);

    let source = |revision: &str, folder: Option<&str>| {
        let address = format!("file://{}", repository.display());
        Source::Git(GitSource { address, revision: revision.to_owned(), folder: folder.map(str::to_owned) })
    };
    let mut digests = Vec::new();
    for (revision, folder, directory) in [("main", Some("src"), "src"), (first.as_str(), Some("src"), "src")] {
        let generation = bench.request(source(revision, folder), ProjectOptions::default()).await;
        let packaged = bench.packaged(generation).await;
        assert_eq!(packaged.spec.source_directory.as_deref(), Some(directory));
        digests.push(packaged.archive.digest);
    }
    assert_ne!(digests[0], digests[1], "each revision has its own content");
    let options = ProjectOptions { entry_script: Some("src/score.py".into()), ..ProjectOptions::default() };
    let generation = bench.request(source("main", None), options).await;
    assert_eq!(bench.packaged(generation).await.spec.source_directory.as_deref(), Some("fraud"));
    for (wrong, word) in [(source("no-such-branch", None), "git fetch"), (source("main", Some("nowhere")), "no folder")]
    {
        let generation = bench.request(wrong, ProjectOptions::default()).await;
        let failure = bench.failed(generation).await.failure;
        assert!(failure.cause.contains(word), "{failure:?}");
    }
}

#[tokio::test]
async fn what_was_sent_cannot_reach_the_packagers_own_files() {
    let bench = Bench::start().await;
    let repository = bench.nats.folder().join("hostile");
    fs::create_dir_all(&repository).unwrap();
    fs::write(bench.nats.folder().join("hidden.yml"), "word: hidden-word").unwrap();
    git(&repository, &["init", "-q"]);
    let hidden = bench.nats.folder().join("hidden.yml");
    std::os::unix::fs::symlink(&hidden, repository.join("inferenceconfig.json")).unwrap();
    git(&repository, &["add", "-A"]);
    git(&repository, &["commit", "-q", "-m", "one"]);
    let address = format!("file://{}", repository.display());
    let source = Source::Git(GitSource { address, revision: "main".into(), folder: None });
    let generation = bench.request(source, ProjectOptions::default()).await;
    let failure = bench.failed(generation).await.failure;
    assert!(failure.cause.contains("outside the project"), "{failure:?}");
    assert!(!format!("{failure:?}").contains("hidden-word"));
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

    let spec = |script: &str| -> ServiceSpec {
        serde_json::from_str(&format!(r#"{{"entryScript": "{script}", "sourceDirectory": "big"}}"#)).unwrap()
    };
    let generation = bench.with_spec(Source::Upload(archive.digest.clone()), spec("score.py")).await;
    let packaged = bench.packaged(generation).await;
    assert_eq!(packaged.archive, archive, "what was sent is the archive");
    let generation = bench.with_spec(Source::Upload(archive.digest.clone()), spec("other.py")).await;
    assert!(bench.failed(generation).await.failure.cause.contains("other.py is not in what was sent"));
    let generation = bench.with_spec(Source::Upload(digest(b"never sent")), spec("score.py")).await;
    assert!(bench.failed(generation).await.failure.cause.contains("was not sent"));
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
