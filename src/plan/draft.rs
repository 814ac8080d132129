//! A plan in the making: turns decisions into lanes of exact steps.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::depends::Unmet;
use super::lifecycle::{Verdict, verdict};
use super::retire::hold_back;
use super::unproven::Places;
use super::{Action, Cause, Input, Lane, Plan, Step, Wait};
use crate::spec::{InitStep, RuntimeKind, ServiceSpec};
use crate::state::{
    DesiredService, Instance, InstanceId, Phase, SlotFate, StopCause, StopPolicy, StopRequest, Volumes,
};

/// A plan in the making.
pub(super) struct Draft<'a> {
    pub(super) input: &'a Input<'a>,
    /// What services lack of what they depend on, by service.
    pub(super) unmet: BTreeMap<String, Vec<Unmet>>,
    /// What ran commands before starts and is to go before there is another start in its slot.
    pub(super) leftover: Vec<InstanceId>,
    /// Further replicas of the service at hand that may be restarted by checks that never passed on them.
    pub(super) unproven: Places,
    plan: Plan,
}

/// A new instance that is to be made.
#[derive(Debug, Clone)]
pub(super) struct Launch {
    pub(super) id: InstanceId,
    pub(super) restarts: u32,
    pub(super) streak: u32,
    pub(super) cause: Cause,
}

impl<'a> Draft<'a> {
    pub(super) fn new(input: &'a Input<'a>) -> Self {
        let (unmet, leftover, plan) = Default::default();
        Self { input, unmet, leftover, unproven: Places::NONE, plan }
    }

    /// The finished plan, in an order that depends on nothing but its content.
    pub(super) fn finish(mut self) -> Plan {
        let mut lanes = std::mem::take(&mut self.plan.lanes);
        hold_back(&mut self, &mut lanes);
        let mut plan = Plan { lanes, ..self.plan };
        let key = |lane: &Lane| {
            let action = lane.steps.first().map(|step| &step.action);
            let id = action.and_then(Action::instance).cloned();
            // What belongs to no instance comes last.
            (id.is_none(), id, action.map(Action::runtime))
        };
        plan.lanes.sort_by_cached_key(key);
        plan
    }

    /// Whether the runtime answers.
    pub(super) fn reachable(&self, runtime: RuntimeKind) -> bool {
        !self.input.unreachable.contains_key(&runtime)
    }

    /// Whether a step for the instance may be planned: nothing is under way for it and its runtime answers.
    pub(super) fn may_act(&self, instance: &Instance) -> bool {
        !matches!(instance.phase, Phase::Pending | Phase::Stopping) && self.reachable(instance.runtime)
    }

    pub(super) fn wait(&mut self, wait: Wait) {
        self.plan.waits.push(wait);
    }

    /// Waits for what others may wait for too.
    pub(super) fn wait_once(&mut self, wait: Wait) {
        if !self.plan.waits.contains(&wait) {
            self.wait(wait);
        }
    }

    /// Looking again at that time can change something.
    pub(super) fn look_at(&mut self, at: DateTime<Utc>) {
        self.plan.next_look = Some(self.plan.next_look.map_or(at, |next| next.min(at)));
    }

    /// Makes and starts a new instance.
    pub(super) fn launch(&mut self, service: &DesiredService, launch: Launch) {
        let Launch { id, restarts, streak, cause } = launch;
        let runtime = service.runtime;
        let create = Action::Create {
            runtime,
            id: id.clone(),
            restarts,
            streak,
            spec: service.spec.clone(),
            source: service.source.clone(),
        };
        let image = Action::EnsureImage { runtime, image: service.spec.image.clone(), id: id.clone() };
        let init = init(service, &id);
        let start = Action::StartCreated { runtime, id };
        self.lane([image].into_iter().chain(init).chain([create, start]), &cause);
    }

    /// Starts an instance that was created and never started.
    pub(super) fn start(&mut self, service: &DesiredService, instance: &Instance) {
        let init = init(service, &instance.id);
        self.lane(init.into_iter().chain([Action::Start { instance: instance.as_ref() }]), &Cause::NotStarted);
    }

    /// Lets a frozen instance run on, where it may be acted on.
    pub(super) fn resume(&mut self, instance: &Instance) {
        if self.may_act(instance) {
            let cause = self.input.history.lives.why_started(instance).unwrap_or(Cause::Paused);
            self.lane([Action::Resume { instance: instance.as_ref() }], &cause);
        }
    }

    /// Freezes an instance that keeps its slot. Returns as [`Draft::retire`].
    pub(super) fn suspend(&mut self, instance: &Instance, cause: &Cause) -> bool {
        let may = self.may_act(instance);
        if may {
            self.lane([Action::Suspend { instance: instance.as_ref() }], cause);
        }
        may
    }

    /// What the limits on age and idleness of the instance say now.
    pub(super) fn verdict(&self, instance: &Instance, spec: &ServiceSpec) -> Verdict {
        verdict(instance, spec, self.input.history.lives.orders.held_until(instance), self.input.now)
    }

    /// Ends an instance and removes it. Returns whether it may be acted on; nothing is planned otherwise.
    pub(super) fn retire(&mut self, instance: &Instance, spec: Option<&ServiceSpec>, cause: &Cause) -> bool {
        if !self.may_act(instance) {
            return false;
        }
        let remove = Action::Remove { instance: instance.as_ref(), slot: self.slot_fate(&instance.id, cause) };
        match instance.phase {
            Phase::Created | Phase::Exited(_) => self.lane([remove], cause),
            _ => self.lane([stop(instance, spec, StopCause::Retired), remove], cause),
        }
        true
    }

    /// What becomes of the slot of an instance that is removed. What was declared last of its service tells whether its
    /// workspace is kept, also where that is declared no more: what its instances were made from may be older.
    fn slot_fate(&self, id: &InstanceId, cause: &Cause) -> SlotFate {
        let declared = self.input.desired.ok().and_then(|desired| desired.services.get(&id.service));
        // Members of a pool have no workspaces, and what was a replica before has no successor.
        let was_replica = |now: &DesiredService| now.spec.pool.is_some() && !now.is_made_from(&id.revision);
        let kept = &self.input.history.lives.orders.kept_workspaces;
        match cause.ends_slot() || declared.is_some_and(was_replica) {
            false => SlotFate::Stays,
            true if kept.contains(&id.service) => SlotFate::Ends { workspace: Volumes::Keep },
            true => SlotFate::Ends { workspace: Volumes::Remove },
        }
    }

    /// Ends an instance and keeps it, so that the reason of its end stays visible. Returns as [`Draft::retire`].
    pub(super) fn halt(&mut self, instance: &Instance, spec: &ServiceSpec, why: StopCause, cause: &Cause) -> bool {
        let may = self.may_act(instance);
        if may {
            self.lane([stop(instance, Some(spec), why)], cause);
        }
        may
    }

    /// Removes what the deployment's instances shared on one runtime.
    pub(super) fn tear_down(&mut self, runtime: RuntimeKind, volumes: Volumes, cause: &Cause) {
        let deployment = self.input.deployment.to_owned();
        self.lane([Action::Teardown { runtime, deployment, volumes }], cause);
    }

    fn lane(&mut self, actions: impl IntoIterator<Item = Action>, cause: &Cause) {
        let steps = actions.into_iter().map(|action| Step { action, cause: cause.clone() }).collect();
        self.plan.lanes.push(Lane { steps });
    }
}

/// The steps before the start of this instance of a service.
fn init(service: &DesiredService, id: &InstanceId) -> Vec<Action> {
    let steps = service.spec.init.iter().flat_map(|init| &init.steps);
    let action = |step: &InitStep| Action::Init {
        runtime: service.runtime,
        id: id.clone(),
        step: step.clone(),
        spec: service.spec.clone(),
        source: service.source.clone(),
    };
    steps.map(action).collect()
}

/// The stop that the service asks for, or that the instance was made with where nothing declares it any more.
fn stop(instance: &Instance, spec: Option<&ServiceSpec>, cause: StopCause) -> Action {
    let StopPolicy { signal, grace } = spec.map_or(instance.stop, StopPolicy::of);
    Action::Stop { instance: instance.as_ref(), stop: StopRequest { signal, grace: grace.get(), cause } }
}
