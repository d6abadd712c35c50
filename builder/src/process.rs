//! One child process: its lines as they come, its whole group ended when nobody waits any more.
//!
//! It knows processes and pipes. It does not know what is run, nor what the lines mean.

use std::{
    collections::VecDeque,
    io,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::Command,
    sync::mpsc,
};

/// How many bytes of a line are kept.
const LINE: usize = 4096;
/// How many of the last lines of each pipe are kept.
const LINES: usize = 5000;
/// How long lines are waited for after the process has ended: a grandchild may hold the pipe.
const LAST_LINES: Duration = Duration::from_secs(1);

/// How a process ended, and what it said.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its status.
    pub(crate) status: ExitStatus,
    /// The last lines of its standard output.
    pub(crate) stdout: Vec<String>,
    /// The last lines of its standard error.
    pub(crate) stderr: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pipe {
    Stdout,
    Stderr,
}

/// Runs a command in a process group of its own and hands on each line of both its pipes.
///
/// Dropping the future kills the whole group.
///
/// # Errors
///
/// Fails when the program cannot be started or waited for.
pub(crate) async fn run(mut command: Command, mut each: impl FnMut(&str)) -> io::Result<Ended> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    let mut child = command.spawn()?;
    let group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
    let (sender, mut receiver) = mpsc::channel(64);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (mut out, mut err) = (VecDeque::new(), VecDeque::new());
    let status = {
        let reading = async {
            let (one, two) = (sender.clone(), sender);
            tokio::join!(read(stdout, Pipe::Stdout, one), read(stderr, Pipe::Stderr, two));
        };
        let keeping = async {
            while let Some((pipe, line)) = receiver.recv().await {
                each(&line);
                let kept = if pipe == Pipe::Stdout { &mut out } else { &mut err };
                if kept.len() == LINES {
                    kept.pop_front();
                }
                kept.push_back(line);
            }
        };
        let mut talking = std::pin::pin!(async { tokio::join!(reading, keeping) });
        tokio::select! {
            status = child.wait() => {
                drop(group);
                // What it said last is worth a moment; what a stray grandchild says is not.
                let _cut_short = tokio::time::timeout(LAST_LINES, &mut talking).await;
                status?
            }
            _ = &mut talking => child.wait().await?,
        }
    };
    Ok(Ended { status, stdout: out.into(), stderr: err.into() })
}

/// A process group that is killed when this is dropped; one that has ended is not there to be killed.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // The usual error is that nobody is left.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

/// Sends each line on, cut to [`LINE`] bytes; a broken pipe is its end.
async fn read<R: AsyncRead + Unpin>(pipe: Option<R>, which: Pipe, lines: mpsc::Sender<(Pipe, String)>) {
    let Some(pipe) = pipe else { return };
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    while let Ok(piece) = reader.fill_buf().await {
        if piece.is_empty() {
            break;
        }
        let end = piece.iter().position(|byte| *byte == b'\n');
        let taken = &piece[..end.unwrap_or(piece.len())];
        let room = LINE.saturating_sub(line.len()).min(taken.len());
        line.extend_from_slice(&taken[..room]);
        let length = taken.len() + usize::from(end.is_some());
        reader.consume(length);
        if end.is_some() && lines.send((which, text(&mut line))).await.is_err() {
            return;
        }
    }
    if !line.is_empty() {
        // Nobody to send to means nobody who cares.
        let _ = lines.send((which, text(&mut line))).await;
    }
}

fn text(line: &mut Vec<u8>) -> String {
    let text = String::from_utf8_lossy(line).trim_end_matches('\r').to_owned();
    line.clear();
    text
}

#[cfg(test)]
mod tests {
    use runtime::testing::until;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn lines_of_both_pipes_come_as_they_are_said() {
        let mut heard = Vec::new();
        let ended =
            run(shell("echo a; echo b >&2; printf 'c\\r\\nno end'; exit 3"), |line| heard.push(line.to_owned()));
        let ended = ended.await.unwrap();
        assert_eq!(ended.status.code(), Some(3));
        assert_eq!(ended.stdout, ["a", "c", "no end"]);
        assert_eq!(ended.stderr, ["b"]);
        heard.sort();
        assert_eq!(heard, ["a", "b", "c", "no end"]);
    }

    #[tokio::test]
    async fn a_line_without_end_is_cut() {
        let ended = run(shell("head -c 1000000 /dev/zero | tr '\\0' x; echo; echo after"), |_| ()).await.unwrap();
        assert_eq!(ended.stdout[0].len(), LINE);
        assert_eq!(ended.stdout[1], "after");
    }

    #[tokio::test]
    async fn a_grandchild_that_holds_the_pipe_is_ended_and_not_waited_for() {
        let ended = run(shell("sleep 600 & echo $!"), |_| ()).await.unwrap();
        gone(&ended.stdout[0]).await;
    }

    #[tokio::test]
    async fn the_whole_group_ends_when_nobody_waits_any_more() {
        let (sender, mut pid) = mpsc::unbounded_channel();
        let running = run(shell("sleep 600 & echo $!; wait"), move |line| {
            // The test may have ended.
            let _ = sender.send(line.to_owned());
        });
        let pid = tokio::select! {
            _ = running => panic!("it ended by itself"),
            pid = pid.recv() => pid.unwrap(),
        };
        gone(&pid).await;
    }

    async fn gone(pid: &str) {
        let stat = format!("/proc/{pid}/stat");
        until("the grandchild has ended", Duration::from_secs(10), async || {
            // One that nobody has reaped yet is a zombie.
            let state = std::fs::read_to_string(&stat).unwrap_or_default();
            (state.is_empty() || state.contains(") Z ")).then_some(())
        })
        .await;
    }
}
