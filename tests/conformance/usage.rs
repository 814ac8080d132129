//! Promises about what instances use, and about pausing them.

use std::time::Duration;

use evenkeel::runtime::{ErrorKind, Runtime, Stats, Suspend};
use evenkeel::state::{ExitReason, InstanceRef, Phase};

use crate::harness::{Harness, Program, armed, create, ended, eventually, id, listed, run, skipped, stop};
use crate::life::unknown;
use crate::output::lines;

/// A grace that no test waits out.
const LONG: Duration = Duration::from_secs(60);

fn stats<'a, H: Harness>(_: &H, runtime: &'a dyn Runtime) -> Option<&'a dyn Stats> {
    let stats = runtime.stats();
    if stats.is_none() {
        skipped::<H>("it does not tell what instances use");
    }
    stats
}

fn suspend<'a, H: Harness>(_: &H, runtime: &'a dyn Runtime) -> Option<&'a dyn Suspend> {
    let suspend = runtime.suspend();
    if suspend.is_none() {
        skipped::<H>("it does not pause instances");
    }
    suspend
}

pub async fn usage_is_told_while_it_runs<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let Some(stats) = stats(harness, &*runtime) else { return };
    let running = run(harness, &*runtime, id("web", 0), &Program::Ticks).await;
    armed(harness, &*runtime, &running.as_ref()).await;
    let first = stats.stats(&running.as_ref()).await.expect("stats");
    assert!(first.memory.is_some_and(|bytes| bytes > 0), "{first:?}");
    assert_eq!((first.memory_limit, first.pids_limit), (None, None), "nothing was limited");
    assert!(first.pids.is_some_and(|count| count >= 1), "{first:?}");
    let later = eventually(harness, "it uses more of a processor", async || {
        let later = stats.stats(&running.as_ref()).await.expect("stats");
        (later.cpu_usec > first.cpu_usec).then_some(later)
    })
    .await;
    assert!(later.at > first.at);
}

pub async fn usage_of_what_does_not_run_is_rejected<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let Some(stats) = stats(harness, &*runtime) else { return };
    let kind = async |instance: InstanceRef| stats.stats(&instance).await.expect_err("nothing is used").kind;
    assert_eq!(kind(unknown(runtime.kind(), harness)).await, ErrorKind::NotFound);
    let created = create(harness, &*runtime, id("web", 0), &Program::Polite).await;
    assert_eq!(kind(created.as_ref()).await, ErrorKind::Rejected);
    let exited = run(harness, &*runtime, id("job", 0), &Program::Exit(0)).await;
    ended(harness, &*runtime, &exited.id).await;
    assert_eq!(kind(exited.as_ref()).await, ErrorKind::Rejected);
}

pub async fn paused_stands_still_until_resumed<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let Some(suspend) = suspend(harness, &*runtime) else { return };
    let running = run(harness, &*runtime, id("web", 0), &Program::Ticks).await;
    let instance = running.as_ref();
    armed(harness, &*runtime, &instance).await;
    let Phase::Running { since, .. } = running.phase else { panic!("{:?}", running.phase) };
    for _ in 0..2 {
        let paused = suspend.pause(&instance).await.expect("pause");
        assert_eq!(paused.phase, Phase::Paused { since });
        assert_eq!(listed(&*runtime, &running.id).await.expect("is listed").phase, Phase::Paused { since });
    }
    let count = async || lines(&*runtime, &instance, &Default::default()).await.len();
    // What it wrote before may still be on its way.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = count().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(count().await, before, "it does not run");
    for _ in 0..2 {
        let resumed = suspend.resume(&instance).await.expect("resume");
        assert_eq!(resumed.phase, Phase::Running { since, ready: true });
    }
    if before > 1 {
        eventually(harness, "it goes on", async || (count().await > before).then_some(())).await;
    }
}

pub async fn pausing_what_does_not_run_is_rejected<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let Some(suspend) = suspend(harness, &*runtime) else { return };
    let created = create(harness, &*runtime, id("web", 0), &Program::Polite).await;
    assert_eq!(suspend.pause(&created.as_ref()).await.expect_err("it does not run").kind, ErrorKind::Rejected);
    assert_eq!(suspend.resume(&created.as_ref()).await.expect("is not frozen").phase, Phase::Created);
    let unknown = unknown(runtime.kind(), harness);
    assert_eq!(suspend.pause(&unknown).await.expect_err("there is none").kind, ErrorKind::NotFound);
    assert_eq!(suspend.resume(&unknown).await.expect_err("there is none").kind, ErrorKind::NotFound);
}

pub async fn paused_is_stopped_in_its_grace<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let Some(suspend) = suspend(harness, &*runtime) else { return };
    let running = run(harness, &*runtime, id("web", 0), &Program::Polite).await;
    armed(harness, &*runtime, &running.as_ref()).await;
    suspend.pause(&running.as_ref()).await.expect("pause");
    let stopped = runtime.stop(&running.as_ref(), &stop(LONG)).await.expect("stop").expect("is still there");
    let Phase::Exited(exit) = stopped.phase else { panic!("{:?}", stopped.phase) };
    // It saw the signal, and was not killed.
    assert!(exit.reason == ExitReason::Exited || exit.signal.as_deref() == Some("SIGTERM"), "{exit:?}");
}

pub async fn paused_is_removed<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let Some(suspend) = suspend(harness, &*runtime) else { return };
    let running = run(harness, &*runtime, id("web", 0), &Program::Stubborn).await;
    armed(harness, &*runtime, &running.as_ref()).await;
    suspend.pause(&running.as_ref()).await.expect("pause");
    runtime.remove(&running.as_ref()).await.expect("remove");
    assert_eq!(runtime.list().await.expect("list").instances, []);
}
