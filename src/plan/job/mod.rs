//! Jobs and cron services: what is to run to its end, how often, and what is kept of it.
//!
//! A job runs once for each template, a cron service whenever its schedule says so, and both whenever somebody asks
//! (`keel trigger`). Each time is a run with an identity of its own ([`RunId`]). A run succeeds when
//! each of its completions has succeeded once; the instances of a completion have its index as their slot, and a failed one
//! is followed by another, up to `job.backoff_limit` in the whole run.
//!
//! What happened is read off the instances, which keel leaves until the run is recorded, and off the record ([`remember`]):
//! that of a run under way counts where somebody else has removed instances of it.

mod begin;
mod outcome;
mod record;
mod run;
mod schedule;
mod state;

use std::cmp::Reverse;
use std::time::Duration;

use chrono::{DateTime, Utc};

use begin::{Beginning, Runs};
use run::{Completion, Run, Standing, is_live, retries};

pub(super) use outcome::{Outcome, outcome};

pub use begin::RUNS_AT_ONCE;
pub use record::{RUNS_REMEMBERED, remember};
pub use schedule::{CLOCK_SET_BACK, MISSED_RUN_AGE, Schedule};
pub use state::{ActiveRun, JobState, JobStates, job_states};

use super::diff::outdated;
use super::draft::{Draft, Launch};
use super::need::{is_ended_as_unhealthy, is_refused, may_not_begin};
use super::restart::{OTHERS_MOMENT, is_final, restart_delay};
use super::time::{after, due};
use super::{Cause, Unreachable, Wait, backoff};
use crate::spec::RType;
use crate::state::{DesiredService, Exit, Instance, InstanceId, Phase, RunEnd, RunId, StopCause};

/// Longest wait before a failed completion is tried again: the back-off of Kubernetes' jobs ends at six minutes.
pub const JOB_DELAY_MAX: Duration = Duration::from_secs(360);

/// Dead instances of one completion that are kept while its run goes on, besides the first of the run: the last one, for
/// `logs` and as the memory of its failures, and the one before it, for `logs -p`.
const KEPT_ATTEMPTS: usize = 2;

/// Plans one declared job or cron service. `instances` are those of the service, in order of their identity.
pub(super) fn plan_job(draft: &mut Draft<'_>, desired: &DesiredService, instances: &[&Instance]) {
    for stray in instances.iter().filter(|instance| instance.id.run.is_none()) {
        let cause = outdated(stray, desired).unwrap_or(Cause::Superseded);
        draft.retire(stray, Some(&desired.spec), &cause);
    }
    let runs = Runs::of(draft.input, desired, Run::all(draft.input, desired, instances));
    for (run, stands) in &runs.runs {
        match stands {
            Standing::Active => go_on(draft, desired, run),
            Standing::Ending(end) => end_run(draft, desired, run, end),
            Standing::Finished(_) => retire_what_lives(draft, desired, run),
        }
    }
    let is_free = runs.is_free();
    match runs.beginning {
        Beginning::Run(id) => begin(draft, desired, id),
        Beginning::InPlaceOf(id) if is_free => begin(draft, desired, id),
        Beginning::InPlaceOf(_) | Beginning::LeftOut(_) | Beginning::None => {}
    }
    prune(draft, desired, &runs);
    say_what_comes(draft, desired, &runs);
}

fn begin(draft: &mut Draft<'_>, desired: &DesiredService, id: RunId) {
    go_on(draft, desired, &Run::about_to_begin(id));
}

/// Fills the places of a run that goes on.
fn go_on(draft: &mut Draft<'_>, desired: &DesiredService, run: &Run<'_>) {
    let tally = run.tally(&desired.spec);
    let places = desired.spec.job().parallelism().saturating_sub(tally.live);
    let mut places = if draft.reachable(desired.runtime) { places } else { 0 };
    if let Some(deadline) = run.deadline(&desired.spec).filter(|deadline| *deadline > draft.input.now) {
        draft.look_at(deadline);
    }
    for completion in &tally.completions {
        match completion.live {
            Some(live) if completion.succeeded => drop(draft.retire(live, Some(&desired.spec), &Cause::Superseded)),
            Some(live) => attend_to(draft, desired, live),
            None if completion.succeeded || places == 0 => {}
            None => places -= u32::from(launch(draft, desired, run, completion, tally.failed)),
        }
        end_doubles(draft, desired, run, completion);
        tidy(draft, desired, run, completion.index);
    }
    let completions = desired.spec.job().completions();
    for surplus in run.instances.iter().filter(|one| one.id.slot >= completions && is_live(one)) {
        draft.retire(surplus, Some(&desired.spec), &Cause::Superseded);
    }
}

/// Ends what does the work of a completion a second time: somebody started it again behind our back.
fn end_doubles(draft: &mut Draft<'_>, desired: &DesiredService, run: &Run<'_>, completion: &Completion<'_>) {
    let Some(live) = completion.live else { return };
    let of_place = run.instances.iter().filter(|one| one.id.slot == completion.index);
    for double in of_place.filter(|one| is_live(one) && !std::ptr::eq(**one, live)) {
        draft.retire(double, Some(&desired.spec), &Cause::Duplicate);
    }
}

/// Does what the instance of a completion needs that has one.
fn attend_to(draft: &mut Draft<'_>, desired: &DesiredService, live: &Instance) {
    let id = live.id.clone();
    match &live.phase {
        Phase::Created => {
            if !may_not_begin(draft, desired, live.id.slot, &live.id) && draft.may_act(live) {
                draft.start(desired, live);
            }
        }
        Phase::Paused { .. } => {
            draft.wait(Wait::Paused { id });
            draft.resume(live);
        }
        Phase::Unknown { message } => draft.wait(Wait::Unknown { id, message: message.clone() }),
        Phase::Running { .. } => {
            if !is_ended_as_unhealthy(draft, desired, live) {
                keep_running(draft, desired, live);
            }
        }
        Phase::Pending | Phase::Stopping | Phase::Exited(_) => {}
    }
}

/// Lets an instance run to its end.
fn keep_running(draft: &mut Draft<'_>, desired: &DesiredService, live: &Instance) {
    let id = live.id.clone();
    draft.wait(match desired.spec.rtype() {
        RType::Cron => Wait::CronRun { id },
        RType::Job | RType::Service => Wait::Completion { id },
    });
}

/// Makes the next instance of a completion, where it is due. Returns whether it takes a place.
fn launch(
    draft: &mut Draft<'_>,
    desired: &DesiredService,
    run: &Run<'_>,
    completion: &Completion<'_>,
    failed: u32,
) -> bool {
    let id = InstanceId {
        deployment: draft.input.deployment.to_owned(),
        service: desired.name.clone(),
        slot: completion.index,
        revision: desired.revision.clone(),
        attempt: completion.next_attempt,
        run: Some(run.id),
    };
    let cause = match completion.failure() {
        Some(last) => match backed_off(draft, desired, last.id(&id), last.exit, completion.failures) {
            true => return false,
            false => Cause::Retry { exit: last.exit.clone(), failed, limit: retries(&desired.spec) },
        },
        None if let Some(last) = completion.stopped_by_others() => {
            let until = due(last.exit.finished_at, OTHERS_MOMENT, draft.input.now);
            match rests_until(draft, last.id(&id), last.exit, until) {
                true => return false,
                false => Cause::StoppedByOthers { exit: last.exit.clone() },
            }
        }
        None if run.id.is_scheduled() => Cause::Scheduled { at: run.id.at() },
        None if is_triggered(draft, desired, run.id) => Cause::Triggered,
        None => Cause::Incomplete { completions: desired.spec.job().completions() },
    };
    if is_refused(draft, desired) || may_not_begin(draft, desired, completion.index, &id) {
        return false;
    }
    let failures = completion.failures;
    draft.launch(desired, Launch { id, restarts: failures, streak: failures, cause });
    true
}

/// Says so where the next try of a failed completion is not due.
fn backed_off(draft: &mut Draft<'_>, desired: &DesiredService, dead: InstanceId, exit: &Exit, failures: u32) -> bool {
    let first = restart_delay(&desired.spec);
    let pause = backoff(first, JOB_DELAY_MAX.max(first), failures, &dead.runtime_name());
    rests_until(draft, dead, exit, due(exit.finished_at, pause, draft.input.now))
}

/// Says so where it is not that time yet.
fn rests_until(draft: &mut Draft<'_>, id: InstanceId, exit: &Exit, until: DateTime<Utc>) -> bool {
    let waits = until > draft.input.now;
    if waits {
        draft.look_at(until);
        draft.wait(Wait::BackOff { id, exit: exit.clone(), until });
    }
    waits
}

fn is_triggered(draft: &Draft<'_>, desired: &DesiredService, run: RunId) -> bool {
    draft.input.history.jobs.get(&desired.name).is_some_and(|record| record.triggered.contains(&run))
}

/// Removes failed instances of a completion that nobody needs any more. The first of the run stays: it tells when the run
/// began, also where that was not remembered.
fn tidy(draft: &mut Draft<'_>, desired: &DesiredService, run: &Run<'_>, index: u32) {
    let dead = run.instances.iter().filter(|one| one.id.slot == index && !is_live(one));
    let mut newest_first: Vec<&&Instance> = dead.collect();
    newest_first.sort_by_key(|one| Reverse(one.id.attempt));
    let first = run.instances.iter().map(|one| one.created_at).min();
    for old in newest_first.into_iter().skip(KEPT_ATTEMPTS).filter(|one| Some(one.created_at) > first) {
        draft.retire(old, Some(&desired.spec), &Cause::Superseded);
    }
}

/// Stops what lives of a run that has come to its end too early, and keeps it, for its output and as the memory of its end.
fn end_run(draft: &mut Draft<'_>, desired: &DesiredService, run: &Run<'_>, end: &RunEnd) {
    let (why, cause) = match end {
        RunEnd::DeadlineExceeded => (StopCause::Expired, Cause::DeadlineExceeded { since: run.started_at() }),
        RunEnd::Failed { exit, .. } => (StopCause::Retired, Cause::RunFailed { exit: exit.clone() }),
        RunEnd::Replaced => (StopCause::Retired, Cause::Replaced),
        RunEnd::Completed => return retire_what_lives(draft, desired, run),
    };
    if run.is_hidden {
        say_who_may_hide_it(draft);
    }
    for live in run.instances.iter().filter(|instance| is_live(instance)) {
        match live.phase {
            // It has no output, and no end that anybody has to remember.
            Phase::Created => drop(draft.retire(live, Some(&desired.spec), &cause)),
            _ => drop(draft.halt(live, &desired.spec, why, &cause)),
        }
    }
}

/// Names the runtimes that may have what can't be seen.
fn say_who_may_hide_it(draft: &mut Draft<'_>) {
    for (&runtime, unreachable) in draft.input.unreachable {
        if let Unreachable::Silent(error) = unreachable.clone() {
            draft.wait_once(Wait::RuntimeUnreachable { runtime, error });
        }
    }
}

/// Retires what lives of a run that is over.
fn retire_what_lives(draft: &mut Draft<'_>, desired: &DesiredService, run: &Run<'_>) {
    for live in run.instances.iter().filter(|instance| is_live(instance)) {
        draft.retire(live, Some(&desired.spec), &Cause::Superseded);
    }
}

/// Removes the instances of finished runs that are not to be kept any more; not before the run is recorded.
fn prune(draft: &mut Draft<'_>, desired: &DesiredService, runs: &Runs<'_>) {
    let job = desired.spec.job();
    let delete = desired.spec.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.delete_on_exit == Some(true));
    let recorded = runs.runs.iter().rev().filter(|(run, _)| !run.instances.is_empty());
    let recorded = recorded.filter_map(|(run, _)| Some((run, run.record?)));
    for ((run, record), place) in recorded.zip(0_u32..) {
        let expires = job.ttl_after_finished.map(|ttl| after(record.finished_at, ttl.get()));
        let cause = match expires {
            _ if delete => Cause::DeleteOnExit,
            _ if place >= job.history() => Cause::BeyondHistory { history: job.history() },
            Some(at) if at <= draft.input.now => Cause::TtlAfterFinished { finished_at: record.finished_at },
            Some(at) => {
                draft.look_at(at);
                continue;
            }
            None => continue,
        };
        for dead in run.instances.iter().filter(|instance| !is_live(instance)) {
            draft.retire(dead, Some(&desired.spec), &cause);
        }
    }
}

/// Says how a job ended, or when a cron service runs next.
fn say_what_comes(draft: &mut Draft<'_>, desired: &DesiredService, runs: &Runs<'_>) {
    let service = desired.name.clone();
    if desired.spec.rtype() == RType::Cron {
        let from = runs.done_until.max(draft.input.now);
        match Schedule::of(&desired.spec).and_then(|schedule| schedule.next(from)) {
            Some(at) => {
                draft.look_at(at);
                draft.wait(Wait::NextRun { service, at });
            }
            None => draft.wait(Wait::ScheduleOver { service }),
        }
        return;
    }
    let is_over = runs.beginning == Beginning::None && runs.active().next().is_none();
    let last = runs.runs.iter().rev().find_map(|(_, stands)| match stands {
        Standing::Finished(record) => Some(record),
        Standing::Active | Standing::Ending(_) => None,
    });
    if let Some(record) = last.filter(|_| is_over) {
        draft.wait(match record.end.is_success() {
            true => Wait::Completed { service, at: record.finished_at },
            false => Wait::JobFailed { service, end: record.end.clone(), limit: tries_after(&record.end, desired) },
        });
    }
}

/// Failed instances of a run that ended so after which another one is made: none after a final exit code.
fn tries_after(end: &RunEnd, desired: &DesiredService) -> u32 {
    match end {
        RunEnd::Failed { exit, .. } if is_final(exit, &desired.spec) => 0,
        _ => retries(&desired.spec),
    }
}
