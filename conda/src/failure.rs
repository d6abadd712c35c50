//! What can go wrong, each kind with an exit status of its own.

use std::{error::Error, io, path::Path};

use rattler_repodata_gateway::GatewayError;
use rattler_solve::SolveError;

/// Why nothing was solved or installed; the message is one line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The request is wrong.
    #[error("{0}")]
    Request(String),
    /// The packages do not go together, or are not there.
    #[error("{0}")]
    Unsatisfiable(String),
    /// A channel gives no answer.
    #[error("{0}")]
    Unreachable(String),
    /// A package is not what its channel says.
    #[error("{0}")]
    Damaged(String),
    /// The disk is full.
    #[error("no space is left on the disk: {0}")]
    Full(String),
    /// There is no such channel.
    #[error("{0}")]
    Missing(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl Failure {
    /// The exit status.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Other(_) => 1,
            Self::Request(_) => 2,
            Self::Unsatisfiable(_) => 3,
            Self::Unreachable(_) => 4,
            Self::Damaged(_) => 5,
            Self::Full(_) => 6,
            Self::Missing(_) => 7,
        }
    }

    /// A file cannot be read or written.
    pub(crate) fn file(path: &Path, error: &io::Error) -> Self {
        Self::of(&format!("{}: {error}", path.display()))
    }

    /// What a channel's answer means.
    pub(crate) fn of_channel(error: &GatewayError) -> Self {
        if let GatewayError::SubdirNotFoundError(missing) = error {
            return Self::Missing(format!("there is no channel at {}", missing.channel.canonical_name()));
        }
        Self::of(&sentence(error))
    }

    /// Why there is no solution; the solver's words are told whole before.
    pub(crate) fn of_solver(error: &SolveError) -> Self {
        match error {
            SolveError::Unsolvable(reasons) => {
                let text = reasons.join("\n");
                text.lines().for_each(crate::progress::line);
                Self::Unsatisfiable(in_a_line(&text))
            }
            other => Self::Other(one_line(&other.to_string())),
        }
    }

    /// Tells the kind of an error by what is said: many are hidden behind others that only repeat their words.
    pub(crate) fn of(said: &str) -> Self {
        let said = one_line(said);
        let has = |words: &[&str]| words.iter().any(|words| said.contains(words));
        if has(&["No space left on device", "Disk quota exceeded"]) {
            return Self::Full(said);
        }
        if has(&["hash mismatch"]) {
            return Self::Damaged(said);
        }
        if has(&["(404 Not Found)", "(410 Gone)"]) {
            return Self::Missing(said);
        }
        // Too many requests, a login that is missing: no fault of whoever named the channel.
        if has(&["error sending request", "HTTP status", "error decoding response body"]) {
            return Self::Unreachable(said);
        }
        Self::Other(said)
    }
}

/// An error with all that lies under it, each once.
pub(crate) fn sentence(error: &(dyn Error + 'static)) -> String {
    let (mut said, mut next) = (String::new(), Some(error));
    while let Some(cause) = next {
        next = cause.source();
        let text = cause.to_string();
        if !said.contains(&text) {
            said += if said.is_empty() { "" } else { ": " };
            said += &text;
        }
    }
    said
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The solver's tree of reasons in one line: what could not be had, without the drawing around it.
fn in_a_line(text: &str) -> String {
    let bare = |line: &str| line.trim_matches(|c: char| c.is_whitespace() || "│├└─".contains(c)).to_owned();
    let lines = text.lines().map(bare).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_channel_that_is_not_there_is_missing() {
        let answered = |status: &str| Failure::of(&format!("HTTP status client error ({status}) for url")).code();
        assert_eq!(["404 Not Found", "410 Gone"].map(answered), [7, 7]);
        let others = ["401 Unauthorized", "403 Forbidden", "408 Request Timeout", "429 Too Many Requests"];
        assert_eq!(others.map(answered), [4; 4]);
    }
}
