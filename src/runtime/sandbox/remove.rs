//! Removal of directory trees that a foreign program has written.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, StatxAttributes, StatxFlags, openat, renameat_with, statat,
    statx, unlinkat,
};
use rustix::io::Errno;

use super::mountinfo;

/// Removes a directory and everything in it; one that is gone is success. Links are removed, never followed. A
/// directory that its program made unreadable is opened first.
///
/// However deep the tree is, it takes a few descriptors and no deeper stack: what lies in a directory below the first is
/// moved up into the first before that directory goes.
///
/// # Errors
/// Something can't be removed; `ResourceBusy` where something is mounted over it, or in it.
pub fn tree(path: &Path) -> io::Result<()> {
    tree_at(CWD, &c_path(path)?)
}

/// The same with a directory in another one.
///
/// # Errors
/// Something can't be removed.
pub fn tree_at(at: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let top = match open(at, name) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut lifted = 0;
    while empty(top.as_fd(), &mut |name| dissolve(top.as_fd(), name, &mut lifted))? {}
    drop(top);
    gone(unlinkat(at, name, AtFlags::REMOVEDIR))
}

/// Refuses a directory in which something is mounted: what lies there may be somebody else's, and while it is there the
/// directory can't go. Asked before the directory is taken out of sight, so that whoever is told finds it where it was.
///
/// # Errors
/// `ResourceBusy` where something is mounted, with the places and what to do.
pub fn refuse_mounts(directory: &Path) -> io::Result<()> {
    // Where the list can't be read, the removal itself finds out.
    let Ok(mounts) = fs::read(mountinfo::OWN) else { return Ok(()) };
    let below = mountinfo::parse(&mounts).into_iter().filter(|mount| mount.place.starts_with(directory));
    let places: BTreeSet<String> = below.map(|mount| mount.place.display().to_string()).collect();
    if places.is_empty() {
        return Ok(());
    }
    let places: Vec<String> = places.into_iter().collect();
    let message = format!("something is mounted at {}; unmount it, then this goes on", places.join(", "));
    Err(io::Error::new(io::ErrorKind::ResourceBusy, message))
}

/// Whether a directory is where something is mounted, as far as the system tells (Linux 5.8 and later do).
fn is_mount_root(directory: BorrowedFd<'_>) -> bool {
    let found = statx(directory, c"", AtFlags::EMPTY_PATH, StatxFlags::empty());
    found.is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Removes what a directory holds, its directories by `remove`. True where it had any directory.
fn empty(directory: BorrowedFd<'_>, remove: &mut dyn FnMut(&CStr) -> io::Result<()>) -> io::Result<bool> {
    let mut had_any = false;
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if is_directory(directory, name, entry.file_type())? {
            had_any = true;
            remove(name)?;
        } else {
            gone(unlinkat(directory, name, AtFlags::empty()))?;
        }
    }
    Ok(had_any)
}

/// Removes a directory in the first one: its directories become neighbours of it.
fn dissolve(top: BorrowedFd<'_>, name: &CStr, lifted: &mut u64) -> io::Result<()> {
    // Mostly it is empty, or was just emptied.
    match unlinkat(top, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::ACCESS) => {}
        removed => return gone(removed),
    }
    let directory = match open(top, name) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    empty(directory.as_fd(), &mut |child| lift(directory.as_fd(), child, top, lifted))?;
    gone(unlinkat(top, name, AtFlags::REMOVEDIR))
}

/// Moves a directory up into the first one, under a name that is free there.
fn lift(from: BorrowedFd<'_>, name: &CStr, top: BorrowedFd<'_>, lifted: &mut u64) -> io::Result<()> {
    // A directory that may not be written can't be moved: its `..` changes.
    if let Err(Errno::BUSY) = open(from, name) {
        return Err(Errno::BUSY.into());
    }
    loop {
        *lifted += 1;
        let free = CString::new(format!(".lifted-{lifted}"))?;
        match renameat_with(from, name, top, &free, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            // A file system that knows no such rename: the name is looked up instead.
            Err(Errno::INVAL) if statat(top, &free, AtFlags::SYMLINK_NOFOLLOW).is_err() => {
                return gone(rustix::fs::renameat(from, name, top, &free));
            }
            Err(Errno::INVAL) => {}
            moved => return gone(moved),
        }
    }
}

/// Opens a directory, with every right of its owner on it where it belongs to this user. `BUSY` where something is mounted.
fn open(at: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let handle =
        openat(at, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    // What is mounted there is somebody else's, its mode too.
    if is_mount_root(handle.as_fd()) {
        return Err(Errno::BUSY);
    }
    // Through the descriptor: the name may come to mean something else. Another user's is opened as it is.
    let own = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let closed = rustix::fs::fstat(&handle).is_ok_and(|stat| stat.st_mode & 0o700 != 0o700);
    if closed {
        let _ = fs::set_permissions(own, fs::Permissions::from_mode(0o700));
    }
    openat(&handle, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn is_directory(at: BorrowedFd<'_>, name: &CStr, told: FileType) -> io::Result<bool> {
    if told != FileType::Unknown {
        return Ok(told == FileType::Directory);
    }
    match statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What is gone already needs no removing.
fn gone(removed: rustix::io::Result<()>) -> io::Result<()> {
    match removed {
        Err(Errno::NOENT) => Ok(()),
        removed => Ok(removed?),
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

#[cfg(test)]
mod tests {
    use rustix::fs::mkdirat;

    use super::*;

    #[test]
    fn closed_directories_go_and_what_links_lead_to_stays() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("kept"), "x").unwrap();
        let closed = folder.path().join("tree/closed");
        fs::create_dir_all(closed.join("below")).unwrap();
        fs::write(closed.join("file"), "x").unwrap();
        std::os::unix::fs::symlink("../../kept", closed.join("link")).unwrap();
        for path in [closed.join("below"), closed] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
        }
        tree(&folder.path().join("tree")).unwrap();
        assert!(!folder.path().join("tree").exists());
        assert!(folder.path().join("kept").exists());
        tree(&folder.path().join("tree")).unwrap();
    }

    /// Where a process with mounts of its own finds the tree that it tries to remove; it does nothing without.
    const TREE: &str = "KEEL_TEST_TREE";

    #[test]
    fn tries_to_remove_a_tree_with_mounts() {
        let Some(tree_path) = std::env::var_os(TREE) else { return };
        assert_eq!(tree(Path::new(&tree_path)).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    }

    #[test]
    fn what_is_mounted_over_a_tree_or_in_it_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir_all(path("precious/inside")).unwrap();
        fs::set_permissions(path("precious"), fs::Permissions::from_mode(0o555)).unwrap();
        for place in ["tree", "tree/a/b"] {
            fs::create_dir_all(path(place)).unwrap();
            // With the rights to mount, for an ordinary user too, and never where the machine sees it.
            let mut command = std::process::Command::new("unshare");
            command.args([
                "--user",
                "--map-root-user",
                "--mount",
                "sh",
                "-ec",
                "mount --bind $0 $1; shift; exec \"$@\"",
            ]);
            command.args([path("precious"), path(place)]).arg(std::env::current_exe().unwrap());
            command.args(["--exact", "runtime::sandbox::remove::tests::tries_to_remove_a_tree_with_mounts"]);
            let done = command.env(TREE, path("tree")).output().unwrap();
            if String::from_utf8_lossy(&done.stderr).starts_with("unshare: ") {
                return eprintln!("skipped: no user namespaces here");
            }
            assert!(done.status.success(), "{place}: {done:?}");
            assert!(path("precious/inside").exists(), "{place}");
            let mode = fs::metadata(path("precious")).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o555, "{place}");
        }
        tree(&path("tree")).unwrap();
    }

    /// A chain of directories of the same name.
    fn chain(top: &Path, depth: usize) {
        fs::create_dir(top).unwrap();
        let mut at = open(CWD, &c_path(top).unwrap()).unwrap();
        for _ in 0..depth {
            mkdirat(&at, c".lifted-1", Mode::RWXU).unwrap();
            at = open(at.as_fd(), c".lifted-1").unwrap();
        }
        fs::write(format!("/proc/self/fd/{}/file", at.as_raw_fd()), "x").unwrap();
    }

    #[test]
    fn a_tree_goes_however_deep_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().join("deep");
        chain(&top, 100_000);
        // A stack on which no recursion could go this deep.
        let removed = std::thread::Builder::new().stack_size(128 << 10).spawn({
            let top = top.clone();
            move || tree(&top)
        });
        removed.unwrap().join().unwrap().unwrap();
        assert!(!top.exists());
    }
}
