//! The directory that a layer is unpacked into. Nobody else writes to it; still every name is looked up on its own and
//! never through a link, so that nothing outside can be reached whatever an archive holds.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, readlinkat, unlinkat,
};
use rustix::io::Errno;

use super::bounds::MOST_LINKS;
use super::merged::{entry, is_whiteout, link_names};
use crate::runtime::sandbox::remove::tree_at;

/// A directory of the layer: its path without links, and its place.
#[derive(Debug, Clone)]
pub struct Folder {
    /// Names from the root of the layer on.
    pub path: Vec<Vec<u8>>,
    /// Where it is.
    pub place: Arc<OwnedFd>,
}

/// What is found on the way to a directory that can't be gone on.
#[derive(Debug)]
pub enum Stop {
    /// Nothing has this name in this folder.
    Missing(Folder, Vec<u8>),
    /// The mark of something removed has this name in this folder.
    Removed(Folder, Vec<u8>),
    /// Something that is no directory.
    NoDirectory,
    /// Too many links.
    Links,
    /// The file system does not answer.
    Disk(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

impl From<Errno> for Stop {
    fn from(error: Errno) -> Self {
        Self::Disk(error.into())
    }
}

/// The tree.
#[derive(Debug)]
pub struct Tree {
    root: Folder,
    /// The last folder that was asked for: entries of one follow each other.
    last: Option<(Vec<Vec<u8>>, Folder)>,
}

impl Tree {
    /// Opens an empty directory.
    ///
    /// # Errors
    /// It can't be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let place = openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { root: Folder { path: Vec::new(), place: Arc::new(place) }, last: None })
    }

    /// The folder that a path leads to, links followed inside of the tree.
    ///
    /// # Errors
    /// What stands in the way.
    pub fn folder(&mut self, path: &[&[u8]]) -> Result<Folder, Stop> {
        let same = |(names, _): &&(Vec<Vec<u8>>, Folder)| names.iter().map(Vec::as_slice).eq(path.iter().copied());
        if let Some((_, folder)) = self.last.as_ref().filter(same) {
            return Ok(folder.clone());
        }
        let owned: Vec<Vec<u8>> = path.iter().map(|name| name.to_vec()).collect();
        let folder = match self.straight(&owned)? {
            Some(folder) => folder,
            None => self.walk(path)?,
        };
        self.last = Some((owned, folder.clone()));
        Ok(folder)
    }

    /// Forgets the last folder, where something on the way to it may have changed.
    pub fn forget(&mut self) {
        self.last = None;
    }

    /// The folder of a path without links, in one call.
    fn straight(&self, path: &[Vec<u8>]) -> Result<Option<Folder>, Stop> {
        if path.is_empty() {
            return Ok(Some(self.root.clone()));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match openat2(&*self.root.place, path.join(&b'/').as_slice(), flags, Mode::empty(), resolve) {
            Ok(place) => Ok(Some(Folder { path: path.to_vec(), place: Arc::new(place) })),
            Err(Errno::LOOP | Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn walk(&self, path: &[&[u8]]) -> Result<Folder, Stop> {
        let mut rest: Vec<Vec<u8>> = path.iter().rev().map(|name| name.to_vec()).collect();
        let mut at = self.root.clone();
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == b".." {
                let mut path = at.path;
                path.pop();
                at = self.straight(&path)?.ok_or(Stop::NoDirectory)?;
                continue;
            }
            let Some(place) = entry(at.place.as_fd(), &name)? else { return Err(Stop::Missing(at, name)) };
            let stat = fstat(&place)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    at.path.push(name);
                    at.place = Arc::new(place);
                }
                FileType::Symlink => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(Stop::Links);
                    }
                    let target = readlinkat(&place, "", Vec::new())?.into_bytes();
                    if target.starts_with(b"/") {
                        at = self.root.clone();
                    }
                    rest.extend(link_names(&target).into_iter().rev().map(<[u8]>::to_vec));
                }
                _ if is_whiteout(place.as_fd(), &stat) => return Err(Stop::Removed(at, name)),
                _ => return Err(Stop::NoDirectory),
            }
        }
        Ok(at)
    }

    /// Opens a directory by its path without links, for changing it.
    ///
    /// # Errors
    /// It is not there, or no directory any more.
    pub fn reopen(&self, path: &[u8]) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let path = if path.is_empty() { b"." } else { path };
        Ok(openat2(&*self.root.place, path, flags, Mode::empty(), resolve)?)
    }
}

/// Makes a directory that its owner alone can enter, until it gets its own mode.
pub fn make(folder: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    Ok(mkdirat(folder, name, Mode::RWXU)?)
}

/// Removes whatever has this name, with everything in it.
pub fn remove(folder: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    tree_at(folder, &CString::new(name)?)
}
