//! Servers that a `kaai up` left behind when it was killed: found by their command line, and ended.
//!
//! It knows processes and their arguments. It does not know what the server is for.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use crate::ending::{Ending, Result};

/// How long a process may take to end when it is asked, and again when it is killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Ends every server that runs with this configuration: it still holds the port and the files.
///
/// # Errors
///
/// Fails when one does not end, which a process that the kernel holds cannot.
pub(super) async fn end(config: &Path) -> Result {
    let send = |pid, signal| {
        // It may have ended since it was found; then there is nothing to signal.
        let _ = kill_process(pid, signal);
    };
    end_all(|| running(config), send).await
}

async fn end_all(running: impl Fn() -> Vec<Pid>, send: impl Fn(Pid, Signal)) -> Result {
    let begun = Instant::now();
    running().into_iter().for_each(|pid| send(pid, Signal::TERM));
    loop {
        let left = running();
        let Some(first) = left.first() else { return Ok(()) };
        if begun.elapsed() > 2 * PATIENCE {
            let pid = first.as_raw_nonzero();
            return Err(Ending::platform(
                format!("the nats-server of an earlier kaai (process {pid}) does not end, even when it is killed"),
                format!("see what holds it (`cat /proc/{pid}/stack`), end it, or choose another --home"),
            ));
        }
        if begun.elapsed() > PATIENCE {
            left.into_iter().for_each(|pid| send(pid, Signal::KILL));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// The processes that were started as [`super::spawn`] does it, with this configuration. One that has ended and was not waited for has no
/// arguments any more.
fn running(config: &Path) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    pids.filter(|pid| {
        let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        is_with(config, &line)
    })
    .collect()
}

fn is_with(config: &Path, command_line: &[u8]) -> bool {
    let mut arguments = command_line.split(|byte| *byte == 0).skip(1).map(OsStr::from_bytes);
    (arguments.next(), arguments.next(), arguments.next())
        == (Some("-c".as_ref()), Some(config.as_ref()), Some("-l".as_ref()))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn only_a_server_with_our_configuration_is_ours() {
        let is_ours = |line: &[u8]| is_with(Path::new("/home/u/kaai/nats/nats.conf"), line);
        assert!(is_ours(b"/bin/nats-server\0-c\0/home/u/kaai/nats/nats.conf\0-l\0/home/u/kaai/nats/nats.log\0"));
        for other in [
            &b"/bin/nats-server\0-c\0/home/u/kaai/nats/nats.conf.old\0-l\0x\0"[..],
            b"tail\0-f\0/home/u/kaai/nats/nats.conf\0",
            b"vi\0-c\0/home/u/kaai/nats/nats.conf\0",
            b"",
        ] {
            assert!(!is_ours(other), "{}", String::from_utf8_lossy(other));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_cannot_be_killed_is_given_up_in_words() {
        let (pid, sent) = (Pid::INIT, RefCell::new(Vec::new()));
        let ended = end_all(|| vec![pid], |_, signal| sent.borrow_mut().push(signal)).await;
        assert!(format!("{:?}", ended.unwrap_err()).contains("(process 1) does not end"));
        let sent = sent.into_inner();
        assert_eq!((sent[0], sent[1]), (Signal::TERM, Signal::KILL), "{sent:?}");

        let left = RefCell::new(vec![pid]);
        end_all(|| left.borrow().clone(), |_, signal| left.borrow_mut().retain(|_| signal != Signal::KILL))
            .await
            .unwrap();
    }
}
