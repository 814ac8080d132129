//! Root file systems of several directories, the uppermost one written to: overlayfs.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, open_tree, unmount,
};

/// Longest value of an option that is set on its own (fsconfig(2)).
const LONGEST_VALUE: usize = 255;
/// Longest text of all options of mount(2): a page.
const LONGEST_OPTIONS: usize = 4095;

/// The directories of an overlay. Options name them by descriptor: a path may hold what separates options.
struct Parts {
    lower: Vec<OwnedFd>,
    upper: OwnedFd,
    work: OwnedFd,
}

fn by_fd(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn open_place(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

impl Parts {
    fn open(lower: &[PathBuf], upper: &Path, work: &Path) -> io::Result<Self> {
        // The root of the overlay has the mode and owner of the upper directory.
        let top = lower.first().ok_or(io::ErrorKind::InvalidInput)?;
        let root = fs::metadata(top)?;
        for folder in [upper, work] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let _ = std::os::unix::fs::chown(upper, Some(root.uid()), Some(root.gid()));
        fs::set_permissions(upper, fs::Permissions::from_mode(root.mode() & 0o7777))?;
        let lower = lower.iter().map(|path| open_place(path)).collect::<io::Result<_>>()?;
        Ok(Self { lower, upper: open_place(upper)?, work: open_place(work)? })
    }

    /// The lower directories in one option.
    fn joined(&self) -> String {
        self.lower.iter().map(by_fd).collect::<Vec<_>>().join(":")
    }

    /// Mounts it attached nowhere.
    fn detached(&self, user: bool) -> io::Result<OwnedFd> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let set = |key: &str, value: &str| fsconfig_set_string(context.as_fd(), key, value);
        match self.lower.as_slice() {
            [only] => set("lowerdir", &by_fd(only))?,
            several => {
                for (index, fd) in several.iter().enumerate() {
                    match set("lowerdir+", &by_fd(fd)) {
                        // Linux 6.5 is the first that adds one to the others.
                        Err(Errno::INVAL) if index == 0 && self.joined().len() <= LONGEST_VALUE => {
                            set("lowerdir", &self.joined())?;
                            break;
                        }
                        done => done?,
                    }
                }
            }
        }
        set("upperdir", &by_fd(&self.upper))?;
        set("workdir", &by_fd(&self.work))?;
        if user {
            fsconfig_set_flag(context.as_fd(), "userxattr")?;
        }
        fsconfig_create(context.as_fd())?;
        Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
    }

    /// Mounts it at a place for a moment, for kernels that take many directories in no other way.
    fn classic(&self, user: bool, place: &Path) -> io::Result<OwnedFd> {
        let user = if user { ",userxattr" } else { "" };
        let (upper, work) = (by_fd(&self.upper), by_fd(&self.work));
        let options = format!("lowerdir={},upperdir={upper},workdir={work}{user}", self.joined());
        if options.len() > LONGEST_OPTIONS {
            let count = self.lower.len();
            return Err(io::Error::other(format!("this kernel can't stack {count} layers; Linux 6.5 can")));
        }
        let options = CString::new(options)?;
        mount("overlay", place, "overlay", MountFlags::empty(), Some(options.as_c_str()))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, place, flags);
        unmount(place, UnmountFlags::DETACH)?;
        Ok(tree?)
    }
}

/// A writable layer over directories, the uppermost first. In a user namespace overlayfs keeps its marks in `user.`
/// attributes (Linux 5.11). `place` is a directory that nothing is mounted at yet.
///
/// # Errors
/// This machine does not allow it.
pub fn overlay(lower: &[PathBuf], upper: &Path, work: &Path, place: &Path) -> io::Result<OwnedFd> {
    let parts = Parts::open(lower, upper, work)?;
    let detached = parts.detached(true).or_else(|_| parts.detached(false));
    match detached {
        Err(_) if parts.lower.len() > 1 => parts.classic(true, place).or_else(|_| parts.classic(false, place)),
        made => made,
    }
}

/// Directories over each other, the uppermost first, in which nothing can be written; attached nowhere.
///
/// # Errors
/// This machine does not allow it.
pub fn stack(directories: &[&OwnedFd]) -> io::Result<OwnedFd> {
    let lower = directories.iter().map(|fd| by_fd(fd)).collect::<Vec<_>>().join(":");
    let stacked = |user: bool| {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(context.as_fd(), "lowerdir", lower.as_str())?;
        if user {
            fsconfig_set_flag(context.as_fd(), "userxattr")?;
        }
        fsconfig_create(context.as_fd())?;
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    };
    Ok(stacked(true).or_else(|_| stacked(false))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shows the overlay at a place of its own, for as long as it is looked at.
    fn look(tree: &OwnedFd, place: &Path) -> Vec<String> {
        let target = open_place(place).unwrap();
        super::super::inside::attach(tree, &target).unwrap();
        let mut names: Vec<String> =
            fs::read_dir(place).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        fs::write(place.join("written"), "x").unwrap();
        unmount(place, UnmountFlags::DETACH).unwrap();
        names.sort();
        names
    }

    #[test]
    fn many_layers_are_stacked_in_the_new_and_in_the_old_way() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let sub = |name: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        // More than fit one option, with names that would separate options.
        let lower: Vec<PathBuf> = (0..60).map(|number| sub(&format!("a:b,c={number}"))).collect();
        for (number, path) in lower.iter().enumerate() {
            fs::write(path.join(format!("{:02}", number / 2)), "x").unwrap();
        }
        let place = sub("place");
        let Ok(tree) = overlay(&lower, &sub("upper"), &sub("work"), &place) else {
            eprintln!("skipped: no overlay on this file system");
            return;
        };
        let wanted: Vec<String> = (0..30).map(|number| format!("{number:02}")).collect();
        assert_eq!(look(&tree, &place), wanted);
        drop(tree);
        let parts = Parts::open(&lower, &sub("upper2"), &sub("work2")).unwrap();
        assert!(parts.joined().len() > LONGEST_VALUE);
        let tree = parts.classic(true, &place).or_else(|_| parts.classic(false, &place)).unwrap();
        assert_eq!(look(&tree, &place), wanted);
        assert!(folder.path().join("upper2/written").exists());
    }
}
