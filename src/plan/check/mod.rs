//! A checker of plans: says what a plan does that no plan may do.
//!
//! It shares nothing with the planner but the lifecycle verdict and the numbers, and reads the rules off the input
//! afresh, so that a mistake in the one is not repeated in the other. Tests run it over every plan that they see.

mod job;
mod order;
mod pool;
mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};

use super::{Action, Input, Lane, Plan};
use crate::spec::{RType, RuntimeKind};
use crate::state::{DesiredDeployment, Fate, Instance, InstanceId, Phase};

/// Something that a plan does and no plan may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// It acts on an instance with a step under way.
    InFlight(InstanceId),
    /// Two of its lanes act on one instance.
    TwoLanes(InstanceId),
    /// A lane is none of the known sequences of steps, or goes over several instances; the text is the lane.
    OddLane(String),
    /// It acts on something that was not observed as it says.
    NotObserved(InstanceId),
    /// It calls a runtime that does not answer.
    Unreachable(RuntimeKind),
    /// It makes an instance whose identity exists.
    Exists(InstanceId),
    /// It makes an instance that nothing asks for, or another one than is asked for.
    NotAsked(InstanceId),
    /// It makes an instance for a slot that has one, or two for one slot.
    Occupied(InstanceId),
    /// It makes an instance while one of another template lives, though the service is to be recreated.
    NotDrained(InstanceId),
    /// It launches or starts an instance while what its service depends on is missing.
    Hasty(InstanceId),
    /// It ends an instance of a service on which another one that runs depends.
    DependedOn(InstanceId),
    /// It stops or removes an instance that is as it should be.
    Wanted(InstanceId),
    /// It removes the only sign that a slot is meant to stay down.
    Forgotten(InstanceId),
    /// It touches something that is to be kept.
    Kept(InstanceId),
    /// It removes what instances share while some are left, or while the deployment is declared.
    SharedInUse(RuntimeKind),
    /// More could live than desired replicas plus max_surge.
    AboveCeiling {
        /// The service.
        service: String,
        /// What could live.
        live: u32,
        /// The most that may.
        ceiling: u32,
    },
    /// Less could be left than desired replicas minus max_unavailable, through what the plan takes away.
    BelowFloor {
        /// The service.
        service: String,
        /// What is counted: available, ready or running instances.
        counted: &'static str,
        /// What could be left.
        left: u32,
        /// The least that has to be.
        floor: u32,
    },
    /// It says to look again at a time that has passed.
    LooksBack,
}

impl Display for Violation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::InFlight(id) => write!(f, "{id} is acted on while a step for it is under way"),
            Self::TwoLanes(id) => write!(f, "{id} has two lanes"),
            Self::OddLane(lane) => write!(f, "a lane is no known sequence for one instance: {lane}"),
            Self::NotObserved(id) => write!(f, "{id} is acted on and was not observed like that"),
            Self::Unreachable(runtime) => write!(f, "{runtime} is called and does not answer"),
            Self::Exists(id) => write!(f, "{id} is made and exists"),
            Self::NotAsked(id) => write!(f, "{id} is made and nothing asks for it"),
            Self::Occupied(id) => write!(f, "{id} is made and its slot has an instance"),
            Self::NotDrained(id) => write!(f, "{id} is made while old instances live"),
            Self::Hasty(id) => write!(f, "{id} is started before what it depends on"),
            Self::DependedOn(id) => write!(f, "{id} is ended before what depends on it"),
            Self::Wanted(id) => write!(f, "{id} is as it should be and is taken away"),
            Self::Forgotten(id) => write!(f, "{id} is the only sign that its slot stays down and is removed"),
            Self::Kept(id) => write!(f, "{id} is to be kept and is touched"),
            Self::SharedInUse(runtime) => write!(f, "what instances share on {runtime} is removed too early"),
            Self::AboveCeiling { service, live, ceiling } => {
                write!(f, "{service}: {live} could live, at most {ceiling} may")
            }
            Self::BelowFloor { service, counted, left, floor } => {
                write!(f, "{service}: {left} {counted} could be left, at least {floor} must be")
            }
            Self::LooksBack => f.write_str("the next look lies in the past"),
        }
    }
}

/// Everything that the plan does and must not do, given what it was made from; empty for a good plan.
pub fn check(input: &Input<'_>, plan: &Plan) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for lane in &plan.lanes {
        check_lane(input, lane, &mut found);
        if let Some(id) = lane.steps.first().and_then(|step| step.action.instance())
            && !seen.insert((id, lane.steps[0].action.runtime()))
        {
            found.push(Violation::TwoLanes(id.clone()));
        }
    }
    if plan.next_look.is_some_and(|at| at <= input.now) {
        found.push(Violation::LooksBack);
    }
    order::check_ends(input, plan, &mut found);
    match input.desired {
        Ok(desired) => check_declared(input, desired, plan, &mut found),
        Err(fate) => check_undeclared(input, fate, plan, &mut found),
    }
    found
}

fn check_lane(input: &Input<'_>, lane: &Lane, found: &mut Vec<Violation>) {
    use Action::{Create, EnsureImage, Remove, Resume, Start, StartCreated, Stop, Suspend, Teardown};
    let actions: Vec<&Action> = lane.steps.iter().map(|step| &step.action).collect();
    let is_init = |action: &&&Action| matches!(action, Action::Init { .. });
    let others: Vec<&Action> = actions.iter().filter(|action| !is_init(action)).copied().collect();
    let known = matches!(
        others[..],
        [EnsureImage { .. }, Create { .. }, StartCreated { .. }]
            | [Start { .. } | Resume { .. } | Suspend { .. } | Stop { .. } | Remove { .. } | Teardown { .. }]
            | [Stop { .. }, Remove { .. }]
    );
    let first = actions.first();
    let one = actions.iter().all(|action| {
        first.is_some_and(|first| first.instance() == action.instance() && first.runtime() == action.runtime())
    });
    if !known || !one {
        let text: Vec<String> = lane.steps.iter().map(ToString::to_string).collect();
        found.push(Violation::OddLane(text.join("; ")));
    }
    for action in actions {
        if input.unreachable.contains_key(&action.runtime()) {
            found.push(Violation::Unreachable(action.runtime()));
        }
        if let Start { instance }
        | Resume { instance }
        | Suspend { instance }
        | Stop { instance, .. }
        | Remove { instance, .. } = action
        {
            match input.observed.iter().find(|observed| observed.as_ref() == *instance) {
                None => found.push(Violation::NotObserved(instance.id.clone())),
                Some(observed) if matches!(observed.phase, Phase::Pending | Phase::Stopping) => {
                    found.push(Violation::InFlight(instance.id.clone()));
                }
                Some(observed)
                    if matches!(action, Resume { .. }) && !matches!(observed.phase, Phase::Paused { .. }) =>
                {
                    found.push(Violation::NotObserved(instance.id.clone()));
                }
                Some(observed)
                    if matches!(action, Suspend { .. }) && !matches!(observed.phase, Phase::Running { .. }) =>
                {
                    found.push(Violation::NotObserved(instance.id.clone()));
                }
                Some(observed) if observed.id.deployment != input.deployment => {
                    found.push(Violation::NotObserved(instance.id.clone()));
                }
                Some(_) => {}
            }
        }
        if let Create { id, .. } = action
            && (id.deployment != input.deployment || input.observed.iter().any(|observed| observed.id == *id))
        {
            found.push(Violation::Exists(id.clone()));
        }
    }
}

fn check_declared(input: &Input<'_>, desired: &DesiredDeployment, plan: &Plan, found: &mut Vec<Violation>) {
    let mut observed: BTreeMap<&str, Vec<&Instance>> = BTreeMap::new();
    for instance in input.observed.iter().filter(|instance| instance.id.deployment == input.deployment) {
        observed.entry(&instance.id.service).or_default().push(instance);
    }
    let mut lanes: BTreeMap<&str, Vec<&Lane>> = BTreeMap::new();
    for lane in &plan.lanes {
        match lane.steps.first().map(|step| &step.action) {
            Some(Action::Teardown { runtime, .. }) => found.push(Violation::SharedInUse(*runtime)),
            Some(action) => {
                let service = action.instance().map_or("", |id| &id.service);
                lanes.entry(service).or_default().push(lane);
            }
            None => {}
        }
    }
    order::check_starts(input, desired, plan, found);
    for (name, lanes) in &lanes {
        match desired.services.get(*name) {
            Some(service) => {
                let observed = observed.get(name).map_or(&[][..], Vec::as_slice);
                if service.spec.pool.is_some() {
                    pool::check_pool(input, service, observed, lanes, found);
                    continue;
                }
                if service.spec.rtype() != RType::Service {
                    job::check_job(input, service, observed, lanes, found);
                    continue;
                }
                service::check_service(input, service, observed, lanes, &plan.waits, found);
            }
            None => found.extend(lanes.iter().filter_map(|lane| created(lane)).cloned().map(Violation::NotAsked)),
        }
    }
}

fn check_undeclared(input: &Input<'_>, fate: Fate, plan: &Plan, found: &mut Vec<Violation>) {
    found.extend(plan.lanes.iter().filter_map(created).cloned().map(Violation::NotAsked));
    for action in plan.steps().map(|step| &step.action) {
        match (action, action.instance()) {
            (Action::Teardown { runtime, .. }, _) => {
                if fate == Fate::Kept || input.observed.iter().any(|instance| instance.runtime == *runtime) {
                    found.push(Violation::SharedInUse(*runtime));
                }
            }
            (_, Some(id)) => {
                let young = |instance: &&Instance| {
                    let first_seen = input.history.orphans.get(&instance.runtime_id);
                    let settled =
                        first_seen.is_some_and(|at| super::time::after(*at, super::ORPHAN_SETTLE) <= input.now);
                    !settled || super::time::after(instance.created_at, super::ORPHAN_MIN_AGE) > input.now
                };
                let of_id = input.observed.iter().filter(|instance| instance.id == *id);
                if fate == Fate::Kept || (fate == Fate::Orphaned && of_id.clone().any(|instance| young(&instance))) {
                    found.push(Violation::Kept(id.clone()));
                }
            }
            (_, None) => {}
        }
    }
}

/// Whether a lane suspends an instance.
fn suspends(lane: &Lane, instance: &Instance) -> bool {
    lane.steps
        .iter()
        .any(|step| matches!(step.action, Action::Suspend { .. }) && step.action.instance() == Some(&instance.id))
}

/// The instance that a lane makes.
fn created(lane: &Lane) -> Option<&InstanceId> {
    lane.steps.iter().find_map(|step| match &step.action {
        Action::Create { id, .. } => Some(id),
        _ => None,
    })
}
