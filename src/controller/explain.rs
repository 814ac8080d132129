//! Why an instance counts as in use or as idle, and what strikes next.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::EngineError;
use super::core::State;
use super::engine::Engine;
use super::message::Command;
use crate::plan::idle::{Doing, Next, doing, known_activity, limits};
use crate::spec::{HumanDuration, RuntimeKind};
use crate::state::{Activity, EndedBy, Exit, Instance, Phase, Signal, StopCause, Target};

/// What is known of the use of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdleReport {
    /// `DEPLOYMENT/SERVICE/SLOT`.
    pub name: String,
    /// Runtime.
    pub runtime: RuntimeKind,
    /// The runtime's own id.
    pub runtime_id: String,
    /// What it is doing, as far as its use tells; absent where nobody watches it.
    pub doing: Option<Doing>,
    /// What was seen of its use, by signal, those that were never seen included.
    pub signals: Vec<SignalReport>,
    /// Since when it is watched; what was before counts as use.
    pub watched_since: Option<DateTime<Utc>>,
    /// Limit on idleness, `lifecycle.max_idle`.
    pub max_idle: Option<HumanDuration>,
    /// The last use that was seen, or since when it is watched where none was; absent while it is in use.
    pub idle_since: Option<DateTime<Utc>>,
    /// From when on `max_idle` counts: later than the last use by the time in which nobody watched, and earlier for uses of
    /// less weight.
    pub counted_since: Option<DateTime<Utc>>,
    /// When it ended, where it does not run.
    pub ended: Option<DateTime<Utc>>,
    /// The limit that strikes next.
    pub next: Option<Next>,
    /// Until when its slot is held.
    pub held_until: Option<DateTime<Utc>>,
    /// Whether it is stopped or suspended because it was idle.
    pub rests: bool,
    /// What it is there for where it is a member of a pool, whose limits count instead of those of `lifecycle`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<Membership>,
}

/// What a member of a pool is there for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Membership {
    /// It is free, and another one takes its place at that time (`pool.warm_ttl`).
    Free {
        /// When.
        until: DateTime<Utc>,
    },
    /// A session has it.
    Session {
        /// Which.
        id: String,
        /// When that ends if it is left unused until then; absent while it is used.
        until: Option<DateTime<Utc>>,
    },
}

/// What was seen of one kind of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalReport {
    /// Which.
    pub signal: Signal,
    /// How much of the limit counts after it, in percent.
    pub weight: u8,
    /// When it was seen last.
    pub last: Option<DateTime<Utc>>,
    /// Whether it still lasts.
    pub ongoing: bool,
}

impl State {
    /// What is known of the use of the instances that a target covers: the running and frozen ones, and the last
    /// ones of slots in which nothing runs.
    pub(super) fn explain_idle(&self, target: &Target) -> Result<Vec<IdleReport>, EngineError> {
        let declared = self.declared.desired.deployments.get(&target.deployment);
        let effective = declared.map(|declared| self.effective(declared));
        let mut observed = self.observed(&target.deployment);
        observed.retain(|one| target.covers(&one.id) && !one.id.is_helper());
        let lives = |one: &Instance| matches!(one.phase, Phase::Running { .. } | Phase::Paused { .. });
        let alive: Vec<(String, u32)> =
            observed.iter().filter(|one| lives(one)).map(|one| (one.id.service.clone(), one.id.slot)).collect();
        observed.retain(|one| {
            let is_over = matches!(one.phase, Phase::Exited(_));
            let is_down = is_over && !alive.contains(&(one.id.service.clone(), one.id.slot));
            let is_newest = || {
                !self.cache.of(&target.deployment).any(|other| {
                    (&other.id.service, other.id.slot) == (&one.id.service, one.id.slot)
                        && other.recency() > one.recency()
                })
            };
            lives(one) || (is_down && is_newest())
        });
        observed.sort_by(|one, other| one.id.cmp(&other.id));
        if observed.is_empty() {
            let text = format!("{target} has no instance; see keel get instances");
            return Err(EngineError::NotFound(text));
        }
        Ok(observed.iter().map(|one| self.idle_report(one, effective.as_ref())).collect())
    }

    fn idle_report(&self, instance: &Instance, desired: Option<&crate::state::DesiredDeployment>) -> IdleReport {
        let now = self.now().0;
        let service = desired.and_then(|desired| desired.services.get(&instance.id.service));
        let lifecycle = service.and_then(|service| service.spec.lifecycle.as_ref());
        let max_idle = lifecycle.and_then(|lifecycle| lifecycle.max_idle);
        let activity = self.ledger.activity(instance, now);
        let signals = Signal::ALL.map(|signal| {
            let seen = activity.as_ref().and_then(|activity| activity.uses.get(&signal));
            SignalReport {
                signal,
                weight: signal.weight(),
                last: seen.map(|seen| seen.last),
                ongoing: seen.is_some_and(|seen| seen.ongoing),
            }
        });
        let orders = self.memory.get(&instance.id.deployment).map(|memory| &memory.orders.lives);
        let held = orders.and_then(|orders| orders.holds.get(&instance.id.service)?.get(&instance.id.slot).copied());
        let held_until = held.filter(|held| *held > now);
        let next = service.and_then(|service| {
            limits(&instance.phase, known_activity(instance), &service.spec, held_until).into_iter().next()
        });
        let rests = self.is_suspended_idle(instance) || rests(instance);
        let ended = match &instance.phase {
            Phase::Exited(exit) => Some(exit.finished_at),
            _ => None,
        };
        IdleReport {
            name: instance.id.name(),
            runtime: instance.runtime,
            runtime_id: instance.runtime_id.clone(),
            doing: match (&activity, max_idle) {
                _ if rests => Some(Doing::Idle),
                _ if ended.is_some() => None,
                // Without a limit nothing is idle; what it does counts as it would with a long one.
                (Some(activity), limit) => {
                    Some(doing(activity, limit.map_or(std::time::Duration::MAX, HumanDuration::get), now))
                }
                (None, _) => None,
            },
            signals: signals.into(),
            watched_since: activity.as_ref().map(|activity| activity.watched_since),
            max_idle,
            idle_since: activity.as_ref().filter(|_| max_idle.is_some()).and_then(Activity::last_use),
            counted_since: instance.last_activity.filter(|_| max_idle.is_some() && ended.is_none() && !rests),
            ended,
            next,
            held_until,
            rests,
            member: self.membership(instance),
        }
    }
}

/// Whether it was stopped because it was idle.
const fn rests(instance: &Instance) -> bool {
    matches!(&instance.phase, Phase::Exited(Exit { ended_by: EndedBy::Request(StopCause::Idle), .. }))
}

impl Engine {
    /// What is known of the use of the instances that a target covers, by name.
    ///
    /// # Errors
    /// `NotFound` where it covers none.
    pub async fn explain_idle(&self, target: &Target) -> Result<Vec<IdleReport>, EngineError> {
        let target = target.clone();
        self.ask(|reply| Command::ExplainIdle(target, reply)).await?
    }
}
