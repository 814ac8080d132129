//! What the files of an instance say of it. Looking changes nothing.

use std::io;

use chrono::{DateTime, Utc};

use super::alive;
use super::layout::{InstanceDir, Layout};
use super::record::{Orders, Record, Run};
use crate::runtime::files::{is_broken, read_json};
use crate::spec::{RuntimeKind, Signal};
use crate::state::{Condition, EndedBy, Exit, Instance, InstanceId, Phase};

/// One instance as found on disk.
#[derive(Debug, Clone)]
pub struct Found {
    /// As it is reported.
    pub instance: Instance,
    /// What is kept of it; none where that can't be read.
    pub record: Option<Record>,
    /// Its run, while its supervisor lives.
    pub run: Option<Run>,
    /// The run whose supervisor was lost: something of it may still be there.
    pub lost: Option<Run>,
}

/// All instances of an owner.
///
/// # Errors
/// The directory, or one of them, can't be read.
pub fn all(layout: &Layout) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(layout.instances())? {
        let name = entry?.file_name();
        let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
        found.extend(one(&layout.instance(name))?);
    }
    found.sort_by(|a, b| a.instance.id.cmp(&b.instance.id));
    Ok(found)
}

/// One instance; none where there is no such one.
///
/// # Errors
/// Its files can't be read.
pub fn one(dir: &InstanceDir) -> io::Result<Option<Found>> {
    let record = match read_json::<Record>(&dir.record()) {
        Ok(Some(record)) => record,
        Ok(None) => return Ok(None),
        // As after a loss of power. It is known by its name, and the others are none the worse for it.
        Err(error) if is_broken(&error) => return Ok(unreadable(dir, &error)),
        Err(error) => return Err(error),
    };
    let (phase, run, lost) = standing(dir)?;
    let mut instance = Instance {
        restarts: record.restarts,
        streak: record.streak,
        stop: record.stop,
        pid: run.as_ref().and_then(|run| u32::try_from(run.program.pid).ok()),
        ports: record.ports.clone(),
        conditions: record.conditions.clone(),
        ..Instance::new(record.id.clone(), RuntimeKind::Sandbox, phase, record.created_at)
    };
    if let Some(order) = orders(dir)?.stop.filter(|_| run.is_some()) {
        instance.ends_for(order.cause);
    }
    Ok(Some(Found { instance, record: Some(record), run, lost }))
}

/// An instance of which no more is known than its name.
fn unreadable(dir: &InstanceDir, error: &io::Error) -> Option<Found> {
    let name = dir.0.file_name()?.to_str()?;
    let message = format!("{} can't be read: {error}; remove the instance", dir.record().display());
    let made = std::fs::metadata(&dir.0).and_then(|data| data.created().or_else(|_| data.modified()));
    let made = made.map_or(DateTime::UNIX_EPOCH, DateTime::from);
    let phase = Phase::Exited(Exit::runtime_error(message.clone(), made));
    let id = InstanceId::of_runtime_name(name)?;
    let mut instance = Instance::new(id, RuntimeKind::Sandbox, phase, made);
    instance.conditions.push(Condition::holds("Degraded", "RecordUnreadable", message));
    let (run, lost) = match alive::holder(dir) {
        Ok(Some(_)) => (read_json::<Run>(&dir.run()).ok().flatten(), None),
        Ok(None) | Err(_) => (None, read_json::<Run>(&dir.run()).ok().flatten()),
    };
    Some(Found { instance, record: None, run, lost })
}

/// What its supervisor is told.
///
/// # Errors
/// It can't be read.
pub fn orders(dir: &InstanceDir) -> io::Result<Orders> {
    Ok(read_json(&dir.orders())?.unwrap_or_default())
}

fn standing(dir: &InstanceDir) -> io::Result<(Phase, Option<Run>, Option<Run>)> {
    // In this order: whoever ends records that first, and gives the lock up then.
    let is_alive = alive::holder(dir)?.is_some();
    if let Some(exit) = read_json::<Exit>(&dir.exit())? {
        return Ok((Phase::Exited(exit), None, None));
    }
    let Some(run) = read_json::<Run>(&dir.run())? else { return Ok((Phase::Created, None, None)) };
    if !is_alive {
        return Ok((Phase::Exited(lost(dir, &run)?), None, Some(run)));
    }
    let since = run.started_at;
    let phase = match orders(dir)?.stop {
        Some(_) => Phase::Stopping,
        None if dir.paused().exists() => Phase::Paused { since },
        None => Phase::Running { since, ready: true },
    };
    Ok((phase, Some(run), None))
}

/// The end of an instance whose supervisor was lost, or that ran when the machine went down: how its program ended nobody
/// knows.
fn lost(dir: &InstanceDir, run: &Run) -> io::Result<Exit> {
    let ended_by = orders(dir)?.stop.map_or(EndedBy::Itself, |order| EndedBy::Request(order.cause));
    Ok(Exit {
        runtime_error: Some("its supervisor was lost, so how the program ended is not known".to_owned()),
        ended_by,
        ..Exit::from_code(128 + Signal::KILL.number(), Some(run.started_at), last_sign(dir, run))
    })
}

/// The last sign of life on disk, so that the answer is the same at every look.
fn last_sign(dir: &InstanceDir, run: &Run) -> DateTime<Utc> {
    let written = std::fs::read_dir(dir.logs()).into_iter().flatten().flatten().map(|file| file.path());
    let times = written.filter_map(|path| std::fs::metadata(path).and_then(|data| data.modified()).ok());
    times.map(DateTime::from).fold(run.started_at, DateTime::max)
}
