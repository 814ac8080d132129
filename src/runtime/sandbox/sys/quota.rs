//! Quotas of projects: system calls that neither the standard library nor rustix offers as safe functions.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct fsxattr` of linux/fs.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    copy_extent_size: u32,
    padding: [u8; 8],
}

/// `FS_IOC_FSGETXATTR`.
const GET_ATTRIBUTES: libc::Ioctl = request(2, 31);
/// `FS_IOC_FSSETXATTR`.
const SET_ATTRIBUTES: libc::Ioctl = request(1, 32);
/// `FS_XFLAG_PROJINHERIT`: what is made in a directory belongs to its project.
const INHERIT: u32 = 0x200;
/// `Q_SETQUOTA` for quotas of projects.
const SET_QUOTA: u32 = (0x80_0008 << 8) | 2;
/// `QIF_BLIMITS`: only limits of space are set.
const SPACE_LIMITS: u32 = 1;
/// Unit of limits in `struct dqblk`, in bytes.
const BLOCK: u64 = 1024;

/// Number of an ioctl of group `X` with `struct fsxattr`; the direction is 1 for writing and 2 for reading.
const fn request(direction: libc::Ioctl, number: libc::Ioctl) -> libc::Ioctl {
    (direction << 30) | ((size_of::<Attributes>() as libc::Ioctl) << 16) | (0x58 << 8) | number
}

fn attributes(dir: BorrowedFd<'_>) -> io::Result<Attributes> {
    let mut found = Attributes::default();
    // SAFETY: the kernel writes a structure of the size that is part of the number; `found` is one and outlives the call.
    let result = unsafe { libc::ioctl(dir.as_raw_fd(), GET_ATTRIBUTES, &raw mut found) };
    if result == 0 { Ok(found) } else { Err(io::Error::last_os_error()) }
}

/// The project that a directory, and what is made in it, belongs to.
///
/// # Errors
/// Its file system knows no projects.
pub fn project(dir: BorrowedFd<'_>) -> io::Result<u32> {
    attributes(dir).map(|found| found.project)
}

/// Has a directory, and what is made in it from now on, belong to a project.
///
/// # Errors
/// Its file system knows no projects, or this process may not change them.
pub fn set_project(dir: BorrowedFd<'_>, project: u32) -> io::Result<()> {
    let wanted = Attributes { project, flags: INHERIT, ..attributes(dir)? };
    // SAFETY: the kernel reads a structure of the size that is part of the number; `wanted` is one and outlives the call.
    let result = unsafe { libc::ioctl(dir.as_raw_fd(), SET_ATTRIBUTES, &raw const wanted) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Limits the space of a project on the file system of `dir`, in bytes; 0 is no limit. quotactl_fd(2), Linux 5.14.
///
/// # Errors
/// The file system keeps no quotas of projects, or this process may not set them.
pub fn limit_project(dir: BorrowedFd<'_>, project: u32, bytes: u64) -> io::Result<()> {
    // SAFETY: an all-zero dqblk is a valid value: plain integers.
    let mut limits: libc::dqblk = unsafe { MaybeUninit::zeroed().assume_init() };
    limits.dqb_bhardlimit = bytes.div_ceil(BLOCK);
    limits.dqb_valid = SPACE_LIMITS;
    // SAFETY: for this command the kernel reads a dqblk, which outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_quotactl_fd, dir.as_raw_fd(), SET_QUOTA, project, &raw const limits) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
