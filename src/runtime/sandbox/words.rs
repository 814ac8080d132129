//! By what controls are enforced, in words: the same ones for a machine (`keel doctor`) and for an instance on it
//! (`keel describe`), which tells besides what is its own. Pure.

use super::cgroup::MEMORY_WATCH_INTERVAL;
use crate::spec::Control;

/// What stops an instance where there is no freezer.
pub const SIGNALS: &str = "SIGSTOP and SIGCONT";
/// What bounds processes without a control group.
pub const PROCESS_LIMIT: &str = "process limit";
/// What the limits of control groups are told to hold by.
pub const GROUP: &str = "cgroup";

/// By what a control is enforced that is not done in another way.
pub const fn by(control: Control) -> &'static str {
    match control {
        Control::MountNamespace => "mount namespace",
        Control::PidNamespace => "process namespace",
        Control::IpcNamespace => "IPC namespace",
        Control::UtsNamespace => "UTS namespace",
        Control::CgroupNamespace => "cgroup namespace",
        Control::NetworkIsolation => "network namespace",
        Control::ReadOnlyRoot => "read-only mount",
        Control::MemoryLimit | Control::CpuLimit | Control::PidsLimit | Control::IoLimit => GROUP,
        Control::DiskLimit => "project quota",
        Control::Devices => "nodes of its own",
        Control::Seccomp => "system-call filter",
        Control::Landlock => "Landlock",
        Control::CapabilityDrop => "bounding set",
        Control::User => "user and group",
        Control::EgressFilter => "egress proxy, the only way out of its network namespace",
        Control::ServiceNames => "hosts file of the bridge",
        Control::Activity => "samples of its processor time, its network and the connections to it",
        Control::Suspend => "freezer of its control group",
    }
}

/// What Landlock leaves to be wished where a program has the machine's mounts, which `why` tells.
pub fn without_mounts(why: &str) -> String {
    format!("there are no mounts of its own: {why}")
}

/// What Landlock leaves to be wished where a program has the machine's network, which `why` tells.
pub fn only_tcp(why: &str) -> String {
    format!("only TCP is out of reach: {why}")
}

/// What keeps a limit of memory without a control group.
pub fn memory_watch() -> String {
    format!("the supervisor, which looks every {} ms", MEMORY_WATCH_INTERVAL.as_millis())
}
