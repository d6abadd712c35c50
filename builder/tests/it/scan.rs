//! The scan gate: a command that every environment has to pass before anything can run in it.

use std::{os::unix::fs::PermissionsExt, path::Path};

use builder::config::ScanArgs;
use proto::{
    builder::{Lookup, RegistryOutcome},
    failure::Blame,
    id::Workspace,
    query::GetScanReport,
    spec::EnvironmentSpec,
};

use crate::{
    ground::{Ground, Place, VERY_LONG, documents, offline, outcomes, reference},
    harness::environment,
    uv,
};

/// A scanner that refuses lists of packages with something in them, and writes down what it was asked to look at.
fn scanner(folder: &Path, refused: &str) -> String {
    let program = folder.join("scanner");
    let text = format!(
        "#!/bin/sh\necho \"$1\" >> {folder}/asked\nif grep -q '{refused}' \"$2\"; then\n  \
         echo '{{\"matches\":[{{\"vulnerability\":{{\"id\":\"CVE-1\",\"severity\":\"Critical\"}}}}]}}' > \"$3\"; exit 1\nfi\n\
         echo '{{\"matches\":[]}}' > \"$3\"\n",
        folder = folder.display()
    );
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    program.display().to_string()
}

fn asked(folder: &Path) -> Vec<String> {
    let asked = std::fs::read_to_string(folder.join("asked")).unwrap_or_default();
    asked.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_found_by_nobody_before_it_has_passed() {
    let test = "an_image_is_found_by_nobody_before_it_has_passed";
    let Some(ground) = Ground::new(test).await else { return };
    let (folder, address) = (tempfile::tempdir().unwrap(), ground.registry.address());
    // The list of an image that brings its own packages is empty.
    let command = format!("--scan-command={} {{image}} {{sbom}} {{report}}", scanner(folder.path(), "{}"));
    let base_image = Some(format!("{address}/python:3.11"));
    let wanted =
        || EnvironmentSpec { user_managed: true, base_image: base_image.clone(), ..EnvironmentSpec::default() };
    let mut place = Place::new(&ground.uv, &address, &[&command]).await;
    let failure = place.ask(wanted()).await.unwrap_err();
    assert_eq!(
        (failure.blame, failure.cause.as_str()),
        (Blame::Project, "scanner refuses the environment: 1 critical")
    );
    let environment = failure.remedy.split('`').nth(1).and_then(|said| said.strip_prefix("kaai env scan ")).unwrap();
    let query = GetScanReport { environment: environment.to_owned() };
    let report = place.scene.rt.bus.ask(&Workspace::default(), &query, VERY_LONG).await.unwrap();
    assert!(report.text.contains("CVE-1") && !report.cut, "{report:?}");
    assert!(asked(folder.path())[0].starts_with(&format!("{address}/kaai/environments@sha256:")));

    // Another builder that scans nothing finds nothing either: the image has no tag.
    let mut careless = Place::new(&ground.uv, &address, &[]).await;
    let built = careless.ask(wanted()).await.unwrap();
    assert_eq!((built.lookup, &built.scan), (Lookup::Built, &None));
    assert_eq!(outcomes(&built.asked)[0].1, RegistryOutcome::Missing);

    // And now that it is there it is looked at before it is used where a scanner is.
    let mut strict = Place::new(&ground.uv, &address, &[&command]).await;
    let failure = strict.ask(wanted()).await.unwrap_err();
    assert!(failure.cause.contains("refuses the environment"), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_passed_is_scanned_once_and_again_when_the_scanner_is_another() {
    let test = "what_has_passed_is_scanned_once_and_again_when_the_scanner_is_another";
    let Some(ground) = Ground::new(test).await else { return };
    let (folder, address) = (tempfile::tempdir().unwrap(), ground.registry.address());
    let command = format!("--scan-command={} {{image}} {{sbom}} {{report}}", scanner(folder.path(), "nothing"));
    let mut place = Place::new(&ground.uv, &address, &[&command]).await;
    let wanted = || environment(&["joblib==1.5.2"]);
    let built = match place.ask(wanted()).await {
        Err(failure) if offline(test, &failure) => return,
        answer => answer.unwrap(),
    };
    let scan = built.scan.clone().unwrap();
    assert_eq!((scan.scanner(), scan.found.as_str()), ("scanner", "no known weakness"));
    let documents = documents(&reference(&built)).await;
    assert!(documents.iter().any(|one| one["scan"]["found"] == "no known weakness"), "{documents:?}");

    assert_eq!(place.ask(wanted()).await.unwrap().scan.as_ref(), Some(&scan), "it is remembered");
    place.forget(&built).await;
    let found = place.ask(wanted()).await.unwrap();
    assert_eq!((found.lookup, found.scan.as_ref()), (Lookup::Cached, Some(&scan)), "it is attached to the image");
    assert_eq!(asked(folder.path()).len(), 1);

    let other = format!("{command} --stricter");
    let mut place = Place::new(&ground.uv, &address, &[&other]).await;
    let again = place.ask(wanted()).await.unwrap();
    assert!(again.scan.unwrap().command.ends_with("--stricter"));
    assert_eq!(asked(folder.path()).len(), 2);

    // One that only sees lists of packages cannot judge an image that brings its own.
    let listing = format!("--scan-command={} x {{sbom}} {{report}}", scanner(folder.path(), "nothing"));
    let mut place = Place::new(&ground.uv, &address, &[&listing]).await;
    let base_image = Some(format!("{address}/python:3.11"));
    let managed = EnvironmentSpec { user_managed: true, base_image, ..EnvironmentSpec::default() };
    let failure = place.ask(managed).await.unwrap_err();
    assert!(failure.cause.contains("brings packages that no list has"), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_that_others_have_made_counts_for_nothing_here() {
    let test = "a_scan_that_others_have_made_counts_for_nothing_here";
    let (Some(theirs), Some(ours)) = (Ground::new(test).await, Ground::new(test).await) else { return };
    let folder = tempfile::tempdir().unwrap();
    let command = format!("--scan-command={} {{image}} {{sbom}} {{report}}", scanner(folder.path(), "nothing"));
    let base_image = Some(format!("{}/python:3.11", theirs.registry.address()));
    let wanted =
        || EnvironmentSpec { user_managed: true, base_image: base_image.clone(), ..EnvironmentSpec::default() };
    let built = Place::new(&theirs.uv, &theirs.registry.address(), &[&command]).await.ask(wanted()).await.unwrap();
    assert!(built.scan.is_some());
    let global = format!("--global-registry={}/kaai", theirs.registry.address());
    let copied = Place::new(&ours.uv, &ours.registry.address(), &[&global]).await.ask(wanted()).await.unwrap();
    assert_eq!((copied.lookup, &copied.scan), (Lookup::Copied, &None), "nobody scans here yet");
    let found = Place::new(&ours.uv, &ours.registry.address(), &[&command]).await.ask(wanted()).await.unwrap();
    assert_eq!((found.lookup, found.scan.is_some()), (Lookup::Cached, true));
    assert_eq!(asked(folder.path()).len(), 2, "once there, and once here");
}

#[tokio::test(flavor = "multi_thread")]
async fn environments_without_images_are_scanned_by_their_lists() {
    let test = "environments_without_images_are_scanned_by_their_lists";
    let Some(program) = uv::uv(test) else { return };
    let folder = tempfile::tempdir().unwrap();
    let command = format!("{} x {{sbom}} {{report}}", scanner(folder.path(), "pkg:pypi/joblib@"));
    let scan = ScanArgs { scan_command: Some(command), scan_deadline_seconds: 60 }.read(false).unwrap();
    let real = uv::Real::new(program, |config| config.scan = scan).await;
    let passed = match real.ask(uv::any_python(&["threadpoolctl==3.6.0"])).await {
        Err(failure) if uv::offline(test, &failure) => return,
        answer => answer.unwrap(),
    };
    assert_eq!(passed.scan.unwrap().found, "no known weakness");
    let failure = real.ask(uv::any_python(&["joblib==1.5.2"])).await.unwrap_err();
    assert_eq!(failure.cause, "scanner refuses the environment: 1 critical");
}
