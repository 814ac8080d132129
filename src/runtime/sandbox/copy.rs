//! Private copies of root file systems, where this machine has no overlay to offer, and of what images have where new
//! volumes are mounted: content is shared by the file system where it can (reflink), and copied elsewise.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod,
    fchown, fgetxattr, flistxattr, fsetxattr, fstat, futimens, ioctl_ficlone, linkat, mknodat, openat, readlinkat,
    symlinkat, utimensat,
};
use rustix::io::Errno;

use super::image::tree::{make, remove};
use super::image::{is_opaque, is_whiteout};
use super::links;

/// How many entries are copied between two signs of life.
const TICK: u64 = 1000;
/// Largest list of the names of extended attributes, and largest value: the kernel's own bounds.
const LARGEST_ATTRIBUTES: usize = 64 << 10;
/// Attributes that belong to the overlay, not to the file.
const OVERLAY: [&[u8]; 2] = [b"user.overlay.", b"trusted.overlay."];

/// Copies directories, the uppermost first, into one as an overlay would show them. What is mounted inside of them is
/// left out. `alive` is called now and then.
///
/// # Errors
/// Something can't be read or written, or there is a link on the way to a directory.
pub fn copy(lower: &[PathBuf], target: &Path, alive: &dyn Fn()) -> io::Result<()> {
    copy_opened(lower.iter().map(|layer| links::open(layer)).collect::<io::Result<_>>()?, target, alive)
}

/// The same with directories that are open as places.
///
/// # Errors
/// Something can't be read or written.
pub fn copy_opened(lower: Vec<OwnedFd>, target: &Path, alive: &dyn Fn()) -> io::Result<()> {
    let to = directory(openat(CWD, target, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)?;
    for layer in lower.into_iter().rev() {
        let from = directory(layer)?;
        let stat = fstat(&from)?;
        let privileged = rustix::process::geteuid().is_root();
        let mut copier = Copier { device: stat.st_dev, privileged, links: HashMap::new(), count: 0, alive };
        copier.contents(&from, &to)?;
        copier.finish(&from, &to, &stat)?;
    }
    Ok(())
}

/// Opens a place for listing it.
fn directory(place: OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(place.as_fd(), ".", flags, Mode::empty())?)
}

struct Copier<'a> {
    device: u64,
    privileged: bool,
    /// Files with several names, and one of those in the copy.
    links: HashMap<u64, (OwnedFd, Vec<u8>)>,
    count: u64,
    alive: &'a dyn Fn(),
}

impl Copier<'_> {
    fn contents(&mut self, from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
        for found in Dir::read_from(from)? {
            let found = found?;
            let name = found.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            self.count += 1;
            if self.count.is_multiple_of(TICK) {
                (self.alive)();
            }
            let of = |error: io::Error| {
                io::Error::new(error.kind(), format!("{}: {error}", String::from_utf8_lossy(name).escape_debug()))
            };
            self.entry(from, to, name).map_err(of)?;
        }
        Ok(())
    }

    fn entry(&mut self, from: &OwnedFd, to: &OwnedFd, name: &[u8]) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = openat(from, name, flags, Mode::empty())?;
        let stat = fstat(&place)?;
        if is_whiteout(place.as_fd(), &stat) {
            return remove(to.as_fd(), name);
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            return self.directory(&place, &stat, to, name);
        }
        remove(to.as_fd(), name)?;
        match kind {
            FileType::RegularFile => self.file(from, &stat, to, name),
            FileType::Symlink => {
                let target = readlinkat(&place, "", Vec::new())?;
                symlinkat(target.as_c_str(), to, name)?;
                self.own_name(&stat, to, name)
            }
            FileType::Fifo => self.node(&stat, kind, to, name),
            FileType::CharacterDevice | FileType::BlockDevice if self.privileged => self.node(&stat, kind, to, name),
            // Sockets are nothing without their program.
            _ => Ok(()),
        }
    }

    fn directory(&mut self, place: &OwnedFd, stat: &Stat, to: &OwnedFd, name: &[u8]) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if is_opaque(place.as_fd()) || openat(to, name, flags, Mode::empty()).is_err() {
            remove(to.as_fd(), name)?;
            make(to.as_fd(), name)?;
        }
        let inner_to =
            openat(to, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        // It may be closed to its own owner, as its new one will be.
        fchmod(&inner_to, Mode::RWXU)?;
        if stat.st_dev == self.device {
            let inner_from = directory(openat(place, ".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)?;
            self.contents(&inner_from, &inner_to)?;
            return self.finish(&inner_from, &inner_to, stat);
        }
        Ok(fchmod(&inner_to, Mode::from_raw_mode(stat.st_mode & 0o7777))?)
    }

    /// Gives a directory or file what the other has, in the order in which none undoes another.
    fn finish(&self, from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> io::Result<()> {
        if self.privileged {
            let (uid, gid) = owner(stat);
            fchown(to, uid, gid)?;
        }
        attributes(from, to)?;
        fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        Ok(futimens(to, &times(stat))?)
    }

    fn file(&mut self, from: &OwnedFd, stat: &Stat, to: &OwnedFd, name: &[u8]) -> io::Result<()> {
        if let Some((folder, first)) = self.links.get(&stat.st_ino) {
            return Ok(linkat(folder, first.as_slice(), to, name, AtFlags::empty())?);
        }
        let source =
            openat(from, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
        if ioctl_ficlone(&target, &source).is_err() {
            copy_data(&source, &target, u64::try_from(stat.st_size).unwrap_or(0))?;
        }
        self.finish(&source, &target, stat)?;
        if stat.st_nlink > 1 {
            self.links.insert(stat.st_ino, (to.try_clone()?, name.to_vec()));
        }
        Ok(())
    }

    fn node(&self, stat: &Stat, kind: FileType, to: &OwnedFd, name: &[u8]) -> io::Result<()> {
        match mknodat(to, name, kind, Mode::from_raw_mode(stat.st_mode & 0o777), stat.st_rdev) {
            // No instance could open it.
            Err(Errno::PERM) => Ok(()),
            made => {
                made?;
                self.own_name(stat, to, name)
            }
        }
    }

    fn own_name(&self, stat: &Stat, to: &OwnedFd, name: &[u8]) -> io::Result<()> {
        if self.privileged {
            let (uid, gid) = owner(stat);
            chownat(to, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(utimensat(to, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
    }
}

fn owner(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
}

fn times(stat: &Stat) -> Timestamps {
    let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0) };
    Timestamps { last_access: time, last_modification: time }
}

/// Copies the pieces of a file that are not holes.
fn copy_data(from: &OwnedFd, to: &OwnedFd, size: u64) -> io::Result<()> {
    let (mut from, mut to) = (File::from(from.try_clone()?), File::from(to.try_clone()?));
    let mut at = 0;
    while at < size {
        let (start, end) = match rustix::fs::seek(&from, rustix::fs::SeekFrom::Data(at)) {
            Ok(start) => (start, rustix::fs::seek(&from, rustix::fs::SeekFrom::Hole(start))?),
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            Err(_) => (at, size),
        };
        from.seek(SeekFrom::Start(start))?;
        to.seek(SeekFrom::Start(start))?;
        io::copy(&mut Read::by_ref(&mut from).take(end - start), &mut to)?;
        at = end.max(at + 1);
    }
    to.set_len(size)
}

/// Copies extended attributes, as far as this process may set them.
fn attributes(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let mut names = vec![0; LARGEST_ATTRIBUTES];
    let length = match flistxattr(from, &mut names) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for name in names.get(..length).unwrap_or_default().split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if OVERLAY.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let mut value = vec![0; LARGEST_ATTRIBUTES];
        let Ok(length) = fgetxattr(from, name, &mut value) else { continue };
        match fsetxattr(to, name, value.get(..length).unwrap_or_default(), XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP | Errno::PERM | Errno::ACCESS | Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    #[test]
    fn layers_are_copied_as_an_overlay_shows_them() {
        let folder = tempfile::tempdir().unwrap();
        let sub = |name: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let (upper, lower, target) = (sub("upper"), sub("lower"), sub("target"));
        for (path, text) in [("d/a", "lower a"), ("d/b", "lower b"), ("gone", "x"), ("o/hidden", "x"), ("turns/x", "x")]
        {
            fs::create_dir_all(lower.join(path).parent().unwrap()).unwrap();
            fs::write(lower.join(path), text).unwrap();
        }
        for (path, text) in [("d/b", "upper b"), ("o/own", "own"), ("turns", "a file")] {
            fs::create_dir_all(upper.join(path).parent().unwrap()).unwrap();
            fs::write(upper.join(path), text).unwrap();
        }
        rustix::fs::setxattr(upper.join("o"), "user.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
        rustix::fs::setxattr(upper.join("d/b"), "user.own", b"v", XattrFlags::empty()).unwrap();
        mknodat(CWD, upper.join("gone"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        fs::hard_link(upper.join("d/b"), upper.join("again")).unwrap();
        symlink("d/b", upper.join("link")).unwrap();
        let sparse = File::create(upper.join("sparse")).unwrap();
        sparse.set_len(100 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", 50 << 20).unwrap();
        fs::set_permissions(upper.join("d"), fs::Permissions::from_mode(0o555)).unwrap();
        copy(&[upper.clone(), lower], &target, &|| {}).unwrap();
        let text = |path: &str| fs::read_to_string(target.join(path)).ok();
        assert_eq!(text("d/a").as_deref(), Some("lower a"));
        assert_eq!(text("d/b").as_deref(), Some("upper b"));
        assert_eq!(text("turns").as_deref(), Some("a file"));
        assert_eq!((text("gone"), text("o/hidden"), text("o/own").as_deref()), (None, None, Some("own")));
        assert_eq!(text("link").as_deref(), Some("upper b"));
        let data = |path: &str| fs::metadata(target.join(path)).unwrap();
        assert_eq!(data("d/b").ino(), data("again").ino());
        assert_eq!((data("sparse").len(), data("sparse").blocks() < 10_000), (100 << 20, true));
        assert_eq!(data("d").mode() & 0o777, 0o555);
        let mut value = [0; 8];
        assert_eq!(rustix::fs::getxattr(target.join("d/b"), "user.own", &mut value), Ok(1));
        assert!(!is_opaque(File::open(target.join("o")).unwrap().as_fd()));
        for folder in [upper, target] {
            fs::set_permissions(folder.join("d"), fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
}
