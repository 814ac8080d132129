//! Private copies of root file systems, where this machine has no overlay to offer, and of what images have where new
//! volumes are mounted: content is shared by the file system where it can (reflink), and copied elsewise.
//!
//! However deep a tree is and however many of its files have several names, it takes a bounded number of descriptors and no
//! deeper stack.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
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

/// How many directories on the way to the one that is copied stay open, each with two descriptors: more than the trees of
/// programs are deep. Those below are opened again by their names.
const MOST_OPEN: usize = 64;
/// Deepest directory: twice as deep as a path of the longest length (PATH_MAX) that one call to the kernel takes.
const DEEPEST: usize = 4096;
/// How many files with several names are remembered, in some hundred bytes each: more than the largest images have. A
/// further name of another one becomes a file of its own.
const MOST_LINKED: usize = 1 << 20;
/// Largest list of the names of extended attributes, and largest value: the kernel's own bounds.
const LARGEST_ATTRIBUTES: usize = 64 << 10;
/// Attributes that belong to the overlay, not to the file.
const OVERLAY: [&[u8]; 2] = [b"user.overlay.", b"trusted.overlay."];
/// How a directory is opened for listing it or for making entries in it.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Copies directories, the uppermost first, into one as an overlay would show them. What is mounted inside of them is
/// left out.
///
/// # Errors
/// Something can't be read or written, or there is a link on the way to a directory.
pub fn copy(lower: &[PathBuf], target: &Path) -> io::Result<()> {
    copy_opened(lower.iter().map(|layer| links::open(layer)).collect::<io::Result<_>>()?, target)
}

/// The same with directories that are open as places.
///
/// # Errors
/// Something can't be read or written.
pub fn copy_opened(lower: Vec<OwnedFd>, target: &Path) -> io::Result<()> {
    let to = openat(CWD, target, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    for layer in lower.into_iter().rev() {
        Copier::new(&layer, &to)?.tree()?;
    }
    Ok(())
}

/// A directory of both trees.
struct Pair {
    from: OwnedFd,
    to: OwnedFd,
}

/// A directory that is being copied.
struct Folder {
    /// Its name in the one above; the uppermost has none.
    name: CString,
    /// What it is like.
    stat: Stat,
    /// Both of it, unless it is to be opened again.
    pair: Option<Pair>,
    /// Entries that are not copied yet.
    left: Vec<CString>,
    /// Its place among the directories that hold a file with several names, or one that does.
    number: Option<usize>,
}

/// Files with several names.
#[derive(Default)]
struct Linked {
    /// Files by the numbers of their file system, as a directory may hold mounts, and of themselves: the place of their
    /// directory, and their name in it.
    files: HashMap<(u64, u64), (usize, CString)>,
    /// Directories: the place of the one above, and the name in it. The uppermost one, which is the first, has neither.
    folders: Vec<(usize, CString)>,
}

impl Linked {
    /// Names on the way to a directory.
    fn way(&self, mut number: usize) -> Vec<&CString> {
        let mut names = Vec::new();
        while let Some((above, name)) = self.folders.get(number).filter(|_| number > 0) {
            names.push(name);
            number = *above;
        }
        names.reverse();
        names
    }
}

struct Copier {
    device: u64,
    privileged: bool,
    /// The uppermost directory of the copy.
    top: OwnedFd,
    /// The directories on the way to the one that is copied now, the uppermost first.
    folders: Vec<Folder>,
    /// Files with several names, of which there is one in the copy.
    linked: Linked,
}

impl Copier {
    fn new(layer: &OwnedFd, to: &OwnedFd) -> io::Result<Self> {
        let pair = Pair { from: down(layer, c".")?, to: down(to, c".")? };
        let stat = fstat(&pair.from)?;
        let (top, left) = (pair.to.try_clone()?, entries(&pair.from)?);
        let folder = Folder { name: CString::default(), stat, pair: Some(pair), left, number: None };
        let privileged = rustix::process::geteuid().is_root();
        Ok(Self { device: stat.st_dev, privileged, top, folders: vec![folder], linked: Linked::default() })
    }

    /// Copies everything.
    fn tree(&mut self) -> io::Result<()> {
        while !self.folders.is_empty() {
            let mut at = None;
            self.step(&mut at).map_err(|error| {
                let way = self.folders.iter().skip(1).map(|folder| &folder.name).chain(&at);
                let path: Vec<_> = way.map(|name| name.to_string_lossy().escape_debug().to_string()).collect();
                io::Error::new(error.kind(), format!("{}: {error}", path.join("/")))
            })?;
        }
        Ok(())
    }

    /// Copies the next entry of the innermost directory, which is told, or leaves it where there is none.
    fn step(&mut self, at: &mut Option<CString>) -> io::Result<()> {
        let pair = self.open()?;
        let Some(folder) = self.folders.last_mut() else { return Ok(()) };
        let Some(name) = folder.left.pop() else {
            let stat = folder.stat;
            self.finish(&pair.from, &pair.to, &stat)?;
            self.folders.pop();
            return Ok(());
        };
        let name = at.insert(name);
        let inner = self.entry(&pair, name)?;
        if (inner.is_none() || self.folders.len() <= MOST_OPEN)
            && let Some(folder) = self.folders.last_mut()
        {
            folder.pair = Some(pair);
        }
        self.folders.extend(inner);
        Ok(())
    }

    /// Both of the innermost directory. Where they are not open, they are opened by their names from the last one that is.
    fn open(&mut self) -> io::Result<Pair> {
        if let Some(pair) = self.folders.last_mut().and_then(|folder| folder.pair.take()) {
            return Ok(pair);
        }
        let last = self.folders.iter().rposition(|folder| folder.pair.is_some()).unwrap_or_default();
        let mut way = self.folders.iter().skip(last);
        let open = way.next().and_then(|folder| folder.pair.as_ref()).ok_or(io::ErrorKind::NotFound)?;
        let mut at = Pair { from: open.from.try_clone()?, to: open.to.try_clone()? };
        for Folder { name, stat, .. } in way {
            at = Pair { from: down(&at.from, name)?, to: down(&at.to, name)? };
            let found = fstat(&at.from)?;
            if (found.st_dev, found.st_ino) != (stat.st_dev, stat.st_ino) {
                return Err(io::Error::other("it was replaced while it was copied"));
            }
        }
        Ok(at)
    }

    /// Copies an entry. A directory is made, and returned to be filled.
    fn entry(&mut self, Pair { from, to }: &Pair, name: &CString) -> io::Result<Option<Folder>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = openat(from, name, flags, Mode::empty())?;
        let stat = fstat(&place)?;
        if is_whiteout(place.as_fd(), &stat) {
            return remove(to.as_fd(), name.to_bytes()).map(|()| None);
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            return self.directory(&place, stat, to, name);
        }
        remove(to.as_fd(), name.to_bytes())?;
        match kind {
            FileType::RegularFile => self.file(from, &stat, to, name)?,
            FileType::Symlink => {
                let target = readlinkat(&place, "", Vec::new())?;
                symlinkat(target.as_c_str(), to, name)?;
                self.own_name(&stat, to, name)?;
            }
            FileType::Fifo => self.node(&stat, kind, to, name)?,
            FileType::CharacterDevice | FileType::BlockDevice if self.privileged => self.node(&stat, kind, to, name)?,
            // Sockets are nothing without their program.
            _ => {}
        }
        Ok(None)
    }

    fn directory(&self, place: &OwnedFd, stat: Stat, to: &OwnedFd, name: &CString) -> io::Result<Option<Folder>> {
        if self.folders.len() > DEEPEST {
            return Err(io::Error::other(format!("it lies deeper than {DEEPEST} directories")));
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if is_opaque(place.as_fd()) || openat(to, name, flags, Mode::empty()).is_err() {
            remove(to.as_fd(), name.to_bytes())?;
            make(to.as_fd(), name.to_bytes())?;
        }
        let inner_to = down(to, name)?;
        // It may be closed to its own owner, as its new one will be.
        fchmod(&inner_to, Mode::RWXU)?;
        if stat.st_dev != self.device {
            fchmod(&inner_to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
            return Ok(None);
        }
        let pair = Pair { from: down(place, c".")?, to: inner_to };
        let left = entries(&pair.from)?;
        Ok(Some(Folder { name: name.clone(), stat, pair: Some(pair), left, number: None }))
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

    fn file(&mut self, from: &OwnedFd, stat: &Stat, to: &OwnedFd, name: &CString) -> io::Result<()> {
        if let Some((folder, first)) = self.linked.files.get(&(stat.st_dev, stat.st_ino)) {
            let mut at = self.top.try_clone()?;
            for name in self.linked.way(*folder) {
                at = down(&at, name)?;
            }
            return Ok(linkat(&at, first, to, name, AtFlags::empty())?);
        }
        let source =
            openat(from, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
        if ioctl_ficlone(&target, &source).is_err() {
            copy_data(&source, &target, u64::try_from(stat.st_size).unwrap_or(0))?;
        }
        self.finish(&source, &target, stat)?;
        if stat.st_nlink > 1 && self.linked.files.len() < MOST_LINKED {
            let folder = self.number();
            self.linked.files.insert((stat.st_dev, stat.st_ino), (folder, name.clone()));
        }
        Ok(())
    }

    /// The place of the innermost directory among those of files with several names, where it and those above are put.
    fn number(&mut self) -> usize {
        let mut above = 0;
        for folder in &mut self.folders {
            above = *folder.number.get_or_insert_with(|| {
                self.linked.folders.push((above, folder.name.clone()));
                self.linked.folders.len() - 1
            });
        }
        above
    }

    fn node(&self, stat: &Stat, kind: FileType, to: &OwnedFd, name: &CString) -> io::Result<()> {
        match mknodat(to, name, kind, Mode::from_raw_mode(stat.st_mode & 0o777), stat.st_rdev) {
            // No instance could open it.
            Err(Errno::PERM) => Ok(()),
            made => {
                made?;
                self.own_name(stat, to, name)
            }
        }
    }

    fn own_name(&self, stat: &Stat, to: &OwnedFd, name: &CString) -> io::Result<()> {
        if self.privileged {
            let (uid, gid) = owner(stat);
            chownat(to, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(utimensat(to, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
    }
}

/// Opens a directory in another one, for listing it and for making entries in it.
fn down(at: &OwnedFd, name: &CStr) -> io::Result<OwnedFd> {
    Ok(openat(at, name, DIRECTORY, Mode::empty())?)
}

/// Names of what is in a directory.
fn entries(folder: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for found in Dir::read_from(folder)? {
        let name = found?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
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
    use std::slice;

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
        copy(&[upper.clone(), lower], &target).unwrap();
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

    #[test]
    fn files_of_two_file_systems_with_the_same_number_are_two_files() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["from", "to"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let open = |name: &str| -> OwnedFd { fs::File::open(folder.path().join(name)).unwrap().into() };
        let (from, to) = (open("from"), open("to"));
        let mut copier = Copier::new(&from, &to).unwrap();
        for (name, device) in [(c"one", 1), (c"same", 1), (c"other", 2)] {
            let path = folder.path().join("from").join(name.to_str().unwrap());
            fs::write(&path, name.to_bytes()).unwrap();
            let mut stat = rustix::fs::stat(&path).unwrap();
            (stat.st_dev, stat.st_ino, stat.st_nlink) = (device, 7, 2);
            copier.file(&from, &stat, &to, &name.to_owned()).unwrap();
        }
        let read = |name: &str| fs::read_to_string(folder.path().join("to").join(name)).unwrap();
        assert_eq!(["one", "same", "other"].map(read), ["one", "one", "other"]);
    }

    /// Runs a test of this program again with fewer descriptors. Whether this is that run.
    fn with_few_descriptors(name: &str) -> bool {
        const INSIDE: &str = "KEEL_TEST_FEW_DESCRIPTORS";
        if std::env::var_os(INSIDE).is_some() {
            return true;
        }
        let mut command = std::process::Command::new("prlimit");
        command.arg(format!("--nofile={FEW}:{FEW}")).arg(std::env::current_exe().unwrap());
        let output = command.args(["--exact", name]).env(INSIDE, "1").output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && told.contains("running 1 test"), "{told}");
        false
    }

    /// Fewer than there are links and levels below, and more than are open at once.
    const FEW: usize = 2 * MOST_OPEN + 64;

    #[test]
    fn many_links_and_many_levels_take_few_descriptors() {
        if !with_few_descriptors("runtime::sandbox::copy::tests::many_links_and_many_levels_take_few_descriptors") {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (source, target) = (folder.path().join("source"), folder.path().join("target"));
        fs::create_dir_all(&target).unwrap();
        let (many, deep) = (FEW * 2, 600);
        for number in 0..many {
            let path = source.join("links").join((number % 7).to_string());
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join(number.to_string()), number.to_string()).unwrap();
            fs::hard_link(path.join(number.to_string()), source.join(format!("again-{number}"))).unwrap();
        }
        let level = |number: usize| source.join("d/".repeat(number));
        for number in 1..=deep {
            fs::create_dir(level(number)).unwrap();
            // What comes after the directory below in whatever order, at every level.
            for name in ["a", "z"] {
                fs::write(level(number).join(name), number.to_string()).unwrap();
            }
        }
        fs::hard_link(level(deep).join("a"), source.join("deepest")).unwrap();
        copy(slice::from_ref(&source), &target).unwrap();
        let number = |path: PathBuf| fs::metadata(path).unwrap().ino();
        for one in 0..many {
            let first = target.join(format!("links/{}/{one}", one % 7));
            assert_eq!(fs::read_to_string(&first).unwrap(), one.to_string());
            assert_eq!(number(first), number(target.join(format!("again-{one}"))));
        }
        for one in 1..=deep {
            let path = target.join("d/".repeat(one));
            let read = ["a", "z"].map(|name| fs::read_to_string(path.join(name)).unwrap());
            assert_eq!(read, [one.to_string(), one.to_string()]);
        }
        assert_eq!(number(target.join("deepest")), number(target.join("d/".repeat(deep)).join("a")));
        // The same again, over what is there and with what hides it.
        rustix::fs::setxattr(level(1), "user.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
        copy(&[source], &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("d/".repeat(deep)).join("z")).unwrap(), deep.to_string());
    }
}
