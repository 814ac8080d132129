//! What one container asks for and gets, from its inspection.

use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum, DeviceMapping, HostConfig};

use super::Inner;
use super::modes::{joins_another, seccomp_profile};
use super::observe::{IO_UNWEIGHED, NO_IO_WEIGHT};
use crate::runtime::enforcement::{bytes, cpus};
use crate::runtime::{
    Capabilities, Control, Enforcement, EnforcementState as State, ErrorKind, Result, RuntimeError, Support,
};
use crate::spec::{are_all_capabilities, is_root};
use crate::state::InstanceRef;

/// Docker's billionths of a processor in a thousandth.
const NANOS_PER_MILLI: u64 = 1_000_000;
/// Controls that containers of an engine never have.
pub(super) const MISSING: [Control; 3] = [Control::DiskLimit, Control::Landlock, Control::EgressFilter];
/// Why.
pub(super) const LACKS: &str = "the docker runtime does not have it";

impl Inner {
    pub(super) async fn enforcement(&self, instance: &InstanceRef) -> Result<Vec<Enforcement>> {
        let what = format!("inspecting {}", instance.id);
        if !self.owns(instance).await? {
            return Err(RuntimeError::new(ErrorKind::NotFound, format!("{what}: it does not exist")));
        }
        let capabilities = self.capabilities().await?;
        let found = self.inspection(&instance.runtime_id).await.map_err(|error| error.explain(&what))?;
        Ok(tell(&found, &capabilities))
    }
}

/// Every control of a container. Pure.
pub(super) fn tell(found: &ContainerInspectResponse, capabilities: &Capabilities) -> Vec<Enforcement> {
    let host = found.host_config.clone().unwrap_or_default();
    let status = found.state.as_ref().and_then(|state| state.status);
    let never_ran = status == Some(ContainerStateStatusEnum::CREATED);
    let one = |control: Control| {
        let Asked { words, by } = asked(control, found, &host);
        let state = match (by, capabilities.support(control)) {
            // An inspection does not tell whether they were asked for.
            (None, _) if MISSING.contains(&control) => State::Absent { why: LACKS.to_owned() },
            (None, _) if control == Control::IoLimit && words.is_some() => {
                State::Absent { why: IO_UNWEIGHED.to_owned() }
            }
            (None, _) => State::NotRequested { by: instead(control, &host) },
            (Some(by), Support::Enforced) => State::Enforced { by },
            (Some(by), Support::Degraded { why }) => State::Degraded { by, why },
            (Some(_), Support::Absent { why }) => State::Absent { why },
        };
        Enforcement::new(control, words, if never_ran { state.planned() } else { state })
    };
    Control::ALL.into_iter().map(one).collect()
}

/// What there is instead of a control that a container's settings switch off.
fn instead(control: Control, host: &HostConfig) -> Option<String> {
    match (control, host.network_mode.as_deref()) {
        (Control::NetworkIsolation, Some("host")) => Some("shares the machine's network".to_owned()),
        (Control::NetworkIsolation, Some(_)) => Some("shares the network of another container".to_owned()),
        _ => None,
    }
}

/// What a container's settings say of a control.
struct Asked {
    /// The setting.
    words: Option<String>,
    /// By what it is enforced; none where it asks for nothing.
    by: Option<String>,
}

fn asked(control: Control, found: &ContainerInspectResponse, host: &HostConfig) -> Asked {
    let limit = |set: Option<i64>, words: &dyn Fn(u64) -> String, name: &str| {
        let set = set.and_then(|set| u64::try_from(set).ok()).filter(|set| *set > 0);
        Asked { words: set.map(words), by: set.map(|set| format!("{name} = {set}")) }
    };
    match control {
        Control::MemoryLimit => limit(host.memory, &bytes, "Memory"),
        Control::CpuLimit => limit(host.nano_cpus, &|nanos| cpus(nanos / NANOS_PER_MILLI), "NanoCpus"),
        Control::PidsLimit => limit(host.pids_limit, &|limit| limit.to_string(), "PidsLimit"),
        Control::IoLimit => match label(found, NO_IO_WEIGHT) {
            Some(weight) => told(&format!("weight {weight}"), None),
            None => limit(host.blkio_weight.map(i64::from), &|weight| format!("weight {weight}"), "BlkioWeight"),
        },
        Control::PidNamespace => namespace(host.pid_mode.as_deref(), "process namespace"),
        Control::IpcNamespace => namespace(host.ipc_mode.as_deref(), "IPC namespace"),
        Control::UtsNamespace => namespace(host.uts_mode.as_deref(), "UTS namespace"),
        Control::CgroupNamespace => {
            let mode = host.cgroupns_mode.as_ref().map(ToString::to_string);
            namespace(mode.as_deref(), "cgroup namespace")
        }
        Control::NetworkIsolation => network(network_name(found, host)),
        Control::ReadOnlyRoot => match host.readonly_rootfs {
            Some(true) => told("read-only", Some("read-only mount")),
            _ => told("writable", None),
        },
        Control::Devices => devices(host),
        Control::Seccomp => seccomp(host),
        Control::CapabilityDrop => capability_sets(host),
        Control::User => {
            let user = found.config.as_ref().and_then(|config| config.user.clone()).filter(|user| !user.is_empty());
            let by = user.as_deref().filter(|user| !is_root(Some(user))).map(|user| format!("user {user}"));
            Asked { by, words: user }
        }
        Control::MountNamespace => told("own", Some("mount namespace")),
        Control::ServiceNames => {
            let name = network_name(found, host);
            let named =
                !matches!(name, "default" | "bridge" | "podman" | "host" | "none") && !name.starts_with("container:");
            Asked { words: None, by: named.then(|| format!("names on the network {name}")) }
        }
        Control::Suspend => Asked { words: None, by: Some("the engine's pause".to_owned()) },
        Control::Activity => Asked { words: None, by: Some("samples of the engine's statistics".to_owned()) },
        Control::DiskLimit | Control::Landlock | Control::EgressFilter => Asked { words: None, by: None },
    }
}

/// The network that a container is on, or its mode. Podman says `bridge` for every network, and its name beside it.
fn network_name<'a>(found: &'a ContainerInspectResponse, host: &'a HostConfig) -> &'a str {
    match host.network_mode.as_deref().unwrap_or("default") {
        mode @ "bridge" => {
            let networks = found.network_settings.as_ref().and_then(|settings| settings.networks.as_ref());
            networks.and_then(|networks| networks.keys().min()).map_or(mode, String::as_str)
        }
        mode => mode,
    }
}

fn label<'a>(found: &'a ContainerInspectResponse, name: &str) -> Option<&'a str> {
    found.config.as_ref()?.labels.as_ref()?.get(name).map(String::as_str)
}

fn told(words: &str, by: Option<&str>) -> Asked {
    Asked { words: Some(words.to_owned()), by: by.map(str::to_owned) }
}

/// A namespace of its own, unless the mode joins another one.
fn namespace(mode: Option<&str>, by: &str) -> Asked {
    match mode {
        Some(mode) if joins_another(Some(mode)) => told(mode, None),
        _ => told("own", Some(by)),
    }
}

fn network(mode: &str) -> Asked {
    match mode {
        "none" => told("none", Some("network namespace with nothing but loopback")),
        "host" => told("host", None),
        mode if mode.starts_with("container:") => told(mode, None),
        mode => told(mode, Some("network namespace on that network")),
    }
}

fn devices(host: &HostConfig) -> Asked {
    if host.privileged == Some(true) {
        return told("all (privileged)", None);
    }
    let node = |device: &DeviceMapping| {
        let path = device.path_in_container.as_deref().unwrap_or_default();
        format!("{path} {}", device.cgroup_permissions.as_deref().unwrap_or("rwm"))
    };
    let mut words: Vec<String> = host.devices.iter().flatten().map(node).collect();
    words.extend(host.device_requests.iter().flatten().map(|request| {
        format!("{} gpu {}", request.count.unwrap_or_default(), request.driver.as_deref().unwrap_or_default())
    }));
    let words = if words.is_empty() { "none".to_owned() } else { words.join(", ") };
    told(&words, Some("nodes of its own, and its control group"))
}

fn seccomp(host: &HostConfig) -> Asked {
    let written = host.security_opt.iter().flatten();
    let profile = written.filter_map(|option| seccomp_profile(option)).next();
    match profile {
        Some("unconfined") => told("unconfined", None),
        _ if host.privileged == Some(true) => told("unconfined (privileged)", None),
        Some(_) => told("a profile of its own", Some("system-call filter")),
        None => told("default", Some("system-call filter of the engine")),
    }
}

fn capability_sets(host: &HostConfig) -> Asked {
    if host.privileged == Some(true) {
        return told("all (privileged)", None);
    }
    let mut words = vec!["default".to_owned()];
    for (what, names) in [("without", &host.cap_drop), ("with", &host.cap_add)] {
        if let Some(names) = names.as_ref().filter(|names| !names.is_empty()) {
            words.push(format!("{what} {}", names.join(" ")));
        }
    }
    let list = |names: &Option<Vec<String>>| names.clone().unwrap_or_default();
    let holds = !are_all_capabilities(&list(&host.cap_add), &list(&host.cap_drop));
    told(&words.join(" "), holds.then_some("capability sets"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capabilities(absent: &[Control]) -> Capabilities {
        let support = |control: Control| match absent.contains(&control) {
            true => Support::Absent { why: "no group".to_owned() },
            false => Support::Enforced,
        };
        let controls = Control::ALL.into_iter().map(|control| (control, support(control))).collect();
        Capabilities { version: "engine".to_owned(), controls, ..Capabilities::default() }
    }

    /// One control of a container with this `HostConfig`, in one line.
    fn line(control: Control, host: serde_json::Value, absent: &[Control]) -> String {
        let found = serde_json::json!({ "Config": { "User": "1000" }, "HostConfig": host });
        let found: ContainerInspectResponse = serde_json::from_value(found).unwrap();
        let told = tell(&found, &capabilities(absent));
        let one = told.into_iter().find(|one| one.control == control).unwrap();
        let state = match one.state {
            State::Enforced { by } => format!("enforced {by}"),
            State::Degraded { by, why } => format!("degraded {by}: {why}"),
            State::Planned { by, .. } => format!("planned {by}"),
            State::Absent { why } => format!("absent {why}"),
            State::NotRequested { by: None } => "not requested".to_owned(),
            State::NotRequested { by: Some(by) } => format!("not requested {by}"),
        };
        format!("{} | {state}", one.requested.unwrap_or_default())
    }

    #[test]
    fn nothing_holds_yet_of_a_container_that_never_ran() {
        let state = |status: &str| {
            let found = serde_json::json!({ "State": { "Status": status }, "HostConfig": { "PidMode": "" } });
            let told = tell(&serde_json::from_value(found).unwrap(), &capabilities(&[]));
            told.into_iter().find(|one| one.control == Control::PidNamespace).unwrap().state
        };
        let by = "process namespace".to_owned();
        assert_eq!(state("created"), State::Planned { by: by.clone(), why: None });
        assert_eq!(state("exited"), State::Enforced { by });
    }

    #[test]
    fn what_was_asked_for_is_told_with_what_enforces_it() {
        use serde_json::json;
        for (control, host, expected) in [
            (Control::MemoryLimit, json!({ "Memory": 67_108_864 }), "64Mi | enforced Memory = 67108864"),
            (Control::MemoryLimit, json!({ "Memory": 0 }), " | not requested"),
            (Control::CpuLimit, json!({ "NanoCpus": 1_500_000_000_i64 }), "1.5 | enforced NanoCpus = 1500000000"),
            (Control::PidsLimit, json!({ "PidsLimit": -1 }), " | not requested"),
            (Control::PidNamespace, json!({ "PidMode": "" }), "own | enforced process namespace"),
            (Control::PidNamespace, json!({ "PidMode": "host" }), "host | not requested"),
            (
                Control::NetworkIsolation,
                json!({ "NetworkMode": "none" }),
                "none | enforced network namespace with nothing but loopback",
            ),
            (
                Control::NetworkIsolation,
                json!({ "NetworkMode": "host" }),
                "host | not requested shares the machine's network",
            ),
            (
                Control::NetworkIsolation,
                json!({ "NetworkMode": "container:x" }),
                "container:x | not requested shares the network of another container",
            ),
            (Control::ReadOnlyRoot, json!({ "ReadonlyRootfs": true }), "read-only | enforced read-only mount"),
            (Control::ReadOnlyRoot, json!({}), "writable | not requested"),
            (Control::Seccomp, json!({}), "default | enforced system-call filter of the engine"),
            (Control::Seccomp, json!({ "SecurityOpt": ["seccomp=unconfined"] }), "unconfined | not requested"),
            (Control::Seccomp, json!({ "Privileged": true }), "unconfined (privileged) | not requested"),
            (Control::CapabilityDrop, json!({ "CapDrop": ["ALL"] }), "default without ALL | enforced capability sets"),
            (Control::CapabilityDrop, json!({ "CapAdd": ["ALL"] }), "default with ALL | not requested"),
            (
                Control::CapabilityDrop,
                json!({ "CapAdd": ["ALL"], "CapDrop": ["SYS_ADMIN"] }),
                "default without SYS_ADMIN with ALL | enforced capability sets",
            ),
            (Control::CapabilityDrop, json!({ "Privileged": true }), "all (privileged) | not requested"),
            (Control::Devices, json!({}), "none | enforced nodes of its own, and its control group"),
            (
                Control::Devices,
                json!({ "Devices": [{ "PathInContainer": "/dev/a", "CgroupPermissions": "r" }] }),
                "/dev/a r | enforced nodes of its own, and its control group",
            ),
            (Control::Devices, json!({ "Privileged": true }), "all (privileged) | not requested"),
            (Control::User, json!({}), "1000 | enforced user 1000"),
            (Control::IpcNamespace, json!({ "IpcMode": "shareable" }), "own | enforced IPC namespace"),
            (Control::EgressFilter, json!({}), " | absent the docker runtime does not have it"),
        ] {
            assert_eq!(line(control, host, &[]), expected, "{control}");
        }
    }

    #[test]
    fn root_is_a_user_that_bounds_nothing() {
        for (user, expected) in [
            ("1000:0", State::Enforced { by: "user 1000:0".to_owned() }),
            ("00:5", State::NotRequested { by: None }),
            ("root", State::NotRequested { by: None }),
        ] {
            let found = serde_json::json!({ "Config": { "User": user } });
            let told = tell(&serde_json::from_value(found).unwrap(), &capabilities(&[]));
            let one = told.into_iter().find(|one| one.control == Control::User).unwrap();
            assert_eq!((one.requested.as_deref(), one.state), (Some(user), expected));
        }
    }

    #[test]
    fn a_network_is_told_by_its_name_also_where_podman_says_bridge() {
        for (mode, networks, words, names) in [
            ("keel_shop", "keel_shop", "keel_shop", Some("names on the network keel_shop")),
            ("bridge", "keel_shop", "keel_shop", Some("names on the network keel_shop")),
            ("bridge", "bridge", "bridge", None),
            ("bridge", "podman", "podman", None),
            ("container:x", "", "container:x", None),
            ("none", "none", "none", None),
        ] {
            let found = serde_json::json!({
                "HostConfig": { "NetworkMode": mode }, "NetworkSettings": { "Networks": { networks: {} } },
            });
            let found: ContainerInspectResponse = serde_json::from_value(found).unwrap();
            let host = found.host_config.clone().unwrap();
            let Asked { words: told, by: _ } = asked(Control::NetworkIsolation, &found, &host);
            let Asked { words: _, by } = asked(Control::ServiceNames, &found, &host);
            assert_eq!((told.as_deref(), by.as_deref()), (Some(words), names), "{mode}");
        }
    }

    #[test]
    fn a_weight_that_the_engine_left_out_is_absent() {
        let found = serde_json::json!({ "Config": { "Labels": { NO_IO_WEIGHT: "300" } }, "HostConfig": {} });
        let told = tell(&serde_json::from_value(found).unwrap(), &capabilities(&[]));
        let one = told.into_iter().find(|one| one.control == Control::IoLimit).unwrap();
        assert_eq!(one.requested.as_deref(), Some("weight 300"));
        assert_eq!(one.state, State::Absent { why: IO_UNWEIGHED.to_owned() });
    }

    #[test]
    fn every_control_is_told_once() {
        let told = tell(&ContainerInspectResponse::default(), &Capabilities::default());
        assert_eq!(told.iter().map(|one| one.control).collect::<Vec<_>>(), Control::ALL);
    }

    #[test]
    fn what_the_engine_can_not_do_is_absent_with_its_reason() {
        let host = serde_json::json!({ "Memory": 67_108_864 });
        assert_eq!(line(Control::MemoryLimit, host, &[Control::MemoryLimit]), "64Mi | absent no group");
        let told = line(Control::MemoryLimit, serde_json::json!({}), &[Control::MemoryLimit]);
        assert_eq!(told, " | not requested");
    }
}
