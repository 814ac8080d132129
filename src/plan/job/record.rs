//! What is to be remembered of jobs when their instances have gone.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use super::begin::{Beginning, Runs};
use super::run::{Completion, Run, Standing, was_made};
use super::schedule;
use crate::plan::Input;
use crate::plan::depends::{HeldBack, held_back};
use crate::spec::RType;
use crate::state::{ActiveRecord, DesiredService, Fate, Instance, JobRecord, RunId, RunRecord, ScheduleMark, Tried};

/// Finished runs of a service that are remembered without their instances, besides the last one that completed.
pub const RUNS_REMEMBERED: usize = 20;

/// What is to be remembered otherwise than it is, by service; nothing where a service has no jobs any more. Whoever plans
/// keeps it in [`History::jobs`](crate::plan::History::jobs), and somewhere that outlives it, before the next plan is
/// carried out that has it there.
pub fn remember(input: &Input<'_>) -> BTreeMap<String, Option<JobRecord>> {
    let jobs = &input.history.jobs;
    let own = |instance: &&Instance| instance.id.deployment == input.deployment && instance.id.run.is_some();
    let mut instances: Vec<&Instance> = input.observed.iter().filter(own).collect();
    instances.sort_by(|one, other| one.id.cmp(&other.id));
    let declared: BTreeMap<&String, &DesiredService> = match input.desired {
        Ok(desired) => desired.services.iter().filter(|(_, one)| one.spec.rtype() != RType::Service).collect(),
        // Nothing is known to have gone.
        Err(Fate::Kept) => return BTreeMap::new(),
        Err(Fate::Removed | Fate::Orphaned) => BTreeMap::new(),
    };
    let mut changes = BTreeMap::new();
    for (name, desired) in &declared {
        let mine: Vec<&Instance> = instances.iter().filter(|one| one.id.service == **name).copied().collect();
        let before = jobs.get(*name);
        let next = of_service(input, desired, &mine);
        if before != Some(&next) && (before.is_some() || next != JobRecord::default()) {
            changes.insert((*name).clone(), Some(next));
        }
    }
    let has_instances: BTreeSet<&String> = instances.iter().map(|instance| &instance.id.service).collect();
    let is_reachable = |record: &JobRecord| record.runs.iter().all(|run| !input.unreachable.contains_key(&run.runtime));
    let gone = jobs.iter().filter(|(name, _)| !declared.contains_key(name) && !has_instances.contains(name));
    changes.extend(gone.filter(|(_, record)| is_reachable(record)).map(|(name, _)| (name.clone(), None)));
    changes
}

fn of_service(input: &Input<'_>, desired: &DesiredService, instances: &[&Instance]) -> JobRecord {
    let (now, before) = (input.now, input.history.jobs.get(&desired.name));
    let runs = Runs::of(input, desired, Run::all(input, desired, instances));
    // What is only about to be made is no proof that a run has begun.
    let has_begun =
        |id: &RunId| runs.runs.iter().any(|(run, _)| run.id == *id && (run.record.is_some() || run.was_made()));
    let asked = before.into_iter().flat_map(|before| &before.triggered);
    JobRecord {
        runs: finished(desired, &runs),
        triggered: asked.filter(|id| !has_begun(id)).copied().collect(),
        schedule: (desired.spec.rtype() == RType::Cron).then(|| {
            let begun = runs.runs.iter().map(|(run, _)| run.id).filter(|id| id.is_scheduled() && has_begun(id));
            mark(desired, &runs, before, begun.map(RunId::at), now)
        }),
        active: active(input, desired, &runs),
    }
}

/// The runs under way, and the one that begins now, where that has to be over by a deadline. One of which nothing was made
/// has not begun while the service waits for what it depends on.
fn active(input: &Input<'_>, desired: &DesiredService, runs: &Runs<'_>) -> Vec<ActiveRecord> {
    let may_begin = held_back(input, desired) == HeldBack::No;
    let beginning = match runs.beginning {
        Beginning::Run(run) => Some(run),
        Beginning::InPlaceOf(run) if runs.is_free() => Some(run),
        Beginning::InPlaceOf(_) | Beginning::LeftOut(_) | Beginning::None => None,
    };
    let beginning = beginning.filter(|_| may_begin && desired.spec.job().active_deadline.is_some());
    let about_to_begin = |run| ActiveRecord {
        run,
        revision: desired.revision.clone(),
        since: input.now,
        done: BTreeSet::new(),
        tried: Vec::new(),
    };
    let under_way = runs.active().filter(|run| run.was_made() || (may_begin && run.begun.is_some()));
    let mut active: Vec<ActiveRecord> = under_way.map(|run| so_far(desired, run)).collect();
    active.extend(beginning.map(about_to_begin));
    active.sort_by_key(|one| one.run);
    active
}

/// How far a run is.
fn so_far(desired: &DesiredService, run: &Run<'_>) -> ActiveRecord {
    let completions = run.tally(&desired.spec).completions;
    ActiveRecord {
        run: run.id,
        revision: run.revision().unwrap_or(&desired.revision).clone(),
        since: run.started_at(),
        done: completions.iter().filter(|one| one.succeeded).map(|one| one.index).collect(),
        tried: completions.iter().filter_map(|one| tried(run, one)).collect(),
    }
}

/// What is to be remembered of the tries of a completion: nothing where it succeeded at once, or was not tried.
fn tried(run: &Run<'_>, completion: &Completion<'_>) -> Option<Tried> {
    let of_place = run.instances.iter().filter(|one| one.id.slot == completion.index && was_made(one));
    let before = run.begun.and_then(|begun| begun.tried(completion.index));
    let attempt = of_place.map(|one| one.id.attempt).chain(before.map(|before| before.attempt)).max()?;
    let failed = completion.failure().filter(|failed| failed.attempt == attempt && !completion.succeeded);
    let failure = failed.map(|failed| failed.exit.clone());
    let (index, failures) = (completion.index, completion.failures);
    (!completion.succeeded || failures > 0).then_some(Tried { index, attempt, failures, failure })
}

/// The runs that are over: all that instances tell of, the newest of the others, and the last one that completed of what is
/// declared, which others wait for.
fn finished(desired: &DesiredService, runs: &Runs<'_>) -> Vec<RunRecord> {
    let completed = runs.of_declared(desired).find_map(|(run, stands)| match stands {
        Standing::Finished(record) if record.end.is_success() => Some(run.id),
        _ => None,
    });
    let mut places = RUNS_REMEMBERED;
    let mut finished: Vec<RunRecord> = Vec::new();
    for (run, stands) in runs.runs.iter().rev() {
        let Standing::Finished(record) = stands else { continue };
        if run.instances.is_empty() && Some(run.id) != completed {
            if places == 0 {
                continue;
            }
            places -= 1;
        }
        finished.push(record.clone());
    }
    finished.reverse();
    finished
}

fn mark(
    desired: &DesiredService,
    runs: &Runs<'_>,
    before: Option<&JobRecord>,
    begun: impl Iterator<Item = DateTime<Utc>>,
    now: DateTime<Utc>,
) -> ScheduleMark {
    let marked = schedule::done_until(before.and_then(|before| before.schedule.as_ref()), &desired.spec, now);
    let left_out = match runs.beginning {
        Beginning::LeftOut(at) => Some(at),
        Beginning::None | Beginning::Run(_) | Beginning::InPlaceOf(_) => None,
    };
    let done = begun.filter(|at| *at <= runs.done_until).chain(left_out);
    ScheduleMark { schedule: schedule::text(&desired.spec), done_until: done.fold(marked, DateTime::max) }
}
