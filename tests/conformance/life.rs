//! Promises about the life of an instance: create, start, exit, stop, remove.

use std::time::Duration;

use evenkeel::runtime::{ErrorKind, Listing};
use evenkeel::state::{ExitReason, InstanceRef, Phase};
use futures::future::join_all;
use tokio::time::Instant;

use crate::harness::{Harness, Program, armed, create, ended, id, listed, request, run, stop};

/// A grace that no test waits out.
const LONG: Duration = Duration::from_secs(60);

/// A grace that a test does wait out.
const SHORT: Duration = Duration::from_secs(1);

/// A reference to something that never was.
pub fn unknown<H: Harness>(kind: evenkeel::spec::RuntimeKind, _: &H) -> InstanceRef {
    // As long as a container id, and no name of a directory.
    InstanceRef { id: id("unknown", 0), runtime: kind, runtime_id: "0123456789abcdef".repeat(4) }
}

pub async fn new_machine_has_nothing<H: Harness>(harness: &H) {
    assert_eq!(harness.runtime().await.list().await.expect("list"), Listing::default());
}

pub async fn created_is_listed_and_does_not_run<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let created = create(harness, &*runtime, id("web", 0), &Program::Polite).await;
    assert_eq!(created.phase, Phase::Created);
    assert_eq!(created.runtime, runtime.kind());
    assert_eq!(created.pid, None);
    assert_eq!(runtime.list().await.expect("list").instances, [created]);
}

pub async fn inspecting_tells_what_a_list_tells<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let created = create(harness, &*runtime, id("web", 0), &Program::Polite).await;
    let inspected = runtime.inspect(&created.as_ref()).await.expect("inspect").expect("it is there");
    assert_eq!((inspected.id, inspected.phase), (created.id.clone(), Phase::Created));
    runtime.start(&created.as_ref()).await.expect("start");
    let inspected = runtime.inspect(&created.as_ref()).await.expect("inspect").expect("it is there");
    assert!(matches!(inspected.phase, Phase::Running { .. }), "{:?}", inspected.phase);
    let stranger = harness.stranger().await.inspect(&created.as_ref()).await;
    assert_eq!(stranger.expect("inspect"), None, "it is another owner's");
    runtime.stop(&created.as_ref(), &stop(LONG)).await.expect("stop");
    let inspected = runtime.inspect(&created.as_ref()).await.expect("inspect").expect("it is there");
    assert!(matches!(inspected.phase, Phase::Exited(_)), "{:?}", inspected.phase);
    runtime.remove(&created.as_ref()).await.expect("remove");
    assert_eq!(runtime.inspect(&created.as_ref()).await.expect("inspect"), None);
}

pub async fn creating_twice_gives_the_same_instance<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let first = create(harness, &*runtime, id("web", 0), &Program::Polite).await;
    let again = create(harness, &*runtime, id("web", 0), &Program::Polite).await;
    assert_eq!(first, again);
    runtime.start(&first.as_ref()).await.expect("start");
    let running = create(harness, &*runtime, id("web", 0), &Program::Polite).await;
    assert_eq!(running.runtime_id, first.runtime_id);
    assert!(matches!(running.phase, Phase::Running { .. }), "{:?}", running.phase);
    assert_eq!(runtime.list().await.expect("list").instances.len(), 1);
}

pub async fn identity_and_counters_come_back<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let mut wanted = request(harness, id("a-service-with-a-name", 12), &Program::Polite);
    wanted.id.attempt = 7;
    wanted.restarts = 41;
    wanted.streak = 3;
    runtime.ensure_image(&wanted.spec.image, &|_| {}).await.expect("the image");
    runtime.create(&wanted).await.expect("create");
    let fresh = harness.runtime().await;
    let found = listed(&*fresh, &wanted.id).await.expect("is listed");
    assert_eq!((found.restarts, found.streak), (41, 3));
    let started = fresh.start(&found.as_ref()).await.expect("start");
    assert_eq!((started.id, started.restarts, started.streak), (wanted.id, 41, 3));
}

pub async fn starting_runs<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let created = create(harness, &*runtime, id("web", 0), &Program::Polite).await;
    let started = runtime.start(&created.as_ref()).await.expect("start");
    assert_eq!((&started.id, &started.runtime_id), (&created.id, &created.runtime_id));
    let Phase::Running { since, ready } = started.phase else { panic!("{:?}", started.phase) };
    assert!(ready, "an instance without health checks takes traffic as soon as it runs");
    assert!(since >= created.created_at, "started {since}, created {}", created.created_at);
    let found = listed(&*runtime, &created.id).await.expect("is listed");
    assert_eq!(found.phase, Phase::Running { since, ready: true });
}

pub async fn starting_twice_is_success<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let first = run(harness, &*runtime, id("web", 0), &Program::Polite).await;
    let again = runtime.start(&first.as_ref()).await.expect("start of one that runs");
    assert_eq!(again.phase, first.phase);
}

pub async fn starting_unknown_is_not_found<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let error = runtime.start(&unknown(runtime.kind(), harness)).await.expect_err("nothing to start");
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
    let gone = create(harness, &*runtime, id("web", 0), &Program::Polite).await;
    runtime.remove(&gone.as_ref()).await.expect("remove");
    let error = runtime.start(&gone.as_ref()).await.expect_err("it is gone");
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
}

pub async fn starting_again_after_exit_runs<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let first = run(harness, &*runtime, id("web", 0), &Program::Polite).await;
    armed(harness, &*runtime, &first.as_ref()).await;
    runtime.stop(&first.as_ref(), &stop(LONG)).await.expect("stop");
    let again = runtime.start(&first.as_ref()).await.expect("start after exit");
    let Phase::Running { since, .. } = again.phase else { panic!("{:?}", again.phase) };
    assert!(Some(since) >= first.phase.started_at());
    assert_eq!(again.runtime_id, first.runtime_id);
}

pub async fn exit_codes_are_told<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    for (slot, code) in [(0, 0), (1, 3), (2, 126)] {
        run(harness, &*runtime, id("job", slot), &Program::Exit(code)).await;
        let exit = ended(harness, &*runtime, &id("job", slot)).await;
        assert_eq!((exit.code, &exit.signal, exit.reason), (Some(code), &None, ExitReason::Exited));
        assert_eq!((exit.oom_killed, exit.is_success()), (false, code == 0));
    }
}

pub async fn signals_are_told<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    run(harness, &*runtime, id("job", 0), &Program::Killed).await;
    let exit = ended(harness, &*runtime, &id("job", 0)).await;
    assert_eq!((exit.code, exit.signal.as_deref(), exit.reason), (Some(137), Some("SIGKILL"), ExitReason::Signal));
    run(harness, &*runtime, id("job", 1), &Program::Exit(143)).await;
    let exit = ended(harness, &*runtime, &id("job", 1)).await;
    assert_eq!((exit.code, exit.signal.as_deref(), exit.reason), (Some(143), Some("SIGTERM"), ExitReason::Signal));
}

pub async fn kills_for_want_of_memory_are_told<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    run(harness, &*runtime, id("job", 0), &Program::EatsMemory).await;
    let exit = ended(harness, &*runtime, &id("job", 0)).await;
    assert_eq!((exit.code, exit.signal.as_deref()), (Some(137), Some("SIGKILL")));
    if harness.abilities().tells_memory_kills {
        assert_eq!((exit.oom_killed, exit.reason, exit.is_success()), (true, ExitReason::OomKilled, false));
    }
}

pub async fn times_are_in_order<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let started = run(harness, &*runtime, id("job", 0), &Program::PrintsSlowly).await;
    let exit = ended(harness, &*runtime, &id("job", 0)).await;
    let since = exit.started_at.expect("a start");
    assert_eq!(started.phase.started_at(), Some(since));
    let ran = (exit.finished_at - since).to_std().expect("ended after its start");
    assert!(ran >= Duration::from_millis(900), "ran for {ran:?}");
}

pub async fn stop_ends_a_polite_program_within_its_grace<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let running = run(harness, &*runtime, id("web", 0), &Program::Polite).await;
    armed(harness, &*runtime, &running.as_ref()).await;
    let began = Instant::now();
    let stopped = runtime.stop(&running.as_ref(), &stop(LONG)).await.expect("stop").expect("is still there");
    assert!(began.elapsed() < LONG / 2, "took {:?}", began.elapsed());
    let Phase::Exited(exit) = &stopped.phase else { panic!("{:?}", stopped.phase) };
    assert_ne!(exit.code, Some(137), "it was killed");
    assert_eq!(listed(&*runtime, &running.id).await.expect("is listed").phase, stopped.phase);
}

pub async fn stop_kills_a_stubborn_program_after_its_grace<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let running = run(harness, &*runtime, id("web", 0), &Program::Stubborn).await;
    armed(harness, &*runtime, &running.as_ref()).await;
    let began = Instant::now();
    let stopped = runtime.stop(&running.as_ref(), &stop(SHORT)).await.expect("stop").expect("is still there");
    assert!(began.elapsed() >= SHORT, "took {:?}", began.elapsed());
    let Phase::Exited(exit) = stopped.phase else { panic!("{:?}", stopped.phase) };
    assert_eq!((exit.code, exit.signal.as_deref()), (Some(137), Some("SIGKILL")));
    assert_eq!((exit.oom_killed, exit.reason), (false, ExitReason::StopTimeout));
}

pub async fn stop_without_grace_kills_at_once<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let running = run(harness, &*runtime, id("web", 0), &Program::Stubborn).await;
    armed(harness, &*runtime, &running.as_ref()).await;
    let stopped = runtime.stop(&running.as_ref(), &stop(Duration::ZERO)).await.expect("stop").expect("is still there");
    let Phase::Exited(exit) = stopped.phase else { panic!("{:?}", stopped.phase) };
    assert_eq!(exit.code, Some(137));
}

pub async fn stop_of_exited_changes_nothing<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let started = run(harness, &*runtime, id("job", 0), &Program::Exit(3)).await;
    ended(harness, &*runtime, &started.id).await;
    let before = listed(&*runtime, &started.id).await;
    let stopped = runtime.stop(&started.as_ref(), &stop(LONG)).await.expect("stop");
    assert_eq!(stopped, before);
    assert_eq!(listed(&*runtime, &started.id).await, before);
}

pub async fn stop_of_created_is_success<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let created = create(harness, &*runtime, id("web", 0), &Program::Polite).await;
    let stopped = runtime.stop(&created.as_ref(), &stop(LONG)).await.expect("stop").expect("is still there");
    assert_eq!(stopped.phase, Phase::Created);
}

pub async fn stop_of_gone_is_success<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    assert_eq!(runtime.stop(&unknown(runtime.kind(), harness), &stop(LONG)).await.expect("stop"), None);
    let gone = create(harness, &*runtime, id("web", 0), &Program::Polite).await;
    runtime.remove(&gone.as_ref()).await.expect("remove");
    assert_eq!(runtime.stop(&gone.as_ref(), &stop(LONG)).await.expect("stop"), None);
}

pub async fn stopping_twice_at_once_is_success<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let running = run(harness, &*runtime, id("web", 0), &Program::Polite).await;
    armed(harness, &*runtime, &running.as_ref()).await;
    let (instance, request) = (running.as_ref(), stop(LONG));
    let (first, second) = tokio::join!(runtime.stop(&instance, &request), runtime.stop(&instance, &request));
    for stopped in [first, second] {
        let phase = stopped.expect("stop").expect("is still there").phase;
        assert!(matches!(phase, Phase::Exited(_)), "{phase:?}");
    }
}

pub async fn remove_of_running_kills<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let running = run(harness, &*runtime, id("web", 0), &Program::Stubborn).await;
    runtime.remove(&running.as_ref()).await.expect("remove");
    assert_eq!(runtime.list().await.expect("list").instances, []);
}

pub async fn remove_of_created_and_exited<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let created = create(harness, &*runtime, id("web", 0), &Program::Polite).await;
    let exited = run(harness, &*runtime, id("web", 1), &Program::Exit(0)).await;
    ended(harness, &*runtime, &exited.id).await;
    runtime.remove(&created.as_ref()).await.expect("remove");
    assert_eq!(listed(&*runtime, &created.id).await, None);
    assert!(listed(&*runtime, &exited.id).await.is_some(), "only what was named goes");
    runtime.remove(&exited.as_ref()).await.expect("remove");
    assert_eq!(runtime.list().await.expect("list").instances, []);
}

pub async fn remove_of_gone_is_success<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    runtime.remove(&unknown(runtime.kind(), harness)).await.expect("remove of what never was");
    let running = run(harness, &*runtime, id("web", 0), &Program::Polite).await;
    runtime.remove(&running.as_ref()).await.expect("remove");
    runtime.remove(&running.as_ref()).await.expect("remove again");
}

pub async fn missing_program_is_rejected<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let created = create(harness, &*runtime, id("web", 0), &Program::Missing).await;
    let error = runtime.start(&created.as_ref()).await.expect_err("nothing to run");
    assert_eq!(error.kind, ErrorKind::Rejected, "{error}");
    let found = listed(&*runtime, &created.id).await.expect("is still there");
    match &found.phase {
        Phase::Created => {}
        Phase::Exited(exit) => assert!(!exit.is_success(), "{exit:?}"),
        phase => panic!("{phase:?}"),
    }
    runtime.remove(&created.as_ref()).await.expect("remove");
    assert_eq!(listed(&*runtime, &created.id).await, None);
}

pub async fn five_at_once<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let started = join_all((0..5).map(|slot| run(harness, &*runtime, id("web", slot), &Program::Polite))).await;
    let mut listed = runtime.list().await.expect("list").instances;
    listed.sort_by_key(|instance| instance.id.slot);
    assert_eq!(listed.iter().map(|instance| instance.id.slot).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    for (started, listed) in started.iter().zip(&listed) {
        assert_eq!((&started.runtime_id, &started.phase), (&listed.runtime_id, &listed.phase));
        assert!(listed.phase.is_ready(), "{:?}", listed.phase);
    }
    let references: Vec<InstanceRef> = listed.iter().map(|instance| instance.as_ref()).collect();
    for removed in join_all(references.iter().map(|instance| runtime.remove(instance))).await {
        removed.expect("remove");
    }
    assert_eq!(runtime.list().await.expect("list").instances, []);
}

pub async fn replacement_lives_beside_its_predecessor<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let old = run(harness, &*runtime, id("web", 0), &Program::Polite).await;
    let mut newer = id("web", 0);
    newer.revision = "v1-bb00000000000000".parse().expect("a revision");
    let mut retried = id("web", 0);
    retried.attempt = 1;
    let newer = run(harness, &*runtime, newer, &Program::Polite).await;
    let retried = run(harness, &*runtime, retried, &Program::Polite).await;
    runtime.remove(&old.as_ref()).await.expect("remove");
    for replacement in [newer, retried] {
        let phase = listed(&*runtime, &replacement.id).await.expect("is listed").phase;
        assert!(phase.is_ready(), "{phase:?}");
    }
}
