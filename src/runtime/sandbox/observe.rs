//! What the records on disk say about an instance. Looking changes nothing; what it finds to be lost is dealt with by
//! the calls that act (`settle.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Utc};

use super::cgroup::{self, Groups};
use super::layout::{InstanceDir, Layout, read_json};
use super::process::{ProcessKey, boot_id};
use super::record::{Record, Run, StopOrder};
use super::suspend;
use crate::runtime::files::is_broken;
use crate::spec::RuntimeKind;
use crate::state::{Condition, EndedBy, Exit, Instance, InstanceId, Owner, Phase};

/// What one owner sees of a root.
#[derive(Debug)]
pub struct View {
    /// Where things lie.
    pub layout: Layout,
    /// Whose instances are seen.
    pub owner: Owner,
    /// Supervisors that this process saw alive, by runtime id; those of instances that are gone are given up by every
    /// complete look.
    seen: Mutex<BTreeMap<String, Seen>>,
}

/// A supervisor that was seen alive by this process.
#[derive(Debug, Clone, Copy)]
struct Seen {
    supervisor: ProcessKey,
    gone_at: Option<DateTime<Utc>>,
}

/// One instance as found on disk.
#[derive(Debug, Clone)]
pub struct Found {
    /// As it is reported.
    pub instance: Instance,
    /// Its supervisor, while it runs.
    pub run: Option<Run>,
    /// The run that ended without a record, because its supervisor was lost. Something of it may still be there.
    pub lost: Option<Run>,
}

impl Found {
    /// Whether its program has ended, also as a zombie, while the records still say that it runs: its supervisor, which
    /// writes the end down, has yet to come to it.
    ///
    /// # Errors
    /// Whether the program is gone can't be told.
    pub fn is_ending(&self) -> io::Result<bool> {
        match (&self.instance.phase, &self.run) {
            (Phase::Running { .. }, Some(run)) => Ok(run.program.open()?.is_none()),
            _ => Ok(false),
        }
    }
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

impl View {
    /// What an owner sees of a root.
    pub fn new(layout: Layout, owner: Owner) -> Self {
        Self { layout, owner, seen: Mutex::default() }
    }

    /// All instances of the owner; an error when any can't be read for a reason other than its content.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn all(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        let entries = match fs::read_dir(self.layout.instances()) {
            Ok(entries) => entries,
            // Nothing was ever created. A root that vanished with its instances is told by the directory above.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.layout.root().exists() => return Ok(found),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let name = entry?.file_name();
            let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
            if let Entry::Ours(one) = self.one(name)? {
                found.push(*one);
            }
        }
        found.sort_by(|a, b| a.instance.id.cmp(&b.instance.id));
        let names: BTreeSet<&str> = found.iter().map(|one| one.instance.runtime_id.as_str()).collect();
        self.seen().retain(|name, _| names.contains(name.as_str()));
        Ok(found)
    }

    /// One instance, by its runtime id.
    ///
    /// # Errors
    /// Its files can't be read.
    pub fn one(&self, runtime_id: &str) -> io::Result<Entry> {
        let dir = self.layout.instance(runtime_id);
        let record: Record = match read_json(&dir.record()) {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(Entry::Nothing),
            Err(error) if is_broken(&error) => {
                // Its control groups are known by the record alone; none are looked at.
                let standing = self.standing(&dir, runtime_id, &Groups::default())?;
                let found = unreadable(&dir, runtime_id, &error, standing);
                return Ok(found.map_or(Entry::Nothing, |one| Entry::Ours(Box::new(one))));
            }
            Err(error) => return Err(error),
        };
        if record.owner != self.owner {
            return Ok(Entry::Foreign(record.owner));
        }
        let Standing { phase, run, lost } = self.standing(&dir, runtime_id, &record.launch.groups)?;
        let mut conditions = record.conditions;
        conditions.extend(run.iter().flat_map(|run| run.conditions.clone()));
        if matches!(phase, Phase::Paused { .. }) && !cgroup::can_freeze(&record.launch.groups) {
            conditions.push(suspend::degraded());
        }
        let mut instance = Instance {
            runtime_id: runtime_id.to_owned(),
            restarts: record.restarts,
            streak: record.streak,
            stop: record.stop,
            pid: run.as_ref().and_then(|run| u32::try_from(run.program.pid).ok()),
            ports: record.ports,
            conditions,
            ..Instance::new(record.id, RuntimeKind::Sandbox, phase, record.created_at)
        };
        if let Some(order) = delivered_order(&dir) {
            instance.ends_for(order.cause);
        }
        Ok(Entry::Ours(Box::new(Found { instance, run, lost })))
    }

    /// Where an instance stands, and who runs it or ran it last.
    fn standing(&self, dir: &InstanceDir, runtime_id: &str, groups: &Groups) -> io::Result<Standing> {
        let ended = |exit| Ok(Standing { phase: Phase::Exited(exit), run: None, lost: None });
        if let Some(exit) = readable::<Exit>(&dir.exit())? {
            return ended(exit);
        }
        let Some(run) = readable::<Run>(&dir.run())? else {
            return Ok(Standing { phase: Phase::Created, run: None, lost: None });
        };
        let same_boot = run.boot_id == boot_id()?;
        if same_boot && run.supervisor.open()?.is_some() {
            self.seen().insert(runtime_id.to_owned(), Seen { supervisor: run.supervisor, gone_at: None });
            let stopping = dir.stopping().exists();
            let since = run.started_at;
            let phase = match stopping {
                true => Phase::Stopping,
                // It does not run before its program does, which may turn out to be none.
                false if dir.starting().exists() => Phase::Created,
                false if is_paused(dir, groups) => Phase::Paused { since },
                false => Phase::Running { since, ready: true },
            };
            return Ok(Standing { phase, run: Some(run), lost: None });
        }
        // It may have ended between the two looks.
        if let Some(exit) = readable::<Exit>(&dir.exit())? {
            return ended(exit);
        }
        let exit = if same_boot { lost(dir, &run, self.gone_at(runtime_id, &run)) } else { rebooted(&run) };
        Ok(Standing { phase: Phase::Exited(exit), run: None, lost: Some(run) })
    }

    /// When a supervisor was first found gone, where this process saw it alive before.
    fn gone_at(&self, runtime_id: &str, run: &Run) -> Option<DateTime<Utc>> {
        let mut seen = self.seen();
        let seen = seen.get_mut(runtime_id).filter(|seen| seen.supervisor == run.supervisor)?;
        Some(*seen.gone_at.get_or_insert_with(Utc::now))
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a running instance is paused.
fn is_paused(dir: &InstanceDir, groups: &Groups) -> bool {
    if cgroup::can_freeze(groups) { cgroup::is_frozen(groups) } else { dir.paused().exists() }
}

/// Where an instance stands.
struct Standing {
    phase: Phase,
    run: Option<Run>,
    lost: Option<Run>,
}

/// An instance whose record can't be read, as after a loss of power: known by the name of its directory. Its phase is
/// unknown while it is attended; else it ended.
fn unreadable(dir: &InstanceDir, runtime_id: &str, error: &io::Error, standing: Standing) -> Option<Found> {
    let message = format!("{} can't be read: {error}; remove the instance", dir.record().display());
    let created_at = fs::metadata(dir.path()).and_then(|data| data.created().or_else(|_| data.modified()));
    let created_at = created_at.map_or(DateTime::UNIX_EPOCH, DateTime::from);
    let Standing { phase, run, lost } = standing;
    let phase = match phase {
        Phase::Exited(exit) => Phase::Exited(exit),
        _ if run.is_some() => Phase::Unknown { message: message.clone() },
        _ => Phase::Exited(Exit::runtime_error(message.clone(), created_at)),
    };
    let instance = Instance {
        runtime_id: runtime_id.to_owned(),
        conditions: vec![Condition::holds("Degraded", "RecordUnreadable", message)],
        ..Instance::new(InstanceId::of_runtime_name(runtime_id)?, RuntimeKind::Sandbox, phase, created_at)
    };
    Some(Found { instance, run, lost })
}

/// Reads a file that another process replaces atomically; one that is broken is as good as none.
fn readable<T: serde::de::DeserializeOwned>(path: &std::path::Path) -> io::Result<Option<T>> {
    match read_json(path) {
        Err(error) if is_broken(&error) => Ok(None),
        read => read,
    }
}

/// The end of an instance whose supervisor was lost. Nobody attends what is left of it, so it counts as ended, also
/// while its program goes on until a call that acts kills it.
fn lost(dir: &InstanceDir, run: &Run, gone_at: Option<DateTime<Utc>>) -> Exit {
    let ended_by = delivered_order(dir).map_or(EndedBy::Itself, |order| EndedBy::Request(order.cause));
    let finished_at = gone_at.unwrap_or_else(|| last_sign(dir, run));
    Exit {
        runtime_error: Some("its supervisor was lost, so how the program ended is not known".to_owned()),
        ended_by,
        ..Exit::from_code(128 + libc::SIGKILL, Some(run.started_at), finished_at)
    }
}

/// The order to stop it; one that was never delivered ends nothing.
fn delivered_order(dir: &InstanceDir) -> Option<StopOrder> {
    dir.stopping().exists().then(|| readable(&dir.stop()).ok().flatten()).flatten()
}

/// The last sign of life on disk, so that the answer is the same at every look: its start, its last output, or the
/// order to stop it.
fn last_sign(dir: &InstanceDir, run: &Run) -> DateTime<Utc> {
    let written = fs::read_dir(dir.logs()).into_iter().flatten().flatten().map(|file| file.path());
    let signs = written.chain([dir.stop()]).filter_map(|path| fs::metadata(path).and_then(|data| data.modified()).ok());
    signs.map(DateTime::from).fold(run.started_at, DateTime::max)
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
