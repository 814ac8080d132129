//! Limits on idleness and age, holds, and what wakes instances: nothing that is used or held is ended, what is idle is, and
//! neither crashes of the controller nor the time without one change that.

use std::path::PathBuf;
use std::time::Duration;

use evenkeel::controller::{Command, Declared, Message, Order, UseNews, Used, desired};
use evenkeel::runtime::sim::{Faults, Rng};
use evenkeel::spec::{RuntimeKind, merge, parse};
use evenkeel::state::{Desired, Instance, Phase, Signal, Target};
use evenkeel::status::LifeState;
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::stage::{Stage, Trace, in_virtual_time};

/// Limit on idleness in these stories.
const MAX_IDLE: u64 = 60;

/// Time in which the controller does what is due, on a machine without faults.
const SOON: Duration = Duration::from_secs(3);

fn declared(lifecycle: &str) -> Declared {
    let text = format!(
        "version: v1\ndeployment: demo\nservices:\n  web:\n    image: {{ name: sim/run }}\n    lifecycle: {lifecycle}\n"
    );
    let merged = merge(&[(PathBuf::from("/specs/demo.yaml"), parse(&text))]);
    assert_eq!(merged.problems, []);
    let deployments = merged.deployments.iter().map(|(name, one)| (name.clone(), desired(one, RuntimeKind::Sim)));
    Declared { synced: true, desired: Desired { deployments: deployments.collect() }, ..Declared::default() }
}

fn target() -> Target {
    "demo/web/0".parse().expect("a name")
}

async fn stage(lifecycle: &str) -> Stage {
    let mut stage = Stage::new(0, Faults::none(), Trace::default());
    stage.start_with(declared(lifecycle)).await;
    sleep(SOON).await;
    stage
}

/// The newest instance.
fn newest(stage: &Stage) -> Instance {
    let instances = stage.world.instances().into_iter().map(|(_, instance)| instance);
    instances.max_by_key(Instance::recency).expect("an instance")
}

fn phase(stage: &Stage) -> &'static str {
    newest(stage).phase.name()
}

fn state(stage: &Stage) -> LifeState {
    stage.status().services[0].state
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Somebody uses the instance; the number ends the use.
async fn begin_use(stage: &Stage, id: u64, signal: Signal) -> bool {
    let (reply, answer) = oneshot::channel();
    let used = Used::Instance(newest(stage).as_ref());
    stage.message(Message::Used(UseNews::Begin { id, signal, used, reply })).await;
    answer.await.expect("an answer")
}

async fn end_use(stage: &Stage, id: u64) {
    stage.message(Message::Used(UseNews::End(id))).await;
}

async fn wake(stage: &Stage) -> bool {
    stage.ask(|reply| Command::Wake(target(), reply)).await.is_some_and(|woken| woken.is_ok())
}

#[test]
fn an_idle_instance_is_stopped_and_woken_and_that_is_no_restart() {
    in_virtual_time(async {
        let mut stage = stage("{max_idle: 60s}").await;
        sleep(seconds(MAX_IDLE - 10)).await;
        assert_eq!((phase(&stage), state(&stage)), ("running", LifeState::Running));
        sleep(seconds(11)).await;
        assert_eq!((phase(&stage), state(&stage)), ("exited", LifeState::Idle));
        // It stays so, over a restart of the controller too.
        sleep(seconds(600)).await;
        stage.crash().await;
        stage.start_with(declared("{max_idle: 60s}")).await;
        sleep(seconds(60)).await;
        assert_eq!((phase(&stage), newest(&stage).id.attempt), ("exited", 0));
        assert!(wake(&stage).await);
        sleep(SOON).await;
        let woken = newest(&stage);
        assert_eq!((woken.phase.name(), woken.id.attempt, woken.restarts), ("running", 1, 0));
        sleep(seconds(MAX_IDLE)).await;
        assert_eq!((phase(&stage), state(&stage)), ("exited", LifeState::Idle), "it is idle again");
    });
}

#[test]
fn a_use_that_lasts_keeps_an_instance_and_followed_output_keeps_it_for_half_as_long_afterwards() {
    in_virtual_time(async {
        for (signal, after) in [(Signal::Exec, MAX_IDLE), (Signal::Logs, MAX_IDLE / 2)] {
            let stage = stage("{max_idle: 60s}").await;
            assert!(begin_use(&stage, 1, signal).await);
            sleep(seconds(1000)).await;
            assert_eq!(phase(&stage), "running", "{signal:?}");
            end_use(&stage, 1).await;
            sleep(seconds(after - 2)).await;
            assert_eq!(phase(&stage), "running", "{signal:?}");
            sleep(seconds(5)).await;
            assert_eq!(phase(&stage), "exited", "{signal:?}");
        }
    });
}

#[test]
fn a_suspended_instance_stays_so_over_a_restart_and_runs_on_when_it_is_used() {
    in_virtual_time(async {
        let lifecycle = "{max_idle: 60s, on_idle: suspend}";
        let mut stage = stage(lifecycle).await;
        sleep(seconds(MAX_IDLE)).await;
        assert_eq!((phase(&stage), state(&stage)), ("paused", LifeState::Suspended));
        stage.crash().await;
        sleep(seconds(300)).await;
        stage.start_with(declared(lifecycle)).await;
        sleep(seconds(300)).await;
        assert_eq!((phase(&stage), state(&stage)), ("paused", LifeState::Suspended));
        assert!(stage.ask(|reply| Command::Touch(target(), reply)).await.is_some_and(|touched| touched.is_ok()));
        sleep(SOON).await;
        assert_eq!((phase(&stage), newest(&stage).id.attempt), ("running", 0));
        sleep(seconds(MAX_IDLE - 10)).await;
        assert_eq!(phase(&stage), "running", "it was used when it was woken");
        sleep(seconds(20)).await;
        assert_eq!((phase(&stage), state(&stage)), ("paused", LifeState::Suspended));
        // Somebody else may let it run on as well.
        stage.ask(|reply| Command::Wake(target(), reply)).await.expect("a controller").expect("it is suspended");
        sleep(SOON).await;
        // What somebody else freezes is not left like that.
        assert!(stage.world.freeze(&newest(&stage).runtime_id));
        sleep(SOON).await;
        assert_eq!(phase(&stage), "running");
    });
}

#[test]
fn time_without_a_controller_does_not_count_as_idle() {
    in_virtual_time(async {
        let mut stage = stage("{max_idle: 10m}").await;
        sleep(seconds(500)).await;
        stage.crash().await;
        sleep(seconds(10_000)).await;
        stage.start_with(declared("{max_idle: 10m}")).await;
        sleep(seconds(60)).await;
        assert_eq!(phase(&stage), "running", "it may have been used meanwhile");
        // The record is a minute old at most, and tells of the rest.
        sleep(seconds(600 - 500 + 60)).await;
        assert_eq!(phase(&stage), "exited");
    });
}

#[test]
fn a_held_instance_lives_until_it_is_released() {
    in_virtual_time(async {
        let mut stage = stage("{max_idle: 60s}").await;
        let hold = |seconds| Order::Hold { target: "demo/web".to_owned(), seconds };
        assert!(stage.order(hold(Some(1000))).await);
        sleep(seconds(500)).await;
        stage.crash().await;
        stage.start_with(declared("{max_idle: 60s}")).await;
        sleep(seconds(400)).await;
        assert_eq!(phase(&stage), "running");
        assert!(stage.order(hold(None)).await);
        sleep(SOON).await;
        assert_eq!(phase(&stage), "exited", "it has been idle for long");
        assert!(!stage.order(hold(Some(24 * 3600 + 1))).await, "there is a longest hold");
    });
}

#[test]
fn what_is_stopped_stays_down_and_what_is_terminated_comes_back_when_it_is_started() {
    in_virtual_time(async {
        let lifecycle = "{max_lifetime: 60s, on_expiry: terminate}";
        let mut stage = stage(lifecycle).await;
        let order = |start| match start {
            true => Order::Start { target: "demo/web".to_owned() },
            false => Order::Stop { target: "demo/web".to_owned() },
        };
        assert!(stage.order(order(false)).await);
        sleep(SOON).await;
        stage.crash().await;
        stage.start_with(declared(lifecycle)).await;
        sleep(seconds(300)).await;
        assert_eq!((phase(&stage), state(&stage)), ("exited", LifeState::Stopped));
        assert!(!wake(&stage).await, "a use does not start what somebody stopped");
        assert!(stage.order(order(true)).await);
        sleep(SOON).await;
        assert_eq!(phase(&stage), "running");
        sleep(seconds(60)).await;
        assert_eq!((phase(&stage), state(&stage)), ("exited", LifeState::Terminated));
        sleep(seconds(600)).await;
        assert_eq!(phase(&stage), "exited");
        assert!(stage.order(order(true)).await);
        sleep(SOON).await;
        let back = newest(&stage);
        assert_eq!((back.phase.name(), back.restarts), ("running", 0));
    });
}

#[test]
fn recycling_replaces_an_instance_without_a_gap_and_counts_no_restart() {
    in_virtual_time(async {
        let stage = stage("{max_lifetime: 60s}").await;
        for turn in 1..=3 {
            for _ in 0..62 {
                sleep(seconds(1)).await;
                let ready = stage.world.instances().into_iter().any(|(_, one)| one.phase.is_ready());
                assert!(ready, "one is ready at any time");
            }
            let newest = newest(&stage);
            assert!(newest.id.attempt >= turn, "it is another one: {newest:?}");
            assert_eq!(newest.restarts, 0);
        }
    });
}

/// One story of random uses, orders and crashes of the controller; the checker looks once a second.
async fn tell(seed: u64) {
    let mut random = Rng::new(seed);
    let lifecycle = ["{max_idle: 60s}", "{max_idle: 60s, on_idle: suspend}"][random.below(2) as usize];
    let mut stage = stage(lifecycle).await;
    let (mut used_until, mut held_until) = (stage.now() - SOON, stage.now());
    let (mut open, mut ran) = (false, true);
    for _ in 0..400 {
        match random.below(60) {
            0 if !open && matches!(newest(&stage).phase, Phase::Running { .. }) => {
                open = begin_use(&stage, seed, Signal::Exec).await;
            }
            1..=3 if open => {
                end_use(&stage, seed).await;
                (open, used_until) = (false, stage.now());
            }
            4 => {
                let length = 1 + random.below(200);
                let order = Order::Hold { target: "demo/web".to_owned(), seconds: Some(length) };
                if stage.order(order).await {
                    held_until = stage.now() + seconds(length);
                }
            }
            5 => {
                let touched = stage.ask(|reply| Command::Touch(target(), reply)).await;
                used_until = if touched.is_some_and(|touched| touched.is_ok()) { stage.now() } else { used_until };
            }
            6 => drop(wake(&stage).await),
            7 => {
                let at = stage.now();
                stage.crash().await;
                sleep(seconds(random.below(30))).await;
                stage.start_with(declared(lifecycle)).await;
                // The use was the controller's, and ended with it.
                if open {
                    (open, used_until) = (false, at);
                }
            }
            _ => {}
        }
        let in_use = open || stage.now() + seconds(2) < used_until + seconds(MAX_IDLE) || stage.now() < held_until;
        sleep(seconds(1)).await;
        let now = newest(&stage);
        let runs = matches!(now.phase, Phase::Running { .. });
        assert!(!(ran && in_use && !runs), "seed {seed}: {now:?} is in use");
        if runs && !ran {
            used_until = used_until.max(stage.now() - seconds(1));
        }
        ran = runs;
        assert_eq!((now.restarts, now.streak), (0, 0), "seed {seed}: a rest is no crash");
    }
    if open {
        end_use(&stage, seed).await;
    }
    sleep(seconds(300)).await;
    assert_ne!(phase(&stage), "running", "seed {seed}: nobody uses it any more");
    assert!(wake(&stage).await, "seed {seed}");
    sleep(SOON).await;
    assert_eq!(phase(&stage), "running", "seed {seed}");
}

#[test]
fn nothing_that_is_used_or_held_is_ended_and_everything_else_rests() {
    for seed in 0..150 {
        in_virtual_time(tell(seed));
    }
}

/// The same with another template for each greeting.
fn greeting(greeting: &str) -> Declared {
    declared(&format!("{{}}\n    env: {{ GREETING: {greeting} }}\n    scale: {{ mode: fixed, replicas: 2 }}"))
}

/// How many instances run.
fn running(stage: &Stage) -> usize {
    stage.world.instances().iter().filter(|(_, one)| matches!(one.phase, Phase::Running { .. })).count()
}

#[test]
fn a_stop_is_over_for_good_once_another_template_was_to_run() {
    in_virtual_time(async {
        for (stopped, left) in [("demo/web", 0), ("demo/web/0", 1)] {
            let mut stage = Stage::new(0, Faults::none(), Trace::default());
            stage.start_with(greeting("a")).await;
            sleep(SOON).await;
            let stop = || Order::Stop { target: stopped.to_owned() };
            assert!(stage.order(stop()).await);
            sleep(SOON).await;
            // Another controller, and the same declaration, change nothing of it.
            stage.crash().await;
            stage.start_with(greeting("a")).await;
            sleep(seconds(60)).await;
            assert_eq!(running(&stage), left, "{stopped}");
            stage.tell(greeting("b"));
            sleep(seconds(60)).await;
            assert_eq!(running(&stage), 2, "{stopped}: another template runs");
            // The one that knows of it is gone.
            stage.crash().await;
            stage.start_with(greeting("a")).await;
            sleep(seconds(60)).await;
            assert_eq!(running(&stage), 2, "{stopped}: the former template runs again");
            assert!(stage.order(stop()).await);
            sleep(SOON).await;
            assert_eq!(running(&stage), left, "{stopped}");
            assert!(stage.order(Order::Undo { target: "demo/web".to_owned(), to_revision: None }).await);
            sleep(seconds(60)).await;
            assert_eq!(running(&stage), 2, "{stopped}: an undo is another template");
            stage.tell(greeting("a"));
            assert!(stage.order(Order::Undo { target: "demo/web".to_owned(), to_revision: Some(3) }).await);
            sleep(seconds(60)).await;
            assert_eq!(running(&stage), 2, "{stopped}: and its end is no return of the stop");
            assert!(stage.order(stop()).await);
            sleep(SOON).await;
            assert!(stage.order(Order::Restart { target: "demo/web".to_owned() }).await);
            sleep(seconds(60)).await;
            assert_eq!(running(&stage), 2, "{stopped}: a restart starts");
        }
    });
}
