//! Lanes under way: which instances are being worked on, so that nobody plans for them twice.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use tokio_util::sync::CancellationToken;

use crate::plan::{Action, Cause, Lane};
use crate::spec::RuntimeKind;
use crate::state::{Instance, InstanceId, Phase};

/// Number of one lane that is under way.
pub type FlightId = u64;

/// What a lane works on.
#[derive(Debug, Clone, PartialEq)]
enum Subject {
    /// Makes or starts an instance; shown as pending even while no runtime knows it.
    Launch(Box<Instance>),
    /// Stops or resumes an instance that stays in its slot.
    Keep(RuntimeKind, InstanceId),
    /// Removes an instance, which frees its slot.
    Retire(RuntimeKind, InstanceId),
    /// Removes what a deployment's instances share.
    Teardown(RuntimeKind, String),
}

/// Every lane that is under way.
#[derive(Debug, Default)]
pub struct Flights {
    next: FlightId,
    deployment_of: HashMap<FlightId, String>,
    under_way: HashMap<String, BTreeMap<FlightId, Subject>>,
    progress: HashMap<FlightId, String>,
    giving_up: HashMap<FlightId, CancellationToken>,
    /// Why instances are stopped.
    stopping: HashMap<FlightId, Cause>,
}

impl Flights {
    /// Notes that a lane of this deployment begins, and how it is told that it is given up; `None` when it has no step or its
    /// subject is being worked on already.
    pub fn begin(
        &mut self,
        deployment: &str,
        lane: &Lane,
        now: DateTime<Utc>,
    ) -> Option<(FlightId, CancellationToken)> {
        let subject = subject(lane, now)?;
        if self.of(deployment).any(|other| same(other, &subject)) {
            return None;
        }
        self.next += 1;
        self.deployment_of.insert(self.next, deployment.to_owned());
        self.under_way.entry(deployment.to_owned()).or_default().insert(self.next, subject);
        let given_up = CancellationToken::new();
        self.giving_up.insert(self.next, given_up.clone());
        if let Some(stop) = lane.steps.iter().find(|step| matches!(step.action, Action::Stop { .. })) {
            self.stopping.insert(self.next, stop.cause.clone());
        }
        Some((self.next, given_up))
    }

    /// Gives up what is being made of a deployment and nobody wants any more, as far as nothing of it was made yet.
    pub fn give_up(&self, deployment: &str, is_wanted: impl Fn(&Instance) -> bool) {
        for (flight, subject) in self.under_way.get(deployment).into_iter().flatten() {
            if let (Subject::Launch(made), Some(given_up)) = (subject, self.giving_up.get(flight))
                && !is_wanted(made)
            {
                given_up.cancel();
            }
        }
    }

    /// Notes that a lane has ended; returns its deployment.
    pub fn end(&mut self, flight: FlightId) -> Option<String> {
        self.progress.remove(&flight);
        self.giving_up.remove(&flight);
        self.stopping.remove(&flight);
        let deployment = self.deployment_of.remove(&flight)?;
        if let Some(flights) = self.under_way.get_mut(&deployment) {
            flights.remove(&flight);
            if flights.is_empty() {
                self.under_way.remove(&deployment);
            }
        }
        Some(deployment)
    }

    /// Notes how far a lane is; returns its deployment while it is under way.
    pub fn progressed(&mut self, flight: FlightId, words: String) -> Option<String> {
        let deployment = self.deployment_of.get(&flight)?.clone();
        self.progress.insert(flight, words);
        Some(deployment)
    }

    /// How far the making of instances is, in the runtime's words.
    pub fn progress_of(&self, deployment: &str) -> BTreeMap<InstanceId, String> {
        let flights = self.under_way.get(deployment).into_iter().flatten();
        let told = flights.filter_map(|(flight, subject)| match subject {
            Subject::Launch(made) => Some((made.id.clone(), self.progress.get(flight)?.clone())),
            Subject::Keep(..) | Subject::Retire(..) | Subject::Teardown(..) => None,
        });
        told.collect()
    }

    /// Instances of a deployment that are being stopped or let run on and stay in their slots.
    pub fn kept(&self, deployment: &str) -> BTreeSet<InstanceId> {
        let id = |subject: &Subject| match subject {
            Subject::Keep(_, id) => Some(id.clone()),
            Subject::Launch(_) | Subject::Retire(..) | Subject::Teardown(..) => None,
        };
        self.of(deployment).filter_map(id).collect()
    }

    fn of(&self, deployment: &str) -> impl Iterator<Item = &Subject> {
        self.under_way.get(deployment).into_iter().flat_map(BTreeMap::values)
    }

    /// Whether a lane works on this instance.
    pub fn works_on(&self, runtime: RuntimeKind, id: &InstanceId) -> bool {
        self.of(&id.deployment).any(|subject| identity(subject) == Some((runtime, id)))
    }

    /// Why the instance is being stopped, where it is.
    pub fn why_stopped(&self, runtime: RuntimeKind, id: &InstanceId) -> Option<&Cause> {
        let mut flights = self.under_way.get(&id.deployment).into_iter().flatten();
        let (flight, _) = flights.find(|(_, subject)| identity(subject) == Some((runtime, id)))?;
        self.stopping.get(flight)
    }

    /// Whether any lane of the deployment is under way.
    pub fn any(&self, deployment: &str) -> bool {
        self.under_way.contains_key(deployment)
    }

    /// The instances of a deployment as planning has to see them: those being made are pending, those being
    /// ended are stopping.
    pub fn overlay(&self, deployment: &str, mut instances: Vec<Instance>) -> Vec<Instance> {
        if !self.any(deployment) {
            return instances;
        }
        let known: HashMap<(RuntimeKind, InstanceId), usize> =
            instances.iter().enumerate().map(|(at, one)| ((one.runtime, one.id.clone()), at)).collect();
        for subject in self.of(deployment) {
            match subject {
                Subject::Launch(made) => match known.get(&(made.runtime, made.id.clone())) {
                    Some(at) => instances[*at].phase = Phase::Pending,
                    None => instances.push((**made).clone()),
                },
                Subject::Retire(runtime, id) => {
                    if let Some(at) = known.get(&(*runtime, id.clone())) {
                        instances[*at].phase = Phase::Stopping;
                    }
                }
                // It keeps its slot, so nothing may be started in its place.
                Subject::Keep(..) | Subject::Teardown(..) => {}
            }
        }
        instances
    }

    /// The same as people see them: what ended by itself has ended, also while it is being removed.
    pub fn visible(&self, deployment: &str, instances: Vec<Instance>) -> Vec<Instance> {
        let by_itself = |instance: &&Instance| matches!(&instance.phase, Phase::Exited(exit) if exit.is_unasked());
        let key = |instance: &Instance| (instance.runtime, instance.id.clone());
        let ended: HashMap<_, _> =
            instances.iter().filter(by_itself).map(|one| (key(one), one.phase.clone())).collect();
        let mut visible = self.overlay(deployment, instances);
        for instance in visible.iter_mut().filter(|instance| instance.phase == Phase::Stopping) {
            if let Some(phase) = ended.get(&key(instance)) {
                instance.phase = phase.clone();
            }
        }
        visible
    }

    /// How many instances of these deployments are being removed.
    pub fn retired(&self, is_counted: impl Fn(&str) -> bool) -> usize {
        let counted = self.under_way.iter().filter(|(deployment, _)| is_counted(deployment));
        let subjects = counted.flat_map(|(_, lanes)| lanes.values());
        subjects.filter(|subject| matches!(subject, Subject::Retire(..))).count()
    }

    /// Runtimes on which what the deployment shares is being removed.
    pub fn tearing_down(&self, deployment: &str) -> impl Iterator<Item = RuntimeKind> {
        self.of(deployment).filter_map(|subject| match subject {
            Subject::Teardown(runtime, _) => Some(*runtime),
            _ => None,
        })
    }
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
        Subject::Keep(runtime, id) | Subject::Retire(runtime, id) => Some((*runtime, id)),
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
    // Steps before a start are for what follows them.
    let of_subject = |action: &&Action| !matches!(action, Action::Init { .. });
    match lane.steps.iter().map(|step| &step.action).find(of_subject)? {
        Action::Start { instance } => {
            let made = pending(instance.runtime, &instance.id, 0, 0, now);
            Some(Subject::Launch(Box::new(made)))
        }
        Action::Stop { instance, .. } | Action::Remove { instance, .. } => {
            let removes = lane.steps.iter().any(|step| matches!(step.action, Action::Remove { .. }));
            let subject = if removes { Subject::Retire } else { Subject::Keep };
            Some(subject(instance.runtime, instance.id.clone()))
        }
        Action::Resume { instance } | Action::Suspend { instance } => {
            Some(Subject::Keep(instance.runtime, instance.id.clone()))
        }
        Action::Teardown { runtime, deployment, .. } => Some(Subject::Teardown(*runtime, deployment.clone())),
        Action::EnsureImage { .. } | Action::Init { .. } | Action::Create { .. } | Action::StartCreated { .. } => None,
    }
}

fn pending(runtime: RuntimeKind, id: &InstanceId, restarts: u32, streak: u32, now: DateTime<Utc>) -> Instance {
    let pending = Instance::new(id.clone(), runtime, Phase::Pending, now);
    // No runtime knows it yet.
    Instance { runtime_id: String::new(), restarts, streak, ..pending }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Step;
    use crate::spec::Signal;
    use crate::state::{EndedBy, Exit, SlotFate, StopCause, StopRequest};

    /// The phases of a dead instance that is being removed, as planning and as people see them.
    fn phases(ended_by: EndedBy) -> [Phase; 2] {
        let now = DateTime::UNIX_EPOCH;
        let revision = "v1-0123456789abcdef".parse().unwrap();
        let id =
            InstanceId { deployment: "demo".into(), service: "web".into(), slot: 0, revision, attempt: 0, run: None };
        let mut instance = pending(RuntimeKind::Sim, &id, 0, 0, now);
        instance.phase = Phase::Exited(Exit { ended_by, ..Exit::from_code(1, None, now) });
        let remove = Action::Remove { instance: instance.as_ref(), slot: SlotFate::Stays };
        let mut flights = Flights::default();
        let lane = Lane { steps: vec![Step { action: remove, cause: Cause::Superseded }] };
        flights.begin("demo", &lane, now).unwrap();
        assert_eq!(flights.why_stopped(RuntimeKind::Sim, &id), None, "it has ended already");
        let planned = flights.overlay("demo", vec![instance.clone()]).remove(0).phase;
        let visible = flights.visible("demo", vec![instance]).remove(0).phase;
        [planned, visible]
    }

    #[test]
    fn why_an_instance_is_stopped_is_known_until_it_is() {
        let now = DateTime::UNIX_EPOCH;
        let revision = "v1-0123456789abcdef".parse().unwrap();
        let id =
            InstanceId { deployment: "demo".into(), service: "web".into(), slot: 0, revision, attempt: 0, run: None };
        let instance = pending(RuntimeKind::Sim, &id, 0, 0, now);
        let stop = StopRequest { signal: Signal::TERM, grace: std::time::Duration::ZERO, cause: StopCause::Expired };
        let cause = Cause::Expired { since: now };
        let action = Action::Stop { instance: instance.as_ref(), stop };
        let lane = Lane { steps: vec![Step { action, cause: cause.clone() }] };
        let mut flights = Flights::default();
        let (flight, _) = flights.begin("demo", &lane, now).unwrap();
        assert_eq!(flights.why_stopped(RuntimeKind::Sim, &id), Some(&cause));
        flights.end(flight);
        assert_eq!(flights.why_stopped(RuntimeKind::Sim, &id), None);
    }

    #[test]
    fn what_ended_by_itself_is_not_shown_as_stopping_while_it_is_removed() {
        let [planned, visible] = phases(EndedBy::Itself);
        assert_eq!((planned, visible.name()), (Phase::Stopping, "exited"));
        let [planned, visible] = phases(EndedBy::Request(StopCause::Retired));
        assert_eq!((planned, visible), (Phase::Stopping, Phase::Stopping));
    }
}
