//! Matches the instances of a service with its slots: what is as it should be, what is stale, dead or too much.

use super::draft::Draft;
use super::lifecycle::Verdict;
use super::{Cause, MemberUse};
use crate::state::{DesiredService, Exit, Instance, Phase, Standing};

/// A service's instances, matched with its slots.
pub(super) struct Matched<'a> {
    /// One for each desired replica.
    pub(super) slots: Vec<Slot<'a>>,
    /// Instances of slots beyond the desired replicas, lowest slot first.
    pub(super) surplus: Vec<&'a Instance>,
    /// Instances that exist or are being made or removed; the dead do not count.
    pub(super) live: u32,
    /// Whether an instance of another template or runtime is not dead yet.
    pub(super) outdated_live: bool,
}

/// The instances of one slot within the desired replicas.
#[derive(Default)]
pub(super) struct Slot<'a> {
    /// The slot.
    pub(super) number: u32,
    /// The instance that holds the slot: made from the desired template on the desired runtime, and to be kept.
    pub(super) fresh: Option<&'a Instance>,
    /// Further ones that would do as well.
    pub(super) duplicates: Vec<&'a Instance>,
    /// Those of other templates beside it, where nothing is replaced for now.
    pub(super) beside: Vec<&'a Instance>,
    /// Instances that another one is to replace.
    pub(super) stale: Vec<Stale<'a>>,
    /// Whether an instance is being stopped or removed.
    pub(super) leaving: bool,
    /// Dead instances, in order of their identity.
    pub(super) dead: Vec<&'a Instance>,
    /// The last one made from the desired template, in whatever phase: the memory of restarts.
    pub(super) newest: Option<&'a Instance>,
}

/// An instance that another one is to replace.
pub(super) struct Stale<'a> {
    pub(super) instance: &'a Instance,
    pub(super) cause: Cause,
}

impl Slot<'_> {
    /// Whether nothing lives in the slot, not even something that is on its way out.
    pub(super) fn is_vacant(&self) -> bool {
        self.fresh.is_none() && self.stale.is_empty() && !self.leaving
    }

    /// Counts the slot's next instance: one more than the highest known attempt with the desired template.
    pub(super) fn next_attempt(&self) -> u32 {
        self.newest.map_or(0, |newest| newest.id.attempt.saturating_add(1))
    }
}

/// Matches instances with slots. `instances` are those of the service, in order of their identity.
pub(super) fn match_slots<'a>(
    desired: &DesiredService,
    instances: &[&'a Instance],
    draft: &mut Draft<'_>,
) -> Matched<'a> {
    let split = instances.partition_point(|instance| instance.id.slot < desired.replicas);
    let (inside, beyond) = instances.split_at(split);
    let alive = |instance: &&&Instance| !matches!(instance.phase, Phase::Exited(_));
    let outdated = |instance: &&Instance| outdated(instance, desired).is_some();

    let mut rest = inside;
    let slots = (0..desired.replicas)
        .map(|number| {
            let (of_slot, others) = rest.split_at(rest.partition_point(|instance| instance.id.slot <= number));
            rest = others;
            match_slot(number, of_slot, desired, draft)
        })
        .collect();
    let mut is_surplus = |instance: &&&Instance| {
        let ends = alive(instance) && was_somebodys(instance, draft);
        if ends {
            draft.retire(instance, Some(&desired.spec), &Cause::SessionEnded);
        }
        !ends
    };
    Matched {
        slots,
        surplus: beyond.iter().filter(|one| is_surplus(one)).copied().collect(),
        live: count(instances.iter().filter(alive)),
        outdated_live: instances.iter().filter(alive).any(outdated),
    }
}

fn match_slot<'a>(
    number: u32,
    instances: &[&'a Instance],
    desired: &DesiredService,
    draft: &mut Draft<'_>,
) -> Slot<'a> {
    let mut slot = Slot { number, ..Slot::default() };
    let of_template = instances.iter().copied().filter(|instance| desired.is_made_from(&instance.id.revision));
    slot.newest = of_template.max_by_key(|instance| instance.id.attempt);
    let mut candidates = Vec::new();
    for &instance in instances {
        match &instance.phase {
            Phase::Exited(_) => slot.dead.push(instance),
            Phase::Stopping => slot.leaving = true,
            _ if was_somebodys(instance, draft) => {
                draft.retire(instance, Some(&desired.spec), &Cause::SessionEnded);
                slot.leaving = true;
            }
            _ => match stale(instance, desired, draft) {
                Some(cause) => slot.stale.push(Stale { instance, cause }),
                None => candidates.push(instance),
            },
        }
    }
    slot.fresh = candidates.iter().copied().max_by_key(|instance| (claim(&instance.phase), instance.id.attempt));
    if let Some(fresh) = slot.fresh {
        candidates.retain(|instance| !std::ptr::eq(fresh, *instance));
        let alike = |instance: &&Instance| desired.are_made_alike(&fresh.id.revision, &instance.id.revision);
        (slot.duplicates, slot.beside) = candidates.into_iter().partition(alike);
    }
    slot
}

/// Whether the service was a pool before, and a client has had the instance: it ends with its session, and serves nobody else
/// until another one is ready.
fn was_somebodys(instance: &Instance, draft: &Draft<'_>) -> bool {
    let record = draft.input.history.pools.get(&instance.id.service);
    let used = record.and_then(|record| record.members.get(&(instance.runtime, instance.runtime_id.clone())));
    instance.phase != Phase::Pending && used == Some(&MemberUse::Spent)
}

/// How good a claim to a slot a phase gives; between equal ones the youngest attempt holds it.
const fn claim(phase: &Phase) -> u8 {
    match phase {
        Phase::Running { ready: true, .. } => 5,
        Phase::Running { ready: false, .. } => 4,
        Phase::Pending => 3,
        // It has a run behind it, and goes on with that.
        Phase::Paused { .. } => 2,
        Phase::Created => 1,
        Phase::Unknown { .. } | Phase::Stopping | Phase::Exited(_) => 0,
    }
}

/// Why another instance is to take this one's place, if one is.
fn stale(instance: &Instance, desired: &DesiredService, draft: &mut Draft<'_>) -> Option<Cause> {
    if let Some(cause) = outdated(instance, desired) {
        return Some(cause);
    }
    match draft.verdict(instance, &desired.spec) {
        Verdict::Recycle { since } => Some(Cause::Expired { since }),
        Verdict::Changed => instance.changed_by_others().map(|what| Cause::ChangedByOthers { what: what.to_owned() }),
        Verdict::Keep { next } => {
            if let Some(next) = next {
                draft.look_at(next);
            }
            None
        }
        Verdict::Terminate { .. } | Verdict::Idle { .. } | Verdict::Suspend { .. } => None,
    }
}

/// Why the instance is not what the service asks for, if it is not.
pub(super) fn outdated(instance: &Instance, desired: &DesiredService) -> Option<Cause> {
    if !desired.keeps(&instance.id.revision) {
        let (from, to) = (instance.id.revision.clone(), desired.revision.clone());
        return Some(match &desired.standing {
            Standing { restarted: true, .. } => Cause::RestartAsked { from, to },
            Standing { rolled_back: Some(_), .. } => Cause::RolledBack { from, to },
            _ => Cause::SpecChanged { source: desired.source.clone(), from, to },
        });
    }
    if desired.standing.paused.is_some() {
        return None;
    }
    let changed = instance.runtime != desired.runtime;
    changed.then_some(Cause::RuntimeChanged { from: instance.runtime, to: desired.runtime })
}

/// The exit of a dead instance.
pub(super) const fn exit_of(instance: &Instance) -> Option<&Exit> {
    match &instance.phase {
        Phase::Exited(exit) => Some(exit),
        _ => None,
    }
}

/// A count that fits, as all counts of instances do.
pub(super) fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}
