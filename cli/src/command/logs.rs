//! `kaai logs`: what replicas and builds wrote.

use std::time::Duration;

use proto::{
    id::{Generation, ReplicaId, ServiceName},
    query::{GetBuildLog, GetLog, LogText},
};

use crate::{
    connection::{ASK, Connection, Reach},
    ending::{Ending, Result},
    output::{self, Format},
};

/// Show what the replicas of a service wrote, or how its environment was built
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The service
    service: ServiceName,
    /// Of this generation [default: the one that serves, else the newest]
    #[arg(long)]
    generation: Option<u64>,
    /// Of this replica alone
    #[arg(long)]
    replica: Option<ReplicaId>,
    /// How many of the last lines
    #[arg(long, short = 'n', default_value_t = 5000)]
    lines: u32,
    /// Go on with new lines as they come, until Ctrl-C
    #[arg(long, short, conflicts_with = "build")]
    follow: bool,
    /// The log of the build of the service's environment
    #[arg(long)]
    build: bool,
}

/// Asks the deployer, or the builder.
pub async fn run(args: Args, reach: &Reach, format: Format) -> Result {
    let connection = reach.connect().await?;
    if args.build {
        return show(&build_log(&connection, &args).await?, format);
    }
    let query = GetLog {
        service: args.service.clone(),
        generation: args.generation.map(Generation),
        replica: args.replica.clone(),
        lines: args.lines,
    };
    let text = connection.bus.ask(connection.workspace(), &query, ASK).await?;
    show(&text, format)?;
    if !args.follow {
        return Ok(());
    }
    let mut shown = text.lines;
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let newer = connection.bus.ask(connection.workspace(), &query, ASK).await?.lines;
        for line in fresh(&shown, &newer) {
            output::line(line);
        }
        shown = newer;
    }
}

/// The lines of `newer` that come after the longest end of `shown` that `newer` still holds.
fn fresh<'a>(shown: &[String], newer: &'a [String]) -> &'a [String] {
    let grown = newer.len().checked_sub(shown.len()).filter(|_| newer.starts_with(shown));
    if let Some(grown) = grown {
        return &newer[newer.len() - grown..];
    }
    let overlap = (1..=shown.len().min(newer.len())).rev().find(|&length| shown.ends_with(&newer[..length]));
    &newer[overlap.unwrap_or(0)..]
}

async fn build_log(connection: &Connection, args: &Args) -> Result<LogText> {
    let record = connection.service(&args.service).await?.value;
    let wanted = args.generation.map(Generation);
    let releases = [record.candidate, record.active];
    let release =
        releases.into_iter().flatten().find(|release| wanted.is_none_or(|wanted| wanted == release.generation));
    let release = release.ok_or_else(|| {
        Ending::mend(
            "the environment of that generation is not known any more",
            "`kaai events` names it: kaai env log HASH",
        )
    })?;
    let query = GetBuildLog { environment: release.environment.to_string(), lines: args.lines };
    Ok(connection.bus.ask(connection.workspace(), &query, ASK).await?)
}

/// Prints a piece of a log.
///
/// # Errors
///
/// Never; the type is that of a command.
pub fn show(text: &LogText, format: Format) -> Result {
    match format {
        Format::Json => output::json(text),
        Format::Text => {
            if text.cut {
                output::aside("(older lines are left out)");
            }
            for line in &text.lines {
                output::line(line);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.chars().map(String::from).collect()
    }

    #[test]
    fn following_shows_each_line_once_though_the_front_is_cut() {
        assert_eq!(fresh(&lines("abc"), &lines("abcde")), lines("de"));
        assert_eq!(fresh(&lines("abc"), &lines("bcd")), lines("d"));
        assert_eq!(fresh(&lines("abc"), &lines("abc")), lines(""));
        assert_eq!(fresh(&lines("abc"), &lines("xyz")), lines("xyz"));
        assert_eq!(fresh(&lines(""), &lines("ab")), lines("ab"));
    }
}
