//! A stop is not taken for a crash, whenever the controller crashed: what was only stopped runs again at once and counts
//! no restart. Nor is a crash taken for a stop that failed.

use std::path::PathBuf;
use std::time::Duration;

use evenkeel::controller::{Declared, desired};
use evenkeel::runtime::sim::Faults;
use evenkeel::spec::{RuntimeKind, merge, parse};
use evenkeel::state::{Desired, Phase};
use evenkeel::status::DeploymentState;
use tokio::time::{sleep, timeout};

use crate::stage::{Stage, Trace, in_virtual_time};

/// Time that calls take, so that a crash falls between any two.
const LATENCY: Duration = Duration::from_millis(200);

/// Longest time in which a story makes calls before its crash: a rollout, or the age of its instances and a recycling.
const PAUSE: Duration = Duration::from_secs(90);

/// Calls after which every story is over.
const MOST_CALLS: u64 = 60;

/// Two replicas that are not restarted when they end; one that keel took for ended by itself would stay down.
fn declared(version: u32, lifecycle: &str) -> Declared {
    let text = format!(
        "version: v1\ndeployment: demo\nservices:\n  web:\n    image: {{ name: sim/stubborn }}\n    \
         env: {{ VERSION: '{version}' }}\n    scale: {{ mode: fixed, replicas: 2 }}\n    stop_grace_period: 2s\n    \
         restart_policy: {{ kind: 'no' }}\n    rollout: {{ max_surge: 0, max_unavailable: 1 }}\n{lifecycle}"
    );
    let merged = merge(&[(PathBuf::from("/specs/demo.yaml"), parse(&text))]);
    assert_eq!(merged.problems, []);
    let deployments = merged.deployments.iter().map(|(name, one)| (name.clone(), desired(one, RuntimeKind::Sim)));
    Declared { synced: true, desired: Desired { deployments: deployments.collect() }, ..Declared::default() }
}

/// Longest time after its call in which a stop ends an instance: the grace, the kill and an engine under load.
const STOP_IS_OVER: Duration = Duration::from_secs(2 + 60);

/// Runs `before`, then `then` until that many calls were made; the controller crashes, and the next one is told `after`.
/// Says whether it came to the crash.
async fn tell(
    stage: &mut Stage,
    [before, then, after]: [Declared; 3],
    crash_after: u64,
    until: impl Fn(&Stage) -> bool,
) -> Result<bool, String> {
    stage.start_with(before).await;
    wait(stage, Duration::from_secs(60), all_ready).await?;
    stage.tell(then);
    let begun = *stage.world.acts().borrow();
    let crashed = timeout(PAUSE, stage.world.acts().wait_for(|acts| *acts >= begun + crash_after)).await.is_ok();
    stage.crash().await;
    // What is under way at that moment takes its course.
    sleep(Duration::from_secs(1)).await;
    stage.start_with(after).await;
    wait(stage, Duration::from_secs(600), until).await?;
    Ok(crashed)
}

async fn wait(stage: &Stage, limit: Duration, until: impl Fn(&Stage) -> bool) -> Result<(), String> {
    let so = async {
        while !until(stage) {
            sleep(Duration::from_millis(100)).await;
        }
    };
    let waited = timeout(limit, so).await;
    waited.map_err(|_| format!("not within {limit:?}: {:#?}\n{:#?}", stage.status(), stage.world.instances()))
}

fn all_ready(stage: &Stage) -> bool {
    let status = stage.status();
    let services = status.services.iter().all(|one| (one.ready, one.updated) == (2, 2));
    services && status.deployments.first().is_some_and(|one| one.state == DeploymentState::Running)
}

fn assert_no_restarts(stage: &Stage, crash_after: u64) {
    for (_, instance) in stage.world.instances() {
        assert_eq!(instance.restarts, 0, "crash after {crash_after} calls: {instance:?}");
    }
    let known = stage.world.instances().len();
    assert!(stage.stops.count() <= known, "{} records for {known} instances", stage.stops.count());
}

fn each_crash(story: impl AsyncFn(&mut Stage, u64) -> Result<bool, String>) {
    for outlives_caller in [0.0, 1.0] {
        for crash_after in 0..MOST_CALLS {
            let faults = Faults { latency: LATENCY, outlives_caller, ..Faults::none() };
            let crashed = in_virtual_time(async {
                let mut stage = Stage::new(crash_after, faults, Trace::default());
                let crashed = story(&mut stage, crash_after).await;
                assert_no_restarts(&stage, crash_after);
                crashed
            });
            match crashed {
                Ok(true) => {}
                Ok(false) => {
                    assert!(crash_after > 2, "the story is over after {crash_after} calls");
                    break;
                }
                Err(problem) => panic!("crash after {crash_after} calls, outlives {outlives_caller}: {problem}"),
            }
        }
    }
}

#[test]
fn a_rollout_that_is_taken_back_leaves_nothing_down() {
    let story = async |stage: &mut Stage, crash_after| {
        let acts = [declared(0, ""), declared(1, ""), declared(0, "")];
        tell(stage, acts, crash_after, all_ready).await
    };
    each_crash(story);
}

#[test]
fn what_is_recycled_runs_again() {
    let recycled = || declared(0, "    lifecycle: { max_lifetime: 60s, on_expiry: recycle }\n");
    let story = async |stage: &mut Stage, crash_after| {
        tell(stage, [recycled(), recycled(), recycled()], crash_after, all_ready).await
    };
    each_crash(story);
}

#[test]
fn what_is_terminated_stays_down() {
    let terminated = || declared(0, "    lifecycle: { max_lifetime: 60s, on_expiry: terminate }\n");
    let down = |stage: &Stage| {
        let instances = stage.world.instances();
        instances.len() == 2 && instances.iter().all(|(_, one)| matches!(one.phase, Phase::Exited(_)))
    };
    let story = async |stage: &mut Stage, crash_after| {
        let crashed = tell(stage, [terminated(), terminated(), terminated()], crash_after, down).await?;
        sleep(Duration::from_secs(600)).await;
        assert!(down(stage), "{:#?}", stage.world.instances());
        // A longer life does not bring back what was terminated as long as there is a limit; none does.
        stage.tell(declared(0, ""));
        wait(stage, Duration::from_secs(60), all_ready).await?;
        Ok(crashed)
    };
    each_crash(story);
}

/// What is told of a first run that nobody asked to end.
const CRASHED: (u32, &str) = (0, "down: exited 1, and restart_policy starts no other");

/// The attempt of each instance, and what is told of it.
fn told(stage: &Stage) -> Vec<(u32, String)> {
    let without_name = |text: &str| text.split_once(") ").map_or(text, |(_, rest)| rest).to_owned();
    stage.status().instances.iter().map(|one| (one.attempt, without_name(&one.message))).collect()
}

#[test]
fn a_crash_after_a_stop_that_failed_and_was_taken_back_is_one() {
    in_virtual_time(async {
        let mut stage = Stage::new(0, Faults::none(), Trace::default());
        stage.start_with(declared(0, "")).await;
        wait(&stage, Duration::from_secs(60), all_ready).await.expect("it runs");
        stage.world.set_faults(Faults { fails: 1.0, ..Faults::none() });
        stage.tell(declared(1, ""));
        wait(&stage, Duration::from_secs(60), |stage| stage.stops.count() == 1).await.expect("a stop is tried");
        stage.tell(declared(0, ""));
        stage.world.set_faults(Faults::none());
        sleep(STOP_IS_OVER + Duration::from_secs(5)).await;
        assert!(all_ready(&stage), "no stop had an effect: {:#?}", stage.world.instances());
        assert_eq!(stage.stops.count(), 1, "nobody has looked since, so the record is there at the crash");
        for (_, instance) in stage.world.instances() {
            assert!(stage.world.kill(&instance.runtime_id, 1));
        }
        sleep(Duration::from_secs(600)).await;
        assert_eq!(told(&stage), [CRASHED; 2].map(|(attempt, text)| (attempt, text.to_owned())));
        assert_eq!(stage.stops.count(), 0, "what came of the stop is decided");
    });
}

#[test]
fn a_crash_that_a_stop_comes_too_late_for_is_one() {
    in_virtual_time(async {
        let faults = Faults { latency: LATENCY, ..Faults::none() };
        let mut stage = Stage::new(0, faults, Trace::default());
        stage.start_with(declared(0, "    lifecycle: { max_idle: 60s }\n")).await;
        wait(&stage, Duration::from_secs(60), all_ready).await.expect("it runs");
        let begun = *stage.world.acts().borrow();
        let stops = timeout(PAUSE, async { stage.world.acts().wait_for(|acts| *acts > begun).await.is_ok() }).await;
        assert_eq!(stops, Ok(true), "an idle instance is stopped");
        for (_, instance) in stage.world.instances() {
            assert!(stage.world.kill(&instance.runtime_id, 1));
        }
        sleep(Duration::from_secs(600)).await;
        assert_eq!(told(&stage), [CRASHED; 2].map(|(attempt, text)| (attempt, text.to_owned())));
        assert_eq!(stage.stops.count(), 0);
    });
}
