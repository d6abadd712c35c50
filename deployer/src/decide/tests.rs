mod properties;

use std::collections::BTreeSet;

use proto::{
    deployer::{Announcement, ServiceState},
    failure::Blame,
    id::Generation,
    spec::Scaling,
};

use super::{
    Action, Input, Token,
    world::{Kind, World, auto, ring},
};

fn ready(world: &World) -> Vec<u64> {
    world
        .said
        .iter()
        .filter_map(|said| if let Announcement::Ready(ready) = said { Some(ready.generation.0) } else { None })
        .collect()
}

fn failed(world: &World) -> Vec<(u64, String)> {
    let failure = |said: &Announcement| match said {
        Announcement::Failed(failed) => Some((failed.generation.0, failed.failure.cause.clone())),
        _ => None,
    };
    world.said.iter().filter_map(failure).collect()
}

fn deleted(world: &World) -> Vec<u64> {
    world
        .said
        .iter()
        .filter_map(|said| if let Announcement::Deleted(gone) = said { Some(gone.generation.0) } else { None })
        .collect()
}

fn record(world: &World) -> &proto::deployer::ServiceRecord {
    &world.record.as_ref().expect("there is a record").0
}

#[test]
fn a_first_deployment_serves_when_all_its_replicas_are_ready() {
    let mut world = World::new(1);
    let generation = world.deploy(Kind::Good, auto(2, 5));
    world.settle();
    assert_eq!(ready(&world), [generation]);
    assert_eq!(world.running()[&generation], 2);
    assert_eq!(record(&world).state, ServiceState::Healthy);
    let (route, _) = world.route.as_ref().unwrap();
    assert_eq!((route.replicas.len(), route.starting, route.generation), (2, 0, Generation(generation)));
    assert_eq!(route.key_digests, ring(generation as u8).digests, "fresh keys hold");
}

#[test]
fn no_route_and_no_word_come_before_the_replicas_are_ready() {
    let mut world = World::new(1);
    world.deploy(Kind::Hangs, auto(1, 1));
    world.deliver(0, false);
    for _ in 0..50 {
        world.perform(0);
        world.hear(0);
        world.advance(0);
    }
    assert!(world.route.is_none() && world.said.is_empty());
    assert_eq!(record(&world).state, ServiceState::Transitioning);
}

#[test]
fn the_route_is_not_switched_before_the_last_replica_is_ready() {
    let mut world = World::new(1);
    let first = world.deploy(Kind::Good, auto(3, 5));
    world.settle();
    let second = world.deploy(Kind::Good, auto(3, 5));
    world.deliver(0, false);
    for missing in (1..=3).rev() {
        for _ in 0..20 {
            world.perform(0);
            world.hear(0);
            world.apply_route(0);
            world.pass();
        }
        assert_eq!(world.route.as_ref().unwrap().0.generation, Generation(first), "{missing} are not ready");
        assert_eq!(ready(&world), [first]);
        // Two steps make one replica ready.
        world.advance(0);
        world.advance(0);
    }
    world.settle();
    assert_eq!(world.route.as_ref().unwrap().0.generation, Generation(second));
}

#[test]
fn a_new_generation_takes_over_and_the_old_one_is_emptied_first() {
    let mut world = World::new(2);
    world.deploy(Kind::Good, auto(1, 5));
    world.settle();
    world.request(0);
    world.request(1);
    let second = world.deploy(Kind::Good, auto(1, 5));
    world.deliver(0, false);
    for _ in 0..30 {
        world.perform(0);
        world.hear(0);
        world.advance(0);
        world.apply_route(0);
        world.apply_route(1);
        world.pass();
    }
    assert_eq!(ready(&world), [1, second]);
    assert_eq!(world.running().len(), 2, "the old one has requests in hand");
    world.settle();
    assert_eq!(world.running().keys().copied().collect::<Vec<_>>(), [second]);
    assert_eq!(world.lost, 0);
}

#[test]
fn a_generation_that_cannot_start_leaves_the_old_one_alone() {
    for (kind, cause) in [
        (Kind::Raises, "init() of raises.py raised RuntimeError: damaged"),
        (Kind::Crashes, "the replica ended with exit code 1 without a word"),
        (Kind::Hangs, "init() did not finish within 310 s"),
    ] {
        let mut world = World::new(1);
        let good = world.deploy(Kind::Good, auto(1, 1));
        world.settle();
        let (before, revision) = world.route.clone().unwrap();
        let bad = world.deploy(kind, auto(1, 1));
        world.settle();
        assert_eq!(failed(&world), [(bad, cause.to_owned())]);
        assert_eq!(world.route, Some((before, revision)), "the route was not touched");
        assert_eq!(world.running().keys().copied().collect::<Vec<_>>(), [good]);
        let failure = record(&world).failure.as_ref().unwrap();
        assert_eq!((failure.serving, failure.failure.blame), (Some(Generation(good)), Blame::Project));
        assert_eq!(record(&world).state, ServiceState::Healthy);
    }
}

#[test]
fn a_first_generation_that_cannot_start_is_failed() {
    let mut world = World::new(0);
    world.deploy(Kind::Raises, auto(1, 1));
    world.settle();
    assert_eq!(record(&world).state, ServiceState::Failed);
    assert!(world.running().is_empty() && world.route.is_none());
}

#[test]
fn a_crash_before_ready_is_tried_three_times() {
    let mut world = World::new(0);
    world.deploy(Kind::Crashes, auto(1, 1));
    world.deliver(0, false);
    let mut starts = BTreeSet::new();
    for _ in 0..200 {
        world.perform(0);
        world.hear(0);
        world.advance(0);
        world.pass();
        starts.extend(world.service.replicas.keys().cloned());
    }
    assert_eq!(starts.len(), 3);
    assert_eq!(failed(&world).len(), 1);
}

#[test]
fn a_newer_request_supersedes_one_that_is_starting() {
    let mut world = World::new(0);
    let first = world.deploy(Kind::Hangs, auto(1, 1));
    world.deliver(0, false);
    for _ in 0..10 {
        world.perform(0);
        world.hear(0);
    }
    let second = world.deploy(Kind::Good, auto(1, 1));
    world.settle();
    assert_eq!(ready(&world), [second]);
    assert_eq!(failed(&world)[0].0, first);
    assert!(failed(&world)[0].1.starts_with("superseded by generation 2"), "{:?}", failed(&world));
}

#[test]
fn a_request_that_comes_after_a_newer_one_is_told_so() {
    let mut world = World::new(0);
    let first = world.deploy(Kind::Good, auto(1, 1));
    let second = world.deploy(Kind::Good, auto(1, 1));
    world.deliver(1, false);
    world.settle();
    assert_eq!(ready(&world), [second]);
    assert_eq!(failed(&world).iter().map(|(generation, _)| *generation).collect::<Vec<_>>(), [first]);
}

#[test]
fn an_event_that_comes_again_changes_nothing() {
    let mut world = World::new(1);
    world.deploy(Kind::Good, auto(1, 2));
    world.deploy(Kind::Raises, auto(1, 2));
    world.settle();
    let before = (world.record.clone(), world.route.clone(), world.said.len());
    for index in 0..4 {
        world.deliver(index, true);
        world.settle();
    }
    assert_eq!((world.record.clone(), world.route.clone(), world.said.len()), before);
}

#[test]
fn a_failure_of_an_earlier_stage_is_known_and_changes_nothing_else() {
    let mut world = World::new(1);
    let good = world.deploy(Kind::Good, auto(1, 1));
    world.settle();
    let route = world.route.clone();
    let bad = world.fail_build();
    world.settle();
    assert_eq!(record(&world).failure.as_ref().unwrap().generation, Generation(bad));
    assert_eq!(record(&world).active.as_ref().unwrap().generation, Generation(good));
    assert_eq!(record(&world).latest, Generation(bad));
    assert_eq!(world.route, route);
    assert_eq!(failed(&world), [], "who failed has said so");
}

#[test]
fn a_scale_request_holds_within_the_bounds_and_once() {
    let mut world = World::new(1);
    let generation = world.deploy(Kind::Good, auto(1, 3));
    world.settle();
    for (wanted, got) in [(2, 2), (9, 3), (0, 1)] {
        world.scale(wanted, Some(generation));
        world.settle();
        assert_eq!(world.running()[&generation], got, "{wanted} asked for");
    }
    world.scale(3, Some(generation + 1));
    world.settle();
    assert_eq!(world.running()[&generation], 1, "a decision for another generation is void");
    world.deliver(1, true);
    world.settle();
    assert_eq!(world.running()[&generation], 1, "an old request does not hold again");
}

#[test]
fn scaling_down_takes_a_replica_out_of_the_routes_before_it_stops() {
    let mut world = World::new(1);
    let generation = world.deploy(Kind::Good, Scaling::Fixed { replicas: 1 });
    world.settle();
    world.scale(1, None);
    world.settle();
    let mut world = World::new(1);
    let second = world.deploy(Kind::Good, auto(1, 3));
    assert_eq!(generation, second);
    world.settle();
    world.scale(3, None);
    world.settle();
    world.request(0);
    world.request(7);
    world.request(14);
    assert_eq!(world.routers[0].in_flight.len(), 3);
    world.scale(1, None);
    world.deliver(0, false);
    for _ in 0..30 {
        world.perform(0);
        world.hear(0);
        world.apply_route(0);
        world.pass();
    }
    let (route, _) = world.route.as_ref().unwrap();
    assert_eq!(route.replicas.iter().filter(|endpoint| endpoint.draining).count(), 2);
    assert_eq!(world.running()[&second], 3, "requests are in hand");
    world.settle();
    assert_eq!((world.running()[&second], world.lost), (1, 0));
}

#[test]
fn a_replica_that_is_being_emptied_is_taken_back_when_it_is_needed_again() {
    let mut world = World::new(1);
    let generation = world.deploy(Kind::Good, auto(1, 2));
    world.settle();
    world.scale(2, None);
    world.settle();
    world.request(0);
    world.request(7);
    let before: Vec<_> = world.service.replicas.keys().cloned().collect();
    world.scale(1, None);
    world.deliver(0, false);
    for _ in 0..5 {
        world.perform(0);
        world.hear(0);
        world.apply_route(0);
        world.pass();
    }
    world.scale(2, None);
    world.settle();
    assert_eq!(world.service.replicas.keys().cloned().collect::<Vec<_>>(), before);
    assert_eq!(world.running()[&generation], 2);
    assert!(world.route.as_ref().unwrap().0.replicas.iter().all(|endpoint| !endpoint.draining));
}

#[test]
fn a_crashed_replica_leaves_the_routes_at_once_and_is_replaced_after_a_while() {
    let mut world = World::new(1);
    let generation = world.deploy(Kind::Good, auto(1, 1));
    world.settle();
    world.crash(0);
    world.hear(0);
    for _ in 0..10 {
        world.perform(0);
        world.hear(0);
    }
    assert!(world.route.as_ref().unwrap().0.replicas.is_empty());
    assert_eq!(record(&world).state, ServiceState::Unhealthy);
    assert!(record(&world).failure.as_ref().unwrap().failure.cause.contains("killed by SIGKILL"));
    world.settle();
    assert_eq!(world.running()[&generation], 1);
    assert_eq!((record(&world).state, record(&world).failure.clone()), (ServiceState::Healthy, None));
}

#[test]
fn a_deleted_service_leaves_nothing_and_does_not_come_back() {
    let mut world = World::new(1);
    world.deploy(Kind::Good, auto(2, 2));
    world.settle();
    world.request(0);
    let gone = world.delete();
    world.settle();
    assert_eq!(deleted(&world), [gone]);
    assert!(world.running().is_empty() && world.route.is_none() && record(&world).gone());
    assert_eq!((record(&world).sealed_keys.clone(), world.lost), (None, 0));
    world.deliver(0, true);
    world.settle();
    assert!(record(&world).gone() && world.running().is_empty());
}

#[test]
fn what_was_asked_for_before_a_deletion_does_not_come_back_when_it_is_late() {
    let mut world = World::new(0);
    let late = world.deploy(Kind::Good, auto(1, 1));
    world.delete();
    world.deliver(1, false);
    world.settle();
    assert!(record(&world).gone());
    assert_eq!(failed(&world)[0].0, late, "whoever waits for it is told");
}

#[test]
fn a_service_can_be_deployed_again_while_it_is_being_deleted() {
    let mut world = World::new(1);
    world.deploy(Kind::Good, auto(1, 1));
    world.settle();
    let gone = world.delete();
    world.deliver(0, false);
    let again = world.deploy(Kind::Good, auto(1, 1));
    world.settle();
    assert_eq!((deleted(&world), ready(&world)), (vec![gone], vec![1, again]));
    assert_eq!(record(&world).key_digests, ring(again as u8).digests, "it has new keys");
    assert_eq!(world.running().keys().copied().collect::<Vec<_>>(), [again]);
}

#[test]
fn the_entry_of_a_deleted_service_goes_when_no_late_event_can_come() {
    let mut world = World::new(0);
    world.delete();
    world.settle();
    world.now += super::TOMBSTONE;
    world.pass();
    world.perform(0);
    world.hear(0);
    assert!(world.record.is_none() && world.service.is_over());
}

#[test]
fn given_keys_hold_from_the_switch_and_not_before() {
    let mut world = World::new(0);
    world.deploy(Kind::Good, auto(1, 1));
    world.settle();
    let event = super::world::resolved(9, Kind::Raises, auto(1, 1));
    let when = super::When { at: String::new(), first: true };
    let resolved = super::Resolved { event, keys: super::KeyOffer::Given(ring(77)), when };
    let actions = world.service.on(world.now, Input::Resolved(Token(0), Box::new(resolved)));
    let Some(Action::Store(record, _)) = actions.first() else { panic!("{actions:?}") };
    assert_eq!(record.key_digests, ring(1).digests);
    assert_eq!(record.candidate_keys, Some(ring(77)));
}

#[test]
fn a_message_is_settled_only_when_its_effect_is_stored() {
    let mut world = World::new(0);
    let event = super::world::resolved(1, Kind::Good, auto(1, 1));
    let when = super::When { at: String::new(), first: true };
    let resolved = super::Resolved { event, keys: super::KeyOffer::Fresh(ring(1)), when };
    let actions = world.service.on(world.now, Input::Resolved(Token(5), Box::new(resolved)));
    assert!(matches!(actions[..], [Action::Store(..)]), "{actions:?}");
    let actions = world.service.on(world.now, Input::Stored(1));
    assert!(actions.contains(&Action::Ack(Token(5))), "{actions:?}");
    assert!(actions.iter().any(|action| matches!(action, Action::Start(_))), "{actions:?}");
}
