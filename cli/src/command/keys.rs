//! `kaai keys`: the keys of a service.

use clap::{Subcommand, ValueEnum};
use proto::{
    id::ServiceName,
    query::{Keys, RegenerateKey, WhichKey},
};

use crate::{
    connection::{ASK, Reach},
    ending::Result,
    output::{self, Format},
};

/// Show and regenerate the keys of a service
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show both keys, or one alone for use in a command
    Show {
        /// The service
        service: ServiceName,
        /// Only this one
        #[arg(long, value_enum)]
        only: Option<Which>,
    },
    /// Replace one key; the other goes on being valid
    Regenerate {
        /// The service
        service: ServiceName,
        /// Which of the two
        #[arg(value_enum)]
        which: Which,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    Primary,
    Secondary,
}

/// Asks the deployer.
pub async fn run(args: Args, reach: &Reach, format: Format) -> Result {
    let connection = reach.connect().await?;
    match args.action {
        Action::Show { service, only } => show(&connection.keys(&service).await?, only, format),
        Action::Regenerate { service, which } => {
            let which = match which {
                Which::Primary => WhichKey::Primary,
                Which::Secondary => WhichKey::Secondary,
            };
            let query = RegenerateKey { service, which, sealed_keys: None };
            show(&connection.bus.ask(connection.workspace(), &query, ASK).await?, None, format);
        }
    }
    Ok(())
}

fn show(keys: &Keys, only: Option<Which>, format: Format) {
    match (only, format) {
        (None, Format::Json) => output::json(keys),
        (None, Format::Text) => {
            output::line(&format!("primary    {}", keys.primary));
            output::line(&format!("secondary  {}", keys.secondary));
        }
        (Some(Which::Primary), Format::Text) => output::line(&keys.primary),
        (Some(Which::Secondary), Format::Text) => output::line(&keys.secondary),
        (Some(Which::Primary), Format::Json) => output::json(&keys.primary),
        (Some(Which::Secondary), Format::Json) => output::json(&keys.secondary),
    }
}
