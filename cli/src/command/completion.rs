//! `kaai completion`: completion for a shell.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::{Cli, ending, output};

/// Write the completion script of a shell
///
/// For bash: `kaai completion bash > ~/.local/share/bash-completion/completions/kaai`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    shell: Shell,
}

/// Writes the script to standard output.
pub fn run(args: Args) -> ending::Result {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "kaai", &mut script);
    output::raw(&script);
    Ok(())
}
