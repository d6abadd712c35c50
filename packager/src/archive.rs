//! Writes a [`Walk`] as a zip that depends on content alone: same files, same bytes, same digest, on any machine and at any time.
//!
//! Files are read and compressed by a few threads, each taking every n-th unit of work and handing its results on through a channel of two;
//! the caller's thread writes them in order and computes the digest on the way. So memory does not grow with the project, and the output
//! does not depend on the number of threads. The zip appears under its name only when it is whole.
//!
//! A file that is not what the walk saw (length, time, inode) has changed while it was read: the walk is then done once more, and if it
//! happens again the file is named. This module knows no ignore rules and no object store.

use std::{
    fs,
    io::{self, Write},
    num::NonZeroUsize,
    ops::Range,
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use flate2::Crc;
use proto::{id::Digest, packager::Archive};
use sha2::{Digest as _, Sha256};

use crate::{
    deflate::{Deflater, PIECE, checksum},
    walk::{self, File, MAX_NAMED, Stamp, Walk},
    zip::{self, Entry, LOCAL_HEADER_LEN, Method},
};

/// How many threads compress at most: with more the writing thread would be the limit.
const MAX_THREADS: usize = 8;

/// When a unit of small files is full.
const BATCH_FILES: usize = 64;
const BATCH_BYTES: u64 = PIECE as u64 / 2;

/// Results that may wait for being written, for each thread.
const WAITING: usize = 2;

/// From this length on, lengths are said in 64 bits; the deflate stream may be a little longer than the file.
const LARGE: u64 = 0xff00_0000;

/// Why a zip could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file kept changing while it was read.
    #[error("{0} changed while it was read, twice")]
    Changed(
        /// Its path.
        String,
    ),
    /// Some files cannot be read.
    #[error("cannot read {}", .0.join(", "))]
    Unreadable(
        /// Path and reason of each, at most [`MAX_NAMED`].
        Vec<String>,
    ),
    /// The zip itself could not be written.
    #[error("cannot write {path:?}")]
    Write {
        /// The zip.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The second walk, after a file had changed, failed.
    #[error(transparent)]
    Walk(#[from] walk::Error),
    /// The caller no longer wanted it.
    #[error("writing the archive was given up")]
    GivenUp,
}

/// Writes the zip of `walk` to `out`, which is replaced if it is there; needs `out`'s folder to exist.
///
/// # Errors
/// See [`Error`]; `out` is then as it was.
pub fn write(walk: &Walk, out: &Path) -> Result<Archive, Error> {
    write_while(walk, out, &|| true)
}

/// As [`fn@write`], and gives up soon after `wanted` says false: it is asked before each unit of work.
///
/// # Errors
/// As [`fn@write`].
pub fn write_while(walk: &Walk, out: &Path, wanted: &dyn Fn() -> bool) -> Result<Archive, Error> {
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MAX_THREADS);
    match attempt(walk, out, threads, wanted) {
        Err(Error::Changed(_)) => attempt(&walk.again()?, out, threads, wanted),
        other => other,
    }
}

fn attempt(walk: &Walk, out: &Path, threads: usize, wanted: &dyn Fn() -> bool) -> Result<Archive, Error> {
    let units = plan(&walk.files);
    let threads = threads.min(units.len()).max(1);
    let mut zip = Zip::create(out)?;
    thread::scope(|scope| {
        let receivers: Vec<_> = (0..threads)
            .map(|n| {
                let (sender, receiver) = sync_channel(WAITING);
                let own = units.iter().skip(n).step_by(threads);
                scope.spawn(move || Worker::new(walk).run(own, &sender));
                receiver
            })
            .collect();
        // Returning early drops the receivers, which ends the threads.
        collect(&mut zip, walk, units.len(), &receivers, wanted)
    })?;
    zip.finish(walk)
}

fn collect(
    zip: &mut Zip,
    walk: &Walk,
    units: usize,
    receivers: &[Receiver<Result<Done, Problem>>],
    wanted: &dyn Fn() -> bool,
) -> Result<(), Error> {
    let mut unreadable = Vec::new();
    for unit in 0..units {
        if !wanted() {
            return Err(Error::GivenUp);
        }
        let done = receivers[unit % receivers.len()].recv().expect("a thread hands on a result for each of its units");
        match done {
            Ok(done) if unreadable.is_empty() => zip.put(done, walk)?,
            Ok(_) => {}
            Err(Problem::Changed(path)) => return Err(Error::Changed(path)),
            Err(Problem::Unreadable(more)) => unreadable.extend(more),
        }
        if unreadable.len() >= MAX_NAMED {
            unreadable.truncate(MAX_NAMED);
            break;
        }
    }
    if unreadable.is_empty() { Ok(()) } else { Err(Error::Unreadable(unreadable)) }
}

/// What one thread does in one go.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Unit {
    /// Some files in a row, each short.
    Batch(Range<usize>),
    /// A part of one longer file.
    Piece { file: usize, offset: u64, length: usize, last: bool },
}

/// Cuts the list into units of similar work.
fn plan(files: &[File]) -> Vec<Unit> {
    let mut units = Vec::new();
    let mut batch = 0..0;
    let mut bytes = 0;
    for (n, file) in files.iter().enumerate() {
        let long = file.size > PIECE as u64;
        if !batch.is_empty() && (long || batch.len() >= BATCH_FILES || bytes + file.size > BATCH_BYTES) {
            units.push(Unit::Batch(batch.clone()));
            batch.start = n;
            bytes = 0;
        }
        batch.end = n + 1;
        bytes += file.size;
        if long {
            units.extend(pieces(n, file.size));
            batch.start = n + 1;
            bytes = 0;
        }
    }
    if !batch.is_empty() {
        units.push(Unit::Batch(batch));
    }
    units
}

fn pieces(file: usize, size: u64) -> impl Iterator<Item = Unit> {
    (0..size).step_by(PIECE).map(move |offset| {
        let rest = size - offset;
        let length = usize::try_from(rest).map_or(PIECE, |rest| rest.min(PIECE));
        Unit::Piece { file, offset, length, last: rest <= PIECE as u64 }
    })
}

/// What became of a unit.
enum Done {
    /// Local headers and data, and the entries with offsets from the start of these bytes.
    Batch(Vec<u8>, Vec<Entry>),
    /// A part of a deflate stream, and the checksum and length of what it holds.
    Piece { file: usize, first: bool, last: bool, bytes: Vec<u8>, crc: Crc, size: u64 },
}

enum Problem {
    Changed(String),
    Unreadable(Vec<String>),
}

/// A thread's own state.
struct Worker<'a> {
    walk: &'a Walk,
    deflater: Deflater,
    input: Vec<u8>,
}

impl<'a> Worker<'a> {
    fn new(walk: &'a Walk) -> Self {
        Self { walk, deflater: Deflater::new(), input: Vec::new() }
    }

    fn run<'u>(mut self, units: impl Iterator<Item = &'u Unit>, results: &SyncSender<Result<Done, Problem>>) {
        for unit in units {
            let done = match *unit {
                Unit::Batch(ref files) => self.batch(files.clone()),
                Unit::Piece { file, offset, length, last } => self.piece(file, offset, length, last),
            };
            if results.send(done).is_err() {
                return;
            }
        }
    }

    fn batch(&mut self, files: Range<usize>) -> Result<Done, Problem> {
        let walk = self.walk;
        let files = &walk.files[files];
        let room: u64 = files.iter().map(|file| file.size + (LOCAL_HEADER_LEN + file.path.len()) as u64).sum();
        let mut out = Vec::with_capacity(usize::try_from(room).unwrap_or_default());
        let mut entries = Vec::with_capacity(files.len());
        let mut unreadable = Vec::new();
        for file in files {
            match self.small(file, &mut out) {
                Ok(entry) => entries.push(entry),
                Err(Problem::Unreadable(more)) => unreadable.extend(more),
                Err(changed) => return Err(changed),
            }
        }
        if unreadable.is_empty() { Ok(Done::Batch(out, entries)) } else { Err(Problem::Unreadable(unreadable)) }
    }

    fn small(&mut self, file: &File, out: &mut Vec<u8>) -> Result<Entry, Problem> {
        let start = out.len();
        if file.is_folder() {
            self.input.clear();
        } else {
            self.read(file, 0, usize::try_from(file.size).unwrap_or_default())?;
        }
        // The header's place is kept free until the lengths behind it are known.
        out.resize(start + LOCAL_HEADER_LEN + file.path.len(), 0);
        let data = out.len();
        let deflated = self.deflater.file(&self.input, out);
        if !deflated {
            out.extend_from_slice(&self.input);
        }
        let entry = Entry {
            method: if deflated { Method::Deflated } else { Method::Stored },
            executable: file.executable,
            streamed: false,
            large: false,
            crc: checksum(&self.input).sum(),
            compressed: (out.len() - data) as u64,
            size: file.size,
            offset: start as u64,
        };
        let mut header = Vec::with_capacity(data - start);
        entry.put_local_header(&file.path, &mut header);
        out[start..data].copy_from_slice(&header);
        Ok(entry)
    }

    fn piece(&mut self, file: usize, offset: u64, length: usize, last: bool) -> Result<Done, Problem> {
        self.read(&self.walk.files[file], offset, length)?;
        let mut bytes = Vec::new();
        self.deflater.piece(&self.input, last, &mut bytes);
        let crc = checksum(&self.input);
        Ok(Done::Piece { file, first: offset == 0, last, bytes, crc, size: length as u64 })
    }

    /// Fills `input` with a part of a file, which must still be the file that was listed, before and after.
    fn read(&mut self, file: &File, offset: u64, length: usize) -> Result<(), Problem> {
        let changed = || Problem::Changed(file.path.clone());
        let unreadable = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof => changed(),
            _ => Problem::Unreadable(vec![walk::describe(&file.path, &error)]),
        };
        let source = fs::File::open(self.walk.location(file)).map_err(unreadable)?;
        self.input.resize(length, 0);
        source.read_exact_at(&mut self.input, offset).map_err(unreadable)?;
        let metadata = source.metadata().map_err(unreadable)?;
        if Stamp::of(&metadata) == file.stamp { Ok(()) } else { Err(changed()) }
    }
}

/// The zip on its way to the disk.
struct Zip {
    file: tempfile::NamedTempFile,
    path: PathBuf,
    hash: Sha256,
    length: u64,
    entries: Vec<Entry>,
    /// The entry whose pieces are coming, and the checksum so far.
    open: Option<(Entry, Crc)>,
}

impl Zip {
    fn create(path: &Path) -> Result<Self, Error> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = tempfile::Builder::new()
            .prefix(".kaai-")
            .suffix(".zip")
            .permissions(fs::Permissions::from_mode(0o666))
            .tempfile_in(folder)
            .map_err(|source| Error::Write { path: path.to_owned(), source })?;
        let path = path.to_owned();
        Ok(Self { file, path, hash: Sha256::new(), length: 0, entries: Vec::new(), open: None })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        self.file.write_all(bytes).map_err(|source| Error::Write { path: self.path.clone(), source })
    }

    fn put(&mut self, done: Done, walk: &Walk) -> Result<(), Error> {
        match done {
            Done::Batch(bytes, entries) => {
                let start = self.length;
                self.entries.extend(entries.into_iter().map(|entry| Entry { offset: start + entry.offset, ..entry }));
                self.write(&bytes)
            }
            Done::Piece { file, first, last, bytes, crc, size } => {
                if first {
                    self.open(&walk.files[file])?;
                }
                self.write(&bytes)?;
                let (entry, total) = self.open.as_mut().expect("the first piece opened it");
                total.combine(&crc);
                entry.compressed += bytes.len() as u64;
                entry.size += size;
                if last { self.close() } else { Ok(()) }
            }
        }
    }

    fn open(&mut self, file: &File) -> Result<(), Error> {
        let entry = Entry {
            method: Method::Deflated,
            executable: file.executable,
            streamed: true,
            large: file.size >= LARGE,
            crc: 0,
            compressed: 0,
            size: 0,
            offset: self.length,
        };
        let mut header = Vec::new();
        entry.put_local_header(&file.path, &mut header);
        self.open = Some((entry, Crc::new()));
        self.write(&header)
    }

    fn close(&mut self) -> Result<(), Error> {
        let (mut entry, crc) = self.open.take().expect("the first piece opened it");
        entry.crc = crc.sum();
        self.entries.push(entry);
        let mut descriptor = Vec::new();
        entry.put_data_descriptor(&mut descriptor);
        self.write(&descriptor)
    }

    fn finish(mut self, walk: &Walk) -> Result<Archive, Error> {
        let start = self.length;
        let entries = std::mem::take(&mut self.entries);
        let mut lines = Vec::with_capacity(PIECE);
        for (entry, file) in entries.iter().zip(&walk.files) {
            entry.put_central_header(&file.path, &mut lines);
            if lines.len() > PIECE - 1024 {
                self.write(&lines)?;
                lines.clear();
            }
        }
        self.write(&lines)?;
        self.write(&zip::end(entries.len() as u64, self.length - start, start))?;
        let path = self.path;
        self.file.persist(&path).map_err(|error| Error::Write { path, source: error.error })?;
        Ok(Archive {
            digest: Digest::from_sha256(self.hash.finalize().into()),
            size: self.length,
            files: walk.files.iter().filter(|file| !file.is_folder()).count() as u64,
            ignored: walk.ignored,
        })
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::walk::{Limits, Links};

    fn tree() -> TempDir {
        let folder = TempDir::new().unwrap();
        let long: Vec<u8> = (0..3 * PIECE + 17).map(|n| (n / 7 % 251) as u8).collect();
        for n in 0..200 {
            let place = folder.path().join(format!("d{}", n % 7));
            fs::create_dir_all(&place).unwrap();
            fs::write(place.join(format!("f{n}.txt")), format!("file {n}\n").repeat(n)).unwrap();
        }
        fs::write(folder.path().join("d3/long.bin"), long).unwrap();
        fs::write(folder.path().join("empty"), "").unwrap();
        fs::write(folder.path().join("run.sh"), "echo").unwrap();
        fs::set_permissions(folder.path().join("run.sh"), fs::Permissions::from_mode(0o700)).unwrap();
        folder
    }

    fn walk(folder: &TempDir) -> Walk {
        Walk::project(folder.path(), Limits::PROJECT).unwrap()
    }

    #[test]
    fn units_cover_every_byte_once_and_in_order() {
        let folder = tree();
        let walk = walk(&folder);
        let mut next = (0, 0);
        for unit in plan(&walk.files) {
            match unit {
                Unit::Batch(files) => {
                    assert_eq!((files.start, 0), next);
                    assert!(files.len() <= BATCH_FILES);
                    next = (files.end, 0);
                }
                Unit::Piece { file, offset, length, last } => {
                    assert_eq!((file, offset), next);
                    let end = offset + length as u64;
                    assert_eq!(last, end == walk.files[file].size);
                    next = if last { (file + 1, 0) } else { (file, end) };
                }
            }
        }
        assert_eq!(next, (walk.files.len(), 0));
    }

    #[test]
    fn the_number_of_threads_does_not_show() {
        let folder = tree();
        let walk = walk(&folder);
        let out = TempDir::new().unwrap();
        let digests: Vec<_> = [1, 2, 3, 8]
            .map(|threads| attempt(&walk, &out.path().join("a.zip"), threads, &|| true).unwrap().digest)
            .into();
        assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
    }

    #[test]
    fn a_file_that_changed_once_is_read_again() {
        let folder = tree();
        let walk = walk(&folder);
        let out = TempDir::new().unwrap();
        fs::write(folder.path().join("empty"), "no longer").unwrap();
        fs::remove_file(folder.path().join("d1/f1.txt")).unwrap();
        let archive = write(&walk, &out.path().join("a.zip")).unwrap();
        assert_eq!(archive.files, walk.files.len() as u64 - 1);
    }

    #[test]
    fn a_file_that_is_not_what_was_listed_is_named() {
        let folder = tree();
        let walk = walk(&folder);
        let out = TempDir::new().unwrap();
        for (path, text) in [("empty", "no longer"), ("d3/long.bin", "short")] {
            fs::write(folder.path().join(path), text).unwrap();
        }
        let error = attempt(&walk, &out.path().join("a.zip"), 2, &|| true).unwrap_err();
        assert!(matches!(&error, Error::Changed(path) if path == "d3/long.bin"), "{error}");
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0, "nothing half-written stays");
    }

    #[test]
    fn more_entries_than_sixteen_bits_can_count_are_read_back() {
        let out = TempDir::new().unwrap();
        let mut zip = Zip::create(&out.path().join("a.zip")).unwrap();
        let folder = tree();
        let mut walk = walk(&folder);
        let file = walk.files.iter().find(|file| file.path == "empty").unwrap().clone();
        walk.files = (0..70_000).map(|n| File { path: format!("{n:05}"), ..file.clone() }).collect();
        let entry = Entry {
            method: Method::Stored,
            executable: false,
            streamed: false,
            large: false,
            crc: 0,
            compressed: 0,
            size: 0,
            offset: 0,
        };
        for file in &walk.files {
            let mut header = Vec::new();
            entry.put_local_header(&file.path, &mut header);
            zip.put(Done::Batch(header, vec![entry]), &walk).unwrap();
        }
        zip.finish(&walk).unwrap();
        let read = ::zip::ZipArchive::new(fs::File::open(out.path().join("a.zip")).unwrap()).unwrap();
        assert_eq!(read.len(), 70_000);
        assert!(read.index_for_name("69999").is_some());
    }

    #[test]
    fn giving_up_leaves_nothing() {
        let folder = tree();
        let out = TempDir::new().unwrap();
        let error = write_while(&walk(&folder), &out.path().join("a.zip"), &|| false).unwrap_err();
        assert!(matches!(error, Error::GivenUp));
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    }

    #[test]
    fn one_file_is_an_archive_with_one_entry() {
        let folder = tree();
        let out = TempDir::new().unwrap();
        let walk = Walk::entry(&folder.path().join("run.sh"), Links::Inside).unwrap();
        assert_eq!(walk.files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>(), ["run.sh"]);
        assert_eq!(write(&walk, &out.path().join("a.zip")).unwrap().files, 1);
    }
}
