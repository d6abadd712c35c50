//! Why something could not be done, in words that serve both a person and a program.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The part of the road from folder to endpoint at which something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Reading the project's files, before anything is sent.
    Reading,
    /// Walking, zipping and storing the project.
    Packaging,
    /// Finding or building the environment.
    Building,
    /// Starting replicas and waiting for `init()`.
    Starting,
    /// Moving traffic to the new generation.
    Routing,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reading => "reading",
            Self::Packaging => "packaging",
            Self::Building => "building",
            Self::Starting => "starting",
            Self::Routing => "routing",
        })
    }
}

/// Who can mend a failure; the CLI's exit code follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Blame {
    /// The user can mend it in the project or the request: exit code 1.
    Project,
    /// kaai or what it stands on could not: exit code 3.
    Platform,
}

/// A failure that names its stage, its cause and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("failed at {stage}: {cause}")]
pub struct Failure {
    /// Where it happened.
    pub stage: Stage,
    /// Who can mend it.
    pub blame: Blame,
    /// The likely cause in one line, a lower-case fragment without a full stop.
    pub cause: String,
    /// What the user can do, an imperative sentence without a full stop.
    pub remedy: String,
    /// The lines that show it, a traceback for example; at most 50.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
    /// The command that shows the whole log, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
}

/// How many lines of detail a failure carries at most: events stay far below the bus's payload limit.
pub const MAX_DETAILS: usize = 50;

/// How many characters one line of detail keeps at most.
pub const MAX_DETAIL_CHARS: usize = 500;

impl Failure {
    /// A failure that the user can mend.
    pub fn project(stage: Stage, cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            stage,
            blame: Blame::Project,
            cause: cause.into(),
            remedy: remedy.into(),
            details: Vec::new(),
            log: None,
        }
    }

    /// A failure of kaai or of what it stands on.
    pub fn platform(stage: Stage, cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { blame: Blame::Platform, ..Self::project(stage, cause, remedy) }
    }

    /// Adds the last lines of `text`, at most [`MAX_DETAILS`], each cut to [`MAX_DETAIL_CHARS`].
    #[must_use]
    pub fn with_details<'a>(mut self, lines: impl IntoIterator<Item = &'a str>) -> Self {
        let lines: Vec<_> = lines.into_iter().collect();
        let from = lines.len().saturating_sub(MAX_DETAILS);
        self.details = lines[from..].iter().map(|line| line.chars().take(MAX_DETAIL_CHARS).collect()).collect();
        self
    }

    /// Adds the command that shows the whole log.
    #[must_use]
    pub fn with_log(mut self, command: impl Into<String>) -> Self {
        self.log = Some(command.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_keep_the_last_lines_and_stay_bounded() {
        let long = "x".repeat(2000);
        let lines: Vec<String> = (0..200).map(|n| format!("{n} {long}")).collect();
        let failure = Failure::project(Stage::Starting, "c", "r").with_details(lines.iter().map(String::as_str));
        assert_eq!(failure.details.len(), MAX_DETAILS);
        assert!(failure.details[49].starts_with("199 "));
        assert!(failure.details.iter().all(|line| line.chars().count() <= MAX_DETAIL_CHARS));
    }
}
