//! The folders of environments: which are whole, which are left over, and what lies in one to say so.
//!
//! It knows files and disks. It does not know how an environment is filled.

use std::path::{Path, PathBuf};

use proto::{builder::Scan, id::EnvironmentHash};
use serde::{Deserialize, Serialize};

use crate::disk::{blocking, boot};

/// The file that is in an environment that is whole.
const MARKER: &str = "kaai-environment.json";
/// The file that is in an environment that would survive the loss of power.
const SYNCED: &str = "kaai-environment.synced";

/// What the marker says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Marker {
    pub(super) hash: EnvironmentHash,
    pub(super) recipe: u32,
    pub(super) python: String,
    pub(super) built: String,
    /// Which start of the machine it was made in: as long as that lasts, nothing of it can be lost.
    pub(super) boot: String,
    pub(super) packages: Vec<String>,
    /// The scan that it has passed, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) scan: Option<Scan>,
}

/// The folders of all makings of one environment.
pub(super) async fn attempts(parent: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if let Ok(mut entries) = tokio::fs::read_dir(parent).await {
        while let Ok(Some(entry)) = entries.next_entry().await {
            folders.push(entry.path());
        }
    }
    folders
}

/// What the marker of an environment says, if it is whole: all of it was written, and nothing of it was lost since.
pub(super) async fn whole(folder: &Path) -> Option<Marker> {
    let text = tokio::fs::read(folder.join(MARKER)).await.ok()?;
    let marker: Marker = serde_json::from_slice(&text).ok()?;
    let kept = marker.boot == boot() || tokio::fs::try_exists(folder.join(SYNCED)).await.unwrap_or(false);
    kept.then_some(marker)
}

/// Removes what earlier makings left unfinished. One that is whole stays, even if it was not found usable: a replica may run from it.
pub(super) async fn sweep(parent: &Path) {
    for folder in attempts(parent).await {
        if whole(&folder).await.is_none() {
            remove(folder).await;
        }
    }
}

pub(super) async fn remove(folder: PathBuf) {
    let shown = folder.display().to_string();
    if let Err(error) = blocking(move || std::fs::remove_dir_all(folder)).await {
        // An orphan of a killed builder may still be writing there; the next making sweeps again.
        tracing::debug!(folder = shown, %error, "not swept");
    }
}

/// Writes the marker last, whole or not at all.
pub(super) fn write_marker(folder: &Path, marker: &Marker) -> std::io::Result<()> {
    let partial = folder.join("kaai-environment.partial");
    std::fs::write(&partial, serde_json::to_vec_pretty(marker)?)?;
    std::fs::File::open(&partial)?.sync_all()?;
    std::fs::rename(&partial, folder.join(MARKER))?;
    std::fs::File::open(folder)?.sync_all()
}

/// Whether an environment would survive a loss of power.
pub(super) fn is_synced(folder: &Path) -> bool {
    folder.join(SYNCED).exists()
}

/// Has everything written to disk, and says so in the environment.
pub(super) fn sync(folder: &Path) -> std::io::Result<()> {
    let handle = std::fs::File::open(folder)?;
    rustix::fs::syncfs(&handle)?;
    std::fs::File::create(folder.join(SYNCED))?.sync_all()?;
    handle.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marker(boot: &str) -> Vec<u8> {
        let hash = "0".repeat(64).parse().unwrap();
        let marker = Marker {
            hash,
            recipe: 1,
            python: "3.11.7".to_owned(),
            built: String::new(),
            boot: boot.to_owned(),
            packages: Vec::new(),
            scan: None,
        };
        serde_json::to_vec(&marker).unwrap()
    }

    #[tokio::test]
    async fn only_what_is_whole_survives_a_sweep() {
        let parent = tempfile::tempdir().unwrap();
        let folder = |name: &str| parent.path().join(name);
        for name in ["unfinished", "damaged", "of-this-boot", "of-another-boot", "synced"] {
            std::fs::create_dir(folder(name)).unwrap();
        }
        std::fs::write(folder("damaged").join(MARKER), "{").unwrap();
        std::fs::write(folder("of-this-boot").join(MARKER), marker(&boot())).unwrap();
        std::fs::write(folder("of-another-boot").join(MARKER), marker("another")).unwrap();
        std::fs::write(folder("synced").join(MARKER), marker("another")).unwrap();
        sync(&folder("synced")).unwrap();
        sweep(parent.path()).await;
        let mut left: Vec<_> = attempts(parent.path()).await;
        left.sort();
        assert_eq!(left, [folder("of-this-boot"), folder("synced")]);
    }
}
