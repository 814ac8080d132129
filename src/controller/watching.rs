//! Activity in the core: the ledger is kept up to date at every turn of a deployment, and by samples in between.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use futures::{StreamExt, stream};
use tokio::time::Instant;

use super::core::State;
use super::ledger::{Ending, Sampled, Used};
use super::memory::Note;
use super::message::{Message, UseNews};
use crate::plan::{Action, Cause, Lane, Lives};
use crate::runtime::{ErrorKind, Runtime};
use crate::state::{DesiredDeployment, Instance, InstanceRef, Phase};

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
            self.announce_endings(deployment, desired, (now, at));
            self.keep_activity(deployment);
        }
        let orders = self.memory.get(deployment).map(|memory| memory.orders.lives.clone()).unwrap_or_default();
        let lives = Lives { orders, suspended: self.ledger.suspended(deployment) };
        self.record_of(deployment).history.lives = lives;
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
        (now, at): (DateTime<Utc>, Instant),
    ) {
        let (endings, next) = self.ledger.endings(deployment, desired, now);
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

    /// Asks what the instances use whose idleness is limited.
    pub(super) fn sample_due(&mut self) {
        for (deployment, keys) in self.ledger.take_due(Instant::now()) {
            let asked = |one: &Instance| {
                let Phase::Running { since, .. } = one.phase else { return None };
                keys.contains(&(one.runtime, one.runtime_id.clone())).then_some(())?;
                let attached = self.runtimes.get(&one.runtime)?;
                // A runtime that can't tell is not asked; the other signals decide.
                attached.runtime.stats()?;
                Some((attached.runtime.clone(), one.as_ref(), since))
            };
            let asked: Vec<_> = self.cache.of(&deployment).filter_map(asked).collect();
            let messages = self.messages.clone();
            self.lanes.spawn(async move {
                let samples: Vec<_> = asked.into_iter().map(|(runtime, one, run)| sample(runtime, one, run)).collect();
                let samples: Vec<_> = stream::iter(samples).buffer_unordered(SIDE_BY_SIDE).collect().await;
                let samples = samples.into_iter().flatten().collect();
                // A core that has ended decides nothing.
                let _ = messages.send(Message::Sampled(deployment, samples)).await;
            });
        }
    }

    /// Takes samples.
    pub(super) fn sampled(&mut self, deployment: &str, samples: Vec<Sampled>) {
        let times = self.now();
        self.ledger.learn(deployment, samples, times);
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

/// What one run used; none where it is over.
async fn sample(runtime: Arc<dyn Runtime>, instance: InstanceRef, run: DateTime<Utc>) -> Option<Sampled> {
    let stats = runtime.stats()?;
    let usage = match tokio::time::timeout(SAMPLE_DEADLINE, stats.stats(&instance)).await {
        Ok(Ok(usage)) => Some(usage),
        Ok(Err(error)) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Rejected) => return None,
        Ok(Err(_)) | Err(_) => None,
    };
    Some(Sampled { instance, run, usage })
}
