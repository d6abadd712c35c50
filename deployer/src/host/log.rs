//! The logs of replicas: one bounded file each, kept for a while after the replica is gone.
//!
//! A replica writes to its file directly, so that it goes on when the deployer is killed; therefore a file that has grown too large is
//! copied and cut under the writer's hand, and a few lines may be lost between the two.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use proto::{
    id::{Generation, ReplicaId, ServiceName, Workspace},
    query::{LogText, MAX_LOG_BYTES},
};

use crate::backend::{LogWanted, ReplicaLog};

/// How large a file may grow before it is cut.
pub(super) const LARGEST: u64 = 10 << 20;
/// How many files of replicas that are gone are kept for each service.
pub(super) const KEPT: usize = 20;

/// The folder of all logs: `<workspace>/<service>/<generation>-<replica>.log`, the part before the last cut beside it as `.log.1`.
#[derive(Debug, Clone)]
pub(super) struct Logs(PathBuf);

impl Logs {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    fn folder(&self, workspace: &Workspace, service: &ServiceName) -> PathBuf {
        self.0.join(workspace.as_str()).join(service.as_str())
    }

    /// Where a replica's log is.
    pub(super) fn path(
        &self,
        workspace: &Workspace,
        service: &ServiceName,
        generation: Generation,
        replica: &ReplicaId,
    ) -> PathBuf {
        self.folder(workspace, service).join(format!("{generation}-{replica}.log"))
    }

    /// Deletes the oldest logs of a service beyond those that are kept; `running` are not counted.
    pub(super) fn prune(&self, workspace: &Workspace, service: &ServiceName, running: &[ReplicaId]) {
        let mut ended: Vec<_> = list(&self.folder(workspace, service))
            .into_iter()
            .filter(|found| !running.contains(&found.replica))
            .filter_map(|found| Some((fs::metadata(&found.path).ok()?.modified().ok()?, found.path)))
            .collect();
        ended.sort();
        let surplus = ended.len().saturating_sub(KEPT);
        for (_, path) in &ended[..surplus] {
            // A log that cannot be deleted is deleted the next time.
            let _ = fs::remove_file(path);
            let _ = fs::remove_file(older(path));
        }
    }

    /// Deletes all logs of a service.
    pub(super) fn forget(&self, workspace: &Workspace, service: &ServiceName) {
        // What cannot be deleted stays until somebody tidies up by hand.
        let _ = fs::remove_dir_all(self.folder(workspace, service));
    }

    /// The wanted logs, in the order in which their replicas were started. Blocks.
    pub(super) fn read(&self, wanted: &LogWanted) -> Vec<ReplicaLog> {
        let mut found = list(&self.folder(&wanted.workspace, &wanted.service));
        let newest = found.iter().map(|found| found.generation).max();
        let generation = wanted.generation.or(newest);
        found.retain(|found| {
            wanted.replica.as_ref().is_none_or(|replica| *replica == found.replica)
                && (wanted.replica.is_some() && wanted.generation.is_none() || Some(found.generation) == generation)
        });
        found.sort_by_cached_key(|found| {
            (fs::metadata(&found.path).and_then(|metadata| metadata.created()).ok(), found.replica.clone())
        });
        let log = |found: Found| {
            let text = tail(&found.path, wanted.lines);
            ReplicaLog { replica: found.replica, generation: found.generation, text }
        };
        found.into_iter().map(log).collect()
    }
}

/// Opens a log to write to its end.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Writes a log anew. The file stays the same one: its birth says when its replica was started.
pub(crate) fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = open(path)?;
    // One who reads meanwhile gets less of it, and will ask again.
    file.set_len(0)?;
    file.write_all(text)
}

/// Cuts a log that has grown too large; what it held is kept until the next time.
pub(super) fn cut(path: &Path) -> io::Result<()> {
    if fs::metadata(path)?.len() < LARGEST {
        return Ok(());
    }
    fs::copy(path, older(path))?;
    OpenOptions::new().write(true).open(path)?.set_len(0)
}

/// The last lines of a log, within the size of an answer.
pub(super) fn tail(path: &Path, lines: usize) -> LogText {
    let (mut bytes, mut cut) = end_of(path, MAX_LOG_BYTES);
    if !cut && older(path).exists() {
        let (mut before, older_cut) = end_of(&older(path), MAX_LOG_BYTES - bytes.len());
        before.append(&mut bytes);
        (bytes, cut) = (before, older_cut);
    }
    if cut {
        // The first line is most likely a piece of one.
        let start = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
        bytes.drain(..start);
    }
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<_> = text.lines().collect();
    let from = all.len().saturating_sub(lines);
    LogText { lines: all[from..].iter().map(|line| (*line).to_owned()).collect(), cut: cut || from > 0 }
}

fn end_of(path: &Path, most: usize) -> (Vec<u8>, bool) {
    let read = || -> io::Result<(Vec<u8>, bool)> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let from = length.saturating_sub(most as u64);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(most as u64).read_to_end(&mut bytes)?;
        Ok((bytes, from > 0))
    };
    read().unwrap_or_default()
}

fn older(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

struct Found {
    generation: Generation,
    replica: ReplicaId,
    path: PathBuf,
}

fn list(folder: &Path) -> Vec<Found> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let parse = |entry: io::Result<fs::DirEntry>| {
        let path = entry.ok()?.path();
        let (generation, replica) = path.file_name()?.to_str()?.strip_suffix(".log")?.split_once('-')?;
        let (generation, replica) = (Generation(generation.parse().ok()?), replica.parse().ok()?);
        Some(Found { generation, replica, path })
    };
    entries.filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    struct Case {
        _folder: tempfile::TempDir,
        logs: Logs,
        workspace: Workspace,
        service: ServiceName,
    }

    impl Case {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let logs = Logs::new(folder.path().to_owned());
            Self { _folder: folder, logs, workspace: Workspace::default(), service: "ridge".parse().unwrap() }
        }

        fn write(&self, generation: u64, replica: &str, text: &str) -> PathBuf {
            let path =
                self.logs.path(&self.workspace, &self.service, Generation(generation), &replica.parse().unwrap());
            open(&path).unwrap().write_all(text.as_bytes()).unwrap();
            path
        }

        fn read(&self, generation: Option<u64>, replica: Option<&str>, lines: usize) -> Vec<(String, Vec<String>)> {
            let wanted = LogWanted {
                workspace: self.workspace.clone(),
                service: self.service.clone(),
                generation: generation.map(Generation),
                replica: replica.map(|replica| replica.parse().unwrap()),
                lines,
            };
            self.logs.read(&wanted).into_iter().map(|log| (log.replica.to_string(), log.text.lines)).collect()
        }
    }

    #[test]
    fn the_newest_generation_is_read_when_none_is_named() {
        let case = Case::new();
        case.write(9, "a", "old\n");
        case.write(10, "b", "one\ntwo\n");
        assert_eq!(case.read(None, None, 1), [("b".to_owned(), vec!["two".to_owned()])]);
        assert_eq!(case.read(Some(9), None, 10), [("a".to_owned(), vec!["old".to_owned()])]);
        assert_eq!(case.read(None, Some("a"), 10), [("a".to_owned(), vec!["old".to_owned()])]);
        assert_eq!(case.read(Some(7), None, 10), []);
    }

    #[test]
    fn a_log_is_cut_when_it_is_too_large_and_read_across_the_cut() {
        let case = Case::new();
        let path = case.write(1, "a", &"x".repeat(LARGEST as usize));
        open(&path).unwrap().write_all(b"\nlast before\n").unwrap();
        let mut writer = open(&path).unwrap();
        cut(&path).unwrap();
        writer.write_all(b"first after\n").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 12, "the writer goes on at the new end");
        let text = tail(&path, 2);
        assert_eq!(text.lines, ["last before", "first after"]);
        assert!(text.cut);
        cut(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 12, "a small one is left alone");
    }

    #[test]
    fn an_answer_is_bounded_and_begins_with_a_whole_line() {
        let case = Case::new();
        let path = case.write(1, "a", &"0123456789\n".repeat(100_000));
        let text = tail(&path, usize::MAX);
        assert!(text.cut && text.lines.len() * 11 <= MAX_LOG_BYTES);
        assert_eq!(text.lines[0], "0123456789");
    }

    #[test]
    fn only_the_newest_logs_of_ended_replicas_are_kept() {
        let case = Case::new();
        let running: ReplicaId = "running".parse().unwrap();
        case.write(1, "running", "x");
        for n in 0..KEPT as u64 + 5 {
            let path = case.write(n, &format!("r{n}"), "x");
            let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(n + 1);
            File::options().write(true).open(path).unwrap().set_modified(at).unwrap();
        }
        case.logs.prune(&case.workspace, &case.service, std::slice::from_ref(&running));
        let left = list(&case.logs.folder(&case.workspace, &case.service));
        assert_eq!(left.len(), KEPT + 1);
        assert!(left.iter().any(|found| found.replica == running));
        assert!(!left.iter().any(|found| found.replica.as_str() == "r4"));
    }
}
