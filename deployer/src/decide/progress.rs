//! What whoever waits for a candidate is told while it starts.

use proto::{
    Extra,
    deployer::{DeploymentProgressed, StartParts},
    failure::Stage,
    id::Generation,
};

use super::{Action, Service, judge, replica::Phase};

impl Service {
    /// Tells how far the candidate is, if that has changed.
    pub(super) fn tell(&mut self, generation: Generation, actions: &mut Vec<Action>) {
        let Some(record) = &self.record else { return };
        let Some(candidate) = record.candidate.as_ref().filter(|candidate| candidate.generation == generation) else {
            return;
        };
        let wanted = judge::wanted(candidate, record);
        let ready = self.ready_of(generation);
        let newest = self.replicas.values().filter(|replica| replica.generation == generation);
        let Some(newest) = newest.max_by_key(|replica| (replica.start.init_ms > 0, replica.age_rank)) else { return };
        let (message, log) = match &newest.phase {
            Phase::Exited(exit) => {
                let lines = exit.report.as_ref().map_or(&exit.tail, |report| &report.traceback);
                let from = lines.len().saturating_sub(proto::failure::MAX_DETAILS);
                ("a replica ended before it was ready".to_owned(), lines[from..].to_vec())
            }
            _ => {
                let unlimited = newest.unlimited.as_ref().map(|why| format!(" · {why}")).unwrap_or_default();
                (describe(ready, wanted, newest.start) + &unlimited, Vec::new())
            }
        };
        if self.told.as_ref() == Some(&message) {
            return;
        }
        self.told = Some(message.clone());
        let stage = Stage::Starting;
        actions.push(Action::Tell(DeploymentProgressed { generation, stage, message, log, extra: Extra::new() }));
    }
}

/// `1 of 2 replicas · python 0.4 s · init() 0.9 s`: which one is at it, and what has been measured of its start.
fn describe(ready: u32, wanted: u32, start: StartParts) -> String {
    let mut text = format!("{} of {wanted} replica{}", (ready + 1).min(wanted), if wanted == 1 { "" } else { "s" });
    // What takes no time is not worth a word.
    let parts = [("fetch", start.fetch_ms, 50), ("python", start.interpreter_ms, 1), ("init()", start.init_ms, 1)];
    for (name, milliseconds, least) in parts {
        if milliseconds >= least {
            text.push_str(&format!(" · {name} {:.1} s", milliseconds as f64 / 1000.0));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_start_are_told_as_they_become_known() {
        let mut start = StartParts::default();
        assert_eq!(describe(0, 1, start), "1 of 1 replica");
        (start.fetch_ms, start.interpreter_ms) = (3, 412);
        assert_eq!(describe(0, 2, start), "1 of 2 replicas · python 0.4 s");
        (start.fetch_ms, start.init_ms) = (1200, 903);
        assert_eq!(describe(2, 2, start), "2 of 2 replicas · fetch 1.2 s · python 0.4 s · init() 0.9 s");
    }
}
