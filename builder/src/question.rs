//! Answers to those who ask what an environment is and how its build went, or have a failure forgotten.

use proto::{
    builder::EnvironmentRecord,
    failure::{Blame, Failure},
    id::EnvironmentHash,
    query::{
        DescribeEnvironment, EnvironmentDescription, ForgetFailure, GetBuildLog, GetScanReport, LogText, MAX_LOG_BYTES,
        Refusal, ScanReport,
    },
};
use runtime::{
    bus::{Bucket, Error as BusError},
    store::{self, Store, build_log_key},
};

use crate::{
    environment::Definition,
    flight::Flights,
    maker::{Maker, Planned},
    scan::report_key,
};

/// The fewest digits that name an environment.
const FEWEST_DIGITS: usize = 6;

/// Says how this builder understands an environment.
pub(crate) async fn describe<M: Maker>(
    query: &DescribeEnvironment,
    flights: &Flights<M>,
) -> Result<EnvironmentDescription, Refusal> {
    let refusal = |failure: Failure| {
        let kind = if failure.blame == Blame::Project { "invalid" } else { "unavailable" };
        Refusal::new(kind, failure.cause, failure.remedy)
    };
    let definition = Definition::read(&query.environment).map_err(|refused| refusal(refused.into_failure()))?;
    let Planned { hash, plan } = flights.plan(definition, None).await.map_err(refusal)?;
    Ok(EnvironmentDescription { hash, facts: plan.facts })
}

/// Finds the log: the file of a build on this machine, which may still grow, else what the store keeps.
pub(crate) async fn answer<M: Maker>(
    query: &GetBuildLog,
    flights: &Flights<M>,
    bucket: &Bucket<EnvironmentRecord>,
    store: &Store,
) -> Result<LogText, Refusal> {
    let hash = find(&query.environment, bucket).await?;
    let text = match tokio::fs::read(flights.log_path(&hash)).await {
        Ok(text) => text,
        Err(_) => match store.read(&build_log_key(&hash)).await {
            Ok(text) => text.to_vec(),
            Err(store::Error::NotFound { .. }) => {
                let cause = format!("no log is kept of environment {}", hash.short());
                return Err(Refusal::new(
                    "not-found",
                    cause,
                    "it has not been built here; deploy a project that needs it",
                ));
            }
            Err(error) => return Err(Refusal::new("unavailable", error.to_string(), "try again")),
        },
    };
    Ok(tail(&String::from_utf8_lossy(&text), query.lines))
}

/// Finds the report of the newest scan.
pub(crate) async fn report(
    query: &GetScanReport,
    bucket: &Bucket<EnvironmentRecord>,
    store: &Store,
) -> Result<ScanReport, Refusal> {
    let hash = find(&query.environment, bucket).await?;
    match store.read(&report_key(&hash)).await {
        Ok(report) => Ok(head(&String::from_utf8_lossy(&report))),
        Err(store::Error::NotFound { .. }) => Err(Refusal::new(
            "not-found",
            format!("environment {} was not scanned here", hash.short()),
            "a scanner is configured with --scan-command; what is deployed from then on is scanned",
        )),
        Err(error) => Err(Refusal::new("unavailable", error.to_string(), "try again")),
    }
}

/// Forgets a failure: the next request builds the environment again. One that is being built or is there is left alone.
pub(crate) async fn forget(
    query: &ForgetFailure,
    bucket: &Bucket<EnvironmentRecord>,
) -> Result<EnvironmentHash, Refusal> {
    let unavailable = |error: BusError| Refusal::new("unavailable", error.to_string(), "try again");
    let hash = find(&query.environment, bucket).await?;
    let (kind, state, remedy) = match bucket.get(hash.as_str()).await.map_err(unavailable)? {
        Some(entry) if matches!(entry.value, EnvironmentRecord::Failed { .. }) => {
            return match bucket.delete_at(hash.as_str(), entry.revision).await {
                // Somebody has begun to build it meanwhile, which is what was wanted.
                Ok(()) | Err(BusError::Conflict(_)) => Ok(hash),
                Err(error) => Err(unavailable(error)),
            };
        }
        Some(entry) if matches!(entry.value, EnvironmentRecord::Building { .. }) => {
            ("conflict", "is being built", "wait for it: `kaai env log` shows how far it is")
        }
        Some(_) => ("conflict", "is there", "deploy, which uses it"),
        None => ("not-found", "has no failure that is remembered", "deploy, which builds it"),
    };
    Err(Refusal::new(kind, format!("environment {} {state}", hash.short()), remedy))
}

async fn find(digits: &str, bucket: &Bucket<EnvironmentRecord>) -> Result<EnvironmentHash, Refusal> {
    let digits = digits.trim().to_ascii_lowercase();
    if let Ok(hash) = digits.parse() {
        return Ok(hash);
    }
    if digits.len() < FEWEST_DIGITS || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        let cause = format!("{digits:?} is no environment hash");
        return Err(Refusal::new("invalid", cause, "give at least its first 6 digits, from `kaai env show`"));
    }
    let keys = bucket.keys().await.map_err(|error| Refusal::new("unavailable", error.to_string(), "try again"))?;
    let mut found = keys.iter().filter(|key| key.starts_with(&digits)).filter_map(|key| key.parse().ok());
    match (found.next(), found.next()) {
        (Some(hash), None) => Ok(hash),
        (None, _) => Err(Refusal::new(
            "not-found",
            format!("no environment is known whose hash begins with {digits}"),
            "`kaai env show` tells the hash of a project's environment",
        )),
        _ => Err(Refusal::new("conflict", format!("several environments begin with {digits}"), "give more digits")),
    }
}

/// As much of a report, from its beginning, as fits into an answer.
fn head(report: &str) -> ScanReport {
    let mut room = MAX_LOG_BYTES;
    let end = report.char_indices().find_map(|(at, character)| {
        // What JSON escapes takes more: six bytes at most.
        let length = if character.is_control() || matches!(character, '"' | '\\') { 6 } else { character.len_utf8() };
        match room.checked_sub(length) {
            Some(left) => {
                room = left;
                None
            }
            None => Some(at),
        }
    });
    ScanReport { text: report[..end.unwrap_or(report.len())].to_owned(), cut: end.is_some() }
}

/// The last lines, no more than fit into an answer.
fn tail(text: &str, lines: u32) -> LogText {
    let mut kept = Vec::new();
    let mut room = MAX_LOG_BYTES;
    let mut all = text.lines().rev();
    let most = usize::try_from(lines).unwrap_or(usize::MAX);
    let mut cut = false;
    for line in all.by_ref() {
        // Quotes and the comma of JSON count too; a line is mostly plain.
        let length = line.len() + 3 + line.bytes().filter(|b| matches!(b, b'"' | b'\\')).count();
        if kept.len() == most || length > room {
            cut = true;
            break;
        }
        room -= length;
        kept.push(line.to_owned());
    }
    kept.reverse();
    LogText { lines: kept, cut }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_holds_the_last_lines_that_fit() {
        assert_eq!(tail("a\nb\nc\n", 2), LogText { lines: vec!["b".to_owned(), "c".to_owned()], cut: true });
        assert_eq!(tail("a\n", 2), LogText { lines: vec!["a".to_owned()], cut: false });
        assert_eq!(tail("", 2), LogText::default());
        let report = head(&"é\n".repeat(MAX_LOG_BYTES));
        assert!(report.cut && serde_json::to_vec(&report).unwrap().len() <= MAX_LOG_BYTES + 100);
        assert_eq!(head("fine"), ScanReport { text: "fine".to_owned(), cut: false });
        let long = format!("{}\n", "x\"".repeat(500)).repeat(2000);
        let text = tail(&long, u32::MAX);
        assert!(text.cut && serde_json::to_vec(&text).unwrap().len() <= MAX_LOG_BYTES + 100);
    }
}
