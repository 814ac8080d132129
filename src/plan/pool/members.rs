//! What each member of a pool is to it.

use chrono::{DateTime, Utc};

use super::{MemberUse, PoolRecord, by_age, cold_at, renew_lead};
use crate::plan::diff::{count, outdated};
use crate::plan::restart::ends_unhealthy;
use crate::plan::{Cause, Input};
use crate::spec::Pool;
use crate::state::{DesiredService, Exit, Instance, Phase};

/// What a member is to its pool.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Role {
    /// It can be handed out.
    Warm,
    /// It is being made, or is not ready yet.
    Coming,
    /// It was created and never started.
    Created,
    /// It is free, and somebody froze it.
    Frozen,
    /// A session has it, or somebody works inside.
    Claimed,
    /// The same, and somebody else froze it.
    Stalled,
    /// It is to go, and why.
    Over(Cause),
    /// Its health checks fail.
    Unhealthy,
    /// It is on its way out.
    Leaving,
    /// Nobody knows what it does; what the runtime said.
    Strange(String),
    /// Its program ended before anybody had it.
    Dead(Exit),
}

/// The members of one pool.
pub(super) struct Members<'a> {
    pub(super) all: Vec<(&'a Instance, Role)>,
    /// Members created until then are so old that their successors are to be made.
    renewed_until: DateTime<Utc>,
}

impl<'a> Members<'a> {
    pub(super) fn of(input: &Input<'_>, desired: &DesiredService, instances: &[&'a Instance]) -> Self {
        let (none, defaults) = (PoolRecord::default(), Pool::default());
        let record = input.history.pools.get(&desired.name).unwrap_or(&none);
        let pool = desired.spec.pool.as_ref().unwrap_or(&defaults);
        let eye = Eye { input, desired, pool, record };
        let all = instances.iter().map(|instance| (*instance, eye.role(instance))).collect();
        let keeps = chrono::TimeDelta::from_std(pool.warm_ttl() - renew_lead(pool)).unwrap_or(chrono::TimeDelta::MAX);
        let renewed_until = input.now.checked_sub_signed(keeps).unwrap_or(DateTime::<Utc>::MIN_UTC);
        Self { all, renewed_until }
    }

    fn count(&self, test: impl Fn(&Instance, &Role) -> bool) -> u32 {
        count(self.all.iter().filter(|(member, role)| test(member, role)))
    }

    /// Members that exist or are being made or removed; the dead do not count.
    pub(super) fn live(&self) -> u32 {
        self.count(|member, _| !matches!(member.phase, Phase::Exited(_)))
    }

    /// Members that are on their way out, or are to be.
    pub(super) fn leaving(&self) -> u32 {
        self.count(|member, role| match role {
            Role::Leaving | Role::Over(_) | Role::Unhealthy => !matches!(member.phase, Phase::Exited(_)),
            _ => false,
        })
    }

    /// Members that are ended since their checks failed, or are to be.
    pub(super) fn ending_unhealthy(&self) -> u32 {
        self.count(|member, role| match role {
            Role::Unhealthy => true,
            Role::Leaving => member.unhealthy().is_some(),
            _ => false,
        })
    }

    /// Members that a session has.
    pub(super) fn claimed(&self) -> u32 {
        self.count(|_, role| matches!(role, Role::Claimed | Role::Stalled))
    }

    /// Members that are being made.
    pub(super) fn making(&self) -> u32 {
        self.count(|_, role| matches!(role, Role::Coming | Role::Created))
    }

    /// Members that are free or will be, without those whose successors are to be made.
    pub(super) fn supply(&self) -> u32 {
        self.supply_of(|created_at| created_at > self.renewed_until)
    }

    /// Members that are free or will be, and were created since.
    pub(super) fn supply_since(&self, since: DateTime<Utc>) -> u32 {
        self.supply_of(|created_at| created_at >= since)
    }

    fn supply_of(&self, counts: impl Fn(DateTime<Utc>) -> bool) -> u32 {
        self.count(|member, role| is_free(role) && counts(member.created_at))
    }

    /// Those that can be handed out, longest-warm first.
    pub(super) fn warm(&self) -> Vec<&'a Instance> {
        by_age(self.all.iter().filter(|(_, role)| *role == Role::Warm).map(|(member, _)| *member).collect())
    }

    /// Those whose program ended before anybody had them.
    pub(super) fn dead(&self) -> impl Iterator<Item = (&'a Instance, &Exit)> {
        self.all.iter().filter_map(|(member, role)| match role {
            Role::Dead(exit) => Some((*member, exit)),
            _ => None,
        })
    }

    fn of_slot(&self, slot: u32) -> impl Iterator<Item = &'a Instance> {
        self.all.iter().map(|(member, _)| *member).filter(move |one| one.id.slot == slot)
    }

    /// Whether nothing came after it in its slot, and nothing lives there.
    pub(super) fn is_last_of_its_slot(&self, dead: &Instance) -> bool {
        let lives = |one: &Instance| !matches!(one.phase, Phase::Exited(_));
        let newest = self.of_slot(dead.id.slot).max_by_key(|one| one.recency());
        newest.is_some_and(|newest| std::ptr::eq(newest, dead)) && !self.of_slot(dead.id.slot).any(lives)
    }

    /// Counts the next member of a slot: one more than the highest that is known there.
    pub(super) fn next_attempt(&self, slot: u32) -> u32 {
        self.of_slot(slot).map(|one| one.id.attempt.saturating_add(1)).max().unwrap_or(0)
    }
}

/// Whether nobody has it, and somebody may.
const fn is_free(role: &Role) -> bool {
    matches!(role, Role::Warm | Role::Coming | Role::Created | Role::Frozen)
}

/// Tells what members are.
struct Eye<'a> {
    input: &'a Input<'a>,
    desired: &'a DesiredService,
    pool: &'a Pool,
    record: &'a PoolRecord,
}

impl Eye<'_> {
    fn role(&self, member: &Instance) -> Role {
        let used = self.record.members.get(&(member.runtime, member.runtime_id.clone()));
        match (used, &member.phase) {
            (Some(MemberUse::Spent | MemberUse::Entered), Phase::Stopping | Phase::Pending)
            | (None, Phase::Stopping) => Role::Leaving,
            (Some(MemberUse::Spent), _) => Role::Over(Cause::SessionEnded),
            (Some(MemberUse::Entered), _) => Role::Over(Cause::Entered),
            (Some(MemberUse::Claimed), Phase::Paused { .. }) => Role::Stalled,
            (Some(_), _) => Role::Claimed,
            (None, _) => self.role_of_free(member),
        }
    }

    fn role_of_free(&self, member: &Instance) -> Role {
        if let Some(cause) = outdated(member, self.desired) {
            return if member.phase == Phase::Pending { Role::Leaving } else { Role::Over(cause) };
        }
        if self.record.since.is_some_and(|since| member.created_at < since) {
            return Role::Over(Cause::NotRemembered);
        }
        // What is frozen goes once it runs again.
        let what =
            member.changed_by_others().filter(|_| matches!(member.phase, Phase::Created | Phase::Running { .. }));
        if let Some(what) = what {
            return Role::Over(Cause::ChangedByOthers { what: what.to_owned() });
        }
        match &member.phase {
            Phase::Exited(exit) => Role::Dead(exit.clone()),
            Phase::Unknown { message } => Role::Strange(message.clone()),
            Phase::Pending => Role::Coming,
            _ if cold_at(self.pool, member) <= self.input.now => Role::Over(Cause::Cold { since: member.created_at }),
            Phase::Created => Role::Created,
            Phase::Paused { .. } => Role::Frozen,
            Phase::Running { ready: true, .. } if !self.input.unreachable.contains_key(&member.runtime) => Role::Warm,
            Phase::Running { .. } if member.unhealthy().is_some() && ends_unhealthy(&self.desired.spec) => {
                Role::Unhealthy
            }
            Phase::Running { .. } => Role::Coming,
            Phase::Stopping => Role::Leaving,
        }
    }
}
