//! What a runtime can enforce on this machine.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a runtime can enforce on this machine, control by control. A control that is missing is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// What the runtime calls itself, with its version.
    pub version: String,
    /// Support by control.
    pub controls: BTreeMap<Control, Support>,
}

impl Capabilities {
    /// Support of one control.
    pub fn support(&self, control: Control) -> Support {
        self.controls
            .get(&control)
            .cloned()
            .unwrap_or(Support::Absent { why: "this runtime does not have it".to_owned() })
    }
}

/// Things that a runtime may enforce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    /// A mount namespace of its own.
    MountNamespace,
    /// A process namespace of its own.
    PidNamespace,
    /// An IPC namespace of its own.
    IpcNamespace,
    /// A host name of its own.
    UtsNamespace,
    /// A network of its own.
    NetworkIsolation,
    /// A read-only root file system.
    ReadOnlyRoot,
    /// A memory limit.
    MemoryLimit,
    /// A CPU limit.
    CpuLimit,
    /// A limit of processes.
    PidsLimit,
    /// A system-call filter.
    Seccomp,
    /// Capability sets.
    CapabilityDrop,
    /// Another user than the controller's.
    User,
    /// Names of services resolve inside a deployment.
    ServiceNames,
    /// Activity of instances is reported.
    Activity,
    /// Instances can be frozen.
    Suspend,
}

/// Whether a control is enforced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "support", rename_all = "snake_case")]
pub enum Support {
    /// It is enforced.
    Enforced,
    /// It is enforced in part.
    Degraded {
        /// What is missing, and why.
        why: String,
    },
    /// It is not enforced.
    Absent {
        /// Why.
        why: String,
    },
}
