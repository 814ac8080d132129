//! What is done about instances whose supervisor was lost: what is left of them is killed, and their end recorded.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};

use super::layout::{Durability, InstanceDir, write_json};
use super::observe::{Entry, Found, View};
use super::process::{ProcessKey, boot_id, find};
use crate::state::{InstanceId, Phase};

/// Longest time that a killed process may take to be gone before its end is recorded all the same.
const DEATH_LIMIT: Duration = Duration::from_secs(2);

/// Variable that plain processes carry, with the directory of their instance, so that what detached itself from a
/// supervisor that was killed can be found.
pub const MARK: &str = "KEEL_INSTANCE";

/// Kills what a lost supervisor left and records the end, as it was told to everybody who looked. An instance that
/// is not lost is left alone.
///
/// # Errors
/// The end can't be recorded, or the kernel does not tell the boot.
pub fn settle(view: &View, found: &Found) -> io::Result<()> {
    let (Some(run), Phase::Exited(exit)) = (&found.lost, &found.instance.phase) else { return Ok(()) };
    let dir = view.layout.instance(&found.instance.runtime_id);
    // After a reboot nothing of it is left, and numbers of processes mean others.
    if run.boot_id == boot_id()? {
        for process in [run.program, run.first] {
            kill_and_wait(process);
        }
        kill_marked(&dir);
    }
    write_json(&dir.exit(), exit, Durability::Boot)
}

/// Settles what earlier instances of a slot left: a next one may need their port or their volumes.
///
/// # Errors
/// The records can't be read or written.
pub fn settle_slot(view: &View, id: &InstanceId) -> io::Result<()> {
    let prefix = format!("{}_{}_{}_", id.deployment, id.service, id.slot);
    let entries = match fs::read_dir(view.layout.instances()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read?,
    };
    for entry in entries {
        let name = entry?.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with(&prefix)) else { continue };
        if let Entry::Ours(found) = view.one(name)? {
            settle(view, &found)?;
        }
    }
    Ok(())
}

/// Kills plain processes that carry the mark of an instance.
fn kill_marked(dir: &InstanceDir) {
    let mark = format!("{MARK}={}", dir.path().display());
    for pid in find(|_, _| true) {
        let Some(pidfd) = ProcessKey::of(pid).ok().and_then(ProcessKey::open) else { continue };
        // Read after the process was opened: it is the one that is signalled.
        let marked = fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|env| env.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()));
        if marked {
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        }
    }
}

/// Kills a process where it still is the same one, and waits until it is gone.
pub fn kill_and_wait(process: ProcessKey) {
    let Some(pidfd) = process.open() else { return };
    let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    let limit = Timespec { tv_sec: i64::try_from(DEATH_LIMIT.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    let borrowed = pidfd.as_fd();
    let _ = poll(&mut [PollFd::new(&borrowed, PollFlags::IN)], Some(&limit));
}
