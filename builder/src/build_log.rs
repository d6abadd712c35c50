//! The log of one build: a file that grows, and the lines as they come for whoever waits.
//!
//! It knows lines, and blots out credentials in them. It does not know what is built.

use std::{
    collections::VecDeque,
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use proto::secret;
use tokio::sync::broadcast;

/// How long a log may become; what comes after is left out.
const MOST: u64 = 8 << 20;
/// How many of the newest lines are told to those who come late.
const RECENT: usize = 20;
/// How many lines may wait for a slow reader before the oldest are dropped.
const WAITING: usize = 1024;

/// The log of one build.
pub struct BuildLog {
    lines: broadcast::Sender<String>,
    file: Mutex<Writer>,
    path: PathBuf,
}

#[derive(Default)]
struct Writer {
    file: Option<File>,
    written: u64,
    /// The newest lines, for those who come to wait after they were said.
    recent: VecDeque<String>,
}

impl BuildLog {
    /// A log that writes to a file once `begin` is called.
    pub fn new(path: PathBuf) -> Self {
        let (lines, _) = broadcast::channel(WAITING);
        Self { lines, file: Mutex::default(), path }
    }

    /// Begins the file anew.
    pub(crate) fn begin(&self) {
        let open = || {
            let folder = self.path.parent().unwrap_or(Path::new("/"));
            std::fs::create_dir_all(folder)?;
            // A new file, so that whoever follows the old one is not confused by half of each.
            match std::fs::remove_file(&self.path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            File::create_new(&self.path)
        };
        let file = open()
            .map_err(|error| tracing::warn!(path = %self.path.display(), %error, "no log is kept of this build"))
            .ok();
        *self.writer() = Writer { file, ..Writer::default() };
    }

    /// Adds a line, without the credentials that an address in it may carry.
    pub fn line(&self, line: &str) {
        let line = secret::redact(line);
        let mut writer = self.writer();
        let (written, length) = (writer.written, line.len() as u64 + 1);
        if let Some(file) = &mut writer.file {
            let text = match written + length {
                total if total <= MOST => format!("{line}\n"),
                total if total - length <= MOST => "… the log is full; what came after is left out\n".to_owned(),
                _ => String::new(),
            };
            if let Err(error) = file.write_all(text.as_bytes()) {
                tracing::warn!(path = %self.path.display(), %error, "the log of this build ends here");
                writer.file = None;
            }
        }
        writer.written += length;
        self.send(&mut writer, line);
    }

    /// Gives a line to those who wait, without keeping it: one that another builder keeps.
    pub(crate) fn hand_on(&self, line: String) {
        self.send(&mut self.writer(), line);
    }

    fn send(&self, writer: &mut Writer, line: String) {
        if writer.recent.len() == RECENT {
            writer.recent.pop_front();
        }
        writer.recent.push_back(line.clone());
        // Nobody may be waiting just now.
        let _ = self.lines.send(line);
    }

    /// The newest lines that have come, and those that come from now on.
    pub(crate) fn subscribe(&self) -> (Vec<String>, broadcast::Receiver<String>) {
        let writer = self.writer();
        (writer.recent.iter().cloned().collect(), self.lines.subscribe())
    }

    /// Where the file is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn writer(&self) -> std::sync::MutexGuard<'_, Writer> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows a log that another builder writes on this machine.
pub(crate) struct Follower {
    path: PathBuf,
    read: u64,
    rest: Vec<u8>,
}

impl Follower {
    /// Follows from the beginning of the file.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, read: 0, rest: Vec::new() }
    }

    /// The whole lines that have come since the last call, at most 256 KiB of them; none where there is no such file.
    pub(crate) fn lines(&mut self) -> Vec<String> {
        let Ok(mut file) = File::open(&self.path) else { return Vec::new() };
        let length = file.metadata().map_or(0, |meta| meta.len());
        if length < self.read {
            (self.read, self.rest) = (0, Vec::new());
        }
        let mut piece = Vec::new();
        let got = file.seek(SeekFrom::Start(self.read)).and_then(|_| file.take(256 << 10).read_to_end(&mut piece));
        self.read += got.unwrap_or(0) as u64;
        self.rest.append(&mut piece);
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
        let whole: Vec<u8> = self.rest.drain(..=end).collect();
        String::from_utf8_lossy(&whole).lines().map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_kept_and_handed_on_without_credentials() {
        let folder = tempfile::tempdir().unwrap();
        let log = BuildLog::new(folder.path().join("logs/a.log"));
        let (recent, mut heard) = log.subscribe();
        assert!(recent.is_empty());
        log.line("before the file");
        log.begin();
        log.line("https://user:hunter2@host/simple");
        log.line("second");
        assert_eq!(std::fs::read_to_string(log.path()).unwrap(), "https://***@host/simple\nsecond\n");
        assert_eq!(heard.try_recv().unwrap(), "before the file");
        assert_eq!(heard.try_recv().unwrap(), "https://***@host/simple");
        assert_eq!(log.subscribe().0, ["https://***@host/simple", "second"], "whoever comes late hears them too");
        log.begin();
        assert_eq!(std::fs::read_to_string(log.path()).unwrap(), "");
    }

    #[test]
    fn a_log_does_not_grow_without_end() {
        let folder = tempfile::tempdir().unwrap();
        let log = BuildLog::new(folder.path().join("a.log"));
        log.begin();
        let line = "x".repeat(1 << 20);
        (0..12).for_each(|_| log.line(&line));
        let text = std::fs::read_to_string(log.path()).unwrap();
        assert!(text.len() as u64 <= MOST + 100);
        assert_eq!(text.matches("the log is full").count(), 1);
    }

    #[test]
    fn a_follower_sees_whole_lines_once_and_begins_anew_with_a_new_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        let mut follower = Follower::new(path.clone());
        assert!(follower.lines().is_empty());
        std::fs::write(&path, "a\nb\nhalf").unwrap();
        assert_eq!(follower.lines(), ["a", "b"]);
        std::fs::write(&path, "a\nb\nhalf done\n").unwrap();
        assert_eq!(follower.lines(), ["half done"]);
        std::fs::write(&path, "c\n").unwrap();
        assert_eq!(follower.lines(), ["c"]);
        assert!(follower.lines().is_empty());
    }
}
