//! A root in the making, and mount points where nothing can be made: the directory that misses one is replaced, for the
//! instance alone, by one in memory that shows the same entries and can take another.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, readlinkat, symlinkat};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::failure::{Context, Failure};
use super::inside::{LINKS, Missing, PLAIN, attach, components, is_directory, place_by, place_or_make_by};
use super::rootfs::{open_place, tmpfs};
use super::sys::{MountAttributes, set_mount_attributes};

/// Most entries of a directory that is replaced: each is a mount, and /usr/bin is not meant.
const MOST_ENTRIES: usize = 1024;
/// Size of the directory in memory: names and empty files only.
const SIZE: &str = "1m";

/// What becomes of an entry of a directory that is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// It is seen as it is now.
    AsItIs,
    /// An empty file is in its place, for something to be mounted over.
    Empty,
    /// It is not there.
    Not,
}

/// A root in the making.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
    /// Where it is mounted.
    mounted: PathBuf,
    /// Whether it can't be written at all.
    read_only: bool,
    /// Directories in memory, which can still be written.
    replaced: Vec<OwnedFd>,
}

impl Tree {
    /// Mounts a tree at a path.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn mount(tree: &OwnedFd, at: PathBuf, read_only: bool) -> Result<Self, Failure> {
        let place = open_place(&at).context("opening the mount point of the root file system")?;
        attach(tree, &place).context("mounting the root file system")?;
        let root = open_place(&at).context("opening the root file system")?;
        Ok(Self { root, mounted: at, read_only, replaced: Vec::new() })
    }

    /// The root as it is now.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The root as it is now, for those who keep it open.
    pub fn root_fd(&self) -> &OwnedFd {
        &self.root
    }

    /// Opens a path, making what is missing of it, if need be in a directory that replaces the real one. That is
    /// needed on a root that can't be written, and for an ordinary user on one that belongs to somebody else.
    ///
    /// # Errors
    /// It can't be made there either, or something on the way is no directory.
    pub fn place_or_make(&mut self, path: &str, missing: Missing) -> io::Result<OwnedFd> {
        self.make_by(LINKS, path, missing)
    }

    /// The same where no link is followed.
    ///
    /// # Errors
    /// The same; `ELOOP` where there is a link on the way.
    pub fn place_or_make_plain(&mut self, path: &str, missing: Missing) -> io::Result<OwnedFd> {
        self.make_by(PLAIN, path, missing)
    }

    fn make_by(&mut self, links: ResolveFlags, path: &str, missing: Missing) -> io::Result<OwnedFd> {
        match place_or_make_by(self.root(), path, missing, links) {
            Err(error) if self.is_refusal(&error) => {
                let (parent, is_root) = replace_parent(&self.root, path, links)?;
                self.replaced.push(parent);
                if is_root {
                    self.root = open_place(&self.mounted)?;
                }
                place_or_make_by(self.root(), path, missing, links)
            }
            found => found,
        }
    }

    /// Replaces a directory by one in memory, in which some of its entries are shown and those that come later are not.
    ///
    /// # Errors
    /// It has too many entries, or the kernel refuses.
    pub fn replace(&mut self, path: &str, shown: &dyn Fn(&CStr) -> Shown) -> io::Result<()> {
        let replaced = replace(&self.root, path, LINKS, shown)?;
        self.replaced.push(replaced);
        Ok(())
    }

    fn is_refusal(&self, error: &io::Error) -> bool {
        match error.raw_os_error() {
            // Overlayfs says the last of these where it can't copy up what belongs to nobody who is known inside.
            Some(libc::EACCES | libc::EPERM | libc::EOVERFLOW) => true,
            Some(libc::EROFS) => self.read_only,
            _ => false,
        }
    }

    /// Attaches a mount at a path, which is made where it is missing.
    ///
    /// # Errors
    /// It can't be made, or the kernel refuses.
    pub fn show(&mut self, mount: &OwnedFd, path: &str, missing: Missing) -> Result<(), Failure> {
        self.place_or_make(path, missing)
            .and_then(|place| attach(mount, &place))
            .with_context(|| format!("mounting {path}"))
    }

    /// Closes the directories that took further mount points, and returns the root.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn finish(self) -> Result<OwnedFd, Failure> {
        for parent in self.replaced {
            let attributes = MountAttributes { read_only: true, no_suid: true, no_dev: true };
            set_mount_attributes(parent.as_fd(), attributes, false).context("making the root read-only")?;
        }
        Ok(self.root)
    }
}

/// Replaces the deepest directory that exists on the way to `target`. Returns the new mount, which is still writable,
/// and whether it covers the root itself, which then must be opened again.
///
/// # Errors
/// The directory has too many entries, or the kernel refuses.
fn replace_parent(root: &OwnedFd, target: &str, links: ResolveFlags) -> io::Result<(OwnedFd, bool)> {
    let mut existing = String::from("/");
    for name in components(target)? {
        let next = format!("{}/{name}", existing.trim_end_matches('/'));
        if !place_by(root.as_fd(), &next, links).is_ok_and(|found| is_directory(found.as_fd())) {
            break;
        }
        existing = next;
    }
    let tree = replace(root, &existing, links, &|_| Shown::AsItIs)?;
    Ok((tree, existing == "/"))
}

/// Replaces a directory. Returns the new mount, which is still writable.
fn replace(root: &OwnedFd, path: &str, links: ResolveFlags, shown: &dyn Fn(&CStr) -> Shown) -> io::Result<OwnedFd> {
    let covered = place_by(root.as_fd(), path, links)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listed = openat(covered.as_fd(), c".", flags, Mode::empty())?;
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
            return Err(io::Error::other(format!("{path} has more than {MOST_ENTRIES} entries")));
        }
        match shown(name) {
            Shown::AsItIs => show(&covered, &tree, name)?,
            Shown::Empty => make_file(&tree, name)?,
            Shown::Not => {}
        }
    }
    Ok(tree)
}

fn make_file(tree: &OwnedFd, name: &CStr) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    drop(openat(tree.as_fd(), name, flags, Mode::from_raw_mode(0o644))?);
    Ok(())
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
        _ => make_file(tree, name)?,
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let copy = open_tree(covered.as_fd(), name, flags)?;
    let place = openat(tree.as_fd(), name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    attach(&copy, &place)
}
