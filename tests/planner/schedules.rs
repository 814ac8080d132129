//! Cron services: when they are due, also where clocks change, and which runs are left out or made up for.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use evenkeel::plan::{Action, Schedule, job_states};
use evenkeel::spec::RuntimeKind;
use evenkeel::state::{Instance, Phase, RunEnd, RunId, StopCause};

use super::dsl::{Change, Snapshot, ago, now, spec, up};
use super::jobs::remembering;

fn time(text: &str) -> DateTime<Utc> {
    text.parse().expect("a time")
}

/// A cron service `web` with this schedule and these settings.
fn cron(schedule: &str, settings: &str) -> Snapshot {
    Snapshot::declared().service("web", 'a', 1, &format!("rtype: cron\nschedule: '{schedule}'\njob: {{{settings}}}"))
}

/// The times of a schedule in a zone after a time, as they are written there.
fn times(schedule: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
    let spec = spec(&format!("rtype: cron\nschedule: '{schedule}'\ntime_zone: {zone}"));
    let schedule = Schedule::of(&spec).expect("a schedule");
    let zone: chrono_tz::Tz = zone.parse().expect("a zone");
    let mut at: DateTime<Utc> = after.parse().expect("a time");
    let next = || {
        at = schedule.next(at).expect("a time");
        at.with_timezone(&zone).format("%d %H:%M:%S %z").to_string()
    };
    std::iter::repeat_with(next).take(count).collect()
}

#[test]
fn a_time_that_a_change_of_clocks_leaves_out_is_due_right_after_the_gap() {
    let berlin = times("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", 2);
    assert_eq!(berlin, ["29 03:00:00 +0200", "30 02:30:00 +0200"]);
    let new_york = times("30 2 * * *", "America/New_York", "2026-03-08T00:00:00-05:00", 2);
    assert_eq!(new_york, ["08 03:00:00 -0400", "09 02:30:00 -0400"]);
    let lord_howe = times("15 2 * * *", "Australia/Lord_Howe", "2026-10-04T00:00:00+10:30", 2);
    assert_eq!(lord_howe, ["04 02:30:00 +1100", "05 02:15:00 +1100"]);
}

#[test]
fn a_time_that_a_change_of_clocks_repeats_is_due_once() {
    let berlin = times("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2);
    assert_eq!(berlin, ["25 02:30:00 +0200", "26 02:30:00 +0100"]);
    let new_york = times("30 1 * * *", "America/New_York", "2026-11-01T00:00:00-04:00", 2);
    assert_eq!(new_york, ["01 01:30:00 -0400", "02 01:30:00 -0500"]);
    let lord_howe = times("45 1 * * *", "Australia/Lord_Howe", "2026-04-05T00:00:00+11:00", 2);
    assert_eq!(lord_howe, ["05 01:45:00 +1100", "06 01:45:00 +1030"]);
}

#[test]
fn steps_go_by_the_wall_clock() {
    let berlin = times("*/30 * * * *", "Europe/Berlin", "2026-03-29T00:45:00Z", 2);
    assert_eq!(berlin, ["29 03:00:00 +0200", "29 03:30:00 +0200"], "what is left out is left out");
    let lord_howe = times("*/30 * * * *", "Australia/Lord_Howe", "2026-04-04T14:15:00Z", 3);
    assert_eq!(lord_howe, ["05 01:30:00 +1100", "05 01:30:00 +1030", "05 02:00:00 +1030"], "and repeated twice");
}

#[test]
fn expressions_have_five_six_or_seven_fields_or_a_name() {
    let next = |schedule| times(schedule, "UTC", "2026-01-01T12:00:00Z", 1).remove(0);
    assert_eq!(next("*/5 * * * *"), "01 12:05:00 +0000");
    assert_eq!(next("*/5 * * * * *"), "01 12:00:05 +0000");
    assert_eq!(next("0 0 0 1 1 * 2027"), "01 00:00:00 +0000");
    assert_eq!(next("@daily"), "02 00:00:00 +0000");
}

/// The service, first seen so long ago.
fn seen(mut snapshot: Snapshot, seconds_ago: i64) -> Snapshot {
    snapshot.now = ago(seconds_ago);
    snapshot = remembering(snapshot);
    snapshot.now = now();
    snapshot
}

fn due(text: &str) -> RunId {
    RunId::scheduled(time(text))
}

#[test]
fn a_schedule_counts_from_when_it_is_first_seen() {
    let hourly = cron("0 * * * *", "");
    let waits = "wait for the next run of web at 2026-01-01T13:00:00Z\nlook again at 2026-01-01T13:00:00Z";
    hourly.expect(waits);
    remembering(hourly).expect(waits);
    // Another expression is seen first now, whatever was due by the one before.
    let other = seen(cron("0 0 1 6 *", ""), 7200).service("web", 'a', 1, "rtype: cron\nschedule: '0 * * * *'");
    other.expect(waits);
}

#[test]
fn what_was_missed_is_run_once_and_not_when_it_was_too_long_ago() {
    let next = "wait for the next run of web at 2026-01-01T13:00:00Z\nlook again at 2026-01-01T13:00:00Z";
    seen(cron("0 * * * *", ""), 5 * 3600).expect(&format!("launch web/0 a0: due at 2026-01-01T12:00:00Z\n{next}"));
    // Weekly on Thursdays: 2026-01-01 is one.
    let weekly = |schedule: &str| seen(cron(schedule, ""), 10 * 24 * 3600).plan();
    assert_eq!(weekly("0 13 * * 3").steps().count(), 3, "23 hours ago");
    assert_eq!(weekly("0 11 * * 3").steps().count(), 0, "25 hours ago");
}

#[test]
fn a_run_is_known_by_the_time_that_it_was_due_at() {
    let hourly = seen(cron("0 * * * *", ""), 3600);
    let plan = hourly.plan();
    let made = plan.steps().find_map(|step| match &step.action {
        Action::Create { id, .. } => Some(id.clone()),
        _ => None,
    });
    let made = made.expect("a run");
    assert_eq!(made.run, Some(due("2026-01-01T12:00:00Z")));
    assert_eq!(made.runtime_name(), format!("demo_web_0_aaaaaaaa_0_{}", now().timestamp_millis()));
    let begun = |phase| hourly.clone().with([up(0, 'a').of_run(due("2026-01-01T12:00:00Z")).phase(phase)]);
    for phase in [Phase::Pending, Phase::Running { since: now(), ready: true }] {
        assert_eq!(begun(phase).plan().steps().count(), 0);
    }
}

fn went_on(overlap: &str, last: Instance) -> Snapshot {
    seen(cron("0 * * * *", overlap), 3700).with([last.of_run(due("2026-01-01T11:00:00Z"))])
}

#[test]
fn a_run_that_is_due_while_one_goes_on_is_left_out_or_runs_too_or_takes_its_place() {
    let rest = "wait for the next run of web at 2026-01-01T13:00:00Z\nlook again at 2026-01-01T13:00:00Z";
    let goes_on = "wait for demo/web/0 (aaaaaaaa, attempt 0) to end";
    let forbidden = went_on("overlap: forbid", up(0, 'a'));
    forbidden.expect(&format!("{goes_on}\n{rest}"));
    // It is left out for good, also when the other one ends.
    let mut left_out = remembering(forbidden);
    left_out.observed = vec![up(0, 'a').of_run(due("2026-01-01T11:00:00Z")).exited(0, 5, 0)];
    left_out.expect(rest);
    went_on("overlap: allow", up(0, 'a'))
        .expect(&format!("launch web/0 a0: due at 2026-01-01T12:00:00Z\n{goes_on}\n{rest}"));
    let replaced = "overlap: replace";
    went_on(replaced, up(0, 'a')).expect(&format!("halt web/0 a0: another run takes its place\n{rest}"));
    let stopped = went_on(replaced, up(0, 'a').exited(143, 5, 0).by(StopCause::Retired));
    stopped.expect(&format!("launch web/0 a0: due at 2026-01-01T12:00:00Z\n{rest}"));
    let ended = remembering(stopped).history.jobs["web"].runs[0].end.clone();
    assert_eq!(ended, RunEnd::Replaced);
}

#[test]
fn what_is_due_is_not_left_out_for_a_run_of_which_it_is_not_known_whether_it_goes_on() {
    let rest = "wait for the next run of web at 2026-01-01T13:00:00Z\nlook again at 2026-01-01T13:00:00Z";
    for overlap in ["overlap: forbid", ""] {
        // As a controller begins: what ran is remembered, and no runtime has answered yet.
        let before = remembering(Snapshot { now: ago(3590), ..went_on(overlap, up(0, 'a')) });
        let hidden = Snapshot { observed: Vec::new(), now: now(), ..before }.unreachable(RuntimeKind::Docker);
        let hidden = remembering(hidden);
        let seen = |last: Instance| {
            let last = last.of_run(due("2026-01-01T11:00:00Z"));
            Snapshot { unreachable: BTreeMap::new(), ..hidden.clone() }.with([last])
        };
        let launch = format!("launch web/0 a0: due at 2026-01-01T12:00:00Z\n{rest}");
        seen(up(0, 'a').exited(0, 5, 3540)).expect(&launch);
        let goes_on = seen(up(0, 'a'));
        goes_on.expect(&format!("wait for demo/web/0 (aaaaaaaa, attempt 0) to end\n{rest}"));
        let mut left_out = remembering(goes_on);
        left_out.observed = vec![up(0, 'a').of_run(due("2026-01-01T11:00:00Z")).exited(0, 5, 0)];
        left_out.expect(rest);
    }
}

#[test]
fn no_more_runs_go_on_side_by_side_than_a_bound() {
    let runs = (0..evenkeel::plan::RUNS_AT_ONCE).map(|minute| {
        let at = ago(60 * i64::try_from(minute + 1).expect("a number"));
        up(0, 'a').of_run(RunId::scheduled(at))
    });
    let full = seen(cron("* * * * *", "overlap: allow"), 3600).with(runs);
    assert_eq!(full.plan().steps().count(), 0);
    let mut one_less = full;
    one_less.observed.pop();
    assert_eq!(one_less.plan().steps().count(), 3);
}

#[test]
fn a_clock_that_steps_back_runs_nothing_twice() {
    let mut snapshot = seen(cron("0 * * * *", ""), 3600);
    snapshot.observed = vec![up(0, 'a').of_run(due("2026-01-01T12:00:00Z")).exited(0, 5, 0)];
    let mut snapshot = remembering(snapshot);
    snapshot.observed.clear();
    for back in [1, 600, 5_000, 23 * 3600, 30 * 3600] {
        snapshot.now = ago(back);
        let mut early = remembering(snapshot.clone());
        assert_eq!(early.plan().steps().count(), 0, "{back} s back");
        early.now = now() + TimeDelta::seconds(10);
        assert_eq!(early.plan().steps().count(), 0, "{back} s back, and at noon again");
    }
    // A clock that was wrong by years does not hold the schedule up until then.
    snapshot.now = ago(400 * 24 * 3600);
    let mut right = remembering(snapshot);
    right.now += TimeDelta::hours(1);
    assert_eq!(right.plan().steps().count(), 3);
}

#[test]
fn a_forecast_ends_with_the_next_run() {
    let rest = "wait for the next run of web at 2026-01-01T13:00:00Z";
    cron("0 * * * *", "").expect_course(rest);
    seen(cron("0 * * * *", ""), 3600).expect_course(&format!(
        "1. create and start demo/web/0 (aaaaaaaa, attempt 0) on docker from image docker.io/library/nginx:latest: due at 2026-01-01T12:00:00Z
         wait for demo/web/0 (aaaaaaaa, attempt 0) to end
         {rest}"
    ));
}

#[test]
fn a_schedule_that_is_over_says_so() {
    cron("0 0 0 1 1 * 2020", "").expect("run web no more: its schedule is over");
}

#[test]
fn the_state_tells_the_last_runs_and_the_next() {
    let snapshot = remembering(went_on("", up(0, 'a').exited(3, 5, 1)));
    let state = job_states(&snapshot.input(&snapshot.observed)).remove("web").expect("a cron service");
    assert_eq!(state.next, Some(time("2026-01-01T13:00:00Z")));
    assert_eq!(state.active.len(), 1, "it is tried again");
    assert_eq!((state.active[0].failed, state.active[0].live), (1, 0));
}
