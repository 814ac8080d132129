//! Paths inside a root file system that belongs to somebody else: every component is resolved by the kernel with
//! the root as its end, so that no link leads out (openat2 `RESOLVE_IN_ROOT`).

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fchmod, fstat, mkdirat, openat, openat2, readlinkat};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, move_mount};

/// Most tries while something else is renamed or mounted all the time; each takes microseconds.
const MOST_RETRIES: usize = 1000;

/// Most links on the way to a path: the kernel's own bound.
const MOST_LINKS: usize = 40;

/// Links are followed, inside the root, but those of /proc that lead out of it.
pub const LINKS: ResolveFlags = ResolveFlags::NO_MAGICLINKS;
/// No link is followed.
pub const PLAIN: ResolveFlags = ResolveFlags::NO_SYMLINKS;

/// What is made where a path does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// A directory.
    Directory,
    /// An empty file.
    File,
}

/// Opens a path inside a root as a place, not for reading.
///
/// # Errors
/// It does not exist, or leads through a magic link.
pub fn place(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    place_by(root, path, LINKS)
}

/// The same with the links that may be on the way: [`LINKS`] or [`PLAIN`].
///
/// # Errors
/// The same; `ELOOP` where there is another link on the way.
pub fn place_by(root: BorrowedFd<'_>, path: &str, links: ResolveFlags) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | links;
    let relative = path.trim_start_matches('/');
    let relative = if relative.is_empty() { "." } else { relative };
    let open = || openat2(root, relative, flags, Mode::empty(), resolve);
    // Where something is renamed or mounted anywhere while `..` is followed, the kernel can't tell that it stays below
    // the root and says to try again (openat2(2), EAGAIN).
    let again = (0..MOST_RETRIES).map(|_| open()).find(|opened| !matches!(opened, Err(Errno::AGAIN)));
    Ok(again.unwrap_or_else(open)?)
}

/// Opens a path inside a root, making what is missing of it.
///
/// # Errors
/// It can't be made (a read-only root), or something on the way is no directory.
pub fn place_or_make(root: BorrowedFd<'_>, path: &str, missing: Missing) -> io::Result<OwnedFd> {
    place_or_make_by(root, path, missing, LINKS)
}

/// The same with the links that may be on the way: [`LINKS`] or [`PLAIN`].
///
/// # Errors
/// The same; `ELOOP` where there is another link on the way.
pub fn place_or_make_by(
    root: BorrowedFd<'_>,
    path: &str,
    missing: Missing,
    links: ResolveFlags,
) -> io::Result<OwnedFd> {
    match place_by(root, path, links) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        found => return found,
    }
    let components = components(path)?;
    let mut so_far = String::new();
    let mut parent = place(root, "")?;
    for (index, component) in components.iter().enumerate() {
        so_far.push('/');
        so_far.push_str(component);
        parent = match place_by(root, &so_far, links) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let last = index + 1 == components.len();
                make(parent.as_fd(), component, if last { missing } else { Missing::Directory })?;
                place_by(root, &so_far, links)?
            }
            Err(error) => return Err(error),
        };
    }
    Ok(parent)
}

/// Makes it for everybody to pass and read, whatever the umask: the program may be another user's.
fn make(parent: BorrowedFd<'_>, name: &str, what: Missing) -> io::Result<()> {
    let (directory, file) = (Mode::from_raw_mode(0o755), Mode::from_raw_mode(0o644));
    let common = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = match what {
        Missing::Directory => mkdirat(parent, name, directory).and_then(|()| {
            let made = openat(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | common, Mode::empty())?;
            fchmod(made, directory)
        }),
        Missing::File => openat(parent, name, OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | common, file)
            .and_then(|made| fchmod(made, file)),
    };
    match made {
        // A dangling link is "not found" to a lookup and "exists" here; the next lookup tells.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A path inside a root as it is without links, and the links on the way. What does not exist is taken by its name.
///
/// # Errors
/// It is relative or goes upwards, or there are too many links.
pub fn without_links(root: BorrowedFd<'_>, path: &str) -> io::Result<(PathBuf, Vec<PathBuf>)> {
    let mut left: VecDeque<OsString> = components(path)?.into_iter().map(OsString::from).collect();
    let (mut real, mut links) = (PathBuf::from("/"), Vec::new());
    while let Some(step) = left.pop_front() {
        if step == ".." {
            real.pop();
            continue;
        }
        let folder = place(root, &real.to_string_lossy());
        let next = real.join(&step);
        let Ok(target) = folder.and_then(|folder| Ok(readlinkat(folder.as_fd(), &step, Vec::new())?)) else {
            real = next;
            continue;
        };
        links.push(next);
        if links.len() > MOST_LINKS {
            return Err(Errno::LOOP.into());
        }
        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
        if target.is_absolute() {
            real = PathBuf::from("/");
        }
        for component in target.components().rev() {
            match component {
                Component::Normal(name) => left.push_front(name.to_owned()),
                Component::ParentDir => left.push_front("..".into()),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
    }
    Ok((real, links))
}

/// The names of an absolute path.
///
/// # Errors
/// It is relative or goes upwards.
pub fn components(path: &str) -> io::Result<Vec<&str>> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why.to_owned());
    if !path.starts_with('/') {
        return Err(invalid("it must be an absolute path"));
    }
    let names: Vec<&str> = path.split('/').filter(|name| is_name(name)).collect();
    if names.contains(&"..") { Err(invalid("it must not contain \"..\"")) } else { Ok(names) }
}

/// How many names an absolute path has: what is mounted at one with fewer comes first, as it could hide the other.
pub fn depth(path: &str) -> usize {
    path.split('/').filter(|name| is_name(name)).count()
}

fn is_name(component: &str) -> bool {
    !matches!(component, "" | ".")
}

/// Whether an open place is a directory.
pub fn is_directory(place: BorrowedFd<'_>) -> bool {
    fstat(place).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// Attaches a detached mount to an open place.
///
/// # Errors
/// The kernel refuses; a directory can only cover a directory, and a file a file.
pub fn attach(tree: &OwnedFd, place: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree.as_fd(), "", place.as_fd(), "", flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("root")).unwrap();
        let fd = fs::File::open(folder.path().join("root")).unwrap().into();
        (folder, fd)
    }

    #[test]
    fn missing_directories_are_made_inside() {
        let (folder, root) = root();
        place_or_make(root.as_fd(), "/a/b/c", Missing::Directory).unwrap();
        place_or_make(root.as_fd(), "/a/file", Missing::File).unwrap();
        assert!(folder.path().join("root/a/b/c").is_dir());
        assert!(folder.path().join("root/a/file").is_file());
    }

    #[test]
    fn links_that_lead_out_end_at_the_root() {
        let (folder, root) = root();
        fs::create_dir(folder.path().join("outside")).unwrap();
        symlink("../outside", folder.path().join("root/up")).unwrap();
        symlink(folder.path().join("outside"), folder.path().join("root/absolute")).unwrap();
        assert!(place_or_make(root.as_fd(), "/up/x", Missing::Directory).is_err());
        assert!(place_or_make(root.as_fd(), "/absolute/x", Missing::Directory).is_err());
        assert_eq!(fs::read_dir(folder.path().join("outside")).unwrap().count(), 0);
    }

    #[test]
    fn links_that_stay_inside_are_followed() {
        let (folder, root) = root();
        fs::create_dir_all(folder.path().join("root/real")).unwrap();
        symlink("/real", folder.path().join("root/link")).unwrap();
        place_or_make(root.as_fd(), "/link/x", Missing::Directory).unwrap();
        assert!(folder.path().join("root/real/x").is_dir());
    }

    #[test]
    fn nothing_is_made_where_a_link_leads_that_is_not_followed() {
        let (folder, root) = root();
        fs::create_dir_all(folder.path().join("root/real/deep")).unwrap();
        symlink("/real", folder.path().join("root/link")).unwrap();
        for path in ["/link", "/link/deep", "/link/x/y"] {
            let error = place_or_make_by(root.as_fd(), path, Missing::Directory, PLAIN).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ELOOP), "{path}");
        }
        assert!(!folder.path().join("root/real/x").exists());
        place_or_make_by(root.as_fd(), "/real/x", Missing::Directory, PLAIN).unwrap();
        assert!(folder.path().join("root/real/x").is_dir());
    }

    #[test]
    fn links_on_a_way_are_told_and_taken_as_the_kernel_does() {
        let (folder, root) = root();
        fs::create_dir_all(folder.path().join("root/real/deep")).unwrap();
        symlink("../../real", folder.path().join("root/link")).unwrap();
        symlink("/link/deep/.", folder.path().join("root/real/again")).unwrap();
        symlink("around", folder.path().join("root/around")).unwrap();
        let found = |path: &str| without_links(root.as_fd(), path).unwrap();
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(found("/real/deep"), ("/real/deep".into(), vec![]));
        assert_eq!(found("/link/deep/new/x"), ("/real/deep/new/x".into(), paths(&["/link"])));
        assert_eq!(found("/real/again/x"), ("/real/deep/x".into(), paths(&["/real/again", "/link"])));
        assert_eq!(without_links(root.as_fd(), "/around").unwrap_err().raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn upward_and_relative_targets_are_refused() {
        let (_folder, root) = root();
        assert!(place_or_make(root.as_fd(), "/a/../../x", Missing::Directory).is_err());
        assert!(components("a/b").is_err());
        assert_eq!(components("//a/./b/").unwrap(), ["a", "b"]);
        assert_eq!(["/", "//a/./b/", "/./.", "/a/b/c"].map(depth), [0, 2, 0, 3]);
    }
}
