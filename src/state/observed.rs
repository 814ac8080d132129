//! What the runtime reports: instances as plain data.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Condition, HealthState, InstanceId, Phase, StopPolicy};
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
    /// What health checks say of its present or last run; absent where nothing checks it. [`Instance::judge`] sets it.
    #[serde(default)]
    pub health: Option<HealthState>,
    /// What the runtime has to say about it: controls that could not be enforced, fields that it can't honour.
    pub conditions: Vec<Condition>,
}

impl Instance {
    /// Orders the instances of one slot: a later one has a greater value.
    pub const fn recency(&self) -> (DateTime<Utc>, u32) {
        (self.created_at, self.id.attempt)
    }

    /// Notes what health checks say of it. The one place that says what readiness is: it runs, and checks pass or
    /// nothing checks it.
    pub fn judge(&mut self, health: Option<HealthState>) {
        if let Phase::Running { ready, .. } = &mut self.phase {
            *ready = health.as_ref().is_none_or(HealthState::serves);
        }
        self.health = health;
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

    /// Whether it is unhealthy by checks that have not passed in this run.
    pub const fn never_passed(&self) -> bool {
        matches!(&self.health, Some(HealthState::Unhealthy { passed: false, .. }))
    }

    /// What runtime calls need to know of it.
    pub fn as_ref(&self) -> InstanceRef {
        InstanceRef { id: self.id.clone(), runtime: self.runtime, runtime_id: self.runtime_id.clone() }
    }
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
