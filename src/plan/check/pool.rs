//! The checks of one pool.

use chrono::{DateTime, Utc};

use super::{Violation, created};
use crate::plan::pool::renew_lead;
use crate::plan::{Action, Cause, Input, Lane, MemberUse, PoolRecord, REFILL_AT_ONCE, time::after};
use crate::state::{DesiredService, Instance, Phase};

struct Checked<'a> {
    input: &'a Input<'a>,
    desired: &'a DesiredService,
    observed: &'a [&'a Instance],
    lanes: &'a [&'a Lane],
    record: &'a PoolRecord,
}

pub(super) fn check_pool(
    input: &Input<'_>,
    desired: &DesiredService,
    observed: &[&Instance],
    lanes: &[&Lane],
    found: &mut Vec<Violation>,
) {
    let none = PoolRecord::default();
    let record = input.history.pools.get(&desired.name).unwrap_or(&none);
    let checked = Checked { input, desired, observed, lanes, record };
    checked.check_launches(found);
    checked.check_bounds(found);
    checked.check_removals(found);
}

impl Checked<'_> {
    fn check_launches(&self, found: &mut Vec<Violation>) {
        let mut slots = std::collections::BTreeSet::new();
        for id in self.lanes.iter().filter_map(|lane| created(lane)) {
            if id.revision != self.desired.revision || id.service != self.desired.name {
                found.push(Violation::NotAsked(id.clone()));
            }
            let lives = |one: &&&Instance| one.id.slot == id.slot && !matches!(one.phase, Phase::Exited(_));
            if !slots.insert(id.slot) || self.observed.iter().any(|one| lives(&one)) {
                found.push(Violation::Occupied(id.clone()));
            }
        }
    }

    /// Never more than `pool.max_total` of whatever lives, never more free ones than `pool.max_warm` and those that are
    /// waited for, aside from those that will be too old soon, and never more at a time than the refill allows.
    fn check_bounds(&self, found: &mut Vec<Violation>) {
        let Some(pool) = &self.desired.spec.pool else { return };
        let made = count(self.lanes.iter().filter(|lane| created(lane).is_some()));
        if made == 0 {
            return;
        }
        let lives = |one: &&&Instance| !matches!(one.phase, Phase::Exited(_));
        let live = count(self.observed.iter().filter(lives)) + made;
        let making = count(self.observed.iter().filter(|one| self.is_coming(one))) + made;
        let is_free = |one: &Instance| (self.is_coming(one) || self.is_warm(one)) && !self.is_renewed(one);
        let free = count(self.observed.iter().filter(|one| is_free(one))) + made;
        let warm_ceiling = pool.max_warm().saturating_add(self.record.waiting);
        for (live, ceiling) in [(live, pool.max_total()), (free, warm_ceiling), (making, REFILL_AT_ONCE)] {
            if live > ceiling {
                found.push(Violation::AboveCeiling { service: self.desired.name.clone(), live, ceiling });
            }
        }
    }

    /// What a session has is left alone, and so is what can be handed out, unless there is too much.
    fn check_removals(&self, found: &mut Vec<Violation>) {
        for (instance, cause) in self.taken() {
            let is_theirs = self.used(instance).is_some_and(|used| used > MemberUse::Entered);
            let is_good = self.is_warm(instance);
            let makes_room = matches!(cause, Cause::PoolSurplus { .. } | Cause::MakesRoom);
            if is_theirs || (is_good && !makes_room) {
                found.push(Violation::Wanted(instance.id.clone()));
            }
        }
        for lane in self.lanes {
            let Some(Action::Resume { instance }) = lane.steps.first().map(|step| &step.action) else { continue };
            if self.used_as(instance.runtime, &instance.runtime_id) == Some(MemberUse::Suspended) {
                found.push(Violation::Wanted(instance.id.clone()));
            }
        }
    }

    fn used(&self, instance: &Instance) -> Option<MemberUse> {
        self.used_as(instance.runtime, &instance.runtime_id)
    }

    fn used_as(&self, runtime: crate::spec::RuntimeKind, runtime_id: &str) -> Option<MemberUse> {
        self.record.members.get(&(runtime, runtime_id.to_owned())).copied()
    }

    fn is_current(&self, instance: &Instance) -> bool {
        let is_current = self.desired.is_made_from(&instance.id.revision) && instance.runtime == self.desired.runtime;
        let remembered = self.record.since.is_none_or(|since| instance.created_at >= since);
        let is_changed = instance.changed_by_others().is_some();
        remembered
            && !is_changed
            && self.used(instance).is_none()
            && (is_current || self.desired.standing.paused.is_some())
    }

    fn is_coming(&self, instance: &Instance) -> bool {
        let unready = match instance.phase {
            Phase::Pending | Phase::Created => true,
            Phase::Running { ready, .. } => !ready && instance.unhealthy().is_none(),
            _ => false,
        };
        unready && self.is_current(instance) && (instance.phase == Phase::Pending || !self.is_cold(instance))
    }

    fn is_warm(&self, instance: &Instance) -> bool {
        instance.phase.is_ready()
            && self.is_current(instance)
            && !self.is_cold(instance)
            && !self.input.unreachable.contains_key(&instance.runtime)
    }

    /// Whether its successor is to be made.
    fn is_renewed(&self, instance: &Instance) -> bool {
        let pool = self.desired.spec.pool.clone().unwrap_or_default();
        after(instance.created_at, pool.warm_ttl() - renew_lead(&pool)) <= self.input.now
    }

    fn is_cold(&self, instance: &Instance) -> bool {
        let pool = self.desired.spec.pool.clone().unwrap_or_default();
        let cold_at: DateTime<Utc> = after(instance.created_at, pool.warm_ttl());
        cold_at <= self.input.now
    }

    /// Instances that the plan stops or removes, and why.
    fn taken(&self) -> impl Iterator<Item = (&Instance, &Cause)> {
        self.lanes.iter().filter_map(|lane| lane.steps.first()).filter_map(|step| match &step.action {
            Action::Stop { instance, .. } | Action::Remove { instance, .. } => {
                let observed = self.observed.iter().find(|observed| observed.as_ref() == *instance);
                observed.map(|observed| (*observed, &step.cause))
            }
            _ => None,
        })
    }
}

fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}
