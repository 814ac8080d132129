//! Steps before each start: where they stand in a lane, and what follows a failure.

use evenkeel::plan::Action;
use evenkeel::state::{Fate, Instance, Phase};

use super::dsl::{Change, Snapshot, ago, up};

const INIT: &str = "init: {steps: [{id: a, uses: init.wait_tcp, with: {host: db, port: 1}}, {id: b, uses: init.run, with: {command: x}}]}\n";

fn web(fields: &str) -> Snapshot {
    Snapshot::declared().service("web", 'a', 1, &format!("{INIT}{fields}"))
}

/// What runs commands before a start of `web/0`.
fn helper(phase: Phase) -> Instance {
    up(0, 'a').phase(phase).change(|instance| {
        instance.id = instance.id.helper(7);
        instance.runtime_id = instance.id.runtime_name();
    })
}

fn running() -> Phase {
    Phase::Running { since: ago(5), ready: true }
}

#[test]
fn steps_come_before_every_start() {
    web("").expect("launch web/0 a0 after a, b: missing, 1 replica wanted");
    web("").with([up(0, 'a').phase(Phase::Created)]).expect("start web/0 a0 after a, b: created and never started");
    web("")
        .with([up(0, 'a').exited(1, 5, 1)])
        .expect("launch (restarts 1, streak 1) web/0 a1 after a, b: exited 1, restart 1 in a row");
    // A frozen one has started.
    web("").with([up(0, 'a').phase(Phase::Paused { since: ago(5) })]).expect(
        "resume web/0 a0: paused by somebody else
         wait for demo/web/0 (aaaaaaaa, attempt 0) to run on: paused by somebody else",
    );
}

#[test]
fn they_follow_the_image_and_precede_the_creation() {
    let plan = web("").plan();
    let kinds: Vec<&str> = plan
        .steps()
        .map(|step| match &step.action {
            Action::EnsureImage { .. } => "image",
            Action::Init { step, .. } => step.id.as_str(),
            Action::Create { .. } => "create",
            Action::StartCreated { .. } => "start",
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(kinds, ["image", "a", "b", "create", "start"]);
    assert_eq!(
        plan.lanes[0].steps[1].to_string(),
        "run init step a (init.wait_tcp) for demo/web/0 (aaaaaaaa, attempt 0) on docker: missing, 1 replica wanted"
    );
}

#[test]
fn what_follows_a_failure_is_what_the_spec_says() {
    let refused =
        "wait for another spec of demo/web/0 (aaaaaaaa, attempt 0), or try once more at TIME: init step a failed
         look again at TIME";
    let retried = "wait to try demo/web/0 (aaaaaaaa, attempt 0) again until TIME: failed TIMES: init step a failed
         look again at TIME";
    let launch = "launch web/0 a0 after a, b: missing, 1 replica wanted";
    let at = |text: &str, time: &str, times: &str| {
        text.replace("TIME:", &format!("{time}:")).replace("TIMES", times).replace("TIME", time)
    };
    let action = |action: &str| format!("errors: {{on_init_failure: {{action: {action}}}}}\n");
    let delay = "restart_policy: {delay: 1h}\n";
    for (fields, count, ago, expected) in [
        // Nothing written is `fail`.
        (String::new(), 1, 0, at(refused, "2026-01-01T12:05:00Z", "")),
        (action("fail"), 7, 0, at(refused, "2026-01-01T12:05:00Z", "")),
        (action("fail"), 1, 300, launch.to_owned()),
        // At once, but not in a busy loop, and the pause does not grow.
        (action("restart"), 1, 0, at(retried, "2026-01-01T12:00:01Z", "once")),
        (action("restart"), 9, 0, at(retried, "2026-01-01T12:00:01Z", "9 times in a row")),
        (action("restart"), 9, 2, launch.to_owned()),
        (action("backoff"), 9, 331, launch.to_owned()),
        (format!("{}{delay}", action("restart")), 9, 2, launch.to_owned()),
        // A clock that was set back.
        (action("backoff"), 9, -3600, launch.to_owned()),
    ] {
        web(&fields).init_failed(count, ago).expect(&expected);
    }
    for (count, least, most) in
        [(1, 10, 11), (2, 20, 22), (3, 40, 44), (4, 80, 88), (5, 160, 176), (6, 300, 330), (60, 300, 330)]
    {
        let planned = |ago| web(&action("backoff")).init_failed(count, ago).planned();
        assert!(planned(least - 1).starts_with("wait to try"), "{count}");
        assert_eq!(planned(most), launch, "{count}");
    }
    let planned = web(&format!("{}{delay}", action("backoff"))).init_failed(1, 3599).planned();
    assert!(planned.starts_with("wait to try"), "{planned}");
}

#[test]
fn old_replicas_stay_while_the_init_steps_of_new_ones_fail() {
    let fields = format!("{INIT}rollout: {{max_surge: 1, max_unavailable: 1}}");
    let snapshot = Snapshot::declared().service("web", 'b', 3, &fields).with([up(1, 'a'), up(2, 'a')]);
    let failed = snapshot.failed(0, 'b', 1, 0, true).planned();
    assert!(!failed.contains("retire"), "{failed}");
}

#[test]
fn a_helper_is_no_replica_and_goes_when_nobody_waits_for_it() {
    // At work.
    web("")
        .with([helper(running()), up(0, 'a').phase(Phase::Pending)])
        .expect("wait for the step under way for demo/web/0 (aaaaaaaa, attempt 0)");
    // The controller died meanwhile.
    web("").with([helper(running())]).expect(
        "retire web.init/0 a7: its init step has ended
         wait for the step under way for demo/web.init/0 (aaaaaaaa, attempt 7)",
    );
    web("")
        .with([helper(Phase::Stopping)])
        .expect("wait for the step under way for demo/web.init/0 (aaaaaaaa, attempt 7)");
    web("")
        .with([helper(running()).exited(0, 1, 1), up(0, 'a')])
        .expect("remove web.init/0 a7: its init step has ended");
    // Of another instance than the one that is being made.
    web("").with([helper(running()), up(0, 'b').phase(Phase::Pending)]).expect(
        "retire web.init/0 a7: its init step has ended
         wait for the step under way for demo/web/0 (bbbbbbbb, attempt 0)
         wait for the step under way for demo/web.init/0 (aaaaaaaa, attempt 7)",
    );
    let gone = Snapshot::undeclared(Fate::Removed).with([helper(running())]);
    gone.expect("retire web.init/0 a7: deployment is not declared any more");
    let undeclared = Snapshot::declared().with([helper(running())]);
    undeclared.expect("retire web.init/0 a7: its init step has ended");
}

#[test]
fn a_forecast_names_the_steps() {
    web("").expect_course(
        "1. create and start demo/web/0 (aaaaaaaa, attempt 0) on docker from image docker.io/library/nginx:latest after init steps a, b: missing, 1 replica wanted",
    );
}
