//! `kaai prune`: what of the object store nobody needs any more.

use std::time::Duration;

use proto::query::{MIN_PRUNE_AGE_SECONDS, Prune, PruneOutcome, Pruned, PrunedObject, StoredKind};

use crate::{
    connection::{Connection, Reach},
    ending::Result,
    output::{self, Format},
};

/// How long the packager may take to look through everything and delete 200 objects.
const PRUNE: Duration = Duration::from_secs(180);

/// Show what of the object store nobody needs any more, or delete it
///
/// Without --yes nothing is deleted. Never deleted is what a service, a registered model, or a deployment under way needs, or one of
/// the last days. It speaks of all workspaces: equal archives are kept once for all of them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Keep what was written, or named by a deployment, within this time: 30d, 12h; at least 1h
    #[arg(long, default_value = "30d", value_name = "TIME", value_parser = age)]
    older_than: Duration,
    /// Delete it
    #[arg(long)]
    yes: bool,
}

/// Asks the packager, which owns the object store.
pub async fn run(args: Args, reach: &Reach, format: Format) -> Result {
    let connection = reach.connect().await?;
    let query = Prune { older_than_seconds: args.older_than.as_secs(), apply: args.yes };
    let pruned = match args.yes {
        true => all(&connection, &query).await?,
        false => connection.bus.ask(connection.workspace(), &query, PRUNE).await?,
    };
    match format {
        Format::Json => output::json(&pruned),
        Format::Text => tell(&pruned, args.yes),
    }
    Ok(())
}

/// Has everything deleted, a part at a time, for as long as that goes on.
async fn all(connection: &Connection, query: &Prune) -> Result<Pruned> {
    let mut whole = Pruned::default();
    loop {
        let part = connection.bus.ask(connection.workspace(), query, PRUNE).await?;
        let went_on = part.objects.iter().any(|object| object.outcome == PruneOutcome::Deleted);
        // What was kept before is met again: its newest outcome counts.
        whole.objects.retain(|object| part.objects.iter().all(|new| new.key != object.key));
        whole.objects.extend(part.objects);
        whole.bytes += part.bytes;
        whole.more = part.more;
        if part.more == 0 || !went_on {
            return Ok(whole);
        }
    }
}

fn tell(pruned: &Pruned, applied: bool) {
    if pruned.objects.is_empty() {
        output::line("there is nothing that nobody needs");
        return;
    }
    let rows: Vec<_> = pruned.objects.iter().map(row).collect();
    output::table(&["KIND", "NAME", "SIZE", "WRITTEN", if applied { "OUTCOME" } else { "WHY" }], &rows);
    if pruned.more > 0 {
        output::line(&format!("and {} more", pruned.more));
    }
    let deleted = pruned.objects.iter().filter(|object| object.outcome == PruneOutcome::Deleted).count();
    let bytes = output::bytes(pruned.bytes);
    match applied {
        true => output::line(&format!("\ndeleted {deleted} with {bytes}")),
        false => {
            let count = pruned.objects.len() as u64 + pruned.more;
            output::line(&format!("\n{count} with {bytes} would be deleted by `{} prune --yes`", output::program()));
        }
    }
}

fn row(object: &PrunedObject) -> Vec<String> {
    let kind = match object.kind {
        StoredKind::Archive => "archive",
        StoredKind::BuildLog => "build log",
        StoredKind::UnfinishedUpload => "unfinished upload",
    };
    let name = object.key.rsplit('/').next().unwrap_or_default();
    // As other commands show a digest.
    let name = if object.kind == StoredKind::UnfinishedUpload { name } else { name.get(..8).unwrap_or(name) };
    let outcome = match &object.outcome {
        PruneOutcome::Deletable => object.why.clone(),
        PruneOutcome::Deleted => "deleted".to_owned(),
        PruneOutcome::Kept(why) => format!("kept: {why}"),
    };
    let days = runtime::clock::now_ms().saturating_sub(object.written_ms) / 86_400_000;
    vec![kind.to_owned(), name.to_owned(), output::bytes(object.size), format!("{days} d ago"), outcome]
}

/// Reads a number with its unit.
fn age(text: &str) -> std::result::Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit {
        "h" => 3600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return Err("give a number with h, d or w behind it, 30d for example".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "give a number in front of the unit, 30d for example".to_owned())?;
    let age = number.checked_mul(seconds).ok_or("that is longer than time goes back")?;
    match age < MIN_PRUNE_AGE_SECONDS {
        true => Err("at least 1h: what is under way may need what is newer".to_owned()),
        false => Ok(Duration::from_secs(age)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit_and_is_an_hour_at_least() {
        assert_eq!(age("30d"), Ok(Duration::from_secs(30 * 86_400)));
        assert_eq!(age("1h"), Ok(Duration::from_secs(3600)));
        for wrong in ["", "30", "d", "0d", "-1d", "1.5h", "30m", "99999999999999999999d", "9999999999999999999w"] {
            assert!(age(wrong).is_err(), "{wrong}");
        }
    }
}
