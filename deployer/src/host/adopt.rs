//! What an earlier deployer has left: replicas that still run are watched again, everything else is cleared away.

use std::{fs, path::Path, sync::Arc, time::Duration};

use proto::id::ReplicaId;

use super::{
    Place, clock,
    engine::Engine,
    kept::{Folder, Kept},
    supervise,
};
use crate::backend::{Observed, Status};

/// Looks through the folders of all replicas.
pub(super) async fn adopt<E: Engine>(place: &Arc<Place<E>>) {
    let mut known = Vec::new();
    for replica in names(&place.ground.replicas()) {
        let folder = place.folder(&replica);
        let kept = folder.recall();
        let unit = match &kept {
            Some(kept) => place.engine.adopt(kept, &folder).await,
            None => None,
        };
        match (kept, unit) {
            (Some(kept), Some(unit)) => {
                if let Some(supervisor) = place.admit(observed(&kept, &folder)) {
                    place.tasks.spawn(supervisor.go_on(kept, unit));
                }
                known.push(replica);
            }
            (kept, _) => clear(place, replica, folder, kept).await,
        }
    }
    place.engine.clear_strays(&known).await;
    let cleared = place.clone();
    // A panic in there leaves what it has not cleared for the next time.
    let _ = place.tasks.spawn_blocking(move || clear_links(&cleared.ground.sockets)).await;
    if !known.is_empty() {
        tracing::info!(replicas = known.len(), "adopted replicas that an earlier deployer started");
    }
}

fn names(folder: &Path) -> Vec<ReplicaId> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn observed(kept: &Kept, folder: &Folder) -> Observed {
    let age = Duration::try_from_secs_f64(clock::monotonic() - kept.spawned).unwrap_or_default();
    Observed {
        replica: kept.replica.clone(),
        workspace: kept.workspace.clone(),
        service: kept.service.clone(),
        generation: kept.generation,
        // One that was ready is not asked again: it may be busy, and its place in the routes must not be lost for that.
        status: if kept.ready { Status::Ready } else { Status::Starting(age) },
        address: kept.ready.then(|| supervise::address(folder)),
        start: kept.start,
        unlimited: kept.unlimited.clone(),
    }
}

/// Ends what is left of a replica whose program is gone, or was never let go.
async fn clear<E: Engine>(place: &Arc<Place<E>>, replica: ReplicaId, folder: Folder, kept: Option<Kept>) {
    if let Some(kept) = kept {
        place.bring_log(&observed(&kept, &folder)).await;
    }
    place.engine.clear(&replica).await;
    let clearing = place.tasks.spawn_blocking(move || match folder.remove() {
        Ok(()) => tracing::info!(%replica, "cleared away what was left of a replica"),
        Err(error) => tracing::warn!(%replica, %error, "the folder of a replica cannot be removed"),
    });
    // A panic in there leaves the folder for the next time.
    let _ = clearing.await;
}

/// Removes links whose replica has no folder any more.
fn clear_links(sockets: &Path) {
    for entry in fs::read_dir(sockets).into_iter().flatten().flatten() {
        let path = entry.path();
        let dangling = path.is_symlink() && !path.exists();
        if dangling {
            // One that stays is in nobody's way.
            let _ = fs::remove_file(path);
        }
    }
}
