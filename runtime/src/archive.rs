//! Unpacking zips that may be hostile: no entry leaves the folder, none is a link, and sizes are bounded.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Component, Path, PathBuf},
};

use tokio_util::sync::CancellationToken;
use zip::ZipArchive;

/// What an archive may hold at most.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Entries.
    pub entries: usize,
    /// Bytes of all files together, unpacked.
    pub bytes: u64,
    /// Unpacked bytes ÷ packed bytes of one entry of more than 1 MiB; a bomb has a ratio above 1000.
    pub ratio: u64,
}

impl Default for Limits {
    /// A million entries, 100 GiB, 1100 to 1 (DEFLATE itself cannot pass 1032).
    fn default() -> Self {
        Self { entries: 1_000_000, bytes: 100 << 30, ratio: 1_100 }
    }
}

/// What was unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    /// Files.
    pub files: u64,
    /// Bytes of all files together.
    pub bytes: u64,
}

/// An archive could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is no zip, or a damaged one.
    #[error("the archive is damaged: {0}")]
    Damaged(String),
    /// An entry would land outside the folder, or is no plain file or folder.
    #[error("the archive is refused: entry {name:?} {why}")]
    Hostile {
        /// The entry.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The archive holds more than it may.
    #[error("the archive is refused: it has more than {limit} {what}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
    },
    /// The disk is full.
    #[error("no space is left to unpack into {0}; free some and try again")]
    Full(PathBuf),
    /// Nobody wants it any more.
    #[error("given up before it was unpacked")]
    GivenUp,
    /// A file could not be read or written.
    #[error("cannot write {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Unpacks `zip` into the folder `into`, which must exist. Blocks.
///
/// Only files and folders are made; a file keeps nothing of its mode but whether it can be executed.
///
/// # Errors
///
/// Fails at the first entry that is damaged, hostile or too much; what was unpacked before it stays, so unpack into a fresh folder.
pub fn unpack(zip: &Path, into: &Path, limits: Limits) -> Result<Unpacked, Error> {
    unpack_unless(&CancellationToken::new(), zip, into, limits)
}

/// The same, until it is given up; it ends within a piece of a file then, with [`Error::GivenUp`].
///
/// # Errors
///
/// As [`unpack`], and when it is given up.
pub fn unpack_unless(given_up: &CancellationToken, zip: &Path, into: &Path, limits: Limits) -> Result<Unpacked, Error> {
    let file = File::open(zip).map_err(|source| Error::File { path: zip.to_owned(), source })?;
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|error| Error::Damaged(error.to_string()))?;
    if archive.len() > limits.entries {
        return Err(Error::TooLarge { what: "entries", limit: limits.entries as u64 });
    }
    let mut unpacked = Unpacked { files: 0, bytes: 0 };
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(|error| Error::Damaged(error.to_string()))?;
        let name = entry.name().map_err(|error| Error::Damaged(error.to_string()))?.into_owned();
        let path = into.join(inside(&name)?);
        if entry.is_symlink() {
            return Err(Error::Hostile { name, why: "is a link" });
        }
        if entry.is_dir() {
            fs::create_dir_all(&path).map_err(|source| write_error(&path, source))?;
            continue;
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|source| write_error(parent, source))?;
        }
        let executable = entry.unix_mode().is_some_and(|mode| mode & 0o100 != 0);
        let left = limits.bytes - unpacked.bytes;
        let packed = entry.compressed_size().max(1);
        let most = left.min(packed.saturating_mul(limits.ratio).max(1 << 20));
        let written = write(&mut entry, &path, executable, most, given_up)?;
        if written > most {
            let what = if most == left { "bytes" } else { "bytes for what is packed into them" };
            return Err(Error::TooLarge { what, limit: most });
        }
        unpacked.files += 1;
        unpacked.bytes += written;
    }
    Ok(unpacked)
}

/// Turns an entry's name into a relative path that stays inside.
fn inside(name: &str) -> Result<PathBuf, Error> {
    let hostile = |why| Error::Hostile { name: name.chars().take(200).collect(), why };
    if name.contains('\0') || name.contains('\\') {
        return Err(hostile("has a character that no path may have"));
    }
    let path = Path::new(name);
    if path.components().any(|part| !matches!(part, Component::Normal(_))) || name.is_empty() {
        return Err(hostile("leaves the folder"));
    }
    Ok(path.to_owned())
}

/// Copies an entry to a new file, at most one byte more than `most`.
fn write(
    entry: &mut impl Read,
    path: &Path,
    executable: bool,
    most: u64,
    given_up: &CancellationToken,
) -> Result<u64, Error> {
    // create_new: two entries of one name are an attack on whoever checked the first.
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(path)
        .map_err(|source| write_error(path, source))?;
    let mut buffer = vec![0; 64 << 10];
    let mut written = 0;
    let mut limited = entry.take(most + 1);
    loop {
        if given_up.is_cancelled() {
            return Err(Error::GivenUp);
        }
        let length = match limited.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) => return Err(Error::Damaged(format!("{}: {error}", path.display()))),
        };
        file.write_all(&buffer[..length]).map_err(|source| write_error(path, source))?;
        written += length as u64;
    }
    if executable {
        file.set_permissions(fs::Permissions::from_mode(0o755)).map_err(|source| write_error(path, source))?;
    }
    Ok(written)
}

fn write_error(path: &Path, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::Full(path.to_owned()),
        // A file where another entry needs a folder, or the other way round.
        io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => {
            Error::Hostile { name: path.display().to_string(), why: "is both a file and a folder" }
        }
        io::ErrorKind::AlreadyExists => {
            Error::Hostile { name: path.display().to_string(), why: "is there more than once" }
        }
        _ => Error::File { path: path.to_owned(), source },
    }
}

#[cfg(test)]
mod tests {
    use zip::{ZipWriter, write::SimpleFileOptions};

    use super::*;

    fn zip(folder: &Path, fill: impl FnOnce(&mut ZipWriter<File>)) -> PathBuf {
        let path = folder.join("archive.zip");
        let mut writer = ZipWriter::new(File::create(&path).unwrap());
        fill(&mut writer);
        writer.finish().unwrap();
        path
    }

    fn unpack_entry(name: &str, content: &[u8], limits: Limits) -> Result<Unpacked, Error> {
        let folder = tempfile::tempdir().unwrap();
        let into = folder.path().join("into");
        fs::create_dir(&into).unwrap();
        let path = zip(folder.path(), |writer| {
            writer.start_file(name, SimpleFileOptions::default()).unwrap();
            writer.write_all(content).unwrap();
        });
        unpack(&path, &into, limits)
    }

    #[test]
    fn what_nobody_wants_any_more_is_not_unpacked() {
        let folder = tempfile::tempdir().unwrap();
        let path = zip(folder.path(), |writer| writer.start_file("a", SimpleFileOptions::default()).unwrap());
        let given_up = CancellationToken::new();
        given_up.cancel();
        let error = unpack_unless(&given_up, &path, folder.path(), Limits::default()).unwrap_err();
        assert!(matches!(error, Error::GivenUp), "{error}");
    }

    #[test]
    fn a_file_that_is_a_folder_too_is_hostile() {
        let folder = tempfile::tempdir().unwrap();
        let path = zip(folder.path(), |writer| {
            writer.start_file("x", SimpleFileOptions::default()).unwrap();
            writer.start_file("x/y", SimpleFileOptions::default()).unwrap();
        });
        let into = folder.path().join("into");
        fs::create_dir(&into).unwrap();
        let error = unpack(&path, &into, Limits::default()).unwrap_err();
        assert!(matches!(error, Error::Hostile { .. }), "{error}");
    }

    #[test]
    fn files_keep_their_place_content_and_executable_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = zip(folder.path(), |writer| {
            writer.start_file("a/b.sh", SimpleFileOptions::default().unix_permissions(0o755)).unwrap();
            writer.write_all(b"echo").unwrap();
            writer.start_file("c", SimpleFileOptions::default().unix_permissions(0o4777)).unwrap();
        });
        let into = folder.path().join("into");
        fs::create_dir(&into).unwrap();
        assert_eq!(unpack(&path, &into, Limits::default()).unwrap(), Unpacked { files: 2, bytes: 4 });
        assert_eq!(fs::read(into.join("a/b.sh")).unwrap(), b"echo");
        assert_eq!(fs::metadata(into.join("a/b.sh")).unwrap().permissions().mode() & 0o7777, 0o755);
        assert_eq!(fs::metadata(into.join("c")).unwrap().permissions().mode() & 0o7000, 0, "setuid is dropped");
    }

    #[test]
    fn an_entry_that_leaves_the_folder_is_refused() {
        for name in ["../x", "a/../../x", "/etc/x", "a\\..\\x", "./x"] {
            let error = unpack_entry(name, b"x", Limits::default()).unwrap_err();
            assert!(matches!(error, Error::Hostile { .. }), "{name}: {error}");
        }
    }

    #[test]
    fn a_link_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = zip(folder.path(), |writer| {
            writer.add_symlink("link", "/etc", SimpleFileOptions::default()).unwrap();
        });
        let into = folder.path().join("into");
        fs::create_dir(&into).unwrap();
        assert!(matches!(unpack(&path, &into, Limits::default()), Err(Error::Hostile { why: "is a link", .. })));
    }

    #[test]
    fn a_bomb_is_refused_before_it_fills_the_disk() {
        let zeros = vec![0; 8 << 20];
        let by_ratio = unpack_entry("bomb", &zeros, Limits { ratio: 100, ..Limits::default() });
        assert!(matches!(by_ratio, Err(Error::TooLarge { .. })), "{by_ratio:?}");
        let by_size = unpack_entry("large", &zeros, Limits { bytes: 1 << 20, ..Limits::default() });
        assert!(matches!(by_size, Err(Error::TooLarge { what: "bytes", .. })), "{by_size:?}");
        assert!(unpack_entry("fine", &zeros, Limits::default()).is_ok());
    }

    #[test]
    fn what_is_no_zip_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(&path, b"PK\x03\x04 but no more").unwrap();
        assert!(matches!(unpack(&path, folder.path(), Limits::default()), Err(Error::Damaged(_))));
    }
}
