//! What users order of the lives of instances: start, stop, hold. And what wakes them: whoever uses one.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, SecondsFormat, Utc};
use tokio::time::Instant;

use super::EngineError;
use super::core::State;
use super::ledger::Used;
use super::memory::Note;
use crate::plan::revisions::Memory;
use crate::plan::{HOLD_MOST, LifeOrders, Stopped, replicas, stands_for_slot};
use crate::spec::HumanDuration;
use crate::state::{
    DesiredDeployment, DesiredService, EndedBy, Exit, Instance, InstanceRef, Phase, Signal, StopCause, Target,
};

/// Holds a slot until then, or for as long as it is held already where that is longer; releases it without a time. Gives what
/// is told of it.
fn hold_slot(
    of_service: &mut BTreeMap<u32, DateTime<Utc>>,
    slot: u32,
    until: Option<DateTime<Utc>>,
    name: &str,
) -> String {
    let tell = |until: DateTime<Utc>| until.to_rfc3339_opts(SecondsFormat::Secs, true);
    let Some(until) = until else {
        of_service.remove(&slot);
        return format!("{name} released");
    };
    match of_service.get(&slot).filter(|longer| **longer > until) {
        Some(longer) => {
            format!("{name} held until {}, as was asked for before; keel hold --release ends it", tell(*longer))
        }
        None => {
            of_service.insert(slot, until);
            format!("{name} held until {}", tell(until))
        }
    }
}

impl State {
    /// Takes `keel start` and `keel stop`.
    pub(super) fn order_life(
        &self,
        target: &Target,
        start: bool,
        memory: &mut Memory,
    ) -> Result<Vec<String>, EngineError> {
        let mut results = Vec::new();
        // Until then nothing is started or stopped.
        let later = match memory.orders.suspended {
            true => format!(" {}", once_resumed(&target.deployment)),
            false => String::new(),
        };
        for service in self.lived(target, memory)? {
            let name = format!("{}/{}", target.deployment, service.name);
            let name = target.slot.map_or_else(|| format!("service/{name}"), |slot| format!("instance/{name}/{slot}"));
            let changed = match start {
                true => self.start_life(target, &service, memory),
                false => stop_life(target, &service, memory),
            };
            results.push(match (start, changed) {
                (true, true) if !later.is_empty() => format!("{name} will be started{later}"),
                (false, true) if !later.is_empty() => format!("{name} will be stopped{later}"),
                (true, true) => format!("{name} started"),
                (true, false) => format!("{name} is to run already"),
                (false, true) => format!("{name} stopped"),
                (false, false) => format!("{name} is stopped already"),
            });
        }
        Ok(results)
    }

    /// Lets slots run again: forgets that they are to stay down, and brings back what is down or suspended.
    fn start_life(&self, target: &Target, service: &DesiredService, memory: &mut Memory) -> bool {
        let lives = &mut memory.orders.lives;
        let before = lives.clone();
        if let Some(stopped) = lives.stopped.remove(&service.name)
            && let Some(slot) = target.slot
        {
            let all = || (0..service.replicas).collect();
            let mut slots: BTreeSet<u32> = stopped.slots.clone().unwrap_or_else(all);
            slots.remove(&slot);
            if !slots.is_empty() {
                lives.stopped.insert(service.name.clone(), Stopped { slots: Some(slots), ..stopped });
            }
        }
        let down = self
            .newest(target, &service.name)
            .into_iter()
            .filter(|one| matches!(one.phase, Phase::Exited(_)) || self.is_suspended_idle(one));
        lives.started.extend(down.map(|one| one.runtime_id.clone()));
        *lives != before
    }

    /// Lets go of orders to stay down that are over, for good: another template is to run of what is declared.
    pub(super) fn end_stops(&mut self, effective: &DesiredDeployment) {
        let deployment = &effective.name;
        if !self.covers(deployment) {
            return;
        }
        let Some(memory) = self.memory.get_mut(deployment) else { return };
        let over = memory.orders.lives.end_stops(effective);
        if over.is_empty() {
            return;
        }
        let orders = memory.orders.clone();
        self.keep(deployment, None, Note::Orders(orders), None);
        for service in over.iter().filter(|service| effective.services.contains_key(*service)) {
            let message = format!("service/{deployment}/{service} is to run another template: its `keel stop` is over");
            tracing::info!("{message}");
            self.record_event(Some(deployment), "StopEnded", message);
        }
    }

    /// Takes note of whose workspaces are to be kept as it is declared, which holds beyond the declaration.
    pub(super) fn note_workspaces(&mut self, deployment: &str, declared: &DesiredDeployment) {
        let none = LifeOrders::default();
        let known = self.memory.get(deployment).map_or(&none, |memory| &memory.orders.lives);
        let kept = known.kept_workspaces_by(declared);
        if kept == known.kept_workspaces {
            return;
        }
        let orders = &mut self.memory.entry(deployment.to_owned()).or_default().orders;
        orders.lives.kept_workspaces = kept;
        let orders = orders.clone();
        self.keep(deployment, None, Note::Orders(orders), None);
    }

    /// Has what is to stay down of a service stay so though the tag of its image moved. Gives the note of it, where there is
    /// one to be kept.
    pub(super) fn keep_stopped(
        &mut self,
        deployment: &str,
        before: &DesiredService,
        now: &DesiredService,
    ) -> Option<Note> {
        let orders = &mut self.memory.get_mut(deployment)?.orders;
        orders.lives.follow_tag(before, now).then(|| Note::Orders(orders.clone()))
    }

    /// Takes `keel hold`: until then, or no longer where that is absent.
    pub(super) fn order_hold(
        &self,
        target: &Target,
        seconds: Option<u64>,
        memory: &mut Memory,
    ) -> Result<Vec<String>, EngineError> {
        if seconds.is_some_and(|seconds| seconds == 0 || seconds > HOLD_MOST.as_secs()) {
            let most = HumanDuration(HOLD_MOST);
            return Err(EngineError::Invalid(format!("a hold is for at least 1s and at most {most}")));
        }
        let now = self.now().0;
        let until = seconds
            .and_then(|seconds| i64::try_from(seconds).ok())
            .map(|seconds| now + chrono::TimeDelta::seconds(seconds));
        let services = self.lived(target, memory)?;
        if until.is_some() {
            // What is to be kept alive is not left asleep.
            let is_idle = |one: &&Instance| match &one.phase {
                Phase::Exited(exit) => exit.ended_by == EndedBy::Request(StopCause::Idle),
                _ => self.is_suspended_idle(one),
            };
            for service in &services {
                let newest = self.newest(target, &service.name);
                let idle = newest.iter().filter(|one| is_idle(one)).map(|one| one.runtime_id.clone());
                memory.orders.lives.started.extend(idle);
            }
        }
        let (mut results, mut down) = (Vec::new(), Vec::new());
        let later = match memory.orders.suspended && until.is_some() {
            true => format!(", and what is idle is woken {}", once_resumed(&target.deployment)),
            false => String::new(),
        };
        for service in services {
            let slots = target.slot.map_or(0..service.replicas, |slot| slot..slot + 1);
            for slot in slots {
                if until.is_some()
                    && let Some(why) = self.stays_down(target, &service, slot, memory)
                {
                    down.push(why);
                    continue;
                }
                let of_service = memory.orders.lives.holds.entry(service.name.clone()).or_default();
                let name = format!("instance/{}/{}/{slot}", target.deployment, service.name);
                results.push(hold_slot(of_service, slot, until, &name) + &later);
            }
        }
        if results.is_empty() && !down.is_empty() {
            return Err(EngineError::Conflict(down.join("; ")));
        }
        results.extend(down.into_iter().map(|why| format!("not held: {why}")));
        let holds = &mut memory.orders.lives.holds;
        for of_service in holds.values_mut() {
            of_service.retain(|_, until| *until > now);
        }
        holds.retain(|_, of_service| !of_service.is_empty());
        Ok(results)
    }

    /// Why nothing of a slot is to run, so that there is nothing to hold, and what would change that.
    fn stays_down(&self, target: &Target, service: &DesiredService, slot: u32, memory: &Memory) -> Option<String> {
        let lives = &memory.orders.lives;
        let name = format!("{}/{}/{slot}", target.deployment, service.name);
        let is_terminated = |one: &&Instance| has_expired(one) && !lives.started.contains(&one.runtime_id);
        let how = if lives.stopped.get(&service.name).is_some_and(|stopped| stopped.covers(service, slot)) {
            "stopped"
        } else {
            let of_slot =
                Target { deployment: target.deployment.clone(), service: Some(service.name.clone()), slot: Some(slot) };
            self.newest(&of_slot, &service.name).into_iter().find(is_terminated)?;
            "terminated"
        };
        Some(format!("{name} is {how}; `keel start {name}` starts it"))
    }

    /// The services that a target covers, as they are to run; a slot has to be one of them.
    fn lived(&self, target: &Target, memory: &Memory) -> Result<Vec<DesiredService>, EngineError> {
        let whole = Target { slot: None, ..target.clone() };
        let names: BTreeSet<String> =
            self.targets(&whole, "started, stopped or held")?.into_iter().map(|service| service.name.clone()).collect();
        let declared = self.declared_one(&target.deployment)?;
        let scaled = self.scaled(declared, &self.observed(&target.deployment));
        let effective = crate::plan::revisions::effective(scaled.as_ref().unwrap_or(declared), memory);
        let services: Vec<DesiredService> =
            effective.services.into_values().filter(|service| names.contains(&service.name)).collect();
        match target.slot.and_then(|slot| services.iter().find(|service| slot >= service.replicas)) {
            Some(service) => {
                let text = format!("{target} not found: {} has {}", service.name, replicas(service.replicas));
                Err(EngineError::NotFound(text))
            }
            None => Ok(services),
        }
    }

    /// What stands for every slot of a service that the target covers.
    fn newest(&self, target: &Target, service: &str) -> Vec<&Instance> {
        let effective = self.declared_one(&target.deployment).ok().map(|declared| self.effective(declared));
        let wanted = effective.as_ref().and_then(|effective| effective.services.get(service));
        let of_service = |one: &&Instance| one.id.service == service && target.covers(&one.id) && !one.id.is_helper();
        let mut slots: BTreeMap<u32, Vec<&Instance>> = BTreeMap::new();
        for instance in self.cache.of(&target.deployment).filter(of_service) {
            slots.entry(instance.id.slot).or_default().push(instance);
        }
        slots.into_values().filter_map(|of_slot| stands_for_slot(of_slot.into_iter(), wanted)).collect()
    }

    /// Whether the instance is frozen because it was idle.
    pub(super) fn is_suspended_idle(&self, instance: &Instance) -> bool {
        matches!(instance.phase, Phase::Paused { .. })
            && self.ledger.suspended(&instance.id.deployment).contains_key(&instance.runtime_id)
    }

    /// Has the lowest slot of a target brought back that is down or suspended for idleness, since somebody wants to use it.
    /// Success also where it is on its way already; an error where nobody is there to bring it, or the deployment is suspended.
    pub(super) fn wake(&mut self, target: &Target) -> Result<(), EngineError> {
        let none = || EngineError::NotFound(format!("{target} has no running instance; see keel get instances"));
        let observed = self.flights.overlay(&target.deployment, self.cache.of(&target.deployment).cloned().collect());
        let covered = |one: &&Instance| target.covers(&one.id) && !one.id.is_helper();
        let is_worked_on = |one: &Instance| self.flights.works_on(one.runtime, &one.id);
        // One that runs was brought by another user meanwhile; what somebody else froze, the controller lets run again.
        let is_coming = |one: &&Instance| match one.phase {
            Phase::Pending | Phase::Created | Phase::Running { .. } => true,
            Phase::Paused { .. } => !self.is_suspended_idle(one),
            Phase::Stopping | Phase::Exited(_) | Phase::Unknown { .. } => false,
        };
        let is_coming = |one: &&Instance| is_coming(one) || is_worked_on(one);
        if let Some(coming) = observed.iter().filter(covered).find(is_coming) {
            if !is_worked_on(coming) {
                self.may_wake(coming)?;
            }
            // What a controller that was killed created waits for the next one.
            return match self.covers(&target.deployment) || is_worked_on(coming) {
                true => Ok(()),
                false => Err(EngineError::Conflict(format!(
                    "{} is not started yet, and only a running controller starts it: `keel run`",
                    coming.id.name()
                ))),
            };
        }
        let services: BTreeSet<&str> = observed.iter().filter(covered).map(|one| one.id.service.as_str()).collect();
        let newest = services.into_iter().flat_map(|service| self.newest(target, service));
        let rests = |one: &&Instance| match &one.phase {
            Phase::Exited(Exit { ended_by: EndedBy::Request(StopCause::Idle), .. }) => true,
            _ => self.is_suspended_idle(one),
        };
        let orders = self.memory.get(&target.deployment).map(|memory| &memory.orders.lives);
        let is_stopped = |one: &&Instance| orders.is_some_and(|orders| orders.is_stopped_by_name(one));
        let (stopped, others): (Vec<&Instance>, Vec<&Instance>) = newest.partition(is_stopped);
        let is_terminated = |one: &&&Instance| has_expired(one);
        let Some(instance) = others.iter().copied().find(rests).cloned() else {
            let is_down = |one: &&Instance, how: &str| {
                EngineError::Conflict(format!("{0} is {how}; `keel start {0}` starts it", one.id.name()))
            };
            return Err(match (stopped.first(), others.iter().find(is_terminated)) {
                (Some(one), _) => is_down(one, "stopped"),
                (None, Some(one)) => is_down(one, "terminated"),
                (None, None) => none(),
            });
        };
        self.may_wake(&instance)?;
        if !self.covers(&target.deployment) {
            let why = format!("{} is idle, and no controller runs that would wake it: `keel run`", instance.id.name());
            return Err(EngineError::Conflict(why));
        }
        let orders = &mut self.memory.entry(target.deployment.clone()).or_default().orders;
        if orders.lives.started.insert(instance.runtime_id.clone()) {
            let orders = orders.clone();
            self.keep(&target.deployment, None, Note::Orders(orders), None);
            let message = format!("{} is woken: somebody uses it", instance.id.name());
            tracing::info!("{message}");
            self.record_event(Some(&target.deployment), "Woken", message);
        }
        self.queue.add(&target.deployment, Instant::now());
        Ok(())
    }

    /// Whether anything brings back what is down or frozen.
    ///
    /// # Errors
    /// The deployment is suspended.
    fn may_wake(&self, instance: &Instance) -> Result<(), EngineError> {
        let (name, deployment) = (instance.id.name(), &instance.id.deployment);
        match self.is_suspended(deployment) {
            true => Err(EngineError::Conflict(format!(
                "{name} does not run, and is not started while the deployment is suspended; `keel resume {deployment}` ends that"
            ))),
            false => Ok(()),
        }
    }

    /// Why an instance was stopped or is gone, for whoever was inside; nothing where it runs on.
    pub(super) fn why_stopped(&self, one: &InstanceRef) -> Option<String> {
        let name = one.id.name();
        if let Some(cause) = self.flights.why_stopped(one.runtime, &one.id) {
            return Some(format!("{name} was stopped: {cause}"));
        }
        match self.cache.get(one.runtime, &one.runtime_id).map(|one| &one.phase) {
            Some(Phase::Exited(exit)) => Some(format!("{name} {}", how_it_ended(exit))),
            Some(_) => None,
            None => Some(format!("{name} is gone")),
        }
    }

    /// Notes that somebody says that these instances, which a target covers, are in use; lets run on what is suspended for
    /// idleness.
    pub(super) fn touch(&mut self, target: &Target, touched: &[Instance]) -> Result<Vec<String>, EngineError> {
        let now = self.now().0;
        if touched.is_empty() {
            let text = format!("{target} has no running instance; `keel start {target}` starts what is idle");
            return Err(EngineError::NotFound(text));
        }
        if !self.covers(&target.deployment) {
            let why = "no controller runs that would take note of it".to_owned();
            return Err(EngineError::Conflict(why));
        }
        for instance in touched {
            self.ledger.note(Signal::Touch, &Used::Instance(instance.as_ref()), now);
        }
        self.keep_activity(&target.deployment);
        for instance in touched.iter().filter(|one| matches!(one.phase, Phase::Paused { .. })) {
            let one = Target {
                deployment: instance.id.deployment.clone(),
                service: Some(instance.id.service.clone()),
                slot: Some(instance.id.slot),
            };
            // One that somebody else froze is let run on anyway.
            let _ = self.wake(&one);
        }
        let waits = |one: &Instance| matches!(one.phase, Phase::Paused { .. }) && self.is_suspended(&target.deployment);
        let told = touched.iter().map(|one| match waits(one) {
            true => {
                let (name, deployment) = (one.id.name(), &target.deployment);
                format!("{name} touched; it is not woken while the deployment is suspended, `keel resume {deployment}` ends that")
            }
            false => format!("{} touched", one.id.name()),
        });
        Ok(told.collect())
    }
}

/// How an instance ended, in words that follow its name.
fn how_it_ended(exit: &Exit) -> String {
    match exit.ended_by {
        EndedBy::Request(StopCause::Idle) => "was stopped: idle for too long".to_owned(),
        EndedBy::Request(StopCause::Expired) => "was stopped: reached its maximum age".to_owned(),
        EndedBy::Request(StopCause::Asked) => "was stopped with keel stop".to_owned(),
        EndedBy::Request(StopCause::Unhealthy) => "was stopped: its health checks failed".to_owned(),
        EndedBy::Request(StopCause::Others) => "was stopped by somebody else".to_owned(),
        EndedBy::Request(StopCause::Retired) => "was stopped: it is replaced or removed".to_owned(),
        EndedBy::Itself => format!("has ended: {exit}"),
    }
}

/// Whether it reached its age and was ended for that.
fn has_expired(instance: &Instance) -> bool {
    matches!(&instance.phase, Phase::Exited(exit) if exit.ended_by == EndedBy::Request(StopCause::Expired))
}

/// When something is done of a deployment that is suspended.
fn once_resumed(deployment: &str) -> String {
    format!("once `keel resume {deployment}` is given: the deployment is suspended")
}

/// Has slots stay down.
fn stop_life(target: &Target, service: &DesiredService, memory: &mut Memory) -> bool {
    let lives = &mut memory.orders.lives;
    let before = lives.stopped.get(&service.name).filter(|stopped| service.keeps(&stopped.of)).cloned();
    let stopped = match (target.slot, &before) {
        (Some(_), Some(Stopped { slots: None, .. })) => return false,
        (None, _) => Stopped { of: service.revision.clone(), slots: None },
        (Some(slot), before) => {
            let others = before.iter().filter_map(|before| before.slots.clone()).flatten();
            Stopped { of: service.revision.clone(), slots: Some(others.chain([slot]).collect()) }
        }
    };
    let changed = before.as_ref() != Some(&stopped);
    lives.stopped.insert(service.name.clone(), stopped);
    changed
}
