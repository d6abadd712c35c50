//! Which files of a folder belong to it: the sorted list that an archive is made of.
//!
//! The walk knows ignore rules, symbolic links, limits and names; it opens no file except ignore files. What is found, and what each odd
//! thing on a disk becomes:
//!
//! | found | answer |
//! |---|---|
//! | a file | listed, with its size and whether its owner may execute it |
//! | `.git`, file or folder | left out, always, and not counted |
//! | what the ignore rules leave out | left out; a folder is not entered and counts as one |
//! | a folder with nothing in it | left out of a project (as git does), kept in a model (exactly what was registered) |
//! | a symbolic link | followed, and matched as what it points to |
//! | a link to one of its own parents, or to nothing | an error that names it |
//! | a link that leaves the folder | an error that names it, unless [`Links::Anywhere`] is allowed |
//! | a socket, pipe or device | left out, with a warning |
//! | a name that is not UTF-8 | an error that names it, unless it is ignored |
//! | a name with a backslash, which is a separator in some zips | an error that names it, unless it is ignored |
//! | a folder that cannot be read | an error that names it, and up to nine more |
//! | more bytes or files than the limits | an error that names the biggest files |
//!
//! v1 also refused a snapshot in which more than 2000 files had changed since the one before. That limit was its snapshot service's; kaai
//! has none like it, only [`Limits::files`], which stops links that multiply.

mod walker;

use std::{
    ffi::OsStr,
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use self::walker::{Rules, Walker};

/// How many things of one kind an error names at most.
pub const MAX_NAMED: usize = 10;

/// How much may be in one archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all files together, before compression.
    pub bytes: u64,
    /// Files.
    pub files: usize,
}

impl Limits {
    /// v1's limit for a project: 300 MiB after exclusion.
    pub const PROJECT: Self = Self { bytes: 300 * 1024 * 1024, files: 1_000_000 };
    /// A model may be as big as its disk.
    pub const MODEL: Self = Self { bytes: u64::MAX, files: 1_000_000 };
}

/// Where symbolic links may point to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// Only into the folder that is walked.
    Inside,
    /// To any place that can be read: for a user's own files on the user's own machine.
    Anywhere,
}

/// One file of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its path in the archive, with `/` between folders; a folder that is kept though it is empty ends with `/`.
    pub path: String,
    /// Its length in bytes.
    pub size: u64,
    /// Whether its owner may execute it.
    pub executable: bool,
    pub(crate) stamp: Stamp,
}

impl File {
    /// Whether it is an empty folder.
    pub fn is_folder(&self) -> bool {
        self.path.ends_with('/')
    }
}

/// What shows that a file is still the one that was listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// What belongs into an archive, sorted by path.
#[derive(Debug, Clone)]
pub struct Walk {
    /// The files.
    pub files: Vec<File>,
    /// Their lengths together, in bytes.
    pub bytes: u64,
    /// How many files and folders the ignore rules left out; a folder counts as one, whatever is in it.
    pub ignored: u64,
    /// The kind of ignore file that was found, `.amlignore` or `.gitignore`.
    pub ignore_file: Option<&'static str>,
    /// What was left out though no rule says so, in words.
    pub warnings: Vec<String>,
    root: PathBuf,
    prefix: String,
    again: Again,
}

/// How the same walk is done once more, when a file changed while it was read.
#[derive(Debug, Clone)]
enum Again {
    Project(PathBuf, Limits),
    Entry(PathBuf, Links),
}

/// Why a folder could not be listed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not there, or is no folder.
    #[error("{path:?} {what}")]
    NoSuch {
        /// The path as given.
        path: PathBuf,
        /// What is wrong with it, `does not exist` for example.
        what: &'static str,
    },
    /// Some files or folders cannot be read.
    #[error("cannot read {}", .0.join(", "))]
    Unreadable(
        /// Path and reason of each, at most [`MAX_NAMED`].
        Vec<String>,
    ),
    /// A name that has no place in an archive.
    #[error("the name of {0:?} is not UTF-8")]
    NotUtf8(
        /// The path, with what cannot be shown replaced.
        String,
    ),
    /// A name that some readers of archives would take for a path.
    #[error("the name of {0} has a backslash, which an archive cannot hold")]
    Backslash(
        /// The path.
        String,
    ),
    /// A symbolic link that is not followed.
    #[error("the symbolic link {path} {problem}")]
    Link {
        /// The link.
        path: String,
        /// What is wrong with it.
        problem: LinkProblem,
    },
    /// More bytes than allowed.
    #[error("{bytes} bytes are more than the limit of {limit}")]
    TooBig {
        /// Bytes found.
        bytes: u64,
        /// Bytes allowed.
        limit: u64,
        /// Size and path of the biggest files, biggest first.
        biggest: Vec<(u64, String)>,
    },
    /// More files than allowed.
    #[error("there are more than {limit} files")]
    TooMany {
        /// Files allowed.
        limit: usize,
    },
}

/// What is wrong with a symbolic link.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkProblem {
    /// It points out of the folder.
    #[error("leaves the folder: it points to {0:?}")]
    Leaves(
        /// Where it points to.
        PathBuf,
    ),
    /// It points to a folder that it lies in.
    #[error("points to a folder that it lies in")]
    Loops,
    /// It points to nothing that can be reached.
    #[error("points to nothing")]
    Dangles,
}

impl Walk {
    /// Lists a project's folder by its ignore rules.
    ///
    /// # Errors
    /// See the table of this module.
    pub fn project(folder: &Path, limits: Limits) -> Result<Self, Error> {
        let root = real(folder)?;
        if !root.is_dir() {
            return Err(Error::NoSuch { path: folder.to_owned(), what: "is no folder" });
        }
        let walk = Self::empty(root, String::new(), Again::Project(folder.to_owned(), limits));
        Walker::new(walk, limits, Links::Inside, Rules::Project).run()
    }

    /// Lists one file or folder as it is, with no ignore rules, as the single entry at the root of an archive: a model, or an entry script.
    ///
    /// # Errors
    /// See the table of this module.
    pub fn entry(path: &Path, links: Links) -> Result<Self, Error> {
        let target = real(path)?;
        let again = Again::Entry(path.to_owned(), links);
        // The entry has the name that was given, even if that is a link; `.` and `..` have none of their own.
        let name = path.file_name().or_else(|| target.file_name());
        let Some(name) = name else { return Err(Error::NoSuch { path: path.to_owned(), what: "has no name" }) };
        let name = utf8(name, "")?;
        if target.is_dir() {
            let walk = Self::empty(target, format!("{name}/"), again);
            return Walker::new(walk, Limits::MODEL, links, Rules::Everything).run();
        }
        let metadata = fs::metadata(&target).map_err(|error| unreadable(&name, &error))?;
        if !metadata.is_file() {
            return Err(Error::NoSuch { path: path.to_owned(), what: "is neither a file nor a folder" });
        }
        let mut walk = Self::empty(target, name, again);
        walk.push(String::new(), &metadata);
        Ok(walk)
    }

    /// Does the same walk once more.
    ///
    /// # Errors
    /// As the first time.
    pub(crate) fn again(&self) -> Result<Self, Error> {
        match &self.again {
            Again::Project(folder, limits) => Self::project(folder, *limits),
            Again::Entry(path, links) => Self::entry(path, *links),
        }
    }

    fn empty(root: PathBuf, prefix: String, again: Again) -> Self {
        Self { files: Vec::new(), bytes: 0, ignored: 0, ignore_file: None, warnings: Vec::new(), root, prefix, again }
    }

    fn push(&mut self, path: String, metadata: &Metadata) {
        let path = format!("{}{path}", self.prefix);
        let size = if metadata.is_dir() { 0 } else { metadata.len() };
        self.bytes += size;
        let executable = metadata.is_dir() || metadata.mode() & 0o100 != 0;
        self.files.push(File { path, size, executable, stamp: Stamp::of(metadata) });
    }

    /// Where a file of the list lies on the disk.
    pub fn location(&self, file: &File) -> PathBuf {
        match file.path.strip_prefix(&self.prefix) {
            Some("") | None => self.root.clone(),
            Some(path) => self.root.join(path),
        }
    }

    /// Whether a path, as it would stand in the archive, is in the list.
    pub fn contains(&self, path: &str) -> bool {
        self.files.binary_search_by(|file| file.path.as_str().cmp(path)).is_ok()
    }
}

fn real(path: &Path) -> Result<PathBuf, Error> {
    fs::canonicalize(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::NoSuch { path: path.to_owned(), what: "does not exist" },
        _ => unreadable(&path.display().to_string(), &error),
    })
}

fn unreadable(path: &str, error: &io::Error) -> Error {
    Error::Unreadable(vec![describe(path, error)])
}

/// A path and why it cannot be read, for [`Error::Unreadable`].
pub(crate) fn describe(path: &str, error: &io::Error) -> String {
    let reason = match error.kind() {
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::NotFound => "it is gone".to_owned(),
        _ => error.to_string(),
    };
    format!("{path} ({reason})")
}

fn utf8(name: &OsStr, folder: &str) -> Result<String, Error> {
    let shown = || format!("{folder}{}", name.to_string_lossy());
    let name = name.to_str().ok_or_else(|| Error::NotUtf8(shown()))?;
    if name.contains('\\') { Err(Error::Backslash(shown())) } else { Ok(name.to_owned()) }
}
