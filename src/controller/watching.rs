//! Activity in the core: the ledger is kept up to date at every turn of a deployment, and by samples in between.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use futures::{StreamExt, stream};
use tokio::time::Instant;

use super::core::State;
use super::ledger::{Answer, Ending, Learned, Sampled, Used};
use super::memory::Note;
use super::message::{Message, UseNews};
use crate::plan::{Action, Cause, Lane, Lives};
use crate::runtime::{ErrorKind, Runtime, Stats};
use crate::state::{DesiredDeployment, Instance, InstanceRef, Phase, Target};

/// Longest wait for what one instance uses; one that does not answer counts as not known.
const SAMPLE_DEADLINE: Duration = Duration::from_secs(5);

/// Instances of one deployment that are asked at a time: as many calls as the docker adapter makes side by side.
const SIDE_BY_SIDE: usize = 16;

impl State {
    /// Watches what runs of a deployment where this controller acts on it, and tells planning what it knows of the lives of
    /// instances.
    pub(super) fn track_use(&mut self, deployment: &str, desired: Option<&DesiredDeployment>) {
        let times @ (now, at) = self.now();
        let instances: Vec<Instance> = self.cache.of(deployment).cloned().collect();
        if self.covers(deployment) {
            let flights = &self.flights;
            let is_worked_on = |one: &Instance| flights.works_on(one.runtime, &one.id);
            self.ledger.track(deployment, desired, &instances, is_worked_on, times);
            self.settle_starts(deployment, &instances);
            self.announce_endings(deployment, desired, &instances, (now, at));
            self.keep_activity(deployment);
        }
        let orders = self.memory.get(deployment).map(|memory| memory.orders.lives.clone()).unwrap_or_default();
        let lives = Lives { orders, suspended: self.ledger.suspended(deployment), ..Lives::default() };
        let kept_under_way = self.flights.kept(deployment);
        let history = &mut self.record_of(deployment).history;
        (history.lives, history.kept_under_way) = (lives, kept_under_way);
    }

    /// Forgets that instances are to be brought back which run again, or are gone.
    fn settle_starts(&mut self, deployment: &str, instances: &[Instance]) {
        if self.runtimes.keys().any(|kind| self.unreachable.contains_key(kind)) || !self.synced() {
            return;
        }
        let Some(memory) = self.memory.get_mut(deployment) else { return };
        let waits = |one: &&Instance| matches!(one.phase, Phase::Exited(_) | Phase::Paused { .. });
        let waiting: HashSet<&str> = instances.iter().filter(waits).map(|one| one.runtime_id.as_str()).collect();
        let before = memory.orders.lives.started.len();
        memory.orders.lives.started.retain(|id| waiting.contains(id.as_str()));
        if memory.orders.lives.started.len() < before {
            let orders = memory.orders.clone();
            self.keep(deployment, None, Note::Orders(orders), None);
        }
    }

    /// Tells of lives whose end is near, each once.
    fn announce_endings(
        &mut self,
        deployment: &str,
        desired: Option<&DesiredDeployment>,
        instances: &[Instance],
        (now, at): (DateTime<Utc>, Instant),
    ) {
        let orders = self.memory.get(deployment).map(|memory| memory.orders.lives.clone()).unwrap_or_default();
        let (endings, next) = self.ledger.endings(deployment, desired, (instances, &orders), now);
        for Ending { id, at } in endings {
            let at = at.to_rfc3339_opts(SecondsFormat::Secs, true);
            let message = format!("{} reaches lifecycle.max_lifetime at {at}", id.name());
            tracing::info!("{message}");
            self.record_event(Some(deployment), "LifetimeEnding", message);
        }
        if let Some(next) = next {
            self.queue.add(deployment, at + (next - now).to_std().unwrap_or_default());
        }
    }

    /// Has what was seen of a deployment written down, where that is due.
    pub(super) fn keep_activity(&mut self, deployment: &str) {
        let times = self.now();
        if let Some(keeper) = &self.keeper
            && let Some(record) = self.ledger.take_record(deployment, times)
        {
            keeper.keep_activity(deployment, Some(record));
        }
    }

    /// Forgets what was seen of a deployment of which nothing is left.
    pub(super) fn forget_use(&mut self, deployment: &str) {
        if self.ledger.forget(deployment)
            && let Some(keeper) = &self.keeper
        {
            keeper.keep_activity(deployment, None);
        }
    }

    /// Notes what a lane that begins means for the lives of its instance. That one is being suspended is noted before, so that
    /// it is not let run on as if somebody else had frozen it.
    pub(super) fn note_launch(&mut self, lane: &Lane) {
        let Some(step) = lane.steps.first() else { return };
        if let (Action::Suspend { instance }, Cause::Idle { since }) = (&step.action, &step.cause) {
            self.ledger.suspending(instance, *since);
            self.keep_activity(&instance.id.deployment);
        }
    }

    /// Asks what the instances use whose idleness is limited. Each tells on its own, so that one that hangs keeps no other
    /// from being seen.
    pub(super) fn sample_due(&mut self) {
        for (deployment, keys) in self.ledger.take_due(Instant::now()) {
            let keys: HashSet<_> = keys.into_iter().collect();
            let is_due = |one: &&Instance| keys.contains(&(one.runtime, one.runtime_id.clone()));
            let due: Vec<Instance> = self.cache.of(&deployment).filter(is_due).cloned().collect();
            let mut asked = Vec::new();
            for instance in due {
                let (run, runs) = match instance.phase {
                    Phase::Running { since, .. } => (since, true),
                    Phase::Paused { since } => (since, false),
                    _ => continue,
                };
                let runtime = self.runtimes.get(&instance.runtime).map(|attached| attached.runtime.clone());
                let tells = |stats: &dyn Stats| runs || stats.tells_connections();
                match runtime.filter(|runtime| runtime.stats().is_some_and(tells)) {
                    Some(runtime) => asked.push(sample(runtime, instance.as_ref(), run)),
                    // What is frozen does nothing but be waited for, and a runtime that can't tell is not asked; the other signals decide.
                    None => {
                        let sample = Sampled { instance: instance.as_ref(), run, answer: Answer::Nothing };
                        self.sampled(&deployment, sample);
                    }
                }
            }
            let messages = self.messages.clone();
            self.lanes.spawn(async move {
                let mut samples = stream::iter(asked).buffer_unordered(SIDE_BY_SIDE);
                while let Some(sample) = samples.next().await {
                    // A core that has ended decides nothing.
                    let _ = messages.send(Message::Sampled(deployment.clone(), sample)).await;
                }
            });
        }
    }

    /// Takes a sample. What it shows may have been waited for, so that its limit on idleness is looked at when it strikes.
    pub(super) fn sampled(&mut self, deployment: &str, sample: Sampled) {
        let times @ (now, at) = self.now();
        match self.ledger.learn(deployment, sample, times) {
            Some(Learned::Strikes(strikes)) => {
                self.queue.add(deployment, at + (strikes - now).to_std().unwrap_or_default());
            }
            Some(Learned::Wakes(id)) => {
                let target = Target { deployment: id.deployment, service: Some(id.service), slot: Some(id.slot) };
                if let Err(error) = self.wake(&target) {
                    tracing::debug!(%error, "whoever connected to {target} waits on");
                }
            }
            None => {}
        }
        self.keep_activity(deployment);
    }

    /// Takes news of a use.
    pub(super) fn used(&mut self, news: UseNews) {
        let now = self.now().0;
        let used = match news {
            UseNews::Begin { id, signal, used, reply } => {
                let is_ending = match &used {
                    Used::Instance(one) => self.flights.works_on(one.runtime, &one.id),
                    Used::Covered(_) => false,
                };
                if !is_ending {
                    self.ledger.begin(id, signal, used.clone());
                }
                if reply.send(!is_ending).is_err() {
                    // Nobody would end it.
                    self.ledger.end(id, now);
                }
                Some(used)
            }
            UseNews::End(id) => self.ledger.end(id, now),
            UseNews::Once { signal, used } => {
                self.ledger.note(signal, &used, now);
                Some(used)
            }
        };
        if let Some(used) = used {
            self.keep_activity(used.deployment());
        }
    }
}

/// What one run used.
async fn sample(runtime: Arc<dyn Runtime>, instance: InstanceRef, run: DateTime<Utc>) -> Sampled {
    let answer = match runtime.stats() {
        None => Answer::Nothing,
        Some(stats) => match tokio::time::timeout(SAMPLE_DEADLINE, stats.stats(&instance)).await {
            Ok(Ok(usage)) => Answer::Used(usage),
            Ok(Err(error)) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Rejected) => Answer::Nothing,
            Ok(Err(_)) | Err(_) => Answer::Unknown,
        },
    };
    Sampled { instance, run, answer }
}
