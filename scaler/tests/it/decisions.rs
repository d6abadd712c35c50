//! Single decisions: what is asked for, when, and with which reason.

use std::{collections::BTreeMap, time::Duration};

use proto::{id::Generation, router::ServiceUtilization, scaler::ScaleRequested, spec::Scaling};
use scaler::{
    Dropped, Unknown,
    decide::{Action, Input, Timing},
};

use crate::world::{World, auto, idle, key, router};

const NONE: [u32; 0] = [];

fn heard(event: ServiceUtilization) -> Input {
    Input::Heard { key: key(), received_ms: event.at_ms, event: Box::new(event) }
}

fn asked_by_a_person(replicas: u32) -> Input {
    let event = ScaleRequested {
        by: "a person".to_owned(),
        generation: None,
        replicas: Some(replicas),
        scaling: None,
        reason: "a demonstration".to_owned(),
        inputs: None,
        extra: proto::Extra::new(),
    };
    Input::Asked { key: key(), event: Box::new(event) }
}

#[test]
fn an_overload_is_answered_by_the_first_news_of_it_and_explained() {
    let mut world = World::with((0.0, 0.031), auto(1, 5));
    world.run(5);
    world.load.0 = 118.0;
    world.run(1);
    assert_eq!(world.asks.len(), 1);
    let event = &world.asks[0].event;
    assert_eq!(event.replicas, Some(5));
    assert_eq!(event.generation, Some(Generation(7)));
    assert_eq!(event.by, "scaler/scaler-1");
    // The time of a request is not known to the last digit in the first second of a load.
    assert!(event.reason.starts_with("118 requests/s × 3"), "{}", event.reason);
    assert!(event.reason.ends_with(" replicas; 5 fit (maximum 5)"), "{}", event.reason);
    let inputs = event.inputs.as_ref().unwrap();
    assert_eq!((inputs.routers, inputs.replicas, inputs.starting, inputs.concurrency), (1, 1, 0, 1));
    assert_eq!((inputs.concurrent, inputs.utilization), (1.0, 100.0));
}

#[test]
fn the_sentence_tells_rate_time_target_and_bound() {
    let mut world = World::with((118.0, 0.031), auto(1, 5));
    world.service.replicas = 4;
    world.run(20);
    let reason = &world.asks[0].event.reason;
    assert_eq!(reason, "118 requests/s × 31 ms = 3.66 busy; at 70 % that is 5.2 replicas; 5 fit (maximum 5)");
}

#[test]
fn v1s_sizing_formula_is_reached_even_by_requests_that_take_long() {
    // 20 requests a second of 10 seconds each, at 70 % and one request a replica: 286 replicas (azureml-v1.md, section 3).
    let mut world = World::with((20.0, 10.0), auto(1, 1_000));
    world.run(120);
    assert_eq!(world.coming(), 286);
}

#[test]
fn a_burst_of_slow_requests_is_counted_once() {
    let mut world = World::with((0.1, 10.0), auto(1, 100));
    world.run(60).asked();
    let coming = world.coming();
    let burst = ServiceUtilization {
        sequence: 61,
        at_ms: 1_061_000,
        replicas: coming,
        busy: 1.0,
        concurrent: 1.0,
        queued: 5.0,
        arrivals: 6,
        scaling: auto(1, 100),
        revision: world.service.revision,
        ..idle("a")
    };
    world.now += Duration::from_secs(1);
    world.give(heard(burst));
    // Six at a time at 70 %, not six a second of ten seconds each.
    assert_eq!(world.asked(), [9]);
}

#[test]
fn requests_that_carry_no_valid_key_are_no_demand() {
    let mut world = World::new(Timing::default());
    let attack = ServiceUtilization {
        arrivals: 10_000,
        refused: BTreeMap::from([("authentication".to_owned(), 10_000)]),
        concurrent: 0.2,
        busy: 0.2,
        completed: 20,
        ..idle("a")
    };
    world.give(heard(attack));
    assert_eq!(world.asked(), NONE);
}

#[test]
fn a_request_in_a_sliver_of_time_is_no_load_of_one() {
    let mut world = World::with((1.0, 0.01), auto(1, 10));
    world.run(5);
    // A router speaks at once when it has emptied a replica; its window is short then.
    let sliver = ServiceUtilization {
        sequence: 100,
        at_ms: 1_005_010,
        window_ms: 10,
        arrivals: 1,
        busy: 1.0,
        concurrent: 1.0,
        ..idle("a")
    };
    for (number, window_ms) in [(100, 10), (101, 0), (102, 1)] {
        world.now += Duration::from_millis(600);
        world.give(heard(ServiceUtilization { sequence: number, window_ms, ..sliver.clone() }));
    }
    assert_eq!((world.asked(), world.reports.len()), (NONE.to_vec(), 0));
}

#[test]
fn fewer_are_asked_for_when_the_lower_need_has_held_for_a_minute() {
    let mut world = World::with((30.0, 0.1), auto(1, 10));
    world.run(10);
    assert_eq!(world.coming(), 5);
    world.load.0 = 10.0;
    world.run(59).asks.retain(|ask| ask.second > 10);
    assert_eq!(world.asked(), NONE);
    world.run(5);
    let reason = world.asks[0].event.reason.clone();
    assert_eq!(world.asked(), [2]);
    assert_eq!(reason, "at most 1.00 busy for 60 s, and 2 % to be sure; at 70 % that is 1.5 replicas; so 2");
}

#[test]
fn a_peak_within_the_minute_keeps_the_replicas() {
    let mut world = World::with((30.0, 0.1), auto(1, 10));
    world.run(10).asked();
    for _ in 0..5 {
        world.load.0 = 1.0;
        world.run(50);
        world.load.0 = 30.0;
        world.run(1);
    }
    assert_eq!((world.asked(), world.coming()), (NONE.to_vec(), 5));
}

#[test]
fn replicas_that_are_starting_count_as_coming() {
    let mut world = World::with((30.0, 0.1), auto(1, 10));
    world.start = Some(300);
    world.run(200);
    assert_eq!(world.coming(), 5);
    assert_eq!(world.asks.last().unwrap().to, 5);
    assert!(world.asks.len() <= 2, "{:?}", world.asks);
}

#[test]
fn a_request_that_shows_no_effect_is_repeated_more_and_more_rarely() {
    let mut world = World::with((118.0, 0.031), auto(1, 4));
    world.start = None;
    world.run(600);
    let seconds: Vec<_> = world.asks.iter().map(|ask| ask.second).collect();
    assert_eq!(seconds, [1, 11, 31, 71, 151, 311]);
    let mut ids: Vec<_> = world.asks.iter().map(|ask| &ask.id).collect();
    ids.dedup();
    assert_eq!(ids.len(), 6, "each decision has an id of its own");
    assert!(ids[0].starts_with("scale.requested/default/ridge/7/"), "{}", ids[0]);
}

#[test]
fn a_decision_that_was_not_stored_is_made_again() {
    let mut world = World::with((30.0, 0.1), auto(1, 10));
    world.start = None;
    world.run(1);
    assert_eq!(world.asked().len(), 1);
    world.give(Input::Failed { key: key() });
    world.run(1);
    assert_eq!(world.asked().len(), 1);
}

#[test]
fn nothing_goes_while_a_router_is_silent_and_the_minute_begins_anew_after_it() {
    let mut world = World::with((30.0, 0.1), auto(1, 10));
    world.routers = vec![("a", true), ("b", true)];
    world.run(10).asked();
    world.load.0 = 1.0;
    world.run(30);
    world.routers[1].1 = false;
    world.run(5);
    assert_eq!(world.reports, [Action::Freeze { key: key(), why: Unknown::Silent(router("b")) }]);
    world.run(50);
    world.routers[1].1 = true;
    world.run(2);
    assert_eq!(world.reports[1..], [Action::Thaw { key: key() }]);
    world.run(57);
    assert_eq!(world.asked(), NONE);
    world.run(5);
    assert_eq!(world.asked(), [1]);
}

#[test]
fn a_router_that_went_for_good_is_forgotten() {
    let mut world = World::with((30.0, 0.1), auto(1, 10));
    world.routers = vec![("a", true), ("b", true)];
    world.run(10).asked();
    world.load.0 = 1.0;
    world.routers[1].1 = false;
    world.run(110);
    assert_eq!(world.asked(), NONE);
    world.run(15);
    assert_eq!(world.asked(), [1]);
}

#[test]
fn nothing_goes_when_all_news_is_lost() {
    let mut world = World::with((30.0, 0.1), auto(1, 10));
    world.run(10).asked();
    world.load.0 = 0.0;
    world.run(40);
    world.routers[0].1 = false;
    world.run(3_000);
    assert_eq!(world.asked(), NONE);
    world.routers[0].1 = true;
    world.run(59);
    assert_eq!(world.asked(), NONE);
    world.run(5);
    assert_eq!(world.asked(), [1]);
}

#[test]
fn more_are_asked_for_even_while_a_router_is_silent() {
    let mut world = World::with((0.0, 0.1), auto(1, 10));
    world.routers = vec![("a", true), ("b", true)];
    world.run(10);
    world.routers[1].1 = false;
    world.load.0 = 60.0;
    world.run(20);
    assert!(world.coming() > 1, "{}", world.coming());
}

#[test]
fn routers_that_contradict_each_other_freeze_the_number() {
    let mut world = World::with((0.0, 0.1), auto(1, 10));
    world.service.replicas = 5;
    for _ in 0..90 {
        world.run(1);
        let at = (world.second, 1_000_000 + world.second * 1_000);
        world.give(heard(ServiceUtilization { sequence: at.0, at_ms: at.1, concurrency: 4, replicas: 5, ..idle("b") }));
    }
    assert_eq!(world.asked(), NONE);
    assert!(matches!(world.reports[0], Action::Freeze { why: Unknown::Contradiction(_), .. }), "{:?}", world.reports);
}

#[test]
fn nonsense_is_dropped_and_its_sender_counts_as_silent() {
    let infinite = ServiceUtilization { concurrent: f64::INFINITY, ..idle("b") };
    for nonsense in [
        ServiceUtilization { busy: f64::NAN, ..idle("b") },
        ServiceUtilization { queued: -1.0, ..idle("b") },
        ServiceUtilization { concurrent: 1e300, ..idle("b") },
        ServiceUtilization { concurrency: 0, ..idle("b") },
        ServiceUtilization { scaling: auto(5, 2), ..idle("b") },
        ServiceUtilization { arrivals: u64::MAX, ..idle("b") },
        infinite,
    ] {
        let mut world = World::with((0.0, 0.1), auto(1, 10));
        world.service.replicas = 5;
        for second in 1..90 {
            world.run(1);
            world.give(heard(ServiceUtilization {
                sequence: second,
                at_ms: 1_000_000 + second * 1_000,
                ..nonsense.clone()
            }));
        }
        assert_eq!(world.asked(), NONE, "{nonsense:?}");
        assert_eq!(world.reports.iter().filter(|report| **report == Action::Drop(Dropped::Nonsense)).count(), 89);
    }
}

#[test]
fn news_that_comes_late_twice_or_again_after_an_hour_moves_nothing() {
    let mut world = World::with((1.0, 0.1), auto(1, 10));
    world.run(10);
    let overload = ServiceUtilization { concurrent: 9.0, busy: 9.0, queued: 9.0, ..idle("a") };
    let past = |sequence| ServiceUtilization { sequence, at_ms: 1_000_000 + sequence * 1_000, ..overload.clone() };
    let received_ms = 1_010_500;
    for sequence in [10, 9, 1, 10] {
        world.now += Duration::from_millis(600);
        world.give(Input::Heard { key: key(), event: Box::new(past(sequence)), received_ms });
    }
    // The router is forgotten, then its past is said again.
    world.routers[0].1 = false;
    world.run(200);
    for sequence in 1..10 {
        world.now += Duration::from_secs(1);
        world.give(Input::Heard { key: key(), event: Box::new(past(sequence)), received_ms: 1_210_000 });
    }
    assert_eq!(world.asked(), NONE);
    assert_eq!(world.reports.iter().filter(|report| **report == Action::Drop(Dropped::Late)).count(), 13);
}

#[test]
fn a_router_of_the_same_name_that_began_anew_is_believed() {
    let mut world = World::with((1.0, 0.1), auto(1, 10));
    world.run(100).asked();
    world.now += Duration::from_secs(1);
    let anew = ServiceUtilization { at_ms: 1_101_000, concurrent: 3.0, busy: 1.0, completed: 10, ..idle("a") };
    world.give(heard(anew));
    assert_eq!(world.asked(), [5]);
}

#[test]
fn a_fixed_number_is_never_touched() {
    let mut world = World::with((100.0, 0.1), Scaling::Fixed { replicas: 2 });
    world.service.replicas = 2;
    world.run(200);
    world.load.0 = 0.0;
    world.run(200);
    assert_eq!((world.asked(), world.reports.len()), (NONE.to_vec(), 0));
}

#[test]
fn changed_settings_are_followed_at_once() {
    let mut world = World::with((21.0, 0.1), auto(1, 10));
    world.run(60).asked();
    assert_eq!(world.coming(), 3);
    let Scaling::Auto { target_utilization, .. } = &mut world.service.scaling else { unreachable!() };
    *target_utilization = 30;
    world.run(2);
    assert_eq!(world.asked(), [7]);
    world.service.scaling = auto(9, 10);
    world.run(2);
    let reason = world.asks[0].event.reason.clone();
    assert_eq!(world.asked(), [9]);
    assert!(reason.ends_with("9 is the minimum"), "{reason}");
}

#[test]
fn several_requests_a_replica_divide_the_need() {
    let mut world = World::with((100.0, 0.1), auto(1, 10));
    world.service.concurrency = 4;
    world.run(30);
    assert_eq!(world.coming(), 4);
    let reason = &world.asks.last().unwrap().event.reason;
    assert!(reason.ends_with("so 4") && reason.contains("at 70 % of 4 at a time that is 3."), "{reason}");
}

#[test]
fn the_refresh_time_of_a_service_is_kept() {
    let mut world = World::with((0.0, 0.1), auto(1, 10));
    world.service.scaling =
        Scaling::Auto { min_replicas: 1, max_replicas: 10, target_utilization: 70, refresh_seconds: 20 };
    world.run(3);
    world.load.0 = 30.0;
    world.run(16);
    assert_eq!(world.asked(), NONE);
    world.run(5);
    assert_ne!(world.asked(), NONE);
}

#[test]
fn a_new_generation_goes_on_where_the_old_one_was() {
    let mut world = World::with((30.0, 0.1), auto(1, 10));
    world.run(10);
    world.load.0 = 1.0;
    world.run(50).asked();
    world.service.generation = Generation(8);
    world.service.revision += 1;
    world.run(15);
    assert_eq!(world.asks[0].event.generation, Some(Generation(8)));
    assert_eq!(world.asked(), [1]);
}

#[test]
fn what_was_asked_for_an_older_generation_is_void() {
    let mut world = World::with((30.0, 0.1), auto(1, 10));
    world.start = None;
    world.run(1);
    assert_eq!(world.asked().len(), 1);
    world.service.generation = Generation(8);
    world.service.revision += 1;
    world.run(1);
    assert_eq!(world.asked().len(), 1);
}

#[test]
fn a_standby_says_nothing_and_goes_on_without_a_gap_when_it_leads() {
    let mut world = World::with((30.0, 0.1), auto(1, 10));
    world.service.replicas = 5;
    world.give(Input::Lead(false));
    world.run(20);
    world.load.0 = 1.0;
    world.run(100);
    assert_eq!(world.asked(), NONE);
    world.give(Input::Lead(true));
    world.run(1);
    assert_eq!(world.asked(), [1]);
}

#[test]
fn a_new_leader_does_not_repeat_what_the_old_one_asked_for() {
    let mut world = World::with((30.0, 0.1), auto(1, 10));
    world.give(Input::Lead(false));
    world.run(1);
    let Input::Asked { key, mut event } = asked_by_a_person(5) else { unreachable!() };
    event.generation = Some(Generation(7));
    world.give(Input::Asked { key, event });
    world.give(Input::Lead(true));
    world.run(8);
    assert_eq!(world.asked(), NONE);
}

#[test]
fn what_a_person_asks_for_stays_for_a_minute() {
    let mut world = World::with((1.0, 0.1), auto(1, 10));
    world.run(100);
    world.give(asked_by_a_person(6));
    world.carry_out(6);
    world.run(55);
    assert_eq!((world.asked(), world.coming()), (NONE.to_vec(), 6));
    world.run(10);
    assert_eq!(world.asked(), [1]);
}

#[test]
fn replicas_that_came_without_a_request_stay_for_a_minute_too() {
    let mut world = World::with((1.0, 0.1), auto(1, 10));
    world.run(100);
    world.carry_out(6);
    world.run(55);
    assert_eq!((world.asked(), world.coming()), (NONE.to_vec(), 6));
    world.run(10);
    assert_eq!(world.asked(), [1]);
}

#[test]
fn a_higher_need_may_have_to_hold_too() {
    let mut world = World::new(Timing { up: Duration::from_secs(10), ..Timing::default() });
    world.run(20);
    world.load.0 = 30.0;
    world.run(9);
    assert_eq!(world.asked(), NONE);
    world.run(3);
    assert!(world.asks[0].event.reason.starts_with("at least "), "{}", world.asks[0].event.reason);
}

#[test]
fn a_service_without_any_replica_is_left_to_the_deployer() {
    let mut world = World::with((30.0, 0.1), auto(1, 10));
    world.service.replicas = 0;
    world.run(30);
    assert_eq!(world.asked(), NONE);
}

#[test]
fn a_silent_or_deleted_service_is_forgotten() {
    let mut world = World::with((1.0, 0.1), auto(1, 10));
    world.run(10);
    assert_eq!(world.scaler.services(), 1);
    world.give(Input::Deleted { key: key() });
    assert_eq!(world.scaler.services(), 0);
    world.run(10);
    world.routers[0].1 = false;
    world.run(3_500);
    assert_eq!((world.scaler.services(), world.scaler.frozen()), (1, 1));
    world.run(200);
    assert_eq!(world.scaler.services(), 0);
}
