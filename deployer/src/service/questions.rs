//! Answers about keys. In the clear a key is in the answer alone.

use proto::{
    deployer::ServiceRecord,
    packager::Sealed,
    query::{GetKeys, Keys, Refusal, RegenerateKey},
    spec::Auth,
};
use runtime::bus::Question;

use super::shell::{Pending, Shell};
use crate::{
    backend::Backend,
    decide::Input,
    keys::{self, Keyring},
};

/// New keys that are told once they are stored.
pub(super) struct Rekeying {
    question: Question<RegenerateKey>,
    keys: Keys,
}

impl Rekeying {
    pub(super) async fn settle(self, stored: bool) {
        let conflict = || Refusal::new("conflict", "the service was changed meanwhile", "ask again");
        self.question.reply(if stored { Ok(self.keys) } else { Err(conflict()) }).await;
    }
}

impl<B: Backend> Shell<B> {
    pub(super) fn get_keys(&self, question: Question<GetKeys>, record: Option<ServiceRecord>) {
        let answer = keys_of(record.as_ref(), &self.keyring);
        self.rt.tasks.spawn(question.reply(answer));
    }

    /// Makes new keys, to be answered when they are stored; refuses at once where there are none to replace.
    pub(super) fn regenerate_key(
        &mut self,
        question: Question<RegenerateKey>,
        record: Option<ServiceRecord>,
    ) -> Option<Input> {
        let query = &question.query;
        let made = sealed(record.as_ref()).and_then(|current| {
            let made = self.keyring.replace(current.as_ref(), query.which, query.sealed_keys.as_ref());
            made.map_err(|error| refusal(&error))
        });
        match made {
            Ok((keys, ring)) => {
                let token = self.pend(Pending::Rekeying(Box::new(Rekeying { question, keys })));
                Some(Input::Rekey(token, Box::new(ring)))
            }
            Err(refusal) => {
                self.rt.tasks.spawn(question.reply(Err(refusal)));
                None
            }
        }
    }
}

fn keys_of(record: Option<&ServiceRecord>, keyring: &Keyring) -> Result<Keys, Refusal> {
    let sealed = sealed(record)?.ok_or_else(|| {
        Refusal::new(
            "not-found",
            "the service has no keys yet",
            "wait until it is ready, or deploy it with authEnabled",
        )
    })?;
    keyring.reveal(&sealed).map_err(|error| refusal(&error))
}

/// The sealed keys of a service that callers need keys for.
fn sealed(record: Option<&ServiceRecord>) -> Result<Option<Sealed>, Refusal> {
    let missing =
        || Refusal::new("not-found", "there is no such service", "see `kaai status` for those that there are");
    let record = record.filter(|record| !record.deleting).ok_or_else(missing)?;
    let release = record.active.as_ref().or(record.candidate.as_ref()).ok_or_else(missing)?;
    if release.spec.auth == Auth::None {
        return Err(Refusal::new(
            "invalid",
            "the service is open to all and has no keys",
            "set authEnabled in deploymentconfig.json and deploy again",
        ));
    }
    let coming = || record.candidate_keys.as_ref().map(|ring| ring.sealed.clone());
    Ok(record.sealed_keys.clone().or_else(coming))
}

fn refusal(error: &keys::Error) -> Refusal {
    let remedy = match error {
        keys::Error::Sealing(_) => "make new ones with `kaai keys --regenerate`",
        keys::Error::Unusable => "choose another key",
        _ => "look at the deployer's log",
    };
    let kind = if matches!(error, keys::Error::Unusable) { "invalid" } else { "unavailable" };
    Refusal::new(kind, error.to_string(), remedy)
}
