//! The checks of the order in which services start and end.

use super::Violation;
use crate::plan::{Action, Cause, Dependency, Input, Plan, time::after};
use crate::spec::{Depends, DependsCondition, OnFailure, RType};
use crate::state::{DesiredDeployment, DesiredService, Instance, Phase};

/// Nothing is started whose dependencies are missing, unless that was waited for long enough.
pub(super) fn check_starts(input: &Input<'_>, desired: &DesiredDeployment, plan: &Plan, found: &mut Vec<Violation>) {
    for action in plan.steps().map(|step| &step.action) {
        let id = match action {
            Action::Create { id, .. } => id,
            Action::Start { instance } => &instance.id,
            _ => continue,
        };
        let Some(service) = desired.services.get(&id.service) else { continue };
        let missing = |depends: &Depends| {
            let goes_on = depends.on_timeout.unwrap_or_default() != OnFailure::Fail;
            let given_up = goes_on && is_given_up(input, service, depends);
            let of_a_job = desired.services.get(&depends.service).is_some_and(|on| on.spec.rtype() == RType::Job);
            let needs_none = of_a_job && service.standing.rolled_back.is_some();
            !given_up
                && !needs_none
                && (is_plainly_missing(input, desired, depends) || is_taken_down(input, plan, depends))
        };
        if service.spec.depends.iter().any(missing) {
            found.push(Violation::Hasty(id.clone()));
        }
    }
}

fn is_given_up(input: &Input<'_>, service: &DesiredService, depends: &Depends) -> bool {
    let key = Dependency { service: service.name.clone(), on: depends.service.clone() };
    let known = input.history.awaited.get(&key);
    known.is_some_and(|known| known.depends == *depends && after(known.since, depends.timeout()) <= input.now)
}

/// Whether the condition does not hold, however kindly it is looked at.
fn is_plainly_missing(input: &Input<'_>, desired: &DesiredDeployment, depends: &Depends) -> bool {
    let Some(dependency) = desired.services.get(&depends.service) else { return true };
    let mine: Vec<&Instance> = input.observed.iter().filter(|one| one.id.service == depends.service).collect();
    let any = |test: &dyn Fn(&Phase) -> bool| mine.iter().any(|one| test(&one.phase));
    if dependency.spec.rtype() == RType::Job {
        let is_of_now = |one: &&&Instance| dependency.is_made_from(&one.id.revision);
        let has_started = depends.condition() == DependsCondition::Started
            && mine.iter().filter(is_of_now).any(|one| one.phase.started_at().is_some());
        return !has_started && !may_have_come_to_it(input, (dependency, depends.condition()), &mine);
    }
    let ready_in = |slot: u32| mine.iter().any(|one| one.id.slot == slot && one.phase.is_ready());
    match depends.condition() {
        DependsCondition::Started => !any(&|phase| phase.started_at().is_some()),
        DependsCondition::Healthy => !any(&Phase::is_ready),
        DependsCondition::Ready => {
            let slots = mine.iter().map(|one| one.id.slot).collect::<std::collections::BTreeSet<_>>();
            let ready = slots.into_iter().filter(|slot| ready_in(*slot)).count();
            dependency.replicas == 0 || ready < dependency.replicas as usize
        }
    }
}

/// Whether the same plan takes all that is ready of a dependency away, for something else to run in its place.
fn is_taken_down(input: &Input<'_>, plan: &Plan, depends: &Depends) -> bool {
    let is_stopped = |one: &Instance| {
        plan.steps().any(|step| {
            matches!(&step.action, Action::Stop { instance, .. } if *instance == one.as_ref())
                && step.cause.is_rollout()
        })
    };
    let of_service = |one: &&Instance| one.id.deployment == input.deployment && one.id.service == depends.service;
    let mut ready = input.observed.iter().filter(of_service).filter(|one| one.phase.is_ready()).peekable();
    ready.peek().is_some() && ready.all(is_stopped)
}

/// Whether a run of the job is remembered as completed, or as over where it only has to have started, or as many of its
/// completions have an instance that succeeded as it is to have.
fn may_have_come_to_it(
    input: &Input<'_>,
    (job, condition): (&DesiredService, DependsCondition),
    instances: &[&Instance],
) -> bool {
    let remembered = input.history.jobs.get(&job.name).into_iter().flat_map(|record| &record.runs);
    let mut remembered = remembered.filter(|run| job.is_made_from(&run.revision));
    let succeeded = instances.iter().filter(|one| matches!(&one.phase, Phase::Exited(exit) if exit.is_success()));
    let indices: std::collections::BTreeSet<u32> = succeeded.map(|one| one.id.slot).collect();
    remembered.any(|run| run.end.is_success() || condition == DependsCondition::Started)
        || indices.len() >= job.spec.job().completions() as usize
}

/// Nothing that is not declared any more ends while what depends on it runs.
pub(super) fn check_ends(input: &Input<'_>, plan: &Plan, found: &mut Vec<Violation>) {
    let runs = |service: &str| {
        let of_service = |one: &&Instance| one.id.deployment == input.deployment && one.id.service == service;
        let reachable = |one: &&Instance| !input.unreachable.contains_key(&one.runtime);
        let mut instances = input.observed.iter().filter(of_service).filter(reachable);
        instances.any(|one| matches!(one.phase, Phase::Running { .. } | Phase::Paused { .. } | Phase::Pending))
    };
    for step in plan.steps() {
        let (Action::Stop { instance, .. }, Cause::DeploymentRemoved | Cause::ServiceRemoved) =
            (&step.action, &step.cause)
        else {
            continue;
        };
        let dependencies = &input.history.dependencies;
        let on = |one: &str, other: &str| dependencies.get(one).is_some_and(|on| on.contains(other));
        let service = &instance.id.service;
        // Those that wait for each other are free to end in any order.
        let is_circle = |one: &str| {
            let mut below: Vec<&str> = vec![service];
            let mut next = 0;
            while let Some(at) = below.get(next).copied() {
                let more = dependencies.keys().filter(|other| on(at, other) && !below.contains(&other.as_str()));
                below.extend(more.map(String::as_str).collect::<Vec<_>>());
                next += 1;
            }
            below.contains(&one)
        };
        let mut dependents = dependencies.keys().filter(|one| on(one, service) && !is_circle(one) && runs(one));
        // Those that are still declared depend on other things now.
        if dependents
            .any(|one| input.desired.is_ok_and(|desired| !desired.services.contains_key(one)) || input.desired.is_err())
        {
            found.push(Violation::DependedOn(instance.id.clone()));
        }
    }
}
