//! Answers with logs: those of the replicas that were asked for, within the size of an answer.

use proto::{
    id::Generation,
    query::{GetLog, LogText, MAX_LOG_BYTES, Refusal},
};
use runtime::bus::Question;

use super::shell::Shell;
use crate::backend::{Backend, LogWanted, ReplicaLog};

/// How many lines may be asked for.
const MOST: u32 = 100_000;

impl<B: Backend> Shell<B> {
    /// Answers with the log of the generation that was asked for, else of the one that serves, else of the newest.
    pub(super) fn get_log(&self, question: Question<GetLog>, serving: Option<Generation>) {
        let backend = self.backend.clone();
        self.rt.tasks.spawn(async move {
            let query = &question.query;
            let lines = query.lines.min(MOST) as usize;
            let wanted = LogWanted {
                workspace: question.workspace.clone(),
                service: query.service.clone(),
                generation: query.generation.or(serving.filter(|_| query.replica.is_none())),
                replica: query.replica.clone(),
                lines,
            };
            let logs = backend.logs(&wanted).await;
            let answer = if logs.is_empty() {
                Err(Refusal::new("not-found", "there is no such log", "see `kaai status` for what runs"))
            } else {
                Ok(join(logs, lines))
            };
            question.reply(answer).await;
        });
    }
}

/// One text of the logs of several replicas, each under its name; the front is left out where it is too much.
fn join(logs: Vec<ReplicaLog>, most: usize) -> LogText {
    let several = logs.len() > 1;
    let mut all = LogText::default();
    for log in logs {
        if several {
            all.lines.push(format!("== {} of generation {}", log.replica, log.generation));
        }
        all.cut |= log.text.cut;
        all.lines.extend(log.text.lines);
    }
    let mut bytes = 0;
    let fits = |line: &&String| {
        bytes += length(line);
        bytes <= MAX_LOG_BYTES
    };
    let kept = all.lines.iter().rev().take(most).take_while(fits).count();
    let surplus = all.lines.len() - kept;
    all.cut |= surplus > 0;
    all.lines.drain(..surplus);
    all
}

/// How many bytes a line takes in the JSON of an answer.
fn length(line: &str) -> usize {
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' => 2,
        0..0x20 => 6,
        _ => 1,
    };
    line.bytes().map(escaped).sum::<usize>() + 3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(replica: &str, lines: &[&str]) -> ReplicaLog {
        let lines = lines.iter().map(|line| (*line).to_owned()).collect();
        ReplicaLog { replica: replica.parse().unwrap(), generation: Generation(7), text: LogText { lines, cut: false } }
    }

    #[test]
    fn the_log_of_one_replica_stands_alone_and_several_are_named() {
        assert_eq!(join(vec![log("a", &["1", "2"])], 10), LogText { lines: vec!["1".into(), "2".into()], cut: false });
        let text = join(vec![log("a", &["1"]), log("b", &["2"])], 10);
        assert_eq!(text.lines, ["== a of generation 7", "1", "== b of generation 7", "2"]);
    }

    #[test]
    fn the_front_is_left_out_where_it_is_too_much() {
        let text = join(vec![log("a", &["1", "2", "3"])], 2);
        assert!(text.lines == ["2", "3"] && text.cut);
        let wide = "\u{1b}".repeat(1000);
        let lines: Vec<&str> = (0..200).map(|_| wide.as_str()).collect();
        let text = join(vec![log("a", &lines)], 1000);
        assert!(text.cut && serde_json::to_vec(&text).unwrap().len() <= MAX_LOG_BYTES + 100);
    }
}
