//! What is done about instances whose supervisor was lost: what is left of them is killed, and their end recorded.

use std::fs;
use std::io;
use std::time::Duration;

use rustix::process::{Signal, pidfd_send_signal};

use super::cgroup::{self, Groups, Homes};
use super::layout::{Durability, InstanceDir, read_json, write_json};
use super::network;
use super::observe::{Entry, Found, View};
use super::process::{ProcessKey, boot_id, find, kill_and_wait};
use super::record::Record;
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
            kill_and_wait(process, DEATH_LIMIT);
        }
        kill_marked(&dir);
    }
    // What does not end is told when the instance is removed.
    let _ = clear_groups(view, &found.instance.runtime_id, None);
    let _ = clear_network(view, &found.instance.runtime_id, false);
    write_json(&dir.exit(), exit, Durability::Boot)
}

/// Control groups of an instance, by its record; where that can't be read, all that could be its own.
///
/// # Errors
/// The directory of the runtime can't be looked at.
pub fn groups(view: &View, runtime_id: &str, homes: Option<&Homes>) -> io::Result<Groups> {
    let name = cgroup::name(&view.owner, view.layout.root(), runtime_id)?;
    match (read_json::<Record>(&view.layout.instance(runtime_id).record()), homes) {
        (Ok(Some(record)), _) => Ok(record.launch.groups.named(&name)),
        (Ok(None) | Err(_), Some(homes)) => Ok(Groups::anywhere(homes, &name)),
        (Ok(None) | Err(_), None) => Ok(Groups::default()),
    }
}

/// Kills what is in the control groups of an instance and removes them. `homes` is where they could be, in case that its
/// record can't be read.
///
/// # Errors
/// The kernel refuses, or a process does not end.
pub fn clear_groups(view: &View, runtime_id: &str, homes: Option<&Homes>) -> io::Result<()> {
    all_ended(&cgroup::clear(&groups(view, runtime_id, homes)?, DEATH_LIMIT)?)
}

/// Whether all processes of control groups have ended, of which these are left.
///
/// # Errors
/// Some are.
pub fn all_ended(left: &[i32]) -> io::Result<()> {
    if left.is_empty() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "processes {left:?} were killed and do not end; they may wait for a disk or a device (ps shows them in state D)"
    )))
}

/// Takes away what connects an instance, and what it has in the network of its deployment, with its address where it is
/// removed.
///
/// # Errors
/// The kernel or the disk refuses.
pub fn clear_network(view: &View, runtime_id: &str, is_removed: bool) -> io::Result<()> {
    let dir = view.layout.instance(runtime_id);
    network::clear_pasta(&dir.pasta());
    let record = read_json::<Record>(&dir.record()).ok().flatten();
    match record.as_ref().and_then(|record| record.launch.network.attachment()) {
        Some(attachment) => network::detach(attachment, &view.layout, is_removed.then_some(runtime_id)),
        None => Ok(()),
    }
}

/// Kills what runs of an instance whose supervisor does not act, and waits until it is gone.
pub fn kill_all(view: &View, runtime_id: &str, processes: &[ProcessKey]) {
    if let Ok(groups) = groups(view, runtime_id, None) {
        let _ = cgroup::kill(&groups, DEATH_LIMIT);
    }
    processes.iter().for_each(|process| kill_and_wait(*process, DEATH_LIMIT));
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
        let Some(pidfd) = ProcessKey::of(pid).ok().and_then(|process| process.open().ok()?) else { continue };
        // Read after the process was opened: it is the one that is signalled.
        let marked = fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|env| env.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()));
        if marked {
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        }
    }
}
