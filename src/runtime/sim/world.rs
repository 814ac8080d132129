//! The simulated machine as tests and rehearsals hold it: it outlives every controller that talks to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use super::machine::Machine;
use super::record::{Change, Method, What};
use super::{Faults, SimRuntime};
use crate::clock::Clock;
use crate::runtime::{ErrorKind, Result, RuntimeError, RuntimeEvent};
use crate::state::{Exit, HealthState, Instance, Owner, Phase};

/// Events that one slow reader may lag behind before it is told to list again: several for each of the few hundred
/// instances of one machine.
const EVENT_BUFFER: usize = 1_024;

/// A simulated machine. Runtimes made from it by [`World::runtime`] see the same instances, so that dropping a
/// controller and making another one is a controller crash and not a machine's.
///
/// It needs a tokio runtime around it; where tokio's time is paused, all of it is virtual. Two runs of the same
/// calls with the same seed are the same.
pub struct World {
    machine: Mutex<Machine>,
    clock: Arc<dyn Clock>,
    events: broadcast::Sender<(Owner, RuntimeEvent)>,
    /// Ticks with every change of an instance or its output.
    ticks: watch::Sender<u64>,
    /// Counts the calls that may change something, when they are made.
    acts: watch::Sender<u64>,
}

/// What is to become of one call, drawn before it is made.
pub(super) struct Draw {
    pub before: Duration,
    pub after: Duration,
    pub error: Option<RuntimeError>,
    pub answer_lost: bool,
    pub outlives_caller: bool,
}

impl World {
    /// An empty machine. The seed sets every fault's course.
    pub fn new(clock: Arc<dyn Clock>, seed: u64, faults: Faults) -> Arc<Self> {
        Arc::new(Self {
            machine: Mutex::new(Machine::new(seed, faults)),
            clock,
            events: broadcast::Sender::new(EVENT_BUFFER),
            ticks: watch::Sender::new(0),
            acts: watch::Sender::new(0),
        })
    }

    /// A runtime on this machine for one owner, as a controller makes one at its start.
    pub fn runtime(self: &Arc<Self>, owner: Owner) -> SimRuntime {
        SimRuntime::new(Arc::clone(self), owner)
    }

    /// Changes what goes wrong from now on. Crashes that are already on their way still happen.
    pub fn set_faults(&self, faults: Faults) {
        let mut machine = self.machine();
        if faults.outage == 0.0 {
            machine.unreachable_until = None;
        }
        machine.faults = faults;
    }

    /// Every instance of every owner.
    pub fn instances(&self) -> Vec<(Owner, Instance)> {
        self.machine().entries.values().map(|entry| (entry.owner.clone(), entry.instance.clone())).collect()
    }

    /// Deployments with a network, by owner.
    pub fn networks(&self) -> BTreeSet<(Owner, String)> {
        self.machine().networks.clone()
    }

    /// Named volumes, by owner and deployment.
    pub fn volumes(&self) -> BTreeSet<(Owner, String, String)> {
        self.machine().volumes.clone()
    }

    /// Makes something that no controller made and that has this name.
    pub fn add_foreign(&self, runtime_name: &str) {
        self.machine().foreign.insert(runtime_name.to_owned());
    }

    /// Takes away something that no controller made; false where there is none of that name.
    pub fn remove_foreign(&self, runtime_name: &str) -> bool {
        self.machine().foreign.remove(runtime_name)
    }

    /// Names of what no controller made.
    pub fn foreign(&self) -> BTreeSet<String> {
        self.machine().foreign.clone()
    }

    /// Ends a running instance with this code, 128 + N for signal N, as somebody behind the controller's back would;
    /// false where it does not run.
    pub fn kill(&self, runtime_id: &str, code: i32) -> bool {
        let run = self.machine().entries.get(runtime_id).map(|entry| entry.run);
        run.is_some_and(|run| self.end(runtime_id, run, Exit::from_code(code, None, self.now())))
    }

    /// Has a tag stand for another image from now on: the one that runs the program of `content`, a reference as well. Gives
    /// its digest.
    pub fn push_image(&self, tag: &str, content: &str) -> String {
        self.machine().registry.push(tag, content)
    }

    /// The digest that a reference stands for.
    pub(super) fn digest(&self, reference: &str) -> String {
        self.machine().registry.digest(reference)
    }

    /// Notes which images are needed.
    pub(super) fn need_images(&self, names: BTreeSet<String>) {
        self.machine().needed = names;
    }

    /// Names of the images that were said to be needed last.
    pub fn needed_images(&self) -> BTreeSet<String> {
        self.machine().needed.clone()
    }

    /// The image of each instance, as it was named when it was created.
    pub fn images(&self) -> BTreeMap<String, String> {
        self.machine().entries.iter().map(|(id, entry)| (id.clone(), entry.image.clone())).collect()
    }

    /// Removes an instance behind the controller's back; false where it does not exist.
    pub fn vanish(&self, runtime_id: &str) -> bool {
        self.remove(runtime_id, false)
    }

    /// Freezes a running instance, as `docker pause` does; false where it does not run.
    pub fn freeze(&self, runtime_id: &str) -> bool {
        let now = self.now();
        let mut machine = self.machine();
        let Some(entry) = machine.entries.get_mut(runtime_id) else { return false };
        let Phase::Running { since, .. } = entry.instance.phase else { return false };
        entry.instance.phase = Phase::Paused { since };
        let (instance, owner) = (entry.instance.clone(), entry.owner.clone());
        machine.note(&instance, &owner, What::Frozen, now);
        self.publish(&mut machine, owner, RuntimeEvent::Changed(Box::new(instance)));
        true
    }

    /// Makes a running instance answer to connections like one of this health from now on: one that is unhealthy answers
    /// 503, one that is starting or unknown takes no connections. Nothing tells the controller. False where it does not
    /// run.
    pub fn answer_as(&self, runtime_id: &str, health: HealthState) -> bool {
        let mut machine = self.machine();
        let Some(entry) = machine.entries.get_mut(runtime_id).filter(|entry| entry.is_running()) else { return false };
        entry.answers = Some(health);
        true
    }

    /// Makes a running instance report this health, as an image's own check does; false where it does not run.
    pub fn judge(&self, runtime_id: &str, health: HealthState) -> bool {
        let mut machine = self.machine();
        let Some(run) = machine.entries.get(runtime_id).map(|entry| entry.run) else { return false };
        let Some(changed) = machine.judge(runtime_id, run, health, self.now()) else { return false };
        self.changed(&mut machine, changed);
        true
    }

    /// Notes activity of an instance now; false where it does not run.
    pub fn touch(&self, runtime_id: &str) -> bool {
        let now = self.now();
        let mut machine = self.machine();
        let Some(entry) = machine.entries.get_mut(runtime_id).filter(|entry| entry.is_running()) else { return false };
        entry.instance.last_activity = Some(now);
        let (instance, owner) = (entry.instance.clone(), entry.owner.clone());
        self.publish(&mut machine, owner, RuntimeEvent::Changed(Box::new(instance)));
        true
    }

    /// Makes the runtime unreachable for this long. Calls fail, events are lost, and a resync follows.
    pub fn go_unreachable(self: &Arc<Self>, length: Duration) {
        self.begin_outage(&mut self.machine(), length);
    }

    /// How often each method was called so far, by every owner.
    pub fn calls(&self) -> BTreeMap<Method, u64> {
        self.machine().record.calls.clone()
    }

    /// Counts the calls that may change something, from image pulls to teardowns, at the moment when each is made.
    pub fn acts(&self) -> watch::Receiver<u64> {
        self.acts.subscribe()
    }

    /// What happened so far, oldest first; at most [`MAX_CHANGES`](super::MAX_CHANGES).
    pub fn changes(&self) -> Vec<Change> {
        self.machine().record.changes.iter().cloned().collect()
    }

    /// Changes that were forgotten because there were too many.
    pub fn forgotten_changes(&self) -> u64 {
        self.machine().record.forgotten
    }

    /// Calls that named another owner's instance. They found nothing; a controller makes none.
    pub fn trespasses(&self) -> u64 {
        self.machine().record.trespasses
    }

    pub(super) fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    pub(super) fn machine(&self) -> MutexGuard<'_, Machine> {
        // Nothing in here panics half-way through a change, so a poisoned machine is a whole one.
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<(Owner, RuntimeEvent)> {
        self.events.subscribe()
    }

    pub(super) fn ticks(&self) -> watch::Receiver<u64> {
        self.ticks.subscribe()
    }

    pub(super) fn tick(&self) {
        self.ticks.send_modify(|tick| *tick += 1);
    }

    /// Ends a run with this outcome; false where it was over.
    pub(super) fn end(&self, runtime_id: &str, run: u64, exit: Exit) -> bool {
        let mut machine = self.machine();
        let Some(ended) = machine.end(runtime_id, run, exit) else { return false };
        self.changed(&mut machine, ended);
        true
    }

    pub(super) fn remove(&self, runtime_id: &str, asked: bool) -> bool {
        let mut machine = self.machine();
        let Some(owner) = machine.entries.get(runtime_id).map(|entry| entry.owner.clone()) else { return false };
        let Some(gone) = machine.remove(runtime_id, asked, self.now()) else { return false };
        self.publish(&mut machine, owner, RuntimeEvent::Gone(gone));
        true
    }

    /// Reports an instance as it is now.
    pub(super) fn changed(&self, machine: &mut Machine, instance: Instance) {
        let Some(owner) = machine.entries.get(&instance.runtime_id).map(|entry| entry.owner.clone()) else { return };
        self.publish(machine, owner, RuntimeEvent::Changed(Box::new(instance)));
    }

    fn publish(&self, machine: &mut Machine, owner: Owner, event: RuntimeEvent) {
        self.tick();
        if machine.unreachable_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        let Machine { rng, faults, .. } = machine;
        if rng.chance(faults.event_lost) {
            return;
        }
        let copies = if rng.chance(faults.event_duplicated) { 2 } else { 1 };
        for _ in 0..copies {
            if !rng.chance(faults.event_delayed) {
                // An error only means that nobody listens.
                let _ = self.events.send((owner.clone(), event.clone()));
                continue;
            }
            let (delay, sender) = (rng.duration(faults.event_delay), self.events.clone());
            let item = (owner.clone(), event.clone());
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                let _ = sender.send(item);
            });
        }
    }

    /// Counts a call and draws what becomes of it.
    pub(super) fn draw(self: &Arc<Self>, method: Method) -> Draw {
        let mut machine = self.machine();
        machine.record.called(method);
        if method.acts() {
            self.acts.send_modify(|acts| *acts += 1);
        }
        let faults = machine.faults.clone();
        let rng = &mut machine.rng;
        let mut before = rng.duration(faults.latency / 2);
        let after = rng.duration(faults.latency / 2);
        if rng.chance(faults.slow) {
            before += rng.duration(faults.slow_for);
        }
        let error = if rng.chance(faults.refused) {
            Some(RuntimeError::new(ErrorKind::Rejected, "simulated refusal"))
        } else {
            rng.chance(faults.fails).then(|| RuntimeError::new(ErrorKind::Failed, "simulated failure"))
        };
        let draw = Draw {
            before,
            after,
            error,
            answer_lost: rng.chance(faults.answer_lost),
            outlives_caller: rng.chance(faults.outlives_caller),
        };
        if rng.chance(faults.outage) {
            let length = rng.duration(faults.outage_for);
            self.begin_outage(&mut machine, length);
        }
        draw
    }

    /// The error of a call while the runtime is unreachable.
    pub(super) fn reachable(&self) -> Result<()> {
        match self.machine().unreachable_until {
            Some(until) if Instant::now() < until => {
                Err(RuntimeError::new(ErrorKind::Unavailable, "the simulated runtime does not answer; it will be back"))
            }
            _ => Ok(()),
        }
    }

    fn begin_outage(self: &Arc<Self>, machine: &mut Machine, length: Duration) {
        let until = Instant::now() + length;
        if machine.unreachable_until.is_some_and(|present| present >= until) {
            return;
        }
        machine.unreachable_until = Some(until);
        let world = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep_until(until).await;
            if let Some(world) = world.upgrade() {
                world.end_outage();
            }
        });
    }

    /// Tells every owner to list again, unless a longer outage took over.
    fn end_outage(&self) {
        if self.reachable().is_err() {
            return;
        }
        let owners: BTreeSet<Owner> = self.machine().entries.values().map(|entry| entry.owner.clone()).collect();
        for owner in owners {
            let reason = "the simulated runtime was unreachable".to_owned();
            let _ = self.events.send((owner, RuntimeEvent::Resync { reason }));
        }
    }
}
