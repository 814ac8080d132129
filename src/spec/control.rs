//! What a runtime may enforce, by the names that `sandbox.require` takes.

use serde::{Deserialize, Serialize};

/// Things that a runtime may enforce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
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
    /// A view of control groups of its own.
    CgroupNamespace,
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
    /// A weight of disk accesses.
    IoLimit,
    /// A limit of disk space: `resources.disk`, and sizes of named volumes.
    DiskLimit,
    /// Declared devices alone, with their permissions.
    Devices,
    /// A system-call filter.
    Seccomp,
    /// Limits on what is reached by path and name.
    Landlock,
    /// Capability sets.
    CapabilityDrop,
    /// Another user than the controller's.
    User,
    /// Limits on which hosts are reached (`allow_hosts`).
    EgressFilter,
    /// Names of services resolve inside a deployment.
    ServiceNames,
    /// Activity of instances is reported.
    Activity,
    /// Instances can be frozen.
    Suspend,
}

impl Control {
    /// Every control.
    pub const ALL: [Self; 21] = [
        Self::MountNamespace,
        Self::PidNamespace,
        Self::IpcNamespace,
        Self::UtsNamespace,
        Self::CgroupNamespace,
        Self::NetworkIsolation,
        Self::ReadOnlyRoot,
        Self::MemoryLimit,
        Self::CpuLimit,
        Self::PidsLimit,
        Self::IoLimit,
        Self::DiskLimit,
        Self::Devices,
        Self::Seccomp,
        Self::Landlock,
        Self::CapabilityDrop,
        Self::User,
        Self::EgressFilter,
        Self::ServiceNames,
        Self::Activity,
        Self::Suspend,
    ];
}

impl std::fmt::Display for Control {
    /// The name as users write it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.serialize(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_control_of_the_schema_is_listed() {
        let schema = serde_json::to_value(schemars::schema_for!(Control)).unwrap();
        let variants = schema["oneOf"].as_array().unwrap();
        let named: Vec<&str> = variants.iter().filter_map(|one| one["const"].as_str()).collect();
        let listed: Vec<String> = Control::ALL.iter().map(ToString::to_string).collect();
        assert_eq!(listed, named);
    }
}
