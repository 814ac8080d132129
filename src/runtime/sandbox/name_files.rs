//! The files about names that an instance has, shown over those of its root, and again where a mount of its own covers them.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::readlinkat;

use super::failure::{Context, Failure};
use super::inside::{Missing, attach, place};
use super::network::NameFile;
use super::record::Launch;
use super::rootfs::{is_link, read_only_tree};
use super::skeleton::Tree;

/// Where the names of a deployment's instances are.
const HOSTS: &str = "/etc/hosts";

/// A file about names, open and read-only.
#[derive(Debug)]
pub struct Opened<'a> {
    tree: OwnedFd,
    /// Where programs look for it.
    pub path: &'a str,
}

/// One that is shown.
#[derive(Debug)]
pub struct Shown<'a> {
    file: Opened<'a>,
    /// Where it lies: where its path leads, if that is a link.
    at: PathBuf,
}

/// Whether a mount of the instance's own is in the place of the names of a deployment's instances.
pub fn are_own(launch: &Launch) -> bool {
    launch.mounts.iter().any(|mount| Path::new(&mount.target) == Path::new(HOSTS))
}

/// Opens the files.
///
/// # Errors
/// One is not there.
pub fn open(launch: &Launch) -> Result<Vec<Opened<'_>>, Failure> {
    let open = |file: &NameFile| {
        let what = || format!("opening {}", file.source.display());
        read_only_tree(&file.source).with_context(what)
    };
    launch.network.files.iter().map(|file| Ok(Opened { tree: open(file)?, path: &file.target })).collect()
}

/// Shows the files in a root.
///
/// # Errors
/// A file that is missing there can't be made.
pub fn show<'a>(root: &mut Tree, files: Vec<Opened<'a>>) -> Result<Vec<Shown<'a>>, Failure> {
    files.into_iter().map(|file| show_one(root, file)).collect()
}

/// Shows a file. Where its path is a link to nothing, as images have it whose files a service manager writes, it is shown
/// where the link leads.
fn show_one<'a>(root: &mut Tree, file: Opened<'a>) -> Result<Shown<'a>, Failure> {
    let (folder, name) = file.path.rsplit_once('/').unwrap_or(("", file.path));
    let link = place(root.root(), folder).and_then(|folder| Ok(readlinkat(folder.as_fd(), name, Vec::new())?));
    let leads = link.map(|target| {
        plain(&Path::new("/").join(folder.trim_start_matches('/')).join(target.to_string_lossy().as_ref()))
    });
    let target = match &leads {
        Ok(leads) if place(root.root(), file.path).is_err() => leads.as_str(),
        _ => file.path,
    };
    match root.place_or_make(target, Missing::File).and_then(|place| attach(&file.tree, &place)) {
        Err(error) if !is_no_file(&error) => {
            return Err(Failure::wrong(format!(
                "image: {target} is missing and can't be made: {error}; create an empty file there"
            )));
        }
        Ok(()) | Err(_) => {}
    }
    let at = leads.unwrap_or_else(|_| file.path.to_owned()).into();
    Ok(Shown { file, at })
}

/// Shows the files again that these mounts of the instance cover; the mounts are told by where they landed. One that is in the
/// very place of a file is what the spec wants there.
///
/// A link in such a mount is not followed: it may be the program's, which would choose by it what the file covers. What it
/// leads to is what programs see.
///
/// # Errors
/// A file that is missing in a mount can't be made there, or a link that leads to nothing is in its place.
pub fn uncover(root: &mut Tree, files: &[Shown<'_>], mounts: &[PathBuf]) -> Result<(), Failure> {
    for Shown { file, at } in files {
        let Some((above, target)) = covered(Path::new(file.path), at, mounts) else { continue };
        let shown = root.place_or_make_plain(&target.to_string_lossy(), Missing::File);
        // What was attached before moves.
        let (above, path) = (above.display(), file.path);
        match shown.and_then(|place| attach(&file.tree, &place)) {
            Err(error) if is_link(&error) && place(root.root(), &target.to_string_lossy()).is_err() => {
                return Err(Failure::wrong(format!(
                    "storage: what is mounted at {above} hides the instance's own {path}, and {} there is a link that leads to \
                     nothing and is not followed; put an empty file in its place, or mount one at {path}",
                    target.display()
                )));
            }
            Err(error) if !is_no_file(&error) => {
                let target = target.display();
                return Err(Failure::wrong(format!(
                    "storage: what is mounted at {above} hides the instance's own {path}, and there is no {target} over which \
                     it could be shown, nor can it be made: {error}; create an empty file there, or mount one at {path}"
                )));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// The mount that covers a file, and where the file has to be shown instead of `at`, where it lies.
fn covered<'a>(path: &'a Path, at: &'a Path, mounts: &'a [PathBuf]) -> Option<(&'a Path, &'a Path)> {
    let is_own = |place: &Path| mounts.iter().any(|mount| mount == place);
    [path, at].into_iter().find_map(|place| {
        let above = mounts.iter().rev().find(|mount| place != **mount && place.starts_with(mount))?;
        (!is_own(path) && !is_own(place)).then_some((above.as_path(), place))
    })
}

/// There may be something that is no file, or no way to it; nobody reads it then.
fn is_no_file(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENOTDIR | libc::ENOENT))
}

/// An absolute path without `.` and `..`, which end at the root.
fn plain(path: &Path) -> String {
    let mut names: Vec<&OsStr> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::ParentDir => drop(names.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    format!("/{}", names.iter().map(|name| name.to_string_lossy()).collect::<Vec<_>>().join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_shown_again_where_a_mount_above_covers_it() {
        let found = |path: &str, at: &str, mounts: &[&str]| {
            let mounts: Vec<PathBuf> = mounts.iter().map(PathBuf::from).collect();
            covered(Path::new(path), Path::new(at), &mounts)
                .map(|(above, target)| format!("{} {}", above.display(), target.display()))
        };
        let hosts = |mounts: &[&str]| found(HOSTS, HOSTS, mounts);
        assert_eq!(hosts(&[]), None);
        assert_eq!(hosts(&["/data", "/etc/hosts.d", "/etc/hosts"]), None);
        assert_eq!(hosts(&["/data", "/etc"]).as_deref(), Some("/etc /etc/hosts"));
        assert_eq!(hosts(&["/etc", "/etc/hosts"]), None, "the instance has its own");
        let linked = |mounts: &[&str]| found("/etc/resolv.conf", "/run/x/resolv.conf", mounts);
        assert_eq!(linked(&["/run"]).as_deref(), Some("/run /run/x/resolv.conf"));
        assert_eq!(linked(&["/run", "/run/x"]).as_deref(), Some("/run/x /run/x/resolv.conf"));
        assert_eq!(linked(&["/run", "/etc"]).as_deref(), Some("/etc /etc/resolv.conf"));
        assert_eq!(linked(&["/run", "/run/x/resolv.conf"]), None);
    }

    #[test]
    fn a_path_without_turns_stays_below_the_root() {
        assert_eq!(plain(Path::new("/etc/../run/./x")), "/run/x");
        assert_eq!(plain(Path::new("/../../x")), "/x");
    }
}
