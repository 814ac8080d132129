//! What follows from health checks.

use evenkeel::state::{HealthState, NOT_CHECKED, Phase, StopCause};

use super::dsl::{Change, Snapshot, ago, all_up, up};

const CHECKED: &str = "health: {check: {type: tcp, port: 80}}\n";

fn web(letter: char, replicas: u32, fields: &str) -> Snapshot {
    Snapshot::declared().service("web", letter, replicas, &format!("{CHECKED}{fields}"))
}

#[test]
fn an_unhealthy_instance_is_ended_and_says_why() {
    web('a', 2, "").with([up(0, 'a').unhealthy(), up(1, 'a')]).expect(
        "halt web/0 a0: unhealthy: no route
         demo/web/0 (aaaaaaaa, attempt 0) is unhealthy: no route",
    );
}

#[test]
fn checks_that_never_passed_restart_no_more_than_a_rollout_may_take() {
    let untold = |slot: u32| {
        format!(
            "demo/web/{slot} (aaaaaaaa, attempt 0) is unhealthy: no route; it runs on until these checks, which never passed \
             on it, pass on what is restarted for them"
        )
    };
    let spared = |slot: u32| {
        format!(
            "demo/web/{slot} (aaaaaaaa, attempt 0) is unhealthy: no route; it runs on, as these checks passed neither on it \
             nor on what was restarted for them"
        )
    };
    let halted = "demo/web/0 (aaaaaaaa, attempt 0) is unhealthy: no route";
    let none = "rollout: {max_unavailable: 0}";
    let halt = "halt web/0 a0: unhealthy: no route";
    web('a', 2, none)
        .with([up(0, 'a').never_healthy(), up(1, 'a').never_healthy()])
        .expect(&[halt, halted, &untold(1)].join("\n"));
    // One that ends, one that waits for its restart, and one that was restarted and fails again keep the only place.
    let ended = up(0, 'a').exited(0, 5, 1).by(StopCause::Unhealthy);
    let again = up(0, 'a').attempt(1).restarted(1, 1).since(99).never_healthy();
    web('a', 2, none)
        .with([up(0, 'a').never_healthy().phase(Phase::Stopping), up(1, 'a').never_healthy()])
        .expect(&["wait for the step under way for demo/web/0 (aaaaaaaa, attempt 0)", &untold(1)].join("\n"));
    web('a', 2, none)
        .with([ended.clone(), up(1, 'a').never_healthy()])
        .expect(&["launch (restarts 1, streak 1) web/0 a1: unhealthy, restart 1 in a row", &untold(1)].join("\n"));
    // What was restarted runs, and has not failed them yet.
    let anew = up(0, 'a').attempt(1).restarted(1, 1).since(1).judged(HealthState::Starting { last: None });
    let planned = web('a', 2, none).with([ended.clone(), anew, up(1, 'a').never_healthy()]).planned();
    assert!(planned.contains(&untold(1)), "{planned}");
    // One that has failed again, and waits for its next restart.
    let both = [ended.clone(), up(0, 'a').attempt(1).restarted(1, 1).exited(0, 5, 1).by(StopCause::Unhealthy)];
    let planned = web('a', 2, none).with(both).with([up(1, 'a').never_healthy()]).planned();
    assert!(planned.contains(&spared(1)), "{planned}");
    web('a', 2, none).with([ended, again, up(1, 'a').never_healthy()]).expect(
        &[
            "halt web/0 a1: unhealthy: no route",
            "demo/web/0 (aaaaaaaa, attempt 1) is unhealthy: no route",
            &spared(1),
            "look again at 2026-01-01T12:00:01Z",
        ]
        .join("\n"),
    );
    // What has run for longer than those checks let anything run passed others before, whatever ended the one before it.
    let before = up(0, 'a').exited(0, 5, 1).by(StopCause::Unhealthy);
    let old = up(0, 'a').attempt(1).restarted(1, 1).since(101).never_healthy();
    let stopping = up(1, 'a').never_healthy().phase(Phase::Stopping);
    let spared = spared(0).replace("attempt 0", "attempt 1");
    web('a', 2, none)
        .with([before, old, stopping])
        .expect(&["wait for the step under way for demo/web/1 (aaaaaaaa, attempt 0)", &spared].join("\n"));
    // One whose stop is under way has the place, whatever the runtime shows of it by now, and is ended again by nobody.
    let ending = up(1, 'a').never_healthy();
    let planned = web('a', 2, none).kept_under_way(&ending).with([up(0, 'a').never_healthy(), ending]);
    planned.expect(
        &["halt web/1 a0: unhealthy: no route", &untold(0), "demo/web/1 (aaaaaaaa, attempt 0) is unhealthy: no route"]
            .join("\n"),
    );
    // Those that checks passed on before are restarted whatever others need.
    web('a', 2, none).with([up(0, 'a').never_healthy(), up(1, 'a').unhealthy()]).expect(
        &[
            halt,
            "halt web/1 a0: unhealthy: no route",
            halted,
            "demo/web/1 (aaaaaaaa, attempt 0) is unhealthy: no route",
        ]
        .join("\n"),
    );
}

#[test]
fn what_was_ended_for_being_unhealthy_is_restarted_like_a_crash() {
    let ended = |streak| up(0, 'a').attempt(streak).restarted(streak, streak).exited(0, 5, 1).by(StopCause::Unhealthy);
    web('a', 1, "").with([ended(0)]).expect("launch (restarts 1, streak 1) web/0 a1: unhealthy, restart 1 in a row");
    web('a', 1, "").with([ended(1)]).expect(
        "wait to restart demo/web/0 (aaaaaaaa, attempt 1) until 2026-01-01T12:00:09Z: unhealthy
         look again at 2026-01-01T12:00:09Z",
    );
    let last = ended(1).change(|instance| {
        let Phase::Exited(exit) = &mut instance.phase else { panic!("it ended") };
        exit.failed_check = Some("no route".into());
    });
    web('a', 1, "").with([last]).expect(
        "wait to restart demo/web/0 (aaaaaaaa, attempt 1) until 2026-01-01T12:00:09Z: unhealthy: no route
         look again at 2026-01-01T12:00:09Z",
    );
    web('a', 1, "restart_policy: {kind: on_failure}")
        .with([ended(0)])
        .expect("launch (restarts 1, streak 1) web/0 a1: unhealthy, restart 1 in a row");
}

#[test]
fn restarts_have_their_limit() {
    let ended = up(0, 'a').attempt(2).restarted(2, 2).exited(0, 5, 1).by(StopCause::Unhealthy);
    web('a', 1, "restart_policy: {kind: always, max_attempts: 2}")
        .with([ended])
        .expect("keep demo/web/0 (aaaaaaaa, attempt 2) down: unhealthy, and restart_policy.max_attempts is reached");
}

#[test]
fn without_restarts_an_unhealthy_instance_is_only_not_ready() {
    let unhealthy = "demo/web/0 (aaaaaaaa, attempt 0) is unhealthy: no route";
    web('a', 1, "restart_policy: {kind: 'no'}").with([up(0, 'a').unhealthy()]).expect(unhealthy);
    // A limit on its age holds all the same.
    web('a', 1, "restart_policy: {kind: 'no'}\nlifecycle: {max_lifetime: 30m, on_expiry: terminate}")
        .with([up(0, 'a').unhealthy()])
        .expect(&format!("halt web/0 a0: reached its maximum age, started at 2026-01-01T11:00:00Z\n{unhealthy}"));
}

#[test]
fn errors_on_panic_goes_before_the_restart_policy() {
    let ended = || up(0, 'a').exited(0, 5, 1).by(StopCause::Unhealthy);
    let isolate = "restart_policy: {kind: 'no'}\nerrors: {on_panic: {action: isolate}}";
    web('a', 1, isolate).with([up(0, 'a').unhealthy()]).expect(
        "halt web/0 a0: unhealthy: no route
         demo/web/0 (aaaaaaaa, attempt 0) is unhealthy: no route",
    );
    web('a', 1, isolate)
        .with([ended()])
        .expect("keep demo/web/0 (aaaaaaaa, attempt 0) for inspection: unhealthy, and errors.on_panic is isolate");
    web('a', 2, "errors: {on_panic: {action: shutdown}}").with([ended(), up(1, 'a')]).expect(
        "retire web/1 a0: unhealthy, and errors.on_panic is shutdown
         keep the service of demo/web/0 (aaaaaaaa, attempt 0) down: unhealthy, and errors.on_panic is shutdown",
    );
}

#[test]
fn a_slot_is_not_filled_while_its_unhealthy_instance_ends() {
    web('a', 1, "")
        .with([up(0, 'a').unhealthy().phase(Phase::Stopping)])
        .expect("wait for the step under way for demo/web/0 (aaaaaaaa, attempt 0)");
}

#[test]
fn a_rollout_waits_for_checks_to_pass() {
    let surge = "rollout: {max_surge: 1, max_unavailable: 0}";
    let starting = HealthState::Starting { last: Some("connection refused".into()) };
    web('b', 3, surge)
        .with(all_up(0..3, 'a'))
        .with([up(0, 'b').judged(starting)])
        .expect("wait for demo/web/0 (bbbbbbbb, attempt 0) to become ready: connection refused");
    web('b', 3, surge).with(all_up(0..3, 'a')).with([up(0, 'b').unhealthy()]).expect(
        "halt web/0 b0: unhealthy: no route
         demo/web/0 (bbbbbbbb, attempt 0) is unhealthy: no route",
    );
    web('b', 3, surge)
        .with(all_up(0..3, 'a'))
        .with([up(0, 'b').judged(HealthState::Healthy)])
        .expect("retire web/0 a0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)");
}

#[test]
fn unknown_health_touches_nothing() {
    let unknown = || HealthState::Unknown { why: NOT_CHECKED.into() };
    let wait = |slot: u32, letter: &str| {
        format!("wait for demo/web/{slot} ({}, attempt 0) to become ready: not checked yet", letter.repeat(8))
    };
    web('a', 2, "")
        .with(all_up(0..2, 'a').map(|one| one.judged(unknown())))
        .expect(&[wait(0, "a"), wait(1, "a")].join("\n"));
    // In the middle of a rollout.
    web('b', 3, "rollout: {max_surge: 1, max_unavailable: 0}")
        .with(all_up(0..3, 'a').chain([up(0, 'b')]).map(|one| one.judged(unknown())))
        .expect(&wait(0, "b"));
}

#[test]
fn only_a_healthy_instance_is_ready() {
    let states = [
        (None, true),
        (Some(HealthState::Healthy), true),
        (Some(HealthState::Starting { last: None }), false),
        (Some(HealthState::Unknown { why: "no shell".into() }), false),
        (Some(HealthState::Unhealthy { last: "no route".into(), passed: true }), false),
    ];
    for (health, ready) in states {
        let judged = up(0, 'a').change(|instance| instance.judge(health.clone()));
        assert_eq!((judged.phase.is_ready(), &judged.health), (ready, &health));
    }
}

#[test]
fn one_that_is_spared_is_looked_at_again_once_what_was_restarted_has_run_for_long_enough() {
    let restarted = up(1, 'a').restarted(1, 1).phase(Phase::Running { since: ago(1), ready: true });
    web('a', 2, "rollout: {max_unavailable: 1, min_ready: 0s}").with([up(0, 'a').never_healthy(), restarted]).expect(
        "demo/web/0 (aaaaaaaa, attempt 0) is unhealthy: no route; it runs on until these checks, which never passed on it, \
         pass on what is restarted for them
         look again at 2026-01-01T12:00:09Z",
    );
}
