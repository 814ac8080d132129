//! /sys of an instance: the kernel's devices as its own network namespace has them, to be read only.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::mount::MountAttrFlags;

use super::failure::{Context, Failure};
use super::inside::{Missing, attach, place, place_or_make};
use super::rootfs::{GUARDED, clone_tree, cover, new_fs, tmpfs};
use super::skeleton::Tree;
use super::sys::{MountAttributes, set_mount_attributes};

/// Where other file systems of the kernel are mounted in the machine's /sys: they show or direct more of the kernel than a
/// program needs. Control groups are covered on their own.
const OTHERS: &[&str] = &[
    "/sys/firmware/efi/efivars",
    "/sys/fs/bpf",
    "/sys/fs/fuse/connections",
    "/sys/fs/pstore",
    "/sys/fs/resctrl",
    "/sys/fs/selinux",
    "/sys/fs/smackfs",
    "/sys/kernel/config",
    "/sys/kernel/debug",
    "/sys/kernel/security",
    "/sys/kernel/tracing",
];
/// What programs learn the number of processors and memory nodes from.
const SYSTEM: &str = "/devices/system";
/// Where control groups are shown.
const GROUPS: &str = "/fs/cgroup";
/// Size of a /sys that holds mount points alone.
const SIZE: &str = "64k";
const READ_ONLY: MountAttributes = MountAttributes { read_only: true, no_suid: true, no_dev: true };

/// Mounts /sys. A new one shows the interfaces of this process's network namespace and nothing that the machine mounts in
/// its own; the kernel refuses one to a user namespace that has no network namespace of its own, or that can't see the
/// machine's /sys as a whole. Then
///
/// - with a network of its own there is next to nothing in it, as the machine's /sys would show the machine's network;
/// - with the machine's network there is a copy of the machine's, without what is mounted in it. It shows no more of the
///   network than the program sees anyway, and graphics processors are not found without it.
///
/// # Errors
/// A mount fails.
pub fn mount(tree: &mut Tree, own_network: bool) -> Result<(), Failure> {
    if let Ok(sys) = new_fs("sysfs", &[], GUARDED | MountAttrFlags::MOUNT_ATTR_RDONLY) {
        return tree.show(&sys, "/sys", Missing::Directory);
    }
    if own_network {
        return mount_little(tree);
    }
    let Ok(sys) = clone_tree(Path::new("/sys")) else { return Ok(()) };
    set_mount_attributes(sys.as_fd(), READ_ONLY, true).context("making /sys read-only")?;
    tree.show(&sys, "/sys", Missing::Directory)?;
    for path in OTHERS {
        let Ok(found) = place(tree.root(), path) else { continue };
        cover(&found).with_context(|| format!("covering {path}"))?;
    }
    Ok(())
}

fn mount_little(tree: &mut Tree) -> Result<(), Failure> {
    let sys = tmpfs(SIZE, 0o755).context("making /sys")?;
    tree.show(&sys, "/sys", Missing::Directory)?;
    if let Ok(system) = clone_tree(&Path::new("/sys").join(SYSTEM.trim_start_matches('/'))) {
        set_mount_attributes(system.as_fd(), READ_ONLY, true).context("making /sys read-only")?;
        show_in(&sys, &system, SYSTEM)?;
    }
    place_or_make(sys.as_fd(), GROUPS, Missing::Directory).context("making /sys/fs/cgroup")?;
    set_mount_attributes(sys.as_fd(), READ_ONLY, false).context("making /sys read-only")
}

fn show_in(sys: &OwnedFd, mount: &OwnedFd, path: &str) -> Result<(), Failure> {
    place_or_make(sys.as_fd(), path, Missing::Directory)
        .and_then(|place| attach(mount, &place))
        .with_context(|| format!("mounting /sys{path}"))
}
