//! `kaai prune` as a person uses it, on a kaai that others use at the same time.

use std::{
    fs::{self, File},
    time::{Duration, SystemTime},
};

use crate::shared;

#[tokio::test]
async fn what_nobody_needs_is_shown_and_deleted_only_when_that_is_said() {
    let kaai = shared();
    let name = "0123456789abcdef".repeat(4);
    let path = kaai.home().join(format!("store/archives/{name}.zip"));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "nobody's").unwrap();
    let now = SystemTime::UNIX_EPOCH + Duration::from_millis(runtime::clock::now_ms());
    File::options().write(true).open(&path).unwrap().set_modified(now - Duration::from_secs(40 * 86_400)).unwrap();

    let told = kaai.run(&["prune"]).good().stdout;
    assert!(told.contains("archive") && told.contains("01234567") && told.contains("would be deleted"), "{told}");
    assert!(path.exists());
    let key = format!("archives/{name}.zip");
    let told = kaai.json(&["prune", "--older-than", "2w"]);
    assert!(told["objects"].as_array().unwrap().iter().any(|object| object["key"] == key), "{told}");

    let told = kaai.run(&["prune", "--yes"]).good().stdout;
    assert!(told.contains("deleted"), "{told}");
    assert!(!path.exists());
    let wrong = kaai.run(&["prune", "--older-than", "5m"]);
    assert!(wrong.code == 2 && wrong.stderr.contains("30d"), "{wrong:?}");
}
