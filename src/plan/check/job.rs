//! The checks of one declared job or cron service.

use std::collections::{BTreeMap, BTreeSet};

use super::{Violation, created};
use crate::plan::{Action, Input, Lane};
use crate::spec::Overlap;
use crate::state::{DesiredService, EndedBy, Exit, Instance, InstanceId, Phase, RunId, StopCause};

pub(super) fn check_job(
    input: &Input<'_>,
    desired: &DesiredService,
    observed: &[&Instance],
    lanes: &[&Lane],
    found: &mut Vec<Violation>,
) {
    let made: Vec<&InstanceId> = lanes.iter().filter_map(|lane| created(lane)).collect();
    let record = input.history.jobs.get(&desired.name);
    let is_done = |id: &InstanceId| {
        let mut active = record.into_iter().flat_map(|record| &record.active);
        active.any(|run| Some(run.run) == id.run && run.done.contains(&id.slot))
    };
    found.extend(made.iter().filter(|id| is_done(id)).map(|id| Violation::Occupied((*id).clone())));
    let recorded: BTreeSet<RunId> = record.into_iter().flat_map(|record| &record.runs).map(|run| run.run).collect();
    check_launches(desired, observed, &made, &recorded, found);
    check_bounds(desired, observed, &made, found);
    for instance in taken(lanes, observed) {
        let Phase::Exited(_) = instance.phase else { continue };
        let Some(run) = instance.id.run.filter(|run| !recorded.contains(run)) else { continue };
        let same = |other: &&&Instance| other.id.run == Some(run) && other.id.slot == instance.id.slot;
        let is_last = observed.iter().filter(same).all(|other| other.id.attempt <= instance.id.attempt);
        let is_first = observed
            .iter()
            .filter(|other| other.id.run == Some(run))
            .all(|other| other.created_at >= instance.created_at);
        if is_last || is_first || succeeded(instance) {
            found.push(Violation::Forgotten(instance.id.clone()));
        }
    }
}

/// What is made is asked for: one more try of a completion that has not succeeded, in a run that is not over.
fn check_launches(
    desired: &DesiredService,
    observed: &[&Instance],
    made: &[&InstanceId],
    recorded: &BTreeSet<RunId>,
    found: &mut Vec<Violation>,
) {
    let job = desired.spec.job();
    let mut places = BTreeSet::new();
    for id in made {
        let known = id.run.is_some_and(|run| !recorded.contains(&run));
        if !known || id.slot >= job.completions() || id.revision != desired.revision {
            found.push(Violation::NotAsked((*id).clone()));
        }
        let of_completion = || observed.iter().filter(|one| one.id.run == id.run && one.id.slot == id.slot);
        let is_held = of_completion().any(|one| is_live(one) || succeeded(one));
        if is_held || !places.insert((id.run, id.slot)) {
            found.push(Violation::Occupied((*id).clone()));
        }
        let failed = observed.iter().filter(|one| one.id.run == id.run && failed(one)).count();
        if failed > usize::try_from(job.backoff_limit()).unwrap_or(usize::MAX) {
            found.push(Violation::NotAsked((*id).clone()));
        }
    }
}

/// No run has more instances than `job.parallelism`, and no two runs go on where they must not.
fn check_bounds(desired: &DesiredService, observed: &[&Instance], made: &[&InstanceId], found: &mut Vec<Violation>) {
    let job = desired.spec.job();
    let mut live: BTreeMap<Option<RunId>, u32> = BTreeMap::new();
    for instance in observed.iter().filter(|instance| is_live(instance) && instance.id.slot < job.completions()) {
        *live.entry(instance.id.run).or_default() += 1;
    }
    for id in made {
        let places = live.entry(id.run).or_default();
        *places += 1;
        if *places > job.parallelism() {
            let (service, live) = (desired.name.clone(), *places);
            found.push(Violation::AboveCeiling { service, live, ceiling: job.parallelism() });
        }
    }
    let side_by_side =
        observed.iter().find(|one| is_live(one) && one.id.run.is_some() && made.iter().any(|id| id.run != one.id.run));
    let new = made.iter().map(|id| id.run).collect::<BTreeSet<_>>().len();
    if job.overlap() != Overlap::Allow && (side_by_side.is_some() || new > 1) {
        found.extend(made.first().map(|id| Violation::NotDrained((*id).clone())));
    }
}

/// Instances that the plan removes.
fn taken<'a>(lanes: &'a [&Lane], observed: &'a [&Instance]) -> impl Iterator<Item = &'a Instance> {
    let steps = lanes.iter().flat_map(|lane| &lane.steps);
    steps.filter_map(|step| match &step.action {
        Action::Remove { instance, .. } => observed.iter().find(|one| one.as_ref() == *instance).copied(),
        _ => None,
    })
}

const fn is_live(instance: &Instance) -> bool {
    !matches!(instance.phase, Phase::Exited(_))
}

fn exit(instance: &Instance) -> Option<&Exit> {
    match &instance.phase {
        Phase::Exited(exit) => Some(exit),
        _ => None,
    }
}

fn succeeded(instance: &Instance) -> bool {
    exit(instance).is_some_and(|exit| exit.is_success() && exit.ended_by == EndedBy::Itself)
}

fn failed(instance: &Instance) -> bool {
    exit(instance).is_some_and(|exit| {
        !exit.is_success() && !exit.is_by_others() && exit.ended_by != EndedBy::Request(StopCause::Retired)
    })
}
