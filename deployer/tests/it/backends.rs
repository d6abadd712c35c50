//! Every backend does what a backend must.

use deployer::{
    conformance::{Samples, conformance},
    fake::FakeBackend,
};
use proto::deployer::Release;

use crate::{
    dock::Dock,
    place::{EXITS, GOOD, HANGS, Place, RAISES},
};

#[tokio::test]
async fn the_fake_backend_conforms() {
    let release = |generation: u64, script: &str| -> Release {
        let release = serde_json::json!({
            "generation": generation,
            "archive": format!("sha256:{}", "0".repeat(64)),
            "environment": "0".repeat(64),
            "image": { "virtualEnvironment": { "path": "/nowhere", "python": "3.11.7" } },
            "spec": { "entryScript": script },
        });
        serde_json::from_value(release).unwrap()
    };
    let samples = Samples {
        good: release(1, "score.py"),
        raises: release(2, "raises.py"),
        exits: release(3, "exits.py"),
        hangs: release(4, "hangs.py"),
    };
    conformance(&FakeBackend::default(), &samples).await;
}

#[tokio::test]
async fn the_process_backend_conforms() {
    let Some(place) = Place::new("the_process_backend_conforms") else { return };
    conformance(&place.backend().await, &samples(&place).await).await;
}

#[tokio::test]
async fn the_docker_backend_conforms() {
    let Some(dock) = Dock::new("the_docker_backend_conforms").await else { return };
    conformance(&dock.backend().await, &samples(&dock.place).await).await;
}

async fn samples(place: &Place) -> Samples {
    Samples {
        good: place.release(1, GOOD).await,
        raises: place.release(2, RAISES).await,
        exits: place.release(3, EXITS).await,
        hangs: place.release(4, HANGS).await,
    }
}
