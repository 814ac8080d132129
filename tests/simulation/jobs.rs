//! Jobs and cron services while the controller crashes between any two steps: a job completes as often as it is to and
//! no more, and no run of a schedule is made twice or beside another one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use evenkeel::controller::{Declared, desired};
use evenkeel::runtime::sim::{Change, Faults, What};
use evenkeel::spec::{RuntimeKind, merge, parse};
use evenkeel::state::{Desired, InstanceId, RunId};
use evenkeel::status::DeploymentState;
use tokio::time::{sleep, timeout};

use crate::stage::{Stage, Trace, in_virtual_time};

/// Time that calls take, so that a crash falls between any two.
const LATENCY: Duration = Duration::from_millis(200);

/// Calls after which every story is over.
const MOST_CALLS: u64 = 25;

/// Time after each start of a controller in which a story goes on: a job that fails three times is over by then.
const WATCHED: Duration = Duration::from_secs(60);

fn declared(fields: &str) -> Declared {
    let text = format!("version: v1\ndeployment: demo\nservices:\n  work:\n    image: {{ name: sim/run }}\n{fields}");
    let merged = merge(&[(PathBuf::from("/specs/demo.yaml"), parse(&text))]);
    assert_eq!(merged.problems, []);
    let deployments = merged.deployments.iter().map(|(name, one)| (name.clone(), desired(one, RuntimeKind::Sim)));
    Declared { synced: true, desired: Desired { deployments: deployments.collect() }, ..Declared::default() }
}

fn job(program: &str, settings: &str) -> Declared {
    declared(&format!(
        "    rtype: job\n    command: {{ entrypoint: [sim], args: ['wait 1s', '{program}'] }}\n    job: {{ {settings} }}\n"
    ))
}

fn cron(settings: &str) -> Declared {
    declared(&format!(
        "    rtype: cron\n    schedule: '*/5 * * * * *'\n    command: {{ entrypoint: [sim], args: ['wait 7s', 'exit 0'] }}\n    \
         job: {{ {settings} }}\n"
    ))
}

/// Tells the story with a crash after every number of calls, each with a seed of its own.
fn each_crash(declared: impl Fn() -> Declared, check: impl AsyncFn(&Stage)) {
    for outlives_caller in [0.0, 1.0] {
        for crash_after in 0..MOST_CALLS {
            let faults = Faults { latency: LATENCY, outlives_caller, ..Faults::none() };
            in_virtual_time(async {
                let mut stage = Stage::new(crash_after, faults, Trace::default());
                stage.start_with(declared()).await;
                let calls = timeout(Duration::from_secs(60), stage.world.acts().wait_for(|acts| *acts >= crash_after))
                    .await
                    .is_ok();
                stage.crash().await;
                sleep(Duration::from_secs(1)).await;
                stage.start_with(declared()).await;
                sleep(WATCHED).await;
                check(&stage).await;
                // Nor does another crash, in the middle of nothing, change anything.
                stage.crash().await;
                stage.start_with(declared()).await;
                sleep(WATCHED).await;
                check(&stage).await;
                assert!(calls || crash_after > 2, "the story is over after {crash_after} calls");
            });
        }
    }
}

fn state(stage: &Stage) -> Option<DeploymentState> {
    stage.status().deployments.first().map(|view| view.state)
}

/// What started, with whether it ran to its end with this code.
fn ended(stage: &Stage, code: i32) -> Vec<InstanceId> {
    let ended = |change: &Change| matches!(&change.what, What::Ended(exit) if exit.code == Some(code));
    stage.world.changes().iter().filter(|change| ended(change)).map(|change| change.id.clone()).collect()
}

fn started(stage: &Stage) -> Vec<InstanceId> {
    let changes = stage.world.changes();
    changes.iter().filter(|one| matches!(one.what, What::Started { .. })).map(|one| one.id.clone()).collect()
}

#[test]
fn a_job_completes_as_often_as_it_is_to_and_no_more() {
    for history in [0, 3] {
        let declared = || job("exit 0", &format!("completions: 3, parallelism: 2, history: {history}"));
        each_crash(declared, async |stage: &Stage| {
            let mut indices: Vec<u32> = ended(stage, 0).iter().map(|id| id.slot).collect();
            indices.sort_unstable();
            assert_eq!(indices, [0, 1, 2]);
            assert_eq!(started(stage).len(), 3);
            assert_eq!(state(stage), Some(DeploymentState::Complete), "{:#?}", stage.status());
            let left = if history == 0 { 0 } else { 3 };
            assert_eq!(stage.world.instances().len(), left, "history {history}");
        });
    }
}

#[test]
fn a_job_fails_after_as_many_tries_as_it_has() {
    let declared = || job("exit 3", "backoff_limit: 2, history: 0");
    each_crash(declared, async |stage: &Stage| {
        assert_eq!(ended(stage, 3).len(), 3);
        assert_eq!(state(stage), Some(DeploymentState::Failed), "{:#?}", stage.status());
        assert_eq!(stage.world.instances().len(), 0);
    });
}

/// The runs that started, in the order of their starts.
fn runs(stage: &Stage) -> Vec<RunId> {
    started(stage).iter().map(|id| id.run.expect("a run")).collect()
}

/// Most instances that ran at the same time.
fn most_at_once(stage: &Stage) -> usize {
    let mut running: BTreeSet<String> = BTreeSet::new();
    let mut most = 0;
    for change in stage.world.changes() {
        match change.what {
            What::Started { .. } => drop(running.insert(change.runtime_id.clone())),
            What::Ended(_) => drop(running.remove(&change.runtime_id)),
            _ => {}
        }
        most = most.max(running.len());
    }
    most
}

#[test]
fn every_run_of_a_schedule_is_made_once_and_none_beside_another() {
    for history in [0, 2] {
        each_crash(
            || cron(&format!("overlap: forbid, history: {history}")),
            async |stage: &Stage| {
                let runs = runs(stage);
                let mut in_order = runs.clone();
                in_order.sort_unstable();
                in_order.dedup();
                assert_eq!(runs, in_order, "each once, one after the other");
                assert!(runs.iter().all(|run| run.is_scheduled()) && runs.len() >= 5, "{runs:?}");
                assert_eq!(most_at_once(stage), 1);
                assert!(stage.world.instances().len() <= history + 2, "{:#?}", stage.world.instances());
            },
        );
    }
}

#[test]
fn a_run_that_takes_the_place_of_another_waits_for_its_end() {
    each_crash(
        || cron("overlap: replace, history: 1"),
        async |stage: &Stage| {
            let runs = runs(stage);
            let distinct: BTreeSet<RunId> = runs.iter().copied().collect();
            assert_eq!(distinct.len(), runs.len(), "{runs:?}");
            assert_eq!((most_at_once(stage), ended(stage, 0).len()), (1, 0));
        },
    );
}

#[test]
fn runs_beside_each_other_are_made_once_each() {
    each_crash(
        || cron("overlap: allow, history: 1"),
        async |stage: &Stage| {
            let mut times: BTreeMap<RunId, u32> = BTreeMap::new();
            runs(stage).into_iter().for_each(|run| *times.entry(run).or_default() += 1);
            assert!(times.values().all(|times| *times == 1), "{times:?}");
            assert!(most_at_once(stage) >= 2);
        },
    );
}
