//! Idle instances that are brought back for what depends on them: to start what needs a service is to use that, as long as its
//! time for that lasts and waking can bring what it waits for.

use std::collections::{BTreeMap, BTreeSet};

use super::diff::exit_of;
use super::rest::stands_for_slot;
use super::restart::{AfterExit, after_exit};
use super::{Input, Plan, Wait};
use crate::spec::{DependsCondition, RType};
use crate::state::{DesiredService, EndedBy, Exit, Instance, Phase, StopCause};

/// The idle instances that have to run for what waits in this plan, by the runtime's own id, and who waits. `observed` are the
/// instances of the deployment.
pub(super) fn awaited_idle(input: &Input<'_>, plan: &Plan, observed: &[&Instance]) -> BTreeMap<String, String> {
    let Ok(desired) = input.desired else { return BTreeMap::new() };
    let mut awaited = BTreeMap::new();
    for wait in &plan.waits {
        // What was not there in time is not woken over and over.
        let Wait::Dependency { dependency, condition, .. } = wait else { continue };
        let Some(on) = desired.services.get(&dependency.on) else { continue };
        for one in to_wake(input, on, *condition, observed) {
            awaited.entry(one.runtime_id.clone()).or_insert_with(|| dependency.service.clone());
        }
    }
    awaited
}

/// The services that are in use because of what waits in this plan, by name: those that are waited for, and those which are
/// there already and would be needed as soon as the others are, unless one of these was not there in time. `dependencies` are
/// those of each service, as [`dependencies`](super::dependencies) gives them.
pub fn used_by_waits<'a>(plan: &'a Plan, dependencies: &'a BTreeMap<String, BTreeSet<String>>) -> BTreeSet<&'a str> {
    let is_given_up = |service: &str| {
        let mut waits = plan.waits.iter();
        waits.any(|wait| matches!(wait, Wait::DependencyTimeout { dependency, .. } if dependency.service == service))
    };
    let mut used = BTreeSet::new();
    for wait in &plan.waits {
        let Wait::Dependency { dependency, .. } = wait else { continue };
        used.insert(dependency.on.as_str());
        let all = dependencies.get(&dependency.service).filter(|_| !is_given_up(&dependency.service));
        used.extend(all.into_iter().flatten().map(String::as_str));
    }
    used
}

/// The idle instances of a service that have to run for this condition of it to hold; none where they can't bring that about.
pub(super) fn to_wake<'a>(
    input: &Input<'_>,
    on: &DesiredService,
    condition: DependsCondition,
    observed: &[&'a Instance],
) -> Vec<&'a Instance> {
    if on.spec.rtype() != RType::Service || on.spec.pool.is_some() || is_out_of_reach(input, on, condition, observed) {
        return Vec::new();
    }
    let mut idle = idle_of(input, on, observed);
    if condition != DependsCondition::Ready {
        // One is enough, and none is needed where another one is on its way.
        let mut slots = (0..on.replicas).filter_map(|slot| newest(on, slot, observed));
        let is_coming = slots.any(|one| is_coming(input, one));
        idle.truncate(usize::from(!is_coming));
    }
    idle
}

/// The instances of a service that are down or frozen for idleness alone, lowest slot first.
fn idle_of<'a>(input: &Input<'_>, service: &DesiredService, observed: &[&'a Instance]) -> Vec<&'a Instance> {
    let lives = &input.history.lives;
    let slots = (0..service.replicas).filter(|slot| !lives.is_stopped(service, *slot));
    slots.filter_map(|slot| newest(service, slot, observed)).filter(|one| is_idle(input, one)).collect()
}

fn newest<'a>(service: &DesiredService, slot: u32, observed: &[&'a Instance]) -> Option<&'a Instance> {
    let of_slot = observed.iter().filter(|one| one.id.service == service.name && one.id.slot == slot);
    stands_for_slot(of_slot.copied(), Some(service))
}

/// Whether replicas that this condition takes stay down whoever is woken: somebody stopped them, they have ended for good, or
/// have failed. All of them have to be ready for [`DependsCondition::Ready`], and one is enough otherwise.
pub(super) fn is_out_of_reach(
    input: &Input<'_>,
    service: &DesiredService,
    condition: DependsCondition,
    observed: &[&Instance],
) -> bool {
    if service.spec.rtype() != RType::Service || service.spec.pool.is_some() {
        return false;
    }
    let lives = &input.history.lives;
    let rests = |one: &Instance| {
        let after = exit_of(one).map(|exit| after_exit(one, exit, service));
        let rests = matches!(after, Some(AfterExit::AtRest(_) | AfterExit::Failed(_) | AfterExit::ShutDown));
        rests && !is_idle(input, one) && !lives.is_started(one)
    };
    let stays_down = |slot| lives.is_stopped(service, slot) || newest(service, slot, observed).is_some_and(rests);
    match condition {
        DependsCondition::Ready => (0..service.replicas).any(stays_down),
        DependsCondition::Started | DependsCondition::Healthy => (0..service.replicas).all(stays_down),
    }
}

fn is_idle(input: &Input<'_>, instance: &Instance) -> bool {
    match &instance.phase {
        Phase::Exited(Exit { ended_by: EndedBy::Request(StopCause::Idle), .. }) => {
            !input.history.lives.is_started(instance)
        }
        Phase::Paused { .. } => input.history.lives.suspended_since(instance).is_some(),
        _ => false,
    }
}

fn is_coming(input: &Input<'_>, instance: &Instance) -> bool {
    match instance.phase {
        Phase::Pending | Phase::Created => true,
        Phase::Running { .. } => instance.unhealthy().is_none(),
        Phase::Exited(_) | Phase::Paused { .. } => input.history.lives.is_started(instance),
        Phase::Stopping | Phase::Unknown { .. } => false,
    }
}
