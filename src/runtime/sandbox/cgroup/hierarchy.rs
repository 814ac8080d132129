//! Which control-group hierarchies a process sees, and where it is in them: read from the texts of
//! `/proc/self/mountinfo` and `/proc/self/cgroup`. Pure.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::mountinfo::{self, Mounted};

/// A resource controller, by the name that both versions of control groups know it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Controller {
    /// Memory and swap.
    Memory,
    /// Shares and quota of processor time.
    Cpu,
    /// Which processors.
    Cpuset,
    /// Number of processes and threads.
    Pids,
    /// Disks; `blkio` in version 1.
    Io,
    /// Access to devices; version 1 only, as version 2 has programs for it.
    Devices,
    /// Freezing; version 1 only, as version 2 has it without a controller.
    Freezer,
}

impl Controller {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Memory, Self::Cpu, Self::Cpuset, Self::Pids, Self::Io, Self::Devices, Self::Freezer];

    /// Its name in version 1: a mount option.
    pub const fn legacy_name(self) -> &'static str {
        match self {
            Self::Io => "blkio",
            Self::Freezer => "freezer",
            Self::Devices => "devices",
            _ => self.unified_name(),
        }
    }

    /// Its name in version 2: a word of `cgroup.controllers`.
    pub const fn unified_name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Cpuset => "cpuset",
            Self::Pids => "pids",
            Self::Io => "io",
            Self::Devices | Self::Freezer => "",
        }
    }
}

/// The hierarchies of a machine as one process sees them. A hybrid machine has both kinds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hierarchies {
    /// The one of version 2.
    pub unified: Option<Hierarchy>,
    /// Those of version 1 with a controller that is known here.
    pub legacy: Vec<Hierarchy>,
}

/// One hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Controllers that are mounted with it; none in version 2, whose directories name theirs.
    pub controllers: Vec<Controller>,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// The process's own group, relative to the mount; absent where it lies outside of what is mounted.
    pub own: Option<PathBuf>,
}

impl Hierarchy {
    /// Directory of the process's own group.
    pub fn own_dir(&self) -> Option<PathBuf> {
        self.own.as_ref().map(|own| self.mount.join(own))
    }
}

/// Reads the hierarchies from the texts of mountinfo and cgroup (proc(5), cgroups(7)). Lines that are not understood
/// are left out.
pub fn parse(mountinfo: impl AsRef<[u8]>, cgroup: &str) -> Hierarchies {
    let mounts = mountinfo::parse(mountinfo.as_ref());
    let mut found = Hierarchies::default();
    for mount in mounts.iter().filter(|mount| !is_covered(mount, &mounts)) {
        match mount.kind.as_str() {
            "cgroup2" if found.unified.is_none() => {
                let own = own_path(cgroup, |controllers| controllers.is_empty());
                found.unified = Some(hierarchy(mount, Vec::new(), own));
            }
            "cgroup" => {
                let controllers: Vec<Controller> = Controller::ALL
                    .into_iter()
                    .filter(|known| mount.options.split(',').any(|option| option == known.legacy_name()))
                    .collect();
                let Some(first) = controllers.first() else { continue };
                if found.legacy.iter().any(|other| other.controllers == controllers) {
                    continue;
                }
                let own = own_path(cgroup, |names| names.split(',').any(|name| name == first.legacy_name()));
                found.legacy.push(hierarchy(mount, controllers, own));
            }
            _ => {}
        }
    }
    found
}

/// Whether another mount lies over this one: one on the way to it, or at its own place, that it is not below.
fn is_covered(one: &Mounted, all: &[Mounted]) -> bool {
    let mut way = vec![one.number];
    let mut below = one.parent;
    while let Some(mount) = all.iter().find(|mount| mount.number == below && !way.contains(&below)) {
        way.push(mount.number);
        below = mount.parent;
    }
    all.iter()
        .any(|other| !way.contains(&other.number) && way.contains(&other.parent) && one.place.starts_with(&other.place))
}

fn hierarchy(mount: &Mounted, controllers: Vec<Controller>, own: Option<&str>) -> Hierarchy {
    // A path that leads upwards is outside of this process's cgroup namespace.
    let own = own.filter(|own| !own.starts_with("/.."));
    let own = own.and_then(|own| Path::new(own).strip_prefix(&mount.root).ok().map(Path::to_owned));
    Hierarchy { controllers, mount: mount.place.clone(), own }
}

/// Path of the first line of `/proc/self/cgroup` whose controllers match.
fn own_path(cgroup: &str, wanted: impl Fn(&str) -> bool) -> Option<&str> {
    cgroup.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        wanted(controllers).then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy(controllers: &[Controller], mount: &str, own: Option<&str>) -> Hierarchy {
        Hierarchy { controllers: controllers.to_vec(), mount: mount.into(), own: own.map(Into::into) }
    }

    #[test]
    fn a_machine_with_version_2_alone() {
        let mountinfo = "\
23 29 0:22 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
29 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw,errors=remount-ro
31 23 0:27 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
32 23 0:28 / /sys/fs/pstore rw,nosuid,nodev,noexec,relatime shared:10 - pstore pstore rw";
        let found = parse(mountinfo, "0::/user.slice/user-1000.slice/session-3.scope\n");
        let own = Some("user.slice/user-1000.slice/session-3.scope");
        let unified = Some(hierarchy(&[], "/sys/fs/cgroup", own));
        assert_eq!(found, Hierarchies { unified, legacy: Vec::new() });
    }

    #[test]
    fn a_machine_with_version_1_alone_and_controllers_that_share_a_mount() {
        let mountinfo = "\
25 20 0:21 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:8 - tmpfs tmpfs ro,mode=755
26 25 0:22 / /sys/fs/cgroup/systemd rw,nosuid shared:9 - cgroup cgroup rw,xattr,name=systemd
28 25 0:24 / /sys/fs/cgroup/memory rw,nosuid,nodev,noexec,relatime shared:11 - cgroup cgroup rw,memory
29 25 0:25 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid,nodev,noexec,relatime shared:12 - cgroup cgroup rw,cpu,cpuacct
30 25 0:26 / /sys/fs/cgroup/net_cls,net_prio rw shared:13 - cgroup cgroup rw,net_cls,net_prio
31 25 0:27 / /sys/fs/cgroup/freezer rw,nosuid shared:14 - cgroup cgroup rw,freezer";
        let cgroup = "\
12:freezer:/
11:memory:/system.slice/keel.service
4:cpu,cpuacct:/system.slice/keel.service
3:net_cls,net_prio:/
1:name=systemd:/system.slice/keel.service";
        let own = Some("system.slice/keel.service");
        let legacy = vec![
            hierarchy(&[Controller::Memory], "/sys/fs/cgroup/memory", own),
            hierarchy(&[Controller::Cpu], "/sys/fs/cgroup/cpu,cpuacct", own),
            hierarchy(&[Controller::Freezer], "/sys/fs/cgroup/freezer", Some("")),
        ];
        assert_eq!(parse(mountinfo, cgroup), Hierarchies { unified: None, legacy });
    }

    #[test]
    fn a_hybrid_machine_has_both() {
        let mountinfo = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
38 31 0:35 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
        let cgroup = "7:blkio:/\n4:memory:/jobs/c9aa434c\n2:cpuacct:/\n1:cpu:/\n0::/\n";
        let found = parse(mountinfo, cgroup);
        assert_eq!(found.unified, Some(hierarchy(&[], "/sys/fs/cgroup/unified", Some(""))));
        let legacy = [
            hierarchy(&[Controller::Cpu], "/sys/fs/cgroup/cpu", Some("")),
            hierarchy(&[Controller::Memory], "/sys/fs/cgroup/memory", Some("jobs/c9aa434c")),
            hierarchy(&[Controller::Io], "/sys/fs/cgroup/blkio", Some("")),
        ];
        assert_eq!(found.legacy, legacy);
    }

    #[test]
    fn inside_a_container_with_a_namespace_the_own_group_is_the_root() {
        let mountinfo =
            "1030 1029 0:27 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate";
        let unified = parse(mountinfo, "0::/\n").unified.unwrap();
        assert_eq!(unified.own_dir(), Some(PathBuf::from("/sys/fs/cgroup/")));
    }

    #[test]
    fn inside_a_container_without_a_namespace_the_mount_begins_at_its_group() {
        let mountinfo = "\
700 699 0:60 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - tmpfs tmpfs rw,mode=755
701 700 0:24 /docker/4f5e /sys/fs/cgroup/memory ro,nosuid,nodev,noexec master:11 - cgroup cgroup rw,memory
702 700 0:25 /docker/4f5e /sys/fs/cgroup/pids ro,nosuid,nodev,noexec master:12 - cgroup cgroup rw,pids";
        let found = parse(mountinfo, "11:memory:/docker/4f5e\n5:pids:/docker/4f5e/inner\n");
        let legacy = [
            hierarchy(&[Controller::Memory], "/sys/fs/cgroup/memory", Some("")),
            hierarchy(&[Controller::Pids], "/sys/fs/cgroup/pids", Some("inner")),
        ];
        assert_eq!(found.legacy, legacy);
    }

    #[test]
    fn a_group_outside_of_the_namespace_or_the_mount_is_nowhere() {
        let mountinfo = "1030 1029 0:27 /other /sys/fs/cgroup rw - cgroup2 cgroup rw";
        assert_eq!(parse(mountinfo, "0::/mine\n").unified.unwrap().own, None);
        let mountinfo = "1030 1029 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup rw";
        assert_eq!(parse(mountinfo, "0::/../sibling\n").unified.unwrap().own, None);
    }

    #[test]
    fn a_mount_that_another_one_covers_is_not_there() {
        let mountinfo = "\
23 29 0:22 / /sys rw - sysfs sysfs rw
30 23 0:29 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
31 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
90 31 0:60 / /sys/fs/cgroup rw - tmpfs tmpfs rw
91 90 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
92 90 0:29 / /mnt/again rw - cgroup cgroup rw,memory";
        let found = parse(mountinfo, "4:memory:/\n0::/\n");
        assert_eq!(found.unified, None);
        assert_eq!(found.legacy, [hierarchy(&[Controller::Memory], "/sys/fs/cgroup/memory", Some(""))]);
    }

    #[test]
    fn blanks_in_paths_and_broken_lines() {
        let mountinfo = "\
nonsense
40 31 0:27 / /mnt/with\\040blank rw master:1 propagate_from:2 - cgroup2 none rw
41 31 0:28 / /mnt/x rw shared:1";
        let unified = parse(mountinfo, "").unified.unwrap();
        assert_eq!((unified.mount, unified.own), (PathBuf::from("/mnt/with blank"), None));
        assert_eq!(parse("", "0::/\n"), Hierarchies::default());
    }
}
