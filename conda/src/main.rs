//! Solves and installs conda packages: `kaai-conda solve REQUEST` and `kaai-conda install REQUEST`.
//!
//! A request is a JSON file, or standard input. Progress goes to standard error, one JSON line with what was done to standard output.
//! It knows channels, packages and prefixes. It does not know kaai's services, nor pip.

mod channels;
mod failure;
mod install;
mod lock;
mod progress;
mod request;
mod solve;

use std::{
    io::{self, Read, Write},
    path::Path,
    process::ExitCode,
};

use serde_json::json;

use crate::{failure::Failure, lock::Lock, request::Request};

const USAGE: &str = "\
Solves and installs conda packages for kaai's builder.

Usage: kaai-conda solve REQUEST
       kaai-conda install REQUEST

  solve    write the lock: which packages, from where, with which hash
  install  the same, then install them; a request without specs is installed from its lock
  REQUEST  a JSON file, or - for standard input (see conda/README.md)

Exit status: 2 request not understood, 3 no solution, 4 channel cannot be reached, 5 package damaged, 6 no space,
7 no such channel, 1 anything else. The last line on standard error says why.
";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Solve,
    Install,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (verb, request) = match words.as_slice() {
        ["--version" | "-V"] => return say(&format!("kaai-conda {}\n", env!("CARGO_PKG_VERSION"))),
        ["--help" | "-h"] => return say(USAGE),
        ["solve", request] => (Verb::Solve, *request),
        ["install", request] => (Verb::Install, *request),
        _ => {
            progress::line(USAGE.trim_end());
            return ExitCode::from(2);
        }
    };
    match read(request).and_then(|request| run(verb, &request)) {
        Ok(lock) => say(&format!("{}\n", json!({ "platform": lock.platform, "packages": lock.short() }))),
        Err(failure) => {
            progress::line(&format!("error: {failure}"));
            ExitCode::from(failure.code())
        }
    }
}

fn say(text: &str) -> ExitCode {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn read(from: &str) -> Result<Request, Failure> {
    let mut text = String::new();
    let read = match from {
        "-" => io::stdin().lock().read_to_string(&mut text).map(drop),
        path => std::fs::read_to_string(path).map(|read| text = read),
    };
    read.map_err(|error| Failure::Request(format!("{from} cannot be read: {error}")))?;
    serde_json::from_str(&text).map_err(|error| Failure::Request(format!("the request is not understood: {error}")))
}

fn run(verb: Verb, request: &Request) -> Result<Lock, Failure> {
    // The usual error is that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new().map_err(|error| Failure::Other(format!("no threads: {error}")))?;
    runtime.block_on(async {
        if verb == Verb::Install && request.specs.is_empty() {
            let lock = Lock::read(&request.lock)?;
            install::install(request, &lock).await?;
            return Ok(lock);
        }
        let lock = solve::solve(request).await?;
        lock.write(Path::new(&request.lock))?;
        if verb == Verb::Install {
            install::install(request, &lock).await?;
        }
        Ok(lock)
    })
}
