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

/// How many capabilities of all an instance has: those that it was left, without what keel itself lacks, once `held` by its
/// program is known.
pub fn capabilities(left: u64, held: Option<u64>, all: u64) -> String {
    let (given, all) = (held.unwrap_or(left).count_ones(), all.count_ones());
    match held.map_or(0, |held| (left & !held).count_ones()) {
        0 => format!("of {given} of {all}"),
        lacking => format!("of {given} of {all}, as keel itself lacks {lacking} of those that it was left"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_counted_as_the_program_has_them() {
        assert_eq!(capabilities(0b0111, None, 0b1111), "of 3 of 4");
        assert_eq!(capabilities(0b0111, Some(0b0111), 0b1111), "of 3 of 4");
        let lacking = "of 2 of 4, as keel itself lacks 1 of those that it was left";
        assert_eq!(capabilities(0b0111, Some(0b0101), 0b1111), lacking);
    }
}
