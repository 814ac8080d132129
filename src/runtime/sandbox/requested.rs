//! What a spec asks of the controls, in its own words. Pure.

use std::collections::BTreeMap;

use super::cgroup::POOL_PIDS;
use super::network::{Wanted, asked};
use crate::runtime::enforcement::{bytes, cpus};
use crate::spec::{Control, ImageRef, OnIdle, SandboxNetwork, SeccompProfile, ServiceSpec, Storage};

/// What an instance has of its own without a word about it.
pub const OWN: &str = "own";
/// The network of its deployment.
pub const FULL: &str = "full";
/// The network of the machine.
pub const HOST: &str = "host";

/// What a spec asks of each control; what it says nothing of and gets nothing by default is left out.
pub fn requested(spec: &ServiceSpec) -> BTreeMap<Control, String> {
    let resources = spec.resources.clone().unwrap_or_default();
    let always = |mode: Option<&String>| Some(mode.map_or_else(|| OWN.to_owned(), Clone::clone));
    let pids = match resources.pids_limit {
        Some(limit) => (limit > 0).then_some(limit.unsigned_abs()),
        None => spec.pool.is_some().then_some(POOL_PIDS),
    };
    let idle = spec.lifecycle.as_ref();
    let asked = [
        (Control::MountNamespace, Some(OWN.to_owned())),
        (Control::PidNamespace, always(spec.pid_mode.as_ref())),
        (Control::IpcNamespace, always(spec.ipc_mode.as_ref())),
        (Control::UtsNamespace, always(spec.hostname.as_ref())),
        (Control::CgroupNamespace, Some(OWN.to_owned())),
        (Control::NetworkIsolation, Some(network(spec))),
        (Control::ReadOnlyRoot, Some(root(spec).to_owned())),
        (Control::MemoryLimit, resources.memory.map(|limit| bytes(limit.0))),
        (Control::CpuLimit, resources.cpu.map(|cpu| cpus(cpu.millis))),
        (Control::PidsLimit, pids.map(|limit| limit.to_string())),
        (Control::IoLimit, resources.blkio_weight.map(|weight| format!("weight {weight}"))),
        (Control::DiskLimit, disk(spec)),
        (Control::Devices, Some(devices(spec))),
        (Control::Seccomp, Some(seccomp(spec).to_owned())),
        (Control::Landlock, paths(spec)),
        (Control::EgressFilter, hosts(spec)),
        (Control::ServiceNames, names(spec)),
        (Control::CapabilityDrop, Some(capabilities(spec))),
        (Control::User, spec.user.clone()),
        (Control::Activity, idle.and_then(|idle| idle.max_idle).map(|time| format!("max_idle {time}"))),
        (
            Control::Suspend,
            idle.and_then(|idle| idle.on_idle).filter(|what| *what == OnIdle::Suspend).map(|_| "on_idle".to_owned()),
        ),
    ];
    asked.into_iter().filter_map(|(control, words)| Some((control, words?))).collect()
}

fn network(spec: &ServiceSpec) -> String {
    let sandbox = spec.sandbox.as_ref();
    match sandbox.map_or(0, |sandbox| sandbox.allow_hosts.len()) {
        _ if sandbox.is_some_and(|sandbox| sandbox.network == Some(SandboxNetwork::Loopback)) => "loopback".to_owned(),
        0 => match asked(spec) {
            Wanted::Nothing | Wanted::Itself => "none".to_owned(),
            Wanted::Deployment | Wanted::Connected => FULL.to_owned(),
            Wanted::Machine => HOST.to_owned(),
        },
        hosts => format!("allow_hosts ({hosts})"),
    }
}

fn names(spec: &ServiceSpec) -> Option<String> {
    (asked(spec) == Wanted::Deployment).then(|| "deployment".to_owned())
}

fn hosts(spec: &ServiceSpec) -> Option<String> {
    let hosts = &spec.sandbox.as_ref()?.allow_hosts;
    (!hosts.is_empty()).then(|| hosts.join(", "))
}

fn root(spec: &ServiceSpec) -> &'static str {
    let read_only = spec.read_only_root_fs == Some(true) || spec.image.name == ImageRef::Host;
    if read_only { "read-only" } else { "writable" }
}

fn disk(spec: &ServiceSpec) -> Option<String> {
    let sized = spec.storage.iter().filter_map(|storage| match storage {
        Storage::Named { name, size: Some(size), .. } => Some(format!("{name} {}", bytes(size.0))),
        _ => None,
    });
    let own = spec.resources.as_ref().and_then(|resources| resources.disk);
    let own = own.map(|size| format!("its own files {}", bytes(size.0)));
    let sized: Vec<String> = own.into_iter().chain(sized).collect();
    (!sized.is_empty()).then(|| sized.join(", "))
}

fn devices(spec: &ServiceSpec) -> String {
    let mut words: Vec<String> = spec
        .devices
        .iter()
        .map(|device| {
            let allowed = |allowed: Option<bool>, letter| if allowed == Some(false) { "" } else { letter };
            format!("{} {}{}", device.path, allowed(device.read, "r"), allowed(device.write, "w"))
        })
        .collect();
    if let Some(gpu) = spec.resources.as_ref().and_then(|resources| resources.gpu.as_ref()) {
        words.push(format!("{} gpu {}", gpu.count.unwrap_or(1), gpu.vendor.as_deref().unwrap_or("nvidia")));
    }
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

fn seccomp(spec: &ServiceSpec) -> &'static str {
    let written = spec.sandbox.as_ref().and_then(|sandbox| sandbox.seccomp);
    let off =
        spec.privileged == Some(true) || spec.security_opt.iter().any(|one| super::confinement::is_unconfined(one));
    match written {
        Some(SeccompProfile::Strict) => "strict",
        Some(SeccompProfile::Default) => "default",
        Some(SeccompProfile::Unconfined) => "unconfined",
        None if off => "unconfined",
        None => "default",
    }
}

fn paths(spec: &ServiceSpec) -> Option<String> {
    let sandbox = spec.sandbox.as_ref()?;
    let lists = [("readable", &sandbox.readable), ("writable", &sandbox.writable)];
    let written = lists.iter().filter(|(_, paths)| !paths.is_empty());
    let told: Vec<String> = written.map(|(name, paths)| format!("{name} {}", paths.join(" "))).collect();
    (!told.is_empty()).then(|| told.join(", "))
}

fn capabilities(spec: &ServiceSpec) -> String {
    if spec.privileged == Some(true) {
        return "all (privileged)".to_owned();
    }
    let mut words = vec!["default".to_owned()];
    for (what, names) in [("without", &spec.cap_drop), ("with", &spec.capabilities)] {
        if !names.is_empty() {
            words.push(format!("{what} {}", names.join(" ")));
        }
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(fields: &str) -> Vec<(Control, String)> {
        let text = format!("image: {{ name: 'dir:/r' }}\n{fields}");
        let of = |text: &str| requested(&serde_yaml::from_str(text).unwrap());
        let plain = of("image: { name: 'dir:/r' }");
        of(&text).into_iter().filter(|(control, words)| plain.get(control) != Some(words)).collect()
    }

    #[test]
    fn a_plain_spec_asks_for_what_every_instance_has() {
        let plain = requested(&serde_yaml::from_str("image: { name: 'dir:/r' }").unwrap());
        let words: Vec<String> = plain.iter().map(|(control, words)| format!("{control} {words}")).collect();
        assert_eq!(
            words,
            [
                "mount_namespace own",
                "pid_namespace own",
                "ipc_namespace own",
                "uts_namespace own",
                "cgroup_namespace own",
                "network_isolation full",
                "read_only_root writable",
                "devices none",
                "seccomp default",
                "capability_drop default",
                "service_names deployment",
            ]
        );
    }

    #[test]
    fn what_is_written_is_told_in_its_own_words() {
        for (fields, control, words) in [
            ("resources: { memory: 64Mi }", Control::MemoryLimit, "64Mi"),
            ("resources: { cpu: 1.5 }", Control::CpuLimit, "1.5"),
            ("resources: { pids_limit: 9 }", Control::PidsLimit, "9"),
            ("resources: { blkio_weight: 500 }", Control::IoLimit, "weight 500"),
            ("network_mode: none", Control::NetworkIsolation, "none"),
            ("sandbox: { network: loopback }", Control::NetworkIsolation, "loopback"),
            ("network_mode: host", Control::NetworkIsolation, "host"),
            ("read_only_root_fs: true", Control::ReadOnlyRoot, "read-only"),
            ("sandbox: { seccomp: strict }", Control::Seccomp, "strict"),
            ("security_opt: ['seccomp=unconfined']", Control::Seccomp, "unconfined"),
            ("sandbox: { readable: [/a, /b], writable: [/c] }", Control::Landlock, "readable /a /b, writable /c"),
            ("cap_drop: [ALL]\ncapabilities: [CHOWN]", Control::CapabilityDrop, "default without ALL with CHOWN"),
            ("user: '1000:5'", Control::User, "1000:5"),
            ("hostname: box", Control::UtsNamespace, "box"),
            ("storage: [{ type: named, name: d, target: /d, size: 1Gi }]", Control::DiskLimit, "d 1Gi"),
            ("resources: { disk: 2Gi }", Control::DiskLimit, "its own files 2Gi"),
            (
                "devices: [{ path: /dev/a, write: false }]\nresources: { gpu: { count: 2 } }",
                Control::Devices,
                "/dev/a r, 2 gpu nvidia",
            ),
            ("lifecycle: { on_idle: suspend }", Control::Suspend, "on_idle"),
        ] {
            assert_eq!(told(fields), [(control, words.to_owned())], "{fields}");
        }
    }

    #[test]
    fn a_limit_of_processes_below_one_is_none_and_pools_have_one() {
        assert_eq!(told("resources: { pids_limit: -1 }"), []);
        let pool = told("pool: {}");
        assert!(pool.contains(&(Control::PidsLimit, "2048".to_owned())), "{pool:?}");
        assert!(pool.contains(&(Control::NetworkIsolation, "none".to_owned())), "{pool:?}");
    }
}
