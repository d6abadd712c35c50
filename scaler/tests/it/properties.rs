//! What holds for every load, every order of events and every loss of them.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proto::{id::Generation, router::ServiceUtilization, spec::Scaling};
use scaler::{
    Demand, Facts, Load,
    decide::{Action, Input, Scaler, Timing},
};

use crate::world::{World, auto, idle, key};

fn bounds() -> impl Strategy<Value = (u32, u32)> {
    (1_u32..20).prop_flat_map(|min| (Just(min), min..60))
}

fn scaling() -> impl Strategy<Value = Scaling> {
    (bounds(), 1_u8..=100).prop_map(|((min, max), target)| Scaling::Auto {
        min_replicas: min,
        max_replicas: max,
        target_utilization: target,
        refresh_seconds: 1,
    })
}

fn load() -> impl Strategy<Value = Load> {
    let figure = || prop_oneof![Just(0.0), 0.0_f64..500.0];
    (figure(), figure(), figure(), figure(), figure()).prop_map(|(concurrent, queued, arrivals, completed, refused)| {
        Load { busy: concurrent, concurrent, queued, arrivals, completed, refused }
    })
}

proptest! {
    #[test]
    fn the_need_grows_with_the_load_and_stays_within_the_bounds(
        less in load(), more in load(), time in proptest::option::of(0.001_f64..100.0), scaling in scaling(), concurrency in 1_u32..8
    ) {
        let (min, max) = scaling.bounds();
        let facts = Facts { generation: Generation(1), replicas: 1, starting: 0, concurrency, scaling };
        let sum = Load {
            busy: less.busy + more.busy,
            concurrent: less.concurrent + more.concurrent,
            queued: less.queued + more.queued,
            arrivals: less.arrivals + more.arrivals,
            completed: less.completed + more.completed,
            refused: less.refused + more.refused,
        };
        let needed = |load: &Load| Demand::of(load, time).needed(&facts).unwrap();
        prop_assert!(needed(&sum) >= needed(&less));
        prop_assert!((min..=max).contains(&needed(&sum)));
        // No less than what the requests in replicas need.
        let least = (less.concurrent * 100.0 / f64::from(concurrency) / 100.0 - 1e-6).ceil() as u32;
        prop_assert!(needed(&less) >= facts.scaling.clamp(least));
    }

    #[test]
    fn a_constant_load_is_met_without_a_change_of_direction(
        rate in 1.0_f64..200.0, time in 0.005_f64..2.0, (min, max) in bounds(), routers in 1_usize..4, before in 1_u32..40, start in 1_u64..30
    ) {
        let mut world = World::with((rate.round() * routers as f64, time), auto(min, max));
        world.routers = [("a", true), ("b", true), ("c", true)][..routers].to_vec();
        world.service.replicas = before.clamp(min, max);
        world.start = Some(start);
        world.run(300);
        let exact = (world.load.0 * time / 0.7 - 1e-6).ceil();
        let wanted = f64::from(min).max(exact.min(f64::from(max)));
        // The time of a request is measured, and counts are whole numbers: a little off is no error, too few would be.
        let off = f64::from(world.coming()) - wanted;
        prop_assert!((-0.02 * wanted - 1.0..=0.02 * wanted + 1.0).contains(&off), "{} for {wanted}: {:?}", world.coming(), world.asks);
        let ups = world.asks.iter().any(|ask| ask.to > ask.from);
        let downs = world.asks.iter().any(|ask| ask.to < ask.from);
        prop_assert!(!(ups && downs), "{:?}", world.asks);
        for ask in &world.asks {
            prop_assert!((min..=max).contains(&ask.to));
        }
    }

    #[test]
    fn nothing_goes_unless_every_known_router_was_heard_for_a_minute(
        phases in proptest::collection::vec((1_u64..70, 0.0_f64..60.0, any::<[bool; 2]>()), 1..14)
    ) {
        let mut world = World::with((0.0, 0.1), auto(1, 10));
        world.routers = vec![("a", true), ("b", true)];
        let mut spoke: Vec<[bool; 2]> = vec![[false; 2]];
        for (seconds, rate, speaks) in phases {
            world.load.0 = rate;
            (world.routers[0].1, world.routers[1].1) = (speaks[0], speaks[1]);
            world.run(seconds);
            spoke.extend(std::iter::repeat_n(speaks, usize::try_from(seconds).unwrap()));
        }
        for ask in world.asks.iter().filter(|ask| ask.to < ask.from) {
            let end = usize::try_from(ask.second).unwrap();
            prop_assert!(end >= 59, "too early: {ask:?}");
            for router in 0..2 {
                // A router that was silent for all of two minutes is forgotten; what it says in this very second may come later.
                let known = spoke[end.saturating_sub(118)..end].iter().any(|spoke| spoke[router]);
                let longest = spoke[end - 55..=end].split(|spoke| spoke[router]).map(<[_]>::len).max().unwrap();
                prop_assert!(!known || longest <= 4, "router {router} was silent for {longest} s: {ask:?}");
            }
        }
    }

    #[test]
    fn whatever_is_said_in_whatever_order_the_bounds_hold(
        events in proptest::collection::vec(event(), 1..120)
    ) {
        let mut scaler = Scaler::new(Timing::default(), &"scaler-1".parse().unwrap(), 1);
        let mut now = tokio::time::Instant::now();
        scaler.on(now, Input::Lead(true));
        for (step, event) in events {
            now += std::time::Duration::from_millis(step);
            let bounds = event.scaling.bounds();
            let heard = Input::Heard { key: key(), received_ms: 1_000_000, event: Box::new(event) };
            for input in [heard, Input::Tick] {
                for action in scaler.on(now, input) {
                    if let Action::Ask { event, .. } = action {
                        prop_assert!((bounds.0..=bounds.1).contains(&event.replicas.unwrap()));
                        prop_assert!(!event.reason.is_empty());
                    }
                }
            }
        }
    }
}

/// Any event of one router at one revision, sensible or not, and the milliseconds before it.
fn event() -> impl Strategy<Value = (u64, ServiceUtilization)> {
    let figure = || prop_oneof![4 => 0.0_f64..50.0, 1 => any::<f64>()];
    let count = || prop_oneof![4 => 0_u64..50, 1 => any::<u64>()];
    (0_u64..40_000, 0_u64..200, figure(), figure(), count(), count(), 0_u32..5, any::<bool>()).prop_map(
        |(step, sequence, concurrent, queued, arrivals, completed, replicas, refuses)| {
            let event = ServiceUtilization {
                sequence,
                at_ms: 990_000 + sequence * 100,
                replicas,
                scaling: auto(2, 6),
                busy: 0.0,
                concurrent,
                queued,
                arrivals,
                completed,
                refused: if refuses { BTreeMap::from([("capacity".to_owned(), arrivals)]) } else { BTreeMap::new() },
                ..idle("a")
            };
            (step, event)
        },
    )
}
