//! The layers of an image seen as one, without mounting them: what overlayfs would show.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, getxattr, openat, openat2, readlinkat};
use rustix::io::Errno;

use super::bounds::MOST_LINKS;
use super::tar::names;

/// How what was removed is marked where no device node can be made: an empty file with this attribute, which overlayfs
/// looks for in directories whose [`OPAQUE`] is [`MARKED`] (Linux 6.7).
pub const WHITEOUT: &str = "user.overlay.whiteout";
/// The value of a directory's mark that tells of such files in it.
pub const MARKED: &[u8] = b"x";
/// How overlayfs marks a directory that hides the ones below, for root and for everybody.
pub const OPAQUE: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];
/// The value of that mark.
pub const YES: &[u8] = b"y";

/// Layers, the uppermost first.
#[derive(Debug, Default)]
pub struct Merged(Vec<OwnedFd>);

/// What a path leads to.
#[derive(Debug)]
pub struct Found {
    /// What it is.
    pub stat: Stat,
    /// The place, not opened for reading.
    pub place: OwnedFd,
}

/// A path to look up, link by link.
enum Step {
    Nothing,
    Directory(Vec<OwnedFd>),
    Other(Found),
}

impl Merged {
    /// Opens these directories, the uppermost first.
    ///
    /// # Errors
    /// One can't be opened.
    pub fn open(lower: &[PathBuf]) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        lower.iter().map(|path| Ok(openat(CWD, path, flags, Mode::empty())?)).collect::<io::Result<_>>().map(Self)
    }

    /// Layers that are open as places, the uppermost first.
    pub const fn of(places: Vec<OwnedFd>) -> Self {
        Self(places)
    }

    /// Whether there are no layers.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Looks a path up. Links on the way are followed and end at the root; the last name is not followed.
    ///
    /// # Errors
    /// The file system does not answer.
    pub fn find(&self, path: &[&[u8]]) -> io::Result<Option<Found>> {
        self.walk(path, false)
    }

    /// Opens the regular file that a path leads to, following links. `None` where there is no such file.
    ///
    /// # Errors
    /// The file system does not answer.
    pub fn open_file(&self, path: &[&[u8]]) -> io::Result<Option<File>> {
        match self.walk(path, true)? {
            Some(found) if FileType::from_raw_mode(found.stat.st_mode) == FileType::RegularFile => {
                reopen(found.place.as_fd()).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Opens the directory that a path leads to, following links: those of the layers that are seen as one, the uppermost
    /// first. None where there is no directory.
    ///
    /// # Errors
    /// The file system does not answer.
    pub fn directories(&self, path: &[&[u8]]) -> io::Result<Vec<OwnedFd>> {
        match self.look_up(path, true)? {
            Step::Directory(all) => Ok(all),
            Step::Other(_) | Step::Nothing => Ok(Vec::new()),
        }
    }

    fn walk(&self, path: &[&[u8]], follow: bool) -> io::Result<Option<Found>> {
        match self.look_up(path, follow)? {
            Step::Directory(mut all) => {
                let place = all.swap_remove(0);
                Ok(Some(Found { stat: fstat(&place)?, place }))
            }
            Step::Other(found) => Ok(Some(found)),
            Step::Nothing => Ok(None),
        }
    }

    fn look_up(&self, path: &[&[u8]], follow: bool) -> io::Result<Step> {
        let mut rest: Vec<Vec<u8>> = path.iter().rev().map(|name| name.to_vec()).collect();
        let mut trail: Vec<Vec<OwnedFd>> = Vec::new();
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == b".." {
                trail.pop();
                continue;
            }
            let found = match step(trail.last().unwrap_or(&self.0), &name)? {
                Step::Nothing => return Ok(Step::Nothing),
                Step::Directory(all) if !rest.is_empty() => {
                    trail.push(all);
                    continue;
                }
                Step::Directory(all) => return Ok(Step::Directory(all)),
                Step::Other(found) => found,
            };
            let is_link = FileType::from_raw_mode(found.stat.st_mode) == FileType::Symlink;
            match (is_link && (follow || !rest.is_empty()), rest.is_empty()) {
                (false, true) => return Ok(Step::Other(found)),
                (false, false) => return Ok(Step::Nothing),
                (true, _) => {}
            }
            links += 1;
            if links > MOST_LINKS {
                return Ok(Step::Nothing);
            }
            let target = readlinkat(&found.place, "", Vec::new())?.into_bytes();
            if target.starts_with(b"/") {
                trail.clear();
            }
            rest.extend(link_names(&target).into_iter().rev().map(<[u8]>::to_vec));
        }
        Ok(Step::Nothing)
    }
}

/// Names of a link's target, upward ones included.
pub fn link_names(target: &[u8]) -> Vec<&[u8]> {
    target.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")).collect()
}

/// One name in directories that are seen as one.
fn step(directories: &[OwnedFd], name: &[u8]) -> io::Result<Step> {
    let mut found = Vec::new();
    for directory in directories {
        let Some(place) = entry(directory.as_fd(), name)? else { continue };
        let stat = fstat(&place)?;
        if is_whiteout(place.as_fd(), &stat) {
            break;
        }
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            if found.is_empty() {
                return Ok(Step::Other(Found { stat, place }));
            }
            break;
        }
        let opaque = is_opaque(place.as_fd());
        found.push(place);
        if opaque {
            break;
        }
    }
    Ok(if found.is_empty() { Step::Nothing } else { Step::Directory(found) })
}

/// The entry of a directory, not followed.
pub fn entry(directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    match openat2(directory, name, flags, Mode::empty(), resolve) {
        Ok(place) => Ok(Some(place)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether this is how overlayfs marks what was removed.
pub fn is_whiteout(place: BorrowedFd<'_>, stat: &Stat) -> bool {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => stat.st_rdev == 0,
        FileType::RegularFile if stat.st_size == 0 => {
            let mut value = [0; 4];
            getxattr(proc_path(place).as_str(), WHITEOUT, &mut value).is_ok()
        }
        _ => false,
    }
}

/// Whether a directory hides those below.
pub fn is_opaque(directory: BorrowedFd<'_>) -> bool {
    // A place that is not open for reading has attributes by its path only.
    let path = proc_path(directory);
    OPAQUE.iter().any(|name| {
        let mut value = [0; 4];
        matches!(getxattr(path.as_str(), *name, &mut value), Ok(length) if value.get(..length) == Some(YES))
    })
}

/// A path that leads to an open place.
pub fn proc_path(place: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", place.as_raw_fd())
}

/// Opens a place that was seen to be a regular file for reading.
pub fn reopen(place: BorrowedFd<'_>) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    Ok(openat(CWD, proc_path(place).as_str(), flags, Mode::empty())?.into())
}

/// The names of an absolute path of text.
pub fn path_names(path: &str) -> Vec<&[u8]> {
    names(path.as_bytes()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    fn write(root: &Path, path: &str, text: &str) {
        fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        fs::write(root.join(path), text).unwrap();
    }

    fn read(merged: &Merged, path: &str) -> Option<String> {
        let mut text = String::new();
        merged.open_file(&path_names(path)).unwrap()?.read_to_string(&mut text).unwrap();
        Some(text)
    }

    #[test]
    fn upper_layers_hide_what_is_below() {
        let folder = tempfile::tempdir().unwrap();
        let (upper, lower) = (folder.path().join("upper"), folder.path().join("lower"));
        write(&lower, "etc/a", "lower a");
        write(&lower, "etc/b", "lower b");
        write(&lower, "dir/c", "lower c");
        write(&lower, "x/y", "lower y");
        write(&lower, "file", "lower file");
        write(&upper, "etc/a", "upper a");
        write(&upper, "dir/d", "upper d");
        write(&upper, "x", "a file over a directory");
        rustix::fs::setxattr(upper.join("dir"), OPAQUE[1], YES, rustix::fs::XattrFlags::empty()).unwrap();
        rustix::fs::mknodat(CWD, upper.join("file"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        symlink("/etc", upper.join("link")).unwrap();
        symlink("../../../../etc/b", upper.join("up")).unwrap();
        symlink("loop", upper.join("loop")).unwrap();
        let merged = Merged::open(&[upper, lower]).unwrap();
        assert_eq!(read(&merged, "/etc/a").as_deref(), Some("upper a"));
        assert_eq!(read(&merged, "/etc/b").as_deref(), Some("lower b"));
        assert_eq!(read(&merged, "/link/b").as_deref(), Some("lower b"));
        assert_eq!(read(&merged, "/up").as_deref(), Some("lower b"));
        assert_eq!(read(&merged, "/dir/d").as_deref(), Some("upper d"));
        for path in ["/dir/c", "/x/y", "/file", "/loop", "/etc", "/none/a", "/etc/a/b"] {
            assert_eq!(read(&merged, path), None, "{path}");
        }
        let layers = |path: &str| merged.directories(&path_names(path)).unwrap().len();
        assert_eq!(["/etc", "/link", "/dir", "/x", "/x/y", "/none", "/etc/a"].map(layers), [2, 2, 1, 0, 0, 0, 0]);
    }
}
