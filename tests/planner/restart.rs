//! What follows an exit.

use std::time::Duration;

use evenkeel::plan::{RESTART_DELAY, RESTART_DELAY_MAX, backoff};
use evenkeel::spec::RuntimeKind;
use evenkeel::state::{Exit, Instance, Phase, StopCause};

use super::dsl::{Change, Snapshot, ago, all_up, up};

fn web(fields: &str) -> Snapshot {
    Snapshot::declared().service("web", 'a', 1, fields)
}

/// A run that crashed, as one of a series.
fn crashed(attempt: u32) -> Instance {
    up(0, 'a').attempt(attempt).restarted(attempt, attempt).exited(1, 5, 100 - i64::from(attempt))
}

#[test]
fn the_first_restart_is_immediate() {
    web("")
        .with([up(0, 'a').exited(1, 5, 0)])
        .expect("launch (restarts 1, streak 1) web/0 a1: exited 1, restart 1 in a row");
    web("")
        .with([up(0, 'a').exited(0, 5, 0)])
        .expect("launch (restarts 1, streak 1) web/0 a1: exited 0, restart 1 in a row");
}

#[test]
fn the_second_restart_waits_ten_seconds() {
    let dead = |ago| up(0, 'a').attempt(1).restarted(1, 1).exited(137, 5, ago);
    web("").with([dead(9)]).expect(
        "wait to restart demo/web/0 (aaaaaaaa, attempt 1) until 2026-01-01T12:00:01Z: killed by SIGKILL
         look again at 2026-01-01T12:00:01Z",
    );
    web("").with([dead(11)]).expect("launch (restarts 2, streak 2) web/0 a2: killed by SIGKILL, restart 2 in a row");
}

#[test]
fn time_for_which_it_was_frozen_does_not_make_a_run_stable() {
    let dead = |frozen| {
        let dead = up(0, 'a').attempt(1).restarted(1, 1).exited(137, 620, 9);
        dead.change(|instance| instance.frozen.so_far = Duration::from_secs(frozen))
    };
    web("").with([dead(0)]).expect("launch (restarts 2, streak 1) web/0 a2: killed by SIGKILL, restart 1 in a row");
    web("").with([dead(20)]).expect("launch (restarts 2, streak 1) web/0 a2: killed by SIGKILL, restart 1 in a row");
    web("").with([dead(21)]).expect(
        "wait to restart demo/web/0 (aaaaaaaa, attempt 1) until 2026-01-01T12:00:01Z: killed by SIGKILL
         look again at 2026-01-01T12:00:01Z",
    );
}

#[test]
fn an_exit_that_lies_further_ahead_than_clocks_differ_is_past() {
    let dead = |ago| up(0, 'a').attempt(1).restarted(1, 1).exited(137, 5, ago);
    web("").with([dead(-60)]).expect(
        "wait to restart demo/web/0 (aaaaaaaa, attempt 1) until 2026-01-01T12:01:10Z: killed by SIGKILL
         look again at 2026-01-01T12:01:10Z",
    );
    web("").with([dead(-61)]).expect("launch (restarts 2, streak 2) web/0 a2: killed by SIGKILL, restart 2 in a row");
}

#[test]
fn the_wait_doubles_to_five_minutes_and_is_spread() {
    for (streak, seconds) in [(1, 10), (2, 20), (3, 40), (4, 80), (5, 160), (6, 300), (40, 300)] {
        let dead = up(0, 'a').attempt(streak).restarted(streak, streak).exited(1, 5, 0);
        let name = dead.id.runtime_name();
        let wait = backoff(RESTART_DELAY, RESTART_DELAY_MAX, streak, &name);
        assert!((seconds..=seconds + seconds / 10).contains(&wait.as_secs()), "{streak}: {wait:?}");
        let plan = web("").with([dead]).plan();
        assert!(plan.is_empty());
        assert_eq!(plan.next_look, Some(ago(0) + wait));
    }
}

#[test]
fn ten_minutes_of_running_end_the_series() {
    web("")
        .with([up(0, 'a').attempt(9).restarted(9, 9).exited(1, 600, 0)])
        .expect("launch (restarts 10, streak 1) web/0 a10: exited 1, restart 1 in a row");
    web("").with([up(0, 'a').attempt(9).restarted(9, 1).exited(1, 599, 0)]).expect(
        "wait to restart demo/web/0 (aaaaaaaa, attempt 9) until 2026-01-01T12:00:10Z: exited 1
         look again at 2026-01-01T12:00:10Z",
    );
}

#[test]
fn the_delay_of_the_policy_is_the_first_wait() {
    let dead = up(0, 'a').attempt(1).restarted(1, 1);
    web("restart_policy: {kind: always, delay: 1s}")
        .with([dead.clone().exited(1, 5, 2)])
        .expect("launch (restarts 2, streak 2) web/0 a2: exited 1, restart 2 in a row");
    let slow = web("restart_policy: {kind: always, delay: 20m}").with([dead.exited(1, 5, 1100)]).plan();
    assert!(slow.is_empty(), "a delay beyond the usual longest wait counts as written: {slow}");
}

#[test]
fn without_a_delay_the_waits_begin_short_and_grow_all_the_same() {
    for fields in ["restart_policy: {kind: always, delay: 0s}", "restart_policy: {kind: always, delay: 1ms}"] {
        for (streak, millis) in [(1, 100), (2, 200), (5, 1_600), (40, 300_000)] {
            let plan = web(fields).with([up(0, 'a').attempt(streak).restarted(streak, streak).exited(1, 5, 0)]).plan();
            assert!(plan.is_empty(), "{streak}: {plan}");
            let wait = plan.next_look.map(|at| (at - ago(0)).num_milliseconds()).unwrap_or_default();
            assert!((millis..=millis + millis / 10).contains(&wait), "{streak}: {wait}");
        }
    }
}

#[test]
fn a_new_template_is_not_held_back_by_the_crashes_of_the_old_one() {
    Snapshot::declared()
        .service("web", 'b', 1, "")
        .with([up(0, 'a').attempt(4).restarted(4, 4).exited(1, 1, 0)])
        .expect("launch web/0 b0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)");
}

#[test]
fn policies_decide_which_exits_are_followed_by_a_restart() {
    let ended = |code| up(0, 'a').exited(code, 5, 0);
    let restart = |code: i32| format!("launch (restarts 1, streak 1) web/0 a1: exited {code}, restart 1 in a row");
    let stays = |code: i32| {
        format!("keep demo/web/0 (aaaaaaaa, attempt 0) down: exited {code}, and restart_policy starts no other")
    };
    for (kind, after_success, after_failure) in [
        ("no", stays(0), stays(1)),
        ("always", restart(0), restart(1)),
        ("unless_stopped", restart(0), restart(1)),
        ("on_failure", stays(0), restart(1)),
    ] {
        let fields = format!("restart_policy: {{kind: {kind}}}");
        web(&fields).with([ended(0)]).expect(&after_success);
        web(&fields).with([ended(1)]).expect(&after_failure);
    }
}

#[test]
fn a_final_exit_code_is_followed_by_no_restart() {
    let policy = |kind| format!("restart_policy: {{kind: {kind}, final_exit_codes: [64, 78]}}");
    for kind in ["always", "unless_stopped", "on_failure"] {
        let down =
            "keep demo/web/0 (aaaaaaaa, attempt 0) down: exited 78, which is one of restart_policy.final_exit_codes";
        web(&policy(kind)).with([up(0, 'a').exited(78, 5, 0)]).expect(down);
        web(&policy(kind))
            .with([up(0, 'a').exited(1, 5, 0)])
            .expect("launch (restarts 1, streak 1) web/0 a1: exited 1, restart 1 in a row");
    }
    // What a stop of ours ended so did not choose its code.
    web(&policy("always"))
        .with([up(0, 'a').exited(78, 5, 0).by(StopCause::Unhealthy)])
        .expect("launch (restarts 1, streak 1) web/0 a1: unhealthy, restart 1 in a row");
}

#[test]
fn a_process_that_could_not_be_run_counts_as_a_failure() {
    let dead = up(0, 'a').phase(Phase::Exited(Exit::runtime_error("no such file", ago(0))));
    web("restart_policy: {kind: on_failure}")
        .with([dead])
        .expect("launch (restarts 1, streak 1) web/0 a1: could not run: no such file, restart 1 in a row");
}

#[test]
fn max_attempts_gives_up_after_that_many_restarts_in_a_row() {
    let fields = "restart_policy: {kind: always, max_attempts: 2}";
    web(fields)
        .with([up(0, 'a').attempt(1).restarted(1, 1).exited(1, 5, 60)])
        .expect("launch (restarts 2, streak 2) web/0 a2: exited 1, restart 2 in a row");
    web(fields)
        .with([up(0, 'a').attempt(2).restarted(2, 2).exited(1, 5, 60)])
        .expect("keep demo/web/0 (aaaaaaaa, attempt 2) down: exited 1, and restart_policy.max_attempts is reached");
    web(fields)
        .with([up(0, 'a').attempt(2).restarted(2, 2).exited(1, 600, 0)])
        .expect("launch (restarts 3, streak 1) web/0 a3: exited 1, restart 1 in a row");
}

#[test]
fn isolate_keeps_the_crashed_one_and_goes_on_with_the_others() {
    let fields = "errors: {on_panic: {action: isolate}}";
    Snapshot::declared().service("web", 'a', 2, fields).with([up(0, 'a').exited(139, 5, 60)]).expect(
        "launch web/1 a0: missing, 2 replicas wanted
         keep demo/web/0 (aaaaaaaa, attempt 0) for inspection: killed by SIGSEGV, and errors.on_panic is isolate",
    );
    web(fields)
        .with([up(0, 'a').exited(0, 5, 0)])
        .expect("launch (restarts 1, streak 1) web/0 a1: exited 0, restart 1 in a row");
}

#[test]
fn shutdown_takes_the_whole_service_down_until_its_template_changes() {
    let fields = "errors: {on_panic: {action: shutdown}}";
    let observed = || [up(0, 'a'), up(1, 'a').exited(1, 5, 0), up(2, 'a')];
    Snapshot::declared().service("web", 'a', 3, fields).with(observed()).expect(
        "retire web/0 a0: exited 1, and errors.on_panic is shutdown
         retire web/2 a0: exited 1, and errors.on_panic is shutdown
         keep the service of demo/web/1 (aaaaaaaa, attempt 0) down: exited 1, and errors.on_panic is shutdown",
    );
    Snapshot::declared()
        .service("web", 'a', 3, fields)
        .with([up(1, 'a').exited(1, 5, 60)])
        .expect("keep the service of demo/web/1 (aaaaaaaa, attempt 0) down: exited 1, and errors.on_panic is shutdown");
    Snapshot::declared().service("web", 'b', 2, fields).with([up(1, 'a').exited(1, 5, 60)]).expect(
        "launch web/0 b0: missing, 2 replicas wanted
         launch web/1 b0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)",
    );
}

#[test]
fn a_retirement_that_was_cut_off_is_finished() {
    let retired = || up(0, 'a').exited(143, 60, 5).by(StopCause::Retired);
    web("").with([retired()]).expect(
        "remove web/0 a0: dead, and no longer needed for its output
         launch web/0 a1: missing, 1 replica wanted",
    );
    Snapshot::declared()
        .service("web", 'b', 1, "")
        .with([retired(), up(0, 'b')])
        .expect("remove web/0 a0: dead, and no longer needed for its output");
}

#[test]
fn what_somebody_else_stopped_is_replaced_at_once_whatever_the_policy_and_counts_as_no_crash() {
    let stopped = |code| up(0, 'a').restarted(4, 4).exited(code, 60, 1).by(StopCause::Others);
    for (fields, code) in [
        ("", 143),
        ("restart_policy: {kind: on_failure}", 0),
        ("restart_policy: {kind: 'no'}", 143),
        ("restart_policy: {max_attempts: 1}", 143),
        ("restart_policy: {final_exit_codes: [143]}", 143),
        ("errors: {on_panic: {action: isolate}}", 1),
        ("errors: {on_panic: {action: shutdown}}", 1),
    ] {
        let how = if code == 143 { "killed by SIGTERM".to_owned() } else { format!("exited {code}") };
        let launch = format!("launch (restarts 4, streak 4) web/0 a1: stopped by somebody else: {how}");
        web(fields).with([stopped(code)]).expect(&launch);
    }
    web("").with([up(0, 'a').exited(0, 60, 0).by(StopCause::Others)]).expect(
        "wait to restart demo/web/0 (aaaaaaaa, attempt 0) until 2026-01-01T12:00:01Z: exited 0
         look again at 2026-01-01T12:00:01Z",
    );
}

#[test]
fn beside_a_run_only_the_one_before_it_is_kept() {
    web("").with([crashed(0), crashed(1), crashed(2), up(0, 'a').attempt(3).restarted(3, 3)]).expect(
        "remove web/0 a0: dead, and no longer needed for its output
         remove web/0 a1: dead, and no longer needed for its output",
    );
}

#[test]
fn in_a_back_off_the_last_run_and_the_one_before_it_are_kept() {
    let waits = "wait to restart demo/web/0 (aaaaaaaa, attempt 9) until 2026-01-01T12:03:42Z: exited 1
         look again at 2026-01-01T12:03:42Z";
    web("").with([crashed(8), crashed(9)]).expect(waits);
    let superseded = "remove web/0 a7: dead, and no longer needed for its output";
    web("").with([crashed(8), crashed(7), crashed(9)]).expect(&format!("{superseded}\n{waits}"));
}

#[test]
fn both_are_kept_until_the_next_run_is_one() {
    let dead = || [crashed(0), crashed(1)];
    for phase in [Phase::Pending, Phase::Created] {
        let plan = web("").with(dead()).with([up(0, 'a').attempt(2).restarted(2, 2).phase(phase.clone())]).plan();
        assert!(!plan.to_string().contains("remove"), "{phase:?}: {plan}");
    }
    web("").with(dead()).with([up(0, 'a').attempt(2).restarted(2, 2).unready()]).expect(
        "remove web/0 a0: dead, and no longer needed for its output
             wait for demo/web/0 (aaaaaaaa, attempt 2) to become ready",
    );
}

#[test]
fn a_slot_that_stays_down_keeps_its_last_two_runs() {
    let fields = "restart_policy: {kind: on_failure}";
    web(fields).with([crashed(0), crashed(1), up(0, 'a').attempt(2).exited(0, 5, 60)]).expect(
        "remove web/0 a0: dead, and no longer needed for its output
             keep demo/web/0 (aaaaaaaa, attempt 2) down: exited 0, and restart_policy starts no other",
    );
}

#[test]
fn the_memory_of_the_template_is_kept_where_others_ended_later() {
    // Declared again after two others that crashed: the first one's end still counts.
    let fields = "restart_policy: {kind: 'no'}";
    let other = |letter, ago| up(0, letter).exited(1, 5, ago).change(|one| one.created_at = super::dsl::ago(ago + 5));
    web(fields).with([up(0, 'a').exited(1, 5, 900), other('b', 500), other('c', 300)]).expect(
        "remove web/0 b0: dead, and no longer needed for its output
         keep demo/web/0 (aaaaaaaa, attempt 0) down: exited 1, and restart_policy starts no other",
    );
}

#[test]
fn the_dead_of_another_template_stays_until_its_successor_is_ready() {
    let dead = || up(0, 'a').exited(1, 5, 100);
    let rolled = || Snapshot::declared().service("web", 'b', 1, "");
    rolled().with([dead(), up(0, 'b').unready()]).expect("wait for demo/web/0 (bbbbbbbb, attempt 0) to become ready");
    rolled().with([dead(), up(0, 'b')]).expect("remove web/0 a0: dead, and no longer needed for its output");
    // Templates that crashed one after the other don't pile up.
    let later = up(0, 'b').exited(1, 5, 50).change(|one| one.created_at = ago(55));
    Snapshot::declared().service("web", 'c', 1, "").with([dead(), later, up(0, 'c').unready()]).expect(
        "remove web/0 a0: dead, and no longer needed for its output
             wait for demo/web/0 (cccccccc, attempt 0) to become ready",
    );
}

#[test]
fn delete_on_exit_removes_the_dead_as_soon_as_another_runs() {
    let fields = "lifecycle: {delete_on_exit: true}";
    let dead = || up(0, 'a').exited(1, 5, 100);
    web(fields).with([dead(), up(0, 'a').attempt(1).unready()]).expect(
        "remove web/0 a0: ended, and lifecycle.delete_on_exit is true
             wait for demo/web/0 (aaaaaaaa, attempt 1) to become ready",
    );
    web(fields).with([dead()]).expect("launch (restarts 1, streak 1) web/0 a1: exited 1, restart 1 in a row");
    // Without the dead one the slot would look empty, and be filled again.
    web(&format!("{fields}\nrestart_policy: {{kind: 'no'}}"))
        .with([dead()])
        .expect("keep demo/web/0 (aaaaaaaa, attempt 0) down: exited 1, and restart_policy starts no other");
}

#[test]
fn an_instance_that_was_removed_behind_our_back_is_replaced_at_once() {
    Snapshot::declared()
        .service("web", 'a', 3, "")
        .with([up(0, 'a'), up(2, 'a')])
        .expect("launch web/1 a0: missing, 3 replicas wanted");
}

#[test]
fn a_death_on_the_runtime_that_the_service_left_says_nothing() {
    web("restart_policy: {kind: 'no'}")
        .with([up(0, 'a').restarted(4, 2).exited(1, 5, 1)])
        .runs_on("web", RuntimeKind::Sandbox)
        .expect("launch (restarts 4, streak 0) web/0 a1 on sandbox: runtime changed from docker to sandbox");
}

#[test]
fn a_new_instance_that_ended_well_takes_the_place_of_no_old_one() {
    let fields = "rollout: {max_surge: 1, max_unavailable: 1}\nrestart_policy: {kind: on_failure}";
    Snapshot::declared()
        .service("web", 'b', 3, fields)
        .with(all_up(0..3, 'a'))
        .with([up(0, 'b').exited(0, 1, 0)])
        .expect("keep demo/web/0 (bbbbbbbb, attempt 0) down: exited 0, and restart_policy starts no other");
}

#[test]
fn replicas_that_ended_well_do_not_hold_up_a_rollout() {
    let fields = "rollout: {max_surge: 1, max_unavailable: 0}\nrestart_policy: {kind: on_failure}";
    let ended = |code| up(0, 'b').exited(code, 5, 60);
    Snapshot::declared().service("web", 'b', 3, fields).with(all_up(1..3, 'b')).with([ended(0), up(2, 'a')]).expect(
        "retire web/2 a0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
         keep demo/web/0 (bbbbbbbb, attempt 0) down: exited 0, and restart_policy starts no other",
    );
}
