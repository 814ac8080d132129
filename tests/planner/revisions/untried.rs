//! What is declared while no replicas are to run is tried only once some are.

use evenkeel::plan::awaited;
use evenkeel::state::RunId;

use super::{Course, SURGE};
use crate::dsl::{Change, ago, all_up, up};

/// `a` served, and was scaled to nothing; then these were declared.
fn at_rest(fields: &str, letters: &str) -> Course {
    let mut course = Course::rolled_out(fields);
    assert_eq!(course.turn(), [""; 0]);
    course.observe([]);
    for letter in letters.chars() {
        course.declare(letter, 0, fields);
        course.wait(1_000);
        assert_eq!(course.turn(), ["RolloutStarted"], "{letter}");
        assert!(course.is_complete(), "{letter}: nothing is left to do");
    }
    course.wait(1_000);
    assert_eq!(course.turn(), [""; 0]);
    course
}

/// What is known of each revision: its first letter, whether it was complete, and whether that can be trusted.
fn known(course: &mut Course) -> Vec<(String, bool, bool)> {
    let letter = |revision: &evenkeel::spec::Revision| revision.short()[..1].to_owned();
    let known = course.history().revisions.iter();
    known.map(|one| (letter(&one.revision), one.completed_at.is_some(), one.settled)).collect()
}

#[test]
fn what_was_declared_without_replicas_is_judged_once_some_are_to_run() {
    let mut course = at_rest(SURGE, "b");
    assert_eq!(known(&mut course), [("a".to_owned(), true, true), ("b".to_owned(), true, false)]);
    course.declare('b', 3, SURGE);
    assert_eq!(course.turn(), [""; 0]);
    assert!(!course.is_complete());
    course.observe([up(0, 'b').unready()]);
    course.wait(59);
    assert_eq!(course.turn(), [""; 0], "the deadline counts from when some were to run");
    course.wait(1);
    assert_eq!(course.turn(), ["RolledBack", "RolloutStarted"]);
    assert_eq!((course.runs().as_str(), course.failure().as_deref()), ("a", Some("ProgressDeadlineExceeded")));
}

#[test]
fn what_was_declared_without_replicas_is_trusted_once_it_has_run() {
    let mut course = at_rest(SURGE, "b");
    course.declare('b', 3, SURGE);
    assert_eq!(course.turn(), [""; 0]);
    course.wait(1);
    course.observe(all_up(0..3, 'b'));
    assert_eq!(course.turn(), ["RolloutComplete"]);
    course.wait(100);
    course.observe(all_up(0..3, 'b'));
    course.turn();
    assert_eq!(known(&mut course), [("a".to_owned(), true, true), ("b".to_owned(), true, true)]);
    // Trust outlasts a time without replicas.
    course.observe([]);
    course.declare('b', 0, SURGE);
    assert_eq!(course.turn(), [""; 0]);
    course.declare('b', 3, SURGE);
    assert_eq!(course.turn(), [""; 0]);
    assert!(course.is_complete());
}

#[test]
fn a_rollback_prefers_what_has_run_to_what_never_did() {
    let mut course = at_rest(SURGE, "bc");
    course.declare('c', 3, SURGE);
    course.turn();
    course.wait(60);
    assert_eq!((course.turn(), course.runs().as_str()), (vec!["RolledBack", "RolloutStarted"], "a"));
}

#[test]
fn what_has_run_stays_known_however_many_are_declared_that_never_did() {
    let mut course = at_rest(&format!("{}, history: 1}}", SURGE.trim_end_matches('}')), "bcdef");
    let letters: Vec<String> = known(&mut course).into_iter().map(|(letter, ..)| letter).collect();
    assert_eq!(letters, ["a", "f"]);
}

#[test]
fn what_was_rolled_back_because_of_a_job_is_tried_again_once_the_job_is_mended() {
    let fields = format!("depends: [{{service: db, timeout: 1m}}]\n{SURGE}");
    let job = |course: &mut Course, letter| {
        let snapshot = course.snapshot.clone();
        course.snapshot = snapshot.service("db", letter, 1, "rtype: job\njob: {backoff_limit: 0}");
    };
    let run = |letter, code| up(0, letter).of("db").of_run(RunId::after(None, ago(5))).exited(code, 1, 4);
    let mut course = Course::rolled_out(&fields);
    course.declare('b', 3, &fields);
    job(&mut course, 'd');
    course.observe(all_up(0..3, 'a').chain([run('d', 4)]));
    course.turn();
    let planned = course.effective();
    let input = planned.input(&planned.observed);
    course.snapshot.history.awaited = awaited(&input, &planned.plan());
    course.wait(60);
    assert_eq!((course.turn(), course.runs().as_str()), (vec!["RolledBack", "RolloutStarted"], "a"));
    let told = course.effective().planned();
    assert!(told.contains("it is tried again once that is as it has to be"), "{told}");
    // Another job is declared, and has yet to run.
    job(&mut course, 'e');
    course.wait(60);
    course.turn();
    assert_eq!((course.turn(), course.runs().as_str()), (vec![], "a"));
    course.observe(all_up(0..3, 'a').chain([run('e', 0)]));
    assert_eq!((course.turn(), course.runs().as_str()), (vec!["RolloutRetried", "RolloutStarted"], "b"));
    course.observe(all_up(0..3, 'b').chain([run('e', 0)]));
    assert_eq!((course.turn(), course.failure()), (vec![], None));
    assert!(course.is_complete());
}
