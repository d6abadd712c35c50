//! What is asked for: each event changes the record, and one that is old changes nothing.

use proto::{
    Extra,
    builder::ImageResolved,
    deployer::{Announcement, DeploymentDeleted, DeploymentFailed, KeyRing, ServiceRecord, ServiceState},
    failure::{Failure, Stage},
    id::{Generation, ServiceName, Workspace},
    scaler::ScaleRequested,
    spec::{Auth, Scaling},
};

use super::{Action, Input, KeyOffer, REREAD, Resolved, Service, Token, When};

impl Service {
    /// Takes an event; its token is settled when what it changed is stored.
    pub(super) fn take(&mut self, event: Input, actions: &mut Vec<Action>) {
        let Some(token) = token_of(&event) else { return };
        if !self.loaded {
            actions.push(Action::Retry(token, REREAD));
            return;
        }
        self.waiting.push(token);
        match event {
            Input::Resolved(_, resolved) => self.resolved(*resolved),
            Input::Failed(_, failed, when) => self.failed_before(*failed, &when),
            Input::Scale(_, request, sequence) => self.scale(&request, sequence),
            Input::Delete(_, generation, when) => self.delete(generation, &when),
            Input::Rekey(_, ring) => self.rekey(*ring),
            _ => {}
        }
    }

    fn accepted(&self) -> Generation {
        self.record.as_ref().map_or(Generation(0), |record| record.accepted)
    }

    fn record_or_blank(&mut self, when: &When) -> &mut ServiceRecord {
        let (workspace, name) = (&self.workspace, &self.name);
        self.record.get_or_insert_with(|| blank(workspace, name, &when.at))
    }

    fn resolved(&mut self, resolved: Resolved) {
        let Resolved { event, keys, when } = resolved;
        let (generation, accepted) = (event.generation, self.accepted());
        if generation <= accepted {
            // Whoever waits for it must hear what became of it, but only if nobody has been told before.
            if when.first && generation < accepted && self.release(generation).is_none() {
                let failed = self.superseded(generation, accepted);
                self.announce_later(Announcement::Failed(failed));
            }
            return;
        }
        let serving = self.serving();
        let record = self.record_or_blank(&when);
        record.accepted = generation;
        record.latest = record.latest.max(generation);
        let offered = match keys {
            KeyOffer::Unreadable(failure) => {
                let failed =
                    DeploymentFailed { generation, failure, serving, warnings: event.warnings, extra: Extra::new() };
                record.failure = Some(failed.clone());
                self.announce_later(Announcement::Failed(failed));
                return;
            }
            KeyOffer::Given(ring) => Some(ring),
            KeyOffer::Fresh(ring) => (record.sealed_keys.is_none() && event.spec.auth != Auth::None).then_some(ring),
        };
        self.supersede_candidate(generation);
        self.nominate(event, offered);
    }

    fn nominate(&mut self, event: ImageResolved, keys: Option<KeyRing>) {
        let Some(record) = &mut self.record else { return };
        if record.active.is_none() {
            record.scaling = event.spec.scaling.clone();
            record.replicas = record.scaling.clamp(record.replicas);
            record.deleting &= record.outbox.iter().any(|entry| matches!(entry, Announcement::Deleted(_)));
        }
        record.candidate_keys = keys;
        record.candidate = Some(event.into());
    }

    /// An earlier stage failed: that is known, and changes nothing else.
    fn failed_before(&mut self, failed: DeploymentFailed, when: &When) {
        if failed.generation <= self.accepted() {
            return;
        }
        let record = self.record_or_blank(when);
        if record.failure.as_ref().is_some_and(|known| known.generation > failed.generation) {
            return;
        }
        record.latest = record.latest.max(failed.generation);
        let nothing_left = record.active.is_none() && record.candidate.is_none();
        record.deleting &= !nothing_left || !record.outbox.is_empty();
        record.failure = Some(failed);
    }

    fn scale(&mut self, request: &ScaleRequested, sequence: u64) {
        let Some(record) = &mut self.record else { return };
        let runs = record.active.is_some() || record.candidate.is_some();
        let active = record.active.as_ref().map(|release| release.generation);
        let meant = request.generation.is_none() || request.generation == active;
        if sequence <= record.scale_sequence || record.deleting || !runs || !meant {
            return;
        }
        record.scale_sequence = sequence;
        if let Some(scaling) = &request.scaling {
            record.scaling = scaling.clone();
        }
        // What is asked for after a deployment was asked for holds for that one too.
        let bounds = match &mut record.candidate {
            Some(candidate) if sequence > candidate.generation.0 => {
                if let Some(scaling) = &request.scaling {
                    candidate.spec.scaling = scaling.clone();
                }
                &candidate.spec.scaling
            }
            _ => &record.scaling,
        };
        record.replicas = bounds.clamp(request.replicas.unwrap_or(record.replicas));
    }

    fn delete(&mut self, generation: Generation, when: &When) {
        let deleted = Announcement::Deleted(DeploymentDeleted { generation, extra: Extra::new() });
        if generation <= self.accepted() {
            if when.first && self.record.as_ref().is_some_and(|record| record.deleting) {
                self.announce_later(deleted);
            }
            return;
        }
        self.record_or_blank(when).accepted = generation;
        self.supersede_candidate(generation);
        let record = self.record_or_blank(when);
        record.latest = record.latest.max(generation);
        (record.deleting, record.failure) = (true, None);
        (record.sealed_keys, record.key_digests) = (None, Vec::new());
        self.announce_later(deleted);
    }

    fn rekey(&mut self, ring: KeyRing) {
        let Some(record) = &mut self.record else { return };
        if record.sealed_keys.is_none() && record.candidate_keys.is_some() {
            record.candidate_keys = Some(ring);
        } else {
            (record.sealed_keys, record.key_digests) = (Some(ring.sealed), ring.digests);
        }
    }

    /// Ends what is being started, for something newer.
    fn supersede_candidate(&mut self, by: Generation) {
        let Some(record) = &mut self.record else { return };
        record.candidate_keys = None;
        let Some(old) = record.candidate.take() else { return };
        let failed = self.superseded(old.generation, by);
        self.announce_later(Announcement::Failed(failed));
    }

    fn superseded(&self, generation: Generation, by: Generation) -> DeploymentFailed {
        let failure = Failure::project(
            Stage::Starting,
            format!("superseded by generation {by}, which was asked for before this one was ready"),
            format!("see what became of the newer request with `kaai status {}`", self.name),
        );
        DeploymentFailed { generation, failure, serving: self.serving(), warnings: Vec::new(), extra: Extra::new() }
    }

    pub(super) fn serving(&self) -> Option<Generation> {
        let record = self.record.as_ref().filter(|record| !record.deleting)?;
        record.active.as_ref().map(|release| release.generation)
    }

    pub(super) fn announce_later(&mut self, announcement: Announcement) {
        if let Some(record) = &mut self.record
            && !record.outbox.contains(&announcement)
        {
            record.outbox.push(announcement);
        }
    }
}

fn token_of(event: &Input) -> Option<Token> {
    match event {
        Input::Resolved(token, _)
        | Input::Failed(token, ..)
        | Input::Scale(token, ..)
        | Input::Delete(token, ..)
        | Input::Rekey(token, _) => Some(*token),
        _ => None,
    }
}

fn blank(workspace: &Workspace, name: &ServiceName, at: &str) -> ServiceRecord {
    ServiceRecord {
        workspace: workspace.clone(),
        name: name.clone(),
        latest: Generation(0),
        active: None,
        candidate: None,
        replicas: 0,
        scaling: Scaling::default(),
        scale_sequence: 0,
        sealed_keys: None,
        key_digests: Vec::new(),
        candidate_keys: None,
        state: ServiceState::Transitioning,
        ready: 0,
        failure: None,
        deleting: false,
        accepted: Generation(0),
        outbox: Vec::new(),
        created: at.to_owned(),
        updated: at.to_owned(),
        extra: Extra::new(),
    }
}
