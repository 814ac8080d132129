//! A world of plain data in which every step succeeds at once, and what is waited for comes true.

use std::collections::{BTreeSet, HashMap, HashSet};

use chrono::{DateTime, Utc};

use super::{Action, Input, Lane, Plan, Retired, Snapshot, Wait, awaited, dependencies, remember, sightings};
use crate::spec::{RuntimeKind, ServiceSpec};
use crate::state::{EndedBy, Exit, HealthState, Instance, InstanceId, Phase, StopPolicy, StopRequest};

/// What names an instance among all that exist.
type Key = (InstanceId, RuntimeKind);

/// The world.
pub(super) struct Model {
    snapshot: Snapshot,
}

impl Model {
    pub(super) const fn new(snapshot: Snapshot) -> Self {
        Self { snapshot }
    }

    pub(super) fn input(&self) -> Input<'_> {
        self.snapshot.input()
    }

    pub(super) const fn now(&self) -> DateTime<Utc> {
        self.snapshot.now
    }

    /// Remembers what is there without a declaration, and what has become of jobs, as whoever plans does.
    pub(super) fn sight(&mut self) {
        let now = self.snapshot.now;
        let sighted = sightings(&self.snapshot.input());
        let orphans = &mut self.snapshot.history.orphans;
        let before = std::mem::take(orphans);
        orphans.extend(sighted.into_iter().map(|key| {
            let first = before.get(&key).copied().unwrap_or(now);
            (key, first)
        }));
        for (service, record) in remember(&self.snapshot.input()) {
            let jobs = &mut self.snapshot.history.jobs;
            match record {
                Some(record) => drop(jobs.insert(service, record)),
                None => drop(jobs.remove(&service)),
            }
        }
    }

    /// Remembers what services depend on, and since when they wait for it, as whoever plans does.
    pub(super) fn remember(&mut self, plan: &Plan) {
        let awaited = awaited(&self.snapshot.input(), plan);
        let dependencies = dependencies(&self.snapshot.input());
        self.snapshot.history.awaited = awaited;
        self.snapshot.history.dependencies = dependencies;
    }

    /// Carries out every step of these lanes.
    pub(super) fn carry_out(&mut self, lanes: &[Lane]) {
        let known = self.snapshot.observed.iter().enumerate();
        let mut places: HashMap<Key, usize> = known.map(|(place, one)| (key(one), place)).collect();
        let mut gone = HashSet::new();
        for action in lanes.iter().flat_map(|lane| &lane.steps).map(|step| &step.action) {
            if let Some((retired, _)) = Retired::of(action) {
                self.snapshot.history.retiring.remove(&retired);
            }
            let key = action.instance().map(|id| (id.clone(), action.runtime()));
            let place = key.as_ref().and_then(|key| places.get(key)).copied();
            match (action, key, place) {
                (Action::Create { id, runtime, restarts, streak, spec, .. }, Some(key), None) => {
                    places.insert(key, self.snapshot.observed.len());
                    let made = made(id, *runtime, (*restarts, *streak), spec, self.snapshot.now);
                    self.snapshot.observed.push(made);
                }
                (Action::StartCreated { .. } | Action::Start { .. }, _, Some(place)) => self.start(place),
                (Action::Resume { .. }, _, Some(place)) => self.resume(place),
                (Action::Suspend { .. }, _, Some(place)) => self.suspend(place),
                (Action::Stop { stop, .. }, _, Some(place)) => self.stop(place, stop),
                (Action::Remove { .. }, Some(key), Some(_)) => drop(gone.insert(key)),
                (Action::Teardown { runtime, .. }, ..) => drop(self.snapshot.shared.remove(runtime)),
                // What a step is for is there already.
                _ => {}
            }
        }
        if !gone.is_empty() {
            self.snapshot.observed.retain(|one| !gone.contains(&key(one)));
        }
    }

    /// Lets the first of what the plan waits for come true: the steps under way, else the readiness of instances, else
    /// the time. Gives the waits that end by that, which are none where time alone leads to something else; `None`
    /// where nothing ends by itself.
    pub(super) fn pass(&mut self, plan: &Plan) -> Option<Vec<Wait>> {
        let of = |ends: &dyn Fn(&Wait) -> bool| -> Vec<Wait> {
            plan.waits.iter().filter(|wait| ends(wait)).cloned().collect()
        };
        let under_way = of(&|wait| matches!(wait, Wait::InFlight { .. }));
        if !under_way.is_empty() {
            self.land();
            return Some(under_way);
        }
        let unready = of(&|wait| matches!(wait, Wait::NotReady { until: None, .. }));
        if !unready.is_empty() {
            self.make_ready(&unready);
            return Some(unready);
        }
        let ending = of(&|wait| matches!(wait, Wait::Completion { .. } | Wait::CronRun { .. }));
        if !ending.is_empty() {
            self.complete(&ending);
            return Some(ending);
        }
        if !plan.waits.iter().any(|wait| wait.until().is_some()) {
            return None;
        }
        let next = plan.next_look.filter(|next| *next > self.snapshot.now)?;
        self.snapshot.now = next;
        Some(of(&|wait| wait.until().is_some_and(|until| until <= next)))
    }

    /// Ends the steps under way: what was being made runs, what was being ended is gone.
    fn land(&mut self) {
        self.snapshot.observed.retain(|one| one.phase != Phase::Stopping);
        for place in 0..self.snapshot.observed.len() {
            if self.snapshot.observed[place].phase == Phase::Pending {
                self.start(place);
            }
        }
    }

    fn make_ready(&mut self, waits: &[Wait]) {
        let named: BTreeSet<&InstanceId> = waits.iter().filter_map(Wait::instance).collect();
        for instance in self.snapshot.observed.iter_mut().filter(|one| named.contains(&one.id)) {
            instance.judge(Some(HealthState::Healthy));
        }
    }

    /// Lets instances of jobs succeed.
    fn complete(&mut self, waits: &[Wait]) {
        let named: BTreeSet<&InstanceId> = waits.iter().filter_map(Wait::instance).collect();
        let now = self.snapshot.now;
        for instance in self.snapshot.observed.iter_mut().filter(|one| named.contains(&one.id)) {
            instance.phase = Phase::Exited(Exit::from_code(0, instance.phase.started_at(), now));
        }
    }

    /// What nothing checks is ready as soon as it runs.
    fn start(&mut self, place: usize) {
        let Snapshot { desired, observed, history, now, .. } = &mut self.snapshot;
        let Some(instance) = observed.get_mut(place) else { return };
        let service = desired.as_ref().ok().and_then(|desired| desired.services.get(&instance.id.service));
        let checked = service.is_some_and(|service| service.spec.health.is_some());
        instance.phase = Phase::Running { since: *now, ready: true };
        instance.judge(checked.then_some(HealthState::Starting { last: None }));
        history.failures.remove(&(instance.id.service.clone(), instance.id.slot));
    }

    fn resume(&mut self, place: usize) {
        let Some(instance) = self.snapshot.observed.get_mut(place) else { return };
        if let Phase::Paused { since } = instance.phase {
            instance.phase = Phase::Running { since, ready: true };
            instance.judge(instance.health.clone());
        }
    }

    fn suspend(&mut self, place: usize) {
        let now = self.snapshot.now;
        let Some(instance) = self.snapshot.observed.get_mut(place) else { return };
        if let Phase::Running { since, .. } = instance.phase {
            instance.phase = Phase::Paused { since };
            self.snapshot.history.lives.suspended.insert(instance.runtime_id.clone(), now);
        }
    }

    fn stop(&mut self, place: usize, stop: &StopRequest) {
        let now = self.snapshot.now;
        let Some(instance) = self.snapshot.observed.get_mut(place) else { return };
        let mut exit = Exit::from_code(128 + stop.signal.number(), instance.phase.started_at(), now);
        exit.ended_by = EndedBy::Request(stop.cause);
        instance.phase = Phase::Exited(exit);
    }
}

fn key(instance: &Instance) -> Key {
    (instance.id.clone(), instance.runtime)
}

/// An instance that was just created.
fn made(
    id: &InstanceId,
    runtime: RuntimeKind,
    (restarts, streak): (u32, u32),
    spec: &ServiceSpec,
    now: DateTime<Utc>,
) -> Instance {
    let made = Instance::new(id.clone(), runtime, Phase::Created, now);
    Instance { restarts, streak, stop: StopPolicy::of(spec), ..made }
}
