//! What a replica's launcher has said so far, read from its status file.

use std::{
    fs,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use serde::Deserialize;

use crate::backend::{Phase, Report};

/// How much is read at a time; a launcher says a hundredth of it in all.
const MOST: u64 = 1 << 20;

/// The launcher's words up to now. Times are those of the monotonic clock, in seconds.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Said {
    /// When the first worker began to import the script.
    pub(super) import: Option<f64>,
    /// When requests were listened for: every worker has finished `init()`.
    pub(super) serving: Option<f64>,
    /// What kept the script from being served.
    pub(super) failed: Option<Report>,
}

#[derive(Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Event {
    Started {},
    Import { at: f64 },
    Init {},
    Loaded {},
    Serving { at: f64 },
    Failed(Report),
    Ending {},
}

/// Reads the file from where it was left off.
pub(super) struct StatusFile {
    path: PathBuf,
    read: u64,
    pub(super) said: Said,
}

impl StatusFile {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), read: 0, said: Said::default() }
    }

    /// Takes in what is new. The file has a few lines in all.
    pub(super) fn refresh(&mut self) {
        let Ok(new) = self.unread() else { return };
        // A line without its end is still being written.
        let Some(end) = new.iter().rposition(|byte| *byte == b'\n') else { return };
        for line in new[..end].split(|byte| *byte == b'\n') {
            match serde_json::from_slice(line) {
                Ok(event) => self.said.take(event),
                Err(error) => tracing::debug!(%error, path = %self.path.display(), "passed over a line"),
            }
        }
        self.read += end as u64 + 1;
    }

    /// What is behind the part that was read. A replica might put anything in the file's place: only a file is read, and not all of a large one.
    fn unread(&self) -> io::Result<Vec<u8>> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mut file = fs::File::options().read(true).custom_flags(flags.bits().cast_signed()).open(&self.path)?;
        let mut new = Vec::new();
        if file.metadata()?.is_file() {
            file.seek(SeekFrom::Start(self.read))?;
            file.take(MOST).read_to_end(&mut new)?;
        }
        Ok(new)
    }
}

impl Said {
    fn take(&mut self, event: Event) {
        match event {
            Event::Import { at } => {
                self.import.get_or_insert(at);
            }
            Event::Serving { at } => self.serving = Some(at),
            Event::Failed(report) => {
                // The first of several workers to fail has the cause; a server that cannot be imported explains all the rest.
                let better = self
                    .failed
                    .as_ref()
                    .is_none_or(|known| known.phase != Phase::Server && report.phase == Phase::Server);
                if better {
                    self.failed = Some(report);
                }
            }
            Event::Started {} | Event::Init {} | Event::Loaded {} | Event::Ending {} => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_are_taken_as_they_become_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("status");
        let mut status = StatusFile::new(&path);
        status.refresh();
        assert_eq!(status.said, Said::default());
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(
            b"{\"event\":\"started\",\"at\":1,\"pid\":7}\n{\"event\":\"import\",\"at\":1.5}\n{\"event\":\"serv",
        )
        .unwrap();
        status.refresh();
        assert_eq!((status.said.import, status.said.serving), (Some(1.5), None));
        file.write_all(b"ing\",\"at\":2.25}\nnonsense\n{\"event\":\"news\"}\n{\"event\":\"ending\",\"code\":7}\n")
            .unwrap();
        status.refresh();
        assert_eq!(status.said.serving, Some(2.25));
    }

    #[test]
    fn nothing_is_read_that_is_no_file_of_the_replicas_own() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("status"), folder.path().join("other"));
        fs::write(&other, "{\"event\":\"serving\",\"at\":1}\n").unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        let mut status = StatusFile::new(&path);
        status.refresh();
        assert_eq!(status.said, Said::default(), "a link");
        fs::remove_file(&path).unwrap();
        // Whoever opens it to read would wait for a writer.
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        status.refresh();
        assert_eq!(status.said, Said::default(), "a pipe");
    }

    #[test]
    fn the_first_cause_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("status");
        let line = |message: &str| {
            format!(
                r#"{{"event":"failed","at":1,"phase":"init","kind":"E","message":"{message}","module":null,"file":null,"line":null,"traceback":[]}}"#
            )
        };
        fs::write(&path, format!("{}\n{}\n", line("first"), line("second"))).unwrap();
        let mut status = StatusFile::new(&path);
        status.refresh();
        assert_eq!(status.said.failed.unwrap().message, "first");
    }
}
