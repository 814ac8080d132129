//! What a service keeps for those that depend on it while its instances are replaced.

use super::diff::{count, outdated};
use super::rest::{rest, stands_for_slot};
use super::{Input, replicas};
use crate::spec::{DependsCondition, RType, Strategy};
use crate::state::{DesiredService, Instance, Phase};

/// What will be missing for the condition to hold while the instances of a service are replaced; none where it holds all the
/// time, or nothing is replaced. `instances` are those of the service that are known of.
pub(super) fn lacking_while_replaced(
    input: &Input<'_>,
    service: &DesiredService,
    condition: DependsCondition,
    instances: &[&Instance],
) -> Option<String> {
    // What has the members of a pool replaced waits until nobody has them.
    if service.spec.rtype() != RType::Service || service.spec.pool.is_some() {
        return None;
    }
    let alive = instances.iter().copied().filter(|one| !matches!(one.phase, Phase::Exited(_)));
    let (old, new): (Vec<&Instance>, Vec<&Instance>) = alive.partition(|one| outdated(one, service).is_some());
    if old.is_empty() {
        return None;
    }
    let left = least_left(input, service, instances);
    let runs = |one: &&Instance| matches!(one.phase, Phase::Running { .. } | Phase::Paused { .. });
    match condition {
        DependsCondition::Started => {
            let stays = left > 0 || new.iter().any(runs);
            (!stays).then(|| "all that has started of it is being replaced".to_owned())
        }
        DependsCondition::Healthy => {
            let stays = left > 0 || new.iter().any(|one| one.phase.is_ready());
            (!stays).then(|| "all that is healthy of it is being replaced".to_owned())
        }
        DependsCondition::Ready => {
            let mut slots: Vec<u32> = new.iter().filter(|one| one.phase.is_ready()).map(|one| one.id.slot).collect();
            slots.sort_unstable();
            slots.dedup();
            let (ready, wanted) = (left.max(count(slots.iter())), service.replicas);
            (ready < wanted).then(|| format!("{ready} of {} stay ready while it is rolled out", replicas(wanted)))
        }
    }
}

/// The fewest replicas that its rollout leaves available.
fn least_left(input: &Input<'_>, service: &DesiredService, instances: &[&Instance]) -> u32 {
    if service.spec.rollout().strategy() == Strategy::Recreate {
        return 0;
    }
    let (_, unavailable) = service.spec.rollout_bounds(service.replicas);
    let is_at_rest = |slot: &u32| {
        let of_slot = instances.iter().filter(|one| one.id.slot == *slot);
        rest(input, service, *slot, stands_for_slot(of_slot.copied(), Some(service))).is_some()
    };
    let at_rest = count((0..service.replicas).filter(is_at_rest));
    service.replicas.saturating_sub(at_rest).saturating_sub(unavailable)
}
