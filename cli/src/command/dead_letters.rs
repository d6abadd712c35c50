//! `kaai dead-letters`: messages that could never succeed.

use clap::Subcommand;
use serde_json::json;

use crate::{
    connection::Reach,
    ending::Result,
    output::{self, Format},
};

/// List and replay messages that could not be read or could never succeed
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List them, newest first
    List {
        /// How many at most
        #[arg(long, default_value_t = 50)]
        most: usize,
    },
    /// Publish one again as it was, after what was wrong has been mended
    Replay {
        /// Its number in the list
        letter: u64,
    },
}

/// Lists or replays.
pub async fn run(args: Args, reach: &Reach, format: Format) -> Result {
    let connection = reach.connect().await?;
    match args.action {
        Action::List { most } => {
            let letters = connection.bus.dead_letters(most).await?;
            if format == Format::Json {
                let letters: Vec<_> = letters
                    .iter()
                    .map(|letter| {
                        json!({ "letter": letter.letter, "sequence": letter.sequence, "subject": letter.subject,
                            "component": letter.component, "reason": letter.reason, "body": String::from_utf8_lossy(&letter.body) })
                    })
                    .collect();
                output::json(&letters);
                return Ok(());
            }
            let rows: Vec<_> = letters
                .iter()
                .map(|letter| {
                    vec![
                        letter.letter.to_string(),
                        letter.component.clone(),
                        letter.subject.clone(),
                        letter.reason.clone(),
                    ]
                })
                .collect();
            output::table(&["LETTER", "COMPONENT", "SUBJECT", "REASON"], &rows);
        }
        Action::Replay { letter } => {
            let sequence = connection.bus.replay_dead_letter(letter).await?;
            match format {
                Format::Json => output::json(&json!({ "letter": letter, "sequence": sequence })),
                Format::Text => output::line(&format!("dead letter {letter} is event {sequence} now")),
            }
        }
    }
    Ok(())
}
