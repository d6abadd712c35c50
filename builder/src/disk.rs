//! The disk: work on it that blocks, what a loss of power leaves of it, and the failure of a file that cannot be written.

use std::{
    io::{self, Write},
    path::Path,
};

use proto::failure::{Failure, Stage};

/// A file of an environment could not be written.
pub(crate) fn disk(path: &Path, error: &io::Error) -> Failure {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let path = path.display();
    let (cause, remedy) = match full {
        true => {
            (format!("no space is left on the disk of {path}"), "free some space there, then deploy again".to_owned())
        }
        false => (
            format!("{path} cannot be read or written: {error}"),
            "give the builder's user the right to do so".to_owned(),
        ),
    };
    Failure::platform(Stage::Building, cause, remedy)
}

/// Does work that blocks on a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Names this start of the machine; all starts are one where the kernel does not tell.
pub(crate) fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Puts a file where a package may have put another, or a link to anywhere. Blocks.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(path))?;
    file.write_all(content)?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_replaced_and_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (elsewhere, path) = (folder.path().join("elsewhere"), folder.path().join("lock"));
        std::fs::write(&elsewhere, "kept").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        replace(&path, b"ours").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"ours");
        assert_eq!(std::fs::read(&elsewhere).unwrap(), b"kept");
    }
}
