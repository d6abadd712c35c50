use std::collections::BTreeSet;

use proptest::prelude::*;
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
fn the_entry_of_a_deleted_service_goes_after_a_day() {
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

#[derive(Debug, Clone)]
enum Step {
    Deploy(Kind, u32),
    FailBuild,
    Scale(u32),
    Delete,
    Deliver(usize),
    Repeat(usize),
    Perform(usize),
    Hear(usize),
    Advance(usize),
    Apply(usize),
    Request(usize),
    Complete(usize),
    Crash(usize),
    Pass,
    Restart,
    Interfere,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![4 => Just(Kind::Good), 1 => Just(Kind::Raises), 1 => Just(Kind::Crashes)];
    prop_oneof![
        3 => (kind, 1u32..3).prop_map(|(kind, least)| Step::Deploy(kind, least)),
        1 => Just(Step::FailBuild),
        2 => (0u32..7).prop_map(Step::Scale),
        1 => Just(Step::Delete),
        6 => any::<usize>().prop_map(Step::Deliver),
        1 => any::<usize>().prop_map(Step::Repeat),
        20 => any::<usize>().prop_map(Step::Perform),
        20 => any::<usize>().prop_map(Step::Hear),
        10 => any::<usize>().prop_map(Step::Advance),
        8 => any::<usize>().prop_map(Step::Apply),
        8 => any::<usize>().prop_map(Step::Request),
        8 => any::<usize>().prop_map(Step::Complete),
        1 => any::<usize>().prop_map(Step::Crash),
        8 => Just(Step::Pass),
        1 => Just(Step::Restart),
        1 => Just(Step::Interfere),
    ]
}

/// What each request was, in the order of generations.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Wish {
    Deploy(Kind),
    Delete,
}

/// Runs the steps in a new world, or in one where a service has requests in hand.
fn run(steps: &[Step], busy: bool) -> (World, Vec<(u64, Wish)>) {
    let mut world = World::new(2);
    let mut wishes = Vec::new();
    if busy {
        wishes.push((world.deploy(Kind::Good, auto(2, 5)), Wish::Deploy(Kind::Good)));
        world.settle();
        for pick in [0, 1, 7, 8] {
            world.apply_route(pick);
            world.request(pick);
        }
    }
    for step in steps {
        match *step {
            Step::Deploy(kind, least) => wishes.push((world.deploy(kind, auto(least, 5)), Wish::Deploy(kind))),
            Step::FailBuild => drop(world.fail_build()),
            Step::Scale(replicas) => world.scale(replicas, None),
            Step::Delete => wishes.push((world.delete(), Wish::Delete)),
            Step::Deliver(pick) => world.deliver(pick, false),
            Step::Repeat(pick) => world.deliver(pick, true),
            Step::Perform(pick) => world.perform(pick),
            Step::Hear(pick) => world.hear(pick),
            Step::Advance(pick) => world.advance(pick),
            Step::Apply(pick) => world.apply_route(pick),
            Step::Request(pick) => world.request(pick),
            Step::Complete(pick) => world.complete(pick),
            Step::Crash(pick) => world.crash(pick),
            Step::Pass => world.pass(),
            Step::Restart => world.restart(),
            Step::Interfere => world.interfere(),
        }
    }
    world.settle();
    (world, wishes)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_newest_wish_comes_true(steps in proptest::collection::vec(step(), 0..150), busy: bool) {
        let (world, wishes) = run(&steps, busy);
        let Some((last, wish)) = wishes.last().copied() else { return Ok(()) };
        let running: Vec<u64> = world.running().keys().copied().collect();
        match wish {
            Wish::Deploy(Kind::Good) => {
                let active = record(&world).active.as_ref().expect("something serves");
                prop_assert_eq!(active.generation, Generation(last));
                prop_assert_eq!(&running, &[last]);
                prop_assert!(ready(&world).contains(&last));
                let wanted = record(&world).scaling.clamp(record(&world).replicas);
                prop_assert_eq!(world.running()[&last], wanted);
                let (route, _) = world.route.as_ref().expect("it is routed");
                prop_assert_eq!(route.replicas.iter().filter(|endpoint| !endpoint.draining).count() as u32, wanted);
                prop_assert_eq!(record(&world).state, ServiceState::Healthy);
            }
            Wish::Deploy(_) => {
                prop_assert!(failed(&world).iter().any(|(generation, _)| *generation == last));
                prop_assert!(record(&world).candidate.is_none());
                let active = record(&world).active.as_ref().map(|release| release.generation.0);
                prop_assert_eq!(running, active.into_iter().collect::<Vec<_>>());
            }
            Wish::Delete => {
                prop_assert!(record(&world).active.is_none() && running.is_empty() && world.route.is_none());
                prop_assert!(deleted(&world).contains(&last));
            }
        }
    }

    #[test]
    fn no_request_is_lost_and_no_outcome_is_said_twice(steps in proptest::collection::vec(step(), 0..150), busy: bool) {
        let (world, wishes) = run(&steps, busy);
        prop_assert_eq!(world.lost, 0);
        prop_assert!(record_is_clean(&world));
        for (generation, wish) in wishes {
            let good = ready(&world).iter().filter(|ready| **ready == generation).count();
            let bad = failed(&world).iter().filter(|(failed, _)| *failed == generation).count();
            prop_assert!(good == 0 || bad == 0, "generation {} is both ready and failed", generation);
            if !world.restarted {
                prop_assert!(good + bad <= 1, "generation {} is said {} times", generation, good + bad);
            }
            if wish != Wish::Delete {
                prop_assert!(good + bad >= 1 || world.restarted, "nobody was told of generation {}", generation);
            }
        }
    }

    #[test]
    fn a_rollout_never_leaves_fewer_replicas_than_there_were(steps in proptest::collection::vec(step(), 0..150), busy: bool) {
        let quiet: Vec<_> = steps.into_iter().filter(|step| !matches!(step, Step::Scale(_) | Step::Crash(_))).collect();
        let (world, _) = run(&quiet, busy);
        prop_assert!(!world.crashed && !world.scaled, "the world itself looks at each route");
    }

    #[test]
    fn good_requests_end_the_same_in_any_order(order in proptest::collection::vec(any::<usize>(), 8), repeats in proptest::collection::vec(any::<usize>(), 0..6)) {
        let end = |order: &[usize], repeats: &[usize]| {
            let mut world = World::new(1);
            for _ in 0..3 {
                world.deploy(Kind::Good, auto(1, 2));
                world.fail_build();
            }
            for pick in order {
                world.deliver(*pick, false);
                world.perform(0);
                world.hear(0);
            }
            for pick in repeats {
                world.deliver(*pick, true);
            }
            world.settle();
            let record = record(&world).clone();
            (record.active.map(|release| release.generation), record.latest, record.failure.map(|failed| failed.generation), world.running())
        };
        prop_assert_eq!(end(&order, &repeats), end(&[], &[]));
    }
}

fn record_is_clean(world: &World) -> bool {
    world.record.as_ref().is_none_or(|(record, _)| record.outbox.is_empty() && record.candidate.is_none())
}
