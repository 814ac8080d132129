//! Controls that a spec itself leaves out or switches off, whatever the machine enforces.

use super::capability::are_all_capabilities;
use super::network_access::NetworkAccess;
use super::{Control, ImageRef, NetworkMode, SeccompProfile, ServiceSpec, Storage};

/// What is wrong where nothing is dropped that a program could have.
pub const GIVES_ALL: &str =
    "ALL in capabilities (cap_add) gives every capability; name those it needs, or some in cap_drop";

/// What to write so that a control can hold for a spec; none where nothing in the spec is against it.
pub fn left_out(control: Control, spec: &ServiceSpec) -> Option<&'static str> {
    let resources = spec.resources.clone().unwrap_or_default();
    let why = match control {
        Control::Seccomp if switches_filter_off(spec) => "the spec switches the system-call filter off",
        Control::NetworkIsolation if spec.network_access() == NetworkAccess::Mode(NetworkMode::Host) => {
            "write sandbox.network: none"
        }
        Control::EgressFilter if !filters_hosts(spec) => "write sandbox.allow_hosts",
        Control::ServiceNames if spec.network_access() != NetworkAccess::Mode(NetworkMode::Default) => {
            "the spec gives it another network than that of its deployment"
        }
        Control::CapabilityDrop if spec.privileged == Some(true) => {
            "privileged: true gives every capability; remove it"
        }
        Control::CapabilityDrop if are_all_capabilities(&spec.capabilities, &spec.cap_drop) => GIVES_ALL,
        Control::User if is_root(spec.user.as_deref()) => "write a user other than root",
        Control::MemoryLimit if resources.memory.is_none() => "write resources.memory",
        Control::CpuLimit if resources.cpu.is_none() => "write resources.cpu",
        Control::PidsLimit if resources.pids_limit.is_none_or(|limit| limit <= 0) => "write resources.pids_limit",
        Control::IoLimit if resources.blkio_weight.is_none() => "write resources.blkio_weight",
        Control::DiskLimit if resources.disk.is_none() && !spec.storage.iter().any(has_size) => {
            "write resources.disk, or the size of a named volume"
        }
        Control::ReadOnlyRoot if spec.image.name != ImageRef::Host && spec.read_only_root_fs != Some(true) => {
            "write read_only_root_fs: true"
        }
        _ => return None,
    };
    Some(why)
}

fn switches_filter_off(spec: &ServiceSpec) -> bool {
    let unconfined = |option: &String| matches!(option.as_str(), "seccomp=unconfined" | "seccomp:unconfined");
    match spec.sandbox.as_ref().and_then(|sandbox| sandbox.seccomp) {
        Some(profile) => profile == SeccompProfile::Unconfined,
        None => spec.privileged == Some(true) || spec.security_opt.iter().any(unconfined),
    }
}

fn filters_hosts(spec: &ServiceSpec) -> bool {
    spec.network_mode() != NetworkMode::None && spec.sandbox.iter().any(|sandbox| !sandbox.allow_hosts.is_empty())
}

const fn has_size(storage: &Storage) -> bool {
    matches!(storage, Storage::Named { size: Some(_), .. })
}

/// Whether a `user` (`USER` or `USER:GROUP`) means root, as none does. Another name may be root in the image all the same,
/// which only its `/etc/passwd` tells.
pub fn is_root(user: Option<&str>) -> bool {
    let name = user.and_then(|user| user.split(':').next()).unwrap_or_default();
    // Engines read numbers with a sign as well.
    let number = name.strip_prefix(['+', '-']).unwrap_or(name);
    name == "root" || number.bytes().all(|digit| digit == b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(fields: &str, control: Control) -> Option<&'static str> {
        left_out(control, &serde_yaml::from_str(&format!("image: {{ name: 'dir:/r' }}\n{fields}")).unwrap())
    }

    #[test]
    fn what_is_written_is_not_left_out() {
        for (control, fields) in [
            (Control::EgressFilter, "sandbox: { allow_hosts: [a.example] }"),
            (Control::User, "user: web"),
            (Control::MemoryLimit, "resources: { memory: 1Gi }"),
            (Control::CpuLimit, "resources: { cpu: 1 }"),
            (Control::PidsLimit, "resources: { pids_limit: 5 }"),
            (Control::IoLimit, "resources: { blkio_weight: 10 }"),
            (Control::DiskLimit, "resources: { disk: 1Gi }"),
            (Control::DiskLimit, "storage: [{ type: named, name: d, target: /d, size: 1Gi }]"),
            (Control::ReadOnlyRoot, "read_only_root_fs: true"),
        ] {
            assert_eq!(told(fields, control), None, "{fields}");
            assert!(told("", control).is_some_and(|why| why.starts_with("write ")), "{control}");
        }
        assert_eq!(left_out(Control::ReadOnlyRoot, &serde_yaml::from_str("image: { name: host }").unwrap()), None);
    }

    #[test]
    fn what_is_switched_off_is_told() {
        for (control, fields) in [
            (Control::Seccomp, "privileged: true"),
            (Control::Seccomp, "security_opt: ['seccomp=unconfined']"),
            (Control::Seccomp, "sandbox: { seccomp: unconfined }"),
            (Control::CapabilityDrop, "privileged: true"),
            (Control::CapabilityDrop, "cap_add: [ALL]"),
            (Control::NetworkIsolation, "network_mode: host"),
            (Control::ServiceNames, "network_mode: host"),
            (Control::ServiceNames, "sandbox: { network: none }"),
            (Control::PidsLimit, "resources: { pids_limit: -1 }"),
            (Control::DiskLimit, "storage: [{ type: named, name: d, target: /d }]"),
            (Control::User, "user: '0:5'"),
            (Control::EgressFilter, "network_mode: none\nsandbox: { allow_hosts: [a.example] }"),
        ] {
            assert!(told(fields, control).is_some(), "{control}: {fields}");
        }
        assert_eq!(told("privileged: true\nsandbox: { seccomp: default }", Control::Seccomp), None);
        assert_eq!(told("cap_add: [ALL]\ncap_drop: [SYS_ADMIN]", Control::CapabilityDrop), None);
        assert_eq!(told("", Control::Suspend), None);
    }

    #[test]
    fn no_user_is_root() {
        for (user, root) in [
            (None, true),
            (Some("0:5"), true),
            (Some("00"), true),
            (Some("000:web"), true),
            (Some("+0"), true),
            (Some("-00:5"), true),
            (Some("root"), true),
            (Some(":5"), true),
            (Some("web:0"), false),
            (Some("10"), false),
            (Some("010"), false),
            (Some("0web"), false),
        ] {
            assert_eq!(is_root(user), root, "{user:?}");
        }
    }
}
