//! Sizes of volumes and of what an instance writes: quotas of projects, which ext4 and XFS keep where they are mounted so (`prjquota`).

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::capabilities::has;
use super::sys::quota::{limit_project, project, set_project};
use crate::spec::SeccompProfile;

/// Numbers of projects that are ours have this bit: those that an administrator writes into /etc/projid are small.
const OURS: u32 = 0x8000_0000;
/// Size that the probe sets, in bytes, and exceeds.
const TRIED: usize = 1 << 20;

/// What it means for a limit that no system-call filter holds.
pub const NO_FILTER: &str = "no system-call filter keeps the program from taking files out of the limit";

/// How a program with this filter and these capabilities could write past a limit; none where it can't.
pub fn lifted_by(filter: Option<SeccompProfile>, capabilities: u64) -> Option<&'static str> {
    match filter {
        None | Some(SeccompProfile::Unconfined) => Some(NO_FILTER),
        Some(_) if has(capabilities, "SYS_RESOURCE") => {
            Some("the kernel keeps no quota for a program with SYS_RESOURCE")
        }
        Some(_) if has(capabilities, "SYS_ADMIN") => Some("a program with SYS_ADMIN may change quotas"),
        Some(SeccompProfile::Default | SeccompProfile::Strict) => None,
    }
}

/// The project of a directory: the lower 31 bits of its own number. No two directories of ext4 share one; on XFS, whose
/// numbers may have more bits, two could in principle, and would then be counted together.
fn project_of(dir: &File) -> io::Result<u32> {
    let inode = u32::try_from(dir.metadata()?.ino() & u64::from(!OURS)).unwrap_or_default();
    Ok(OURS | inode)
}

/// What to do where a limit would not hold for all that is there.
const UNCOUNTED: &str = "it holds files that were made without a limit, which would not count; put them into a volume of \
                         another name that has a size from its first start on, or remove the size";

/// Holds what is in a directory to a size. It must be empty, or have been limited so before.
///
/// # Errors
/// The file system keeps no quotas of projects, or there are files that it would not count.
pub fn limit(dir: &Path, bytes: u64) -> io::Result<()> {
    limit_together(dir, &[dir.to_owned()], bytes)
}

/// Holds what is in several directories of one file system to a size, together, under the number of the directory that
/// they belong to. Each must be empty, or have been limited so before.
///
/// # Errors
/// As with [`limit`].
pub fn limit_together(owner: &Path, parts: &[PathBuf], bytes: u64) -> io::Result<()> {
    let owner = File::open(owner)?;
    let own = project_of(&owner)?;
    for part in parts {
        let opened = File::open(part)?;
        if project(opened.as_fd())? != own {
            if fs::read_dir(part)?.next().is_some() {
                return Err(io::Error::new(ErrorKind::InvalidInput, UNCOUNTED));
            }
            set_project(opened.as_fd(), own)?;
        }
    }
    limit_project(owner.as_fd(), own, bytes)
}

/// Whether a directory was held to a size before; what was made in it since is counted.
pub fn is_counted(dir: &Path) -> bool {
    File::open(dir).is_ok_and(|opened| belongs(&opened, &opened))
}

fn belongs(part: &File, owner: &File) -> bool {
    matches!((project_of(owner), project(part.as_fd())), (Ok(own), Ok(held)) if own == held)
}

/// Takes the limit of a directory away, so that nothing of it is left in the file system's books. One without is success.
pub fn release(dir: &Path) {
    release_together(dir, &[dir.to_owned()]);
}

/// Takes the limit of several directories away, as [`limit_together`] gave it.
pub fn release_together(owner: &Path, parts: &[PathBuf]) {
    let Ok(owner) = File::open(owner) else { return };
    if parts.iter().any(|part| File::open(part).is_ok_and(|part| belongs(&part, &owner)))
        && let Ok(own) = project_of(&owner)
    {
        let _ = limit_project(owner.as_fd(), own, 0);
    }
}

/// Whether a limit is kept for files in this directory, found out by exceeding one. Call it in a process that ends
/// afterwards: it gives up the capability that no quota holds for.
///
/// # Errors
/// The text says why not.
pub fn try_out(dir: &Path) -> Result<(), String> {
    let explain = |error: io::Error| match error.raw_os_error() {
        Some(libc::ENOSYS) => "it takes Linux 5.14".to_owned(),
        Some(libc::ENOTTY | libc::EOPNOTSUPP | libc::ESRCH | libc::EINVAL | libc::ENOTBLK) => {
            "the file system of the state directory keeps no quotas of projects (mount it with prjquota)".to_owned()
        }
        _ => error.to_string(),
    };
    let place = dir.join("quota");
    fs::create_dir(&place).and_then(|()| limit(&place, TRIED as u64)).map_err(explain)?;
    let held = capabilities(None).and_then(|mut held| {
        held.effective.remove(CapabilitySet::SYS_RESOURCE);
        set_capabilities(None, held)
    });
    held.map_err(|error| error.to_string())?;
    let written = File::create(place.join("file")).and_then(|mut file| {
        file.write_all(&vec![0; 2 * TRIED])?;
        file.sync_all()
    });
    release(&place);
    match written {
        Err(error) if matches!(error.kind(), ErrorKind::QuotaExceeded | ErrorKind::StorageFull) => Ok(()),
        Err(error) => Err(explain(error)),
        Ok(()) => Err("the file system takes a limit and does not keep it".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_holds_only_under_a_filter_and_without_capabilities_over_quotas() {
        let (resource, admin, chown) = (1 << 24, 1 << 21, 1);
        assert_eq!(lifted_by(Some(SeccompProfile::Default), chown), None);
        assert_eq!(lifted_by(Some(SeccompProfile::Strict), 0), None);
        assert_eq!(lifted_by(None, 0), Some(NO_FILTER));
        assert_eq!(lifted_by(Some(SeccompProfile::Unconfined), 0), Some(NO_FILTER));
        let told = |capabilities| lifted_by(Some(SeccompProfile::Default), capabilities).unwrap();
        assert!(told(resource | chown).contains("SYS_RESOURCE") && told(admin).contains("SYS_ADMIN"));
    }
}
