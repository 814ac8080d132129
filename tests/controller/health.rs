//! Health checks, from the declaration to what is shown.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use evenkeel::controller::{Core, Note, Order, Parts};
use evenkeel::plan::revisions::Memory;
use evenkeel::runtime::sim::Faults;
use evenkeel::state::{HealthState, Phase};
use tokio::sync::watch;

use super::rollouts::{Notes, order};
use super::{Connected, Rig, core_of, owner, web};

const CHECK: &str = "    health: {interval: 5s, retries: 2, check: {type: http, url: 'http://localhost:80/'}}\n";

/// A rollout that is not over for hours.
const HELD: &str = "    rollout: {max_surge: 1, max_unavailable: 0, min_ready: 2h, progress_deadline: 3h}\n";

/// Another controller on the same machine, on which nothing listens any more in these instances, as where the checks are those
/// of a successor.
fn failing_under_the_next_controller(rig: Rig, instances: &[String]) -> Rig {
    let Rig { clock, world, core, .. } = rig;
    drop(core);
    for id in instances {
        assert!(world.answer_as(id, HealthState::Starting { last: None }));
    }
    let (declare, declared) = watch::channel(Arc::default());
    let runtime = Arc::new(Connected(Arc::new(world.runtime(owner()))));
    let (core, settled) = core_of(runtime, declared, clock.clone(), BTreeMap::new());
    Rig { clock, world, core, declare, settled }
}

fn unhealthy() -> HealthState {
    HealthState::Unhealthy { last: "down".to_owned(), passed: true }
}

fn ids(rig: &Rig) -> Vec<String> {
    rig.world.instances().into_iter().map(|(_, one)| one.runtime_id).collect()
}

/// Words of the health of each instance, as shown.
fn shown(rig: &Rig) -> Vec<&'static str> {
    let status = rig.core.status.borrow();
    status.instances.iter().map(|one| one.health.as_ref().map_or("none", HealthState::name)).collect()
}

#[tokio::test(start_paused = true)]
async fn checks_that_are_added_take_nobody_out_of_service() {
    let rig = Rig::new();
    rig.declare(&web(2, "one"));
    rig.until_running().await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let before = ids(&rig);
    rig.declare(&(web(2, "one") + CHECK));
    // At no time is one of them not ready.
    let mut status = rig.core.status.clone();
    let dip = status.wait_for(|status| status.services.iter().any(|service| service.ready < 2));
    assert!(tokio::time::timeout(Duration::from_secs(60), dip).await.is_err(), "{:?}", shown(&rig));
    assert_eq!((shown(&rig), ids(&rig)), (vec!["healthy", "healthy"], before.clone()));
    rig.declare(&web(2, "one"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((shown(&rig), ids(&rig)), (vec!["none", "none"], before));
}

#[tokio::test(start_paused = true)]
async fn what_a_controller_finds_in_a_rollout_serves_on_though_it_fails_the_checks_of_its_successor() {
    let rig = Rig::new();
    rig.declare(&(web(2, "one") + CHECK));
    rig.until_running().await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let before = ids(&rig);
    let rig = failing_under_the_next_controller(rig, &before);
    rig.declare(&(web(2, "two") + CHECK + HELD));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let running = ids(&rig);
    assert!(before.iter().all(|id| running.contains(id)), "{before:?} of {running:?}");
    assert_eq!(shown(&rig).iter().filter(|health| **health == "unknown").count(), 2, "{:?}", shown(&rig));
    let told = serde_json::to_string(&rig.core.status.borrow().services[0].conditions).expect("JSON");
    assert!(
        told.contains("whose checks are not remembered") && told.contains("connection to port 80 refused"),
        "{told}"
    );
    // One that passes them is held for what it is from then on.
    assert!(rig.world.answer_as(&before[0], HealthState::Healthy));
    rig.until("it is healthy", |_| shown(&rig).iter().filter(|health| **health == "unknown").count() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn what_failed_the_checks_of_its_successor_is_not_failed_by_that_when_its_own_are_back() {
    let rig = Rig::new();
    rig.declare(&(web(1, "one") + CHECK));
    rig.until_running().await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let before = ids(&rig);
    let rig = failing_under_the_next_controller(rig, &before);
    rig.declare(&(web(1, "two") + &CHECK.replace(":80/", ":81/") + HELD));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(shown(&rig).contains(&"unknown"), "{:?}", shown(&rig));
    assert!(rig.world.answer_as(&before[0], HealthState::Healthy));
    rig.declare(&(web(1, "one") + CHECK));
    rig.until("it is healthy", |_| shown(&rig) == ["healthy"]).await;
    assert_eq!(ids(&rig), before);
}

/// One replica whose checks pass, or, in its next revision, never do.
fn one_of(greeting: &str, status: u16, rollout: &str) -> String {
    let check = format!("type: http, url: 'http://localhost:80/', expect_status: {status}");
    format!(
        "{}    health: {{interval: 1s, retries: 300, check: {{{check}}}}}\n    rollout: {{{rollout}}}\n",
        web(1, greeting)
    )
}

/// Whether each instance is ready, by the time when it was made.
fn readiness(rig: &Rig) -> Vec<bool> {
    let mut instances = rig.core.status.borrow().instances.clone();
    instances.sort_by_key(|one| one.created_at);
    instances.iter().map(|one| one.ready).collect()
}

/// Goes on with the rollout, which costs the old instance nothing before it fails.
async fn goes_on_without_a_dip(rig: &Rig, old: &str) {
    let mut status = rig.core.status.clone();
    order(rig, Order::Resume { target: "demo".to_owned() }).await;
    let dip = status.wait_for(|status| status.services.iter().any(|service| service.ready < 1));
    assert!(tokio::time::timeout(Duration::from_secs(600), dip).await.is_err(), "{:?}", shown(rig));
    assert!(ids(rig).iter().any(|id| id == old), "{old} of {:?}", ids(rig));
}

#[tokio::test(start_paused = true)]
async fn what_is_paused_is_judged_by_its_own_checks_by_the_next_controller_too() {
    let mut rig = Rig::new();
    let notes = Arc::new(Notes::default());
    rig.core = Core::start(Parts { keeper: Some(notes.clone()), ..rig.parts() });
    let rollout = "on_failure: pause, progress_deadline: 20s, max_surge: 1, max_unavailable: 0";
    rig.declare(&one_of("one", 200, rollout));
    rig.until_running().await;
    let old = ids(&rig).remove(0);
    rig.declare(&one_of("two", 204, rollout));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(readiness(&rig), [true, false]);
    let mut memory = Memory::default();
    for ((_, service), note) in notes.0.lock().expect("notes").iter() {
        if let (Some(service), Note::Rollout(history)) = (service, note) {
            memory.rollouts.insert(service.clone(), history.as_ref().clone().resumed());
        }
    }
    rig.core = Core::start(Parts { memory: [("demo".to_owned(), memory)].into(), ..rig.parts() });
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(readiness(&rig), [true, false], "{:?}", shown(&rig));
    goes_on_without_a_dip(&rig, &old).await;
}

#[tokio::test(start_paused = true)]
async fn what_starts_after_its_rollout_was_paused_is_judged_by_its_own_checks() {
    let rig = Rig::new();
    let rollout = "progress_deadline: 20s, max_surge: 1, max_unavailable: 0";
    rig.declare(&one_of("one", 200, rollout));
    rig.until_running().await;
    let old = ids(&rig).remove(0);
    rig.world.set_faults(Faults { slow: 1.0, slow_for: Duration::from_secs(5), ..Faults::none() });
    rig.declare(&one_of("two", 204, rollout));
    // Its create is done by then, and its start under way.
    while !rig.world.instances().iter().any(|(_, one)| one.phase == Phase::Created) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    order(&rig, Order::Pause { target: "demo".to_owned() }).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(readiness(&rig), [true, false], "{:?}", shown(&rig));
    goes_on_without_a_dip(&rig, &old).await;
    let status = rig.core.status.borrow().clone();
    assert_eq!(status.services[0].ready, 1);
}

#[tokio::test(start_paused = true)]
async fn flapping_is_suppressed_by_the_back_off() {
    let rig = Rig::new();
    rig.declare(&(web(1, "one") + CHECK));
    rig.until_running().await;
    let mut starts = Vec::new();
    let began = tokio::time::Instant::now();
    while began.elapsed() < Duration::from_secs(3600) {
        for (_, instance) in rig.world.instances() {
            if matches!(instance.phase, Phase::Running { .. }) && !starts.contains(&instance.runtime_id) {
                starts.push(instance.runtime_id.clone());
            }
            // Healthy for long enough to be ready, and not after that.
            if instance.phase.started_at().is_some_and(|since| (rig.clock_now() - since).num_seconds() > 8) {
                rig.world.answer_as(&instance.runtime_id, unhealthy());
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!((10..=18).contains(&starts.len()), "{} starts in an hour", starts.len());
    let status = rig.core.status.borrow().clone();
    let conditions = serde_json::to_string(&status.services[0].conditions).expect("JSON");
    assert!(conditions.contains("503 Service Unavailable, expected 200"), "{conditions}");
}

#[tokio::test(start_paused = true)]
async fn what_an_image_says_of_its_health_counts_where_nothing_else_checks() {
    let rig = Rig::new();
    rig.declare(&web(1, "one"));
    rig.until_running().await;
    let first = ids(&rig);
    rig.world.judge(&first[0], unhealthy());
    rig.until("another instance runs", |status| status.instances.iter().any(|one| one.restarts == 1 && one.ready))
        .await;
    // With checks of its own only those do.
    rig.declare(&(web(1, "one") + CHECK));
    tokio::time::sleep(Duration::from_secs(10)).await;
    let running = rig.world.instances().into_iter().find(|(_, one)| matches!(one.phase, Phase::Running { .. }));
    let running = running.expect("one runs").1.runtime_id;
    assert!(rig.world.answer_as(&running, HealthState::Healthy) && rig.world.judge(&running, unhealthy()));
    tokio::time::sleep(Duration::from_secs(600)).await;
    let status = rig.core.status.borrow().clone();
    assert_eq!(status.instances.iter().map(|one| (one.restarts, one.ready)).collect::<Vec<_>>(), [(1, true)]);
}

#[tokio::test(start_paused = true)]
async fn what_nothing_checked_is_not_failed_by_the_checks_of_its_successor() {
    let rig = Rig::new();
    let held = "    rollout: {max_surge: 1, max_unavailable: 0, min_ready: 2h, progress_deadline: 3h}\n";
    rig.declare(&web(2, "one"));
    rig.until_running().await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    // Nothing listens where the successor will.
    for id in ids(&rig) {
        assert!(rig.world.answer_as(&id, HealthState::Starting { last: None }));
    }
    rig.declare(&(web(2, "two") + CHECK + held));
    let mut status = rig.core.status.clone();
    let dip = status.wait_for(|status| status.services.iter().any(|service| service.ready < 2));
    assert!(tokio::time::timeout(Duration::from_secs(600), dip).await.is_err(), "{:?}", shown(&rig));
}

#[tokio::test(start_paused = true)]
async fn a_mistake_in_the_checks_takes_down_no_more_than_a_rollout_may() {
    let rig = Rig::new();
    rig.declare(&(web(4, "one") + CHECK));
    rig.until_running().await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let before = ids(&rig);
    // They answer 200. At 25 % of four, one may be down.
    rig.declare(&(web(4, "one") + &CHECK.replace(":80/'", ":80/', expect_status: 204")));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let left = |rig: &Rig| ids(rig).into_iter().filter(|id| before.contains(id)).count();
    let running = rig.world.instances().iter().filter(|(_, one)| matches!(one.phase, Phase::Running { .. })).count();
    assert!(left(&rig) >= 3 && running >= 3, "{} of {before:?} are left, {running} run", left(&rig));
    let told = serde_json::to_string(&rig.core.status.borrow().services[0]).expect("JSON");
    assert!(told.contains("it runs on, as these checks passed neither on it nor on what was restarted"), "{told}");
    // Put right, the three are as they were.
    rig.declare(&(web(4, "one") + CHECK));
    rig.until("all are ready", |status| status.services.iter().all(|service| service.ready == 4)).await;
    assert_eq!(left(&rig), 3);
}
