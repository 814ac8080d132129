//! Mount points on a root that can't be written: the directory that misses one is replaced, for the instance alone, by
//! one in memory that shows the same entries and can take another.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, readlinkat, symlinkat};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::inside::{attach, components, is_directory, place};
use super::rootfs::tmpfs;

/// Most entries of a directory that is replaced: each is a mount, and /usr/bin is not meant.
const MOST_ENTRIES: usize = 1024;
/// Size of the directory in memory: names and empty files only.
const SIZE: &str = "1m";

/// Replaces the deepest directory that exists on the way to `target`. Returns the new mount, which is still writable,
/// and whether it covers the root itself, which then must be opened again.
///
/// # Errors
/// The directory has too many entries, or the kernel refuses.
pub fn replace_parent(root: &OwnedFd, target: &str) -> io::Result<(OwnedFd, bool)> {
    let mut existing = String::from("/");
    for name in components(target)? {
        let next = format!("{}/{name}", existing.trim_end_matches('/'));
        if !place(root.as_fd(), &next).is_ok_and(|found| is_directory(found.as_fd())) {
            break;
        }
        existing = next;
    }
    let covered = place(root.as_fd(), &existing)?;
    let relative = if existing == "/" { "." } else { existing.trim_start_matches('/') };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let listed = openat2(root.as_fd(), relative, flags, Mode::empty(), resolve)?;
    let mode = fstat(covered.as_fd())?.st_mode & 0o7777;
    let tree = tmpfs(SIZE, mode)?;
    attach(&tree, &covered)?;
    // Reached by its descriptor, the covered directory still shows what it has.
    let mut count = 0;
    for entry in Dir::read_from(listed.as_fd())? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        count += 1;
        if count > MOST_ENTRIES {
            return Err(io::Error::other(format!("{existing} has more than {MOST_ENTRIES} entries")));
        }
        show(&covered, &tree, name)?;
    }
    Ok((tree, existing == "/"))
}

/// Shows one entry of the covered directory in the new one.
fn show(covered: &OwnedFd, tree: &OwnedFd, name: &CStr) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = openat(covered.as_fd(), name, flags, Mode::empty())?;
    match FileType::from_raw_mode(fstat(found.as_fd())?.st_mode) {
        FileType::Symlink => {
            let to = readlinkat(covered.as_fd(), name, Vec::new())?;
            return Ok(symlinkat(to.as_c_str(), tree.as_fd(), name)?);
        }
        FileType::Directory => mkdirat(tree.as_fd(), name, Mode::from_raw_mode(0o755))?,
        _ => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            drop(openat(tree.as_fd(), name, flags, Mode::from_raw_mode(0o644))?);
        }
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let copy = open_tree(covered.as_fd(), name, flags)?;
    let place = openat(tree.as_fd(), name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    attach(&copy, &place)
}
