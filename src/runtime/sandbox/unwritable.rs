//! Keeps this program's file out of reach of what runs inside. Every process shows the file of its program as
//! `/proc/PID/exe`, and that link leads around all mounts: a root inside could write the program that the machine's
//! root runs next (CVE-2019-5736). The processes that become those inside are therefore executed from a read-only
//! mount of the file, or from a sealed copy in memory where such a mount can't be made.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{MemfdFlags, SealFlags, StatVfsMountFlags, fcntl_add_seals, fcntl_get_seals, fstatvfs, memfd_create};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::sys::{self, MountAttributes};

/// This program's own file.
const OWN: &str = "/proc/self/exe";

/// Executes this program anew from a file that can't be written, with the same arguments; returns at once where it runs
/// from one already.
///
/// # Errors
/// Neither way is possible here.
pub fn ensure() -> io::Result<()> {
    let own = File::open(OWN)?;
    if is_unwritable(&own)? {
        return Ok(());
    }
    let file = read_only_mount().or_else(|_| sealed_copy(own))?;
    Err(sys::execute_again(file.as_fd()))
}

fn is_unwritable(file: &File) -> io::Result<bool> {
    if fstatvfs(file)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(true);
    }
    Ok(fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::WRITE)))
}

/// A mount of the file alone, attached nowhere. Needs CAP_SYS_ADMIN.
fn read_only_mount() -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    // By its path: the link itself may lead to a mount of another namespace, which can't be copied.
    let path = std::env::current_exe()?;
    let tree = open_tree(rustix::fs::CWD, Path::new(&path), flags)?;
    let attributes = MountAttributes { read_only: true, no_suid: true, no_dev: true };
    sys::set_mount_attributes(tree.as_fd(), attributes, false)?;
    Ok(tree)
}

fn sealed_copy(mut own: File) -> io::Result<OwnedFd> {
    let copy = memfd_create("keel", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(copy);
    io::copy(&mut own, &mut file)?;
    fcntl_add_seals(&file, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    Ok(file.into())
}
