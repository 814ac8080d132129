//! Services that wait for jobs: what has become of the runs of a template says whether they may begin.

use evenkeel::plan::RUNS_REMEMBERED;
use evenkeel::state::{Instance, RunId, StopCause};

use super::dsl::{Change, Snapshot, ago, up};
use super::jobs::remembering;

const NOT_STARTED: &str = "no instance of it has started";
const NOT_COMPLETED: &str = "the job has not completed yet";

/// `web`, which depends on the job `db` like this; the job has these settings.
fn shop(condition: &str, job: &str) -> Snapshot {
    let depends = format!("depends: [{{service: db, condition: {condition}}}]");
    let job = format!("rtype: job\njob: {{{job}}}");
    Snapshot::declared().service("db", 'a', 1, &job).service("web", 'a', 1, &depends)
}

/// The run that began so long ago.
fn run(seconds: i64) -> RunId {
    RunId::after(None, ago(seconds))
}

fn of(began: i64, slot: u32, letter: char) -> Instance {
    up(slot, letter).of("db").of_run(run(began)).since(began)
}

fn one(slot: u32) -> Instance {
    of(3600, slot, 'a')
}

/// Whether `web` is launched, or why not.
fn web(snapshot: &Snapshot) -> String {
    let planned = snapshot.planned();
    let line = planned.lines().find(|line| line.contains("web")).unwrap_or_default();
    match line.split_once("db is not ") {
        Some((_, why)) => why.split_once(": ").unwrap_or_default().1.to_owned(),
        None if line.starts_with("launch web/0 a0") => String::new(),
        None => line.to_owned(),
    }
}

#[track_caller]
fn expect(job: &str, observed: &[Instance], [started, healthy]: [&str; 2]) {
    for (condition, why) in [("started", started), ("healthy", healthy), ("ready", healthy)] {
        let mut snapshot = shop(condition, job).with(observed.to_vec());
        assert_eq!(web(&snapshot), why, "{condition}, not recorded yet");
        snapshot = remembering(snapshot);
        assert_eq!(web(&snapshot), why, "{condition}, recorded");
    }
}

#[test]
fn a_job_is_good_when_every_completion_has_succeeded_by_itself() {
    expect("", &[], [NOT_STARTED, NOT_COMPLETED]);
    expect("", &[one(0)], ["", NOT_COMPLETED]);
    expect("", &[one(0).exited(0, 5, 60)], ["", ""]);
    let three = "completions: 3, parallelism: 3";
    expect(three, &[one(0).exited(0, 5, 60), one(1), one(2)], ["", NOT_COMPLETED]);
    expect(three, &[0, 1, 2].map(|slot| one(slot).exited(0, 5, 60)), ["", ""]);
    // It is tried again.
    expect("", &[one(0).exited(3, 5, 1)], ["", NOT_COMPLETED]);
    // It was told to end, and said that it had done so well.
    let ended = one(0).exited(0, 3600, 0).by(StopCause::Expired);
    expect("active_deadline: 1h", &[ended], ["", "the job has failed: deadline exceeded"]);
    let failed = one(0).exited(3, 5, 60);
    expect("backoff_limit: 0", std::slice::from_ref(&failed), ["", "the job has failed: exited 3"]);
    // Somebody asked for another run, and that has come to its end.
    let again = of(30, 0, 'a');
    expect("backoff_limit: 0", &[failed.clone(), again.clone()], ["", NOT_COMPLETED]);
    expect("backoff_limit: 0", &[failed, again.clone().exited(0, 5, 10)], ["", ""]);
    // What completed once has done what it was to do.
    let completed = one(0).exited(0, 5, 60);
    expect("backoff_limit: 0", &[completed.clone(), again.clone()], ["", ""]);
    expect("backoff_limit: 0", &[completed, again.exited(3, 5, 10)], ["", ""]);
}

#[test]
fn a_completed_job_stays_so_when_its_instances_have_gone() {
    let gone = |condition: &str, job: &str, last: Instance| {
        let mut snapshot = remembering(shop(condition, job).with([last]));
        snapshot.observed.clear();
        snapshot
    };
    for condition in ["started", "healthy", "ready"] {
        let completed = gone(condition, "", one(0).exited(0, 5, 60));
        assert_eq!(web(&completed), "", "{condition}");
    }
    let failed = |condition| web(&gone(condition, "backoff_limit: 0", one(0).exited(3, 5, 60)));
    assert_eq!([failed("started"), failed("healthy")], ["", "the job has failed: exited 3"]);
}

#[test]
fn a_job_that_has_completed_stays_good_however_often_it_fails_afterwards() {
    let failing = |first: Instance| {
        let mut snapshot = remembering(shop("healthy", "backoff_limit: 0").with([first]));
        for minute in (1..=2 * RUNS_REMEMBERED as i64).rev() {
            let failed = of(60 * minute, 0, 'a').exited(3, 5, 60 * minute - 10);
            snapshot = remembering(Snapshot { observed: vec![failed], ..snapshot });
        }
        (web(&snapshot), snapshot.history.jobs["db"].runs.len())
    };
    let failed = "the job has failed: exited 3";
    assert_eq!(failing(one(0).exited(0, 5, 3500)), (String::new(), RUNS_REMEMBERED + 2));
    // Not where it completed with another template.
    let other = of(3600, 0, 'b').exited(0, 5, 3500);
    assert_eq!(failing(other), (failed.to_owned(), RUNS_REMEMBERED + 1));
}

#[test]
fn a_run_of_another_template_counts_for_nothing_and_neither_does_what_came_before_it() {
    let first = one(0).exited(0, 5, 3000);
    let other = of(1800, 0, 'b').exited(0, 5, 1000);
    let unfinished = |observed: Vec<Instance>| {
        let mut snapshot = remembering(shop("healthy", "").with(observed));
        let before = web(&snapshot);
        snapshot.observed.clear();
        [before, web(&snapshot)]
    };
    assert_eq!(unfinished(vec![other.clone()]), [NOT_COMPLETED, NOT_COMPLETED]);
    // Back to the first template: the job runs anew.
    assert_eq!(unfinished(vec![first.clone(), other.clone()]), [NOT_COMPLETED, NOT_COMPLETED]);
    let anew = of(600, 0, 'a').exited(0, 5, 500);
    assert_eq!(unfinished(vec![first, other, anew]), ["", ""]);
}

#[test]
fn the_deadline_of_a_run_counts_from_when_what_it_depends_on_is_there() {
    let fields = "rtype: job\njob: {active_deadline: 1m}\ndepends: [{service: db, timeout: 1h}]";
    let db = || up(0, 'a').of("db");
    let shop = Snapshot::declared().service("db", 'a', 1, "").service("web", 'a', 1, fields);
    let active = |snapshot: &Snapshot| {
        let record = snapshot.history.jobs.get("web");
        record.into_iter().flat_map(|one| &one.active).map(|one| one.since).collect::<Vec<_>>()
    };
    let waiting = remembering(shop.with([db().unready()]));
    assert!(active(&waiting).is_empty());
    let later = remembering(Snapshot { now: ago(-600), observed: vec![db()], ..waiting });
    assert_eq!(active(&later), [ago(-600)]);
    let planned = later.planned();
    assert!(planned.starts_with("launch web/0 a0"), "{planned}");
    // What it depends on went down again before anything was made.
    let down = remembering(Snapshot { now: ago(-630), observed: vec![db().unready()], ..later });
    assert!(active(&down).is_empty());
    let late = remembering(Snapshot { now: ago(-900), observed: vec![db()], ..down });
    assert_eq!((active(&late), late.history.jobs["web"].runs.len()), (vec![ago(-900)], 0));
}

#[test]
fn a_forecast_lets_a_job_end_before_what_waits_for_it() {
    shop("healthy", "").expect_course(
        "1. create and start demo/db/0 (aaaaaaaa, attempt 0) on docker from image docker.io/library/nginx:latest: not completed yet
            wait for demo/db/0 (aaaaaaaa, attempt 0) to end
         2. create and start demo/web/0 (aaaaaaaa, attempt 0) on docker from image docker.io/library/nginx:latest: missing, 1 replica wanted
         keep db as it is: completed at 2026-01-01T12:00:00Z",
    );
}
