//! Unpacks one layer into a directory of its own, in the form that overlayfs stacks: what the layer removes becomes a
//! character device 0:0, a directory that replaces another an opaque one.
//!
//! A layer is the same whatever lies below, with two exceptions: a directory that the archive has no entry for, but
//! things in, has the attributes that it has below (ordinary ones where nothing is below); and a hard link may lead to a
//! file below. Such a layer is unpacked once more with those layers at hand.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, XattrFlags, chownat, fchmod, fchown, fsetxattr, fstat, futimens, linkat,
    makedev, mknodat, openat, readlinkat, setxattr, symlinkat, utimensat,
};
use rustix::io::Errno;

use super::attributes::{Attributes, Directories};
use super::bounds::{DEEPEST_DIRECTORY, MOST_COPIED_UP, MOST_ENTRIES};
use super::error::quoted;
use super::merged::{
    MARKED, Merged, OPAQUE, WHITEOUT as MARK_FILE, YES, entry, is_opaque, is_whiteout, proc_path, reopen,
};
use super::root::RootDirectory;
use super::tar::{Entry, Kind, Reader, TarError, names};
use super::tree::{self, Folder, Stop, Tree};

/// What names of removed things begin with.
const WHITEOUT: &[u8] = b".wh.";
/// What names of marks for the file system of the builder begin with.
const MARK: &[u8] = b".wh..wh.";
/// The name that makes its directory hide those below.
const OPAQUE_MARK: &[u8] = b".wh..wh..opq";
/// Size of one read of content.
const BUFFER: usize = 128 << 10;
/// Mode of directories that nobody says anything about.
pub const DIRECTORY_MODE: u32 = 0o755;

/// What there is to know about an unpacked layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// It hides everything below.
    pub opaque: bool,
    /// It is right above these lower layers only; above none of them where there are none.
    pub needed_lower: bool,
    /// The root directory, where the archive has an entry for it.
    pub root: Option<RootDirectory>,
}

/// A layer can't be unpacked.
#[derive(Debug)]
pub enum Problem {
    /// The archive must not be unpacked; why, and the entry.
    Refused(String),
    /// The layers below are needed, and were not given.
    NeedsLower,
    /// The disk was in the way.
    Disk(String),
}

type Result<T> = std::result::Result<T, Problem>;

/// Unpacks an archive into an empty directory. `lower` are the layers below, none for the lowest; without any word of
/// them the archive must do without. The reader is read to its end.
///
/// # Errors
/// See [`Problem`]; what is in the directory then is of no use.
pub fn unpack(archive: impl Read, target: &Path, lower: Option<&Merged>) -> Result<Unpacked> {
    let disk = |error: io::Error| Problem::Disk(format!("opening {}: {error}", target.display()));
    let mut unpacker = Unpacker {
        tree: Tree::open(target).map_err(disk)?,
        lower,
        privileged: rustix::process::geteuid().is_root(),
        directories: Directories::default(),
        copied: 0,
        outcome: Unpacked::default(),
        buffer: vec![0; BUFFER],
    };
    let root = Attributes { mode: DIRECTORY_MODE, ..Attributes::default() };
    unpacker.directories.note(Vec::new(), root).map_err(Problem::Refused)?;
    let mut reader = Reader::new(archive);
    let mut count = 0_u64;
    while let Some(entry) = reader.next_entry().map_err(of_archive)? {
        count += 1;
        if count > MOST_ENTRIES {
            return Err(Problem::Refused(format!("it has more than {MOST_ENTRIES} entries")));
        }
        unpacker.entry(&entry, &mut reader).map_err(|fault| fault.at(&entry))?;
    }
    reader.finish().map_err(of_archive)?;
    unpacker.finish().map_err(|error| Problem::Disk(format!("finishing directories: {error}")))?;
    Ok(unpacker.outcome)
}

/// Reading an archive means reading what is packed: everything that goes wrong then is its own fault, as the packed
/// bytes lie on this machine's disk.
fn of_archive(error: TarError) -> Problem {
    Problem::Refused(error.to_string())
}

/// What is wrong with one entry.
enum Fault {
    Refused(String),
    NeedsLower,
    Disk(io::Error),
}

impl Fault {
    fn refused(why: impl Into<String>) -> Self {
        Self::Refused(why.into())
    }

    fn at(self, entry: &Entry) -> Problem {
        let name = quoted(&entry.path);
        match self {
            Self::Refused(why) => Problem::Refused(format!("the entry \"{name}\" is refused: {why}")),
            Self::NeedsLower => Problem::NeedsLower,
            Self::Disk(error) => Problem::Disk(format!("unpacking \"{name}\": {error}")),
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(Errno::NAMETOOLONG) => Self::refused("its name is too long for this machine"),
            Some(Errno::MLINK) => Self::refused("it is one more name of a file than the file system allows"),
            _ => Self::Disk(error),
        }
    }
}

impl From<Errno> for Fault {
    fn from(error: Errno) -> Self {
        io::Error::from(error).into()
    }
}

impl From<TarError> for Fault {
    fn from(error: TarError) -> Self {
        Self::refused(error.to_string())
    }
}

impl From<Stop> for Fault {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Missing(..) | Stop::Removed(..) => Self::refused("the directory that it lies in is missing"),
            Stop::NoDirectory => Self::refused("what it lies in is no directory"),
            Stop::Links => Self::refused("too many links lead to it"),
            Stop::Disk(error) => error.into(),
        }
    }
}

type Done<T = ()> = std::result::Result<T, Fault>;

struct Unpacker<'a> {
    tree: Tree,
    lower: Option<&'a Merged>,
    privileged: bool,
    directories: Directories,
    copied: u64,
    outcome: Unpacked,
    buffer: Vec<u8>,
}

fn joined(folder: &Folder, name: &[u8]) -> Vec<u8> {
    let mut path = folder.path.join(&b'/');
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// What was just made.
fn made(folder: &Folder, name: &[u8]) -> io::Result<OwnedFd> {
    Ok(entry(folder.place.as_fd(), name)?.ok_or(io::ErrorKind::NotFound)?)
}

/// Marks something as removed without a device node.
fn mark_removed(folder: &Folder, name: &[u8]) -> Done {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(&*folder.place, name, flags, Mode::RUSR | Mode::WUSR)?;
    fsetxattr(&file, MARK_FILE, YES, XattrFlags::empty())?;
    if is_opaque(folder.place.as_fd()) {
        return Ok(());
    }
    let [_, user] = OPAQUE;
    Ok(setxattr(proc_path(folder.place.as_fd()).as_str(), user, MARKED, XattrFlags::empty())?)
}

/// Makes a directory hide those below. Which mark overlayfs looks at depends on who mounts; one that can't be set can't
/// be looked at.
fn set_opaque(directory: BorrowedFd<'_>) -> Done {
    let path = proc_path(directory);
    match OPAQUE.map(|attribute| setxattr(path.as_str(), attribute, YES, XattrFlags::empty())) {
        [Err(_), Err(error)] => Err(error.into()),
        _ => Ok(()),
    }
}

impl Unpacker<'_> {
    fn entry(&mut self, entry: &Entry, reader: &mut Reader<impl Read>) -> Done {
        let path = names(&entry.path).map_err(Fault::refused)?;
        let Some((name, parents)) = path.split_last() else {
            return match entry.kind {
                Kind::Directory => {
                    let attributes = Attributes::of(entry).map_err(Fault::Refused)?;
                    self.own_directory(self.tree.reopen(b"")?.as_fd(), entry, &attributes)?;
                    let Attributes { mode, uid, gid, .. } = attributes;
                    self.outcome.root = Some(RootDirectory { mode, uid, gid });
                    self.directories.note(Vec::new(), attributes).map_err(Fault::Refused)
                }
                Kind::Unknown => Ok(()),
                _ => Err(Fault::refused("it would replace the root")),
            };
        };
        if entry.kind == Kind::Unknown {
            return Ok(());
        }
        if *name == OPAQUE_MARK {
            return self.opaque(parents);
        }
        if name.starts_with(MARK) {
            return Ok(());
        }
        let folder = self.parent(parents)?;
        if let Some(removed) = name.strip_prefix(WHITEOUT) {
            return match removed {
                b"" | b"." | b".." => Err(Fault::refused("it removes nothing that has a name")),
                removed => self.whiteout(&folder, removed),
            };
        }
        match entry.kind {
            Kind::Directory => self.directory(&folder, name, entry),
            Kind::File => self.file(&folder, name, entry, reader),
            Kind::HardLink => self.hard_link(&folder, name, entry),
            Kind::Symlink => self.symlink(&folder, name, &entry.link, &Attributes::of(entry).map_err(Fault::Refused)?),
            Kind::CharacterDevice => self.node(&folder, name, entry, FileType::CharacterDevice),
            Kind::BlockDevice => self.node(&folder, name, entry, FileType::BlockDevice),
            Kind::Fifo => self.node(&folder, name, entry, FileType::Fifo),
            Kind::Unknown => Ok(()),
        }
    }

    /// The directory that something lies in; what is missing of it is made as it is below.
    fn parent(&mut self, path: &[&[u8]]) -> Done<Folder> {
        loop {
            match self.tree.folder(path) {
                Ok(folder) if folder.path.len() > DEEPEST_DIRECTORY => {
                    return Err(Fault::refused(format!("it lies deeper than {DEEPEST_DIRECTORY} directories")));
                }
                Ok(folder) => return Ok(folder),
                Err(Stop::Missing(folder, name)) => self.copy_from_below(&folder, &name)?,
                // Removed and made anew.
                Err(Stop::Removed(folder, name)) => {
                    self.clear(&folder, &name)?;
                    self.plain_directory(&folder, &name)?;
                    set_opaque(made(&folder, &name)?.as_fd())?;
                }
                Err(stop) => return Err(stop.into()),
            }
        }
    }

    /// Makes what lies on the way to an entry, but has none itself.
    fn copy_from_below(&mut self, folder: &Folder, name: &[u8]) -> Done {
        let path: Vec<&[u8]> = folder.path.iter().map(Vec::as_slice).chain([name]).collect();
        let Some(found) = self.below(&path)? else { return self.plain_directory(folder, name) };
        let attributes = Attributes::of_stat(&found.stat);
        match FileType::from_raw_mode(found.stat.st_mode) {
            FileType::Directory => {
                tree::make(folder.place.as_fd(), name)?;
                self.own(made(folder, name)?.as_fd(), &attributes)?;
                self.directories.note(joined(folder, name), attributes).map_err(Fault::Refused)
            }
            FileType::Symlink => {
                let target = readlinkat(&found.place, "", Vec::new())?.into_bytes();
                self.symlink(folder, name, &target, &attributes)
            }
            _ => Err(Fault::refused("what it lies in is no directory in the layers below")),
        }
    }

    /// What a path leads to in the layers below.
    fn below(&mut self, path: &[&[u8]]) -> Done<Option<super::merged::Found>> {
        match self.lower {
            None => Err(Fault::NeedsLower),
            Some(lower) => {
                // Also where there are none: above others it would be another.
                self.outcome.needed_lower = true;
                if lower.is_empty() { Ok(None) } else { Ok(lower.find(path)?) }
            }
        }
    }

    fn plain_directory(&mut self, folder: &Folder, name: &[u8]) -> Done {
        tree::make(folder.place.as_fd(), name)?;
        let attributes = Attributes { mode: DIRECTORY_MODE, ..Attributes::default() };
        self.directories.note(joined(folder, name), attributes).map_err(Fault::Refused)
    }

    fn opaque(&mut self, path: &[&[u8]]) -> Done {
        let folder = self.parent(path)?;
        if folder.path.is_empty() {
            self.outcome.opaque = true;
            return Ok(());
        }
        set_opaque(folder.place.as_fd())
    }

    /// Marks something as removed, unless this layer has it itself, which then replaces what is below.
    fn whiteout(&mut self, folder: &Folder, name: &[u8]) -> Done {
        if let Some(own) = entry(folder.place.as_fd(), name)? {
            let is_directory = FileType::from_raw_mode(fstat(&own)?.st_mode) == FileType::Directory;
            // A mark that is there already may stay, too.
            return if is_directory { set_opaque(own.as_fd()) } else { Ok(()) };
        }
        match mknodat(&*folder.place, name, FileType::CharacterDevice, Mode::empty(), 0) {
            // On an overlay, and before Linux 5.8 without root.
            Err(Errno::PERM) => mark_removed(folder, name),
            made => Ok(made?),
        }
    }

    /// Removes what has this name already: the last entry of a name wins. True where it was marked as removed.
    fn clear(&mut self, folder: &Folder, name: &[u8]) -> Done<bool> {
        let Some(old) = entry(folder.place.as_fd(), name)? else { return Ok(false) };
        let stat = fstat(&old)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            self.directories.forget(&joined(folder, name));
        }
        let removed = is_whiteout(old.as_fd(), &stat);
        self.tree.forget();
        tree::remove(folder.place.as_fd(), name)?;
        Ok(removed)
    }

    fn directory(&mut self, folder: &Folder, name: &[u8], entry_: &Entry) -> Done {
        let attributes = Attributes::of(entry_).map_err(Fault::Refused)?;
        let old = entry(folder.place.as_fd(), name)?.map(fstat).transpose()?;
        let is_directory = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let mut removed = false;
        if !old.as_ref().is_some_and(is_directory) {
            removed = self.clear(folder, name)?;
            tree::make(folder.place.as_fd(), name)?;
        }
        let place = made(folder, name)?;
        if removed {
            set_opaque(place.as_fd())?;
        }
        self.own_directory(place.as_fd(), entry_, &attributes)?;
        self.directories.note(joined(folder, name), attributes).map_err(Fault::Refused)
    }

    /// Gives a directory its owner and extended attributes; mode and time come at the end.
    fn own_directory(&self, place: BorrowedFd<'_>, entry: &Entry, attributes: &Attributes) -> Done {
        self.own(place, attributes)?;
        let path = proc_path(place);
        self.set_xattrs(entry, |name, value| setxattr(path.as_str(), name, value, XattrFlags::empty()))
    }

    fn own(&self, place: BorrowedFd<'_>, attributes: &Attributes) -> Done {
        if self.privileged {
            let (uid, gid) = attributes.owner();
            chownat(place, "", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        Ok(())
    }

    fn create(&mut self, folder: &Folder, name: &[u8]) -> Done<File> {
        self.clear(folder, name)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat(&*folder.place, name, flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    fn file(&mut self, folder: &Folder, name: &[u8], entry: &Entry, reader: &mut Reader<impl Read>) -> Done {
        let attributes = Attributes::of(entry).map_err(Fault::Refused)?;
        let mut file = self.create(folder, name)?;
        match &entry.sparse {
            None => loop {
                let read = reader.read_content(&mut self.buffer)?;
                if read == 0 {
                    break;
                }
                file.write_all(self.buffer.get(..read).unwrap_or_default())?;
            },
            Some(map) => {
                file.set_len(entry.size)?;
                for segment in map {
                    let (mut at, mut left) = (segment.offset, segment.length);
                    while left > 0 {
                        let most = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
                        let read = reader.read_content(self.buffer.get_mut(..most).unwrap_or_default())?;
                        file.write_all_at(self.buffer.get(..read).unwrap_or_default(), at)?;
                        at += read as u64;
                        left -= read as u64;
                    }
                }
            }
        }
        self.dress(&file, &attributes, Some(entry))
    }

    /// Gives a file its owner, attributes, mode and time, in the order in which none undoes another.
    fn dress(&self, file: &File, attributes: &Attributes, entry: Option<&Entry>) -> Done {
        if self.privileged {
            let (uid, gid) = attributes.owner();
            fchown(file, uid, gid)?;
        }
        if let Some(entry) = entry {
            self.set_xattrs(entry, |name, value| fsetxattr(file, name, value, XattrFlags::empty()))?;
        }
        fchmod(file, Mode::from_raw_mode(attributes.mode))?;
        Ok(futimens(file, &attributes.times())?)
    }

    /// Sets the extended attributes that an image may bring: those of users, and file capabilities as root. The others
    /// belong to the kernel or to this machine; those of overlayfs above all.
    fn set_xattrs(&self, entry: &Entry, set: impl Fn(&[u8], &[u8]) -> rustix::io::Result<()>) -> Done {
        for (name, value) in &entry.xattrs {
            let allowed = match name.as_slice() {
                b"security.capability" => self.privileged,
                name => name.starts_with(b"user.") && !name.starts_with(b"user.overlay."),
            };
            if !allowed {
                tracing::debug!(attribute = quoted(name), "an attribute of an image is left out");
                continue;
            }
            match set(name, value) {
                Ok(()) => {}
                // The file system has none.
                Err(Errno::NOTSUP | Errno::PERM | Errno::ACCESS) => {}
                Err(error) => {
                    return Err(Fault::refused(format!("its attribute {} can't be set: {error}", quoted(name))));
                }
            }
        }
        Ok(())
    }

    fn symlink(&mut self, folder: &Folder, name: &[u8], target: &[u8], attributes: &Attributes) -> Done {
        if target.is_empty() || target.contains(&0) {
            return Err(Fault::refused("it links to nothing that has a name"));
        }
        self.clear(folder, name)?;
        symlinkat(target, &*folder.place, name)?;
        if self.privileged {
            let (uid, gid) = attributes.owner();
            chownat(&*folder.place, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(utimensat(&*folder.place, name, &attributes.times(), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn hard_link(&mut self, folder: &Folder, name: &[u8], entry_: &Entry) -> Done {
        let target = names(&entry_.link).map_err(|why| Fault::refused(why.replace("name", "target")))?;
        let Some((target_name, parents)) = target.split_last() else {
            return Err(Fault::refused("it links to the root"));
        };
        let found = match self.tree.folder(parents) {
            Ok(at) => {
                let own = entry(at.place.as_fd(), target_name)?;
                let stat = own.as_ref().map(fstat).transpose()?;
                let removed = own.zip(stat).is_some_and(|(own, stat)| is_whiteout(own.as_fd(), &stat));
                stat.filter(|_| !removed).map(|stat| (at, stat))
            }
            Err(Stop::Missing(..) | Stop::Removed(..)) => None,
            Err(stop) => return Err(stop.into()),
        };
        let (at, stat) = match found {
            Some(found) => found,
            None => self.copy_up(parents, target_name)?,
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(Fault::refused("it is a further name of a directory"));
        }
        let old = entry(folder.place.as_fd(), name)?.map(fstat).transpose()?;
        if old.is_some_and(|old| (old.st_dev, old.st_ino) == (stat.st_dev, stat.st_ino)) {
            return Ok(());
        }
        self.clear(folder, name)?;
        Ok(linkat(&*at.place, *target_name, &*folder.place, name, AtFlags::empty())?)
    }

    /// Copies a file of the layers below into this one.
    fn copy_up(&mut self, parents: &[&[u8]], name: &[u8]) -> Done<(Folder, Stat)> {
        let path: Vec<&[u8]> = parents.iter().copied().chain([name]).collect();
        let missing = || Fault::refused("what it is a further name of does not exist");
        let found = self.below(&path)?.ok_or_else(missing)?;
        let folder = self.parent(parents)?;
        let attributes = Attributes::of_stat(&found.stat);
        match FileType::from_raw_mode(found.stat.st_mode) {
            FileType::RegularFile => {
                let from = reopen(found.place.as_fd())?;
                let mut to = self.create(&folder, name)?;
                let left = MOST_COPIED_UP.saturating_sub(self.copied);
                let copied = io::copy(&mut from.take(left.saturating_add(1)), &mut to)?;
                if copied > left {
                    return Err(Fault::refused(format!(
                        "further names of lower files take more than {MOST_COPIED_UP} bytes"
                    )));
                }
                self.copied += copied;
                self.dress(&to, &attributes, None)?;
            }
            FileType::Symlink => {
                let target = readlinkat(&found.place, "", Vec::new())?.into_bytes();
                self.symlink(&folder, name, &target, &attributes)?;
            }
            _ => return Err(Fault::refused("it is a further name of something that is no file")),
        }
        let stat = fstat(made(&folder, name)?)?;
        Ok((folder, stat))
    }

    /// Makes a named pipe or a device node. Nodes need root, and are left out without; none can be opened through the
    /// mount of an image in any case.
    fn node(&mut self, folder: &Folder, name: &[u8], entry: &Entry, kind: FileType) -> Done {
        let attributes = Attributes::of(entry).map_err(Fault::Refused)?;
        let device = if kind == FileType::Fifo { 0 } else { makedev(entry.device.0, entry.device.1) };
        if kind == FileType::CharacterDevice && device == 0 {
            return Err(Fault::refused("it is a device that marks removed files on this machine"));
        }
        self.clear(folder, name)?;
        if kind != FileType::Fifo && !self.privileged {
            return Ok(());
        }
        match mknodat(&*folder.place, name, kind, Mode::RUSR | Mode::WUSR, device) {
            Err(Errno::PERM) if kind != FileType::Fifo => return Ok(()),
            made => made?,
        }
        if self.privileged {
            let (uid, gid) = attributes.owner();
            chownat(&*folder.place, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        rustix::fs::chmodat(&*folder.place, name, Mode::from_raw_mode(attributes.mode), AtFlags::empty())?;
        Ok(utimensat(&*folder.place, name, &attributes.times(), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Gives directories their modes and times, inner ones first: an outer one may come to be closed.
    fn finish(&self) -> io::Result<()> {
        for (path, attributes) in self.directories.inner_first() {
            let place = self.tree.reopen(path)?;
            fchmod(&place, Mode::from_raw_mode(attributes.mode))?;
            futimens(&place, &attributes.times())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
