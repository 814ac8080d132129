//! Workspaces: volumes of one slot, which go with it.
//!
//! Beside a workspace that is not to be kept lies whose it is, for the time when no instance of the slot mounts it any more. That
//! its slot ends is written there before the instance goes, so that a removal that was cut off is found and finished.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::bounds::FILE_LIMIT;
use super::layout::{Durability, read_json, write_json};
use super::record::{Mount, MountSource, Record};
use super::{Inner, SandboxRuntime, checked_id, failed, volumes};
use crate::runtime::Result;
use crate::state::{InstanceId, InstanceRef, Owner};

/// Longest time for the removal of a workspace: a full one takes as long as its disk.
const REMOVE_LIMIT: Duration = Duration::from_secs(120);

/// What the name of the file ends with that tells whose a workspace is.
const MARK: &str = ".slot";

/// Whose a workspace is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Whose instances have it.
    pub owner: Owner,
    /// The service.
    pub service: String,
    /// Its slot.
    pub slot: u32,
    /// Whether the slot has ended, and the workspace is to go.
    pub ended: bool,
}

impl Mark {
    /// Whether it is the mark of the workspace of this slot.
    pub fn is_of(&self, id: &InstanceId) -> bool {
        self.service == id.service && self.slot == id.slot
    }

    /// Whether the slot went with that of this instance: beyond a slot that ends there is none that stays.
    fn ends_with(&self, id: &InstanceId) -> bool {
        self.service == id.service && self.slot >= id.slot
    }
}

fn mark_of(workspace: &Path) -> Option<PathBuf> {
    let name = workspace.file_name().and_then(OsStr::to_str)?;
    Some(workspace.with_file_name(format!(".{name}{MARK}")))
}

/// The workspace that this would be the mark of.
fn marked_by(file: &Path) -> Option<PathBuf> {
    let name = file.file_name().and_then(OsStr::to_str)?;
    Some(file.with_file_name(name.strip_prefix('.')?.strip_suffix(MARK)?))
}

/// Whether it tells whose a workspace is.
pub fn is_mark(file: &Path) -> bool {
    marked_by(file).is_some()
}

/// What the mark of a workspace says; nothing where there is none, or none that can be read.
fn read_mark(workspace: &Path) -> Option<Mark> {
    read_json(&mark_of(workspace)?).ok().flatten()
}

/// Whether it is what is left of a slot that has ended, which nothing mounts any more.
pub fn has_ended(workspace: &Path) -> bool {
    read_mark(workspace).is_some_and(|mark| mark.ended)
}

/// What is to be written down of what is mounted: nothing of a workspace that is kept, or of any other volume.
fn wanted(mount: &Mount, record: &Record) -> Option<Mark> {
    let id = &record.id;
    let mark = || Mark { owner: record.owner.clone(), service: id.service.clone(), slot: id.slot, ended: false };
    mount.goes_with_slot.then(mark)
}

/// Whether it is written down whose a workspace is that is to be mounted, as [`mark`] does it.
pub fn is_marked(path: &Path, mount: &Mount, record: &Record) -> bool {
    match wanted(mount, record) {
        Some(mark) => read_mark(path).is_some_and(|known| known == mark),
        None => mark_of(path).is_none_or(|file| !file.exists()),
    }
}

/// Writes down whose a workspace is that is to be mounted; of one that is kept, or of any other volume, nothing.
///
/// # Errors
/// The disk refuses.
pub fn mark(path: &Path, mount: &Mount, record: &Record) -> io::Result<()> {
    let Some(file) = mark_of(path) else { return Ok(()) };
    match wanted(mount, record) {
        Some(mark) => write_json(&file, &mark, Durability::Synced),
        None => forget(&file),
    }
}

/// Forgets whose the workspaces were of a deployment that are there no more. `is_old` are those marks that nobody has just
/// written.
///
/// # Errors
/// The folder can't be read, or the disk refuses.
pub fn forget_gone(folder: &Path, is_old: impl Fn(&Path) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let file = entry?.path();
        if marked_by(&file).is_some_and(|workspace| !workspace.exists()) && is_old(&file) {
            forget(&file)?;
        }
    }
    Ok(())
}

/// The workspaces of an owner in a deployment's folder that go with their slot, each with whose it is.
///
/// # Errors
/// The folder can't be read.
fn marked(folder: &Path, owner: &Owner) -> io::Result<Vec<(PathBuf, Mark)>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let Some(workspace) = marked_by(&path) else { continue };
        // One that can't be read says nothing, and what it lies beside stays.
        if let Ok(Some(mark)) = read_json::<Mark>(&path)
            && mark.owner == *owner
        {
            found.push((workspace, mark));
        }
    }
    Ok(found)
}

/// Removes a workspace, and then what tells whose it was, unless somebody has made it anew.
///
/// # Errors
/// Something is mounted in it, the disk refuses, or a volume of its deployment has been made for too long.
pub fn remove(workspace: &Path) -> io::Result<()> {
    // Held over both: who makes it anew in between would lose its mark.
    let Some(_lock) = workspace.parent().map(volumes::take).transpose()?.flatten() else { return Ok(()) };
    if workspace.exists() && read_mark(workspace).is_some_and(|mark| !mark.ended) {
        return Ok(());
    }
    volumes::remove_held(workspace)?;
    mark_of(workspace).map_or(Ok(()), |file| forget(&file))
}

/// Forgets whose a workspace was that is gone together with this, what was left of its removal.
///
/// # Errors
/// The disk refuses.
pub fn forget_removed(unfinished: &Path) -> io::Result<()> {
    let Some(workspace) = volumes::whole(unfinished) else { return Ok(()) };
    match mark_of(&workspace) {
        Some(file) if !workspace.exists() && has_ended(&workspace) => forget(&file),
        _ => Ok(()),
    }
}

fn set_ended(workspace: &Path, mark: Mark, ended: bool) -> io::Result<()> {
    match mark_of(workspace) {
        Some(file) if mark.ended != ended => write_json(&file, &Mark { ended, ..mark }, Durability::Synced),
        _ => Ok(()),
    }
}

fn forget(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

impl SandboxRuntime {
    /// The workspaces that are to go with the slot of an instance of ours, which is written down of them: what its slot has,
    /// whether or not the instance itself mounts it, and what those beyond have that have no instance.
    pub(super) async fn workspaces_of(&self, instance: &InstanceRef) -> Result<Vec<PathBuf>> {
        if self.look(instance).await?.is_none() {
            return Ok(Vec::new());
        }
        let (runtime_id, id) = (checked_id(instance)?, instance.id.clone());
        let find = move |inner: &Inner| {
            let what = |error: &io::Error| failed(&format!("looking for workspaces of {}", id.name()), error);
            // What a record that can't be read says of it nobody knows: it stays.
            let record = read_json::<Record>(&inner.dir(&runtime_id).record()).ok().flatten();
            let mounts = record.map(|record| record.launch.mounts).unwrap_or_default();
            let own = mounts.into_iter().filter(|mount| mount.goes_with_slot).find_map(|mount| match mount.source {
                MountSource::Volume(path) => Some(path),
                _ => None,
            });
            let mut found = Vec::new();
            for (path, mark) in inner.ending_with(&id, &runtime_id).map_err(|error| what(&error))? {
                set_ended(&path, mark, true).map_err(|error| what(&error))?;
                found.push(path);
            }
            found.extend(own.filter(|own| !found.contains(own)));
            Ok(found)
        };
        self.blocking("reading an instance", FILE_LIMIT, find).await
    }

    /// Forgets that workspaces were to go which would go with the slot of an instance of ours: they stay.
    pub(super) async fn keep_workspaces_of(&self, instance: &InstanceRef) -> Result<()> {
        if self.look(instance).await?.is_none() {
            return Ok(());
        }
        let (runtime_id, id) = (checked_id(instance)?, instance.id.clone());
        let keep = move |inner: &Inner| {
            let files =
                inner.ending_with(&id, &runtime_id).map(|ending| ending.into_iter().filter_map(|one| mark_of(&one.0)));
            let kept = files.and_then(|mut files| files.try_for_each(|file| forget(&file)));
            kept.map_err(|error| failed(&format!("keeping the workspace of {}", id.name()), &error))
        };
        self.blocking("keeping a workspace", FILE_LIMIT, keep).await
    }

    /// Removes the workspaces that were to go with the slot of an instance which was removed, unless another one is in their
    /// slots: whoever of several removes its instance last finds none.
    pub(super) async fn remove_workspaces(&self, instance: &InstanceRef, workspaces: Vec<PathBuf>) -> Result<()> {
        let id = instance.id.clone();
        let remove = move |inner: &Inner| {
            let what = |error: &io::Error| failed(&format!("removing the workspace of {}", id.name()), error);
            let marked = inner.workspaces(&id.deployment).map_err(|error| what(&error))?;
            let taken = inner.slots_taken(&id.deployment, None).map_err(|error| what(&error))?;
            for workspace in workspaces {
                let mark = marked.iter().find(|(path, _)| *path == workspace).map(|(_, mark)| mark);
                let is_in = |other: &InstanceId| match mark {
                    Some(mark) => mark.is_of(other),
                    None => (&other.service, other.slot) == (&id.service, id.slot),
                };
                let done = match (taken.iter().any(is_in), mark) {
                    (false, _) => self::remove(&workspace),
                    (true, Some(mark)) => set_ended(&workspace, mark.clone(), false),
                    (true, None) => Ok(()),
                };
                done.map_err(|error| what(&error))?;
            }
            Ok(())
        };
        self.blocking("removing a workspace", REMOVE_LIMIT, remove).await
    }
}

impl Inner {
    fn workspaces(&self, deployment: &str) -> io::Result<Vec<(PathBuf, Mark)>> {
        marked(&self.view.layout.volumes(deployment), &self.view.owner)
    }

    /// The workspaces that go with the slot of this instance: no other one is in their slots.
    fn ending_with(&self, id: &InstanceId, runtime_id: &str) -> io::Result<Vec<(PathBuf, Mark)>> {
        let marked = self.workspaces(&id.deployment)?;
        let others = self.slots_taken(&id.deployment, Some(runtime_id))?;
        let is_free = |mark: &Mark| !others.iter().any(|other| mark.is_of(other));
        Ok(marked.into_iter().filter(|(_, mark)| mark.ends_with(id) && is_free(mark)).collect())
    }

    /// Instances of a deployment, each of which is in its slot, but for one.
    fn slots_taken(&self, deployment: &str, but: Option<&str>) -> io::Result<Vec<InstanceId>> {
        let all = self.view.all()?.into_iter().map(|one| one.instance);
        let others = all.filter(|one| one.id.deployment == deployment && but != Some(one.runtime_id.as_str()));
        Ok(others.map(|one| one.id).collect())
    }

    /// Workspaces of a deployment whose slots have ended and have no instance, each with whose it was.
    ///
    /// # Errors
    /// What there is can't be read.
    pub(super) fn lost_workspaces(&self, deployment: &str) -> io::Result<Vec<(PathBuf, Mark)>> {
        let ended: Vec<_> = self.workspaces(deployment)?.into_iter().filter(|(_, mark)| mark.ended).collect();
        if ended.is_empty() {
            return Ok(ended);
        }
        let taken = self.slots_taken(deployment, None)?;
        Ok(ended.into_iter().filter(|(_, mark)| !taken.iter().any(|other| mark.is_of(other))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workspace_that_is_made_anew_while_its_removal_waits_stays_with_its_mark() {
        let top = tempfile::tempdir().unwrap();
        let workspace = top.path().join("web.0");
        fs::create_dir(&workspace).unwrap();
        let file = mark_of(&workspace).unwrap();
        let mark = |ended| Mark { owner: Owner("one".into()), service: "web".into(), slot: 0, ended };
        write_json(&file, &mark(true), Durability::Synced).unwrap();
        let held = volumes::take(top.path()).unwrap().unwrap();
        let removal = std::thread::spawn({
            let workspace = workspace.clone();
            move || remove(&workspace)
        });
        // As whoever starts an instance in the slot does it, while it holds the folder.
        write_json(&file, &mark(false), Durability::Synced).unwrap();
        drop(held);
        removal.join().unwrap().unwrap();
        assert_eq!((workspace.exists(), read_mark(&workspace)), (true, Some(mark(false))));
        write_json(&file, &mark(true), Durability::Synced).unwrap();
        remove(&workspace).unwrap();
        assert_eq!(fs::read_dir(top.path()).unwrap().count(), 0);
    }
}
