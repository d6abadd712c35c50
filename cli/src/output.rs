//! Saying things: results to standard output, everything else to standard error.

use std::{
    io::{IsTerminal, Write},
    path::Path,
    time::Duration,
};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::time::Instant;

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Writes a result for a program.
pub fn json(value: &impl Serialize) {
    let text = serde_json::to_string_pretty(value).unwrap_or_else(|error| format!("{{\"error\": \"{error}\"}}"));
    line(&text);
}

/// Writes a line of a result. A reader that has gone is no error: `kaai events | head` ends quietly.
pub fn line(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
}

/// Writes bytes of a result as they are.
pub fn raw(bytes: &[u8]) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(bytes).and_then(|()| stdout.flush());
}

/// Says something that is not the result.
pub fn aside(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// How a person calls this program: `kaai` where PATH has one, else by its path, so that a command that is shown works when it is copied.
#[expect(clippy::disallowed_methods, reason = "PATH is where a shell looks for programs")]
pub fn program() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    let known = std::env::split_paths(&path).any(|folder| folder.join("kaai").is_file());
    match std::env::current_exe() {
        Ok(own) if !known => quoted(&own),
        _ => "kaai".to_owned(),
    }
}

/// A path as one word of a shell.
pub fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    match text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+:@".contains(c)) {
        true => text,
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

/// Writes rows under a heading, each column as wide as it must be.
pub fn table(heading: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([heading[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..heading.len()).map(width).collect();
    let print = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<_> = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        line(padded.join("  ").trim_end());
    };
    print(&mut heading.iter().copied());
    for row in rows {
        print(&mut row.iter().map(String::as_str));
    }
}

/// The stages of something that takes time: a moving line while a stage is on, a standing one when it is over.
pub struct Stages {
    bar: Option<ProgressBar>,
    quiet: bool,
    begun: Instant,
}

impl Stages {
    /// Nothing is shown when the result is for a program.
    pub fn new(format: Format) -> Self {
        Self { bar: None, quiet: format == Format::Json, begun: Instant::now() }
    }

    /// A stage has news. On a terminal its line moves; elsewhere nothing is written until it is over.
    pub fn news(&mut self, stage: &str, text: &str) {
        if self.quiet || !std::io::stderr().is_terminal() {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("  {prefix:14} {wide_msg} {elapsed:>7}");
            let bar = ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        bar.set_prefix(stage.to_owned());
        bar.set_message(text.to_owned());
    }

    /// A stage is over.
    pub fn done(&mut self, stage: &str, text: &str, took: Option<Duration>) {
        self.clear();
        if self.quiet {
            return;
        }
        match took {
            Some(took) => aside(&format!("  {stage:14} {text:58} {}", seconds(took))),
            None => aside(&format!("  {stage:14} {text}")),
        }
    }

    /// Takes the moving line away.
    pub fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// The time since the first stage began.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }
}

impl Drop for Stages {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A duration as people read it.
pub fn seconds(duration: Duration) -> String {
    match duration.as_secs_f64() {
        s if s < 0.1 => format!("{:.1} ms", s * 1000.0),
        s if s < 60.0 => format!("{s:.1} s"),
        s => format!("{} m {:02} s", s as u64 / 60, s as u64 % 60),
    }
}

/// A number of bytes as people read it.
pub fn bytes(count: u64) -> String {
    let count = count as f64;
    match count {
        c if c < 1024.0 => format!("{c} B"),
        c if c < 1024.0 * 1024.0 => format!("{:.1} KB", c / 1024.0),
        c if c < 1024.0 * 1024.0 * 1024.0 => format!("{:.1} MB", c / 1024.0 / 1024.0),
        c => format!("{:.1} GB", c / 1024.0 / 1024.0 / 1024.0),
    }
}

/// `1 file`, `2 files`.
pub fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
