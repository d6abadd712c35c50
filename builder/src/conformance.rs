//! What every maker does, whatever it makes: the checks that each of them runs, and a new one should.

use std::{path::Path, pin::pin};

use proto::builder::Lookup;

use crate::{
    build_log::BuildLog,
    environment::Definition,
    maker::{Found, Made, Maker, Planned},
};

/// Environments for the checks.
#[derive(Debug, Clone)]
pub struct Examples {
    /// One that can be made.
    pub good: Definition,
    /// Another one that can be made.
    pub other: Definition,
    /// One that is understood and cannot be made.
    pub impossible: Definition,
}

/// Runs all checks on a maker that has none of these environments yet. `logs` is a folder for the logs of builds.
///
/// # Panics
///
/// When the maker does not do what is expected of every one of them.
pub async fn conformance<M: Maker>(maker: &M, examples: Examples, logs: &Path) {
    let check = Check { maker, logs };
    let good = check.plan(&examples.good).await;
    check.equal_ones_are_one(&examples, &good).await;
    check.what_was_never_made_is_not_found(&good).await;
    check.a_failure_leaves_nothing(&examples.impossible).await;
    check.one_that_is_given_up_leaves_nothing(&good).await;
    let made = check.what_is_made_is_found(&good).await;
    check.two_at_once_disturb_nobody(&good, &made).await;
    let other = check.plan(&examples.other).await;
    let different = check.make(&other, "other").await;
    assert_ne!(different.image, made.image, "different environments are at different places");
    assert!(check.there(&made).await && check.there(&different).await, "one does not displace another");
}

struct Check<'a, M> {
    maker: &'a M,
    logs: &'a Path,
}

impl<M: Maker> Check<'_, M> {
    async fn plan(&self, definition: &Definition) -> Planned {
        self.maker
            .plan(definition.clone(), None)
            .await
            .unwrap_or_else(|failure| panic!("it is understood: {failure:?}"))
    }

    fn log(&self, name: &str) -> BuildLog {
        let log = BuildLog::new(self.logs.join(name));
        log.begin();
        log
    }

    async fn make(&self, planned: &Planned, name: &str) -> Made {
        let made = self.maker.make(&planned.hash, &planned.plan, &self.log(name)).await;
        made.unwrap_or_else(|failure| panic!("it can be made: {failure:?}"))
    }

    async fn find(&self, planned: &Planned) -> Found {
        let found = self.maker.find(&planned.hash, &planned.plan, &self.log("find")).await;
        found.unwrap_or_else(|failure| panic!("it can be looked for: {failure:?}"))
    }

    async fn there(&self, made: &Made) -> bool {
        self.maker.is_there(made).await.unwrap_or_else(|failure| panic!("it can be looked at: {failure:?}"))
    }

    async fn equal_ones_are_one(&self, examples: &Examples, good: &Planned) {
        assert_eq!(self.plan(&examples.good).await.hash, good.hash, "the same definition has the same hash");
        assert_ne!(self.plan(&examples.other).await.hash, good.hash, "another definition has another hash");
    }

    async fn what_was_never_made_is_not_found(&self, planned: &Planned) {
        assert!(self.find(planned).await.made.is_none(), "nothing was made yet");
    }

    async fn a_failure_leaves_nothing(&self, impossible: &Definition) {
        let planned = self.plan(impossible).await;
        let failure = self.maker.make(&planned.hash, &planned.plan, &self.log("impossible")).await;
        let failure = failure.expect_err("it cannot be made");
        assert!(
            !failure.cause.is_empty() && !failure.remedy.is_empty(),
            "{failure:?} says what was wrong and what to do"
        );
        assert!(self.find(&planned).await.made.is_none(), "nothing of it can be found");
    }

    /// Given up as soon as it says something: somewhere in the middle.
    async fn one_that_is_given_up_leaves_nothing(&self, planned: &Planned) {
        let log = self.log("given-up");
        let (_, mut lines) = log.subscribe();
        {
            let mut making = pin!(self.maker.make(&planned.hash, &planned.plan, &log));
            tokio::select! {
                biased;
                said = lines.recv() => assert!(said.is_ok(), "a build says what it does"),
                made = &mut making => panic!("{made:?} was made without a word"),
            }
        }
        assert!(self.find(planned).await.made.is_none(), "half an environment is none");
    }

    async fn what_is_made_is_found(&self, planned: &Planned) -> Made {
        let made = self.make(planned, "good").await;
        assert!(self.there(&made).await, "what was made is there");
        let found = self.find(planned).await.made;
        assert_eq!(found, Some((made.clone(), Lookup::Cached)), "what was made is found again");
        made
    }

    async fn two_at_once_disturb_nobody(&self, planned: &Planned, before: &Made) {
        let (one, two) = tokio::join!(self.make(planned, "one"), self.make(planned, "two"));
        for made in [before, &one, &two] {
            assert!(self.there(made).await, "{made:?} is there whoever else made it");
        }
    }
}
