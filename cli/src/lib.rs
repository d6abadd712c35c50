//! The command line of kaai, and all five components in one process.
//!
//! Each command is a file under `command/`. What they share: how a kaai is reached ([`connection`]), where one on this machine keeps its
//! things ([`home`]), how something is said to a person or a program ([`output`]), and how a command ends ([`ending`]).
//!
//! Exit codes: 0 done; 1 the user can mend it; 2 the command was wrong; 3 kaai could not.

pub mod command;
pub mod connection;
pub mod deployment;
pub mod ending;
mod environment;
pub mod home;
pub mod http;
pub mod output;
pub mod permissions;
pub mod server;
pub mod up;
pub mod upload;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{connection::Reach, output::Format};

/// From a machine-learning project in a folder to a scaled, secured HTTP endpoint.
///
/// Start with `kaai up` in one terminal and `kaai deploy FOLDER` in another.
#[derive(Debug, Parser)]
#[command(name = "kaai", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    reach: Reach,
    /// How results are written to standard output
    #[arg(long, short = 'o', global = true, value_enum, default_value = "text", env = "KAAI_OUTPUT")]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str =
    "Exit codes: 0 done, 1 you can mend it (the last lines say how), 2 the command was wrong, 3 kaai could not.";

#[derive(Debug, Subcommand)]
enum Command {
    Up(command::up::Args),
    Deploy(command::deploy::Args),
    Status(command::status::Args),
    Invoke(command::invoke::Args),
    Logs(command::logs::Args),
    Events(command::events::Args),
    Scale(command::scale::Args),
    Keys(command::keys::Args),
    Delete(command::delete::Args),
    Package(command::package::Args),
    Models(command::models::Args),
    Env(command::env::Args),
    Prune(command::prune::Args),
    Context(command::context::Args),
    DeadLetters(command::dead_letters::Args),
    Completion(command::completion::Args),
}

/// Reads the command line, does what it says, and tells how it ended.
pub async fn main() -> ExitCode {
    let cli = Cli::parse();
    let format = cli.output;
    match run(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(ending) => ending.tell(format),
    }
}

async fn run(cli: Cli) -> ending::Result {
    let Cli { reach, output, command } = cli;
    match command {
        Command::Up(args) => command::up::run(args, &reach, output).await,
        Command::Deploy(args) => command::deploy::run(args, &reach, output).await,
        Command::Status(args) => command::status::run(args, &reach, output).await,
        Command::Invoke(args) => command::invoke::run(args, &reach, output).await,
        Command::Logs(args) => command::logs::run(args, &reach, output).await,
        Command::Events(args) => command::events::run(args, &reach, output).await,
        Command::Scale(args) => command::scale::run(args, &reach, output).await,
        Command::Keys(args) => command::keys::run(args, &reach, output).await,
        Command::Delete(args) => command::delete::run(args, &reach, output).await,
        Command::Package(args) => command::package::run(args, output).await,
        Command::Models(args) => command::models::run(args, &reach, output).await,
        Command::Env(args) => command::env::run(args, &reach, output).await,
        Command::Prune(args) => command::prune::run(args, &reach, output).await,
        Command::Context(args) => command::context::run(args, output),
        Command::DeadLetters(args) => command::dead_letters::run(args, &reach, output).await,
        Command::Completion(args) => command::completion::run(args),
    }
}
