//! How a command ends: what was wrong, what to do, and the exit code.

use std::process::ExitCode;

use proto::{
    failure::{Blame, Failure},
    query::Refusal,
};
use runtime::bus::AskError;
use serde_json::json;

use crate::output::{self, Format};

/// What a command gives back.
pub type Result<T = ()> = std::result::Result<T, Ending>;

/// A command that did not do what was asked.
#[derive(Debug)]
pub struct Ending(Box<Told>);

/// What is told of it; boxed, since results that hold it are passed through every command.
#[derive(Debug)]
struct Told {
    code: u8,
    details: Vec<String>,
    cause: String,
    notes: Vec<String>,
    remedy: String,
    failure: Option<Failure>,
}

impl Ending {
    /// The user can mend it: exit code 1.
    pub fn mend(cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(1, cause.into(), remedy.into())
    }

    /// The command was wrong: exit code 2.
    pub fn usage(cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(2, cause.into(), remedy.into())
    }

    /// kaai could not: exit code 3.
    pub fn platform(cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(3, cause.into(), remedy.into())
    }

    fn new(code: u8, cause: String, remedy: String) -> Self {
        Self(Box::new(Told { code, details: Vec::new(), cause, notes: Vec::new(), remedy, failure: None }))
    }

    /// Adds a line between cause and remedy.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.0.notes.push(note.into());
        self
    }

    /// Tells the user, and gives the exit code.
    pub fn tell(self, format: Format) -> ExitCode {
        let told = self.0;
        if format == Format::Json {
            output::json(&json!({
                "error": { "exitCode": told.code, "cause": told.cause, "remedy": told.remedy, "details": told.details, "failure": told.failure }
            }));
        }
        if !told.details.is_empty() {
            output::aside("");
            for line in &told.details {
                output::aside(&format!("    {line}"));
            }
            output::aside("");
        }
        output::aside(&told.cause);
        for note in &told.notes {
            output::aside(note);
        }
        if !told.remedy.is_empty() {
            output::aside(&format!("→ {}", told.remedy));
        }
        ExitCode::from(told.code)
    }
}

impl From<Failure> for Ending {
    fn from(failure: Failure) -> Self {
        let code = match failure.blame {
            Blame::Project => 1,
            Blame::Platform => 3,
        };
        let mut remedy = failure.remedy.clone();
        if let Some(log) = &failure.log {
            remedy = format!("{remedy}      whole log: {log}");
        }
        let mut ending = Self::new(code, failure.to_string(), remedy);
        ending.0.details.clone_from(&failure.details);
        ending.0.failure = Some(failure);
        ending
    }
}

impl From<Refusal> for Ending {
    fn from(refusal: Refusal) -> Self {
        match refusal.kind.as_str() {
            "unavailable" => Self::platform(refusal.cause, refusal.remedy),
            _ => Self::mend(refusal.cause, refusal.remedy),
        }
    }
}

impl From<AskError> for Ending {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Refused(refusal) => refusal.into(),
            AskError::Nobody => Self::platform(error.to_string(), "see that all five components run: kaai status"),
            other => Self::platform(other.to_string(), "try again; if it stays, look at the logs of the components"),
        }
    }
}

impl From<runtime::bus::Error> for Ending {
    fn from(error: runtime::bus::Error) -> Self {
        let remedy = match error {
            runtime::bus::Error::Full(_) => "free some space on the disk of nats-server, then do it again",
            _ => "see that kaai runs (`kaai up`) and that the context is right (`kaai context list`)",
        };
        Self::platform(error.to_string(), remedy)
    }
}
