//! What the records on disk say about an instance.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::layout::{Durability, InstanceDir, Layout, read_json, write_json};
use super::process::{ProcessKey, boot_id};
use super::record::{Record, Run};
use crate::spec::RuntimeKind;
use crate::state::{Condition, EndedBy, Exit, Instance, InstanceId, Owner, Phase, StopPolicy};

/// Longest time that a killed process may take to be gone before its end is recorded all the same.
const DEATH_LIMIT: Duration = Duration::from_secs(2);

/// Variable that plain processes carry, with the directory of their instance, so that what detached itself from a
/// supervisor that was killed can be found.
pub const MARK: &str = "KEEL_INSTANCE";

/// One instance as found on disk.
#[derive(Debug, Clone)]
pub struct Found {
    /// As it is reported.
    pub instance: Instance,
    /// Its supervisor, while it runs.
    pub run: Option<Run>,
}

/// What lies in the directory of an instance.
#[derive(Debug)]
pub enum Entry {
    /// An instance of this owner.
    Ours(Box<Found>),
    /// An instance of another owner.
    Foreign(Owner),
    /// No instance: nothing there, or half-made.
    Nothing,
}

/// All instances of an owner; an error when any can't be read for a reason other than its content.
///
/// # Errors
/// The directory can't be read.
pub fn all(layout: &Layout, owner: &Owner) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(layout.instances()) {
        Ok(entries) => entries,
        // Nothing was ever created. A root that vanished with its instances is told by the directory above.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !layout.root().exists() => return Ok(found),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let name = entry?.file_name();
        let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
        if let Entry::Ours(one) = one(layout, owner, name)? {
            found.push(*one);
        }
    }
    found.sort_by(|a, b| a.instance.id.cmp(&b.instance.id));
    Ok(found)
}

/// One instance, by its runtime id.
///
/// # Errors
/// Its files can't be read.
pub fn one(layout: &Layout, owner: &Owner, runtime_id: &str) -> io::Result<Entry> {
    let dir = layout.instance(runtime_id);
    let record: Record = match read_json(&dir.record()) {
        Ok(Some(record)) => record,
        Ok(None) => return Ok(Entry::Nothing),
        Err(error) if error.kind() == io::ErrorKind::InvalidData || is_syntax(&error) => {
            return Ok(unreadable(&dir, runtime_id, &error).map_or(Entry::Nothing, |one| Entry::Ours(Box::new(one))));
        }
        Err(error) => return Err(error),
    };
    if record.owner != *owner {
        return Ok(Entry::Foreign(record.owner));
    }
    let (phase, run) = phase(&dir)?;
    let running = run.filter(|_| matches!(phase, Phase::Running { .. } | Phase::Stopping));
    let mut conditions = record.conditions;
    conditions.extend(running.iter().flat_map(|run| run.conditions.clone()));
    let instance = Instance {
        id: record.id,
        runtime: RuntimeKind::Sandbox,
        runtime_id: runtime_id.to_owned(),
        phase,
        created_at: record.created_at,
        restarts: record.restarts,
        streak: record.streak,
        stop: record.stop,
        pid: running.as_ref().and_then(|run| u32::try_from(run.program.pid).ok()),
        ports: record.ports,
        last_activity: None,
        conditions,
    };
    Ok(Entry::Ours(Box::new(Found { instance, run: running })))
}

/// Errors of JSON come as other kinds too, by their cause.
fn is_syntax(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof)
        || error.get_ref().is_some_and(|cause| cause.is::<serde_json::Error>())
}

/// An instance whose record can't be read: known by the name of its directory, in an unknown phase.
fn unreadable(dir: &InstanceDir, runtime_id: &str, error: &io::Error) -> Option<Found> {
    let message = format!("{} can't be read: {error}; remove the instance", dir.record().display());
    let created_at = fs::metadata(dir.path()).and_then(|data| data.created().or_else(|_| data.modified()));
    let instance = Instance {
        id: identity_of(runtime_id)?,
        runtime: RuntimeKind::Sandbox,
        runtime_id: runtime_id.to_owned(),
        phase: Phase::Unknown { message: message.clone() },
        created_at: created_at.map_or(DateTime::UNIX_EPOCH, DateTime::from),
        restarts: 0,
        streak: 0,
        stop: StopPolicy::default(),
        pid: None,
        ports: Vec::new(),
        last_activity: None,
        conditions: vec![Condition::holds("Degraded", "RecordUnreadable", message)],
    };
    Some(Found { instance, run: None })
}

/// Reads an identity back from a runtime name. The name holds half of the revision; the other half is filled with
/// zeros, so that it equals no revision that is wanted.
fn identity_of(runtime_id: &str) -> Option<InstanceId> {
    let mut parts = runtime_id.split('_');
    let (deployment, service) = (parts.next()?.to_owned(), parts.next()?.to_owned());
    let slot = parts.next()?.parse().ok()?;
    let revision = format!("v1-{:0<16}", parts.next()?).parse().ok()?;
    let attempt = parts.next()?.parse().ok()?;
    parts.next().is_none().then_some(InstanceId { deployment, service, slot, revision, attempt })
}

/// Where an instance stands, and who runs it or ran it last.
fn phase(dir: &InstanceDir) -> io::Result<(Phase, Option<Run>)> {
    if let Some(exit) = readable::<Exit>(&dir.exit())? {
        return Ok((Phase::Exited(exit), None));
    }
    let Some(run) = readable::<Run>(&dir.run())? else { return Ok((Phase::Created, None)) };
    let same_boot = run.boot_id == boot_id()?;
    if same_boot && run.supervisor.open().is_some() {
        let phase =
            if dir.stop().exists() { Phase::Stopping } else { Phase::Running { since: run.started_at, ready: true } };
        return Ok((phase, Some(run)));
    }
    // It may have ended between the two looks.
    if let Some(exit) = readable::<Exit>(&dir.exit())? {
        return Ok((Phase::Exited(exit), None));
    }
    let exit = if same_boot { lost(dir, &run) } else { rebooted(&run) };
    // Recorded, so that it is the same at every look. Where that fails it is derived again.
    let _ = write_json(&dir.exit(), &exit, Durability::Boot);
    Ok((Phase::Exited(exit), None))
}

/// Reads a file that another process replaces atomically; one that is broken is as good as none.
fn readable<T: serde::de::DeserializeOwned>(path: &std::path::Path) -> io::Result<Option<T>> {
    match read_json(path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData || is_syntax(&error) => Ok(None),
        read => read,
    }
}

/// The end of an instance whose supervisor was killed: whatever it left is killed, as nobody attends it any more.
fn lost(dir: &InstanceDir, run: &Run) -> Exit {
    for process in [run.program, run.first] {
        kill_and_wait(process);
    }
    kill_marked(dir);
    let ended_by = read_json::<super::record::StopOrder>(&dir.stop())
        .ok()
        .flatten()
        .map_or(EndedBy::Itself, |order| EndedBy::Request(order.cause));
    Exit {
        runtime_error: Some("its supervisor was killed, so how the program ended is not known".to_owned()),
        ended_by,
        ..Exit::from_code(128 + libc::SIGKILL, Some(run.started_at), Utc::now())
    }
}

/// Kills plain processes that carry the mark of an instance.
fn kill_marked(dir: &InstanceDir) {
    let mark = format!("{MARK}={}", dir.path().display());
    for pid in super::process::find(|_, _| true) {
        let Some(pidfd) = ProcessKey::of(pid).ok().and_then(ProcessKey::open) else { continue };
        // Read after the process was opened: it is the one that is signalled.
        let marked = fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|env| env.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()));
        if marked {
            let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
        }
    }
}

/// The end of an instance that ran when the machine went down: nothing of it is left, and numbers of processes
/// mean others now.
fn rebooted(run: &Run) -> Exit {
    Exit {
        runtime_error: Some("the machine was restarted while it ran".to_owned()),
        ..Exit::from_code(128 + libc::SIGKILL, Some(run.started_at), booted_at().unwrap_or_else(Utc::now))
    }
}

/// When this boot began: `btime` of `/proc/stat`, in seconds since the epoch.
fn booted_at() -> Option<DateTime<Utc>> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let seconds = text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    DateTime::from_timestamp(seconds, 0)
}

/// Kills a process where it still is the same one, and waits until it is gone.
pub fn kill_and_wait(process: ProcessKey) {
    let Some(pidfd) = process.open() else { return };
    let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
    let limit = Timespec { tv_sec: i64::try_from(DEATH_LIMIT.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    let borrowed = pidfd.as_fd();
    let _ = poll(&mut [PollFd::new(&borrowed, PollFlags::IN)], Some(&limit));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_read_back_from_its_name() {
        let id = identity_of("demo_web_2_0123abcd_4").unwrap();
        assert_eq!((id.deployment.as_str(), id.service.as_str(), id.slot, id.attempt), ("demo", "web", 2, 4));
        assert_eq!(id.runtime_name(), "demo_web_2_0123abcd_4");
    }

    #[test]
    fn another_name_is_no_identity() {
        for name in ["", "demo", "demo_web_x_0123abcd_4", "demo_web_2_0123abcd_4_5", "demo_web_2_nothex!!_4"] {
            assert_eq!(identity_of(name), None, "{name}");
        }
    }
}
