//! File systems that are mounted below a root: what lies on one that is not there any more is not gone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::list::{Flaw, born_as};
use super::read::{file_system_id, metadata_device};
use crate::store::MountedFolder;

/// Where the watched roots lie, and folders that are on a file system other than that of their root, and where files lay
/// that can't be seen since theirs is not there, by the path under which they are, or were, listed.
pub(super) type Mounts = BTreeMap<PathBuf, Place>;

/// Where a folder of files lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Its path without symbolic links.
    pub real: PathBuf,
    /// Where its file system is mounted; at or above `real`.
    pub mount: PathBuf,
    /// Text that differs for another file system, or another part of one, that is mounted there; none where that is not known.
    pub identity: Option<String>,
}

impl Place {
    /// Where a folder of a root lies; none where it is on the root's own file system, or can't be looked at.
    pub(super) fn of(folder: &Path, root: &Path) -> Option<Self> {
        let roots = mount_point(&root.canonicalize().ok()?)?;
        Self::here(folder).filter(|place| place.mount != roots)
    }

    /// Where a path lies; none where it can't be looked at.
    pub(super) fn here(path: &Path) -> Option<Self> {
        let real = path.canonicalize().ok()?;
        let mount = mount_point(&real)?;
        let identity = identity(&mount);
        Some(Self { real, mount, identity })
    }

    /// Where a folder of a root lay that was on the root's own file system, and no links led to it.
    pub(super) fn beside_root(folder: &Path, root: &Path) -> Option<Self> {
        let real = root.canonicalize().ok()?;
        let mount = mount_point(&real)?;
        // What becomes of the root is known by its own identity.
        Some(Self { real: real.join(folder.strip_prefix(root).ok()?), mount, identity: None })
    }

    /// Whether the folder of this path can't be seen because its file system is not mounted any more, or another one is in its
    /// place or above it. A symbolic link on the way that leads elsewhere or is gone was changed by somebody.
    pub(super) fn is_unmounted(&self, folder: &Path) -> bool {
        let Some((near, rest)) = nearest(folder) else { return false };
        let Ok(near) = near.canonicalize() else { return false };
        let is_another = || self.identity.is_some() && identity(&self.mount) != self.identity;
        near.join(rest) == self.real && (mount_point(&near).as_ref() != Some(&self.mount) || is_another())
    }

    /// Where something is mounted that covers the folder of this path, while the file system that it lay on is there still.
    pub(super) fn cover(&self, folder: &Path) -> Option<PathBuf> {
        let (near, _) = nearest(folder)?;
        let now = mount_point(&near.canonicalize().ok()?)?;
        (now != self.mount && now.starts_with(&self.mount)).then_some(now)
    }

    /// As it is kept over a restart.
    pub(super) fn record(&self, path: &Path) -> MountedFolder {
        MountedFolder {
            path: path.to_path_buf(),
            real: self.real.clone(),
            mount: self.mount.clone(),
            identity: self.identity.clone(),
        }
    }
}

/// Why files can't be seen that lay on another file system than what is there now.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Away {
    /// Theirs is not mounted here any more.
    Unmounted(PathBuf),
    /// Theirs is there, and something that is mounted here covers them.
    Covered(PathBuf),
}

impl Away {
    /// Where something is mounted, or was.
    pub(super) fn place(&self) -> &Path {
        match self {
            Self::Unmounted(place) | Self::Covered(place) => place,
        }
    }

    /// What is wrong there.
    pub(super) fn flaw(&self) -> Flaw {
        match self {
            Self::Unmounted(_) => Flaw::new(
                "was unmounted, or something else is mounted there",
                "mount its file system again; `keel delete NAME` removes what it declared",
            ),
            Self::Covered(_) => Flaw::new(
                "is a file system that covers specs which were read here before",
                "unmount it; `keel delete NAME` removes what they declared",
            ),
        }
    }
}

/// Which file system, and which part of it, is mounted there. Its number alone may be used again for another one, or be
/// another one for the same after a restart of the machine.
fn identity(mount: &Path) -> Option<String> {
    let metadata = mount.metadata().ok()?;
    let id = file_system_id(mount).or_else(|| metadata_device(mount))?;
    Some(format!("{id}:{}", born_as(&metadata)))
}

/// As it was kept over a restart.
pub(super) fn recorded(folders: Vec<MountedFolder>) -> Mounts {
    let place = |MountedFolder { path, real, mount, identity }| (path, Place { real, mount, identity });
    folders.into_iter().map(place).collect()
}

/// The nearest directory at or above a path that is there, and the rest of the path.
fn nearest(path: &Path) -> Option<(&Path, &Path)> {
    let near = path.ancestors().find(|path| path.is_dir())?;
    Some((near, path.strip_prefix(near).ok()?))
}

/// Where the file system of a directory is mounted that is given without symbolic links.
fn mount_point(real: &Path) -> Option<PathBuf> {
    real.ancestors().find(|path| is_mount_point(path)).map(Path::to_path_buf)
}

/// Whether a file system, or a part of one, is mounted at a path that is given without symbolic links.
fn is_mount_point(path: &Path) -> bool {
    let Some(parent) = path.parent() else { return true };
    if let Some(told) = super::read::is_mount_root(path) {
        return told;
    }
    // Where the system does not tell: two directories of one file system look alike, also where one is mounted in the other.
    metadata_device(path).is_some_and(|device| metadata_device(parent) != Some(device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_leads_elsewhere_is_no_unmounted_file_system() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path().canonicalize().unwrap();
        let (folder, target) = (base.join("folder"), base.join("target"));
        std::fs::create_dir(&target).unwrap();
        std::os::unix::fs::symlink(&target, &folder).unwrap();
        // Nothing is mounted at this place, so that what lay there is gone if the way to it is the same.
        let place = |real: &Path| Place { real: real.to_path_buf(), mount: target.clone(), identity: None };
        assert!(place(&target).is_unmounted(&folder));
        assert!(place(&target.join("sub")).is_unmounted(&folder.join("sub")));
        assert!(!place(&base.join("other")).is_unmounted(&folder));
        std::fs::remove_file(&folder).unwrap();
        assert!(!place(&target).is_unmounted(&folder));
    }

    #[test]
    fn the_root_of_all_is_a_mount_point_and_a_new_directory_is_none() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path().canonicalize().unwrap();
        assert!(is_mount_point(Path::new("/")));
        assert!(!is_mount_point(&base));
        assert!(!is_mount_point(&base.join("missing")));
        assert_eq!(Place::of(&base, &base), None);
    }
}
