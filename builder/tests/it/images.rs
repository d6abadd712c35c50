//! Environments as images: a real registry, a real base image, real packages.

use std::path::PathBuf;

use proto::{
    builder::{Image, Lookup, RegistryOutcome, RegistryRole},
    failure::Blame,
    packager::RegistryLogin,
    spec::EnvironmentSpec,
};
use runtime::testing::{Registry, SmallDisk};

use crate::{
    front::{Fault, Front},
    ground::{Ground, Place, documents, engine, offline, outcomes, pull, reference},
    harness::environment,
};

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_becomes_an_image_that_is_found_again() {
    let test = "an_environment_becomes_an_image_that_is_found_again";
    let Some(ground) = Ground::new(test).await else { return };
    let address = ground.registry.address();
    let mut place = Place::new(&ground.uv, &address, &[]).await;
    let built = match place.ask(environment(&["joblib==1.5.2"])).await {
        Err(failure) if offline(test, &failure) => return,
        answer => answer.unwrap(),
    };
    assert_eq!(built.lookup, Lookup::Built);
    assert_eq!(outcomes(&built.asked), [(RegistryRole::Workspace, RegistryOutcome::Missing)]);
    let image = reference(&built);
    assert_eq!((image.registry(), image.repository()), (address.as_str(), "kaai/environments"));

    let (manifest, config) = pull(&image).await;
    assert_eq!(manifest.layers.len(), 2, "the base image's layer, and one of packages");
    let labels = &config["config"]["Labels"];
    assert_eq!(labels["io.kaai.environment"], built.environment.as_str());
    assert!(labels["org.opencontainers.image.base.name"].as_str().unwrap().starts_with(&format!("{address}/python@")));
    let variables = config["config"]["Env"].as_array().unwrap();
    assert!(variables.iter().any(|pair| pair.as_str().unwrap().starts_with("PATH=/opt/kaai/environment/bin:/usr/")));
    let documents = documents(&image).await;
    assert!(documents.iter().any(|one| one.to_string().contains("pkg:pypi/joblib@1.5.2")), "{documents:?}");
    assert!(documents.iter().any(|one| one["predicateType"] == "https://slsa.dev/provenance/v1"), "{documents:?}");

    let blobs = ground.registry.blobs();
    let again = place.ask(environment(&["joblib==1.5.2"])).await.unwrap();
    assert_eq!((again.lookup, again.asked.len(), &again.image), (Lookup::Cached, 0, &built.image), "it is remembered");
    place.forget(&built).await;
    let found = place.ask(environment(&["joblib==1.5.2"])).await.unwrap();
    assert_eq!((found.lookup, &found.image), (Lookup::Cached, &built.image));
    assert_eq!(outcomes(&found.asked), [(RegistryRole::Workspace, RegistryOutcome::Found)]);
    assert_eq!(ground.registry.blobs(), blobs, "nothing was pushed for that");
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_environments_are_equal_images_byte_for_byte_and_a_global_one_is_copied() {
    let test = "equal_environments_are_equal_images_byte_for_byte_and_a_global_one_is_copied";
    let (Some(one), Some(two)) = (Ground::new(test).await, Ground::new(test).await) else { return };
    let wanted = || environment(&["joblib==1.5.2", "inference-schema"]);
    let built = match Place::new(&one.uv, &one.registry.address(), &[]).await.ask(wanted()).await {
        Err(failure) if offline(test, &failure) => return,
        answer => answer.unwrap(),
    };
    let elsewhere = Place::new(&two.uv, &two.registry.address(), &[]).await.ask(wanted()).await.unwrap();
    assert_eq!(built.environment, elsewhere.environment, "an image is the same wherever it lies");
    // The two differ in where their base image is, which is part of neither layer.
    let (first, second) = (pull(&reference(&built)).await.0, pull(&reference(&elsewhere)).await.0);
    assert_eq!(first.layers[1].digest, second.layers[1].digest, "made twice, in two folders");

    // A third registry has the base image alone; the first is its global one.
    let Some(three) = Ground::new(test).await else { return };
    let global = format!("--global-registry={}/kaai", one.registry.address());
    let mut place = Place::new(&three.uv, &three.registry.address(), &[&global]).await;
    let copied = place.ask(wanted()).await.unwrap();
    assert_eq!(copied.lookup, Lookup::Copied);
    let found = [(RegistryRole::Workspace, RegistryOutcome::Missing), (RegistryRole::Global, RegistryOutcome::Found)];
    assert_eq!(outcomes(&copied.asked), found);
    assert_eq!(reference(&copied).digest(), reference(&built).digest());
    assert_eq!(reference(&copied).registry(), three.registry.address());
    pull(&reference(&copied)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_image_counts_by_what_its_name_stands_for_now() {
    let test = "a_base_image_counts_by_what_its_name_stands_for_now";
    let Some(ground) = Ground::new(test).await else { return };
    let address = ground.registry.address();
    let mut place = Place::new(&ground.uv, &address, &[]).await;
    let managed = |image: &str| EnvironmentSpec {
        user_managed: true,
        base_image: Some(format!("{address}/{image}")),
        ..EnvironmentSpec::default()
    };
    let first = place.ask(managed("python:3.11")).await.unwrap();
    let by_digest = ground.registry.put(&ground.base, "python", "other");
    let same = place.ask(managed(&format!("python@{by_digest}"))).await.unwrap();
    assert_eq!(first.environment, same.environment, "two names of one image");
    let described = place.describe(managed("python:3.11")).await.unwrap();
    assert_eq!(described.hash, first.environment, "the builder says beforehand what it will be");
    assert!(described.facts.iter().any(|fact| fact.path == "base image" && fact.value == by_digest), "{described:?}");
    let refusal = place.describe(managed("nothing:1")).await.unwrap_err();
    assert!(refusal.cause.contains("nothing:1 does not exist"), "{refusal:?}");
    let Image::Container { interpreter, python, .. } = &first.image else { panic!() };
    assert_eq!((interpreter.as_str(), python), ("python", &None), "its packages are its own");

    let moved = tempfile::tempdir().unwrap();
    changed(&ground.base, moved.path());
    ground.registry.put(moved.path(), "python", "3.11");
    let other = place.ask(managed("python:3.11")).await.unwrap();
    assert_ne!(first.environment, other.environment, "the name has moved on to another image");
}

/// The same image with another configuration.
fn changed(layout: &std::path::Path, into: &std::path::Path) {
    let blob = |digest: &str| layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
    let json = |path: PathBuf| serde_json::from_slice::<serde_json::Value>(&std::fs::read(path).unwrap()).unwrap();
    let blobs = into.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |value: &serde_json::Value| {
        let bytes = serde_json::to_vec(value).unwrap();
        let digest = proto::id::Digest::from_sha256(
            sha2::Digest::finalize(sha2::Digest::chain_update(<sha2::Sha256 as sha2::Digest>::new(), &bytes)).into(),
        );
        std::fs::write(blobs.join(digest.hex()), &bytes).unwrap();
        (digest.to_string(), bytes.len())
    };
    let mut index = json(layout.join("index.json"));
    let mut manifest = json(blob(index["manifests"][0]["digest"].as_str().unwrap()));
    let mut config = json(blob(manifest["config"]["digest"].as_str().unwrap()));
    config["config"]["Env"][0] = "PATH=/usr/bin".into();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap().to_owned();
    std::fs::copy(blob(&layer), blobs.join(layer.trim_start_matches("sha256:"))).unwrap();
    let (digest, size) = put(&config);
    manifest["config"]["digest"] = digest.into();
    manifest["config"]["size"] = size.into();
    index["manifests"][0]["digest"] = put(&manifest).0.into();
    std::fs::write(into.join("index.json"), index.to_string()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_registry_lacks_or_refuses_is_said_in_words() {
    let test = "what_a_registry_lacks_or_refuses_is_said_in_words";
    let Some(ground) = Ground::new(test).await else { return };
    let address = ground.registry.address();
    let mut place = Place::new(&ground.uv, &address, &[]).await;
    let on = |image: &str| EnvironmentSpec { base_image: Some(image.to_owned()), ..environment(&["joblib"]) };
    let failure = place.ask(on(&format!("{address}/nothing:1"))).await.unwrap_err();
    assert_eq!(failure.blame, Blame::Project);
    assert!(failure.cause.contains(&format!("the base image {address}/nothing:1 does not exist")), "{failure:?}");
    let mut other = environment(&["joblib"]);
    other.conda.dependencies = vec!["python=3.8".to_owned()];
    let failure = place.ask(other.clone()).await.unwrap_err();
    assert!(failure.cause.contains("there is no base image for Python 3.8"), "{failure:?}");
    assert!(failure.remedy.contains("(3.11)"), "{failure:?}");
    other.base_image = Some(format!("{address}/python:3.11"));
    let failure = place.ask(other).await.unwrap_err();
    assert!(failure.cause.contains("has Python 3.11, and Python 3.8 is wanted"), "{failure:?}");
    let failure = place.ask(EnvironmentSpec { docker_steps: Some("RUN true".to_owned()), ..environment(&["joblib"]) });
    assert!(failure.await.unwrap_err().cause.contains("docker steps"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_falters_is_tried_again_and_one_that_is_down_is_said_so() {
    let test = "a_registry_that_falters_is_tried_again_and_one_that_is_down_is_said_so";
    let Some(ground) = Ground::new(test).await else { return };
    let faults = [Fault::Status(429), Fault::Status(500), Fault::Cut];
    let front = Front::start(&ground.registry.address(), &faults).await;
    let mut place = Place::new(&ground.uv, &front.address, &[]).await;
    let managed = || EnvironmentSpec {
        user_managed: true,
        base_image: Some(format!("{}/python:3.11", front.address)),
        ..EnvironmentSpec::default()
    };
    place.ask(managed()).await.unwrap();
    assert_eq!(front.left(), 0, "each fault was met");
    drop(ground.registry);
    let failure = place.ask(managed()).await.unwrap_err();
    assert_eq!(failure.blame, Blame::Platform);
    assert!(failure.cause.contains(&format!("the registry {} is not available", front.address)), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_blob_is_found_out_before_it_is_in_an_image() {
    let test = "a_damaged_blob_is_found_out_before_it_is_in_an_image";
    let Some(ground) = Ground::new(test).await else { return };
    let Some(other) = Registry::start().await else { return };
    // The base image is in another registry, so that its blobs have to be copied.
    let manifest = other.put(&ground.base, "python", "3.11");
    let manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(other.blob(&manifest)).unwrap()).unwrap();
    let layer = other.blob(manifest["layers"][0]["digest"].as_str().unwrap());
    let mut bytes = std::fs::read(&layer).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&layer, bytes).unwrap();
    // Where the base image's layer is there already it is not copied.
    let Some(fresh) = Registry::start().await else { return };
    let mut place = Place::new(&ground.uv, &fresh.address(), &[]).await;
    let managed = EnvironmentSpec {
        user_managed: true,
        base_image: Some(format!("{}/python:3.11", other.address())),
        ..EnvironmentSpec::default()
    };
    let failure = place.ask(managed).await.unwrap_err();
    assert!(failure.cause.contains("damaged"), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_used_where_there_is_one_and_asked_for_where_there_is_none() {
    let test = "a_login_is_used_where_there_is_one_and_asked_for_where_there_is_none";
    let Some(ground) = Ground::new(test).await else { return };
    // The password is "hunter2".
    let line = "kaai:$2y$05$TNutFtRPt6/Qlyx1exz4iuAYpT4mrf3235c3Q1v1YjikRWGC9GvaG";
    let Some(locked) = Registry::with_login(line).await else { return };
    locked.put(&ground.base, "python", "3.11");
    let managed = || EnvironmentSpec {
        user_managed: true,
        base_image: Some(format!("{}/python:3.11", locked.address())),
        ..EnvironmentSpec::default()
    };
    let failure = Place::new(&ground.uv, &locked.address(), &[]).await.ask(managed()).await.unwrap_err();
    assert!(failure.cause.contains("refuses access") && failure.remedy.contains("--registry-login"), "{failure:?}");
    let folder = tempfile::tempdir().unwrap();
    let login = folder.path().join("config.json");
    let text = serde_json::json!({ "auths": { locked.address(): { "username": "kaai", "password": "hunter2" } } });
    std::fs::write(&login, text.to_string()).unwrap();
    let option = format!("--registry-login={}", login.display());
    let built = Place::new(&ground.uv, &locked.address(), &[&option]).await.ask(managed()).await.unwrap();
    assert_eq!(built.lookup, Lookup::Built);

    // A place without a login there, and a user who brings one for the base image.
    let mut place = Place::new(&ground.uv, &ground.registry.address(), &[]).await;
    let login = |password: &str| RegistryLogin {
        host: locked.address(),
        username: "kaai".to_owned(),
        password: password.to_owned(),
    };
    let failure = place.ask_with(managed(), &login("hidden-word")).await.unwrap_err();
    assert!(failure.cause.contains("refuses access") && failure.remedy.contains("baseImageRegistry"), "{failure:?}");
    let built = place.ask_with(managed(), &login("hunter2")).await.unwrap();
    assert_eq!(reference(&built).registry(), ground.registry.address());
    let failure = place.ask(managed()).await.unwrap_err();
    assert!(failure.cause.contains("refuses access"), "a login of one is no login of another: {failure:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_in_words_and_is_no_fault_of_the_project() {
    let test = "a_full_disk_is_said_in_words_and_is_no_fault_of_the_project";
    let Some(ground) = Ground::new(test).await else { return };
    let mut place = Place::new(&ground.uv, &ground.registry.address(), &[]).await;
    // An environment has some 60 MB, the base image's list of files less than one.
    let images = place.scene.nats.folder().join("environments/images");
    let Some(_small) = SmallDisk::mount(test, images, 8 << 10) else { return };
    let failure = place.ask(environment(&["joblib==1.5.2"])).await.unwrap_err();
    if offline(test, &failure) {
        return;
    }
    assert_eq!(failure.blame, Blame::Platform, "{failure:?}");
    assert!(failure.cause.contains("no space is left"), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_steps_are_run_once_for_all_environments_with_them() {
    let test = "docker_steps_are_run_once_for_all_environments_with_them";
    let (Some(ground), Some(engine)) = (Ground::new(test).await, engine(test)) else { return };
    let address = ground.registry.address();
    let mut place = Place::new(&ground.uv, &address, &[&format!("--build-engine={engine}")]).await;
    // The base image has no shell, and each run of this test has a step of its own, so that no engine remembers it.
    let mark = address.replace([':', '.'], "-");
    let python = |code: &str| format!("RUN [\"/usr/bin/python3\", \"-c\", \"{code}\"]");
    let steps = format!(
        "{}\nENV MARK={mark}",
        python(&format!("print('step {mark}'); open('/etc/mark', 'w').write('{mark}')"))
    );
    let with = |pip: &[&str]| EnvironmentSpec { docker_steps: Some(steps.clone()), ..environment(pip) };
    let built = match place.ask(with(&["joblib==1.5.2"])).await {
        Err(failure) if offline(test, &failure) => return,
        answer => answer.unwrap(),
    };
    let (manifest, config) = pull(&reference(&built)).await;
    assert_eq!(manifest.layers.len(), 3, "the base image's layer, the step's, and one of packages");
    let variables = config["config"]["Env"].to_string();
    assert!(
        variables.contains(&format!("MARK={mark}")) && variables.contains("/opt/kaai/environment/bin"),
        "{variables}"
    );
    assert!(manifest.layers.iter().all(|layer| layer.media_type.contains("vnd.oci")), "{manifest:?}");
    let log = place.log(&built).await;
    assert!(log.contains(&format!("step {mark}")) && !log.contains("--mount"), "{log}");

    let other = place.ask(with(&["joblib==1.5.1"])).await.unwrap();
    assert_ne!(other.environment, built.environment);
    let again = pull(&reference(&other)).await.0;
    assert_eq!(again.layers[1].digest, manifest.layers[1].digest);
    assert!(!place.log(&other).await.contains("step "), "nothing was run for it");

    let dockerfile = format!("FROM {address}/python:3.11\n{}", python(&format!("open('/etc/{mark}', 'w')")));
    let alone = EnvironmentSpec { dockerfile: Some(dockerfile), ..EnvironmentSpec::default() };
    let own = place.ask(alone).await.unwrap();
    let Image::Container { interpreter, .. } = &own.image else { panic!() };
    assert_eq!((interpreter.as_str(), pull(&reference(&own)).await.0.layers.len()), ("python", 2));

    let steps = Some(python("import sys; print('the archive is gone'); sys.exit(9)"));
    let failure = place.ask(EnvironmentSpec { docker_steps: steps, ..environment(&["joblib"]) }).await.unwrap_err();
    assert_eq!(failure.blame, Blame::Project);
    assert!(failure.cause.contains("a docker step failed") && failure.cause.contains("exit code: 9"), "{failure:?}");
    assert_eq!(failure.details.last().unwrap(), "the archive is gone");
}
