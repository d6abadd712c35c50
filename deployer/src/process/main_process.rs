//! The main process of a replica, whether this deployer started it or found it.

use std::{
    collections::BTreeMap,
    io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::Path,
    process::Stdio,
};

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::{
    io::{AsyncWriteExt, Interest, unix::AsyncFd},
    process::{Child, Command},
};

use super::{table, table::ProcessId};
use crate::{backend::Ended, host::log};

/// A process that is waited for.
pub(super) enum MainProcess {
    /// A child of this process: its exit code will be known.
    Child(Box<Child>, i32),
    /// A child of a deployer that is gone: only that it ends will be known.
    Adopted(AsyncFd<OwnedFd>, i32),
}

/// What to run.
pub(super) struct Program<'a> {
    pub(super) python: &'a Path,
    pub(super) launcher: &'a Path,
    pub(super) app_root: &'a Path,
    pub(super) variables: &'a BTreeMap<String, String>,
    pub(super) log: &'a Path,
}

impl MainProcess {
    /// Starts a process in a group of its own, which waits for [`MainProcess::go`] before it does anything.
    pub(super) fn spawn(program: &Program<'_>) -> io::Result<Self> {
        let log = log::open(program.log)?;
        let child = Command::new(program.python)
            .arg(program.launcher)
            .env_clear()
            .envs(program.variables)
            .current_dir(program.app_root)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C in a terminal reaches the group in front, which is then not the replica's.
            .process_group(0)
            .spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self::Child(Box::new(child), pid))
    }

    /// Waits for a process that an earlier deployer started.
    pub(super) fn adopt(process: &ProcessId) -> io::Result<Self> {
        let pid = Pid::from_raw(process.pid).ok_or(io::ErrorKind::NotFound)?;
        let fd = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        // Between the look at the process table and the opening another process may have got the number.
        if !process.is_alive() {
            return Err(io::ErrorKind::NotFound.into());
        }
        #[expect(deprecated, reason = "sound for a descriptor that is owned; what replaces it is unsafe code")]
        let fd = AsyncFd::with_interest(fd, Interest::READABLE)?;
        Ok(Self::Adopted(fd, process.pid))
    }

    pub(super) fn pid(&self) -> i32 {
        match self {
            Self::Child(_, pid) | Self::Adopted(_, pid) => *pid,
        }
    }

    /// Gives the process its order. One that is never given ends by itself, as soon as this deployer does.
    pub(super) async fn go(&mut self, order: &str) -> io::Result<()> {
        let Self::Child(child, _) = self else { return Ok(()) };
        let Some(mut input) = child.stdin.take() else { return Ok(()) };
        input.write_all(order.as_bytes()).await?;
        input.write_all(b"\n").await?;
        input.shutdown().await
    }

    /// Waits for its end. May be given up and called again.
    pub(super) async fn ended(&mut self) -> Ended {
        match self {
            Self::Child(child, _) => match child.wait().await {
                Ok(status) => status.code().map(Ended::Code).or(status.signal().map(Ended::Signal)).unwrap_or_default(),
                Err(error) => {
                    tracing::warn!(%error, "a replica cannot be waited for");
                    Ended::Unknown
                }
            },
            Self::Adopted(fd, _) => {
                // A pidfd is readable once its process has ended; an error can only mean that there is nothing to wait for.
                let _ = fd.readable().await;
                Ended::Unknown
            }
        }
    }

    /// Sends a signal to the process alone, if it has not been waited for.
    pub(super) fn signal(&self, signal: Signal) {
        match self {
            Self::Child(child, pid) if child.id().is_some() => table::signal(*pid, signal),
            Self::Child(..) => {}
            Self::Adopted(fd, _) => {
                // The only error is that it has ended.
                let _ = rustix::process::pidfd_send_signal(fd.get_ref(), signal);
            }
        }
    }
}
