//! The order in which services end: what depends on others goes before them.

use std::collections::{BTreeMap, BTreeSet};

use super::draft::Draft;
use super::{Cause, Input, Wait};
use crate::state::{Instance, Phase};

/// What is to be remembered in [`History::dependencies`](super::History::dependencies) as seen now: on what each service
/// depends, by what is declared, and by what was declared before where a service is gone and has instances left.
pub fn dependencies(input: &Input<'_>) -> BTreeMap<String, BTreeSet<String>> {
    let mut known = input.history.dependencies.clone();
    if let Ok(desired) = input.desired {
        let left: BTreeSet<&str> = input.observed.iter().map(|instance| instance.id.service.as_str()).collect();
        known.retain(|service, _| !desired.services.contains_key(service) && left.contains(service.as_str()));
        for service in desired.services.values().filter(|service| !service.spec.depends.is_empty()) {
            let on = service.spec.depends.iter().map(|depends| depends.service.clone()).collect();
            known.insert(service.name.clone(), on);
        }
    }
    known
}

/// Retires these instances, in order of their identity: those of a service when nothing runs any more that depends on it.
pub(super) fn retire_in_order(draft: &mut Draft<'_>, instances: &[&Instance], cause: &Cause) {
    let runs = |instance: &&&Instance| {
        let phase = &instance.phase;
        let runs = matches!(phase, Phase::Pending | Phase::Running { .. } | Phase::Paused { .. } | Phase::Stopping);
        // Of what does not answer nobody knows when it ends.
        runs && draft.reachable(instance.runtime)
    };
    let running: BTreeSet<&str> = instances.iter().filter(runs).map(|instance| instance.id.service.as_str()).collect();
    let dependencies = &draft.input.history.dependencies;
    for of_service in instances.chunk_by(|a, b| a.id.service == b.id.service) {
        let Some(service) = of_service.first().map(|first| first.id.service.as_str()) else { continue };
        let by: Vec<String> = dependents(dependencies, service)
            .into_iter()
            .filter(|dependent| running.contains(dependent))
            .map(str::to_owned)
            .collect();
        for instance in of_service {
            if by.is_empty() || matches!(instance.phase, Phase::Exited(_)) {
                draft.retire(instance, None, cause);
            }
        }
        if !by.is_empty() && running.contains(service) {
            draft.wait(Wait::Dependents { service: service.to_owned(), by });
        }
    }
}

/// The services that depend on this one, also by way of others. Those that it depends on in turn are none: they would wait
/// for each other for ever.
fn dependents<'a>(dependencies: &'a BTreeMap<String, BTreeSet<String>>, service: &'a str) -> BTreeSet<&'a str> {
    let on = |service: &'a str| dependencies.get(service).into_iter().flatten().map(String::as_str);
    let by = |service: &'a str| {
        let depends = move |(_, on): &(&'a String, &'a BTreeSet<String>)| on.contains(service);
        dependencies.iter().filter(depends).map(|(name, _)| name.as_str())
    };
    let below = reached(service, on);
    reached(service, by).into_iter().filter(|one| !below.contains(one) && *one != service).collect()
}

/// Everything that is reached from there, which itself is only where a way leads back.
fn reached<'a, I: Iterator<Item = &'a str>>(start: &'a str, next: impl Fn(&'a str) -> I) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut open = vec![start];
    while let Some(at) = open.pop() {
        open.extend(next(at).filter(|one| reached.insert(*one)).collect::<Vec<_>>());
    }
    reached
}
