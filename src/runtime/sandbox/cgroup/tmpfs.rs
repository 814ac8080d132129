//! What an instance keeps in file systems in memory of its own, where no control group counts it.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use rustix::fs::{fstat, fstatfs, major, minor};

use super::super::mountinfo::{self, Mounted};
use super::members::Seen;

/// Bytes in the file systems in memory that the members mounted and this process does not have: those of the machine
/// that an instance is shown are not its own. Zero where the members see the same mounts as this process.
pub(super) fn held(seen: &Seen<'_>) -> u64 {
    let Some(own) = std::fs::read(mountinfo::OWN).ok().map(|list| mountinfo::parse(&list)) else { return 0 };
    let known: BTreeSet<Vec<u8>> = in_memory(own).map(|mounted| mounted.device).collect();
    // Helpers of the supervisor, which see the machine's mounts, may be among the members.
    let Some(pid) = seen.pids.iter().copied().find(|pid| seen.has_other_mounts(*pid)) else { return 0 };
    let Ok(list) = seen.mounts(pid) else { return 0 };
    let mut counted = known;
    in_memory(mountinfo::parse(&list))
        .filter(|mounted| counted.insert(mounted.device.clone()))
        .filter_map(|mounted| {
            // The program may have put something else in its place meanwhile.
            let place = seen.place(pid, &mounted.place).ok()?;
            (device(&place)? == mounted.device).then(|| in_use(&place))?
        })
        .sum()
}

fn in_memory(list: Vec<Mounted>) -> impl Iterator<Item = Mounted> {
    list.into_iter().filter(|mounted| mounted.kind == "tmpfs")
}

/// As a list of mounts writes it.
fn device(place: &OwnedFd) -> Option<Vec<u8>> {
    let device = fstat(place).ok()?.st_dev;
    Some(format!("{}:{}", major(device), minor(device)).into_bytes())
}

fn in_use(place: &OwnedFd) -> Option<u64> {
    let told = fstatfs(place).ok()?;
    let size = u64::try_from(told.f_bsize).ok()?;
    Some(told.f_blocks.saturating_sub(told.f_bfree).saturating_mul(size))
}
