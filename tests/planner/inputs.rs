//! Failed calls and runtimes that don't answer.

use evenkeel::spec::RuntimeKind;
use evenkeel::state::{Fate, Phase};

use super::dsl::{Change, Snapshot, all_up, up};

fn web(letter: char, replicas: u32, fields: &str) -> Snapshot {
    Snapshot::declared().service("web", letter, replicas, fields)
}

#[test]
fn a_failed_call_is_retried_after_a_wait_that_doubles() {
    web('a', 2, "").failed(0, 'a', 1, 0, true).expect(
        "launch web/1 a0: missing, 2 replicas wanted
         wait to try demo/web/0 (aaaaaaaa, attempt 0) again until 2026-01-01T12:00:01Z: failed once: no space left
         look again at 2026-01-01T12:00:01Z",
    );
    web('a', 1, "").failed(0, 'a', 4, 2, true).expect(
        "wait to try demo/web/0 (aaaaaaaa, attempt 0) again until 2026-01-01T12:00:06Z: \
         failed 4 times in a row: no space left
         look again at 2026-01-01T12:00:06Z",
    );
    web('a', 1, "").failed(0, 'a', 4, 9, true).expect("launch web/0 a0: missing, 1 replica wanted");
    // Written before the clock was set back.
    for retryable in [true, false] {
        web('a', 1, "").failed(0, 'a', 4, -61, retryable).expect("launch web/0 a0: missing, 1 replica wanted");
    }
    web('a', 1, "").failed(0, 'a', 99, 331, true).expect("launch web/0 a0: missing, 1 replica wanted");
}

#[test]
fn a_refused_call_waits_for_another_template_and_is_tried_rarely() {
    web('a', 1, "").failed(0, 'a', 1, 60, false).expect(
        "wait for another spec of demo/web/0 (aaaaaaaa, attempt 0), or try once more at 2026-01-01T12:04:00Z: no space left
         look again at 2026-01-01T12:04:00Z",
    );
    web('a', 1, "").failed(0, 'a', 7, 300, false).expect("launch web/0 a0: missing, 1 replica wanted");
    web('b', 1, "").failed(0, 'a', 1, 0, false).expect("launch web/0 b0: missing, 1 replica wanted");
}

#[test]
fn a_failure_holds_back_the_start_of_what_was_created_and_nothing_else() {
    web('a', 2, "")
        .failed(0, 'a', 1, 0, true)
        .with([up(0, 'a').phase(Phase::Created), up(1, 'a').exited(1, 5, 0)])
        .expect(
            "launch (restarts 1, streak 1) web/1 a1: exited 1, restart 1 in a row
         wait to try demo/web/0 (aaaaaaaa, attempt 0) again until 2026-01-01T12:00:01Z: failed once: no space left
         look again at 2026-01-01T12:00:01Z",
        );
    web('a', 1, "")
        .failed(0, 'a', 1, 0, true)
        .failed(1, 'a', 1, 0, false)
        .with(all_up(0..2, 'a'))
        .expect("retire web/1 a0: scaled down to 1 replica");
}

#[test]
fn ready_instances_are_not_taken_away_for_launches_that_fail() {
    let fields = "rollout: {max_surge: 0, max_unavailable: 2}";
    web('b', 3, fields)
        .with(all_up(1..3, 'a'))
        .failed(0, 'b', 1, 0, false)
        .expect(
            "wait for another spec of demo/web/0 (bbbbbbbb, attempt 0), or try once more at 2026-01-01T12:05:00Z: no space left
         look again at 2026-01-01T12:05:00Z",
        );
}

#[test]
fn a_failed_launch_whose_place_was_taken_gets_one_again() {
    let fields = "rollout: {max_surge: 0, max_unavailable: 1}";
    let failed = |seconds_ago| web('b', 2, fields).with([up(0, 'a'), up(1, 'b')]).failed(0, 'b', 1, seconds_ago, true);
    failed(0).expect(
        "wait to try demo/web/0 (bbbbbbbb, attempt 0) again until 2026-01-01T12:00:01Z: failed once: no space left
         look again at 2026-01-01T12:00:01Z",
    );
    failed(2).expect("retire web/0 a0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)");
}

#[test]
fn a_runtime_that_does_not_answer_is_not_an_empty_one() {
    web('a', 3, "").unreachable(RuntimeKind::Docker).expect("wait for docker to answer: connection refused");
    web('b', 1, "")
        .unreachable(RuntimeKind::Docker)
        .with(all_up(0..3, 'a'))
        .expect("wait for docker to answer: connection refused");
    Snapshot::undeclared(Fate::Removed)
        .unreachable(RuntimeKind::Docker)
        .sharing(RuntimeKind::Docker)
        .expect("wait for docker to answer: connection refused");
}

#[test]
fn nothing_is_planned_on_a_runtime_that_is_absent() {
    web('a', 3, "").absent(RuntimeKind::Docker).expect("run nothing on docker: there is none here");
    web('b', 1, "").absent(RuntimeKind::Sandbox).expect("launch web/0 b0: missing, 1 replica wanted");
}

#[test]
fn nothing_moves_to_a_new_runtime_while_the_old_one_does_not_answer() {
    for strategy in ["rolling", "recreate"] {
        let fields = format!("rollout: {{strategy: {strategy}, max_surge: 1}}");
        web('a', 2, &fields)
            .runs_on("web", RuntimeKind::Sandbox)
            .unreachable(RuntimeKind::Docker)
            .with([up(0, 'a')])
            .planned()
            .lines()
            .for_each(|line| assert!(line.starts_with("wait for "), "{line}"));
        // Nor is the old one given up for a new one that can't be made.
        web('a', 2, &fields)
            .runs_on("web", RuntimeKind::Sandbox)
            .unreachable(RuntimeKind::Sandbox)
            .with(all_up(0..2, 'a'))
            .planned()
            .lines()
            .for_each(|line| assert!(line.starts_with("wait for "), "{line}"));
    }
}

#[test]
fn other_runtimes_do_not_matter() {
    web('a', 1, "").unreachable(RuntimeKind::Kubernetes).expect("launch web/0 a0: missing, 1 replica wanted");
    Snapshot::undeclared(Fate::Removed)
        .unreachable(RuntimeKind::Docker)
        .with([up(0, 'a'), up(1, 'a').on(RuntimeKind::Sandbox)])
        .expect(
            "retire web/1 a0 on sandbox: deployment is not declared any more
             wait for docker to answer: connection refused",
        );
}
