//! Deployments without a declaration: removed, kept, or orphaned.

use std::time::Duration;

use super::draft::Draft;
use super::order::retire_in_order;
use super::time::after;
use super::{Cause, Input, Wait};
use crate::spec::RuntimeKind;
use crate::state::{Fate, Instance, Phase, Volumes};

/// Time between the two sightings that make an orphan: longer than any moment in which a declaration may be
/// missing because a file is just being replaced.
pub const ORPHAN_SETTLE: Duration = Duration::from_secs(60);

/// Youngest age of an orphan: what was created a moment ago may be somebody's that is not known yet.
pub const ORPHAN_MIN_AGE: Duration = Duration::from_secs(60);

/// Orphans of all deployments together that are reaped at once; few enough that a mistake can be stopped by hand.
pub const ORPHANS_AT_ONCE: usize = 10;

/// Time after which the next orphans are looked at where more than [`ORPHANS_AT_ONCE`] are due.
pub const ORPHAN_PACE: Duration = Duration::from_secs(10);

/// Keys of what is to be remembered in [`History::orphans`](super::History::orphans) as seen now, with the time of
/// the first sighting: the runtime's ids of the instances of a deployment that nothing declares, and one for each
/// runtime on which it still has something shared. Keys that are not given any more may be forgotten.
pub fn sightings(input: &Input<'_>) -> Vec<String> {
    if input.desired != Err(Fate::Orphaned) {
        return Vec::new();
    }
    let instances = input.observed.iter().map(|instance| instance.runtime_id.clone());
    instances.chain(input.shared.iter().map(|runtime| shared_key(*runtime, input.deployment))).collect()
}

/// The key of what a deployment shares; no runtime's own id holds a slash.
fn shared_key(runtime: RuntimeKind, deployment: &str) -> String {
    format!("{runtime}/{deployment}")
}

/// Plans a deployment that nothing declares.
pub(super) fn plan_undeclared(draft: &mut Draft<'_>, fate: Fate, instances: &[&Instance]) {
    match fate {
        Fate::Kept => {
            if !instances.is_empty() || !draft.input.shared.is_empty() {
                draft.wait(Wait::Kept);
            }
        }
        Fate::Removed => {
            retire_in_order(draft, instances, &Cause::DeploymentRemoved);
            for runtime in abandoned(draft, instances) {
                draft.tear_down(runtime, draft.input.volumes, &Cause::DeploymentRemoved);
            }
        }
        Fate::Orphaned => reap(draft, instances),
    }
}

/// Runtimes where no instance is left and something shared is.
fn abandoned(draft: &Draft<'_>, instances: &[&Instance]) -> Vec<RuntimeKind> {
    let empty = |runtime: &RuntimeKind| instances.iter().all(|instance| instance.runtime != *runtime);
    draft.input.shared.iter().copied().filter(|runtime| empty(runtime) && draft.reachable(*runtime)).collect()
}

/// Removes orphans that were seen twice and are old enough, a few at a time. Named volumes stay: nothing says that
/// somebody wanted them gone.
fn reap(draft: &mut Draft<'_>, instances: &[&Instance]) {
    let now = draft.input.now;
    let history = draft.input.history;
    let in_flight = instances.iter().filter(|instance| instance.phase == Phase::Stopping).count();
    let mut places = ORPHANS_AT_ONCE.saturating_sub(in_flight + history.reaped_elsewhere);
    for instance in instances.iter().filter(|instance| !matches!(instance.phase, Phase::Pending | Phase::Stopping)) {
        let first_seen = history.orphans.get(&instance.runtime_id).copied();
        let old_enough = after(instance.created_at, ORPHAN_MIN_AGE);
        let mut until = after(first_seen.unwrap_or(now), ORPHAN_SETTLE).max(old_enough);
        if let Some(first_seen) = first_seen.filter(|_| until <= now) {
            if places > 0 {
                let reaped = draft.retire(instance, None, &Cause::Orphan { first_seen });
                places -= usize::from(reaped);
                continue;
            }
            until = after(now, ORPHAN_PACE);
        }
        draft.look_at(until);
        draft.wait(Wait::OrphanSettling { id: instance.id.clone(), until });
    }
    for runtime in abandoned(draft, instances) {
        let first_seen = history.orphans.get(&shared_key(runtime, draft.input.deployment)).copied();
        let until = after(first_seen.unwrap_or(now), ORPHAN_SETTLE);
        match first_seen {
            Some(first_seen) if until <= now => {
                draft.tear_down(runtime, Volumes::Keep, &Cause::Orphan { first_seen });
            }
            _ => draft.look_at(until),
        }
    }
}
