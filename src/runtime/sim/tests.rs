//! Faults, scripts and records; what every runtime promises is in the conformance suite.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use tokio::time::sleep;

use super::{Counts, Faults, MAX_CHANGES, Method, What, World};
use crate::clock::VirtualClock;
use crate::runtime::{CreateRequest, ErrorKind, Runtime, RuntimeEvent, Suspend};
use crate::spec::{ServiceSpec, Signal};
use crate::state::{EndedBy, Exit, ExitReason, InstanceId, InstanceRef, Owner, Phase, StopCause, StopRequest};

fn world(faults: Faults) -> Arc<World> {
    seeded(7, faults)
}

fn seeded(seed: u64, faults: Faults) -> Arc<World> {
    let start = "2026-01-01T00:00:00Z".parse().expect("a time");
    World::new(Arc::new(VirtualClock::starting_at(start)), seed, faults)
}

fn owner() -> Owner {
    Owner("tests".to_owned())
}

fn request(image: &str, slot: u32) -> CreateRequest {
    let spec: ServiceSpec = serde_json::from_value(serde_json::json!({ "image": { "name": image } })).expect("a spec");
    let id = InstanceId {
        deployment: "shop".to_owned(),
        service: "web".to_owned(),
        slot,
        revision: "v1-0123456789abcdef".parse().expect("a revision"),
        attempt: 0,
        run: None,
    };
    CreateRequest { id, restarts: 0, streak: 0, spec: Arc::new(spec), env: BTreeMap::new(), source: None }
}

async fn launch(runtime: &dyn Runtime, image: &str, slot: u32) -> InstanceRef {
    let instance = runtime.create(&request(image, slot)).await.expect("create").as_ref();
    runtime.start(&instance).await.expect("start");
    instance
}

fn phase(world: &World, instance: &InstanceRef) -> Phase {
    let found = world.instances().into_iter().find(|(_, found)| found.runtime_id == instance.runtime_id);
    found.expect("it exists").1.phase
}

fn exit(world: &World, instance: &InstanceRef) -> Exit {
    match phase(world, instance) {
        Phase::Exited(exit) => exit,
        phase => panic!("{phase:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn images_behave_as_scripted() {
    let world = world(Faults::none());
    let runtime = world.runtime(owner());
    let crash = launch(&runtime, "sim/crash:250ms", 0).await;
    let once = launch(&runtime, "sim/once:2s", 1).await;
    let oom = launch(&runtime, "sim/oom:2s", 2).await;
    let slow = launch(&runtime, "sim/slow:5s", 3).await;
    let plain = launch(&runtime, "nginx", 4).await;
    assert!(phase(&world, &crash).is_ready() && phase(&world, &plain).is_ready());
    sleep(Duration::from_secs(3)).await;
    assert_eq!(exit(&world, &crash).code, Some(1));
    assert!(exit(&world, &once).is_success());
    assert_eq!((exit(&world, &oom).reason, exit(&world, &oom).code), (ExitReason::OomKilled, Some(137)));
    assert!(matches!(phase(&world, &slow), Phase::Running { ready: false, .. }));
    sleep(Duration::from_secs(3)).await;
    assert!(phase(&world, &slow).is_ready());
    sleep(Duration::from_secs(86_400)).await;
    assert!(phase(&world, &plain).is_ready(), "it runs until it is stopped");
    let rejected = runtime.create(&request("sim/reject", 5)).await.expect_err("refused");
    assert_eq!((rejected.kind, rejected.retryable()), (ErrorKind::Rejected, false));
}

#[tokio::test(start_paused = true)]
async fn ends_remember_who_ended() {
    let world = world(Faults::none());
    let runtime = world.runtime(owner());
    let stopped = launch(&runtime, "sim/run", 0).await;
    let killed = launch(&runtime, "sim/run", 1).await;
    let stop = StopRequest { signal: Signal::TERM, grace: Duration::from_secs(10), cause: StopCause::Idle };
    runtime.stop(&stopped, &stop).await.expect("stop");
    assert!(world.kill(&killed.runtime_id, 139));
    assert_eq!(exit(&world, &stopped).ended_by, EndedBy::Request(StopCause::Idle));
    assert_eq!(
        (exit(&world, &killed).ended_by, exit(&world, &killed).signal.as_deref()),
        (EndedBy::Itself, Some("SIGSEGV"))
    );
    assert!(!world.kill(&killed.runtime_id, 1), "it has ended already");
    runtime.start(&killed).await.expect("start");
    runtime.stop(&killed, &stop).await.expect("stop");
    runtime.start(&killed).await.expect("start");
    assert!(world.kill(&killed.runtime_id, 1));
    assert_eq!(exit(&world, &killed).ended_by, EndedBy::Itself, "the stop before does not count");
}

#[tokio::test(start_paused = true)]
async fn frozen_runs_again_when_resumed() {
    let world = world(Faults::none());
    let runtime = world.runtime(owner());
    let instance = launch(&runtime, "sim/run", 0).await;
    let Phase::Running { since, .. } = phase(&world, &instance) else { panic!("it runs") };
    sleep(Duration::from_secs(5)).await;
    assert!(world.freeze(&instance.runtime_id));
    assert_eq!(phase(&world, &instance), Phase::Paused { since });
    assert_eq!(runtime.start(&instance).await.expect_err("it is frozen").kind, ErrorKind::Failed);
    assert_eq!(phase(&world, &instance), Phase::Paused { since });
    for _ in 0..2 {
        let resumed = runtime.resume(&instance).await.expect("resume");
        assert_eq!(resumed.phase, Phase::Running { since, ready: true });
        assert_eq!(phase(&world, &instance), resumed.phase);
    }
}

#[tokio::test(start_paused = true)]
async fn foreign_names_are_taken_and_left_alone() {
    let world = world(Faults::none());
    let wanted = request("sim/run", 0);
    world.add_foreign(&wanted.id.runtime_name());
    let error = world.runtime(owner()).create(&wanted).await.expect_err("taken");
    assert_eq!(error.kind, ErrorKind::NameTaken);
    assert!(error.message.contains(&wanted.id.runtime_name()), "{error}");
    assert_eq!(world.foreign().len(), 1);
    assert!(world.instances().is_empty());
    assert!(world.remove_foreign(&wanted.id.runtime_name()));
    world.runtime(owner()).create(&wanted).await.expect("free now");
}

#[tokio::test(start_paused = true)]
async fn lost_answer_leaves_its_effect() {
    let world = world(Faults { answer_lost: 1.0, ..Faults::none() });
    let runtime = world.runtime(owner());
    let error = runtime.create(&request("sim/run", 0)).await.expect_err("no answer");
    assert_eq!((error.kind, error.retryable(), error.means_unreachable()), (ErrorKind::Timeout, true, true));
    assert_eq!(world.instances().len(), 1);
    world.set_faults(Faults::none());
    runtime.create(&request("sim/run", 0)).await.expect("the same one");
    assert_eq!(world.instances().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn failed_call_has_no_effect() {
    let world = world(Faults { fails: 1.0, ..Faults::none() });
    let error = world.runtime(owner()).create(&request("sim/run", 0)).await.expect_err("fails");
    assert_eq!((error.kind, error.retryable()), (ErrorKind::Failed, true));
    world.set_faults(Faults { refused: 1.0, ..Faults::none() });
    let error = world.runtime(owner()).create(&request("sim/run", 0)).await.expect_err("is refused");
    assert!(!error.retryable());
    assert!(world.instances().is_empty());
}

#[tokio::test(start_paused = true)]
async fn call_may_outlive_its_caller() {
    let slow = Faults { slow: 1.0, slow_for: Duration::from_secs(20), ..Faults::none() };
    for (outlives_caller, instances) in [(1.0, 1), (0.0, 0)] {
        let world = world(Faults { outlives_caller, ..slow.clone() });
        let runtime = world.runtime(owner());
        assert!(runtime.create(&request("sim/run", 0)).now_or_never().is_none(), "it takes time, and is dropped");
        assert!(world.instances().is_empty());
        sleep(Duration::from_secs(30)).await;
        assert_eq!(world.instances().len(), instances);
    }
}

#[tokio::test(start_paused = true)]
async fn call_that_takes_too_long_times_out() {
    let world = world(Faults { slow: 1.0, slow_for: Duration::from_secs(1_000_000), ..Faults::none() });
    let error = world.runtime(owner()).list().await.expect_err("no answer");
    assert_eq!(error.kind, ErrorKind::Timeout);
}

#[tokio::test(start_paused = true)]
async fn outage_ends_with_a_resync() {
    let world = world(Faults::none());
    let runtime = world.runtime(owner());
    let instance = launch(&runtime, "sim/run", 0).await;
    let mut events = runtime.events().await.expect("events");
    world.go_unreachable(Duration::from_secs(60));
    assert!(world.kill(&instance.runtime_id, 1));
    let error = runtime.list().await.expect_err("unreachable");
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert_eq!(runtime.events().await.err().map(|error| error.kind), Some(ErrorKind::Unavailable));
    sleep(Duration::from_secs(59)).await;
    assert!(events.next().now_or_never().is_none(), "the crash was not told");
    sleep(Duration::from_secs(2)).await;
    assert!(matches!(events.next().now_or_never(), Some(Some(RuntimeEvent::Resync { .. }))));
    assert_eq!(runtime.list().await.expect("reachable").instances.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn events_are_lost_doubled_and_held_back() {
    let world = world(Faults { event_lost: 1.0, ..Faults::none() });
    let runtime = world.runtime(owner());
    let mut events = runtime.events().await.expect("events");
    let instance = launch(&runtime, "sim/run", 0).await;
    assert!(events.next().now_or_never().is_none());
    world.set_faults(Faults { event_duplicated: 1.0, ..Faults::none() });
    runtime.remove(&instance).await.expect("remove");
    for _ in 0..2 {
        assert_eq!(events.next().now_or_never(), Some(Some(RuntimeEvent::Gone(instance.clone()))));
    }
    world.set_faults(Faults { event_delayed: 1.0, event_delay: Duration::from_secs(60), ..Faults::none() });
    runtime.create(&request("sim/run", 1)).await.expect("create");
    assert!(events.next().now_or_never().is_none());
    world.set_faults(Faults::none());
    runtime.create(&request("sim/run", 2)).await.expect("create");
    let mut slots = vec![];
    for _ in 0..2 {
        let Some(RuntimeEvent::Changed(instance)) = events.next().await else { panic!("a change") };
        slots.push(instance.id.slot);
    }
    assert_eq!(slots, [2, 1], "the later one overtook the one that was held back");
}

#[tokio::test(start_paused = true)]
async fn reader_that_lags_is_told_to_list_again() {
    let world = world(Faults::none());
    let runtime = world.runtime(owner());
    let mut events = runtime.events().await.expect("events");
    let instance = launch(&runtime, "sim/run", 0).await;
    for _ in 0..2_000 {
        world.touch(&instance.runtime_id);
    }
    assert!(matches!(events.next().await, Some(RuntimeEvent::Resync { .. })));
    assert!(matches!(events.next().await, Some(RuntimeEvent::Changed(_))), "and goes on");
}

#[tokio::test(start_paused = true)]
async fn started_instances_crash_in_their_time() {
    let within = Duration::from_secs(120);
    let world = world(Faults { crash: 1.0, crash_within: within, ..Faults::none() });
    let runtime = world.runtime(owner());
    let instance = launch(&runtime, "sim/run", 0).await;
    sleep(within).await;
    let exit = exit(&world, &instance);
    assert!(!exit.is_success() && exit.ended_by == EndedBy::Itself, "{exit:?}");
}

#[tokio::test(start_paused = true)]
async fn calls_and_changes_are_written_down() {
    let world = world(Faults::none());
    let runtime = world.runtime(owner());
    let first = launch(&runtime, "sim/run", 0).await;
    launch(&runtime, "sim/slow", 1).await;
    runtime.remove(&first).await.expect("remove");
    assert_eq!(world.calls(), BTreeMap::from([(Method::Create, 2), (Method::Start, 2), (Method::Remove, 1)]));
    let got: Vec<(What, Counts)> = world.changes().into_iter().map(|change| (change.what, change.counts)).collect();
    let counts = |ready, running, live, total| Counts { ready, running, live, total };
    let want = [
        (What::Created, counts(0, 0, 1, 1)),
        (What::Started { ready: true }, counts(1, 1, 1, 1)),
        (What::Created, counts(1, 1, 2, 2)),
        (What::Started { ready: false }, counts(1, 2, 2, 2)),
        (What::Removed { running: true, asked: true }, counts(0, 1, 1, 1)),
    ];
    assert_eq!(got, want);
}

#[tokio::test(start_paused = true)]
async fn record_is_bounded() {
    let world = world(Faults::none());
    let runtime = world.runtime(owner());
    let instance = launch(&runtime, "sim/run", 0).await;
    for _ in 0..MAX_CHANGES / 2 {
        world.freeze(&instance.runtime_id);
        runtime.resume(&instance).await.expect("resume");
    }
    assert_eq!(world.changes().len(), MAX_CHANGES);
    assert_eq!(world.forgotten_changes(), 2, "the first creation and start");
}

/// Everything that happens in a few minutes of harsh weather to four instances that somebody keeps starting.
async fn course(seed: u64) -> Vec<super::Change> {
    let world = seeded(seed, Faults::harsh());
    let runtime = world.runtime(owner());
    for _ in 0..30 {
        for slot in 0..4 {
            if let Ok(instance) = runtime.create(&request("sim/run", slot)).await {
                let _ = runtime.start(&instance.as_ref()).await;
            }
        }
        sleep(Duration::from_secs(10)).await;
    }
    world.changes()
}

#[tokio::test(start_paused = true)]
async fn seed_names_the_course() {
    let first = course(1).await;
    assert!(first.iter().any(|change| matches!(change.what, What::Ended(_))), "something crashed");
    assert_eq!(first, course(1).await);
    assert_ne!(first, course(2).await);
}
