//! Rollouts of what is stopped by hand, or at rest for idleness.

use evenkeel::state::{Instance, Phase, StopCause};

use super::{Course, SURGE};
use crate::dsl::{Change, all_up, revision, up};

const SUSPENDS: &str = "lifecycle: {max_idle: 60s, on_idle: suspend}\n\
                        rollout: {max_surge: 1, max_unavailable: 0, progress_deadline: 60s}";

/// All replicas of the revision, frozen for idleness.
fn frozen(letter: char) -> Vec<Instance> {
    all_up(0..3, letter).map(|one| one.phase(Phase::Paused { since: crate::dsl::ago(3_600) })).collect()
}

/// All replicas of the revision, stopped for idleness after a run of that long.
fn idle(letter: char, ran: i64) -> Vec<Instance> {
    all_up(0..3, letter).map(|one| one.exited(0, ran, 0).by(StopCause::Idle)).collect()
}

/// `a` was rolled out and froze, `b` is declared and never becomes ready.
fn stuck_after_a_frozen_one() -> Course {
    let mut course = Course::rolled_out(SUSPENDS);
    course.observe(frozen('a'));
    course.snapshot = course.snapshot.clone().suspended(&frozen('a'));
    assert_eq!(course.turn(), [""; 0]);
    course.declare('b', 3, SUSPENDS);
    assert_eq!(course.turn(), ["RolloutStarted"]);
    course.observe(frozen('a').into_iter().chain([up(0, 'b').unready()]));
    course.wait(3);
    assert_eq!(course.turn(), [""; 0]);
    course
}

#[test]
fn what_is_frozen_for_idleness_is_rolled_out_when_it_is_declared_again() {
    let mut course = stuck_after_a_frozen_one();
    course.declare('a', 3, SUSPENDS);
    assert_eq!(course.turn(), ["RolloutStarted"]);
    course.wait(1);
    course.observe(frozen('a'));
    assert_eq!(course.turn(), ["RolloutComplete"]);
    course.wait(3_600);
    assert_eq!((course.turn(), course.runs().as_str(), course.failure()), (vec![], "a", None));
}

#[test]
fn a_rollback_to_what_is_frozen_for_idleness_is_complete_and_the_next_bad_revision_is_rolled_back_too() {
    let mut course = stuck_after_a_frozen_one();
    for letter in ['b', 'c'] {
        course.wait(60);
        assert_eq!(course.turn(), ["RolledBack", "RolloutStarted"], "{letter}");
        course.wait(1);
        course.observe(frozen('a'));
        assert_eq!(course.turn(), ["RolloutComplete"], "{letter}");
        course.wait(3_600);
        assert_eq!((course.turn(), course.runs().as_str()), (vec![], "a"), "{letter}");
        course.declare('c', 3, SUSPENDS);
        assert_eq!(course.turn().last().copied(), (letter == 'b').then_some("RolloutStarted"), "{letter}");
        course.observe(frozen('a').into_iter().chain([up(0, 'c').unready()]));
    }
}

#[test]
fn what_is_frozen_where_nothing_is_remembered_had_worked() {
    let mut course = Course { snapshot: Course::rolled_out(SUSPENDS).snapshot, memory: Default::default() };
    course.observe(frozen('a'));
    course.snapshot = course.snapshot.clone().suspended(&frozen('a'));
    assert_eq!(course.turn(), ["RolloutComplete"; 0]);
    assert!(course.is_complete());
}

#[test]
fn a_slot_that_is_stopped_by_hand_holds_no_rollout_up() {
    let mut course = Course::rolled_out(SURGE);
    course.declare('b', 3, SURGE);
    assert_eq!(course.turn(), ["RolloutStarted"]);
    course.wait(20);
    course.observe(all_up(0..2, 'b').chain([up(2, 'a')]));
    course.snapshot = course.snapshot.clone().stopped('b', &[2]);
    assert_eq!(course.turn(), [""; 0], "an old one is there");
    course.observe(all_up(0..2, 'b'));
    assert_eq!(course.turn(), ["RolloutComplete"]);
    course.wait(3_600);
    assert_eq!((course.turn(), course.runs().as_str(), course.failure()), (vec![], "b", None));
}

#[test]
fn a_service_that_is_stopped_by_hand_spends_no_time_of_its_rollout_and_is_not_trusted() {
    let mut course = Course::stuck("on_failure: rollback");
    course.wait(40);
    assert_eq!(course.turn(), [""; 0]);
    course.snapshot = course.snapshot.clone().stopped('b', &[]);
    course.observe([]);
    for seconds in [0, 3_600] {
        course.wait(seconds);
        assert_eq!((course.turn(), course.is_complete()), (vec![], false), "nothing of it ever ran");
    }
    course.snapshot.history.lives.orders.stopped.clear();
    course.observe([up(0, 'b').unready()]);
    assert_eq!(course.turn(), [""; 0]);
    course.wait(59);
    assert_eq!(course.turn(), [""; 0]);
    course.wait(1);
    assert_eq!(course.turn(), ["RolledBack", "RolloutStarted"]);
}

#[test]
fn what_failed_is_not_rolled_out_by_being_stopped() {
    let mut course = Course::stuck("on_failure: continue");
    course.observe(all_up(1..3, 'a').chain([up(0, 'b')]));
    assert_eq!(course.turn(), [""; 0]);
    course.observe(all_up(1..3, 'a').chain([up(0, 'b').unready()]));
    course.wait(60);
    assert_eq!(course.turn(), ["RolloutFailed"]);
    course.snapshot = course.snapshot.clone().stopped('b', &[]);
    course.observe([]);
    course.wait(1);
    assert_eq!((course.turn(), course.is_complete()), (vec![], false));
}

#[test]
fn what_was_never_ready_is_not_rolled_out_by_being_idle() {
    let fields = "lifecycle: {max_idle: 5s}\nrollout: {progress_deadline: 60s}";
    let mut course = Course::rolled_out(fields);
    course.declare('b', 3, fields);
    assert_eq!(course.turn(), ["RolloutStarted"]);
    course.wait(5);
    course.observe(idle('b', 5));
    for seconds in [0, 3_600] {
        course.wait(seconds);
        assert_eq!((course.turn(), course.is_complete()), (vec![], false));
    }
    let completed = |course: &mut Course| course.history().known(&revision('b')).expect("known").completed_at;
    assert_eq!(completed(&mut course), None);
    // Somebody uses one, and it becomes ready.
    course.observe(idle('b', 5).into_iter().skip(1).chain([up(0, 'b').attempt(1)]));
    assert_eq!(course.turn(), ["RolloutComplete"]);
    assert_eq!(completed(&mut course), Some(course.snapshot.now));
}

#[test]
fn what_was_ready_is_rolled_out_though_it_is_idle_before_it_was_for_long_enough() {
    let fields = "lifecycle: {max_idle: 5s}\nrollout: {min_ready: 10s, progress_deadline: 60s}";
    let mut course = Course::rolled_out(fields);
    course.declare('b', 3, fields);
    assert_eq!(course.turn(), ["RolloutStarted"]);
    let since = course.snapshot.now;
    course.wait(5);
    course.observe(all_up(0..3, 'b').map(|one| one.phase(Phase::Running { since, ready: true })));
    assert_eq!((course.turn(), course.is_complete()), (vec![], false));
    course.wait(1);
    course.observe(idle('b', 5));
    assert_eq!(course.turn(), ["RolloutComplete"]);
}
