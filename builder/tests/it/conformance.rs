//! Every maker runs the same checks.

use std::{path::Path, sync::Arc};

use builder::{
    Args, Config, Images,
    conformance::{Examples, conformance},
    environment::Definition,
    maker::Maker,
};
use clap::Parser;
use proto::{failure::Blame, spec::EnvironmentSpec};
use runtime::{store::Store, testing::skip};

use crate::{
    conda::{Conda, with_conda},
    ground::{Ground, engine},
    harness::{Pretender, World, environment},
    uv,
};

fn read(spec: EnvironmentSpec) -> Definition {
    Definition::read(&spec).unwrap()
}

fn examples(of: impl Fn(&[&str]) -> EnvironmentSpec) -> Examples {
    Examples {
        good: read(of(&["threadpoolctl==3.6.0"])),
        other: read(of(&["joblib==1.5.2"])),
        impossible: read(of(&["threadpoolctl==0.0.0.1"])),
    }
}

/// A configuration of a builder, with a folder and a store of its own.
fn config(folder: &Path, more: &[String]) -> (Config, Store) {
    let mut words =
        vec!["kaai-builder".to_owned(), format!("--environments={}", folder.join("environments").display())];
    words.extend(more.iter().cloned());
    let store = Store::open(folder.join("store").as_path()).unwrap();
    (Config::try_from(Args::parse_from(words)).unwrap(), store)
}

/// Whether this machine has an index that packages can be had from.
async fn online<M: Maker>(test: &str, maker: &M, examples: &Examples, folder: &Path) -> bool {
    let planned = maker.plan(examples.impossible.clone(), None).await.unwrap();
    let log = builder::build_log::BuildLog::new(folder.join("probe"));
    let failure = maker.make(&planned.hash, &planned.plan, &log).await.unwrap_err();
    let offline = failure.blame == Blame::Platform && failure.cause.contains("cannot be reached");
    if offline {
        skip(test, &failure.cause);
    }
    !offline
}

#[tokio::test]
async fn one_that_pretends_does() {
    let folder = tempfile::tempdir().unwrap();
    let pretender = Pretender(Arc::new(World { impossible: Some("0.0.0.1"), ..World::default() }));
    conformance(&pretender, examples(environment), folder.path()).await;
}

#[tokio::test]
async fn one_of_virtual_environments_does() {
    let test = "one_of_virtual_environments_does";
    let Some(program) = uv::uv(test) else { return };
    let folder = tempfile::tempdir().unwrap();
    let (config, store) = config(folder.path(), &[format!("--uv={}", program.display())]);
    let (maker, examples) = (config.venv(&store), examples(uv::any_python));
    if online(test, &maker, &examples, folder.path()).await {
        conformance(&maker, examples, folder.path()).await;
    }
}

#[tokio::test]
async fn one_of_conda_packages_does() {
    let test = "one_of_conda_packages_does";
    let (Some(program), Some(conda)) = (uv::uv(test), Conda::new(test)) else { return };
    let folder = tempfile::tempdir().unwrap();
    let (config, store) = config(folder.path(), &[format!("--uv={}", program.display())]);
    let maker = Config { conda: conda.settings(), ..config }.venv(&store);
    let examples = Examples {
        good: read(with_conda(&["kaai-arrays=1.0"], &["threadpoolctl==3.6.0"])),
        other: read(with_conda(&["kaai-arrays=2.0"], &["threadpoolctl==3.6.0"])),
        impossible: read(with_conda(&["kaai-arrays=1.0"], &["threadpoolctl==0.0.0.1"])),
    };
    if online(test, &maker, &examples, folder.path()).await {
        conformance(&maker, examples, folder.path()).await;
    }
}

/// A maker of images on a registry of its own.
fn images(ground: &Ground, folder: &Path, more: &[String]) -> Images {
    let address = ground.registry.address();
    let mut words = vec![
        format!("--uv={}", ground.uv.display()),
        format!("--registry={address}/kaai"),
        format!("--base-image=3.11={address}/python:3.11"),
    ];
    words.extend(more.iter().cloned());
    let (config, store) = config(folder, &words);
    config.images(&store).unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_assembles_images_does() {
    let test = "one_that_assembles_images_does";
    let Some(ground) = Ground::new(test).await else { return };
    let folder = tempfile::tempdir().unwrap();
    let (maker, examples) = (images(&ground, folder.path(), &[]), examples(environment));
    if online(test, &maker, &examples, folder.path()).await {
        conformance(&maker, examples, folder.path()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_with_docker_steps_does() {
    let test = "one_with_docker_steps_does";
    let (Some(ground), Some(engine)) = (Ground::new(test).await, engine(test)) else { return };
    let folder = tempfile::tempdir().unwrap();
    let maker = images(&ground, folder.path(), &[format!("--build-engine={engine}")]);
    // Each run has steps of its own, so that no engine remembers them.
    let address = ground.registry.address();
    let step = |code: &str| {
        let dockerfile = format!("FROM {address}/python:3.11\nRUN [\"/usr/bin/python3\", \"-c\", \"{code}\"]");
        read(EnvironmentSpec { dockerfile: Some(dockerfile), ..EnvironmentSpec::default() })
    };
    let examples = Examples {
        good: step(&format!("print('good {address}')")),
        other: step(&format!("print('other {address}')")),
        impossible: step("import sys; sys.exit(9)"),
    };
    conformance(&maker, examples, folder.path()).await;
}
