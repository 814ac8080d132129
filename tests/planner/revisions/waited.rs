//! What was rolled back only because it waited in vain for something that it depends on, and that is well again.

use evenkeel::plan::awaited;
use evenkeel::plan::revisions::{OrderError, pause, restart, resume, undo};
use evenkeel::state::{Exit, FailureReason, Instance, OrderFailure, Pause, Phase};

use super::super::dsl::{Change, all_up, up};
use super::{Course, SURGE};

fn fields() -> String {
    format!("depends: [{{service: db, timeout: 1m}}]\n{SURGE}")
}

fn db() -> Instance {
    up(0, 'd').of("db")
}

impl Course {
    fn declare_beside_db(&mut self, letter: char) {
        self.declare(letter, 3, &fields());
        self.snapshot = self.snapshot.clone().service("db", 'd', 1, "");
    }

    /// Waits for `db` until nobody does any longer.
    fn wait_in_vain(&mut self) -> Vec<&'static str> {
        let planned = self.effective();
        let input = planned.input(&planned.observed);
        self.snapshot.history.awaited = awaited(&input, &planned.plan());
        self.wait(60);
        self.turn()
    }

    /// `a` and then `b` were rolled out beside `db`.
    fn with_two_good_ones() -> Self {
        let mut course = Self::rolled_out(&fields());
        course.declare_beside_db('b');
        course.observe(all_up(0..3, 'a').chain([db()]));
        course.turn();
        course.observe(all_up(0..3, 'b').chain([db()]));
        course.wait(20);
        course.turn();
        course.wait(100);
        course.turn();
        course
    }

    /// `c` is declared and crashed, `b` runs for it, and `db` is down.
    fn crashed_beside_what_is_down() -> Self {
        let mut course = Self::with_two_good_ones();
        course.declare_beside_db('c');
        course.turn();
        let crashed = course.crashed('c');
        course.observe(all_up(0..3, 'b').chain([db(), crashed]));
        assert_eq!((course.turn(), course.runs().as_str()), (vec!["RolledBack", "RolloutStarted"], "b"));
        course.observe(all_up(0..3, 'b').chain([db().unready()]));
        course.turn();
        course
    }

    fn undo_to(&mut self, number: u64) {
        let (declared, now) = (self.declared(), self.snapshot.now);
        undo(self.history(), &declared, Some(number), now).expect("it is known");
        self.turn();
    }

    /// An instance in the first slot that has just crashed for the third time in a row.
    fn crashed(&self, letter: char) -> Instance {
        let at = self.snapshot.now;
        up(0, letter).attempt(2).restarted(2, 2).change(|one| {
            one.created_at = at;
            one.phase = Phase::Exited(Exit::from_code(1, Some(at), at));
        })
    }

    /// The number of the revision whose undo failed, and in which word.
    fn failed_undo(&self) -> Option<(u64, FailureReason)> {
        let service = self.effective().desired.expect("declared").services["web"].clone();
        service.standing.failed_order.map(|failed| match failed {
            OrderFailure::Undo { to, failure } => (to, failure.reason),
            OrderFailure::Restart { .. } => panic!("{failed:?}"),
        })
    }

    fn told(&self) -> String {
        self.effective().planned()
    }
}

#[test]
fn an_undo_that_waited_in_vain_is_tried_again_and_not_what_had_crashed_before_it() {
    let mut course = Course::crashed_beside_what_is_down();
    course.undo_to(1);
    assert_eq!(course.runs(), "a");
    assert_eq!((course.wait_in_vain(), course.runs().as_str()), (vec!["RolledBack", "RolloutStarted"], "b"));
    let told = course.told();
    let how = "as revision 5, for which `keel rollout undo` asked, failed: web depends on db";
    assert!(told.contains(how) && told.contains("`keel rollout undo demo/web --to-revision 5`"), "{told}");
    course.observe(all_up(0..3, 'b').chain([db()]));
    let decided: Vec<String> = course.decide().into_iter().map(|decision| decision.message).collect();
    assert!(decided[0].contains("revision 5 is tried again"), "{decided:?}");
    assert_eq!(course.runs(), "a");
    let told = course.told();
    assert!(told.contains("not what is declared") && told.contains("--to-revision 3`"), "{told}");
    course.observe(all_up(0..3, 'a').chain([db()]));
    assert_eq!((course.turn(), course.runs().as_str()), (vec![], "a"));
    assert!(course.is_complete());
}

#[test]
fn what_had_crashed_stays_out_though_the_undo_crashes_too_once_it_is_tried_again() {
    let mut course = Course::crashed_beside_what_is_down();
    course.undo_to(1);
    course.wait_in_vain();
    course.observe(all_up(0..3, 'b').chain([db()]));
    assert_eq!((course.turn(), course.runs().as_str()), (vec!["RolloutRetried", "RolloutStarted"], "a"));
    course.wait(5);
    let crashed = course.crashed('a');
    course.observe(all_up(0..3, 'b').chain([db(), crashed]));
    let crashes = course.turn();
    assert_eq!((crashes, course.runs().as_str()), (vec!["RolledBack", "RolloutStarted"], "b"));
    assert_eq!(course.failure().as_deref(), Some("Crashing"));
    let told = course.told();
    assert!(
        told.contains("edit its spec, or try it again with `keel rollout undo demo/web --to-revision 7`"),
        "{told}"
    );
    course.wait(600);
    assert_eq!((course.turn(), course.runs().as_str()), (vec![], "b"));
}

#[test]
fn nothing_is_tried_of_what_is_stopped_by_hand_until_it_is_started() {
    for slots in [&[][..], &[1]] {
        let mut course = Course::with_two_good_ones();
        course.declare_beside_db('c');
        course.observe(all_up(0..3, 'b').chain([db().unready()]));
        course.turn();
        assert_eq!((course.wait_in_vain(), course.runs().as_str()), (vec!["RolledBack", "RolloutStarted"], "b"));
        course.snapshot = course.snapshot.clone().stopped('b', slots);
        course.turn();
        course.observe(all_up(0..3, 'b').chain([db()]));
        course.wait(600);
        assert_eq!((course.turn(), course.runs().as_str()), (vec![], "b"), "{slots:?}");
        course.snapshot.history.lives.orders.stopped.clear();
        assert_eq!((course.turn(), course.runs().as_str()), (vec!["RolloutRetried", "RolloutStarted"], "c"));
    }
}

#[test]
fn what_is_paused_because_it_waited_in_vain_goes_on_once_that_is_well_and_nothing_is_stopped() {
    let fields = fields().replace("rollout: {", "rollout: {on_failure: pause, ");
    let mut course = Course::with_two_good_ones();
    course.declare('c', 3, &fields);
    course.snapshot = course.snapshot.clone().service("db", 'd', 1, "");
    course.observe(all_up(0..3, 'b').chain([db().unready()]));
    course.turn();
    assert_eq!(course.wait_in_vain(), ["RolloutPaused"]);
    let told = course.told();
    assert!(told.contains("it goes on once that is as it has to be, or with `keel rollout resume demo/web`"), "{told}");
    course.wait(600);
    let mut held = course.clone();
    pause(held.history()).expect("only its failure paused it");
    assert_eq!(pause(held.history()), Err(OrderError::AlreadyPaused));
    held.observe(all_up(0..3, 'b').chain([db()]));
    assert_eq!((held.turn(), held.history().pause.clone()), (vec![], Some(Pause::User)), "somebody holds it");
    let now = held.snapshot.now;
    resume(held.history(), now).expect("it is paused");
    assert_eq!((held.turn(), held.failure(), held.runs().as_str()), (vec![], None, "c"));
    assert_eq!((course.turn(), course.failure().as_deref()), (vec![], Some("DependencyTimeout")));
    course.observe(all_up(0..3, 'b').chain([db()]));
    course.snapshot = course.snapshot.clone().stopped('c', &[]);
    assert_eq!(course.turn(), [""; 0]);
    course.snapshot.history.lives.orders.stopped.clear();
    assert_eq!((course.turn(), course.failure(), course.runs().as_str()), (vec!["RolloutRetried"], None, "c"));
}

#[test]
fn an_undo_from_what_is_declared_and_well_is_told_of_and_tried_again_once_it_waited_in_vain() {
    let mut course = Course::with_two_good_ones();
    course.observe(all_up(0..3, 'b').chain([db().unready()]));
    course.undo_to(1);
    assert_eq!((course.wait_in_vain(), course.runs().as_str()), (vec!["RolledBack", "RolloutStarted"], "b"));
    let failed = Some((3, FailureReason::DependencyTimeout));
    course.wait(600);
    assert_eq!((course.turn(), course.failed_undo()), (vec![], failed));
    let (declared, now) = (course.declared(), course.snapshot.now);
    let mut again = course.clone();
    assert_eq!((undo(again.history(), &declared, None, now), again.failed_undo()), (Ok(3), None));
    let mut edited = course.clone();
    edited.declare_beside_db('c');
    edited.turn();
    assert_eq!(edited.failed_undo(), None);
    course.snapshot = course.snapshot.clone().stopped('b', &[]);
    course.observe(all_up(0..3, 'b').chain([db()]));
    assert_eq!((course.turn(), course.failed_undo()), (vec![], failed), "it is stopped by hand");
    course.snapshot.history.lives.orders.stopped.clear();
    assert_eq!((course.turn(), course.runs().as_str()), (vec!["RolloutRetried", "RolloutStarted"], "a"));
    assert_eq!(course.failed_undo(), None);
    course.observe(all_up(0..3, 'a').chain([db()]));
    assert_eq!((course.turn(), course.runs().as_str()), (vec![], "a"));
    assert!(course.is_complete());
}

#[test]
fn an_undo_from_what_is_declared_and_well_that_crashes_is_told_of_and_not_tried_again() {
    let mut course = Course::with_two_good_ones();
    course.undo_to(1);
    course.wait(5);
    let crashed = course.crashed('a');
    course.observe(all_up(0..3, 'b').chain([db(), crashed]));
    assert_eq!((course.turn(), course.runs().as_str()), (vec!["RolledBack", "RolloutStarted"], "b"));
    course.observe(all_up(0..3, 'b').chain([db()]));
    course.wait(600);
    let failed = Some((3, FailureReason::Crashing));
    assert_eq!((course.turn(), course.runs().as_str(), course.failed_undo()), (vec![], "b", failed));
    let (declared, now) = (course.declared(), course.snapshot.now);
    let refused = undo(course.history(), &declared, None, now);
    assert!(matches!(refused, Err(OrderError::NoneComplete { .. })), "{refused:?}");
    restart(course.history(), &declared, now).expect("it is not paused");
    assert_eq!(course.failed_undo(), None);
}
