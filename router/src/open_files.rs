//! How many files, and so connections, the process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one, as most servers do: a request takes two, and the usual soft limit is 1024.
///
/// It holds for the whole process, so it is the program's to call, not [`crate::run`]'s. Where it may not be raised, it stays.
pub fn raise_open_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
    {
        tracing::warn!(%error, limit = limit.current, "the limit of open files cannot be raised");
    }
}
