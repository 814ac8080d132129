//! The machine's `/etc` in instances whose root is the machine's: without its secrets, and with the instance's own files
//! about names. Both are told by name. What is mounted over a file goes away in every mount namespace as soon as another file
//! takes the place of that one (rename(2)), which is how passwords and names are changed, and what is not there yet can't be
//! mounted over at all.

use std::ffi::{CStr, OsStr};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, fchmod, fstat, mknodat, openat};

use super::confinement::is_host_key;
use super::failure::{Context, Failure};
use super::inside::{attach, is_directory, place};
use super::mountinfo;
use super::overlay::stack;
use super::rootfs::tmpfs;
use super::skeleton::{Shown, Tree};
use super::sys::{MountAttributes, set_mount_attributes};

const ETC: &str = "/etc";
/// The directory of the SSH server's keys, in [`ETC`].
const SSH: &str = "ssh";
const ETC_SSH: &str = "/etc/ssh";
/// Size of the layer in memory: some names.
const SIZE: &str = "64k";
/// Device number of what stands for "nothing is here" in an overlay, also where the layers below have something.
const WHITEOUT: u64 = 0;

/// Names in [`ETC`] that are not the machine's.
struct Names<'a> {
    hidden: Vec<&'a OsStr>,
    own: Vec<&'a OsStr>,
}

/// Hides secrets of the machine in the root, and makes room for files that are the instance's own. `hidden` and `own` are
/// absolute paths; those elsewhere are not looked at.
///
/// A layer over the directory shows what the machine changes below it later, as far as the kernel looks again. Where there
/// can be none, the directory is replaced by one that shows what there is now.
///
/// # Errors
/// Neither can be done.
pub fn close(root: &mut Tree, hidden: &[PathBuf], own: &[&str]) -> Result<(), Failure> {
    let Ok(etc) = place(root.root(), ETC) else { return Ok(()) };
    if !is_directory(etc.as_fd()) {
        return Ok(());
    }
    let hidden = hidden.iter().map(PathBuf::as_path);
    let own = own.iter().map(Path::new);
    let names = Names { hidden: hidden.filter_map(name_in_etc).collect(), own: own.filter_map(name_in_etc).collect() };
    let has_keys = place(root.root(), ETC_SSH).is_ok_and(|found| is_directory(found.as_fd()));
    if has_mounts_below(Path::new(ETC)) || cover(&etc, &names, has_keys).is_err() {
        root.replace(ETC, &|name| names.shown(name)).with_context(|| format!("hiding secrets in {ETC}"))?;
    }
    if !has_keys {
        return Ok(());
    }
    let shown = |name: &CStr| if is_host_key(name.to_bytes()) { Shown::Not } else { Shown::AsItIs };
    match root.replace(ETC_SSH, &shown) {
        // Where this user can't look, it can't read either.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        done => done.with_context(|| format!("hiding secrets in {ETC_SSH}")),
    }
}

impl Names<'_> {
    fn shown(&self, name: &CStr) -> Shown {
        let name = OsStr::from_bytes(name.to_bytes());
        if self.hidden.contains(&name) {
            Shown::Not
        } else if self.own.contains(&name) {
            Shown::Empty
        } else {
            Shown::AsItIs
        }
    }
}

/// The name of what lies in [`ETC`] itself.
fn name_in_etc(path: &Path) -> Option<&OsStr> {
    (path.parent()? == Path::new(ETC)).then(|| path.file_name())?
}

/// Whether something is mounted below a directory, as in containers, which a layer over it would not show.
fn has_mounts_below(directory: &Path) -> bool {
    let mounts = mountinfo::parse(&fs::read(mountinfo::OWN).unwrap_or_default());
    mounts.iter().any(|mount| mount.place != directory && mount.place.starts_with(directory))
}

/// Mounts a layer over the directory.
fn cover(etc: &OwnedFd, names: &Names<'_>, has_keys: bool) -> io::Result<()> {
    let mode = fstat(etc.as_fd())?.st_mode & 0o7777;
    let layer = tmpfs(SIZE, mode)?;
    // A directory of keys that comes later stays out of sight as a whole.
    let keys = (!has_keys).then(|| OsStr::new(SSH));
    for name in names.hidden.iter().copied().chain(keys) {
        mknodat(layer.as_fd(), name, FileType::CharacterDevice, Mode::empty(), WHITEOUT)?;
    }
    for name in &names.own {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(layer.as_fd(), *name, flags, Mode::empty())?;
        fchmod(file, Mode::from_raw_mode(0o644))?;
    }
    let tree = stack(&[&layer, etc])?;
    let attributes = MountAttributes { read_only: true, no_suid: true, no_dev: true };
    set_mount_attributes(tree.as_fd(), attributes, false)?;
    attach(&tree, etc)
}
