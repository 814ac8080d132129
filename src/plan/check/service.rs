//! The checks of one declared service.

use chrono::{DateTime, Utc};

use super::{Violation, created, suspends};
use crate::plan::{Action, Cause, Input, Lane, PROBATION, PROVEN_RUN, Verdict, Wait, time::after, verdict};
use crate::spec::{CrashAction, RestartKind, Strategy};
use crate::state::{DesiredService, EndedBy, Exit, Instance, InstanceId, Phase, StopCause};

struct Checked<'a> {
    input: &'a Input<'a>,
    desired: &'a DesiredService,
    observed: &'a [&'a Instance],
    lanes: &'a [&'a Lane],
    waits: &'a [Wait],
    replicas: u32,
}

pub(super) fn check_service<'a>(
    input: &'a Input<'a>,
    desired: &'a DesiredService,
    observed: &'a [&'a Instance],
    lanes: &'a [&'a Lane],
    waits: &'a [Wait],
    found: &mut Vec<Violation>,
) {
    let checked = Checked { input, desired, observed, lanes, waits, replicas: desired.replicas };
    checked.check_launches(found);
    checked.check_removals(found);
    checked.check_ceiling(found);
    checked.check_floor(found);
}

impl Checked<'_> {
    fn check_launches(&self, found: &mut Vec<Violation>) {
        let mut slots = std::collections::BTreeSet::new();
        let recreate = self.desired.spec.rollout().strategy() == Strategy::Recreate;
        for id in self.lanes.iter().filter_map(|lane| created(lane)) {
            if id.slot >= self.replicas || id.revision != self.desired.revision || id.service != self.desired.name {
                found.push(Violation::NotAsked(id.clone()));
            }
            let holds = |instance: &&&Instance| instance.id.slot == id.slot && self.is_fresh(instance);
            if !slots.insert(id.slot) || self.observed.iter().any(|instance| holds(&instance)) {
                found.push(Violation::Occupied(id.clone()));
            }
            if recreate && self.observed.iter().any(|instance| is_live(instance) && !self.is_current(instance)) {
                found.push(Violation::NotDrained(id.clone()));
            }
        }
    }

    /// Nothing is taken away that is wanted, and no end is forgotten.
    fn check_removals(&self, found: &mut Vec<Violation>) {
        for instance in self.taken().map(|(instance, _)| instance) {
            let of_slot = || self.observed.iter().filter(|other| other.id.slot == instance.id.slot);
            let others = of_slot().filter(|other| other.as_ref() != instance.as_ref());
            let inside = instance.id.slot < self.replicas;
            if inside && self.is_fresh(instance) && !self.is_shut_down() {
                let double = others.clone().any(|other| self.is_fresh(other));
                let stopped = self.input.history.lives.is_stopped(self.desired, instance.id.slot);
                let due =
                    stopped || !matches!(self.verdict(instance), Verdict::Keep { .. }) || self.is_failing(instance);
                if !double && !due {
                    found.push(Violation::Wanted(instance.id.clone()));
                }
            }
            let Phase::Exited(exit) = &instance.phase else { continue };
            let newest = of_slot().filter(|other| self.desired.keeps(&other.id.revision));
            let newest = newest.max_by_key(|other| other.id.attempt);
            let is_memory = newest.is_some_and(|newest| newest.as_ref() == instance.as_ref());
            let retired = exit.ended_by == EndedBy::Request(StopCause::Retired);
            if inside && is_memory && !retired && !self.is_made(instance.id.slot) {
                found.push(Violation::Forgotten(instance.id.clone()));
            }
        }
    }

    fn check_ceiling(&self, found: &mut Vec<Violation>) {
        let live = self.count(is_live);
        let made = count(self.lanes.iter().filter(|lane| created(lane).is_some()));
        let (surge, _) = self.desired.spec.rollout_bounds(self.replicas);
        let ceiling = self.replicas.saturating_add(surge);
        if made > 0 && live + made > ceiling {
            found.push(Violation::AboveCeiling { service: self.desired.name.clone(), live: live + made, ceiling });
        }
    }

    /// What is left when every lane that takes away has run and none that makes has.
    fn check_floor(&self, found: &mut Vec<Violation>) {
        if self.is_shut_down() {
            return;
        }
        let recreate = self.desired.spec.rollout().strategy() == Strategy::Recreate;
        let (_, unavailable) = self.desired.spec.rollout_bounds(self.replicas);
        let floor = self.replicas.saturating_sub(self.at_rest()).saturating_sub(unavailable);
        let below = |counted, left| Violation::BelowFloor { service: self.desired.name.clone(), counted, left, floor };
        let kept = |instance: &Instance| self.taken().all(|(taken, _)| taken.as_ref() != instance.as_ref());
        let replaced: Vec<&Instance> = self
            .taken()
            .filter(|(_, cause)| match cause {
                cause if cause.is_rollout() => !recreate,
                Cause::Expired { .. } => self.is_recycled(),
                Cause::Duplicate | Cause::ChangedByOthers { .. } => true,
                _ => false,
            })
            .map(|(instance, _)| instance)
            .collect();

        let left = self.count(|instance| self.is_available(instance) && kept(instance));
        if replaced.iter().any(|instance| self.is_available(instance)) && left < floor {
            found.push(below("available", left));
        }
        let left = self.count(|instance| self.is_ready(instance) && kept(instance));
        if replaced.iter().any(|instance| self.is_ready(instance)) && left < floor {
            found.push(below("ready", left));
        }
        let unready = |instance: &Instance| matches!(instance.phase, Phase::Running { .. }) && !self.is_ready(instance);
        let is_double = |instance: &Instance| self.is_fresh(instance) && instance.id.slot < self.replicas;
        if replaced.iter().any(|instance| unready(instance) && !is_double(instance)) {
            let left = self.count(|instance| {
                let runs = matches!(instance.phase, Phase::Running { .. }) && self.is_reachable(instance);
                let serves = if is_double(instance) { self.is_available(instance) } else { runs };
                serves && kept(instance)
            });
            if left < floor {
                found.push(below("running", left));
            }
        }
        if !recreate {
            self.check_stand_ins(floor, found);
        }
    }

    /// Surplus that is available stays while slots that could take over are coming up.
    fn check_stand_ins(&self, floor: u32, found: &mut Vec<Violation>) {
        let surplus = |instance: &Instance| instance.id.slot >= self.replicas && self.is_available(instance);
        let kept = |instance: &Instance| self.taken().all(|(taken, _)| taken.as_ref() != instance.as_ref());
        if !self.taken().any(|(instance, _)| surplus(instance)) {
            return;
        }
        let slot = |slot: u32| self.observed.iter().filter(move |one| one.id.slot == slot).filter(|one| kept(one));
        let available = |number: u32| slot(number).any(|instance| self.is_available(instance));
        let starting = |instance: &Instance| matches!(instance.phase, Phase::Pending | Phase::Running { .. });
        // What is suspended now comes no nearer.
        let rests = |instance: &Instance| self.lanes.iter().any(|lane| suspends(lane, instance));
        let coming = |number: u32| slot(number).any(|one| self.is_fresh(one) && starting(one) && !rests(one));
        let inside = self.count(|one| one.id.slot < self.replicas && self.is_available(one) && kept(one));
        let could = count((0..self.replicas).filter(|number| !available(*number) && coming(*number)));
        let left = inside + self.count(|instance| surplus(instance) && kept(instance));
        if left < floor.min(inside + could) {
            let service = self.desired.name.clone();
            found.push(Violation::BelowFloor { service, counted: "available", left, floor });
        }
    }

    /// Slots that are down on purpose: those that the plan says so of and where the exit agrees, and those that
    /// it brings down by a limit.
    fn at_rest(&self) -> u32 {
        let agrees = |id: &InstanceId| {
            self.observed.iter().filter(|instance| instance.id == *id).any(|instance| match &instance.phase {
                Phase::Exited(exit) => self.is_rest(exit),
                _ => false,
            })
        };
        let said = self.waits.iter().filter(|wait| match wait {
            Wait::Idle { id, .. } | Wait::Terminated { id } | Wait::Ended { id, .. } => {
                id.service == self.desired.name && agrees(id)
            }
            Wait::StopAsked { id } => {
                id.service == self.desired.name && self.input.history.lives.is_stopped(self.desired, id.slot)
            }
            Wait::IdleSuspended { id, .. } => {
                let suspended = |one: &&&Instance| self.input.history.lives.suspended_since(one).is_some();
                id.service == self.desired.name && self.observed.iter().filter(suspended).any(|one| one.id == *id)
            }
            _ => false,
        });
        let halts = |lane: &&&Lane| match &lane.steps[..] {
            [only] => match only.action {
                Action::Stop { .. } => !matches!(only.cause, Cause::Unhealthy { .. }),
                Action::Suspend { .. } => true,
                _ => false,
            },
            _ => false,
        };
        count(said) + count(self.lanes.iter().filter(halts))
    }

    fn is_rest(&self, exit: &Exit) -> bool {
        let limit = self.desired.spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.max_lifetime);
        let aged = match (limit, exit.started_at) {
            (Some(limit), Some(started)) => after(started, limit.get()) <= exit.finished_at,
            _ => false,
        };
        aged || exit.is_success() || matches!(exit.ended_by, EndedBy::Request(StopCause::Idle | StopCause::Expired))
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

    fn is_made(&self, slot: u32) -> bool {
        let lives = self.observed.iter().any(|instance| instance.id.slot == slot && is_live(instance));
        lives || self.lanes.iter().filter_map(|lane| created(lane)).any(|id| id.slot == slot)
    }

    fn is_current(&self, instance: &Instance) -> bool {
        let is_current = self.desired.is_made_from(&instance.id.revision) && instance.runtime == self.desired.runtime;
        is_current || self.desired.standing.paused.is_some()
    }

    /// Whether nothing speaks for another instance in its place.
    fn is_fresh(&self, instance: &Instance) -> bool {
        let gone = matches!(instance.phase, Phase::Stopping | Phase::Exited(_));
        !gone
            && self.is_current(instance)
            && !matches!(self.verdict(instance), Verdict::Recycle { .. } | Verdict::Changed)
    }

    fn verdict(&self, instance: &Instance) -> Verdict {
        verdict(instance, &self.desired.spec, self.input.history.lives.orders.held_until(instance), self.input.now)
    }

    /// Whether health checks fail and a crash would not be left as it is.
    fn is_failing(&self, instance: &Instance) -> bool {
        let errors = self.desired.spec.errors.clone().unwrap_or_default();
        let left = errors.on_crash() == CrashAction::Restart && self.desired.spec.restart_kind() == RestartKind::No;
        instance.unhealthy().is_some() && !left
    }

    fn is_recycled(&self) -> bool {
        let lifecycle = self.desired.spec.lifecycle.clone().unwrap_or_default();
        lifecycle.on_expiry.unwrap_or_default() == crate::spec::OnExpiry::Recycle
    }

    fn is_shut_down(&self) -> bool {
        let shuts = self.desired.spec.errors.as_ref().is_some_and(|errors| errors.on_crash() == CrashAction::Shutdown);
        let crashed = |instance: &&&Instance| {
            let failed = |exit: &Exit| !exit.is_success() && !self.desired.standing.is_outdated(exit);
            self.is_current(instance) && matches!(&instance.phase, Phase::Exited(exit) if failed(exit))
        };
        shuts && self.observed.iter().any(|instance| crashed(&instance))
    }

    fn is_reachable(&self, instance: &Instance) -> bool {
        !self.input.unreachable.contains_key(&instance.runtime)
    }

    fn is_ready(&self, instance: &Instance) -> bool {
        instance.phase.is_ready() && self.is_reachable(instance)
    }

    fn is_available(&self, instance: &Instance) -> bool {
        let is_checked = self.desired.spec.health.is_some() || instance.health.is_some();
        let is_rollout = || self.observed.iter().any(|other| is_live(other) && !self.is_current(other));
        let is_on_probation = |since: DateTime<Utc>| {
            let is_unknown = !is_checked && self.desired.spec.rollout().min_ready().is_zero();
            is_unknown && after(since, PROBATION) > self.input.now && self.is_current(instance) && is_rollout()
        };
        let long_enough = |since: DateTime<Utc>| {
            let streak = instance.streak == 0 || after(since, PROVEN_RUN) <= self.input.now;
            let proven = streak && !is_on_probation(since);
            proven && after(since, self.desired.spec.rollout().min_ready()) <= self.input.now
        };
        self.is_ready(instance) && instance.runs_since().is_some_and(long_enough)
    }

    fn count(&self, which: impl Fn(&Instance) -> bool) -> u32 {
        count(self.observed.iter().filter(|instance| which(instance)))
    }
}

/// Whether it exists or is being made or removed; the dead do not count.
const fn is_live(instance: &Instance) -> bool {
    !matches!(instance.phase, Phase::Exited(_))
}

fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}
