//! What Seatbelt enforces, and which fields of a spec have no effect under it. Pure.

use std::collections::BTreeMap;

use crate::runtime::{Capabilities, Control, ErrorKind, RuntimeError, Support};
use crate::spec::{NetworkAccess, NetworkMode, ServiceSpec};
use crate::state::Condition;

/// What this runtime calls itself.
const VERSION: &str = "seatbelt, untested on a Mac";
/// What enforces what is enforced.
const BY: &str = "Seatbelt profile, deny by default";

/// What this runtime enforces. It is the same on every Mac.
pub fn capabilities() -> Capabilities {
    let mut controls = BTreeMap::new();
    let mut by = BTreeMap::new();
    for control in Control::ALL {
        let support = support(control);
        if support == Support::Enforced {
            by.insert(control, BY.to_owned());
        }
        controls.insert(control, support);
    }
    Capabilities { version: VERSION.to_owned(), controls, by }
}

fn support(control: Control) -> Support {
    let absent = |why: &str| Support::Absent { why: why.to_owned() };
    let degraded = |why: &str| Support::Degraded { why: why.to_owned() };
    match control {
        Control::Landlock | Control::Devices | Control::ReadOnlyRoot => Support::Enforced,
        Control::NetworkIsolation => {
            degraded("the profile denies what is not allowed; addresses and ports are the machine's")
        }
        Control::MemoryLimit => degraded("the supervisor looks twice a second and kills what has more"),
        Control::Suspend => degraded("by stop signals, which processes that have left their group do not get"),
        Control::EgressFilter => absent("rules of Seatbelt know addresses and no names"),
        Control::ServiceNames => absent("names are the machine's"),
        Control::User => absent("every program runs as the user that keel runs as"),
        Control::DiskLimit => absent("nothing limits the size of a directory"),
        Control::CpuLimit | Control::PidsLimit | Control::IoLimit => {
            absent("macOS has no limits of groups of processes")
        }
        Control::Seccomp => absent("macOS has no filter of system calls"),
        Control::CapabilityDrop => absent("macOS has no capabilities"),
        Control::Activity => absent("nothing of the system tells it"),
        Control::MountNamespace
        | Control::PidNamespace
        | Control::IpcNamespace
        | Control::UtsNamespace
        | Control::CgroupNamespace => absent("macOS has no namespaces"),
    }
}

/// Refuses what a spec requires and is not enforced, with all of it.
///
/// # Errors
/// `Rejected`, with what is missing.
pub fn require(spec: &ServiceSpec) -> Result<(), RuntimeError> {
    let required = spec.sandbox.iter().flat_map(|sandbox| &sandbox.require);
    let lacking: Vec<String> = required
        .filter_map(|wanted| match support(*wanted) {
            Support::Degraded { why } | Support::Absent { why } => Some(format!("{wanted} can't be enforced: {why}")),
            Support::Enforced if *wanted == Control::ReadOnlyRoot && spec.read_only_root_fs != Some(true) => {
                Some(format!("{wanted} does not hold: write read_only_root_fs: true"))
            }
            Support::Enforced => None,
        })
        .collect();
    match lacking.is_empty() {
        true => Ok(()),
        false => {
            let message = format!("sandbox.require: {}", lacking.join("; "));
            Err(RuntimeError::new(ErrorKind::Rejected, message))
        }
    }
}

/// A condition for a field that has no effect.
pub fn without_effect(field: &str, why: &str) -> Condition {
    let reason: String = field.split(['.', '_']).map(capitalised).collect();
    Condition::holds("UnsupportedField", &reason, format!("{field} has no effect on the Seatbelt runtime: {why}"))
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_ascii_uppercase().to_string() + letters.as_str()).unwrap_or_default()
}

/// Conditions for every field that was written and has no effect.
pub fn unsupported(spec: &ServiceSpec) -> Vec<Condition> {
    let resources = spec.resources.clone().unwrap_or_default();
    let none = "macOS has no limits of groups of processes";
    let namespaces = "macOS has no namespaces";
    let capabilities = "macOS has no capabilities";
    let one_network = "every program has the machine's network, as far as its profile allows";
    let fields = [
        ("resources.cpu", resources.cpu.is_some(), none),
        ("resources.pids_limit", resources.pids_limit.is_some(), none),
        ("resources.blkio_weight", resources.blkio_weight.is_some(), none),
        ("resources.cpuset", resources.cpuset.is_some(), none),
        ("sandbox.seccomp", spec.sandbox.as_ref().is_some_and(|one| one.seccomp.is_some()), "macOS has no filter"),
        ("capabilities", !spec.capabilities.is_empty(), capabilities),
        ("cap_drop", !spec.cap_drop.is_empty(), capabilities),
        ("privileged", spec.privileged == Some(true), "the profile holds"),
        ("sysctls", !spec.sysctls.is_empty(), namespaces),
        ("hostname", spec.hostname.is_some(), namespaces),
        ("extra_hosts", !spec.extra_hosts.is_empty(), namespaces),
        ("dns", !spec.dns.is_empty(), namespaces),
        ("pid_mode", spec.pid_mode.is_some(), namespaces),
        ("ipc_mode", spec.ipc_mode.is_some(), namespaces),
        ("ulimits", !spec.ulimits.is_empty(), "programs have keel's own limits"),
        ("extra_groups", !spec.extra_groups.is_empty(), "programs have keel's own groups"),
        ("port_mappings", !spec.port_mappings.is_empty(), "ports are the machine's; a program listens on its own PORT"),
        (
            "network_mode",
            matches!(spec.network_access(), NetworkAccess::Mode(NetworkMode::Bridge(_) | NetworkMode::Container(_))),
            one_network,
        ),
        ("tty", spec.tty == Some(true), "programs have no terminal; keel exec -t has"),
        ("stdin_open", spec.stdin_open == Some(true), "programs have no standard input"),
    ];
    fields.into_iter().filter(|(_, written, _)| *written).map(|(field, _, why)| without_effect(field, why)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(fields: &str) -> ServiceSpec {
        serde_yaml::from_str(&format!("image: {{name: host}}\n{fields}")).unwrap()
    }

    #[test]
    fn every_control_is_told_and_a_required_one_must_hold() {
        assert_eq!(capabilities().controls.len(), Control::ALL.len());
        assert!(require(&spec("sandbox: { require: [landlock, devices] }")).is_ok());
        let error = require(&spec("sandbox: { require: [read_only_root, user, memory_limit] }")).unwrap_err();
        for part in ["write read_only_root_fs: true", "user can't be enforced", "looks twice a second"] {
            assert!(error.message.contains(part), "{}", error.message);
        }
        assert!(require(&spec("read_only_root_fs: true\nsandbox: { require: [read_only_root] }")).is_ok());
    }

    #[test]
    fn what_has_no_effect_is_told_by_its_field() {
        assert_eq!(unsupported(&spec("")), []);
        let found = unsupported(&spec("resources: { cpu: 1 }\nport_mappings: [{ container_port: 80 }]\ntty: true"));
        let reasons: Vec<&str> = found.iter().map(|one| one.reason.as_str()).collect();
        assert_eq!(reasons, ["ResourcesCpu", "PortMappings", "Tty"]);
    }
}
