//! What holds whatever happens, in any order.

use proptest::prelude::*;
use proto::{deployer::ServiceState, id::Generation};

use super::{deleted, failed, ready, record};
use crate::decide::world::{Kind, World, auto};

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
