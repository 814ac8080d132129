//! What is checked, and what checks found: the prober is told which runs there are, and its verdicts are laid over what
//! the runtimes report. Nothing of it outlives the controller.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::message::Message;
use crate::clock::Clock;
use crate::probe::{Prober, Subject, Verdict, unchecked};
use crate::runtime::Runtime;
use crate::spec::{Health, RuntimeKind, ServiceSpec};
use crate::state::{
    Condition, DesiredDeployment, DesiredService, HealthState, Instance, InstanceId, InstanceRef, NOBODY_CHECKS, Phase,
};

/// Verdicts on their way to the core; the prober waits beyond that.
const VERDICTS: usize = 64;

/// Why nothing is known of an instance whose own checks are not remembered, where those of its successor fail.
const FAILS_OTHERS: &str = "it is of another template, whose checks are not remembered, and it does not pass those of its \
                            successor, which may differ";

/// The runtime and the runtime's own id.
type Handle = (RuntimeKind, String);

/// How what runs of a deployment is declared.
#[derive(Clone, Copy)]
pub struct Specs<'a> {
    /// What is to run; nothing where it is not declared.
    pub desired: Option<&'a DesiredDeployment>,
    /// The spec of the revision that an instance was made from, as far as it is known of others than those to run.
    pub of_others: &'a dyn Fn(&InstanceId) -> Option<Arc<ServiceSpec>>,
}

impl Specs<'_> {
    fn service(&self, id: &InstanceId) -> Option<&DesiredService> {
        self.desired?.services.get(&id.service)
    }

    /// The spec of an instance's own revision, where that is known.
    fn own(&self, id: &InstanceId) -> Option<Arc<ServiceSpec>> {
        let service = self.service(id)?;
        match service.is_made_from(&id.revision) {
            true => Some(service.spec.clone()),
            false => (self.of_others)(id),
        }
    }

    /// The checks of an instance: its own, or those of its successor where they are not known.
    fn health(&self, id: &InstanceId) -> Option<Health> {
        let successor = || self.service(id).map(|service| service.spec.clone());
        self.own(id).or_else(successor)?.health.clone()
    }
}

/// What is checked, and what is known of it.
pub struct Checks {
    prober: Prober,
    deployments: HashMap<String, Checked>,
    _relay: JoinSet<()>,
}

/// What is checked of one deployment.
#[derive(Default)]
struct Checked {
    /// As the prober was told.
    subjects: Vec<Subject>,
    /// By instance; those that exist.
    runs: HashMap<Handle, Known>,
}

/// What is known of the last run of an instance.
#[derive(Default, Clone)]
struct Known {
    /// When it started.
    since: DateTime<Utc>,
    /// What checks of ours found.
    found: Option<HealthState>,
    /// Why the check that is due is not made, where it waits for long.
    held_up: Option<String>,
    /// Whether it took traffic when nothing checked it, so that it counts as healthy when something begins to.
    served: bool,
    /// Whether it is checked as its successor is, because its own checks are not remembered.
    borrows: bool,
    /// Whether what was found, was found by such checks.
    lent: bool,
    /// Whether it passed a check.
    passed: bool,
    /// Whether it was noted that it is unhealthy.
    noted: bool,
    /// What the last check said when it was.
    last: Option<String>,
}

/// What is worth noting of the health of an instance.
#[derive(Debug, PartialEq, Eq)]
pub struct Note {
    /// What kind of thing, in one CamelCase word.
    pub kind: &'static str,
    /// What, in a sentence.
    pub message: String,
}

impl Checks {
    /// Nothing is checked yet; verdicts come as messages.
    pub fn new(clock: Arc<dyn Clock>, messages: mpsc::Sender<Message>) -> Self {
        let (tell, mut verdicts) = mpsc::channel(VERDICTS);
        let mut relay = JoinSet::new();
        relay.spawn(async move {
            while let Some(verdict) = verdicts.recv().await {
                if messages.send(Message::Checked(verdict)).await.is_err() {
                    return;
                }
            }
        });
        Self { prober: Prober::start(clock, tell), deployments: HashMap::new(), _relay: relay }
    }

    /// Checks what runs of a deployment, each instance as its own revision is declared; nothing where nobody acts on it.
    pub fn track<'a>(
        &mut self,
        deployment: &str,
        instances: &[Instance],
        specs: Specs<'_>,
        acts: bool,
        runtime: impl Fn(RuntimeKind) -> Option<&'a Arc<dyn Runtime>>,
    ) {
        let checked = self.deployments.entry(deployment.to_owned()).or_default();
        let before = std::mem::take(&mut checked.runs);
        let runs = instances.iter().map(|instance| {
            let known = before.get(&handle(instance));
            let since = instance.phase.started_at().or_else(|| known.map(|known| known.since)).unwrap_or_default();
            let same = known.filter(|known| known.since == since);
            let known = same.cloned().unwrap_or_else(|| Known { since, ..Known::default() });
            let unchecked = specs.desired.is_some() && specs.health(&instance.id).is_none();
            let served = known.served || (unchecked && instance.phase.is_ready());
            let known = Known { served, ..known };
            (handle(instance), known)
        });
        checked.runs = runs.collect();
        for instance in instances {
            checked.note_whose_checks(instance, specs);
        }
        let subject = |instance: &Instance| checked.subject(instance, specs, runtime(instance.runtime)?);
        let subjects: Vec<Subject> = if acts { instances.iter().filter_map(subject).collect() } else { Vec::new() };
        let changed = subjects != checked.subjects;
        for subject in &subjects {
            checked.doubt(subject);
        }
        checked.subjects = subjects;
        if changed {
            self.prober.check(deployment, checked.subjects.clone());
        }
    }

    /// Forgets a deployment.
    pub fn forget(&mut self, deployment: &str) {
        if self.deployments.remove(deployment).is_some_and(|checked| !checked.subjects.is_empty()) {
            self.prober.check(deployment, Vec::new());
        }
    }

    /// Takes what a check found; gives the deployment that it concerns, where it does.
    pub fn learn(&mut self, verdict: Verdict) -> Option<String> {
        let Verdict { instance, since, spec, health, held_up } = verdict;
        let checked = self.deployments.get_mut(&instance.id.deployment)?;
        // Other checks are made by now, and it was on its way.
        if checked.subject_of(&instance, since).is_some_and(|subject| subject.spec.health != spec.health) {
            return None;
        }
        let known = checked.runs.get_mut(&(instance.runtime, instance.runtime_id))?;
        if known.since != since {
            return None;
        }
        // What passed the checks of others has passed none of its own.
        if known.lent && !known.borrows && health == HealthState::Assumed {
            return None;
        }
        known.lent = known.borrows;
        known.passed |= health == HealthState::Healthy;
        known.found = Some(health);
        known.held_up = held_up;
        Some(instance.id.deployment)
    }

    /// What the last check said of an instance, where checks say that it is unhealthy.
    pub fn fails(&self, deployment: &str, instance: &InstanceRef) -> Option<&str> {
        let known = self.deployments.get(deployment)?.runs.get(&(instance.runtime, instance.runtime_id.clone()))?;
        match &known.found {
            Some(HealthState::Unhealthy { last, .. }) => Some(last),
            _ => None,
        }
    }

    /// Lays what checks found over what the runtimes say: where a service has checks of its own, only they count.
    pub fn judge(
        &self,
        deployment: &str,
        instances: &mut [Instance],
        specs: Specs<'_>,
        acts: bool,
        now: DateTime<Utc>,
    ) {
        let checked = self.deployments.get(deployment);
        for instance in instances {
            let known = checked.and_then(|checked| checked.runs.get(&handle(instance)));
            if let Phase::Exited(exit) = &mut instance.phase
                && exit.is_unhealthy()
            {
                let same_run = |known: &&Known| exit.started_at == Some(known.since);
                exit.failed_check = known.filter(same_run).and_then(|known| known.last.clone());
            }
            let Some(health) = specs.health(&instance.id) else { continue };
            let found = known.and_then(|known| Some((known.since, known.found.clone()?)));
            match instance.phase {
                Phase::Running { .. } if !acts => {
                    instance.judge(Some(HealthState::Unknown { why: NOBODY_CHECKS.to_owned() }));
                }
                Phase::Running { since, .. } => {
                    let age = (now - since).to_std().unwrap_or(Duration::ZERO);
                    let known = known.filter(|known| known.since == since);
                    let held_up = known.and_then(|known| known.held_up.as_ref());
                    instance.conditions.extend(held_up.map(|why| not_checked(&instance.id, why)));
                    instance.judge(match known {
                        Some(known) => known.health(&health, age),
                        None => Some(unchecked(&health, age)),
                    });
                }
                // Another controller may have checked it; what its runtime says of its stop is all there is then.
                Phase::Stopping if found.is_none() => {}
                Phase::Stopping | Phase::Paused { .. } => instance.judge(found.map(|(_, found)| found)),
                // Its end may be seen before the call that stopped it has come back.
                Phase::Exited(ref exit) if exit.is_unhealthy() => instance.judge(found.map(|(_, found)| found)),
                Phase::Pending | Phase::Created | Phase::Exited(_) | Phase::Unknown { .. } => instance.judge(None),
            }
        }
    }

    /// What of the health of these instances, as judged, is worth noting and was not noted yet.
    pub fn notes(&mut self, deployment: &str, instances: &[Instance]) -> Vec<Note> {
        let Some(checked) = self.deployments.get_mut(deployment) else { return Vec::new() };
        let note = |instance: &Instance| {
            let known = checked.runs.get_mut(&handle(instance))?;
            let running = matches!(instance.phase, Phase::Running { .. });
            let name = instance.id.name();
            match (&instance.health, known.noted) {
                (Some(HealthState::Unhealthy { last, .. }), false) if running => {
                    known.noted = true;
                    known.last = Some(last.clone());
                    Some(Note { kind: "Unhealthy", message: format!("{name} is unhealthy: {last}") })
                }
                (Some(HealthState::Healthy | HealthState::Assumed), true) => {
                    known.noted = false;
                    Some(Note { kind: "Healthy", message: format!("{name} is healthy again") })
                }
                _ => None,
            }
        };
        instances.iter().filter_map(note).collect()
    }
}

impl Known {
    /// What is to be held of a run of this age; nothing where no check speaks of it.
    fn health(&self, health: &Health, age: Duration) -> Option<HealthState> {
        let is_strange = self.borrows && !self.passed;
        match &self.found {
            Some(HealthState::Unhealthy { .. } | HealthState::Starting { .. }) if is_strange && self.served => None,
            Some(HealthState::Unhealthy { last, .. } | HealthState::Starting { last: Some(last) }) if is_strange => {
                Some(HealthState::Unknown { why: format!("{FAILS_OTHERS}: {last}") })
            }
            Some(found) => Some(found.clone()),
            None if self.served => Some(HealthState::Assumed),
            None => Some(unchecked(health, age)),
        }
    }
}

impl Checked {
    /// Notes whether a run is checked by its own checks, before `subjects` is what is checked now.
    fn note_whose_checks(&mut self, instance: &Instance, specs: Specs<'_>) {
        let Phase::Running { since, .. } = instance.phase else { return };
        if specs.service(&instance.id).is_none() {
            return;
        }
        let is_new = self.subject_of(&instance.as_ref(), since).is_none();
        let Some(known) = self.runs.get_mut(&handle(instance)) else { return };
        // Which template it was made from can turn out later, where two revisions are found to be alike.
        known.borrows = specs.own(&instance.id).is_none() && (known.borrows || is_new);
    }

    /// What is known of a run speaks of other checks than are made from now on.
    fn doubt(&mut self, subject: &Subject) {
        let before = self.subject_of(&subject.instance, subject.since);
        if before.is_some_and(|before| before.spec.health != subject.spec.health)
            && let Some(known) = self.runs.get_mut(&(subject.instance.runtime, subject.instance.runtime_id.clone()))
        {
            // What failed others has not failed these; what passed those of its successor has passed none of its own.
            let serves = |found: &HealthState| found.serves() && !known.lent;
            known.found = known.found.take().filter(serves).map(|_| HealthState::Assumed);
        }
    }

    /// How a run was checked until now, where it was.
    fn subject_of(&self, instance: &InstanceRef, since: DateTime<Utc>) -> Option<&Subject> {
        self.subjects.iter().find(|subject| {
            subject.since == since
                && subject.instance.runtime == instance.runtime
                && subject.instance.runtime_id == instance.runtime_id
        })
    }

    /// How an instance is checked, where it is: by the checks of its own revision. Where those are not known any more it is
    /// checked as it was before, and not at all where nothing checked it; where that is not known either, the checks of its
    /// successor may at least find it healthy.
    fn subject(&self, instance: &Instance, specs: Specs<'_>, runtime: &Arc<dyn Runtime>) -> Option<Subject> {
        let Phase::Running { since, .. } = instance.phase else { return None };
        let service = specs.service(&instance.id)?;
        let (served, borrows) =
            self.runs.get(&handle(instance)).map_or((false, false), |known| (known.served, known.borrows));
        let own = specs.own(&instance.id);
        if served && borrows {
            return None;
        }
        let as_before = || {
            let before = self.subject_of(&instance.as_ref(), since).filter(|_| !borrows);
            before.map_or_else(|| service.spec.clone(), |subject| subject.spec.clone())
        };
        let spec = own.unwrap_or_else(as_before);
        spec.health.as_ref()?;
        Some(Subject { instance: instance.as_ref(), since, spec, runtime: runtime.clone(), served })
    }
}

/// The condition of an instance whose check waits for long.
fn not_checked(id: &InstanceId, why: &str) -> Condition {
    Condition::holds("Degraded", "CheckWaits", format!("{id} is not checked for now: {why}"))
}

fn handle(instance: &Instance) -> Handle {
    (instance.runtime, instance.runtime_id.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::VirtualClock;
    use crate::controller::desired;
    use crate::spec::{merge, parse};

    #[tokio::test(start_paused = true)]
    async fn a_check_that_waits_for_long_is_a_condition_until_it_is_made() {
        let web = "{image: {name: host}, health: {check: {type: tcp, port: 1}}}";
        let text = &format!("version: v1\ndeployment: demo\nservices: {{web: {web}}}\n");
        let desired =
            desired(&merge(&[("/specs/demo.yaml".into(), parse(text))]).deployments["demo"], RuntimeKind::Sim);
        let revision = desired.services["web"].revision.clone();
        let id =
            InstanceId { deployment: "demo".into(), service: "web".into(), slot: 0, revision, attempt: 0, run: None };
        let since = DateTime::UNIX_EPOCH;
        let instance = Instance::new(id, RuntimeKind::Sim, Phase::Running { since, ready: true }, since);
        let (tell, _told) = mpsc::channel(1);
        let mut checks = Checks::new(Arc::new(VirtualClock::starting_at(since)), tell);
        let specs = Specs { desired: Some(&desired), of_others: &|_| None };
        checks.track("demo", std::slice::from_ref(&instance), specs, true, |_| None);
        for (held_up, conditions) in [
            (Some("others are checked"), vec!["demo/web/0 is not checked for now: others are checked"]),
            (None, vec![]),
        ] {
            let held_up = held_up.map(str::to_owned);
            let spec = desired.services["web"].spec.clone();
            let verdict = Verdict { instance: instance.as_ref(), since, spec, health: HealthState::Healthy, held_up };
            assert_eq!(checks.learn(verdict).as_deref(), Some("demo"));
            let mut judged = [instance.clone()];
            checks.judge("demo", &mut judged, specs, true, since);
            assert_eq!(judged[0].health, Some(HealthState::Healthy));
            let told: Vec<&str> = judged[0].conditions.iter().map(|one| one.message.as_str()).collect();
            assert_eq!(told, conditions);
        }
    }
}
