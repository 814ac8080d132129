//! What the runtime reports: instances as plain data.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Condition, HealthState, InstanceId, Phase, StopCause, StopPolicy};
use crate::spec::{PortProtocol, RuntimeKind};

/// One instance as its runtime reports it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// Identity.
    pub id: InstanceId,
    /// Runtime that runs it.
    pub runtime: RuntimeKind,
    /// The runtime's own id: a container id, a sandbox's directory name.
    pub runtime_id: String,
    /// Where it stands in its life.
    pub phase: Phase,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// Restarts after an exit, counted over the slot's life.
    pub restarts: u32,
    /// Restarts in a row without a stable run between them; sets the back-off of the next one.
    pub streak: u32,
    /// How it wants to be stopped.
    pub stop: StopPolicy,
    /// Process id on this machine, while it runs and where known.
    pub pid: Option<u32>,
    /// Ports of the machine that lead to it.
    pub ports: Vec<PortBinding>,
    /// Its last activity, where the runtime reports any.
    pub last_activity: Option<DateTime<Utc>>,
    /// How long its present or last run was frozen, as far as that was seen.
    #[serde(default)]
    pub frozen: Frozen,
    /// What health checks say of its present or last run; absent where nothing checks it. [`Instance::judge`] sets it.
    #[serde(default)]
    pub health: Option<HealthState>,
    /// What the runtime has to say about it: controls that could not be enforced, fields that it can't honour.
    pub conditions: Vec<Condition>,
}

impl Instance {
    /// One that was made then and that nothing more is known of: its runtime calls it by the name that is derived from its
    /// identity, and it was never restarted.
    pub fn new(id: InstanceId, runtime: RuntimeKind, phase: Phase, created_at: DateTime<Utc>) -> Self {
        Self {
            runtime_id: id.runtime_name(),
            id,
            runtime,
            phase,
            created_at,
            restarts: 0,
            streak: 0,
            stop: StopPolicy::default(),
            pid: None,
            ports: Vec::new(),
            last_activity: None,
            frozen: Frozen::default(),
            health: None,
            conditions: Vec::new(),
        }
    }

    /// Orders the instances of one slot: a later one has a greater value.
    pub const fn recency(&self) -> (DateTime<Utc>, u32) {
        (self.created_at, self.id.attempt)
    }

    /// From when on it would have run for as long as it has without being frozen: what asks how long a run has lasted counts
    /// from here. Absent where it never ran.
    pub fn runs_since(&self) -> Option<DateTime<Utc>> {
        let started = self.phase.started_at()?;
        let frozen = chrono::TimeDelta::from_std(self.frozen.so_far).ok();
        Some(frozen.and_then(|frozen| started.checked_add_signed(frozen)).unwrap_or(started))
    }

    /// Notes how long it was frozen, seen now; `before` is what was known of it until now.
    pub fn follow_freezes(&mut self, before: &Self, now: DateTime<Utc>) {
        let run = self.phase.started_at();
        let is_frozen = matches!(self.phase, Phase::Paused { .. });
        let known = match run.is_some() && run == before.phase.started_at() {
            true => before.frozen,
            false => Frozen::default(),
        };
        let ended = known.since.filter(|_| !is_frozen);
        // A clock that was set back adds nothing.
        let more = ended.and_then(|since| (now - since).to_std().ok()).unwrap_or_default();
        let since = is_frozen.then(|| known.since.unwrap_or(now));
        self.frozen = Frozen { so_far: known.so_far.saturating_add(more), since };
    }

    /// Notes what health checks say of it. The one place that says what readiness is: it runs, and checks pass or
    /// nothing checks it.
    pub fn judge(&mut self, health: Option<HealthState>) {
        if let Phase::Running { ready, .. } = &mut self.phase {
            *ready = health.as_ref().is_none_or(HealthState::serves);
        }
        self.health = health;
    }

    /// Notes why the stop is under way that the runtime knows of, for whoever has not seen the checks that led to it.
    pub fn ends_for(&mut self, cause: StopCause) {
        if self.phase == Phase::Stopping && cause == StopCause::Unhealthy {
            let last = "its checks failed before this controller began".to_owned();
            self.health = Some(HealthState::Unhealthy { last, passed: false });
        }
    }

    /// Whether it takes traffic by what was known before its checks changed.
    pub const fn is_assumed_healthy(&self) -> bool {
        matches!(&self.health, Some(HealthState::Assumed))
    }

    /// What the last check said, where checks say that it is unhealthy.
    pub fn unhealthy(&self) -> Option<&str> {
        match &self.health {
            Some(HealthState::Unhealthy { last, .. }) => Some(last),
            _ => None,
        }
    }

    /// Whether it is still on its way to its first use: it runs, and of what checks it nothing has passed in this run, or was
    /// made yet.
    pub const fn is_starting(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
            && matches!(&self.health, Some(HealthState::Starting { .. } | HealthState::Waiting { .. }))
    }

    /// Whether it is unhealthy by checks that have not passed in this run.
    pub const fn never_passed(&self) -> bool {
        matches!(&self.health, Some(HealthState::Unhealthy { passed: false, .. }))
    }

    /// Whether it is unhealthy by checks that have passed in this run.
    pub const fn has_passed(&self) -> bool {
        matches!(&self.health, Some(HealthState::Unhealthy { passed: true, .. }))
    }

    /// What somebody else changed of it since it was created, where its runtime tells.
    pub fn changed_by_others(&self) -> Option<&str> {
        self.conditions.iter().find_map(Condition::is_changed_by_others)
    }

    /// What runtime calls need to know of it.
    pub fn as_ref(&self) -> InstanceRef {
        InstanceRef { id: self.id.clone(), runtime: self.runtime, runtime_id: self.runtime_id.clone() }
    }
}

/// How long a run was frozen. No runtime tells; it is measured from what they report, and nothing of it outlives the
/// controller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// All freezes that are over.
    pub so_far: Duration,
    /// When the one that lasts began, where it is frozen.
    pub since: Option<DateTime<Utc>>,
}

/// An instance that exists, as runtime calls name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InstanceRef {
    /// Identity.
    pub id: InstanceId,
    /// Runtime that runs it.
    pub runtime: RuntimeKind,
    /// The runtime's own id.
    pub runtime_id: String,
}

/// A port of the machine that leads to an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortBinding {
    /// Port inside; the endpoint's target port, or the assigned `PORT` of a sandbox.
    pub container_port: u16,
    /// Protocol.
    pub protocol: PortProtocol,
    /// Address on the machine.
    pub host_ip: String,
    /// Port on the machine.
    pub host_port: u16,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Exit, InstanceId};

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + chrono::TimeDelta::seconds(seconds)
    }

    fn instance(phase: Phase) -> Instance {
        let id = InstanceId {
            deployment: "demo".to_owned(),
            service: "web".to_owned(),
            slot: 0,
            revision: "v1-aaaaaaaaaaaaaaaa".parse().unwrap(),
            attempt: 0,
            run: None,
        };
        Instance::new(id, RuntimeKind::Sim, phase, at(0))
    }

    /// What is known after it was seen like this, in this order.
    fn seen(phases: impl IntoIterator<Item = (i64, Phase)>) -> Instance {
        let mut known = instance(Phase::Created);
        for (seconds, phase) in phases {
            let mut now = instance(phase);
            now.follow_freezes(&known, at(seconds));
            known = now;
        }
        known
    }

    #[test]
    fn the_time_for_which_a_run_was_frozen_is_left_out_and_the_next_run_begins_anew() {
        let runs = |since| Phase::Running { since: at(since), ready: true };
        let frozen = |since| Phase::Paused { since: at(since) };
        let ended = |since, now| Phase::Exited(Exit::from_code(1, Some(at(since)), at(now)));
        let since = |phases: &[(i64, Phase)]| seen(phases.iter().cloned()).runs_since();
        assert_eq!(since(&[(10, runs(10)), (20, runs(10))]), Some(at(10)));
        let twice =
            [(10, runs(10)), (11, frozen(10)), (15, frozen(10)), (21, runs(10)), (30, frozen(10)), (32, runs(10))];
        assert_eq!(since(&twice), Some(at(10 + 10 + 2)));
        assert_eq!(since(&[(10, runs(10)), (11, frozen(10)), (21, ended(10, 21))]), Some(at(20)));
        assert_eq!(since(&[(10, runs(10)), (11, frozen(10)), (21, ended(10, 21)), (30, runs(30))]), Some(at(30)));
        assert_eq!(since(&[(30, frozen(10)), (20, runs(10))]), Some(at(10)), "the clock was set back");
        assert_eq!(since(&[(10, Phase::Created)]), None);
    }
}
