//! What the kernel says of processes: who is alive, since when, and who belongs to which replica.

use std::{io, path::Path};

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use crate::host::MARK;

/// A process that no other can be taken for: numbers are used again, but not with the same start in the same boot of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ProcessId {
    pub(super) pid: i32,
    /// Clock ticks after the machine's start.
    started: u64,
    /// The machine's start.
    boot: String,
}

impl ProcessId {
    /// The process that has this number now.
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).map_err(io::Error::other)?;
        let (_, started) = stat(pid).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Self { pid, started, boot: boot_id()? })
    }

    /// Whether it still runs.
    pub(super) fn is_alive(&self) -> bool {
        let same_boot = boot_id().is_ok_and(|boot| boot == self.boot);
        same_boot && stat(self.pid).is_some_and(|(state, started)| state != b'Z' && started == self.started)
    }
}

/// Sends a signal to a whole process group; none there is fine.
pub(super) fn signal_group(leader: i32, signal: Signal) {
    if let Some(leader) = Pid::from_raw(leader).filter(|_| leader > 1) {
        // The only errors are that nobody is left and that somebody else's process has joined; neither can be helped.
        let _ = rustix::process::kill_process_group(leader, signal);
    }
}

/// Sends a signal to one process; none there is fine.
pub(super) fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid).filter(|_| pid > 1) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Kills every process that was started with a mark, until there is none. Looks through the whole process table.
pub(super) fn kill_marked(mark: &str) {
    for _ in 0..100 {
        let marked = marked(mark);
        if marked.is_empty() {
            return;
        }
        for pid in marked {
            signal(pid, Signal::KILL);
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// The processes that carry a mark.
pub(super) fn marked(mark: &str) -> Vec<i32> {
    let mark = format!("{MARK}={mark}");
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let carries = |pid: &i32| {
        let variables = std::fs::read(Path::new("/proc").join(pid.to_string()).join("environ")).unwrap_or_default();
        variables.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    };
    pids.filter(carries).filter(|pid| stat(*pid).is_some_and(|(state, _)| state != b'Z')).collect()
}

/// State and start of a process.
fn stat(pid: i32) -> Option<(u8, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, even parentheses and spaces.
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<_> = rest.split_whitespace().collect();
    Some((*fields.first()?.as_bytes().first()?, fields.get(19)?.parse().ok()?))
}

fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn sleeper(mark: &str) -> std::process::Child {
        Command::new("sleep").arg("600").env(MARK, mark).stdin(Stdio::null()).spawn().unwrap()
    }

    #[test]
    fn a_process_is_known_until_it_ends() {
        let mut child = sleeper("none");
        let id = ProcessId::of(child.id()).unwrap();
        assert!(id.is_alive());
        let another = ProcessId { started: id.started + 1, ..id.clone() };
        assert!(!another.is_alive(), "another process with the same number");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!id.is_alive());
    }

    #[test]
    fn a_process_that_nobody_has_waited_for_is_not_alive() {
        let mut child = sleeper("none");
        let id = ProcessId::of(child.id()).unwrap();
        signal(id.pid, Signal::KILL);
        while id.is_alive() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }

    #[test]
    fn processes_are_found_and_ended_by_their_mark() {
        let place = format!("test-{}", std::process::id());
        let (mine, other) = (format!("{place}/r-1"), "other/r-1".to_owned());
        let (mut child, mut bystander) = (sleeper(&mine), sleeper(&other));
        while marked(&mine).is_empty() || marked(&other).is_empty() {
            std::thread::yield_now();
        }
        kill_marked(&mine);
        assert!(!child.wait().unwrap().success());
        assert!(marked(&mine).is_empty() && !marked(&other).is_empty());
        bystander.kill().unwrap();
        bystander.wait().unwrap();
    }
}
