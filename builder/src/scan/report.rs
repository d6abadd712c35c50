//! What a scanner's report says, in a few words.
//!
//! It knows the JSON of trivy, of grype, and of CycloneDX with vulnerabilities. Of any other report it knows the last line.

use serde_json::Value;

/// From worst to least, as all scanners call them.
const SEVERITIES: [&str; 6] = ["critical", "high", "medium", "low", "negligible", "unknown"];
/// How much of a line is shown.
const LINE: usize = 200;

/// How many weaknesses of which severity, `2 critical, 5 high` for example; else the report's last line.
pub(super) fn found(report: &[u8]) -> String {
    let weaknesses = serde_json::from_slice(report).ok().and_then(|report: Value| severities(&report));
    let Some(weaknesses) = weaknesses else { return last_line(report) };
    let counted: Vec<_> = SEVERITIES
        .into_iter()
        .map(|severity| (weaknesses.iter().filter(|found| **found == severity).count(), severity))
        .filter(|(number, _)| *number > 0)
        .map(|(number, severity)| format!("{number} {severity}"))
        .collect();
    if counted.is_empty() { "no known weakness".to_owned() } else { counted.join(", ") }
}

/// The severity of each weakness; none when the report has another form.
fn severities(report: &Value) -> Option<Vec<&'static str>> {
    let list = |value: &'_ Value| value.as_array().cloned();
    let weaknesses: Vec<Value> = if let Some(results) = list(&report["Results"]) {
        results
            .iter()
            .filter_map(|result| list(&result["Vulnerabilities"]))
            .flatten()
            .map(|one| one["Severity"].clone())
            .collect()
    } else if let Some(matches) = list(&report["matches"]) {
        matches.iter().map(|one| one["vulnerability"]["severity"].clone()).collect()
    } else {
        list(&report["vulnerabilities"])?.iter().map(|one| one["ratings"][0]["severity"].clone()).collect()
    };
    Some(weaknesses.iter().map(severity).collect())
}

fn severity(said: &Value) -> &'static str {
    let said = said.as_str().unwrap_or_default();
    SEVERITIES.into_iter().find(|known| said.eq_ignore_ascii_case(known)).unwrap_or("unknown")
}

fn last_line(report: &[u8]) -> String {
    let report = String::from_utf8_lossy(report);
    let line = report.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    line.trim().chars().filter(|character| !character.is_control()).take(LINE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weaknesses_are_counted_by_severity() {
        let trivy = r#"{"Results":[{"Target":"a","Vulnerabilities":[{"Severity":"HIGH"},{"Severity":"CRITICAL"}]},{"Target":"b"},{"Vulnerabilities":[{"Severity":"HIGH"}]}]}"#;
        let grype = r#"{"matches":[{"vulnerability":{"severity":"Negligible"},"relatedVulnerabilities":[{"severity":"High"}]}]}"#;
        let cyclonedx = r#"{"vulnerabilities":[{"ratings":[{"severity":"low"},{"severity":"high"}]},{}]}"#;
        for (report, expected) in [
            (trivy, "1 critical, 2 high"),
            (grype, "1 negligible"),
            (cyclonedx, "1 low, 1 unknown"),
            (r#"{"Results":[]}"#, "no known weakness"),
            ("all is well\n\u{1b}[1mreally\n\n", "[1mreally"),
            (r#"{"something":"else"}"#, r#"{"something":"else"}"#),
        ] {
            assert_eq!(found(report.as_bytes()), expected, "{report}");
        }
    }
}
