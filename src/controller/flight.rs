//! Lanes under way: which instances are being worked on, so that nobody plans for them twice.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use crate::plan::{Action, Lane};
use crate::spec::RuntimeKind;
use crate::state::{Instance, InstanceId, Phase};

/// Number of one lane that is under way.
pub type FlightId = u64;

/// What a lane works on.
#[derive(Debug, Clone, PartialEq)]
enum Subject {
    /// Makes or starts an instance; shown as pending even while no runtime knows it.
    Launch(Box<Instance>),
    /// Stops or removes an instance.
    Retire(RuntimeKind, InstanceId),
    /// Removes what a deployment's instances share.
    Teardown(RuntimeKind, String),
}

/// Every lane that is under way.
#[derive(Debug, Default)]
pub struct Flights {
    next: FlightId,
    under_way: HashMap<FlightId, (String, Subject)>,
}

impl Flights {
    /// Notes that a lane of this deployment begins; `None` when it has no step or its subject is being worked on already.
    pub fn begin(&mut self, deployment: &str, lane: &Lane, now: DateTime<Utc>) -> Option<FlightId> {
        let subject = subject(lane, now)?;
        if self.under_way.values().any(|(name, other)| name == deployment && same(other, &subject)) {
            return None;
        }
        self.next += 1;
        self.under_way.insert(self.next, (deployment.to_owned(), subject));
        Some(self.next)
    }

    /// Notes that a lane has ended; returns its deployment.
    pub fn end(&mut self, flight: FlightId) -> Option<String> {
        self.under_way.remove(&flight).map(|(deployment, _)| deployment)
    }

    /// Whether any lane of the deployment is under way.
    pub fn any(&self, deployment: &str) -> bool {
        self.under_way.values().any(|(name, _)| name == deployment)
    }

    /// The instances of a deployment as planning has to see them: those being made are pending, those being
    /// ended are stopping.
    pub fn overlay(&self, deployment: &str, mut instances: Vec<Instance>) -> Vec<Instance> {
        let mine = self.under_way.values().filter(|(name, _)| name == deployment);
        for (_, subject) in mine {
            match subject {
                Subject::Launch(made) => match position(&instances, made.runtime, &made.id) {
                    Some(at) => instances[at].phase = Phase::Pending,
                    None => instances.push((**made).clone()),
                },
                Subject::Retire(runtime, id) => {
                    if let Some(at) = position(&instances, *runtime, id) {
                        instances[at].phase = Phase::Stopping;
                    }
                }
                Subject::Teardown(..) => {}
            }
        }
        instances
    }

    /// Runtimes on which what the deployment shares is being removed.
    pub fn tearing_down<'a>(&'a self, deployment: &'a str) -> impl Iterator<Item = RuntimeKind> + 'a {
        self.under_way.values().filter_map(move |(_, subject)| match subject {
            Subject::Teardown(runtime, name) if name == deployment => Some(*runtime),
            _ => None,
        })
    }
}

fn position(instances: &[Instance], runtime: RuntimeKind, id: &InstanceId) -> Option<usize> {
    instances.iter().position(|instance| instance.runtime == runtime && instance.id == *id)
}

fn same(one: &Subject, other: &Subject) -> bool {
    match (one, other) {
        (Subject::Teardown(a, x), Subject::Teardown(b, y)) => a == b && x == y,
        (one, other) => match (identity(one), identity(other)) {
            (Some(one), Some(other)) => one == other,
            _ => false,
        },
    }
}

fn identity(subject: &Subject) -> Option<(RuntimeKind, &InstanceId)> {
    match subject {
        Subject::Launch(made) => Some((made.runtime, &made.id)),
        Subject::Retire(runtime, id) => Some((*runtime, id)),
        Subject::Teardown(..) => None,
    }
}

fn subject(lane: &Lane, now: DateTime<Utc>) -> Option<Subject> {
    let create = lane.steps.iter().find_map(|step| match &step.action {
        Action::Create { runtime, id, restarts, streak, .. } => Some((*runtime, id, *restarts, *streak)),
        _ => None,
    });
    if let Some((runtime, id, restarts, streak)) = create {
        return Some(Subject::Launch(Box::new(pending(runtime, id, restarts, streak, now))));
    }
    match &lane.steps.first()?.action {
        Action::Start { instance } => {
            let made = pending(instance.runtime, &instance.id, 0, 0, now);
            Some(Subject::Launch(Box::new(made)))
        }
        Action::Stop { instance, .. } | Action::Remove { instance } => {
            Some(Subject::Retire(instance.runtime, instance.id.clone()))
        }
        Action::Teardown { runtime, deployment, .. } => Some(Subject::Teardown(*runtime, deployment.clone())),
        Action::EnsureImage { .. } | Action::Create { .. } | Action::StartCreated { .. } => None,
    }
}

fn pending(runtime: RuntimeKind, id: &InstanceId, restarts: u32, streak: u32, now: DateTime<Utc>) -> Instance {
    Instance {
        id: id.clone(),
        runtime,
        runtime_id: String::new(),
        phase: Phase::Pending,
        created_at: now,
        restarts,
        streak,
        stop: crate::state::StopPolicy::default(),
        pid: None,
        ports: Vec::new(),
        last_activity: None,
        conditions: Vec::new(),
    }
}
