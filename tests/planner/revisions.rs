//! Rollouts begin, make progress, complete, fail and are steered: which revision is to run, and what is told.

use chrono::TimeDelta;
use evenkeel::plan::awaited;
use evenkeel::plan::revisions::{
    CLOCK_STEP, Decision, Memory, OrderError, Outcome, RolloutHistory, Seen, advance, effective, pause, restart,
    resume, undo,
};
use evenkeel::spec::RuntimeKind;
use evenkeel::state::{GoesOn, HealthState, Instance, OrderFailure, Pause, RunId, StopCause};

mod rest;
mod untried;
mod waited;

use super::dsl::{Change, Snapshot, ago, all_up, revision, up};

/// One service over time, with what is remembered of it.
#[derive(Clone)]
struct Course {
    snapshot: Snapshot,
    memory: Memory,
}

const SURGE: &str = "rollout: {max_surge: 1, max_unavailable: 0, progress_deadline: 60s}";

impl Course {
    /// Three replicas of `a` were rolled out long ago, and are.
    fn rolled_out(fields: &str) -> Self {
        let mut course = Self::begun(fields);
        course.snapshot.observed = all_up(0..3, 'a').collect();
        assert_eq!(course.turn(), ["RolloutComplete"]);
        course.wait(100);
        course
    }

    /// Three replicas of `a` are declared for the first time, and nothing is there.
    fn begun(fields: &str) -> Self {
        let mut course =
            Self { snapshot: Snapshot::declared().service("web", 'a', 3, fields), memory: Memory::default() };
        assert_eq!(course.turn(), ["RolloutStarted"]);
        course.wait(1);
        course
    }

    fn declare(&mut self, letter: char, replicas: u32, fields: &str) {
        let snapshot = std::mem::replace(&mut self.snapshot, Snapshot::declared());
        let services = Snapshot::declared().service("web", letter, replicas, fields).desired;
        self.snapshot = Snapshot { desired: services, ..snapshot };
    }

    fn wait(&mut self, seconds: i64) {
        self.snapshot.now += TimeDelta::seconds(seconds);
    }

    fn observe(&mut self, observed: impl IntoIterator<Item = Instance>) {
        self.snapshot.observed = observed.into_iter().collect();
    }

    /// One turn; what was decided. Another one straight after it decides nothing.
    fn turn(&mut self) -> Vec<&'static str> {
        let decided = self.advance();
        let before = self.memory.clone();
        assert_eq!((self.advance(), &self.memory), (Vec::new(), &before), "a second turn");
        let text = serde_json::to_string(&self.memory.rollouts).expect("JSON");
        let read: std::collections::BTreeMap<String, RolloutHistory> = serde_json::from_str(&text).expect("it is read");
        assert_eq!(read, self.memory.rollouts);
        decided
    }

    fn advance(&mut self) -> Vec<&'static str> {
        self.decide().iter().map(|decision| decision.kind).collect()
    }

    fn decide(&mut self) -> Vec<Decision> {
        let input = self.snapshot.input(&self.snapshot.observed);
        let declared = &self.snapshot.desired.as_ref().expect("declared").services["web"];
        let history = self.memory.rollouts.entry("web".to_owned()).or_default();
        let decided = advance(history, Seen { input: &input, declared });
        assert!(decided.next_look.is_none_or(|look| look > input.now));
        decided.decisions
    }

    /// Judges what is not ready.
    fn judge_new(&mut self, health: HealthState) {
        let unready = self.snapshot.observed.iter_mut().filter(|one| !one.phase.is_ready());
        unready.for_each(|one| one.judge(Some(health.clone())));
    }

    fn history(&mut self) -> &mut RolloutHistory {
        self.memory.rollouts.get_mut("web").expect("a history")
    }

    fn declared(&self) -> evenkeel::state::DesiredService {
        self.snapshot.desired.as_ref().expect("declared").services["web"].clone()
    }

    fn effective(&self) -> Snapshot {
        let desired = effective(self.snapshot.desired.as_ref().expect("declared"), &self.memory);
        Snapshot { desired: Ok(desired), ..self.snapshot.clone() }
    }

    /// The first letter of the revision that is planned for.
    fn runs(&self) -> String {
        let service = &self.effective().desired.expect("declared").services["web"];
        service.revision.short()[..1].to_owned()
    }

    fn failure(&mut self) -> Option<String> {
        let pinned = self.history().pin.as_ref().and_then(|pin| pin.failure.clone());
        let paused = match &self.history().pause {
            Some(Pause::Failure { failure }) => Some(failure.clone()),
            _ => None,
        };
        let going = match self.history().rollout.as_ref().map(|rollout| rollout.outcome.clone()) {
            Some(Outcome::Failed { failed: Some(failed), .. }) => Some(failed.failure),
            _ => None,
        };
        pinned.or(paused).or(going).map(|failure| failure.reason.name().to_owned())
    }

    fn goes_on(&mut self) -> Option<GoesOn> {
        match &self.history().rollout.as_ref()?.outcome {
            Outcome::Failed { failed, .. } => failed.as_ref().map(|failed| failed.goes_on),
            _ => None,
        }
    }

    fn is_complete(&mut self) -> bool {
        matches!(self.history().rollout.as_ref().expect("a rollout").outcome, Outcome::Complete { .. })
    }

    /// The instance of `b` in the first slot crashes now, after so many restarts in a row.
    fn crash(&mut self, attempt: u32, streak: u32) {
        let at = self.snapshot.now;
        let exit = evenkeel::state::Exit::from_code(1, Some(at - TimeDelta::seconds(1)), at);
        let dead = up(0, 'b').attempt(attempt).restarted(streak, streak).change(|one| {
            one.created_at = at;
            one.phase = evenkeel::state::Phase::Exited(exit);
        });
        self.observe(all_up(0..3, 'a').chain([dead]));
    }

    /// A call for `b` is refused now.
    fn refuse(&mut self) {
        self.snapshot = self.snapshot.clone().failed(1, 'b', 1, 0, false);
        let now = self.snapshot.now;
        self.snapshot.history.failures.values_mut().for_each(|failure| failure.at = now);
    }

    /// `b` is declared and never becomes ready.
    fn stuck(on_failure: &str) -> Self {
        let fields = format!("rollout: {{max_surge: 1, max_unavailable: 0, progress_deadline: 60s, {on_failure}}}");
        let mut course = Self::rolled_out(&fields);
        course.declare('b', 3, &fields);
        assert_eq!(course.turn(), ["RolloutStarted"]);
        course.observe(all_up(0..3, 'a').chain([up(0, 'b').unready()]));
        assert_eq!(course.turn(), [""; 0]);
        course
    }
}

/// Something that happens to a service.
type Trigger = Box<dyn Fn(&mut Course)>;

/// What makes a rollout of `b` fail, and in which word.
fn triggers() -> Vec<(&'static str, Trigger)> {
    vec![
        ("ProgressDeadlineExceeded", Box::new(|course| course.wait(60))),
        ("Refused", Box::new(Course::refuse)),
        ("Crashing", Box::new(|course| course.crash(2, 2))),
        (
            "Crashing",
            Box::new(|course| {
                course.crash(2, 2);
                let dead = course.snapshot.observed.pop().expect("one");
                course.snapshot.observed.push(dead.by(evenkeel::state::StopCause::Unhealthy));
            }),
        ),
    ]
}

#[test]
fn every_kind_of_failure_leads_to_what_the_spec_says() {
    for (reason, trigger) in triggers() {
        for (on_failure, decided, runs) in [
            ("", &["RolledBack", "RolloutStarted"][..], "a"),
            ("on_failure: rollback", &["RolledBack", "RolloutStarted"], "a"),
            ("on_failure: pause", &["RolloutPaused"], "a"),
            ("on_failure: continue", &["RolloutFailed"], "b"),
        ] {
            let mut course = Course::stuck(on_failure);
            trigger(&mut course);
            assert_eq!((course.turn(), course.runs().as_str()), (decided.to_vec(), runs), "{reason} {on_failure}");
            assert_eq!(course.failure().as_deref(), Some(reason), "{on_failure}");
            let pinned = course.history().pin.is_some();
            let paused = course.history().pause.is_some();
            assert_eq!((pinned, paused), (decided[0] == "RolledBack", on_failure == "on_failure: pause"), "{reason}");
        }
    }
}

#[test]
fn a_first_rollout_that_fails_has_no_way_back_and_goes_on() {
    for (reason, trigger) in triggers() {
        let mut course = Course::begun(SURGE);
        course.declare('b', 3, SURGE);
        assert_eq!(course.turn(), ["RolloutStarted"]);
        trigger(&mut course);
        course.snapshot.observed.retain(|instance| instance.id.revision == revision('b'));
        assert_eq!(course.turn(), ["RolloutFailed"], "{reason}");
        assert_eq!((course.goes_on(), course.runs().as_str()), (Some(GoesOn::NoTarget), "b"));
        let waits = course.effective().planned();
        assert!(waits.contains("as there is no earlier revision to roll back to"), "{waits}");
        course.observe(all_up(0..3, 'b'));
        course.snapshot.history.failures.clear();
        course.wait(1);
        assert_eq!((course.turn(), course.failure()), (vec!["RolloutComplete"], None));
    }
}

#[test]
fn progress_starts_the_deadline_anew_and_flapping_is_no_progress() {
    let mut course = Course::stuck("on_failure: rollback");
    course.wait(59);
    let since = course.snapshot.now;
    let young =
        |slot| up(slot, 'b').change(|instance| instance.phase = evenkeel::state::Phase::Running { since, ready: true });
    course.observe(all_up(0..3, 'a').chain([young(0)]));
    assert_eq!(course.turn(), [""; 0], "one more new one is available");
    course.wait(59);
    course.observe(all_up(1..3, 'a').chain([young(0)]));
    assert_eq!(course.turn(), [""; 0], "one more old one is gone");
    course.wait(30);
    course.observe(all_up(1..3, 'a').chain([young(0).unready()]));
    assert_eq!(course.turn(), [""; 0]);
    course.observe(all_up(1..3, 'a').chain([young(0)]));
    assert_eq!(course.turn(), [""; 0], "it was available before");
    course.wait(30);
    assert_eq!(course.turn(), ["RolledBack", "RolloutStarted"]);
}

fn waiting() -> HealthState {
    HealthState::Waiting { why: "others are checked".to_owned() }
}

fn starting() -> HealthState {
    HealthState::Starting { last: None }
}

#[test]
fn time_counts_where_one_of_the_new_ones_is_checked() {
    let mut course = Course::stuck("on_failure: rollback");
    course.observe(all_up(0..3, 'a').chain([up(0, 'b').judged(waiting()), up(1, 'b').judged(starting())]));
    assert_eq!(course.turn(), [""; 0]);
    course.wait(61);
    assert_eq!(course.turn(), ["RolledBack", "RolloutStarted"]);
}

#[test]
fn time_without_a_runtime_or_a_first_check_or_with_a_pause_or_suspended_does_not_count() {
    type Happening = fn(&mut Course);
    let stops: [(&str, Happening, Happening); 4] = [
        ("unchecked", |course| course.judge_new(waiting()), |course| course.judge_new(starting())),
        (
            "silent",
            |course| course.snapshot = course.snapshot.clone().unreachable(RuntimeKind::Docker),
            |course| course.snapshot.unreachable.clear(),
        ),
        (
            "paused",
            |course| pause(course.history()).expect("it is not paused"),
            |course| {
                let now = course.snapshot.now;
                resume(course.history(), now).expect("it is paused");
            },
        ),
        (
            "suspended",
            |course| course.snapshot.history.suspended = true,
            |course| course.snapshot.history.suspended = false,
        ),
    ];
    for (name, stop, go_on) in stops {
        let mut course = Course::stuck("on_failure: rollback");
        course.wait(40);
        stop(&mut course);
        assert_eq!(course.turn(), [""; 0], "{name}");
        course.wait(3_600);
        assert_eq!(course.turn(), [""; 0], "{name}");
        go_on(&mut course);
        assert_eq!(course.turn(), [""; 0], "{name}");
        course.wait(19);
        assert_eq!(course.turn(), [""; 0], "{name}");
        course.wait(1);
        assert_eq!(course.turn(), ["RolledBack", "RolloutStarted"], "{name}");
    }
}

#[test]
fn time_without_a_controller_does_not_count_and_a_clock_that_steps_back_does_no_harm() {
    let mut course = Course::stuck("on_failure: rollback");
    course.wait(40);
    course.turn();
    let history = course.history().clone().resumed();
    *course.history() = history;
    course.wait(3_600);
    assert_eq!(course.turn(), [""; 0]);
    course.snapshot.now -= TimeDelta::hours(5);
    assert_eq!(course.turn(), [""; 0]);
    course.wait(5 * 3_600 + 60);
    assert_eq!(course.turn(), ["RolledBack", "RolloutStarted"]);
}

#[test]
fn a_rollback_stays_until_something_else_is_declared() {
    let mut course = Course::stuck("on_failure: rollback");
    course.wait(60);
    assert_eq!(course.turn(), ["RolledBack", "RolloutStarted"]);
    course.effective().expect(
        "retire web/0 b0: rolled back (bbbbbbbb to aaaaaaaa)
         demo/web was rolled back to revision 3, as revision 2 failed: no progress within rollout.progress_deadline (1m): \
         0 of 3 new replicas are available, and 3 old instances are left; edit its spec, or try it again with \
         `keel rollout restart demo/web`",
    );
    course.observe(all_up(0..3, 'a'));
    course.wait(1);
    assert_eq!(course.turn(), ["RolloutComplete"]);
    // A restart of the controller.
    let history = course.history().clone().resumed();
    *course.history() = history;
    course.wait(3_600);
    assert_eq!((course.turn(), course.runs().as_str()), (vec![], "a"));
    let fields = "rollout: {max_surge: 1, max_unavailable: 0, progress_deadline: 60s, on_failure: rollback}";
    course.declare('b', 5, fields);
    assert_eq!((course.turn(), course.runs().as_str()), (vec![], "a"), "more replicas change nothing about it");
    course.declare('b', 3, &format!("health: {{check: {{type: tcp, port: 80}}}}\n{fields}"));
    assert_eq!((course.turn(), course.runs().as_str()), (vec!["RolloutStarted"], "b"), "another check may pass");
    course.declare('c', 3, fields);
    assert_eq!((course.turn(), course.runs().as_str()), (vec!["RolloutStarted"], "c"));
    assert_eq!(course.history().last_good(&revision('c')).map(|good| good.revision.clone()), Some(revision('a')));
}

#[test]
fn undo_runs_what_failed_only_where_it_is_asked_for_by_its_number() {
    let mut course = Course::stuck("on_failure: rollback");
    course.wait(60);
    assert_eq!(course.turn(), ["RolledBack", "RolloutStarted"]);
    course.observe(all_up(0..3, 'a'));
    course.wait(1);
    assert_eq!(course.turn(), ["RolloutComplete"]);
    let (now, declared) = (course.snapshot.now, course.declared());
    let before = course.memory.clone();
    let refused = Err(OrderError::NoneComplete { known: "2, 3".to_owned() });
    assert_eq!(undo(course.history(), &declared, None, now), refused);
    assert_eq!((&course.memory, course.runs().as_str()), (&before, "a"), "nothing is changed by that");
    assert_eq!(undo(course.history(), &declared, Some(2), now), Ok(2));
    assert_eq!((course.turn(), course.runs().as_str()), (vec!["RolloutStarted"], "b"));
}

#[test]
fn that_a_revision_failed_is_known_until_it_is_complete() {
    let fields = "rollout: {max_surge: 1, max_unavailable: 0, progress_deadline: 60s, on_failure: rollback}";
    let failed = |course: &mut Course| -> String {
        let failed = course.history().revisions.iter().filter(|known| known.failed);
        failed.map(|known| known.revision.short()[..1].to_owned()).collect()
    };
    let mut course = Course::stuck("on_failure: rollback");
    assert_eq!(failed(&mut course), "");
    course.wait(60);
    course.turn();
    assert_eq!(failed(&mut course), "b");
    course.declare('c', 3, fields);
    assert_eq!((course.turn(), failed(&mut course).as_str()), (vec!["RolloutStarted"], "b"), "another is declared");
    course.declare('b', 3, fields);
    assert_eq!((course.turn(), failed(&mut course).as_str()), (vec!["RolloutStarted"], "b"), "it is tried again");
    course.observe(all_up(0..3, 'b'));
    course.wait(1);
    assert_eq!((course.turn(), failed(&mut course).as_str()), (vec!["RolloutComplete"], ""));
}

#[test]
fn an_end_that_is_no_crash_is_not_called_one() {
    let again = |attempt| up(0, 'b').unready().attempt(attempt).restarted(3, 3);
    let clean =
        |attempt| up(0, 'b').attempt(attempt).exited(0, 5, 1).change(|one| one.created_at += TimeDelta::days(1));
    let young = |one: &mut Instance| one.created_at += TimeDelta::days(1);
    for (fields, observed, expected) in [
        ("", vec![clean(2), again(3).change(young)], "web/0 ended 3 times in a row: exited 0;"),
        (
            "lifecycle: {delete_on_exit: true}",
            vec![again(3).change(young)],
            "web/0 ended 3 times in a row; how is not known, as none is kept (lifecycle.delete_on_exit);",
        ),
    ] {
        let fields = format!("{SURGE}\n{fields}");
        let mut course = Course::rolled_out(&fields);
        course.declare('b', 3, &fields);
        course.turn();
        course.wait(1);
        course.observe(all_up(0..3, 'a').chain(observed));
        let decided = course.decide();
        assert!(decided[0].message.contains(expected), "{decided:?}");
    }
}

#[test]
fn the_third_clean_end_in_a_row_leads_back_at_once() {
    for (streak, decided) in [(1, &[][..]), (2, &["RolledBack", "RolloutStarted"][..])] {
        let mut course = Course::rolled_out(SURGE);
        course.declare('b', 3, SURGE);
        course.turn();
        course.wait(1);
        course.crash(streak, streak);
        let at = course.snapshot.now;
        let ended = course.snapshot.observed.last_mut().expect("one");
        ended.phase = evenkeel::state::Phase::Exited(evenkeel::state::Exit::from_code(0, Some(at), at));
        assert_eq!(course.turn(), decided, "restart {streak} in a row");
    }
}

#[test]
fn what_dies_beside_a_paused_revision_that_crashes_is_restarted_by_its_own_history() {
    let fields = "rollout: {max_surge: 1, max_unavailable: 0, on_failure: pause}";
    let mut course = Course::rolled_out(fields);
    course.declare('b', 3, fields);
    course.turn();
    course.wait(1);
    course.crash(2, 2);
    assert_eq!(course.turn(), ["RolloutPaused"]);
    let failed = course.snapshot.observed.pop().expect("one");
    let at = course.snapshot.now;
    let killed = up(0, 'a').change(|one| {
        one.phase = evenkeel::state::Phase::Exited(evenkeel::state::Exit::from_code(137, Some(one.created_at), at));
    });
    course.observe([killed, failed].into_iter().chain(all_up(1..3, 'a')));
    let plan = course.effective().plan().to_string();
    assert!(
        plan.contains("start demo/web/0 (aaaaaaaa, attempt 1) on docker: killed by SIGKILL, restart 1 in a row"),
        "{plan}"
    );
    assert!(!plan.contains("wait to restart"), "{plan}");
}

#[test]
fn a_rollout_begins_once_though_the_image_behind_its_tag_is_found_out_later() {
    let fields = format!("{SURGE}\nimage: {{name: nginx, pull_policy: newer}}");
    let mut course = Course::begun(&fields);
    let (declared, digest) = (course.declared(), format!("sha256:{}", "1".repeat(64)));
    assert_eq!(course.history().learn_image(&declared, &digest, &[]), None);
    assert_eq!(course.turn(), [""; 0]);
    assert!(course.history().revisions[0].spec.image.name.to_string().ends_with(&digest));
    course.observe(all_up(0..3, 'a'));
    assert_eq!(course.turn(), ["RolloutComplete"]);
}

#[test]
fn a_way_back_that_fails_is_tried_on() {
    let mut course = Course::stuck("on_failure: rollback");
    course.wait(60);
    course.turn();
    course.observe([up(0, 'b').unready()]);
    course.wait(59);
    assert_eq!(course.turn(), [""; 0]);
    course.wait(1);
    assert_eq!(course.history().failed_way_back(), None);
    assert_eq!((course.turn(), course.goes_on()), (vec!["RolloutFailed"], Some(GoesOn::RollingBack)));
    assert_eq!(course.runs(), "a");
    assert_eq!(course.history().failed_way_back(), Some(&revision('a')));
    course.observe(all_up(0..3, 'a'));
    assert_eq!(course.turn(), ["RolloutComplete"]);
    assert_eq!(course.history().failed_way_back(), None);
}

#[test]
fn a_new_revision_takes_the_place_of_a_stuck_one_at_once() {
    for on_failure in ["on_failure: rollback", "on_failure: pause", "on_failure: continue"] {
        for wait in [1, 60] {
            let mut course = Course::stuck(on_failure);
            course.wait(wait);
            course.turn();
            course.declare('c', 3, SURGE);
            assert_eq!((course.turn(), course.runs().as_str()), (vec!["RolloutStarted"], "c"), "{on_failure} {wait}");
            assert_eq!((course.history().pause.clone(), course.failure()), (None, None));
            let plan = course.effective().planned();
            assert!(plan.contains("retire web/0 b0: template changed"), "{plan}");
        }
    }
}

#[test]
fn a_paused_rollout_replaces_nothing_fills_what_died_and_scales() {
    let mut course = Course::rolled_out(SURGE);
    course.declare('b', 3, SURGE);
    course.turn();
    course.observe(all_up(1..3, 'a').chain([up(0, 'a'), up(0, 'b')]));
    course.turn();
    pause(course.history()).expect("it is not paused");
    assert_eq!(pause(course.history()), Err(OrderError::AlreadyPaused));
    let paused = "the rollout of demo/web is paused; `keel rollout resume demo/web` goes on with it";
    course.effective().expect(paused);
    // An old one and the new one die.
    course.observe([up(0, 'a'), up(1, 'a').exited(1, 700, 0), up(2, 'a')]);
    course.effective().expect(&format!(
        "launch (restarts 1, streak 1) web/1 a1: exited 1, restart 1 in a row
         {paused}"
    ));
    course.observe([up(0, 'b'), up(1, 'a')]);
    course.effective().expect(&format!("launch web/2 a0: missing, 3 replicas wanted\n{paused}"));
    course.declare('b', 1, SURGE);
    course.effective().expect(&format!("retire web/1 a0: scaled down to 1 replica\n{paused}"));
    course.declare('b', 2, SURGE);
    let now = course.snapshot.now;
    resume(course.history(), now).expect("it is paused");
    assert_eq!(resume(course.history(), now), Err(OrderError::NotPaused));
    course.effective().expect("launch web/1 b0: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)");
}

#[test]
fn nothing_is_rolled_out_while_a_complete_rollout_is_paused() {
    let mut course = Course::rolled_out(SURGE);
    pause(course.history()).expect("it is not paused");
    assert_eq!(course.turn(), [""; 0]);
    course.effective().expect("");
    course.declare('b', 3, SURGE);
    assert_eq!((course.turn(), course.runs().as_str()), (vec!["RolloutStarted"], "a"));
    course.declare('c', 3, SURGE);
    course.turn();
    assert_eq!(course.runs(), "a");
    let now = course.snapshot.now;
    resume(course.history(), now).expect("it is paused");
    assert_eq!((course.turn(), course.runs().as_str()), (vec![], "c"));
}

#[test]
fn a_crash_right_after_the_end_still_leads_back_and_a_later_one_does_not() {
    for (ran, decided) in [(0, &["RolledBack", "RolloutStarted"][..]), (10, &[])] {
        let mut course = Course::rolled_out(SURGE);
        course.declare('b', 3, SURGE);
        course.turn();
        course.wait(1);
        let since = course.snapshot.now;
        let new = |slot| up(slot, 'b').change(|one| one.phase = evenkeel::state::Phase::Running { since, ready: true });
        course.observe((0..3).map(new));
        // What has no checks shows by running for a second that it does.
        assert_eq!(course.turn(), [""; 0]);
        course.wait(1);
        assert_eq!(course.turn(), ["RolloutComplete"]);
        course.wait(ran);
        course.turn();
        course.crash(2, 2);
        let crashed = course.snapshot.observed.pop().expect("one");
        course.observe([crashed, new(1).unready(), new(2).unready()]);
        assert_eq!(course.turn(), decided, "after {ran} s");
        assert!(course.is_complete() || !decided.is_empty());
    }
}

#[test]
fn what_serves_is_a_way_back_though_another_was_declared_before_it_had_run_for_a_second() {
    let mut course = Course::begun(SURGE);
    let since = course.snapshot.now;
    let new = |slot| up(slot, 'a').change(|one| one.phase = evenkeel::state::Phase::Running { since, ready: true });
    course.observe((0..3).map(new));
    assert_eq!(course.turn(), [""; 0]);
    course.declare('b', 3, SURGE);
    assert_eq!(course.turn(), ["RolloutStarted"]);
    course.wait(60);
    assert_eq!((course.turn(), course.runs().as_str()), (vec!["RolledBack", "RolloutStarted"], "a"));
}

#[test]
fn what_failed_after_it_was_complete_is_run_by_no_undo() {
    let mut course = Course::rolled_out(SURGE);
    course.declare('b', 3, SURGE);
    course.turn();
    course.wait(1);
    let since = course.snapshot.now;
    course
        .observe((0..3).map(|slot| {
            up(slot, 'b').change(|one| one.phase = evenkeel::state::Phase::Running { since, ready: true })
        }));
    course.wait(1);
    assert_eq!(course.turn(), ["RolloutComplete"]);
    // Every run of it is short, and the waits between them are not.
    course.wait(12);
    course.crash(2, 2);
    let crashed = course.snapshot.observed.pop().expect("one");
    course.observe([crashed, up(1, 'b').unready(), up(2, 'b').unready()]);
    assert_eq!(course.turn(), ["RolledBack", "RolloutStarted"]);
    course.observe(all_up(0..3, 'a'));
    course.wait(1);
    assert_eq!(course.turn(), ["RolloutComplete"]);
    let (now, declared) = (course.snapshot.now, course.declared());
    let known = |course: &mut Course| course.history().revisions.iter().map(|one| one.failed).collect::<Vec<_>>();
    assert_eq!(known(&mut course), [true, false]);
    let refused = OrderError::NoneComplete { known: "2, 3".to_owned() };
    assert_eq!(undo(course.history(), &declared, None, now), Err(refused));
}

#[test]
fn undo_runs_an_earlier_revision_until_something_else_is_declared() {
    let mut course = Course::rolled_out(SURGE);
    let (now, declared) = (course.snapshot.now, course.declared());
    assert_eq!(undo(course.history(), &declared, None, now), Err(OrderError::NoHistory));
    for letter in ['b', 'c'] {
        course.declare(letter, 3, SURGE);
        course.turn();
        course.observe(all_up(0..3, letter));
        course.wait(1);
        assert_eq!(course.turn(), ["RolloutComplete"]);
    }
    let declared = course.declared();
    let to = |course: &mut Course, number| undo(course.history(), &declared, number, now);
    assert_eq!(to(&mut course, Some(9)), Err(OrderError::Unknown { number: 9, known: "1, 2, 3".to_owned() }));
    assert_eq!(to(&mut course, Some(3)), Err(OrderError::Same { number: 3 }));
    assert_eq!(to(&mut course, None), Ok(2));
    assert_eq!((course.turn(), course.runs().as_str()), (vec!["RolloutStarted"], "b"));
    let numbers = |course: &mut Course| -> Vec<(u64, String)> {
        course.history().revisions.iter().map(|one| (one.number, one.revision.short()[..1].to_owned())).collect()
    };
    let known = |number, letter: &str| (number, letter.to_owned());
    assert_eq!(numbers(&mut course), [known(1, "a"), known(3, "c"), known(4, "b")]);
    // A file that says the same changes nothing about it.
    course.declare('c', 3, SURGE);
    assert_eq!((course.turn(), course.runs().as_str()), (vec![], "b"));
    assert!(course.effective().planned().contains("keel rollout undo demo/web --to-revision 3"));
    assert_eq!(to(&mut course, None), Ok(3), "as kubectl does, once more leads back");
    assert_eq!((course.turn(), course.runs().as_str()), (vec!["RolloutStarted"], "c"));
    assert_eq!(course.history().pin, None);
    assert_eq!(to(&mut course, Some(1)), Ok(1));
    course.declare('d', 3, SURGE);
    assert_eq!((course.turn(), course.runs().as_str()), (vec!["RolloutStarted"], "d"));
    pause(course.history()).expect("it is not paused");
    assert_eq!(to(&mut course, Some(1)), Err(OrderError::Paused));
}

#[test]
fn restart_replaces_every_instance_by_the_same_rules_once() {
    let mut course = Course::rolled_out(SURGE);
    let (declared, now) = (course.declared(), course.snapshot.now);
    restart(course.history(), &declared, now).expect("it is not paused");
    assert_eq!(course.turn(), ["RolloutStarted"]);
    let service = course.effective().desired.expect("declared").services["web"].clone();
    let restarted = revision('a').restarted(1);
    assert_eq!(service.revision, restarted);
    let short = restarted.short();
    course.effective().expect(&format!("launch web/0 {}0: restart asked for (aaaaaaaa to {short})", &short[..1]));
    let of = |slot| {
        let restarted = restarted.clone();
        up(slot, 'a').change(move |one| {
            one.id.revision = restarted;
            one.runtime_id = one.id.runtime_name();
        })
    };
    course.observe((0..3).map(of));
    course.wait(1);
    assert_eq!(course.turn(), ["RolloutComplete"]);
    course.effective().expect("");
    // Nothing is remembered any more: they are known as what they are.
    let forgotten = std::mem::take(&mut course.memory);
    assert_eq!(course.turn(), [""; 0]);
    course.effective().expect("");
    course.memory = forgotten;
    restart(course.history(), &declared, now).expect("it is not paused");
    course.turn();
    assert_eq!(course.effective().desired.expect("declared").services["web"].revision, revision('a').restarted(2));
    course.declare('b', 3, SURGE);
    course.turn();
    assert_eq!((course.runs().as_str(), course.history().restart.clone()), ("b", None));
}

#[test]
fn undo_passes_over_what_never_was_complete() {
    let mut course = Course::rolled_out(SURGE);
    course.declare('b', 3, SURGE);
    course.turn();
    course.declare('c', 3, SURGE);
    course.turn();
    course.observe(all_up(0..3, 'c'));
    course.wait(1);
    assert_eq!(course.turn(), ["RolloutComplete"]);
    let (now, declared) = (course.snapshot.now, course.declared());
    assert_eq!(undo(course.history(), &declared, None, now), Ok(1));
    assert_eq!((course.turn(), course.runs().as_str()), (vec!["RolloutStarted"], "a"));
}

#[test]
fn what_was_complete_for_long_is_where_a_rollback_goes_though_nobody_looked_since() {
    let mut course = Course::rolled_out(SURGE);
    course.wait(60);
    course.turn();
    course.declare('b', 3, SURGE);
    course.turn();
    course.observe(all_up(0..3, 'b'));
    course.wait(1);
    assert_eq!(course.turn(), ["RolloutComplete"]);
    // As after a command that ended, long before the next one.
    course.wait(25);
    course.declare('c', 3, SURGE);
    course.turn();
    let to = course.history().revisions.iter().rev().find(|known| known.settled).map(|known| known.number);
    assert_eq!(to, Some(2));
}

#[test]
fn a_rollback_goes_past_what_crashes_since_it_was_complete() {
    let running = |one: Instance, since| one.phase(evenkeel::state::Phase::Running { since, ready: true });
    // What is seen of `b` then: it crashed a moment ago, or runs again for a moment, or for long enough.
    let seen = |at: chrono::DateTime<chrono::Utc>, ran: i64, ended: bool| {
        let since = at - TimeDelta::seconds(ran);
        let exit = evenkeel::state::Exit::from_code(3, Some(since), at);
        let one = up(0, 'b').attempt(2).restarted(2, 2);
        if ended { one.phase(evenkeel::state::Phase::Exited(exit)) } else { running(one, since) }
    };
    for (ran, ended, runs) in [(4, true, "a"), (3, false, "a"), (10, false, "b")] {
        let mut course = Course::rolled_out(SURGE);
        course.declare('a', 1, SURGE);
        course.observe([up(0, 'a')]);
        course.turn();
        course.declare('b', 1, SURGE);
        course.turn();
        course.wait(2);
        course.observe([running(up(0, 'b'), course.snapshot.now - TimeDelta::seconds(1))]);
        assert_eq!(course.turn(), ["RolloutComplete"]);
        course.wait(15);
        course.declare('c', 1, SURGE);
        course.observe([seen(course.snapshot.now, ran, ended)]);
        assert_eq!(course.turn(), ["RolloutStarted"]);
        course.wait(60);
        course.observe([seen(course.snapshot.now, ran, ended), up(0, 'c').unready()]);
        assert_eq!(course.turn(), ["RolledBack", "RolloutStarted"]);
        assert_eq!(course.runs(), runs, "it ran for {ran} s");
    }
}

#[test]
fn restart_and_undo_try_again_what_was_rolled_back() {
    for by_number in [false, true] {
        let mut course = Course::stuck("on_failure: rollback");
        course.wait(60);
        course.turn();
        course.observe(all_up(0..3, 'a'));
        course.turn();
        let (declared, now) = (course.declared(), course.snapshot.now);
        match by_number {
            true => drop(undo(course.history(), &declared, Some(2), now).expect("it is known")),
            false => restart(course.history(), &declared, now).expect("it is not paused"),
        }
        assert_eq!((course.turn(), course.runs().as_str()), (vec!["RolloutStarted"], "b"), "{by_number}");
        course.wait(59);
        assert_eq!(course.turn(), [""; 0]);
        course.wait(1);
        assert_eq!(course.turn(), ["RolledBack", "RolloutStarted"]);
    }
}

#[test]
fn as_many_revisions_are_kept_as_the_spec_says_and_what_a_rollback_needs() {
    let fields = "rollout: {history: 2, progress_deadline: 60s}";
    let mut course = Course::rolled_out(fields);
    for letter in ['b', 'c', 'd', 'e'] {
        course.declare(letter, 3, fields);
        course.turn();
        course.observe(all_up(0..3, 'a'));
        course.wait(1);
    }
    let kept: Vec<u64> = course.history().revisions.iter().map(|known| known.number).collect();
    assert_eq!(kept, [1, 4, 5], "what runs and is good stays, and two of the others");
}

#[test]
fn writing_down_the_runtime_neither_begins_a_rollout_nor_ends_a_rollback() {
    let mut course = Course::stuck("on_failure: rollback");
    course.wait(60);
    course.turn();
    course.observe(all_up(0..3, 'a'));
    course.turn();
    let fields = "rollout: {max_surge: 1, max_unavailable: 0, progress_deadline: 60s, on_failure: rollback}";
    course.declare('f', 3, fields);
    course.snapshot = course.snapshot.clone().equivalent_to("web", 'b');
    assert_eq!((course.turn(), course.runs().as_str()), (vec![], "a"));
}

#[test]
fn what_rests_on_purpose_is_complete() {
    let fields = "restart_policy: {kind: on_failure}\nrollout: {progress_deadline: 60s}";
    let mut course = Course::begun(fields);
    course.observe((0..3).map(|slot| up(slot, 'a').exited(0, 5, 0)));
    assert_eq!(course.turn(), ["RolloutComplete"]);
    let mut course = Course::begun("restart_policy: {kind: 'no'}");
    course.observe((0..3).map(|slot| up(slot, 'a').exited(3, 5, 0)));
    assert_eq!((course.turn(), course.failure().as_deref()), (vec!["RolloutFailed"], Some("GaveUp")));
}

#[test]
fn what_ended_for_good_is_said_to_be_tried_again_nowhere() {
    for on_failure in ["rollback", "continue"] {
        let mut course =
            Course::begun(&format!("restart_policy: {{final_exit_codes: [3]}}\nrollout: {{on_failure: {on_failure}}}"));
        course.observe([up(0, 'a').exited(3, 5, 0)]);
        let said: Vec<String> = course.decide().into_iter().map(|decision| decision.message).collect();
        let why = format!("{} ended and is not started again: exited 3", up(0, 'a').id);
        assert_eq!(said, [format!("demo/web: the rollout of revision 1 failed: {why}")], "{on_failure}");
        let waits = course.effective().planned();
        let told = match on_failure {
            "rollback" => "the rollout of demo/web failed, and there is no earlier revision to roll back to: ",
            _ => "the rollout of demo/web failed: ",
        };
        assert!(waits.contains(&format!("{told}{why}")), "{waits}");
        assert!(!waits.contains("tried") && !waits.contains("goes on"), "{waits}");
    }
}

#[test]
fn a_run_that_was_frozen_is_trusted_that_much_later() {
    let mut course = Course::begun(SURGE);
    course.declare('b', 1, SURGE);
    assert_eq!(course.turn(), ["RolloutStarted"]);
    course.wait(1);
    let settled = |course: &mut Course| match course.history().rollout.as_ref().map(|rollout| &rollout.outcome) {
        Some(Outcome::Complete { settled, .. }) => *settled,
        other => panic!("{other:?}"),
    };
    let since = course.snapshot.now - TimeDelta::seconds(10);
    course.observe([up(0, 'b').change(|instance| {
        instance.phase = evenkeel::state::Phase::Running { since, ready: true };
        instance.frozen.so_far = std::time::Duration::from_secs(5);
    })]);
    assert_eq!(course.turn(), ["RolloutComplete"]);
    assert!(!settled(&mut course), "it has run for five seconds");
    course.wait(5);
    assert_eq!(course.turn(), [""; 0]);
    assert!(settled(&mut course));
}

#[test]
fn a_crash_that_is_heard_of_late_takes_back_the_trust_in_its_run() {
    let mut course = Course::begun(SURGE);
    course.declare('b', 1, SURGE);
    assert_eq!(course.turn(), ["RolloutStarted"]);
    course.wait(20);
    let started = course.snapshot.now - TimeDelta::seconds(15);
    let run = up(0, 'b').attempt(3).restarted(3, 3);
    let phase = evenkeel::state::Phase::Running { since: started, ready: true };
    course.observe([run.clone().phase(phase)]);
    assert_eq!(course.turn(), ["RolloutComplete"]);
    course.wait(5);
    let exit = evenkeel::state::Exit::from_code(1, Some(started), started + TimeDelta::seconds(1));
    course.observe([run.phase(evenkeel::state::Phase::Exited(exit))]);
    assert_eq!((course.turn(), course.failure().as_deref()), (vec!["RolloutFailed"], Some("Crashing")));
}

/// An order that has another try made.
type Retry = fn(&mut Course);

/// `b` fails with `on_failure`, for each reason but the lack of progress; what is left of that stays where it is.
fn failures() -> impl Iterator<Item = (&'static str, Trigger)> {
    triggers().into_iter().filter(|(reason, _)| *reason != "ProgressDeadlineExceeded")
}

#[test]
fn what_failed_before_an_order_does_not_count_after_it() {
    let orders: [(&str, Retry); 3] = [
        ("on_failure: pause", |course| {
            let now = course.snapshot.now;
            resume(course.history(), now).expect("it is paused");
        }),
        ("on_failure: rollback", |course| {
            let (declared, now) = (course.declared(), course.snapshot.now);
            restart(course.history(), &declared, now).expect("it is not paused");
        }),
        ("on_failure: rollback", |course| {
            let (declared, now) = (course.declared(), course.snapshot.now);
            undo(course.history(), &declared, Some(2), now).expect("it is known");
        }),
    ];
    for (on_failure, retry) in orders {
        for (reason, trigger) in failures() {
            let mut course = Course::stuck(on_failure);
            trigger(&mut course);
            course.turn();
            assert_eq!(course.failure().as_deref(), Some(reason), "{on_failure}");
            course.wait(1);
            retry(&mut course);
            let decided = course.turn();
            assert!(!decided.contains(&"RolledBack") && !decided.contains(&"RolloutPaused"), "{decided:?} {reason}");
            assert_eq!((course.runs().as_str(), course.failure()), ("b", None), "{reason} {on_failure}");
            // It fails again by what happens from then on.
            course.wait(1);
            trigger(&mut course);
            course.turn();
            assert_eq!(course.failure().as_deref(), Some(reason), "{on_failure}");
        }
    }
}

#[test]
fn an_order_has_what_crashed_started_at_once_and_counts_crashes_anew() {
    let mut course = Course::stuck("on_failure: pause");
    let died = course.snapshot.now;
    let dead = |attempt, streak, at| {
        up(0, 'b')
            .attempt(attempt)
            .restarted(attempt, streak)
            .phase(evenkeel::state::Phase::Exited(evenkeel::state::Exit::from_code(1, Some(at), at)))
    };
    course.observe(all_up(0..3, 'a').chain([dead(2, 2, died)]));
    assert_eq!(course.turn(), ["RolloutPaused"]);
    course.wait(1);
    let now = course.snapshot.now;
    resume(course.history(), now).expect("it is paused");
    course.turn();
    course
        .effective()
        .expect("launch (restarts 2, streak 0) web/0 b3: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)");
    for streak in 0..2 {
        course.wait(10);
        let at = course.snapshot.now;
        let again = dead(3 + streak, streak, at).change(|one| one.created_at = at);
        course.observe(all_up(0..3, 'a').chain([again]));
        assert_eq!(course.turn(), [""; 0], "streak {streak}");
    }
    course.wait(1);
    let at = course.snapshot.now;
    course.observe(all_up(0..3, 'a').chain([dead(5, 2, at).change(|one| one.created_at = at)]));
    assert_eq!(course.turn(), ["RolloutPaused"]);
}

#[test]
fn a_policy_that_starts_no_other_is_overruled_once_by_an_order() {
    let fields = "restart_policy: {kind: 'no'}\nrollout: {max_surge: 1, max_unavailable: 0, on_failure: pause}";
    let mut course = Course::rolled_out(fields);
    course.declare('b', 3, fields);
    course.turn();
    course.crash(0, 0);
    assert_eq!((course.turn(), course.failure().as_deref()), (vec!["RolloutPaused"], Some("GaveUp")));
    course.wait(1);
    let now = course.snapshot.now;
    resume(course.history(), now).expect("it is paused");
    assert_eq!((course.turn(), course.failure()), (vec![], None));
    course.effective().expect("launch web/0 b1: template changed at demo.yaml:3 (aaaaaaaa to bbbbbbbb)");
    course.wait(1);
    course.crash(1, 0);
    assert_eq!((course.turn(), course.failure().as_deref()), (vec!["RolloutPaused"], Some("GaveUp")));
}

#[test]
fn a_killed_controller_forgets_no_more_of_the_deadline_than_a_step() {
    let step = i64::try_from(CLOCK_STEP.as_secs()).expect("a small number");
    let mut course = Course::stuck("on_failure: rollback");
    for _ in 0..3 {
        course.wait(step);
        course.turn();
    }
    // Killed right before the next step.
    course.wait(step - 1);
    course.turn();
    let history = course.history().clone().resumed();
    *course.history() = history;
    course.wait(3_600);
    assert_eq!(course.turn(), [""; 0]);
    course.wait(60 - 3 * step - 1);
    assert_eq!(course.turn(), [""; 0]);
    course.wait(1);
    assert_eq!(course.turn(), ["RolledBack", "RolloutStarted"]);
}

#[test]
fn a_rollback_goes_to_what_serves_though_it_was_complete_for_a_moment() {
    let mut course = Course::rolled_out(SURGE);
    course.wait(60);
    course.turn();
    course.declare('b', 3, SURGE);
    course.turn();
    course.wait(1);
    let since = course.snapshot.now;
    let young = |slot| up(slot, 'b').change(|one| one.phase = evenkeel::state::Phase::Running { since, ready: true });
    course.observe((0..3).map(young));
    course.wait(1);
    assert_eq!(course.turn(), ["RolloutComplete"]);
    course.wait(2);
    course.declare('c', 3, SURGE);
    course.turn();
    let mut crashed = course.clone();
    course.observe((0..3).map(young).chain([up(0, 'c').unready()]));
    course.turn();
    course.wait(60);
    assert_eq!((course.turn(), course.runs().as_str()), (vec!["RolledBack", "RolloutStarted"], "b"));
    // Of what serves no more, the one that ran for long is the better.
    crashed.observe([up(0, 'c').unready()]);
    crashed.turn();
    crashed.wait(60);
    assert_eq!((crashed.turn(), crashed.runs().as_str()), (vec!["RolledBack", "RolloutStarted"], "a"));
}

#[test]
fn time_that_is_waited_for_dependencies_does_not_count() {
    let fields = "depends: [{service: db}]\nrollout: {max_surge: 1, max_unavailable: 0, progress_deadline: 60s}";
    let mut course = Course::rolled_out(fields);
    course.declare('b', 3, fields);
    course.snapshot = course.snapshot.clone().service("db", 'd', 1, "");
    course.turn();
    let db = || up(0, 'd').of("db");
    course.observe(all_up(0..3, 'a').chain([db().unready()]));
    course.turn();
    course.wait(200);
    assert_eq!(course.turn(), [""; 0]);
    course.observe(all_up(0..3, 'a').chain([db()]));
    assert_eq!(course.turn(), [""; 0]);
    course.wait(59);
    assert_eq!(course.turn(), [""; 0]);
    course.wait(1);
    assert_eq!(course.turn(), ["RolledBack", "RolloutStarted"]);
}

#[test]
fn what_waits_in_vain_for_a_job_leads_back_to_a_revision_that_waits_for_none() {
    let depends = |timeout: &str| format!("depends: [{{service: db, timeout: 1m{timeout}}}]\n{SURGE}");
    for (on_timeout, decided) in [("", &["RolledBack", "RolloutStarted"][..]), (", on_timeout: continue", &[])] {
        let fields = depends(on_timeout);
        let mut course = Course::rolled_out(&fields);
        course.declare('b', 3, &fields);
        course.snapshot = course.snapshot.clone().service("db", 'd', 1, "rtype: job\njob: {backoff_limit: 0}");
        let failed = up(0, 'd').of("db").of_run(RunId::after(None, ago(5))).exited(4, 1, 4);
        // One of the old ones died meanwhile.
        course.observe([up(0, 'a'), up(1, 'a').exited(1, 600, 1), up(2, 'a'), failed]);
        course.turn();
        let planned = course.effective();
        let input = planned.input(&planned.observed);
        course.snapshot.history.awaited = awaited(&input, &planned.plan());
        course.wait(59);
        assert_eq!(course.turn(), [""; 0]);
        course.wait(1);
        assert_eq!(course.turn(), decided);
        let planned = course.effective().planned();
        let launched = planned.lines().find(|line| line.starts_with("launch")).unwrap_or_default();
        match decided {
            [] => assert!(launched.contains(" b0: "), "{planned}"),
            _ => {
                assert_eq!(course.failure().as_deref(), Some("DependencyTimeout"));
                assert!(launched.starts_with("launch (restarts 1, streak 1) web/1 a1: exited 1"), "{planned}");
            }
        }
    }
}

#[test]
fn what_is_declared_for_the_first_time_waits_on_for_what_it_depends_on() {
    let fields = format!("depends: [{{service: db, timeout: 1m}}]\n{SURGE}");
    let mut course = Course::begun(&fields);
    course.snapshot = course.snapshot.clone().service("db", 'd', 1, "");
    let planned = course.effective();
    let input = planned.input(&planned.observed);
    course.snapshot.history.awaited = awaited(&input, &planned.plan());
    course.wait(3600);
    assert_eq!((course.turn(), course.failure()), (vec![], None));
}

#[test]
fn an_undo_that_fails_does_what_the_spec_says_of_failures() {
    for (on_failure, decided, runs) in [
        ("on_failure: rollback", &["RolledBack", "RolloutStarted"][..], "b"),
        ("on_failure: pause", &["RolloutPaused"], "b"),
        ("on_failure: continue", &["RolloutFailed"], "a"),
    ] {
        let fields = format!("rollout: {{max_surge: 1, max_unavailable: 0, progress_deadline: 60s, {on_failure}}}");
        let mut course = Course::rolled_out(&fields);
        course.declare('b', 3, &fields);
        course.turn();
        course.observe(all_up(0..3, 'b'));
        course.wait(20);
        course.turn();
        let (declared, now) = (course.declared(), course.snapshot.now);
        undo(course.history(), &declared, None, now).expect("there is one");
        course.turn();
        course.observe(all_up(0..3, 'b').chain([up(0, 'a').unready()]));
        course.wait(60);
        assert_eq!((course.turn(), course.runs().as_str()), (decided.to_vec(), runs), "{on_failure}");
        let told = course.effective().planned();
        assert!(!told.contains("runs revision"), "{told}");
        if on_failure == "on_failure: continue" {
            assert!(told.contains("is to run revision 3, as `keel rollout undo` asked, and that failed"), "{told}");
        }
    }
}

#[test]
fn what_is_restarted_after_an_undo_is_told_by_its_own_number() {
    let mut course = Course::rolled_out(SURGE);
    course.declare('b', 3, SURGE);
    course.turn();
    course.observe(all_up(0..3, 'b'));
    course.wait(20);
    course.turn();
    let (declared, now) = (course.declared(), course.snapshot.now);
    undo(course.history(), &declared, None, now).expect("there is one");
    course.turn();
    restart(course.history(), &declared, now).expect("it is not paused");
    course.turn();
    let number = course.history().revisions.last().expect("one").number;
    let told = course.effective().planned();
    assert!(number == 4 && told.contains("runs revision 4, as `keel rollout undo` asked"), "{told}");
}

#[test]
fn other_checks_end_the_back_off_that_failed_ones_caused_once() {
    let checked = |path: &str| format!("health: {{check: {{type: http, url: 'http://localhost{path}'}}}}");
    let mut course = Course::rolled_out(&checked("/wrong"));
    let died = course.snapshot.now;
    let dead = |slot| up(slot, 'a').attempt(4).restarted(4, 4).exited(0, 0, 0).change(|one| one.created_at = died);
    let at = |one: Instance, at| {
        one.change(|one| {
            let evenkeel::state::Phase::Exited(exit) = &mut one.phase else { panic!("it ended") };
            (exit.started_at, exit.finished_at) = (Some(at), at);
        })
    };
    // One that checks ended, and one that ended by itself.
    course.observe([at(dead(0).by(StopCause::Unhealthy), died), at(dead(1), died), up(2, 'a')]);
    assert_eq!(course.turn(), [""; 0]);
    course.wait(1);
    let waits = course.effective().planned();
    assert_eq!((waits.matches("launch").count(), waits.matches("wait to restart").count()), (0, 2), "{waits}");
    course.declare('a', 3, &checked("/right"));
    assert_eq!(course.turn(), [""; 0]);
    let planned = course.effective().planned();
    assert!(planned.contains("launch (restarts 4, streak 0) web/0 a5: missing, 3 replicas wanted"), "{planned}");
    assert!(planned.contains("wait to restart demo/web/1"), "{planned}");
    // What they end from now on waits as ever, though the same is declared again.
    for attempt in 5..7 {
        course.wait(10);
        let now = course.snapshot.now;
        let again = up(0, 'a').attempt(attempt).restarted(attempt, 1).exited(0, 0, 0).by(StopCause::Unhealthy);
        course.observe([at(again.change(|one| one.created_at = now), now), up(1, 'a'), up(2, 'a')]);
        course.declare('a', 3, &checked("/right"));
        course.turn();
        let planned = course.effective().planned();
        assert!(planned.contains("wait to restart demo/web/0"), "{planned}");
    }
}

#[test]
fn one_replica_is_told_as_one() {
    let snapshot = Snapshot::declared().service("web", 'a', 1, "");
    let mut course = Course { snapshot, memory: Memory::default() };
    let told = |course: &mut Course| course.decide().into_iter().map(|one| one.message).collect::<Vec<_>>();
    assert_eq!(
        told(&mut course),
        ["demo/web: rollout of revision 1 (aaaaaaaa) begins: 0 of 1 replica available, 0 old instances"]
    );
    course.wait(1);
    course.observe([up(0, 'a')]);
    assert_eq!(told(&mut course), ["demo/web: revision 1 (aaaaaaaa) is rolled out to 1 replica, 1s after it began"]);
    course.declare('b', 3, "");
    assert_eq!(
        told(&mut course),
        ["demo/web: rollout of revision 2 (bbbbbbbb) begins: 0 of 3 replicas available, 1 old instance"]
    );
}

#[test]
fn a_restart_that_fails_goes_back_to_what_is_declared_and_is_told_of() {
    for before in [0, 1] {
        let mut course = Course::rolled_out(SURGE);
        let (declared, mut now) = (course.declared(), course.snapshot.now);
        let of = |slot, restarts| {
            up(slot, 'a').change(move |one| {
                if restarts > 0 {
                    one.id.revision = revision('a').restarted(restarts);
                    one.runtime_id = one.id.runtime_name();
                }
            })
        };
        if before > 0 {
            restart(course.history(), &declared, now).expect("it is not paused");
            course.turn();
            course.observe((0..3).map(|slot| of(slot, before)));
            course.wait(1);
            assert_eq!(course.turn(), ["RolloutComplete"]);
            course.wait(100);
            now = course.snapshot.now;
        }
        restart(course.history(), &declared, now).expect("it is not paused");
        assert_eq!(course.turn(), ["RolloutStarted"]);
        course.wait(61);
        assert_eq!(course.turn()[0], "RolledBack");
        let wanted = if before > 0 { revision('a').restarted(before) } else { revision('a') };
        let standing = |course: &Course| {
            let service = course.effective().desired.expect("declared").services["web"].clone();
            let failed = match service.standing.failed_order {
                Some(OrderFailure::Restart { failure }) => Some(failure.reason.name()),
                Some(other) => panic!("{other:?}"),
                None => None,
            };
            (service.revision, service.standing.rolled_back, failed)
        };
        let expected = (wanted, None, Some("ProgressDeadlineExceeded"));
        assert_eq!((standing(&course), course.history().pin.clone()), (expected, None), "after {before}");
        course.effective().expect("");
        // It stays so until another try, or something else is declared.
        for again in [true, false] {
            let mut course = course.clone();
            match again {
                true => restart(course.history(), &declared, now).expect("it is not paused"),
                false => course.declare('b', 3, SURGE),
            }
            course.turn();
            assert_eq!(standing(&course).2, None, "restarted: {again}");
        }
    }
}

#[test]
fn a_deadline_that_is_over_tells_what_was_last_in_the_way() {
    let decided = |make: Trigger| -> String {
        let mut course = Course::stuck("on_failure: rollback");
        make(&mut course);
        course.wait(60);
        let decided = course.decide().remove(0);
        assert_eq!(decided.kind, "RolledBack");
        decided.message
    };
    let slow = decided(Box::new(|_| {}));
    assert!(slow.contains("3 old instances are left; rolling back"), "{slow}");
    let made: [(Trigger, &str); 3] = [
        (Box::new(|course| course.crash(1, 1)), "demo/web/0: exited 1"),
        (
            Box::new(|course| course.judge_new(HealthState::Starting { last: Some("connection refused".to_owned()) })),
            "demo/web/0 is starting: connection refused",
        ),
        (
            Box::new(|course| {
                course.crash(1, 1);
                course.refuse();
                course.snapshot.history.failures.values_mut().for_each(|failure| failure.retryable = true);
            }),
            "demo/web/1: no space left",
        ),
    ];
    for (make, trouble) in made {
        let message = decided(make);
        assert!(
            message.contains(&format!("3 old instances are left; the last trouble: {trouble}; rolling")),
            "{message}"
        );
    }
}
