//! What an instance sees of control groups: its own, read-only, and no other.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, symlinkat};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::super::failure::{Context, Failure};
use super::super::inside::{Missing, attach, place, place_or_make};
use super::super::rootfs::tmpfs;
use super::super::sys::{MountAttributes, set_mount_attributes};
use super::groups::Groups;

/// Where programs look for control groups.
const PLACE: &str = "/sys/fs/cgroup";
/// Name of version 2 beside controllers of version 1, as systemd has it.
const UNIFIED: &str = "unified";
/// Size of the directory that holds hierarchies of version 1: names only.
const SIZE: &str = "64k";
const READ_ONLY: MountAttributes = MountAttributes { read_only: true, no_suid: true, no_dev: true };

/// Shows the groups of an instance in its root, over those of the machine. Works on mounts that the root does not have
/// yet: the machine's paths still have to be what they are.
///
/// # Errors
/// A mount fails.
pub fn show(root: &OwnedFd, groups: &Groups) -> Result<(), Failure> {
    // Without /sys there is nothing to cover.
    let Ok(found) = place(root.as_fd(), PLACE) else { return Ok(()) };
    if let (Some(group), true) = (&groups.unified, groups.legacy.is_empty()) {
        let tree = group_tree(&group.dir)?;
        return attach(&tree, &found).with_context(|| format!("mounting {PLACE}"));
    }
    let holder = tmpfs(SIZE, 0o755).with_context(|| format!("making {PLACE}"))?;
    attach(&holder, &found).with_context(|| format!("mounting {PLACE}"))?;
    let unified = groups.unified.iter().map(|group| (UNIFIED, group.dir.as_path()));
    let legacy = groups.legacy.iter().filter_map(|group| Some((hierarchy_name(&group.dir)?, group.dir.as_path())));
    for (name, dir) in unified.chain(legacy) {
        let tree = group_tree(dir)?;
        place_or_make(holder.as_fd(), &format!("/{name}"), Missing::Directory)
            .and_then(|place| attach(&tree, &place))
            .with_context(|| format!("mounting {PLACE}/{name}"))?;
        // Controllers that share a hierarchy are known by each of their names.
        for alias in name.split(',').filter(|alias| *alias != name) {
            symlinkat(name, holder.as_fd(), alias).with_context(|| format!("making {PLACE}/{alias}"))?;
        }
    }
    set_mount_attributes(holder.as_fd(), READ_ONLY, false).with_context(|| format!("making {PLACE} read-only"))
}

/// Name of the mount that a group of version 1 is in: its parent's parent.
fn hierarchy_name(dir: &Path) -> Option<&str> {
    dir.parent()?.parent()?.file_name()?.to_str()
}

/// A read-only mount that begins at a group.
fn group_tree(dir: &Path) -> Result<OwnedFd, Failure> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let opened = open_tree(CWD, dir, flags).map_err(std::io::Error::from);
    opened
        .and_then(|tree| set_mount_attributes(tree.as_fd(), READ_ONLY, false).map(|()| tree))
        .with_context(|| format!("showing the control group {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hierarchy_is_named_by_its_mount() {
        assert_eq!(hierarchy_name(Path::new("/sys/fs/cgroup/cpu,cpuacct/keel/x")), Some("cpu,cpuacct"));
        assert_eq!(hierarchy_name(Path::new("/x")), None);
    }
}
