//! What is to be remembered of jobs when their instances have gone.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use super::begin::{Beginning, Runs};
use super::run::{Run, Standing};
use super::schedule;
use crate::plan::Input;
use crate::spec::RType;
use crate::state::{BegunRun, DesiredService, Fate, Instance, JobRecord, Phase, RunId, RunRecord, ScheduleMark};

/// Finished runs of a service that are remembered without their instances.
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
        let next = of_service(desired, &mine, before, input.now);
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

fn of_service(
    desired: &DesiredService,
    instances: &[&Instance],
    before: Option<&JobRecord>,
    now: DateTime<Utc>,
) -> JobRecord {
    let runs = Runs::of(desired, Run::all(desired, instances, before), before, now);
    // What is only about to be made is no proof that a run has begun.
    let has_begun = |id: &RunId| {
        runs.runs.iter().any(|(run, _)| {
            run.id == *id && (run.record.is_some() || run.instances.iter().any(|one| one.phase != Phase::Pending))
        })
    };
    let begun = begun(desired, &runs, before, now).filter(|begun| !has_begun(&begun.run));
    let asked = before.into_iter().flat_map(|before| &before.triggered);
    JobRecord {
        runs: finished(&runs),
        triggered: asked.filter(|id| !has_begun(id)).copied().collect(),
        schedule: (desired.spec.rtype() == RType::Cron).then(|| {
            let begun = runs.runs.iter().map(|(run, _)| run.id).filter(|id| id.is_scheduled() && has_begun(id));
            mark(desired, &runs, before, begun.map(RunId::at), now)
        }),
        begun,
    }
}

/// The run that begins now or was to begin before, where it has to be over by a deadline.
fn begun(
    desired: &DesiredService,
    runs: &Runs<'_>,
    before: Option<&JobRecord>,
    now: DateTime<Utc>,
) -> Option<BegunRun> {
    desired.spec.job().active_deadline?;
    match runs.beginning {
        Beginning::Run(run) => Some(BegunRun { run, revision: desired.revision.clone(), since: now }),
        Beginning::InPlaceOf(run) if runs.active().next().is_none() => {
            Some(BegunRun { run, revision: desired.revision.clone(), since: now })
        }
        Beginning::InPlaceOf(_) => None,
        Beginning::LeftOut(_) | Beginning::None => {
            let known = before.and_then(|before| before.begun.as_ref());
            // One that is over has a record of its end.
            let goes_on = |begun: &&BegunRun| runs.active().any(|run| run.id == begun.run);
            known.filter(goes_on).cloned()
        }
    }
}

/// The runs that are over: all that instances tell of, and the newest of the others.
fn finished(runs: &Runs<'_>) -> Vec<RunRecord> {
    let mut places = RUNS_REMEMBERED;
    let mut finished: Vec<RunRecord> = Vec::new();
    for (run, stands) in runs.runs.iter().rev() {
        let Standing::Finished(record) = stands else { continue };
        if run.instances.is_empty() {
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
