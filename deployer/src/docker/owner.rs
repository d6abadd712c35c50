//! Whom the files of a replica belong to.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::{PermissionsExt, chown, lchown},
    path::Path,
};

use super::{User, order_file};
use crate::host::kept::Folder;

/// Gives a replica what is to be its own, and lets it read what runs it; `user` is none where the replica has this process's own.
pub(super) fn hand_over(folder: &Folder, user: Option<User>) -> io::Result<()> {
    // The engine mounts no folder in which there is nothing to read for the replica's user.
    fs::set_permissions(folder.program(), Permissions::from_mode(0o755))?;
    fs::set_permissions(folder.launcher(), Permissions::from_mode(0o644))?;
    fs::write(order_file(folder), "")?;
    fs::set_permissions(order_file(folder), Permissions::from_mode(0o644))?;
    let Some(user) = user else { return Ok(()) };
    give(&folder.app_root(), user)?;
    for entry in fs::read_dir(folder.own())? {
        give(&entry?.path(), user)?;
    }
    // The folder itself stays ours: the group may make a socket in it, and whoever has the group may use that.
    chown(folder.own(), None, Some(user.gid))?;
    fs::set_permissions(folder.own(), Permissions::from_mode(0o2770))
}

/// Lets nothing be made, moved or deleted in a replica's folder any more; in the folders below it may still write.
///
/// Whoever could put a link in the socket's place could have the router's requests, and the router's rights on other sockets.
pub(super) fn close(folder: &Folder) -> io::Result<()> {
    fs::set_permissions(folder.own(), Permissions::from_mode(0o2750))
}

fn give(path: &Path, user: User) -> io::Result<()> {
    lchown(path, Some(user.uid), Some(user.gid))?;
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), user)?;
        }
    }
    Ok(())
}
