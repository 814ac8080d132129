//! What is done to all processes of an instance at once: end, freeze, thaw; and the removal of its groups.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::pread;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::groups::{Groups, Unified};
use super::hierarchy::Controller;
use super::home::write;

/// Longest time that freezing may take; what does not stop by then waits in the kernel for a disk or a device.
const FREEZE_LIMIT: Duration = Duration::from_secs(2);
/// Pause between two looks where the kernel tells of no change.
const LOOK: Duration = Duration::from_millis(1);
/// Longest sleep until the kernel's word of a change is not waited for any more, but looked at.
const NOTICE: Duration = Duration::from_millis(100);
/// Longest time that a group without processes may take to be removable: what ended is still being put away.
const REMOVE_LIMIT: Duration = Duration::from_secs(2);
/// Deepest groups below an instance's that are removed. Only a privileged instance can make any.
const DEEPEST: usize = 32;

/// Numbers of the processes in any of the groups.
///
/// # Errors
/// They can't be read; groups that are gone have none.
pub fn processes(groups: &Groups) -> io::Result<Vec<i32>> {
    let mut found = BTreeSet::new();
    for dir in groups.dirs() {
        found.extend(processes_below(dir)?);
    }
    Ok(found.into_iter().collect())
}

fn processes_below(dir: &Path) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for dir in tree(dir)? {
        match fs::read_to_string(dir.join("cgroup.procs")) {
            // Zero stands for a process that this one can't see.
            Ok(text) => found.extend(text.lines().filter_map(|line| line.parse().ok()).filter(|pid: &i32| *pid > 0)),
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// A group and those below it, outer ones first.
fn tree(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![dir.to_owned()];
    let mut level = found.clone();
    for _ in 0..DEEPEST {
        let mut next = Vec::new();
        for dir in level {
            let entries = match fs::read_dir(&dir) {
                Err(error) if is_gone(&error) => continue,
                read => read?,
            };
            next.extend(
                entries
                    .flatten()
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|entry| entry.path()),
            );
        }
        if next.is_empty() {
            break;
        }
        found.extend(next.iter().cloned());
        level = next;
    }
    Ok(found)
}

/// Kills every process of the groups and waits until none is left, or for so long. Returns those that are left.
///
/// # Errors
/// The groups can't be read or written.
pub fn kill(groups: &Groups, limit: Duration) -> io::Result<Vec<i32>> {
    let end = Instant::now() + limit;
    match &groups.unified {
        Some(group) if group.kill => kill_at_once(groups, group, end),
        _ => kill_each(groups, end),
    }
}

/// The kernel kills all of them, and whatever they are forking.
fn kill_at_once(groups: &Groups, group: &Unified, end: Instant) -> io::Result<Vec<i32>> {
    loop {
        match write(&group.dir.join("cgroup.kill"), "1") {
            Err(error) if is_gone(&error) => return kill_each(groups, end),
            written => written?,
        }
        // Frozen ones of version 1 die when they are thawed.
        thaw_legacy(groups)?;
        if empty_until(&group.dir, end.min(Instant::now() + NOTICE))? {
            return Ok(Vec::new());
        }
        if Instant::now() >= end {
            return processes(groups);
        }
    }
}

/// Stops all of them, so that none forks, and kills each; again until none is left.
fn kill_each(groups: &Groups, end: Instant) -> io::Result<Vec<i32>> {
    loop {
        // Best effort: without a freezer it takes more rounds.
        let _ = request(groups, true);
        let found = processes(groups)?;
        for pid in &found {
            kill_member(groups, *pid);
        }
        request(groups, false)?;
        if found.is_empty() || Instant::now() >= end {
            return Ok(found);
        }
        std::thread::sleep(LOOK);
    }
}

/// Kills a process that is in the groups. It is opened before it is looked for again, so that its number can't come to
/// mean another one.
fn kill_member(groups: &Groups, pid: i32) {
    let Some(pidfd) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else { return };
    if processes(groups).is_ok_and(|found| found.contains(&pid)) {
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    }
}

/// Whether a group of version 2 has no process, now or by then.
fn empty_until(dir: &Path, end: Instant) -> io::Result<bool> {
    until(dir, "populated 0", end)
}

/// Waits until the events of a group hold a line; a group that is gone holds every line.
fn until(dir: &Path, line: &str, end: Instant) -> io::Result<bool> {
    let events = match File::open(dir.join("cgroup.events")) {
        Err(error) if is_gone(&error) => return Ok(true),
        opened => opened?,
    };
    loop {
        let mut text = [0; 256];
        let size = match pread(&events, &mut text, 0) {
            // The group was removed.
            Err(rustix::io::Errno::NODEV) => return Ok(true),
            read => read?,
        };
        let text = String::from_utf8_lossy(text.get(..size).unwrap_or_default());
        if text.lines().any(|found| found == line) {
            return Ok(true);
        }
        let left = end.saturating_duration_since(Instant::now()).min(NOTICE);
        if left.is_zero() {
            return Ok(false);
        }
        let left = Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) };
        let events = events.as_fd();
        let _ = poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&left));
    }
}

/// Freezes every process of the groups, and waits until they are. False where the groups can't be frozen.
///
/// # Errors
/// The kernel does not freeze them in time; then they are thawed again.
pub fn freeze(groups: &Groups) -> io::Result<bool> {
    if !can_freeze(groups) {
        return Ok(false);
    }
    let end = Instant::now() + FREEZE_LIMIT;
    request(groups, true)?;
    while !is_frozen(groups) {
        if Instant::now() >= end {
            request(groups, false)?;
            let message = "a process does not stop; it may wait for a disk or a device (ps shows it in state D)";
            return Err(io::Error::new(ErrorKind::TimedOut, message));
        }
        match groups.unified.as_ref().filter(|group| group.freeze) {
            Some(group) => drop(until(&group.dir, "frozen 1", end)?),
            None => {
                std::thread::sleep(LOOK);
                // In version 1 a process that was just forked may be left out until it is asked for again.
                request(groups, true)?;
            }
        }
    }
    Ok(true)
}

/// Thaws the processes of the groups; those that are not frozen go on as they are.
///
/// # Errors
/// The kernel refuses.
pub fn thaw(groups: &Groups) -> io::Result<()> {
    request(groups, false)
}

/// Whether the groups can be frozen.
pub fn can_freeze(groups: &Groups) -> bool {
    groups.unified.as_ref().is_some_and(|group| group.freeze) || groups.legacy(Controller::Freezer).is_some()
}

/// Whether every process of the groups is frozen.
pub fn is_frozen(groups: &Groups) -> bool {
    let holds =
        |file: PathBuf, line: &str| fs::read_to_string(file).is_ok_and(|text| text.lines().any(|one| one == line));
    match (groups.unified.as_ref().filter(|group| group.freeze), groups.legacy(Controller::Freezer)) {
        (Some(group), _) => holds(group.dir.join("cgroup.events"), "frozen 1"),
        (None, Some(group)) => holds(group.dir.join("freezer.state"), "FROZEN"),
        (None, None) => false,
    }
}

/// Asks for all to be frozen or thawed.
fn request(groups: &Groups, frozen: bool) -> io::Result<()> {
    if let Some(group) = groups.unified.as_ref().filter(|group| group.freeze) {
        return unless_gone(write(&group.dir.join("cgroup.freeze"), if frozen { "1" } else { "0" }));
    }
    if !frozen {
        return thaw_legacy(groups);
    }
    match groups.legacy(Controller::Freezer) {
        Some(group) => unless_gone(write(&group.dir.join("freezer.state"), "FROZEN")),
        None => Ok(()),
    }
}

fn thaw_legacy(groups: &Groups) -> io::Result<()> {
    match groups.legacy(Controller::Freezer) {
        Some(group) => unless_gone(write(&group.dir.join("freezer.state"), "THAWED")),
        None => Ok(()),
    }
}

/// Kills what is in the groups and removes them; those that are gone are success. Returns the processes that are left
/// after that time, with which their groups stay.
///
/// # Errors
/// The kernel refuses.
pub fn clear(groups: &Groups, limit: Duration) -> io::Result<Vec<i32>> {
    if groups.is_empty() {
        return Ok(Vec::new());
    }
    // The usual case: everything ended by itself.
    if remove_all(groups, Duration::ZERO).is_ok() {
        return Ok(Vec::new());
    }
    let left = kill(groups, limit)?;
    if left.is_empty() {
        remove_all(groups, REMOVE_LIMIT)?;
    }
    Ok(left)
}

fn remove_all(groups: &Groups, limit: Duration) -> io::Result<()> {
    let end = Instant::now() + limit;
    groups.dirs().try_for_each(|dir| remove(dir, end))
}

/// Removes a group, trying again until then while the kernel says that it is in use.
fn remove(dir: &Path, end: Instant) -> io::Result<()> {
    loop {
        match fs::remove_dir(dir) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy => {
                for inner in tree(dir)?.iter().skip(1).rev() {
                    let _ = fs::remove_dir(inner);
                }
                if Instant::now() >= end {
                    return Err(io::Error::new(error.kind(), format!("removing {}: {error}", dir.display())));
                }
                std::thread::sleep(LOOK);
            }
            removed => return unless_gone(removed),
        }
    }
}

fn unless_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if is_gone(&error) => Ok(()),
        result => result,
    }
}

/// A file of a group that is removed after it was opened is no device any more.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}
