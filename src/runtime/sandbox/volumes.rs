//! Directories of volumes, made when they are first needed, with what the image has at their target.
//!
//! A volume is made under another name and appears when it is complete, so that one whose making was cut off is never taken
//! for whole. What it once took over from an image it never takes over again. Those of a deployment go together, out of
//! sight before anything of them is removed, so that none whose removal was cut off is taken for whole either.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::slice;
use std::time::{Duration, Instant};

use rustix::fs::syncfs;

use super::copy::copy_opened;
use super::failure::{Context, Failure};
use super::fresh::unique;
use super::image::{Merged, path_names};
use super::layout::{InstanceDir, make_private, read_json};
use super::record::{Identity, Launch, Mount, MountSource, Record, Root};
use super::{leftovers, links, quota, remove, workspace};
use crate::runtime::file_lock;

/// Longest time that is waited for another which makes a volume of the same deployment, or takes them away: as long as a
/// start may take.
const LOCK_LIMIT: Duration = Duration::from_secs(90);
/// Time between two looks at whether it has.
const PACE: Duration = Duration::from_millis(5);
/// Most tries to make a folder that somebody takes away at the same time.
const MOST_TRIES: usize = 10;

/// Makes the directories of volumes that do not exist yet.
///
/// # Errors
/// They can't be made, can't take over what the image has, or can't be held to their size.
pub fn make(dir: &InstanceDir, record: &Record, identity: &Identity) -> Result<(), Failure> {
    let launch = &record.launch;
    for mount in &launch.mounts {
        let MountSource::Volume(path) = &mount.source else { continue };
        if !path.exists() || !workspace::is_marked(path, mount, record) {
            make_volume(path, mount, record, identity)?;
        }
        // One that is mounted twice may have its size at one place alone.
        let size = size_of(path, launch);
        limit(path, size)?;
        if size.is_none() && quota::is_counted(path) && !is_limited_by_others(path, dir, record) {
            quota::release(path);
        }
    }
    Ok(())
}

/// The size that a launch gives a volume.
fn size_of(path: &Path, launch: &Launch) -> Option<u64> {
    let is_it = |mount: &&Mount| matches!(&mount.source, MountSource::Volume(source) if source == path);
    launch.mounts.iter().filter(is_it).find_map(|mount| mount.size)
}

/// Whether an instance of another service gives this volume a size. Instances of the same one have another say only until a
/// rollout has replaced them.
fn is_limited_by_others(path: &Path, dir: &InstanceDir, record: &Record) -> bool {
    let own = (&record.id.deployment, &record.id.service);
    let others = dir.path().parent().and_then(|instances| fs::read_dir(instances).ok()).into_iter().flatten().flatten();
    others
        .filter_map(|other| read_json::<Record>(&InstanceDir(other.path()).record()).ok().flatten())
        .any(|other| (&other.id.deployment, &other.id.service) != own && size_of(path, &other.launch).is_some())
}

fn limit(path: &Path, size: Option<u64>) -> Result<(), Failure> {
    let Some(size) = size else { return Ok(()) };
    quota::limit(path, size).with_context(|| format!("holding the volume {} to {size} bytes", path.display()))
}

/// Makes a volume, or makes it anew where it is what a slot has left that ended, and notes whose it is.
fn make_volume(path: &Path, mount: &Mount, record: &Record, identity: &Identity) -> Result<(), Failure> {
    let what = || format!("making the volume {}", path.display());
    let (Some(folder), Some(new)) = (path.parent(), unfinished(path)) else {
        return Err(Failure::setup(format!("{}: its path has no name", what())));
    };
    let _lock = made_and_locked(folder).with_context(what)?;
    if workspace::has_ended(path) {
        remove_held(path).with_context(what)?;
    }
    // Another instance may have made it meanwhile.
    if !path.exists() {
        fill_and_show(path, &new, &record.launch, identity)?;
    }
    workspace::mark(path, mount, record).with_context(|| format!("noting whose the workspace {} is", path.display()))
}

/// Makes a volume under another name, and shows it when it is complete.
fn fill_and_show(path: &Path, new: &Path, launch: &Launch, identity: &Identity) -> Result<(), Failure> {
    let what = || format!("making the volume {}", path.display());
    // Of one that was killed.
    quota::release(new);
    remove::tree(new).with_context(what)?;
    make_private(new).with_context(what)?;
    limit(new, size_of(path, launch))?;
    let is_filled = fill_from_first(path, new, launch).with_context(what)?;
    if !is_filled {
        give(new, identity).with_context(what)?;
    }
    fs::rename(new, path).with_context(what)
}

/// Has a new volume take over what the image has at its targets, as Docker does: the first one with something in it fills
/// the volume, and one that is an empty directory gives its owner and mode while nothing does. Whether there was a directory.
fn fill_from_first(path: &Path, new: &Path, launch: &Launch) -> io::Result<bool> {
    let is_seen = |mount: &&Mount| matches!(&mount.source, MountSource::Volume(source) if source == path);
    let mut is_filled = false;
    for Mount { target, .. } in launch.mounts.iter().filter(is_seen) {
        let told =
            |doing: &str, error: io::Error| io::Error::new(error.kind(), format!("{doing} of the image: {error}"));
        let content = content(&launch.root, target).map_err(|error| told(&format!("looking at {target}"), error))?;
        if content.is_empty() {
            continue;
        }
        fill(content, new).map_err(|error| told(&format!("taking over {target}"), error))?;
        is_filled = true;
        if fs::read_dir(new)?.next().is_some() {
            break;
        }
    }
    Ok(is_filled)
}

/// Name of a volume until it is complete. No volume has a name that begins with a dot.
fn unfinished(path: &Path) -> Option<PathBuf> {
    path.file_name().and_then(OsStr::to_str).map(|name| path.with_file_name(format!(".{name}.new")))
}

/// Whether the folder of a deployment's volumes holds any, or what is left of one. What only told whose one was is none.
///
/// # Errors
/// It can't be read.
pub fn are_in(folder: &Path) -> io::Result<bool> {
    match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        read => Ok(read?.flatten().any(|entry| !workspace::is_mark(&entry.path()))),
    }
}

/// Removes the volumes of a deployment, whose folder this is. None is success.
///
/// # Errors
/// Something is mounted in one, the disk refuses, or a volume has been made for too long.
pub fn remove(folder: &Path) -> io::Result<()> {
    // Held until all is gone, which keeps it from being taken for a leftover. Whoever makes a volume meanwhile makes a folder.
    let Some(_lock) = take(folder)? else { return Ok(()) };
    remove::refuse_mounts(folder)?;
    let aside = folder.with_file_name(unique(leftovers::GONE)?);
    fs::rename(folder, &aside)?;
    discard(&aside)
}

/// Removes what is left of a volume whose making or removal was cut off, unless somebody is at it.
///
/// # Errors
/// Something is mounted in it, or the disk refuses.
pub fn remove_unfinished(path: &Path) -> io::Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    let Some(_lock) = take(folder)? else { return Ok(()) };
    remove::refuse_mounts(path)?;
    quota::release(path);
    remove::tree(path)
}

/// The volume that is being made or removed at this path; none where none is.
pub fn whole(unfinished: &Path) -> Option<PathBuf> {
    let name = unfinished.file_name().and_then(OsStr::to_str)?;
    let name = name.strip_prefix('.')?.strip_suffix(".new")?;
    Some(unfinished.with_file_name(name))
}

/// Removes one volume while its folder is held. None is success.
///
/// # Errors
/// Something is mounted in it, or the disk refuses.
pub fn remove_held(path: &Path) -> io::Result<()> {
    // Out of sight first, under the name of one that was not completed, which whoever makes it anew removes.
    let Some(aside) = unfinished(path) else { return Ok(()) };
    quota::release(&aside);
    remove::tree(&aside)?;
    remove::refuse_mounts(path)?;
    match fs::rename(path, &aside) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        renamed => renamed?,
    }
    quota::release(&aside);
    remove::tree(&aside)
}

/// Removes a folder of volumes that is out of sight.
///
/// # Errors
/// The disk refuses.
pub fn discard(aside: &Path) -> io::Result<()> {
    remove::refuse_mounts(aside)?;
    for volume in fs::read_dir(aside).into_iter().flatten().flatten() {
        quota::release(&volume.path());
    }
    remove::tree(aside)
}

/// Makes a folder of volumes and locks it. It may be taken away between the two.
fn made_and_locked(folder: &Path) -> io::Result<File> {
    for _ in 0..MOST_TRIES {
        make_private(folder)?;
        if let Some(held) = take(folder)? {
            return Ok(held);
        }
    }
    Err(io::Error::other(format!("{} is removed all the time", folder.display())))
}

/// Excludes others that make volumes in a folder, or take it away. `None` where there is no such folder.
///
/// # Errors
/// The disk refuses, or another one has held it for too long.
pub fn take(folder: &Path) -> io::Result<Option<File>> {
    let end = Instant::now() + LOCK_LIMIT;
    loop {
        // Opened each time: it may be taken away and made anew by whoever has it.
        match File::open(folder).and_then(|opened| file_lock::exclusive(opened, folder, Instant::now())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Ok(None) => {}
            locked => return locked,
        }
        if Instant::now() >= end {
            let why = "another has been making or removing volumes of this deployment for too long";
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        std::thread::sleep(PACE);
    }
}

/// Directories of the image that are seen at a path as one, the uppermost first. The machine's own root is no image.
fn content(root: &Root, target: &str) -> io::Result<Vec<OwnedFd>> {
    let layers = match root {
        Root::Host | Root::Shared => return Ok(Vec::new()),
        Root::Dir { path, .. } => slice::from_ref(path),
        Root::Layers { lower, .. } => lower,
        Root::Copy { from, .. } => from,
    };
    // Where a link has appeared since the instance was created, it may lead to what the program must not see.
    let places = layers.iter().map(|layer| links::open(layer)).collect::<io::Result<_>>()?;
    Merged::of(places).directories(&path_names(target))
}

/// Copies what the image has, with its owners as far as this user may give files away, and has it on the disk.
fn fill(content: Vec<OwnedFd>, new: &Path) -> io::Result<()> {
    copy_opened(content, new)?;
    Ok(syncfs(File::open(new)?)?)
}

/// Gives an empty volume to the program's user.
fn give(new: &Path, identity: &Identity) -> io::Result<()> {
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(new, Some(identity.uid), Some(identity.gid))?;
    }
    fs::set_permissions(new, fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_taken_away_is_made_anew_by_who_waits_for_it() {
        let top = tempfile::tempdir().unwrap();
        let folder = top.path().join("demo");
        let held = made_and_locked(&folder).unwrap();
        fs::create_dir(folder.join("data")).unwrap();
        let waiting = std::thread::spawn({
            let folder = folder.clone();
            move || made_and_locked(&folder).map(|_held| fs::read_dir(&folder).unwrap().count())
        });
        std::thread::sleep(4 * PACE);
        // As a removal does it that takes long.
        fs::rename(&folder, top.path().join("aside")).unwrap();
        assert_eq!(waiting.join().unwrap().unwrap(), 0);
        drop(held);
        remove(&folder).unwrap();
        remove(&folder).unwrap();
        let left: Vec<_> = fs::read_dir(top.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["aside"]);
    }
}
