//! What happened before and no runtime remembers: failed calls, and first sightings of orphans.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use crate::plan::{Action, Failure, History};
use crate::runtime::RuntimeError;

/// Delay after the first failed stop, removal or teardown; doubles with each further one. The engine has just
/// refused, so less than a second would only add to its load.
const RETIRE_RETRY_FIRST: Duration = Duration::from_secs(1);

/// Longest delay between two tries of a stop, removal or teardown: a minute keeps an engine that is in trouble quiet and
/// still ends soon after it has recovered.
const RETIRE_RETRY_MOST: Duration = Duration::from_secs(60);

/// History of one deployment.
#[derive(Debug, Default)]
pub struct Record {
    /// What planning is told.
    pub history: History,
    retiring: BTreeMap<String, (u32, Instant)>,
}

impl Record {
    /// Notes what is there without a declaration; the first sighting counts.
    pub fn sight(&mut self, sighted: Vec<String>, now: DateTime<Utc>) {
        let orphans = &mut self.history.orphans;
        let before = std::mem::take(orphans);
        orphans.extend(sighted.into_iter().map(|key| {
            let first = before.get(&key).copied().unwrap_or(now);
            (key, first)
        }));
    }

    /// Notes that a call succeeded.
    pub fn succeeded(&mut self, action: &Action) {
        match action {
            Action::StartCreated { id, .. } => {
                self.history.failures.remove(&(id.service.clone(), id.slot));
            }
            Action::Start { instance } | Action::Resume { instance } => {
                self.history.failures.remove(&(instance.id.service.clone(), instance.id.slot));
            }
            Action::Remove { .. } | Action::Stop { .. } | Action::Teardown { .. } => {
                self.retiring.remove(&retire_key(action));
            }
            Action::EnsureImage { .. } | Action::Create { .. } => {}
        }
    }

    /// Notes that a call failed. A runtime that can't be reached is not the instance's failure.
    pub fn failed(&mut self, action: &Action, error: &RuntimeError, now: DateTime<Utc>, at: Instant) {
        match action {
            Action::EnsureImage { id, .. } | Action::Create { id, .. } | Action::StartCreated { id, .. } => {
                self.failed_launch(id, error, now);
            }
            Action::Start { instance } | Action::Resume { instance } => self.failed_launch(&instance.id, error, now),
            Action::Remove { .. } | Action::Stop { .. } | Action::Teardown { .. } => {
                let (count, until) = self.retiring.entry(retire_key(action)).or_insert((0, at));
                *until = at + RETIRE_RETRY_FIRST.saturating_mul(1 << (*count).min(16)).min(RETIRE_RETRY_MOST);
                *count += 1;
            }
        }
    }

    fn failed_launch(&mut self, id: &crate::state::InstanceId, error: &RuntimeError, now: DateTime<Utc>) {
        let slot = (id.service.clone(), id.slot);
        let before = self.history.failures.get(&slot).filter(|failure| failure.revision == id.revision);
        let failure = Failure {
            revision: id.revision.clone(),
            count: before.map_or(1, |failure| failure.count.saturating_add(1)),
            at: now,
            kind: error.kind,
            retryable: error.retryable(),
            message: error.message.clone(),
        };
        self.history.failures.insert(slot, failure);
    }

    /// When a stop, removal or teardown that failed may be tried again, where that is not yet.
    pub fn retire_due(&self, action: &Action, now: Instant) -> Option<Instant> {
        self.retiring.get(&retire_key(action)).map(|(_, until)| *until).filter(|until| *until > now)
    }
}

fn retire_key(action: &Action) -> String {
    match action {
        Action::Teardown { runtime, deployment, .. } => format!("{runtime} {deployment}"),
        action => action.instance().map(crate::state::InstanceId::runtime_name).unwrap_or_default(),
    }
}
