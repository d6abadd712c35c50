//! What people and the components before the deployer say.

use proto::{
    Extra,
    deployer::DeploymentFailed,
    failure::{Failure, Stage},
    id::Generation,
    scaler::ScaleRequested,
    spec::Scaling,
};

use super::{Event, Kind, Message, World, resolved};

impl World {
    pub(in crate::decide) fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    pub(in crate::decide) fn publish(&mut self, event: Event) {
        self.messages.push(Message { event, attempts: 0, settled: false });
    }

    pub(in crate::decide) fn deploy(&mut self, kind: Kind, scaling: Scaling) -> u64 {
        let generation = self.next_sequence();
        self.publish(Event::Resolved(Box::new(resolved(generation, kind, scaling))));
        generation
    }

    pub(in crate::decide) fn fail_build(&mut self) -> u64 {
        let generation = self.next_sequence();
        let failure = Failure::project(Stage::Building, "no such package", "name another");
        let event = DeploymentFailed {
            generation: Generation(generation),
            failure,
            serving: None,
            warnings: Vec::new(),
            extra: Extra::new(),
        };
        self.publish(Event::Failed(event));
        generation
    }

    pub(in crate::decide) fn scale(&mut self, replicas: u32, generation: Option<u64>) {
        self.scaled = true;
        let sequence = self.next_sequence();
        let event = ScaleRequested {
            by: "test".into(),
            generation: generation.map(Generation),
            replicas: Some(replicas),
            scaling: None,
            reason: String::new(),
            inputs: None,
            extra: Extra::new(),
        };
        self.publish(Event::Scale(event, sequence));
    }

    pub(in crate::decide) fn delete(&mut self) -> u64 {
        let generation = self.next_sequence();
        self.publish(Event::Delete(Generation(generation)));
        generation
    }
}
