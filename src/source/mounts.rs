//! File systems that are mounted below a root: what lies on one that is not there any more is not gone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::read::metadata_device;
use crate::store::MountedFolder;

/// Where folders lie that are on a file system other than that of their root, by the path under which they are listed.
pub(super) type Mounts = BTreeMap<PathBuf, Place>;

/// Where a folder lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Its path without symbolic links.
    pub real: PathBuf,
    /// Where its file system is mounted; at or above `real`.
    pub mount: PathBuf,
    /// The number of that file system, where this process has seen it: it is not the same after a restart of the machine.
    pub device: Option<u64>,
}

impl Place {
    /// Where a folder of a root lies; none where it is on the root's own file system, or can't be looked at.
    pub(super) fn of(folder: &Path, root: &Path) -> Option<Self> {
        let real = folder.canonicalize().ok()?;
        let mount = mount_point(&real)?;
        (mount_point(&root.canonicalize().ok()?)? != mount).then(|| {
            let device = metadata_device(&mount);
            Self { real, mount, device }
        })
    }

    /// Whether the folder of this path can't be seen because its file system is not mounted any more, or another one is. A
    /// symbolic link on the way that leads elsewhere or is gone was changed by somebody.
    pub(super) fn is_unmounted(&self, folder: &Path) -> bool {
        let Some((near, rest)) = nearest(folder) else { return false };
        let same_way = near.canonicalize().is_ok_and(|near| near.join(rest) == self.real);
        let now = metadata_device(&self.mount);
        let is_another = self.device.is_some_and(|before| now != Some(before));
        same_way && (is_another || !is_mount_point(&self.mount))
    }

    /// As it is kept over a restart.
    pub(super) fn record(&self, folder: &Path) -> MountedFolder {
        MountedFolder { path: folder.to_path_buf(), real: self.real.clone(), mount: self.mount.clone() }
    }
}

/// As it was kept over a restart.
pub(super) fn recorded(folders: Vec<MountedFolder>) -> Mounts {
    let place = |MountedFolder { path, real, mount }| (path, Place { real, mount, device: None });
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
        let place = |real: &Path| Place { real: real.to_path_buf(), mount: target.clone(), device: None };
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
