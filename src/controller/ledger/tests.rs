//! What the ledger makes of what is seen.

use super::*;
use crate::controller::desired;
use crate::spec::{merge, parse};

fn at(seconds: u32) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + Duration::from_secs(1_000_000) + Duration::from_secs(seconds.into())
}

fn declared(lifecycle: &str) -> DesiredDeployment {
    let text = format!(
        "version: v1\ndeployment: demo\nservices: {{web: {{image: {{name: host}}, lifecycle: {lifecycle}}}}}\n"
    );
    let merged = merge(&[("/specs/demo.yaml".into(), parse(&text))]);
    assert_eq!(merged.problems, []);
    desired(&merged.deployments["demo"], RuntimeKind::Sim)
}

fn running(desired: &DesiredDeployment) -> Instance {
    let id = InstanceId {
        deployment: "demo".to_owned(),
        service: "web".to_owned(),
        slot: 0,
        revision: desired.services["web"].revision.clone(),
        attempt: 0,
        run: None,
    };
    Instance::new(id, RuntimeKind::Sim, Phase::Running { since: at(0), ready: true }, at(0))
}

/// A ledger that watches the instance from that second on.
fn watching(remembered: ActivityRecords, desired: &DesiredDeployment, from: u32) -> (Ledger, Instance) {
    let (mut ledger, instance) = (Ledger::new(remembered), running(desired));
    ledger.track("demo", Some(desired), std::slice::from_ref(&instance), |_| false, (at(from), Instant::now()));
    (ledger, instance)
}

/// From when on the instance counts as idle, as seen at that second.
fn idle_from(ledger: &Ledger, instance: &Instance, now: u32) -> Option<DateTime<Utc>> {
    let mut judged = [instance.clone()];
    ledger.judge("demo", &mut judged, at(now));
    judged[0].last_activity
}

fn sample(ledger: &mut Ledger, instance: &Instance, now: u32, usage: Option<(u64, u64)>) {
    let answer = usage.map_or(Answer::Unknown, |(cpu_usec, bytes)| {
        Answer::Used(Usage { cpu_usec, received_bytes: Some(bytes), sent_bytes: Some(0), ..Usage::nothing(at(now)) })
    });
    let sampled = Sampled { instance: instance.as_ref(), run: at(0), answer };
    ledger.learn("demo", sampled, (at(now), Instant::now()));
}

#[tokio::test(start_paused = true)]
async fn samples_count_as_use_from_a_threshold_on_and_what_is_not_known_counts_as_used() {
    let desired = declared("{max_idle: 10m}");
    let (mut ledger, instance) = watching(ActivityRecords::new(), &desired, 10);
    assert_eq!(idle_from(&ledger, &instance, 20), Some(at(10)), "what was before is not known");
    sample(&mut ledger, &instance, 20, Some((1_000_000, 0)));
    assert_eq!(idle_from(&ledger, &instance, 20), Some(at(10)), "one sample alone says nothing");
    // Ten seconds with one hundredth of a processor, and a hundred bytes a second.
    sample(&mut ledger, &instance, 30, Some((1_100_000, 1_000)));
    assert_eq!(idle_from(&ledger, &instance, 30), Some(at(10)));
    sample(&mut ledger, &instance, 40, Some((1_400_000, 2_000)));
    assert_eq!(idle_from(&ledger, &instance, 40), Some(at(40)), "three hundredths are use");
    sample(&mut ledger, &instance, 50, Some((1_400_000, 22_000)));
    assert_eq!(idle_from(&ledger, &instance, 50), Some(at(50)), "two kilobytes a second are");
    sample(&mut ledger, &instance, 60, None);
    assert_eq!(idle_from(&ledger, &instance, 60), Some(at(60)), "it could not be asked");
    let seen = ledger.activity(&instance, at(60)).unwrap();
    let signals: Vec<_> = seen.uses.iter().map(|(signal, seen)| (signal.name(), seen.last)).collect();
    assert_eq!(signals, [("network", at(50)), ("cpu", at(40))]);
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_controller_saw_counts_without_the_time_in_which_nobody_watched() {
    let desired = declared("{max_idle: 10m}");
    let (mut ledger, instance) = watching(ActivityRecords::new(), &desired, 10);
    ledger.note(Signal::Touch, &Used::Instance(instance.as_ref()), at(100));
    let record = ledger.take_record("demo", (at(130), Instant::now())).unwrap();
    assert_eq!(ledger.take_record("demo", (at(130), Instant::now())), None, "there is nothing new");
    let (ledger, instance) = watching([("demo".to_owned(), record.clone())].into(), &desired, 1130);
    assert_eq!(idle_from(&ledger, &instance, 1140), Some(at(1100)), "idle for thirty seconds by then");
    let seen = ledger.activity(&instance, at(1140)).unwrap();
    assert_eq!((seen.watched_since, seen.uses[&Signal::Touch].last), (at(10), at(100)), "what was seen stays true");
    // Another run is another thing.
    let other = WatchedInstance { run: at(5), ..record.instances[0].clone() };
    let record = ActivityRecord { instances: vec![other], ..record };
    let (ledger, instance) = watching([("demo".to_owned(), record)].into(), &desired, 1130);
    assert_eq!(idle_from(&ledger, &instance, 1140), Some(at(1130)));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_life_is_announced_once_and_again_where_it_was_moved() {
    let desired = declared("{max_lifetime: 100s}");
    let (mut ledger, instance) = watching(ActivityRecords::new(), &desired, 0);
    let orders = LifeOrders::default();
    let free = (std::slice::from_ref(&instance), &orders);
    assert_eq!(ledger.endings("demo", Some(&desired), free, at(89)), (vec![], Some(at(90))));
    let ending = |seconds| vec![Ending { id: instance.id.clone(), at: at(seconds) }];
    assert_eq!(ledger.endings("demo", Some(&desired), free, at(90)), (ending(100), None));
    assert_eq!(ledger.endings("demo", Some(&desired), free, at(95)), (vec![], None));
    let record = ledger.take_record("demo", (at(95), Instant::now())).unwrap();
    let (mut ledger, _) = watching([("demo".to_owned(), record)].into(), &desired, 96);
    assert_eq!(ledger.endings("demo", Some(&desired), free, at(97)), (vec![], None), "an earlier controller did");
    let longer = declared("{max_lifetime: 2h}");
    assert_eq!(
        ledger.endings("demo", Some(&longer), free, at(97)),
        (vec![], Some(at(7200 - 300))),
        "at most 5 minutes"
    );
    assert_eq!(ledger.endings("demo", Some(&longer), free, at(7000)), (ending(7200), None));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_life_is_announced_for_when_it_strikes_where_it_is_held_or_frozen() {
    let desired = declared("{max_lifetime: 100s}");
    let (mut ledger, instance) = watching(ActivityRecords::new(), &desired, 0);
    let until = |seconds| LifeOrders {
        holds: [(instance.id.service.clone(), [(instance.id.slot, at(seconds))].into())].into(),
        ..LifeOrders::default()
    };
    let ending = |seconds| vec![Ending { id: instance.id.clone(), at: at(seconds) }];
    let all = std::slice::from_ref(&instance);
    assert_eq!(ledger.endings("demo", Some(&desired), (all, &until(300)), at(95)), (vec![], Some(at(290))));
    assert_eq!(ledger.endings("demo", Some(&desired), (all, &until(300)), at(290)), (ending(300), None));
    assert_eq!(ledger.endings("demo", Some(&desired), (all, &until(50)), at(95)), (ending(100), None));
    let frozen = Instance { phase: Phase::Paused { since: at(0) }, ..instance.clone() };
    let free = LifeOrders::default();
    let frozen = (std::slice::from_ref(&frozen), &free);
    let longer = declared("{max_lifetime: 200s}");
    assert_eq!(ledger.endings("demo", Some(&longer), frozen, at(195)), (vec![], None), "it is not recycled");
    let terminated = declared("{max_lifetime: 200s, on_expiry: terminate}");
    assert_eq!(ledger.endings("demo", Some(&terminated), frozen, at(195)), (ending(200), None));
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_runs_again_is_not_suspended_any_more_and_was_just_used() {
    let desired = declared("{max_idle: 10m, on_idle: suspend}");
    let (mut ledger, mut instance) = watching(ActivityRecords::new(), &desired, 0);
    ledger.suspending(&instance.as_ref(), at(0));
    let suspended = |ledger: &Ledger| ledger.suspended("demo").into_values().collect::<Vec<_>>();
    let track = |ledger: &mut Ledger, instance: &Instance, works, now| {
        ledger.track("demo", Some(&desired), std::slice::from_ref(instance), |_| works, (at(now), Instant::now()));
    };
    track(&mut ledger, &instance, true, 600);
    assert_eq!(suspended(&ledger), [at(0)], "the step for that is under way");
    instance.phase = Phase::Paused { since: at(0) };
    track(&mut ledger, &instance, false, 601);
    assert_eq!(suspended(&ledger), [at(0)]);
    instance.phase = Phase::Running { since: at(0), ready: true };
    track(&mut ledger, &instance, false, 900);
    assert_eq!((suspended(&ledger), idle_from(&ledger, &instance, 910)), (vec![], Some(at(900))));
}

/// The same, where somebody looks at the ledger at these seconds, by the machine's clock and by one that only runs.
fn passing(ledger: &mut Ledger, looks: &[(u32, u64)]) {
    let start = Instant::now();
    for (now, ran) in looks {
        ledger.pass((at(*now), start + Duration::from_secs(*ran)));
    }
}

#[tokio::test(start_paused = true)]
async fn time_in_which_the_controller_stood_still_counts_as_idle_of_nothing() {
    let desired = declared("{max_idle: 60s}");
    for (looks, expected, why) in [
        (&[(20, 20), (35, 35), (50, 50), (65, 65)][..], 10, "every sample was in time"),
        (&[(20, 20), (3620, 3620)], 3610, "it was paused for an hour, so that it was idle for ten seconds"),
        (&[(20, 20), (3620, 21)], 3610, "the machine slept for an hour"),
        (&[(20, 20), (40, 25)], 25, "the clock was set by fifteen seconds"),
        (&[(80, 80), (40, 81)], 0, "the clock was set back, and what was seen with it"),
    ] {
        let (mut ledger, instance) = watching(ActivityRecords::new(), &desired, 10);
        passing(&mut ledger, looks);
        let now = looks[looks.len() - 1].0;
        let seen = ledger.activity(&instance, at(now)).unwrap();
        let expected = if why.contains("back") { at(10) - Duration::from_secs(41) } else { at(expected) };
        assert_eq!((seen.watched_since, seen.counted_since), (at(10), expected), "{why}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_and_did_not_answer_is_not_idle() {
    let desired = declared("{max_idle: 60s}");
    let (mut ledger, instance) = watching(ActivityRecords::new(), &desired, 10);
    let key = (RuntimeKind::Sim, instance.runtime_id.clone());
    assert_eq!(ledger.take_due(Instant::now()), [("demo".to_owned(), vec![key])]);
    assert_eq!(idle_from(&ledger, &instance, 69), Some(at(10)), "the limit is not reached");
    assert_eq!(idle_from(&ledger, &instance, 70), Some(at(70)), "it may have been busy");
    sample(&mut ledger, &instance, 71, Some((0, 0)));
    assert_eq!(idle_from(&ledger, &instance, 71), Some(at(10)), "it was not");
    assert_eq!(ledger.take_due(Instant::now()), [], "it was asked just now");
    assert_eq!(ledger.next(), Some(Instant::now() + Duration::from_secs(15)));
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_is_new_does_not_count_what_was_not_sampled() {
    let (mut ledger, instance) = watching(ActivityRecords::new(), &declared("{}"), 10);
    let limited = declared("{max_idle: 60s}");
    let times = (at(500), Instant::now());
    ledger.track("demo", Some(&limited), std::slice::from_ref(&instance), |_| false, times);
    assert_eq!(idle_from(&ledger, &instance, 510), Some(at(500)));
}

#[tokio::test(start_paused = true)]
async fn what_was_seen_of_an_instance_that_has_ended_is_remembered_also_by_the_next_controller() {
    let desired = declared("{max_idle: 60s}");
    let (mut ledger, mut instance) = watching(ActivityRecords::new(), &desired, 10);
    ledger.note(Signal::Exec, &Used::Instance(instance.as_ref()), at(100));
    instance.phase = Phase::Exited(crate::state::Exit::from_code(0, Some(at(0)), at(200)));
    let track = |ledger: &mut Ledger| {
        ledger.track("demo", Some(&desired), std::slice::from_ref(&instance), |_| false, (at(300), Instant::now()));
    };
    let last_use = |ledger: &Ledger| ledger.activity(&instance, at(300)).and_then(|seen| seen.last_use());
    track(&mut ledger);
    assert_eq!((last_use(&ledger), idle_from(&ledger, &instance, 300)), (Some(at(100)), None));
    let record = ledger.take_record("demo", (at(300), Instant::now())).unwrap();
    let mut next = Ledger::new([("demo".to_owned(), record)].into());
    track(&mut next);
    assert_eq!(last_use(&next), Some(at(100)));
    next.track("demo", Some(&desired), &[], |_| false, (at(301), Instant::now()));
    assert_eq!(last_use(&next), None, "it is gone");
}

/// What the ledger makes of connections that are open at that second.
fn connected(ledger: &mut Ledger, instance: &Instance, now: u32, open: &[&str]) -> Option<Learned> {
    let connections = Some(open.iter().map(|one| (*one).to_owned()).collect());
    let answer = Answer::Used(Usage { connections, ..Usage::nothing(at(now)) });
    let sampled = Sampled { instance: instance.as_ref(), run: at(0), answer };
    ledger.learn("demo", sampled, (at(now), Instant::now()))
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_lasts_is_a_use_and_a_health_check_is_none() {
    let desired = declared("{max_idle: 10m}");
    let (mut ledger, instance) = watching(ActivityRecords::new(), &desired, 10);
    connected(&mut ledger, &instance, 20, &["check 1"]);
    connected(&mut ledger, &instance, 30, &["check 2", "a user"]);
    assert_eq!(idle_from(&ledger, &instance, 30), Some(at(10)), "each was there once");
    connected(&mut ledger, &instance, 40, &["check 3", "a user"]);
    assert_eq!(idle_from(&ledger, &instance, 40), Some(at(40)));
    connected(&mut ledger, &instance, 50, &[]);
    assert_eq!(idle_from(&ledger, &instance, 50), Some(at(40)));
}

#[tokio::test(start_paused = true)]
async fn whoever_connects_to_what_is_suspended_wakes_it_and_is_looked_for_every_second_where_the_runtime_tells() {
    let desired = declared("{max_idle: 10m, on_idle: suspend}");
    let (mut ledger, mut instance) = watching(ActivityRecords::new(), &desired, 0);
    sample(&mut ledger, &instance, 1, Some((0, 0)));
    let second = Instant::now() + Duration::from_secs(1);
    assert_eq!(ledger.next(), Some(Instant::now() + Duration::from_secs(15)));
    ledger.suspending(&instance.as_ref(), at(0));
    instance.phase = Phase::Paused { since: at(0) };
    let track = |ledger: &mut Ledger| {
        ledger.track("demo", Some(&desired), std::slice::from_ref(&instance), |_| false, (at(600), Instant::now()));
    };
    track(&mut ledger);
    assert_eq!(ledger.next(), Some(second));
    assert_eq!(connected(&mut ledger, &instance, 601, &[]), None);
    assert_eq!(connected(&mut ledger, &instance, 602, &["a user"]), Some(Learned::Wakes(instance.id.clone())));
    assert_eq!(ledger.next(), Some(second), "as long as it is suspended");
    // A runtime that does not tell is asked once.
    let sampled = Sampled { instance: instance.as_ref(), run: at(0), answer: Answer::Nothing };
    assert_eq!(ledger.learn("demo", sampled, (at(603), Instant::now())), None);
    track(&mut ledger);
    assert_eq!(ledger.next(), None);
}

#[tokio::test(start_paused = true)]
async fn what_is_starting_or_waited_for_is_in_use_and_its_time_begins_when_that_ends() {
    let desired = declared("{max_idle: 60s}");
    for waited in [None, Some("web")] {
        let (mut ledger, instance) = watching(ActivityRecords::new(), &desired, 0);
        let mut coming = instance.clone();
        if waited.is_none() {
            coming.judge(Some(crate::state::HealthState::Starting { last: None }));
        }
        ledger.note_coming("demo", &[coming], &waited.into_iter().collect(), at(10));
        assert_eq!(idle_from(&ledger, &instance, 500), Some(at(500)), "{waited:?}");
        ledger.note_coming("demo", std::slice::from_ref(&instance), &["other"].into(), at(500));
        assert_eq!(idle_from(&ledger, &instance, 530), Some(at(500)), "{waited:?}");
        ledger.note_coming("demo", std::slice::from_ref(&instance), &BTreeSet::new(), at(520));
        assert_eq!(idle_from(&ledger, &instance, 530), Some(at(500)), "{waited:?}");
    }
}
