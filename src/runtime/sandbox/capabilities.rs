//! Capabilities of processes, and what this runtime enforces.

use std::collections::BTreeMap;

use super::confinement::EXPOSED;
use super::failure::ONE_USER;
use super::landlock::Extent;
use super::probe::Probe;
use super::sys::Namespaces;
use super::{cgroup, words};
use crate::runtime::{Capabilities, Control, Support};
use crate::spec::{ServiceSpec, bare_capability, has_all_capabilities};

/// Names of capabilities(7) by number.
const NAMES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What Docker gives a container that asks for nothing.
const DEFAULT: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// What is not given unasked where the network is the machine's: there it is the power over everybody's.
const OF_NETWORK: &[&str] = &["NET_RAW"];

/// The bit set that a spec asks for: the default, without `cap_drop`, with `capabilities`. As Docker has it, `ALL` in
/// `capabilities` gives all but those that `cap_drop` names, and `ALL` in `cap_drop` leaves what `capabilities` has. The
/// default has no power over a network that is not the instance's own.
///
/// # Errors
/// A name is not a capability.
pub fn wanted(spec: &ServiceSpec, namespaces: Namespaces) -> Result<u64, String> {
    if spec.privileged == Some(true) {
        return Ok(all());
    }
    let (added, dropped) = (union(&spec.capabilities, "capabilities")?, union(&spec.cap_drop, "cap_drop")?);
    Ok(match (has_all_capabilities(&spec.capabilities), has_all_capabilities(&spec.cap_drop)) {
        (true, _) => all() & !dropped,
        (false, true) => added,
        (false, false) => default(namespaces.net) & !dropped | added,
    })
}

/// The capabilities that a list names; `ALL` is no name of one.
fn union(names: &[String], field: &str) -> Result<u64, String> {
    let mut named = names.iter().map(|name| named(name, field));
    named.try_fold(0, |set, bit| Ok(set | bit?))
}

/// What specs that say nothing about capabilities get, in a network of their own and in the machine's.
pub fn usual() -> [u64; 2] {
    [true, false].map(default)
}

fn default(has_network: bool) -> u64 {
    let given = DEFAULT.iter().filter(|name| has_network || !OF_NETWORK.contains(name));
    given.filter_map(|name| bits(name)).fold(0, |set, bit| set | bit)
}

/// Every capability that is known.
pub fn all() -> u64 {
    (1 << NAMES.len()) - 1
}

fn bits(name: &str) -> Option<u64> {
    NAMES.iter().position(|known| *known == name).map(|number| 1 << number)
}

/// Whether a bit set holds a capability, by its name without `CAP_`.
pub fn has(set: u64, name: &str) -> bool {
    bits(name).is_some_and(|bit| set & bit != 0)
}

fn named(name: &str, field: &str) -> Result<u64, String> {
    let bare = bare_capability(name);
    if bare == "ALL" {
        return Ok(0);
    }
    bits(&bare).ok_or_else(|| format!("{field}: {name:?} is no capability; write a name such as NET_ADMIN, or ALL"))
}

/// What this runtime enforces on a machine.
pub fn report(probe: &Probe) -> Capabilities {
    let by = |result: &Result<(), String>| match result {
        Ok(()) => Support::Enforced,
        Err(why) => Support::Absent { why: why.clone() },
    };
    let isolated = by(&probe.namespaces);
    let user = match (&probe.namespaces, probe.root) {
        (_, true) => match &probe.users {
            Ok(()) => Support::Enforced,
            Err(why) => Support::Degraded { why: format!("a program can only be who keel is: {why}") },
        },
        (Ok(()), false) => Support::Degraded {
            why: format!(
                "keel does not run as root: a program sees the user it asked for, and its files outside belong to keel's \
                 user; {ONE_USER}"
            ),
        },
        (Err(why), false) => Support::Absent { why: why.clone() },
    };
    let drop = match (&probe.namespaces, probe.root) {
        (_, true) | (Ok(()), _) => match &probe.capability_drop {
            Ok(()) => Support::Enforced,
            Err(why) => Support::Degraded { why: why.clone() },
        },
        (Err(_), false) => Support::Absent { why: "keel has no capabilities to drop".to_owned() },
    };
    let disk = match (&probe.quota, &probe.seccomp) {
        (Err(why), _) => Support::Absent { why: why.clone() },
        (Ok(()), Ok(())) => Support::Enforced,
        (Ok(()), Err(why)) => Support::Degraded { why: format!("{}: {why}", super::quota::NO_FILTER) },
    };
    let mut controls = BTreeMap::from([
        (Control::MountNamespace, isolated.clone()),
        (Control::PidNamespace, isolated.clone()),
        (Control::IpcNamespace, isolated.clone()),
        (Control::UtsNamespace, isolated),
        (Control::ReadOnlyRoot, or_landlock(&probe.namespaces, probe, words::without_mounts)),
        (Control::NetworkIsolation, or_landlock(&probe.network, probe, words::only_tcp)),
        (Control::EgressFilter, by(&probe.namespaces.clone().and(probe.network.clone()))),
        (Control::CapabilityDrop, drop),
        (Control::DiskLimit, disk),
        (Control::Devices, match (&probe.namespaces, cgroup::limits_devices(&probe.homes)) {
            (Err(why), _) => Support::Absent { why: why.clone() },
            (Ok(()), Ok(())) => Support::Enforced,
            (Ok(()), Err(why)) => Support::Degraded {
                why: format!("there are no other nodes, and what may be done with them is up to the nodes: {why}"),
            },
        }),
        (Control::User, user),
        (Control::Seccomp, by(&probe.seccomp)),
        (Control::Landlock, match &probe.landlock {
            Ok(Extent::Full) => Support::Enforced,
            Ok(Extent::Part) => Support::Degraded {
                why: "this kernel knows paths, and not all of network, signals and abstract sockets (Linux 6.12 does)"
                    .to_owned(),
            },
            // Nothing else is left then that keeps a program from files.
            Err(why) if probe.namespaces.is_err() => Support::Absent { why: format!("{why}; {EXPOSED}") },
            Err(why) => Support::Absent { why: why.clone() },
        }),
        (Control::ServiceNames, match probe.namespaces.clone().and(probe.network.clone()).and(probe.bridge.clone()) {
            Ok(()) => Support::Enforced,
            Err(why) => Support::Absent { why: format!("{}: {why}", instead_of_names(probe)) },
        }),
        // What it uses is read while it runs, and whoever uses it does so through keel.
        (Control::Activity, Support::Enforced),
    ]);
    controls.extend(cgroup::controls(&probe.homes, &probe.process_limit, &probe.cgroup_namespace));
    let by = enforced_by(probe, &controls);
    Capabilities { version: format!("sandbox {}", env!("CARGO_PKG_VERSION")), controls, by }
}

/// What Landlock keeps in part where the machine does not allow what keeps all of it.
fn or_landlock(all: &Result<(), String>, probe: &Probe, words: fn(&str) -> String) -> Support {
    match (all, &probe.landlock) {
        (Ok(()), _) => Support::Enforced,
        (Err(why), Ok(_)) => Support::Degraded { why: words(why) },
        (Err(why), Err(_)) => Support::Absent { why: why.clone() },
    }
}

/// The network of instances that have none of their deployment.
fn instead_of_names(probe: &Probe) -> String {
    match &probe.pasta {
        Ok(_) => {
            "instances have networks of their own, which pasta connects with the machine's and not with each other"
                .to_owned()
        }
        Err(_) if probe.root => "instances have the machine's own network".to_owned(),
        Err(why) => format!("instances have the machine's own network, as {why}"),
    }
}

/// By what each of these controls is enforced here, as far as it is.
fn enforced_by(probe: &Probe, controls: &BTreeMap<Control, Support>) -> BTreeMap<Control, String> {
    let are_held = |(control, support): (&Control, &Support)| {
        let by = match (*control, support) {
            (_, Support::Absent { .. }) => return None,
            (Control::NetworkIsolation | Control::ReadOnlyRoot, Support::Degraded { .. }) => {
                words::by(Control::Landlock).to_owned()
            }
            (Control::NetworkIsolation, _) => format!("{}; {}", words::by(*control), full_network(probe)),
            (Control::MemoryLimit, Support::Degraded { .. }) => words::memory_watch(),
            (Control::PidsLimit, _) if !cgroup::counts_processes(&probe.homes) => words::PROCESS_LIMIT.to_owned(),
            (Control::Suspend, Support::Degraded { .. }) => words::SIGNALS.to_owned(),
            _ => words::by(*control).to_owned(),
        };
        Some((*control, by))
    };
    controls.iter().filter_map(are_held).collect()
}

/// What connects instances whose network is `full`.
fn full_network(probe: &Probe) -> String {
    let way = match (&probe.bridge, &probe.pasta) {
        (Ok(()), _) => "on the bridge of its deployment",
        (Err(_), Ok(_)) => super::network::PASTA,
        (Err(_), Err(_)) => super::network::SHARED,
    };
    format!("network full: {way}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(probe: &Probe, control: Control) -> Support {
        report(probe).support(control)
    }

    #[test]
    fn on_the_machines_network_nobody_listens_to_all_of_it_unasked() {
        let held = |spec: &str, net: bool| {
            let spec = serde_yaml::from_str(&format!("{{ image: {{ name: host }}, {spec} }}")).unwrap();
            let set = wanted(&spec, Namespaces { net, ..Namespaces::default() }).unwrap();
            ["NET_RAW", "NET_ADMIN", "NET_BIND_SERVICE"].map(|name| has(set, name))
        };
        assert_eq!(held("", true), [true, false, true]);
        assert_eq!(held("", false), [false, false, true]);
        assert_eq!(held("capabilities: [NET_RAW]", false), [true, false, true]);
        assert_eq!(held("capabilities: [ALL]", false), [true, true, true]);
        assert_eq!(held("privileged: true", false), [true, true, true]);
        assert_eq!(held("cap_drop: [NET_RAW]", true), [false, false, true]);
    }

    #[test]
    fn what_is_dropped_is_missing_from_all_and_all_that_is_dropped_leaves_what_is_added() {
        let held = |spec: &str| {
            let spec = serde_yaml::from_str(&format!("{{ image: {{ name: host }}, {spec} }}")).unwrap();
            wanted(&spec, Namespaces { net: true, ..Namespaces::default() }).unwrap()
        };
        let bit = |name| bits(name).unwrap();
        let some = all() & !bit("NET_ADMIN") & !bit("SYS_ADMIN");
        assert_eq!(held("cap_add: [ALL], cap_drop: [NET_ADMIN, cap_sys_admin]"), some);
        assert_eq!(held("cap_add: [all, NET_ADMIN], cap_drop: [ALL, SYS_ADMIN, NET_ADMIN]"), some);
        assert_eq!(held("cap_add: [ALL], cap_drop: [ALL]"), all());
        assert_eq!(held("cap_add: [NET_ADMIN], cap_drop: [ALL]"), bit("NET_ADMIN"));
        assert_eq!(held("cap_drop: [CHOWN]"), default(true) & !bit("CHOWN"));
        assert_eq!(held("cap_add: [CHOWN], cap_drop: [CHOWN]"), default(true), "what is added by its name wins");
    }

    #[test]
    fn what_holds_is_told_with_the_words_of_instances_and_what_does_not_with_none() {
        let by = |probe: &Probe, control| report(probe).by.get(&control).cloned();
        let none = Probe::failed("x");
        assert_eq!(by(&none, Control::Seccomp), None);
        assert_eq!(by(&none, Control::MemoryLimit).as_deref(), Some("the supervisor, which looks every 250 ms"));
        assert_eq!(by(&none, Control::Suspend).as_deref(), Some("SIGSTOP and SIGCONT"));
        let some = Probe { namespaces: Ok(()), network: Ok(()), process_limit: Ok(()), seccomp: Ok(()), ..none };
        for (control, expected) in [
            (Control::PidNamespace, "process namespace"),
            (Control::NetworkIsolation, "network namespace; network full: shares the machine's network"),
            (Control::EgressFilter, "egress proxy, the only way out of its network namespace"),
            (Control::PidsLimit, "process limit"),
            (Control::Seccomp, "system-call filter"),
        ] {
            assert_eq!(by(&some, control).as_deref(), Some(expected), "{control}");
        }
    }

    #[test]
    fn what_landlock_alone_keeps_is_told_of_the_machine_as_of_an_instance() {
        let none = Probe::failed("x");
        let alone = Probe { landlock: Ok(Extent::Full), ..Probe::failed("x") };
        for (control, why) in [
            (Control::ReadOnlyRoot, "there are no mounts of its own: x"),
            (Control::NetworkIsolation, "only TCP is out of reach: x"),
        ] {
            assert_eq!(told(&none, control), Support::Absent { why: "x".to_owned() });
            assert_eq!(told(&alone, control), Support::Degraded { why: why.to_owned() });
            assert_eq!(report(&alone).by.get(&control).map(String::as_str), Some("Landlock"), "{control}");
            assert_eq!(
                told(&Probe { namespaces: Ok(()), network: Ok(()), ..alone.clone() }, control),
                Support::Enforced
            );
        }
    }

    #[test]
    fn what_a_root_without_capabilities_can_not_do_is_not_told_as_enforced() {
        let able = Probe {
            root: true,
            capability_drop: Ok(()),
            users: Ok(()),
            quota: Ok(()),
            seccomp: Ok(()),
            ..Probe::failed("x")
        };
        for control in [Control::CapabilityDrop, Control::User, Control::DiskLimit] {
            assert_eq!(told(&able, control), Support::Enforced, "{control}");
        }
        let no = || Err("no".to_owned());
        let unable = Probe { capability_drop: no(), users: no(), seccomp: no(), ..able };
        for control in [Control::CapabilityDrop, Control::User, Control::DiskLimit] {
            let Support::Degraded { why } = told(&unable, control) else { panic!("{control}") };
            assert!(why.ends_with("no"), "{why}");
        }
    }
}
