//! Directories of volumes, made when they are first needed, with what the image has at their target.
//!
//! A volume is made under another name and appears when it is complete, so that one whose making was cut off is never taken
//! for whole. What it once took over from an image it never takes over again.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::slice;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock, syncfs};

use super::copy::copy_opened;
use super::failure::{Context, Failure};
use super::image::{Merged, path_names};
use super::layout::make_private;
use super::record::{Identity, Launch, Mount, MountSource, Root};
use super::{links, quota, remove};

/// Longest time that is waited for another instance which makes a volume of the same deployment: as long as a start may
/// take.
const LOCK_LIMIT: Duration = Duration::from_secs(90);
/// Time between two looks at whether it has.
const PACE: Duration = Duration::from_millis(5);

/// Makes the directories of volumes that do not exist yet.
///
/// # Errors
/// They can't be made, can't take over what the image has, or can't be held to their size.
pub fn make(launch: &Launch, identity: &Identity) -> Result<(), Failure> {
    for mount in &launch.mounts {
        let MountSource::Volume(path) = &mount.source else { continue };
        if !path.exists() {
            make_volume(path, mount, &launch.root, identity)?;
        }
        limit(path, mount.size)?;
    }
    Ok(())
}

fn limit(path: &Path, size: Option<u64>) -> Result<(), Failure> {
    let Some(size) = size else { return Ok(()) };
    quota::limit(path, size).with_context(|| format!("holding the volume {} to {size} bytes", path.display()))
}

fn make_volume(path: &Path, mount: &Mount, root: &Root, identity: &Identity) -> Result<(), Failure> {
    let what = || format!("making the volume {}", path.display());
    let (Some(folder), Some(new)) = (path.parent(), unfinished(path)) else {
        return Err(Failure::setup(format!("{}: its path has no name", what())));
    };
    make_private(folder).with_context(what)?;
    let _lock = lock(folder).with_context(what)?;
    // Another instance may have made it meanwhile.
    if path.exists() {
        return Ok(());
    }
    // Of one that was killed.
    quota::release(&new);
    remove::tree(&new).with_context(what)?;
    make_private(&new).with_context(what)?;
    limit(&new, mount.size)?;
    let content = content(root, &mount.target)
        .with_context(|| format!("{}: looking for {} in the image", what(), mount.target))?;
    if content.is_empty() {
        give(&new, identity).with_context(what)?;
    } else {
        fill(content, &new).with_context(|| format!("{}: taking over {} of the image", what(), mount.target))?;
    }
    fs::rename(&new, path).with_context(what)
}

/// Name of a volume until it is complete. No volume has a name that begins with a dot.
fn unfinished(path: &Path) -> Option<PathBuf> {
    path.file_name().and_then(OsStr::to_str).map(|name| path.with_file_name(format!(".{name}.new")))
}

/// Excludes others that make volumes in a folder.
fn lock(folder: &Path) -> io::Result<File> {
    let (folder, end) = (File::open(folder)?, Instant::now() + LOCK_LIMIT);
    while flock(&folder, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() >= end {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "another instance has been making one for too long"));
        }
        std::thread::sleep(PACE);
    }
    Ok(folder)
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
