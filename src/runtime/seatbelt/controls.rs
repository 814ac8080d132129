//! What Seatbelt enforces, and which fields of a spec have no effect under it. Pure.

use std::collections::BTreeMap;

use crate::runtime::enforcement::bytes;
use crate::runtime::{Capabilities, Control, Enforcement, EnforcementState, ErrorKind, RuntimeError, Support};
use crate::spec::{Destination, NetworkAccess, NetworkMode, OnIdle, ServiceSpec};
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

/// What an instance asks for and gets, control by control, once it runs.
pub fn enforcement(spec: &ServiceSpec) -> Vec<Enforcement> {
    Control::ALL
        .into_iter()
        .map(|control| {
            let requested = requested(spec, control);
            let state = match (&requested, support(control)) {
                (None, _) => EnforcementState::NotRequested { by: instead(control).map(str::to_owned) },
                (Some(_), Support::Enforced) => EnforcementState::Enforced { by: BY.to_owned() },
                (Some(_), Support::Degraded { why }) => EnforcementState::Degraded { by: BY.to_owned(), why },
                // Another user than this is refused.
                (Some(_), Support::Absent { .. }) if control == Control::User => {
                    EnforcementState::Enforced { by: "the user that keel runs as".to_owned() }
                }
                (Some(_), Support::Absent { why }) => EnforcementState::Absent { why },
            };
            Enforcement::new(control, requested, state)
        })
        .collect()
}

/// What a spec asks of a control, in its own words.
fn requested(spec: &ServiceSpec, control: Control) -> Option<String> {
    let resources = spec.resources.clone().unwrap_or_default();
    let sandbox = spec.sandbox.clone().unwrap_or_default();
    let lifecycle = spec.lifecycle.as_ref();
    match control {
        Control::NetworkIsolation => match spec.network_access() {
            NetworkAccess::Nothing => Some("none".to_owned()),
            NetworkAccess::Loopback => Some("loopback".to_owned()),
            NetworkAccess::Mode(_) => None,
        },
        Control::Landlock => Some(format!("{} readable, {} writable", sandbox.readable.len(), sandbox.writable.len())),
        Control::Devices => Some(format!("{} declared", spec.devices.len())),
        Control::ReadOnlyRoot => (spec.read_only_root_fs == Some(true)).then(|| "read-only".to_owned()),
        Control::MemoryLimit => resources.memory.map(|limit| bytes(limit.0)),
        Control::CpuLimit => resources.cpu.map(|cpu| crate::runtime::enforcement::cpus(cpu.millis)),
        Control::PidsLimit => resources.pids_limit.filter(|limit| *limit > 0).map(|limit| limit.to_string()),
        Control::IoLimit => resources.blkio_weight.map(|weight| format!("weight {weight}")),
        Control::DiskLimit => resources.disk.map(|limit| bytes(limit.0)),
        Control::User => spec.user.clone(),
        Control::Seccomp => sandbox.seccomp.map(|_| "a filter".to_owned()),
        Control::CapabilityDrop => (!spec.cap_drop.is_empty()).then(|| spec.cap_drop.join(", ")),
        Control::Activity => lifecycle.and_then(|one| one.max_idle).map(|time| format!("max_idle {time}")),
        Control::Suspend => {
            lifecycle.and_then(|one| one.on_idle).filter(|what| *what == OnIdle::Suspend).map(|_| "on_idle".to_owned())
        }
        Control::MountNamespace
        | Control::PidNamespace
        | Control::IpcNamespace
        | Control::UtsNamespace
        | Control::CgroupNamespace
        | Control::EgressFilter
        | Control::ServiceNames => None,
    }
}

/// What there is where nothing is asked for.
const fn instead(control: Control) -> Option<&'static str> {
    match control {
        Control::NetworkIsolation | Control::ServiceNames => Some("shares the machine's network and names"),
        Control::ReadOnlyRoot => Some("a copy of its own, which it may write"),
        Control::User => Some("the user that keel runs as"),
        Control::PidNamespace => Some("sees the machine's processes, and signals its own alone"),
        _ => None,
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
    let logs = spec.logs.clone().unwrap_or_default();
    let none = "macOS has no limits of groups of processes";
    let namespaces = "macOS has no namespaces";
    let capabilities = "macOS has no capabilities";
    let one_network = "every program has the machine's network, as far as its profile allows";
    let fields = [
        ("resources.cpu", resources.cpu.is_some(), none),
        ("resources.pids_limit", resources.pids_limit.is_some(), none),
        ("resources.blkio_weight", resources.blkio_weight.is_some(), none),
        ("resources.cpuset", resources.cpuset.is_some(), none),
        ("resources.cpu_shares", resources.cpu_shares.is_some(), none),
        ("resources.disk", resources.disk.is_some(), "nothing limits the size of a directory"),
        ("resources.memory_reservation", resources.memory_reservation.is_some(), none),
        ("resources.memory_swap", resources.memory_swap.is_some(), none),
        ("resources.memory_swappiness", resources.memory_swappiness.is_some(), none),
        ("resources.oom_score_adj", resources.oom_score_adj.is_some(), "macOS has no such score"),
        ("resources.oom_kill_disable", resources.oom_kill_disable.is_some(), "the supervisor kills what has too much"),
        ("security_opt", !spec.security_opt.is_empty(), "the profile holds"),
        ("cgroup_parent", spec.cgroup_parent.is_some(), none),
        ("userns_mode", spec.userns_mode.is_some(), namespaces),
        ("logs.retention_secs", logs.retention_secs.is_some(), "output is bounded by size and goes with its instance"),
        ("logs.destination", logs.destination == Some(Destination::Memory), "output is kept in files"),
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
    fn what_an_instance_asks_for_is_told_beside_what_it_gets() {
        let found = enforcement(&spec(
            "resources: { memory: 64Mi, cpu: 1 }\nsandbox: { network: none }\nread_only_root_fs: true",
        ));
        let state = |control| found.iter().find(|one| one.control == control).unwrap();
        assert!(matches!(state(Control::ReadOnlyRoot).state, EnforcementState::Enforced { .. }));
        assert!(matches!(state(Control::NetworkIsolation).state, EnforcementState::Degraded { .. }));
        assert_eq!(state(Control::MemoryLimit).requested.as_deref(), Some("64Mi"));
        assert!(matches!(state(Control::CpuLimit).state, EnforcementState::Absent { .. }));
        assert!(matches!(state(Control::User).state, EnforcementState::NotRequested { by: Some(_) }));
        assert_eq!(found.len(), Control::ALL.len());
    }

    #[test]
    fn what_has_no_effect_is_told_by_its_field() {
        assert_eq!(unsupported(&spec("")), []);
        let found = unsupported(&spec("resources: { cpu: 1 }\nport_mappings: [{ container_port: 80 }]\ntty: true"));
        let reasons: Vec<&str> = found.iter().map(|one| one.reason.as_str()).collect();
        assert_eq!(reasons, ["ResourcesCpu", "PortMappings", "Tty"]);
    }
}
