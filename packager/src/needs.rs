//! What somebody still needs: every digest in the record of a service, in a registered model, in an event of late, and in the events of a
//! deployment that has not come to its end.
//!
//! Texts are searched for digests whatever they are the text of, so what a newer version says is understood here too.

use std::collections::{HashMap, HashSet};

use proto::subject;
use runtime::bus::{self, Bucket, Bus, Past};
use serde_json::Value;

/// What ends a deployment, and all of the same service before it.
const ENDS: [&str; 3] = ["deployment.ready", "deployment.failed", "deployment.deleted"];
/// What asks for one: its place in the stream is the generation.
const REQUEST: &str = "deployment.requested";

/// The digits of every digest that somebody needs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs(HashSet<String>);

impl Needs {
    pub(crate) fn contain(&self, digits: &str) -> bool {
        self.0.contains(digits)
    }

    /// Looks at everything, in this order: a deployment that has ended by its events has left its mark in its service's record before.
    ///
    /// # Errors
    ///
    /// Fails when anything cannot be read, so that nothing is taken for unneeded that was not seen.
    pub(crate) async fn look(bus: &Bus, buckets: &[Bucket<Value>], since_ms: u64) -> Result<Self, bus::Error> {
        let mut events = Events::default();
        bus.every_past(|past| events.add(&past)).await?;
        let mut needs = events.needs(since_ms);
        for bucket in buckets {
            for key in bucket.keys().await? {
                if let Some(entry) = bucket.get(&key).await? {
                    let text = entry.value.to_string();
                    digests(&text, |digits| needs.0.extend([digits.to_owned()]));
                }
            }
        }
        Ok(needs)
    }
}

/// The buckets whose values name archives: services and models.
pub(crate) async fn buckets(bus: &Bus) -> Result<[Bucket<Value>; 2], bus::Error> {
    Ok([bus.bucket(subject::SERVICES).await?, bus.bucket(subject::MODELS).await?])
}

/// The events of the stream, as far as they matter here.
#[derive(Debug, Default)]
struct Events {
    /// The newest generation of a service that has come to its end.
    ended: HashMap<String, u64>,
    mentions: Vec<Mention>,
}

#[derive(Debug)]
struct Mention {
    service: String,
    /// None where an event does not say: it counts as one that goes on.
    generation: Option<u64>,
    time_ms: u64,
    digits: Vec<String>,
}

impl Events {
    fn add(&mut self, past: &Past) {
        let service = subject::service_key(&past.workspace, &past.service);
        let parsed = serde_json::from_slice::<Value>(&past.body).ok();
        let said = parsed.and_then(|event| event["generation"].as_u64());
        let generation = if past.event_type == REQUEST { Some(past.sequence) } else { said };
        if let (true, Some(generation)) = (ENDS.contains(&past.event_type.as_str()), generation) {
            let ended = self.ended.entry(service.clone()).or_default();
            *ended = generation.max(*ended);
        }
        let mut digits = Vec::new();
        digests(&String::from_utf8_lossy(&past.body), |found| digits.push(found.to_owned()));
        if !digits.is_empty() {
            self.mentions.push(Mention { service, generation, time_ms: past.time_ms, digits });
        }
    }

    fn needs(self, since_ms: u64) -> Needs {
        let Self { ended, mentions } = self;
        let goes_on = |mention: &Mention| {
            let ended = ended.get(&mention.service).copied().unwrap_or(0);
            mention.generation.is_none_or(|generation| generation > ended)
        };
        let needed = mentions.iter().filter(|mention| mention.time_ms >= since_ms || goes_on(mention));
        Needs(needed.flat_map(|mention| mention.digits.iter().cloned()).collect())
    }
}

/// Shows every run of exactly 64 hexadecimal digits.
fn digests<'a>(text: &'a str, mut show: impl FnMut(&'a str)) {
    let runs = text.split(|c: char| !matches!(c, '0'..='9' | 'a'..='f'));
    runs.filter(|run| run.len() == 64).for_each(&mut show);
}

#[cfg(test)]
mod tests {
    use proto::{envelope::Envelope, id::Workspace};

    use super::*;

    fn digits(n: u8) -> String {
        format!("{n:02x}").repeat(32)
    }

    fn past(event_type: &str, sequence: u64, time_ms: u64, body: String) -> Past {
        Past {
            workspace: Workspace::default(),
            service: "ridge".parse().unwrap(),
            event_type: event_type.to_owned(),
            envelope: Envelope::from_headers(|_| None, event_type, "x", sequence),
            sequence,
            time: String::new(),
            time_ms,
            body: body.into(),
            pending: 0,
        }
    }

    fn events(all: &[(&str, u64, u64, u8)]) -> Events {
        let mut events = Events::default();
        for (sequence, (event_type, generation, time_ms, archive)) in all.iter().enumerate() {
            let body =
                format!(r#"{{"generation": {generation}, "archive": {{"digest": "sha256:{}"}}}}"#, digits(*archive));
            events.add(&past(event_type, sequence as u64 + 1, *time_ms, body));
        }
        events
    }

    #[test]
    fn what_was_mentioned_of_late_or_by_a_deployment_under_way_is_needed() {
        let all = [
            ("deployment.requested", 0, 10, 1),
            ("project.packaged", 1, 11, 2),
            ("deployment.ready", 1, 12, 9),
            ("project.packaged", 4, 13, 3),
            ("image.resolved", 4, 99, 4),
        ];
        let needs = events(&all).needs(50);
        assert_eq!([1, 2, 3, 4].map(|n| needs.contain(&digits(n))), [false, false, true, true]);
        let ended = [&all[..], &[("deployment.failed", 4, 14, 9)]].concat();
        assert_eq!([3, 4].map(|n| events(&ended).needs(50).contain(&digits(n))), [false, true]);
        let deleted = [&all[..], &[("deployment.deleted", 8, 14, 9)]].concat();
        assert!(!events(&deleted).needs(50).contain(&digits(3)));
    }

    #[test]
    fn a_request_that_nothing_became_of_goes_on() {
        assert!(events(&[("deployment.requested", 0, 10, 1)]).needs(50).contain(&digits(1)));
    }

    #[test]
    fn an_event_of_a_newer_version_is_understood_as_far_as_digests_go() {
        let mut events = Events::default();
        let body = format!("no JSON, and yet {} in it, not {}0", digits(1), digits(2));
        events.add(&past("project.packaged", 1, 10, body));
        let needs = events.needs(50);
        assert!(needs.contain(&digits(1)) && !needs.contain(&digits(2)));
    }
}
