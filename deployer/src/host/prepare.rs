//! What a replica needs before its process is started: its environment, its files, its launcher.

use std::path::{Component, Path};

use proto::{
    deployer::Release,
    failure::{Failure, Stage},
};
use tokio_util::sync::CancellationToken;

use super::{
    Place,
    archives::disk,
    engine::{Engine, Environment},
    kept::Folder,
    variables::{self, entry_script},
};
use crate::backend::Order;

/// The program that serves a script, run by the interpreter of the script's own environment.
const LAUNCHER: &str = include_str!("launch.py");

/// Fetches and unpacks all that a release needs into a replica's folder; ends soon once it is given up, and writes no more then.
///
/// # Errors
///
/// Fails in words for the user, and when it is given up.
pub(super) async fn prepare(
    place: &Place<impl Engine>,
    folder: &Folder,
    order: &Order,
    given_up: &CancellationToken,
) -> Result<Environment, Failure> {
    let (release, spec) = (&order.release, &order.release.spec);
    let environment = tokio::select! {
        environment = place.engine.environment(&release.image) => environment?,
        () = given_up.cancelled() => return Err(stopped()),
    };
    check_paths(release)?;
    let app_root = folder.app_root();
    std::fs::write(folder.launcher(), LAUNCHER).map_err(|error| disk(&folder.launcher(), &error))?;
    let project = match &spec.source_directory {
        Some(name) => app_root.join(name),
        None => app_root.clone(),
    };
    place.archives.unpack(&release.archive, &project, "the project", given_up).await?;
    place.engine.bring_models(folder, order, given_up).await?;
    if !app_root.join(entry_script(spec)).is_file() {
        let script = &spec.entry_script;
        return Err(Failure::project(
            Stage::Starting,
            format!("the project has no {script}"),
            format!("put {script} there, or name another entryScript in inferenceconfig.json"),
        ));
    }
    Ok(environment)
}

fn stopped() -> Failure {
    Failure::platform(Stage::Starting, "the start was given up", "deploy again")
}

/// Refuses names by which a release would reach beyond its folder.
fn check_paths(release: &Release) -> Result<(), Failure> {
    let inside = |path: &str| {
        let mut parts = Path::new(path).components();
        !path.is_empty() && parts.all(|part| matches!(part, Component::Normal(_)))
    };
    let spec = &release.spec;
    let folder_is_name = spec
        .source_directory
        .as_deref()
        .is_none_or(|name| inside(name) && Path::new(name).components().count() == 1 && name != variables::MODELS);
    if folder_is_name && inside(&spec.entry_script) {
        return Ok(());
    }
    Err(Failure::project(
        Stage::Starting,
        "the entry script or the source directory is no path within the project",
        "name them relative to the project's folder, without `..`",
    ))
}

#[cfg(test)]
mod tests {
    use proto::{
        builder::Image,
        id::{Digest, EnvironmentHash, Generation},
        spec::ServiceSpec,
    };

    use super::*;

    #[test]
    fn a_path_that_leaves_the_project_is_refused() {
        let release = |folder: Option<&str>, script: &str| Release {
            generation: Generation(1),
            archive: Digest::from_sha256([0; 32]),
            environment: EnvironmentHash::from_sha256([0; 32]),
            image: Image::VirtualEnvironment { path: "/e".into(), python: "3.11.7".into() },
            lookup: None,
            asked: Vec::new(),
            scan: None,
            spec: ServiceSpec {
                source_directory: folder.map(str::to_owned),
                ..serde_json::from_value(serde_json::json!({ "entryScript": script })).unwrap()
            },
        };
        for (folder, script) in [(None, "score.py"), (Some("churn"), "src/score.py")] {
            assert!(check_paths(&release(folder, script)).is_ok(), "{folder:?} {script}");
        }
        for (folder, script) in [
            (None, "../score.py"),
            (None, "/etc/score.py"),
            (None, ""),
            (Some(".."), "score.py"),
            (Some("a/b"), "score.py"),
            (Some(""), "score.py"),
            (Some("azureml-models"), "score.py"),
        ] {
            assert!(check_paths(&release(folder, script)).is_err(), "{folder:?} {script}");
        }
    }
}
