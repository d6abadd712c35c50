//! `kaai context`: which kaai the other commands speak to.

use std::path::PathBuf;

use clap::Subcommand;
use proto::{cli::Context, id::Workspace};
use serde_json::json;

use crate::{
    ending::{Ending, Result},
    home::Contexts,
    output::{self, Format},
};

/// Choose which kaai the other commands speak to
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the contexts; the current one is marked
    List,
    /// Use a context from now on
    Use {
        /// Its name
        name: String,
    },
    /// Add or change a context, and use it
    Set {
        /// Its name
        name: String,
        /// Address of the bus
        #[arg(long)]
        bus: String,
        /// Address of the router
        #[arg(long)]
        router: String,
        /// User on the bus
        #[arg(long, requires = "password_file")]
        user: Option<String>,
        /// File that holds the user's password
        #[arg(long, requires = "user")]
        password_file: Option<PathBuf>,
        /// The tenant
        #[arg(long, default_value = "default")]
        workspace: Workspace,
        /// The packager sees this machine's files: folders need not be sent
        #[arg(long)]
        shared_files: bool,
    },
    /// Forget a context
    Delete {
        /// Its name
        name: String,
    },
}

/// Reads or changes the file of contexts.
pub fn run(args: Args, format: Format) -> Result {
    let mut contexts = Contexts::read()?;
    match args.action {
        Action::List => {
            list(&contexts, format);
            return Ok(());
        }
        Action::Use { name } => {
            known(&contexts, &name)?;
            contexts.current = Some(name);
        }
        Action::Set { name, bus, router, user, password_file, workspace, shared_files } => {
            let password_file =
                password_file.map(|path| std::path::absolute(&path).unwrap_or(path).display().to_string());
            let context =
                Context { bus, user, password_file, router, workspace, shared_files, extra: serde_json::Map::new() };
            contexts.contexts.insert(name.clone(), context);
            contexts.current = Some(name);
        }
        Action::Delete { name } => {
            known(&contexts, &name)?;
            contexts.contexts.remove(&name);
            contexts.current = contexts.current.filter(|current| *current != name);
        }
    }
    contexts.write()?;
    list(&contexts, format);
    Ok(())
}

fn known(contexts: &Contexts, name: &str) -> Result {
    match contexts.contexts.contains_key(name) {
        true => Ok(()),
        false => Err(Ending::usage(format!("there is no context {name:?}"), "`kaai context list` lists them")),
    }
}

fn list(contexts: &Contexts, format: Format) {
    if format == Format::Json {
        output::json(&json!({ "current": contexts.current, "contexts": contexts.contexts }));
        return;
    }
    let rows: Vec<_> = contexts
        .contexts
        .iter()
        .map(|(name, context)| {
            let mark = if contexts.current.as_ref() == Some(name) { "*" } else { "" };
            vec![
                mark.to_owned(),
                name.clone(),
                context.bus.clone(),
                context.router.clone(),
                context.workspace.to_string(),
            ]
        })
        .collect();
    output::table(&["", "CONTEXT", "BUS", "ROUTER", "WORKSPACE"], &rows);
}
