//! Slots are filled, thinned out and rolled within the bounds.

use chrono::TimeDelta;
use evenkeel::spec::RuntimeKind;
use evenkeel::state::{HealthState, Instance, NOT_CHECKED, Phase};

use super::dsl::{Change, Snapshot, ago, all_up, now, up};

fn web(letter: char, replicas: u32, fields: &str) -> Snapshot {
    Snapshot::declared().service("web", letter, replicas, fields)
}

const SURGE_ONE: &str = "rollout: {max_surge: 1, max_unavailable: 0}";
const STOP_FIRST: &str = "rollout: {max_surge: 0, max_unavailable: 1}";
const RECREATE: &str = "rollout: {strategy: recreate}";

#[test]
fn missing_slots_are_launched_at_once() {
    web('a', 3, "").with([up(1, 'a')]).expect(
        "launch web/0 a0: missing, 3 replicas wanted
         launch web/2 a0: missing, 3 replicas wanted",
    );
}

#[test]
fn scale_down_retires_the_highest_slots() {
    web('a', 2, "").with(all_up(0..5, 'a')).expect(
        "retire web/2 a0: scaled down to 2 replicas
         retire web/3 a0: scaled down to 2 replicas
         retire web/4 a0: scaled down to 2 replicas",
    );
}

#[test]
fn scale_to_zero_retires_everything_and_removes_the_dead() {
    web('a', 0, "").with([up(0, 'a'), up(1, 'a').exited(1, 5, 100), up(2, 'a').phase(Phase::Created)]).expect(
        "retire web/0 a0: scaled down to 0 replicas
         remove web/1 a0: scaled down to 0 replicas
         remove web/2 a0: scaled down to 0 replicas",
    );
}

#[test]
fn an_available_surplus_stands_in_for_slots_that_are_coming_up() {
    web('a', 2, SURGE_ONE).with([up(0, 'a').unready(), up(1, 'a'), up(2, 'a'), up(3, 'a')]).expect(
        "retire web/3 a0: scaled down to 2 replicas
         wait for demo/web/0 (aaaaaaaa, attempt 0) to become ready",
    );
    // A slot that waits for its back-off may take for ever, so it holds nothing back.
    web('a', 2, SURGE_ONE).with([up(0, 'a').restarted(3, 3).exited(1, 5, 1), up(1, 'a'), up(2, 'a')]).expect(
        "retire web/2 a0: scaled down to 2 replicas
         wait to restart demo/web/0 (aaaaaaaa, attempt 0) until 2026-01-01T12:00:40Z: exited 1
         look again at 2026-01-01T12:00:40Z",
    );
}

#[test]
fn surge_comes_first_where_nothing_may_be_unavailable() {
    web('b', 3, SURGE_ONE)
        .with(all_up(0..3, 'a'))
        .expect("launch web/0 b0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)");
    web('b', 3, SURGE_ONE)
        .with(all_up(0..3, 'a'))
        .with([up(0, 'b').unready()])
        .expect("wait for demo/web/0 (bbbbbbbb, attempt 0) to become ready");
    web('b', 3, SURGE_ONE)
        .with(all_up(0..3, 'a'))
        .with([up(0, 'b')])
        .expect("retire web/0 a0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)");
    web('b', 3, SURGE_ONE)
        .with(all_up(1..3, 'a'))
        .with([up(0, 'b')])
        .expect("launch web/1 b0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)");
    web('b', 3, SURGE_ONE).with(all_up(0..3, 'b')).expect("");
}

#[test]
fn what_crashes_takes_no_more_than_was_begun_with_it() {
    // With a place to spare and one that may be missing: the first new one and the first old one went together.
    let begun = || web('b', 4, "").with(all_up(1..4, 'a'));
    begun().with([up(0, 'b').exited(1, 5, 0)]).expect(
        "launch (restarts 1, streak 1) web/0 b1: exited 1, restart 1 in a row
         launch web/1 b0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)",
    );
    // The next try runs, and does not count before it has run for a while.
    begun().with([up(0, 'b').restarted(1, 1).since(5)]).expect(
        "launch web/1 b0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
         wait for demo/web/0 (bbbbbbbb, attempt 0) to stay ready until 2026-01-01T12:00:05Z
         look again at 2026-01-01T12:00:05Z",
    );
    // What is ready and has its successor goes all the same.
    begun().with([up(0, 'b').restarted(1, 1).exited(1, 5, 1), up(1, 'b')]).expect(
        "retire web/1 a0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
         wait to restart demo/web/0 (bbbbbbbb, attempt 0) until 2026-01-01T12:00:09Z: exited 1
         look again at 2026-01-01T12:00:09Z",
    );
}

#[test]
fn the_old_one_goes_first_where_nothing_may_surge() {
    web('b', 3, STOP_FIRST)
        .with(all_up(0..3, 'a'))
        .expect("retire web/0 a0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)");
    web('b', 3, STOP_FIRST)
        .with(all_up(1..3, 'a'))
        .with([up(0, 'a').phase(Phase::Stopping)])
        .expect("wait for the step under way for demo/web/0 (aaaaaaaa, attempt 0)");
    web('b', 3, STOP_FIRST).with(all_up(1..3, 'a')).expect("launch web/0 b0: missing, 3 replicas wanted");
}

#[test]
fn surge_and_unavailability_are_used_at_the_same_time() {
    web('b', 4, "").with(all_up(0..4, 'a')).expect(
        "retire web/0 a0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
         launch web/0 b0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)",
    );
}

#[test]
fn the_unready_and_the_dead_are_replaced_first() {
    web('b', 4, SURGE_ONE).with([up(0, 'a'), up(1, 'a'), up(2, 'a').unready(), up(3, 'a').exited(1, 5, 100)]).expect(
        "launch web/2 b0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
             launch web/3 b0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)",
    );
    web('b', 4, "").with([up(0, 'a'), up(1, 'a'), up(2, 'a'), up(3, 'a').unready()]).expect(
        "retire web/3 a0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
             launch web/3 b0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)",
    );
}

#[test]
fn old_instances_whose_readiness_nobody_has_probed_yet_are_not_swept_away() {
    // All of them look unready right after the controller's start.
    web('b', 4, "").with(all_up(0..4, 'a').map(Change::unready)).expect(
        "retire web/0 a0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
         launch web/0 b0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)",
    );
    web('b', 4, SURGE_ONE)
        .with(all_up(0..4, 'a').map(Change::unready))
        .expect("launch web/0 b0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)");
}

#[test]
fn a_newer_template_pre_empts_a_stuck_rollout() {
    web('c', 3, SURGE_ONE)
        .with(all_up(0..3, 'a'))
        .with([up(0, 'b').unready()])
        .expect("retire web/0 b0: template changed at demo.yaml:3 (bbbbbbbb to cccccccc)");
    web('c', 3, SURGE_ONE)
        .with(all_up(0..3, 'a'))
        .with([up(0, 'b').exited(1, 1, 5)])
        .expect("launch web/0 c0: template changed at demo.yaml:3 (aaaaaaaa to cccccccc)");
}

#[test]
fn going_back_to_the_old_template_keeps_what_still_runs_it() {
    web('a', 3, SURGE_ONE)
        .with(all_up(0..3, 'a'))
        .with([up(0, 'b').unready()])
        .expect("retire web/0 b0: template changed at demo.yaml:3 (bbbbbbbb to aaaaaaaa)");
}

#[test]
fn scale_and_template_changed_together() {
    // Up: the new slots are filled from the new template while the old ones roll.
    web('b', 5, SURGE_ONE).with(all_up(0..3, 'a')).expect(
        "launch web/0 b0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
         launch web/3 b0: missing, 5 replicas wanted
         launch web/4 b0: missing, 5 replicas wanted",
    );
    // Down: what is too much goes at once, and its place is free only when it has gone.
    web('b', 2, SURGE_ONE).with(all_up(0..4, 'a')).expect(
        "retire web/2 a0: scaled down to 2 replicas
         retire web/3 a0: scaled down to 2 replicas",
    );
}

#[test]
fn recreate_drains_everything_before_the_first_new_one() {
    web('b', 3, RECREATE).with(all_up(0..3, 'a')).expect(
        "retire web/0 a0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
         retire web/1 a0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
         retire web/2 a0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
         wait for the old instances of web to end: rollout.strategy is recreate",
    );
    web('b', 3, RECREATE).with([up(2, 'a').phase(Phase::Stopping)]).expect(
        "wait for the step under way for demo/web/2 (aaaaaaaa, attempt 0)
         wait for the old instances of web to end: rollout.strategy is recreate",
    );
    web('b', 3, RECREATE).with([up(2, 'a').exited(0, 5, 1)]).expect(
        "launch web/0 b0: missing, 3 replicas wanted
         launch web/1 b0: missing, 3 replicas wanted
         launch web/2 b0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)",
    );
}

#[test]
fn min_ready_delays_the_rollout_and_says_until_when() {
    let rollout = "rollout: {max_surge: 1, max_unavailable: 0, min_ready: 30s}";
    web('b', 2, rollout).with(all_up(0..2, 'a')).with([up(0, 'b').since(10)]).expect(
        "wait for demo/web/0 (bbbbbbbb, attempt 0) to stay ready until 2026-01-01T12:00:20Z
         look again at 2026-01-01T12:00:20Z",
    );
    web('b', 2, rollout)
        .with(all_up(0..2, 'a'))
        .with([up(0, 'b').since(30)])
        .expect("retire web/0 a0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)");
}

#[test]
fn min_ready_is_waited_for_without_a_rollout_too() {
    web('a', 1, "rollout: {min_ready: 30s}").with([up(0, 'a').since(10)]).expect(
        "wait for demo/web/0 (aaaaaaaa, attempt 0) to stay ready until 2026-01-01T12:00:20Z
         look again at 2026-01-01T12:00:20Z",
    );
    web('a', 1, "rollout: {min_ready: 30s}").with([up(0, 'a').since(30)]).expect("");
}

#[test]
fn the_old_one_goes_first_where_a_port_of_the_machine_is_held() {
    let port = "port_mappings: [{container_port: 80, host_port: 8080}]";
    web('b', 1, port)
        .with([up(0, 'a')])
        .expect("retire web/0 a0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)");
    let any = "port_mappings: [{container_port: 80, host_port: 0}]";
    web('b', 1, any)
        .with([up(0, 'a')])
        .expect("launch web/0 b0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)");
    web('b', 1, port)
        .with([up(0, 'a').exited(0, 5, 1)])
        .expect("launch web/0 b0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)");
}

#[test]
fn the_old_one_goes_first_where_a_volume_has_one_writer() {
    let volume = "storage: [{type: named, name: db, target: /data}]";
    let changed = "web/0 {}: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)";
    let (retire, launch) =
        (format!("retire {}", changed.replace("{}", "a0")), format!("launch {}", changed.replace("{}", "b0")));
    web('b', 1, volume).with([up(0, 'a')]).expect(&retire);
    // Nothing is made beside one that still writes.
    let stopping = up(0, 'a').change(|one| one.phase = evenkeel::state::Phase::Stopping);
    assert!(!web('b', 1, volume).with([stopping]).planned().contains("launch"));
    web('b', 1, volume).with([up(0, 'a').exited(0, 5, 1)]).expect(&launch);
    web('b', 1, &format!("{volume}\nrollout: {{max_surge: 1}}")).with([up(0, 'a')]).expect(&launch);
}

#[test]
fn a_crash_loop_that_is_ready_for_an_instant_does_not_advance_a_rollout() {
    let crashed = || up(0, 'b').exited(1, 2, 13);
    let again = || up(0, 'b').attempt(1).restarted(1, 1);
    web('b', 2, SURGE_ONE).with(all_up(0..2, 'a')).with([crashed(), again().since(4)]).expect(
        "wait for demo/web/0 (bbbbbbbb, attempt 1) to stay ready until 2026-01-01T12:00:06Z
         look again at 2026-01-01T12:00:06Z",
    );
    web('b', 2, SURGE_ONE)
        .with(all_up(0..2, 'a'))
        .with([crashed(), again().since(10)])
        .expect("retire web/0 a0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)");
}

#[test]
fn a_crashed_new_instance_waits_for_its_back_off_beside_the_old_one() {
    web('b', 2, SURGE_ONE)
        .with(all_up(0..2, 'a'))
        .with([up(0, 'b').attempt(1).restarted(1, 1).exited(1, 2, 1)])
        .expect(
            "wait to restart demo/web/0 (bbbbbbbb, attempt 1) until 2026-01-01T12:00:09Z: exited 1
             look again at 2026-01-01T12:00:09Z",
        );
}

#[test]
fn a_service_moves_to_another_runtime_like_a_rollout() {
    web('a', 2, SURGE_ONE)
        .with(all_up(0..2, 'a'))
        .runs_on("web", RuntimeKind::Sandbox)
        .expect("launch web/0 a1 on sandbox: runtime changed from docker to sandbox");
    web('a', 2, SURGE_ONE)
        .with(all_up(0..2, 'a'))
        .with([up(0, 'a').attempt(1).on(RuntimeKind::Sandbox)])
        .runs_on("web", RuntimeKind::Sandbox)
        .expect("retire web/0 a0: runtime changed from docker to sandbox");
}

#[test]
fn an_instance_whose_template_has_another_revision_on_its_runtime_stays_and_is_remembered() {
    let written_down = || web('b', 2, SURGE_ONE).equivalent_to("web", 'a');
    written_down().with(all_up(0..2, 'a')).expect("");
    written_down()
        .with(all_up(0..2, 'c'))
        .expect("launch web/0 b0: template changed at demo.yaml:3 (cccccccc to bbbbbbbb)");
    written_down().with([up(0, 'a'), up(1, 'a').restarted(1, 1).exited(1, 2, 1)]).expect(
        "wait to restart demo/web/1 (aaaaaaaa, attempt 0) until 2026-01-01T12:00:09Z: exited 1
         look again at 2026-01-01T12:00:09Z",
    );
    written_down()
        .with(all_up(0..2, 'a'))
        .runs_on("web", RuntimeKind::Sandbox)
        .expect("launch web/0 b1 on sandbox: runtime changed from docker to sandbox");
}

#[test]
fn of_two_that_hold_a_slot_the_ready_one_stays() {
    web('a', 1, "")
        .with([up(0, 'a'), up(0, 'a').attempt(1).unready()])
        .expect("retire web/0 a1: another instance holds its slot");
    web('a', 1, "")
        .with([up(0, 'a'), up(0, 'a').attempt(1)])
        .expect("retire web/0 a0: another instance holds its slot");
    web('a', 1, "").with([up(0, 'a').phase(Phase::Created), up(0, 'a').attempt(1).unready()]).expect(
        "remove web/0 a0: another instance holds its slot
             wait for demo/web/0 (aaaaaaaa, attempt 1) to become ready",
    );
    let strange = Phase::Unknown { message: "restarting".into() };
    web('a', 1, "").with([up(0, 'a').unready(), up(0, 'a').attempt(1).phase(strange)]).expect(
        "retire web/0 a1: another instance holds its slot
             wait for demo/web/0 (aaaaaaaa, attempt 0) to become ready",
    );
}

#[test]
fn a_double_that_is_the_last_available_one_stays_until_another_is() {
    web('a', 2, SURGE_ONE)
        .with([up(0, 'a'), up(0, 'a').attempt(1), up(1, 'a').unready()])
        .expect("wait for demo/web/1 (aaaaaaaa, attempt 0) to become ready");
}

#[test]
fn what_was_created_and_never_started_is_started() {
    web('a', 1, "").with([up(0, 'a').phase(Phase::Created)]).expect("start web/0 a0: created and never started");
    web('b', 1, "").with([up(0, 'a').phase(Phase::Created)]).expect(
        "remove web/0 a0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
         launch web/0 b0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)",
    );
}

#[test]
fn a_paused_instance_is_resumed_and_not_replaced() {
    let paused = || up(0, 'a').phase(Phase::Paused { since: ago(60) });
    let resume = "resume web/0 a0: paused by somebody else
                  wait for demo/web/0 (aaaaaaaa, attempt 0) to run on: paused by somebody else";
    web('a', 1, "").with([paused()]).expect(resume);
    web('a', 1, "rollout: {strategy: recreate}").with([paused()]).expect(resume);
    // It goes on with its run where another one was begun in its place.
    web('a', 1, "").with([paused(), up(0, 'a').attempt(1).phase(Phase::Created)]).expect(&format!(
        "{}
         remove web/0 a1: another instance holds its slot
         {}",
        resume.lines().next().unwrap(),
        resume.lines().nth(1).unwrap(),
    ));
    web('a', 1, "").with([paused(), up(0, 'a').attempt(1)]).expect("retire web/0 a0: another instance holds its slot");
    web('b', 1, "").with([paused()]).expect(
        "retire web/0 a0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
         launch web/0 b0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)",
    );
    web('a', 0, "").with([paused()]).expect("retire web/0 a0: scaled down to 0 replicas");
}

#[test]
fn a_paused_instance_does_not_count_as_available() {
    let paused = up(0, 'a').phase(Phase::Paused { since: ago(60) });
    web('b', 2, "rollout: {max_surge: 1, max_unavailable: 1}").with([up(1, 'a'), paused.clone()]).expect(
        "retire web/0 a0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)
         launch web/0 b0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)",
    );
    // The surplus stands in until it runs on.
    web('a', 1, "rollout: {max_unavailable: 0}").with([paused, up(1, 'a')]).expect(
        "resume web/0 a0: paused by somebody else
         wait for demo/web/0 (aaaaaaaa, attempt 0) to run on: paused by somebody else",
    );
}

#[test]
fn a_resume_that_failed_is_tried_again_later() {
    let paused = up(0, 'a').phase(Phase::Paused { since: ago(60) });
    web('a', 1, "").with([paused]).failed(0, 'a', 1, 0, true).expect(
        "wait for demo/web/0 (aaaaaaaa, attempt 0) to run on: paused by somebody else
         wait to try demo/web/0 (aaaaaaaa, attempt 0) again until 2026-01-01T12:00:01Z: failed once: no space left
         look again at 2026-01-01T12:00:01Z",
    );
}

#[test]
fn an_unknown_phase_holds_its_slot_and_is_named() {
    let strange = up(0, 'a').phase(Phase::Unknown { message: "restarting".into() });
    web('a', 1, "")
        .with([strange])
        .expect("wait for demo/web/0 (aaaaaaaa, attempt 0) to leave an unknown phase: restarting");
}

#[test]
fn nothing_is_launched_on_a_runtime_that_can_not_run_the_image_and_what_runs_stays() {
    let why = "leave web alone: the docker runtime can't run host; it takes registry references, docker-archive: and \
               oci-archive:, and the sandbox runtime takes the rest (runtime: sandbox)";
    let host = "image: {name: host}";
    web('a', 2, host).expect(why);
    web('a', 1, host)
        .runs_on("web", RuntimeKind::Sandbox)
        .expect("launch web/0 a0 on sandbox: missing, 1 replica wanted");
    web('b', 1, host).with([up(0, 'a')]).expect(why);
}

#[test]
fn a_crashing_template_is_tried_in_no_more_slots_than_surge_has_places() {
    // Its next try is due in a while.
    web('b', 3, SURGE_ONE).with(all_up(0..3, 'a')).with([up(0, 'b').restarted(3, 3).exited(1, 5, 1)]).expect(
        "wait to restart demo/web/0 (bbbbbbbb, attempt 0) until 2026-01-01T12:00:42Z: exited 1
         look again at 2026-01-01T12:00:42Z",
    );
    // The slot that was begun goes on, and no other one begins.
    web('b', 3, SURGE_ONE)
        .with(all_up(0..3, 'a'))
        .with([up(1, 'b').exited(1, 5, 100)])
        .expect("launch (restarts 1, streak 1) web/1 b1: exited 1, restart 1 in a row");
    // Slots in which nothing lives have places of their own.
    web('b', 3, SURGE_ONE).with(all_up(0..2, 'a')).with([up(0, 'b').restarted(3, 3).exited(1, 5, 1)]).expect(
        "launch web/2 b0: missing, 3 replicas wanted
         wait to restart demo/web/0 (bbbbbbbb, attempt 0) until 2026-01-01T12:00:42Z: exited 1
         look again at 2026-01-01T12:00:42Z",
    );
}

#[test]
fn what_nothing_checks_takes_a_place_once_it_has_run_for_a_second() {
    let fields = "rollout: {max_surge: 1, max_unavailable: 0}";
    let rolling = |fields: &str, age| {
        let new = up(0, 'b').phase(Phase::Running { since: now() - TimeDelta::milliseconds(age), ready: true });
        Snapshot::declared().service("web", 'b', 3, fields).with(all_up(0..3, 'a').chain([new]))
    };
    rolling(fields, 999).expect(
        "wait for demo/web/0 (bbbbbbbb, attempt 0) to stay ready until 2026-01-01T12:00:00Z
         look again at 2026-01-01T12:00:00Z",
    );
    let retired = "retire web/0 a0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)";
    rolling(fields, 1_000).expect(retired);
    // A check, or a time of the user's own, says more.
    let checked = "rollout: {max_surge: 1, max_unavailable: 0}\nhealth: {check: {type: tcp, port: 80}}";
    rolling(checked, 0).expect(retired);
    rolling("rollout: {max_surge: 1, max_unavailable: 0, min_ready: 1ms}", 1).expect(retired);
    // What is there for the first time has nobody's place to take.
    let first = Snapshot::declared().service("web", 'b', 1, fields);
    first.with([up(0, 'b').since(0)]).expect("");
}

#[test]
fn a_crash_within_that_second_costs_no_replica() {
    let fields = "rollout: {max_surge: 1, max_unavailable: 0}";
    let crashed = up(0, 'b').exited(1, 0, 0);
    Snapshot::declared()
        .service("web", 'b', 3, fields)
        .with(all_up(0..3, 'a').chain([crashed]))
        .expect("launch (restarts 1, streak 1) web/0 b1: exited 1, restart 1 in a row");
}

#[test]
fn of_what_nobody_has_asked_yet_the_longest_running_stays() {
    let unknown = |one: Instance| one.judged(HealthState::Unknown { why: NOT_CHECKED.to_owned() });
    let checked = "rollout: {max_surge: 1, max_unavailable: 1}\nhealth: {check: {type: tcp, port: 80}}";
    let young = up(1, 'b').since(60);
    let observed = [up(1, 'a').since(600), up(2, 'a').since(600), young].map(unknown);
    let plan = web('c', 3, checked).with(observed).planned();
    let retired: Vec<&str> = plan.lines().filter(|line| line.starts_with("retire")).collect();
    assert_eq!(retired, ["retire web/1 b0: template changed at demo.yaml:3 (bbbbbbbb to cccccccc)"], "{plan}");
}
