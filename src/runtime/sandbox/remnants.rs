//! What is left on the machine of instances whose directory is gone, and what of this runtime nothing needs. Calls that
//! create and remove leave nothing behind, and finish what was cut off; this finds what somebody else took the ground
//! from, as who removes the directory of an instance by hand.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use rustix::fs::FlockOperation;
use rustix::mount::{UnmountFlags, unmount};

use super::bounds::{LIST_LIMIT, REMOVE_LIMIT};
use super::cgroup::{self, Groups, Homes};
use super::mountinfo::{self, Mounted};
use super::observe::Entry;
use super::process::{self, ProcessKey, kill_and_wait};
use super::{Inner, SandboxRuntime, failed, leftovers, network, remove, settle, volumes, workspace};
use crate::runtime::{Remnant, RemnantKind, Remnants, Result};

/// Longest wait for the end of a supervisor that is killed.
const DEATH_LIMIT: Duration = Duration::from_secs(2);

/// Least parts of the name of an instance: deployment, service, slot, revision and attempt.
const PARTS_OF_NAME: usize = 5;

/// What marks the path of an open file that was removed (proc_pid_fd(5)).
const DELETED: &str = " (deleted)";

#[async_trait]
impl Remnants for SandboxRuntime {
    async fn remnants(&self) -> Result<Vec<Remnant>> {
        let homes = self.probe().await.homes.clone();
        self.blocking("looking for what is left of instances", LIST_LIMIT, move |inner| {
            let mut found = Vec::new();
            for kind in RemnantKind::ALL {
                found.extend(inner.remnants_of(kind, &homes).map_err(|error| looking(kind, &error))?);
            }
            found.sort();
            Ok(found)
        })
        .await
    }

    async fn clear(&self, remnant: &Remnant) -> Result<()> {
        let (homes, remnant) = (self.probe().await.homes.clone(), remnant.clone());
        self.blocking("removing what is left of an instance", REMOVE_LIMIT, move |inner| {
            let left = inner.remnants_of(remnant.kind, &homes).map_err(|error| looking(remnant.kind, &error))?;
            let is_it = |one: &&Remnant| (&one.name, &one.identity) == (&remnant.name, &remnant.identity);
            match left.iter().find(is_it) {
                Some(one) => inner.take_away(one, &homes),
                None => Ok(()),
            }
        })
        .await
    }
}

fn looking(kind: RemnantKind, error: &io::Error) -> crate::runtime::RuntimeError {
    failed(&format!("looking for what is left of instances ({kind:?})"), error)
}

impl Inner {
    fn remnants_of(&self, kind: RemnantKind, homes: &Homes) -> io::Result<Vec<Remnant>> {
        match kind {
            RemnantKind::Supervisor => Ok(self.lost_supervisors()),
            RemnantKind::ControlGroup => self.lost_groups(homes),
            RemnantKind::Mount => self.lost_mounts(),
            RemnantKind::Device => {
                let left = network::strays(self.networks())?;
                let reason = "no network of a deployment is written down for it";
                Ok(left.into_iter().map(|(name, index)| remnant(kind, name, index, reason, None)).collect())
            }
            RemnantKind::Directory => {
                let (mut found, lost) = (self.lost_directories()?, self.lost_in_volumes()?);
                found.extend(lost);
                Ok(found)
            }
            RemnantKind::Image => {
                let unneeded = self.images.unneeded(&self.view.layout)?;
                let reason = "no instance and no service needs it, and it was not used for a week";
                let image = |(name, used): (String, SystemTime)| {
                    let used = DateTime::<Utc>::from(used);
                    remnant(kind, name, used.timestamp_micros(), reason, Some(used))
                };
                Ok(unneeded.into_iter().map(image).collect())
            }
        }
    }

    fn take_away(&self, one: &Remnant, homes: &Homes) -> Result<()> {
        let done = match one.kind {
            RemnantKind::Supervisor => self.kill_supervisor(one),
            RemnantKind::ControlGroup => {
                let id = Path::new(&one.name).file_name().and_then(|name| name.to_str()).unwrap_or_default();
                cgroup::clear(&Groups::anywhere(homes, id), DEATH_LIMIT).and_then(|left| settle::all_ended(&left))
            }
            RemnantKind::Mount => unmount(&one.name, UnmountFlags::DETACH).map_err(io::Error::from),
            RemnantKind::Device => network::remove_stray(&one.name),
            RemnantKind::Directory => {
                let (path, all_volumes) = (Path::new(&one.name), self.view.layout.all_volumes());
                match path.parent().and_then(Path::parent) == Some(&all_volumes) {
                    true => remove_volume(path),
                    false => remove_own(path, &all_volumes),
                }
            }
            RemnantKind::Image => return self.collect_images().map(drop),
        };
        done.map_err(|error| failed(&format!("removing {}", one.name), &error))
    }

    /// Whether an instance with this id is there, of whichever owner, or being made.
    fn is_there(&self, runtime_id: &str) -> bool {
        self.dir(runtime_id).path().symlink_metadata().is_ok()
    }

    /// Supervisors that hold the lock of an instance whose directory is not there.
    fn lost_supervisors(&self) -> Vec<Remnant> {
        let instances = self.view.layout.instances();
        let supervisors = process::find(|pid, _| {
            fs::read(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_ascii_end() == b"keel-supervisor")
        });
        let lost = |pid: i32| {
            let key = ProcessKey::of(pid).ok()?;
            let instance = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.find_map(|entry| {
                let file = fs::read_link(entry.ok()?.path()).ok()?;
                let lock = PathBuf::from(file.to_str()?.strip_suffix(DELETED)?);
                let dir = lock.parent().filter(|dir| dir.parent() == Some(&instances))?;
                (lock.file_name()? == "lock").then(|| dir.to_path_buf())
            })?;
            let id = instance.file_name()?.to_str()?;
            // There may be another one of its name by now.
            let reason = match is_of_instance(id) {
                true => format!("the directory of its instance {id} is gone"),
                false => "the directory of its instance is gone".to_owned(),
            };
            Some(remnant(RemnantKind::Supervisor, pid, key.start, &reason, None))
        };
        supervisors.into_iter().filter_map(lost).collect()
    }

    /// Ends a supervisor; its program ends with it, and what is left of that is in its control group.
    fn kill_supervisor(&self, one: &Remnant) -> io::Result<()> {
        let (Ok(pid), Ok(start)) = (one.name.parse(), one.identity.parse()) else { return Ok(()) };
        let key = ProcessKey { pid, start };
        let descendants: Vec<ProcessKey> =
            process::descendants(pid).into_iter().filter_map(|pid| ProcessKey::of(pid).ok()).collect();
        kill_and_wait(key, DEATH_LIMIT);
        descendants.into_iter().for_each(|one| kill_and_wait(one, DEATH_LIMIT));
        match key.open()? {
            None => Ok(()),
            Some(_) => Err(io::Error::other("it was killed and does not end")),
        }
    }

    /// Control groups of this owner and root that have no instance.
    fn lost_groups(&self, homes: &Homes) -> io::Result<Vec<Remnant>> {
        let prefix = cgroup::name(&self.view.owner, self.view.layout.root(), "")?;
        let mut found = Vec::new();
        for home in homes.dirs() {
            for path in entries(home)? {
                let id = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(&prefix));
                let Some(id) = id.filter(|id| !self.is_there(id)) else { continue };
                let Ok(data) = fs::symlink_metadata(&path) else { continue };
                let reason = format!("the directory of its instance {id} is gone");
                let since = data.modified().ok().map(DateTime::from);
                found.push(remnant(RemnantKind::ControlGroup, path.display(), data.ino(), &reason, since));
            }
        }
        Ok(found)
    }

    /// Mounts of the machine in the place of instances that are not there, and in what removals left that were cut off.
    fn lost_mounts(&self) -> io::Result<Vec<Remnant>> {
        let lost = |Mounted { number, place, .. }: Mounted| {
            let reason = self.why_lost(&place)?;
            Some(remnant(RemnantKind::Mount, place.display(), number, &reason, None))
        };
        // What is mounted inside of another one goes first.
        Ok(self.mounts()?.into_iter().rev().filter_map(lost).collect())
    }

    /// Why nothing needs what is mounted at a place; none where something may, or it is in no place of this runtime's.
    fn why_lost(&self, place: &Path) -> Option<String> {
        let layout = &self.view.layout;
        for folder in [layout.instances(), layout.all_volumes()] {
            let Some(id) = place.strip_prefix(&folder).ok().and_then(|rest| rest.iter().next()?.to_str()) else {
                continue;
            };
            if leftovers::is_gone(id) {
                return leftovers::is_left(&folder.join(id)).then(|| format!("the removal of {id} was cut off"));
            }
            let is_one = || matches!(self.view.one(id), Ok(Entry::Ours(_) | Entry::Foreign(_)) | Err(_));
            let is_lost = folder == layout.instances() && is_of_instance(id) && !is_one();
            return is_lost.then(|| format!("there is no instance {id}"));
        }
        None
    }

    /// Mounts of the machine below the instances and the volumes, as they were made.
    fn mounts(&self) -> io::Result<Vec<Mounted>> {
        let folders = [self.view.layout.instances(), self.view.layout.all_volumes()];
        let mounts = mountinfo::parse(&fs::read(mountinfo::OWN)?).into_iter();
        Ok(mounts.filter(|mount| folders.iter().any(|folder| mount.place.starts_with(folder))).collect())
    }

    /// What is left in the folders of volumes: what was being made or removed by a call that was cut off, and workspaces of
    /// slots that have ended.
    fn lost_in_volumes(&self) -> io::Result<Vec<Remnant>> {
        let mut found = Vec::new();
        let mounts = self.mounts()?;
        for folder in entries(&self.view.layout.all_volumes())? {
            let deployment = folder.file_name().and_then(|name| name.to_str()).filter(|name| !name.starts_with('.'));
            let Some(deployment) = deployment.filter(|_| folder.is_dir()) else { continue };
            let ended = self.lost_workspaces(deployment)?.into_iter().map(|(path, mark)| {
                let reason = format!("its slot {deployment}/{}/{} has ended", mark.service, mark.slot);
                (path, reason)
            });
            let is_unfinished = |path: &PathBuf| volumes::whole(path).is_some();
            // Whoever makes or removes a volume holds its folder.
            let unfinished =
                entries(&folder)?.into_iter().filter(is_unfinished).filter(|path| leftovers::is_left(path));
            let cut_off = "a call that made or removed it was cut off".to_owned();
            let unfinished = unfinished.filter(|_| leftovers::hold(&folder).is_ok());
            for (path, reason) in ended.chain(unfinished.map(|path| (path, cut_off.clone()))) {
                let Ok(data) = fs::symlink_metadata(&path) else { continue };
                if data.is_dir() && !mounts.iter().any(|mount| mount.place.starts_with(&path)) {
                    let since = data.modified().ok().map(DateTime::from);
                    found.push(remnant(RemnantKind::Directory, path.display(), data.ino(), &reason, since));
                }
            }
        }
        Ok(found)
    }

    /// Directories that hold no instance and have the name of one, and what calls that were cut off left. One that somebody
    /// mounted something into, or that a supervisor holds, is left to these first.
    fn lost_directories(&self) -> io::Result<Vec<Remnant>> {
        let mut found = Vec::new();
        let mounts = self.mounts()?;
        let is_held = |path: &Path| {
            let lock = fs::File::open(path.join("lock"));
            lock.is_ok_and(|lock| rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive).is_err())
        };
        let gone = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).is_some_and(leftovers::is_gone);
        let volumes = entries(&self.view.layout.all_volumes())?.into_iter().filter(gone);
        for path in entries(&self.view.layout.instances())?.into_iter().chain(volumes) {
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let Ok(data) = fs::symlink_metadata(&path) else { continue };
            if !data.is_dir() {
                continue;
            }
            let reason = match name.starts_with('.') {
                true if leftovers::is_left(&path) => "a call that made or removed it was cut off",
                // One that can't be read may hold a record.
                false if is_of_instance(name) && matches!(self.view.one(name), Ok(Entry::Nothing)) => {
                    "it holds no record of an instance"
                }
                _ => continue,
            };
            // Asked last: to find out takes the lock for a moment, which a start of an instance must not meet.
            if mounts.iter().any(|mount| mount.place.starts_with(&path)) || is_held(&path) {
                continue;
            }
            let since = data.modified().ok().map(DateTime::from);
            found.push(remnant(RemnantKind::Directory, path.display(), data.ino(), reason, since));
        }
        Ok(found)
    }
}

/// Removes what is left in the folder of a deployment's volumes.
fn remove_volume(path: &Path) -> io::Result<()> {
    match volumes::whole(path).is_some() {
        true => volumes::remove_unfinished(path).and_then(|()| workspace::forget_removed(path)),
        false => workspace::remove(path),
    }
}

/// Removes a directory, and nothing that was mounted in its place since it was looked at, be it a part of the same file
/// system; of what is in the folder of all volumes, their bounds too.
fn remove_own(path: &Path, all_volumes: &Path) -> io::Result<()> {
    let (own, above) = (fs::symlink_metadata(path)?, fs::symlink_metadata(path.parent().unwrap_or(path))?);
    if own.dev() != above.dev() || !own.is_dir() {
        return Err(io::Error::other("it is no directory of this file system; unmount it, or remove it by hand"));
    }
    remove::refuse_mounts(path)?;
    match path.parent() == Some(all_volumes) {
        true => volumes::discard(path),
        false => remove::tree(path),
    }
}

/// Whether a directory has the name of an instance: what else lies there is somebody else's.
fn is_of_instance(name: &str) -> bool {
    !name.starts_with('.') && name.split('_').count() >= PARTS_OF_NAME
}

fn remnant(
    kind: RemnantKind,
    name: impl ToString,
    identity: impl ToString,
    reason: &str,
    since: Option<DateTime<Utc>>,
) -> Remnant {
    Remnant { kind, name: name.to_string(), identity: identity.to_string(), reason: reason.to_owned(), since }
}

/// What lies in a directory; nothing where that is not there.
fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read?.map(|entry| Ok(entry?.path())).collect(),
    }
}
