//! Jobs: completions, parallelism, failures, deadlines, what is kept, and that a run is made once.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use evenkeel::plan::{Action, job_states, remember};
use evenkeel::spec::RuntimeKind;
use evenkeel::state::{EndedBy, Exit, Instance, InstanceId, JobRecord, Phase, RunEnd, RunId, StopCause};
use proptest::prelude::*;

use super::dsl::{Change, Snapshot, ago, revision, up};

/// A job `web` with these settings.
fn job(settings: &str) -> Snapshot {
    Snapshot::declared().service("web", 'a', 1, &format!("rtype: job\njob: {{{settings}}}"))
}

/// The run that began an hour ago.
fn run() -> RunId {
    RunId::after(None, ago(3600))
}

fn one(index: u32, letter: char) -> Instance {
    up(index, letter).of_run(run())
}

/// What is remembered, as a controller does.
pub fn remembering(mut snapshot: Snapshot) -> Snapshot {
    let changes = remember(&snapshot.input(&snapshot.observed));
    for (service, record) in changes {
        match record {
            Some(record) => drop(snapshot.history.jobs.insert(service, record)),
            None => drop(snapshot.history.jobs.remove(&service)),
        }
    }
    snapshot
}

fn ends(snapshot: &Snapshot) -> Vec<RunEnd> {
    snapshot.history.jobs["web"].runs.iter().map(|run| run.end.clone()).collect()
}

#[test]
fn completions_are_made_side_by_side_as_far_as_parallelism_allows() {
    job("").expect("launch web/0 a0: not completed yet");
    job("completions: 3, parallelism: 2").expect(
        "launch web/0 a0: not completed yet, 3 completions wanted
         launch web/1 a0: not completed yet, 3 completions wanted",
    );
    job("completions: 3, parallelism: 2").with([one(0, 'a'), one(1, 'a').exited(0, 5, 1)]).expect(
        "launch web/2 a0: not completed yet, 3 completions wanted
         wait for demo/web/0 (aaaaaaaa, attempt 0) to end",
    );
    job("completions: 2, parallelism: 5").expect(
        "launch web/0 a0: not completed yet, 2 completions wanted
         launch web/1 a0: not completed yet, 2 completions wanted",
    );
    // A completion that waits for its next try takes no place.
    job("completions: 2").with([one(0, 'a').exited(3, 5, 1)]).expect(
        "launch web/1 a0: not completed yet, 2 completions wanted
         wait to restart demo/web/0 (aaaaaaaa, attempt 0) until 2026-01-01T12:00:09Z: exited 3
         look again at 2026-01-01T12:00:09Z",
    );
}

#[test]
fn a_failed_completion_is_tried_again_after_ten_seconds_doubled_up_to_six_minutes() {
    for (failures, pause) in [(1, 10), (2, 20), (3, 40), (4, 80), (5, 160), (6, 320), (7, 360), (20, 360)] {
        let failed = |ago| one(0, 'a').restarted(failures - 1, failures - 1).exited(3, 5, ago);
        let settings = "backoff_limit: 50";
        let early = job(settings).with([failed(pause - 1)]).plan();
        assert!(early.is_empty() && early.next_look.is_some(), "{failures}: {early}");
        let due = job(settings).with([failed(pause + pause / 10 + 1)]);
        let text =
            format!("launch (restarts {failures}, streak {failures}) web/0 a1: exited 3, {failures} of 50 retries");
        due.expect(&text);
    }
}

#[test]
fn a_run_fails_when_more_instances_failed_than_its_limit() {
    let failed = |index: u32, times: u32| one(index, 'a').restarted(times - 1, times - 1).exited(3, 5, 1000);
    let failing = "keep web as it is: failed: exited 3, and 2 retries (job.backoff_limit) are used up";
    job("backoff_limit: 2").with([failed(0, 3)]).expect(failing);
    job("backoff_limit: 0")
        .with([failed(0, 1)])
        .expect("keep web as it is: failed: exited 3, and it is not tried again");
    // Failures of all completions count together, and what still runs is stopped.
    let side = "completions: 3, parallelism: 3, backoff_limit: 2";
    job(side).with([failed(0, 2), failed(1, 1), one(2, 'a')]).expect("halt web/2 a0: the run has failed: exited 3");
    job(side).with([failed(0, 2), failed(1, 1), one(2, 'a').exited(143, 5, 1).by(StopCause::Retired)]).expect(failing);
    for policy in [
        "restart_policy: {kind: no}",
        "restart_policy: {max_attempts: 0}",
        "restart_policy: {final_exit_codes: [3]}",
        "errors: {on_panic: {action: isolate}}",
    ] {
        let fields = format!("rtype: job\n{}", policy.replace("kind: no", "kind: 'no'"));
        let snapshot = Snapshot::declared().service("web", 'a', 1, &fields).with([failed(0, 1)]);
        snapshot.expect("keep web as it is: failed: exited 3, and it is not tried again");
    }
}

#[test]
fn what_does_the_work_of_a_completion_a_second_time_is_ended() {
    let second = one(0, 'a').attempt(1).since(600);
    let mut doubled = remembering(job("active_deadline: 2h").with([one(0, 'a'), second]));
    let goes_on = "wait for demo/web/0 (aaaaaaaa, attempt 1) to end
         look again at 2026-01-01T13:00:00Z";
    doubled.expect(&format!("retire web/0 a0: another instance holds its slot\n{goes_on}"));
    // The run is as old as before when its first instance has gone.
    doubled.observed.remove(0);
    doubled.expect(goes_on);
    assert_eq!(job_states(&doubled.input(&doubled.observed))["web"].active[0].started_at, ago(3600));
}

#[test]
fn work_that_is_done_is_not_done_again_when_somebody_removes_its_instance() {
    let mut pruned = remembering(job("completions: 2").with([one(0, 'a').exited(0, 5, 60), one(1, 'a')]));
    pruned.observed.remove(0);
    pruned.expect("wait for demo/web/1 (aaaaaaaa, attempt 0) to end");
    pruned = remembering(pruned);
    assert_eq!(job_states(&pruned.input(&pruned.observed))["web"].active[0].succeeded, 1);
    pruned.observed = vec![one(1, 'a').exited(0, 5, 1)];
    let over = remembering(pruned);
    over.expect("keep web as it is: completed at 2026-01-01T11:59:59Z");
    let record = &over.history.jobs["web"];
    assert_eq!((record.runs[0].succeeded, &record.runs[0].end, record.active.len()), (2, &RunEnd::Completed, 0));
    // What is started again though its work was done and its run goes on has nothing to do.
    let done = remembering(job("completions: 2, parallelism: 2").with([one(0, 'a').exited(0, 5, 60), one(1, 'a')]));
    let again = Snapshot { observed: vec![one(0, 'a'), one(1, 'a')], ..done };
    again.expect(
        "retire web/0 a0: dead, and no longer needed for its output
         wait for demo/web/1 (aaaaaaaa, attempt 0) to end",
    );
}

#[test]
fn failures_count_when_somebody_removes_the_instances_that_failed() {
    let failed = one(0, 'a').attempt(1).restarted(1, 1).exited(3, 5, 5);
    let before = remembering(job("backoff_limit: 2").with([failed]));
    let mut pruned = Snapshot { observed: Vec::new(), ..before.clone() };
    assert_eq!(pruned.plan(), before.plan(), "it waits for its next try");
    assert_eq!(remembering(pruned.clone()).history, before.history);
    assert_eq!(job_states(&pruned.input(&[]))["web"].active[0].failed, 2);
    pruned.now += TimeDelta::seconds(30);
    pruned.expect("launch (restarts 2, streak 2) web/0 a2: exited 3, 2 of 2 retries");
    let last = one(0, 'a').attempt(2).restarted(2, 2).exited(3, 5, 1);
    let over = remembering(pruned.with([last]));
    over.expect("keep web as it is: failed: exited 3, and 2 retries (job.backoff_limit) are used up");
    assert_eq!(over.history.jobs["web"].runs[0].failed, 3);
}

#[test]
fn what_somebody_removes_while_it_runs_is_made_again_in_the_same_run() {
    let mut removed = remembering(job("active_deadline: 2h").with([one(0, 'a')]));
    removed.observed.clear();
    removed.expect(
        "launch web/0 a1: not completed yet
         look again at 2026-01-01T13:00:00Z",
    );
    assert_eq!(job_states(&removed.input(&[]))["web"].active[0].run, run());
}

#[test]
fn a_run_that_cannot_be_seen_is_not_over() {
    let late = remembering(job("active_deadline: 2h").with([one(0, 'a')]));
    let hidden = Snapshot { observed: Vec::new(), now: ago(-7200), ..late }.unreachable(RuntimeKind::Docker);
    assert_eq!(remembering(hidden.clone()).history, hidden.history, "it may have completed in time");
    let seen = Snapshot { unreachable: BTreeMap::new(), ..hidden };
    let done = seen.clone().with([one(0, 'a').exited(0, 5, 60)]);
    assert_eq!(ends(&remembering(done)), [RunEnd::Completed]);
    assert_eq!(ends(&remembering(seen)), [RunEnd::DeadlineExceeded]);
}

#[test]
fn no_run_takes_the_place_of_one_that_cannot_be_seen_before_that_has_ended() {
    let changed = |before: &Snapshot, runtime| {
        let desired = job("overlap: forbid").service("web", 'b', 1, "rtype: job\njob: {overlap: forbid}");
        let desired = desired.runs_on("web", runtime).desired;
        Snapshot { desired, observed: Vec::new(), ..before.clone() }.unreachable(RuntimeKind::Docker)
    };
    let before = remembering(job("overlap: forbid").with([one(0, 'a')]));
    for runtime in [RuntimeKind::Docker, RuntimeKind::Sandbox] {
        let hidden = remembering(changed(&before, runtime));
        assert_eq!(ends(&hidden), [], "it may go on");
        hidden.expect("wait for docker to answer: connection refused");
        let seen = Snapshot { unreachable: BTreeMap::new(), ..hidden };
        let back = remembering(seen.clone().with([one(0, 'a')]));
        back.expect("halt web/0 a0: another run takes its place");
        assert_eq!(ends(&remembering(seen)), [RunEnd::Replaced]);
    }
    // One that was thought to be over and is not.
    let mut thought = remembering(job("overlap: forbid").with([one(0, 'a').exited(0, 5, 3000)]));
    thought.desired = job("").service("web", 'b', 1, "rtype: job\njob: {overlap: forbid}").desired;
    thought.observed = vec![one(0, 'a')];
    thought.expect("retire web/0 a0: dead, and no longer needed for its output");
}

#[test]
fn what_somebody_else_stopped_is_tried_again_and_fails_no_run() {
    for code in [0, 1, 143] {
        let stopped = |ago| job("backoff_limit: 0").with([one(0, 'a').exited(code, 5, ago).by(StopCause::Others)]);
        let again = format!("launch web/0 a1: stopped by somebody else: {}", Exit::from_code(code, None, ago(1)));
        stopped(1).expect(&again);
        let early = stopped(0).plan();
        assert!(early.is_empty() && early.next_look == Some(ago(-1)), "{early}");
        let remembered = remembering(stopped(1));
        assert_eq!(ends(&remembered), []);
        remembered.expect(&again);
    }
}

#[test]
fn a_deadline_counts_from_the_first_instance_and_ends_the_run() {
    let first = one(0, 'a').exited(1, 5, 3500);
    let second = one(0, 'a').attempt(1).restarted(1, 1).since(600);
    job("active_deadline: 2h").with([first.clone(), second.clone()]).expect(
        "wait for demo/web/0 (aaaaaaaa, attempt 1) to end
         look again at 2026-01-01T13:00:00Z",
    );
    let over = job("active_deadline: 1h");
    over.clone()
        .with([first.clone(), second.clone()])
        .expect("halt web/0 a1: job.active_deadline is over, the run began at 2026-01-01T11:00:00Z");
    let stopped = second.exited(143, 600, 0).by(StopCause::Expired);
    let over = over.with([first, stopped]);
    over.expect("keep web as it is: failed: deadline exceeded (job.active_deadline)");
    assert_eq!(ends(&remembering(over)), [RunEnd::DeadlineExceeded]);
}

#[test]
fn a_deadline_ends_a_run_of_which_no_instance_can_be_made() {
    let begins = |snapshot: Snapshot| {
        let begun = remembering(snapshot);
        assert_eq!(remembering(begun.clone()).history.jobs, begun.history.jobs, "it is remembered once");
        begun
    };
    let mut begun = begins(job("active_deadline: 10m"));
    let run = job_states(&begun.input(&[]))["web"].active[0].run;
    // Its image can't be had, time and again.
    begun.now += TimeDelta::seconds(599);
    let again = begun.plan();
    assert!(again.lanes.iter().all(|lane| lane.steps[0].action.instance().is_some_and(|id| id.run == Some(run))));
    assert_eq!(again.lanes.len(), 1);
    // What is on its way is no proof of a beginning.
    let mut pulling = begins(begun.clone().with([up(0, 'a').of_run(run).phase(Phase::Pending)]));
    pulling.observed.clear();
    pulling.now += TimeDelta::seconds(1);
    let over = remembering(pulling);
    assert_eq!(ends(&over), [RunEnd::DeadlineExceeded]);
    over.expect("keep web as it is: failed: deadline exceeded (job.active_deadline)");
    assert_eq!(over.history.jobs["web"].active, []);
    // Another template is another job.
    let other = begun.clone().service("web", 'b', 1, "rtype: job\njob: {active_deadline: 10m}");
    let mut other = begins(other);
    other.now += TimeDelta::seconds(599);
    other.expect(
        "launch web/0 b0: not completed yet
         look again at 2026-01-01T12:19:59Z",
    );
    // It is as old as it was once an instance is made.
    let made = remembering(begun.clone().with([up(0, 'a').of_run(run).since(0)]));
    assert_eq!(made.history.jobs["web"].active[0].since, begun.history.jobs["web"].active[0].since);
}

#[test]
fn a_job_runs_once_for_its_template_whether_its_instances_are_left_or_not() {
    let completed = job("").with([one(0, 'a').exited(0, 5, 60)]);
    completed.expect("keep web as it is: completed at 2026-01-01T11:59:00Z");
    let mut recorded = remembering(completed);
    assert_eq!(ends(&recorded), [RunEnd::Completed]);
    recorded.expect("keep web as it is: completed at 2026-01-01T11:59:00Z");
    recorded.observed.clear();
    recorded.expect("keep web as it is: completed at 2026-01-01T11:59:00Z");
    // Another template is another job, and so is the first one after it.
    recorded.clone().service("web", 'b', 1, "rtype: job").expect("launch web/0 b0: not completed yet");
    let other = up(0, 'b').of_run(RunId::after(Some(run()), ago(30))).exited(0, 5, 20);
    recorded.with([other]).expect("launch web/0 a0: not completed yet");
}

#[test]
fn a_run_of_another_template_is_stopped_before_the_next_one_begins() {
    let changed = Snapshot::declared().service("web", 'b', 1, "rtype: job");
    changed.clone().with([one(0, 'a')]).expect("halt web/0 a0: another run takes its place");
    let stopped = one(0, 'a').exited(143, 5, 1).by(StopCause::Retired);
    let after = changed.with([stopped]);
    after.expect("launch web/0 b0: not completed yet");
    assert_eq!(ends(&remembering(after)), [RunEnd::Replaced]);
    // What was stopped for another template that is not wanted any more did not run.
    let back = job("").with([one(0, 'a').exited(143, 5, 1).by(StopCause::Retired)]);
    back.expect("launch web/0 a0: not completed yet");
    remembering(back).expect("launch web/0 a0: not completed yet");
}

#[test]
fn a_job_that_was_triggered_runs_again() {
    let asked = RunId::after(None, ago(1));
    let triggered = |settings: &str, last: Instance| {
        let mut snapshot = remembering(job(settings).with([last]));
        snapshot.history.jobs.entry("web".into()).or_default().triggered.push(asked);
        snapshot
    };
    let done = triggered("", one(0, 'a').exited(0, 5, 60));
    done.expect("launch web/0 a0: asked for with keel trigger");
    let begun = up(0, 'a').of_run(asked);
    let begun = remembering(done.with([begun]));
    assert_eq!(begun.history.jobs["web"].triggered, []);
    begun.expect("wait for demo/web/0 (aaaaaaaa, attempt 0) to end");
    let waits = "wait for demo/web/0 (aaaaaaaa, attempt 0) to end";
    triggered("", one(0, 'a')).expect(waits);
    triggered("overlap: replace", one(0, 'a')).expect("halt web/0 a0: another run takes its place");
    triggered("overlap: allow", one(0, 'a')).expect(&format!("launch web/0 a0: asked for with keel trigger\n{waits}"));
}

#[test]
fn finished_runs_are_kept_by_history_and_ttl_and_not_removed_before_they_are_recorded() {
    let ended = |minutes: i64| {
        let run = RunId::after(None, ago(60 * minutes + 10));
        up(0, 'a').of_run(run).exited(0, 5, 60 * minutes).change(|one| one.created_at = ago(60 * minutes + 10))
    };
    let four = || [40, 30, 20, 10].map(ended);
    let complete = "keep web as it is: completed at 2026-01-01T11:50:00Z";
    job("").with(four()).expect(complete);
    let removed = "remove web/0 a0: its run is over, and job.history keeps";
    remembering(job("").with(four())).expect(&format!("{removed} 3\n{complete}"));
    let none = format!("{removed} 0\n").repeat(4);
    remembering(job("history: 0").with(four())).expect(&format!("{none}{complete}"));
    remembering(job("history: 2, ttl_after_finished: 15m").with(four())).expect(&format!(
        "{removed} 2\n{removed} 2
         remove web/0 a0: its run was over at 2026-01-01T11:40:00Z, and job.ttl_after_finished has passed
         {complete}
         look again at 2026-01-01T12:05:00Z"
    ));
    let kept = remembering(job("history: 0").with(four()));
    let gone = remembering(Snapshot { observed: Vec::new(), ..kept.clone() });
    assert_eq!(gone.history, kept.history);
}

#[test]
fn runs_without_instances_are_remembered_up_to_a_bound() {
    let mut snapshot = job("");
    for minute in (0..30).rev() {
        let run = RunId::after(None, ago(60 * minute + 10));
        snapshot.observed = vec![up(0, 'a').of_run(run).exited(0, 5, 60 * minute)];
        snapshot = remembering(snapshot);
    }
    let kept = snapshot.history.jobs["web"].runs.len();
    assert_eq!(kept, evenkeel::plan::RUNS_REMEMBERED + 1);
}

#[test]
fn what_is_not_declared_any_more_is_forgotten_when_its_instances_have_gone() {
    let mut snapshot = remembering(job("").with([one(0, 'a').exited(0, 5, 60)]));
    snapshot.desired.as_mut().expect("declared").services.clear();
    assert_eq!(remembering(snapshot.clone()).history, snapshot.history, "its instance is left");
    snapshot.observed.clear();
    let silent = snapshot.clone().unreachable(RuntimeKind::Docker);
    assert_eq!(remembering(silent).history, snapshot.history, "its instances may be left");
    assert_eq!(remembering(snapshot).history.jobs, BTreeMap::new());
}

#[test]
fn what_is_only_about_to_be_made_proves_nothing() {
    let mut snapshot = job("");
    let asked = RunId::after(None, ago(1));
    snapshot.history.jobs.insert("web".into(), JobRecord { triggered: vec![asked], ..JobRecord::default() });
    let pending = snapshot.clone().with([up(0, 'a').of_run(asked).phase(Phase::Pending)]);
    assert_eq!(remembering(pending).history, snapshot.history);
}

#[test]
fn a_forecast_tells_a_job_to_its_end() {
    job("completions: 3, parallelism: 2").expect_course(
        "1. create and start demo/web/0-1 (2 instances, aaaaaaaa, attempt 0) on docker from image docker.io/library/nginx:latest: not completed yet, 3 completions wanted
         wait for demo/web/0-1 (2 instances, aaaaaaaa, attempt 0) to end
         2. create and start demo/web/2 (aaaaaaaa, attempt 0) on docker from image docker.io/library/nginx:latest: not completed yet, 3 completions wanted
         wait for demo/web/2 (aaaaaaaa, attempt 0) to end
         keep web as it is: completed at 2026-01-01T12:00:00Z",
    );
}

/// A machine with a controller on it that carries out plans, and remembers.
struct World {
    snapshot: Snapshot,
    /// Instances that were ever made.
    made: Vec<InstanceId>,
}

impl World {
    /// One plan, of which some steps are carried out and what is to be remembered may be lost.
    fn turn(&mut self, steps: usize, remembers: bool) {
        let plan = self.snapshot.plan();
        let now = self.snapshot.now;
        for action in plan.steps().map(|step| &step.action).take(steps) {
            let observed = &mut self.snapshot.observed;
            let place = action.instance().and_then(|id| observed.iter().position(|one| one.id == *id));
            match (action, place) {
                (Action::Create { id, restarts, streak, .. }, None) => {
                    assert!(!self.made.contains(id), "{id:?} is made twice");
                    self.made.push(id.clone());
                    let made = up(0, 'a').phase(Phase::Created).restarted(*restarts, *streak);
                    observed.push(made.change(|one| {
                        (one.id, one.runtime_id, one.created_at) = (id.clone(), id.runtime_name(), now);
                    }));
                }
                (Action::StartCreated { .. } | Action::Start { .. }, Some(place)) => {
                    observed[place].phase = Phase::Running { since: now, ready: true };
                }
                (Action::Stop { stop, .. }, Some(place)) => {
                    let mut exit = Exit::from_code(143, observed[place].phase.started_at(), now);
                    exit.ended_by = EndedBy::Request(stop.cause);
                    observed[place].phase = Phase::Exited(exit);
                }
                (Action::Remove { .. }, Some(place)) => drop(observed.remove(place)),
                _ => {}
            }
        }
        if remembers {
            self.snapshot = remembering(self.snapshot.clone());
        }
    }

    /// Somebody removes what is dead, of which everything is remembered.
    fn prune(&mut self) {
        self.snapshot = remembering(self.snapshot.clone());
        self.snapshot.observed.retain(|one| !matches!(one.phase, Phase::Exited(_)));
    }

    fn end_one(&mut self, choice: usize, code: i32) {
        let now = self.snapshot.now;
        let running = self.snapshot.observed.iter_mut().filter(|one| matches!(one.phase, Phase::Running { .. }));
        let mut running: Vec<&mut Instance> = running.collect();
        if let Some(index) = choice.checked_rem(running.len()) {
            running[index].phase = Phase::Exited(Exit::from_code(code, running[index].phase.started_at(), now));
        }
    }

    fn live(&self) -> usize {
        self.snapshot.observed.iter().filter(|one| !matches!(one.phase, Phase::Exited(_))).count()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_completion_succeeds_once_and_no_more_run_than_may(
        (completions, parallelism, limit) in (1_u32..5, 1_u32..4, 0_u32..4),
        turns in prop::collection::vec((0_usize..12, any::<bool>(), any::<bool>(), 0_usize..8, 0..4, 0_i64..400), 1..60),
    ) {
        let settings = format!("completions: {completions}, parallelism: {parallelism}, backoff_limit: {limit}, history: 0");
        let mut world = World { snapshot: job(&settings), made: Vec::new() };
        let mut succeeded = 0;
        for (steps, remembers, prunes, choice, code, seconds) in turns {
            world.turn(steps, remembers);
            prop_assert!(world.live() <= parallelism as usize);
            let before = world.live();
            world.end_one(choice, code);
            succeeded += u32::from(code == 0 && world.live() < before);
            if prunes {
                world.prune();
            }
            world.snapshot.now += TimeDelta::seconds(seconds);
        }
        for _ in 0..200 {
            world.turn(usize::MAX, true);
            let before = world.live();
            world.end_one(0, 0);
            succeeded += u32::from(world.live() < before);
            world.snapshot.now += TimeDelta::seconds(400);
        }
        let state = job_states(&world.snapshot.input(&world.snapshot.observed)).remove("web").expect("a job");
        prop_assert_eq!(state.finished.len(), 1, "one run, whatever was lost: {:?}", state);
        let run = &state.finished[0];
        prop_assert_eq!(run.succeeded, succeeded);
        prop_assert!(succeeded <= completions);
        match &run.end {
            RunEnd::Completed => prop_assert_eq!(succeeded, completions),
            RunEnd::Failed { .. } => prop_assert!(run.failed > limit),
            other => prop_assert!(false, "{:?}", other),
        }
        prop_assert!(world.snapshot.plan().is_empty(), "a second plan does something");
        prop_assert!(world.snapshot.observed.is_empty(), "nothing is kept");
        prop_assert_eq!(revision('a'), run.revision.clone());
    }
}
