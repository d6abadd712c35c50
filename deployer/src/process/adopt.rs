//! What an earlier deployer has left: replicas that still run are watched again, everything else is cleared away.

use std::{fs, path::Path, sync::Arc, time::Duration};

use proto::id::ReplicaId;

use super::{
    Place,
    kept::{Folder, Kept},
    main_process::MainProcess,
    supervise, table,
};
use crate::backend::{Observed, Status};

/// Looks through the folders of all replicas.
pub(super) async fn adopt(place: &Arc<Place>) {
    let mut adopted = 0_u32;
    let mut known = Vec::new();
    for replica in names(&place.replicas_folder) {
        let folder = Folder::new(&place.replicas_folder, &place.sockets, &replica);
        let kept = folder.recall();
        let found = kept.and_then(|kept| {
            let process = MainProcess::adopt(kept.process.as_ref()?);
            Some((kept, process.ok()?))
        });
        match found {
            Some((kept, process)) => {
                if let Some(supervisor) = place.admit(observed(&kept, &folder)) {
                    place.tasks.spawn(supervisor.go_on(kept, process));
                }
                known.push(replica);
                adopted += 1;
            }
            None => clear(place, replica, folder).await,
        }
    }
    let (cleared, running) = (place.clone(), known);
    // A panic in there leaves what it has not cleared for the next time.
    let _ = place.tasks.spawn_blocking(move || clear_strays(&cleared, &running)).await;
    if adopted > 0 {
        tracing::info!(replicas = adopted, "adopted replicas that an earlier deployer started");
    }
}

fn names(folder: &Path) -> Vec<ReplicaId> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn observed(kept: &Kept, folder: &Folder) -> Observed {
    let age = Duration::try_from_secs_f64(table::monotonic() - kept.spawned).unwrap_or_default();
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

/// Ends what is left of a replica whose main process is gone, or was never let go.
async fn clear(place: &Arc<Place>, replica: ReplicaId, folder: Folder) {
    let (limits, mark) = (place.limits.clone(), table::mark(&place.identity, &replica));
    let clearing = place.tasks.spawn_blocking(move || {
        table::kill_marked(&mark);
        if let Some(group) = limits.named(replica.as_str()) {
            group.end();
        }
        match folder.remove() {
            Ok(()) => tracing::info!(%replica, "cleared away what was left of a replica"),
            Err(error) => tracing::warn!(%replica, %error, "the folder of a replica cannot be removed"),
        }
    });
    // A panic in there leaves the folder for the next time.
    let _ = clearing.await;
}

/// Removes groups and links whose replica has no folder any more.
fn clear_strays(place: &Place, running: &[ReplicaId]) {
    for name in place.limits.names() {
        if !running.iter().any(|replica| replica.as_str() == name)
            && let Some(group) = place.limits.named(&name)
        {
            group.end();
        }
    }
    for entry in fs::read_dir(&place.sockets).into_iter().flatten().flatten() {
        let path = entry.path();
        let dangling = path.is_symlink() && !path.exists();
        if dangling {
            // One that stays is in nobody's way.
            let _ = fs::remove_file(path);
        }
    }
}
