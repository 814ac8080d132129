//! Evenkeel's own files, which hold the environments and secrets of every instance: where they are on this machine, by
//! every path that leads to them, and which paths would open them up to a program.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::mountinfo::{self, Mounted};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Most paths by which they may be reached: each is covered in every instance that shows the machine's directories, and
/// a directory that is mounted somewhere else is mounted once or twice.
const MOST_PATHS: usize = 64;

/// How a path lies to Evenkeel's own files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Overlap {
    /// It is or lies in this directory of them.
    Inside(PathBuf),
    /// It holds these directories of them, and may hold others.
    Around(Vec<PathBuf>),
}

/// How a resolved path lies to directories; `None` where it has nothing to do with them.
pub fn overlap(path: &Path, own: &[PathBuf]) -> Option<Overlap> {
    if let Some(dir) = own.iter().find(|dir| path.starts_with(dir)) {
        return Some(Overlap::Inside(dir.clone()));
    }
    let within: Vec<PathBuf> = own.iter().filter(|dir| dir.starts_with(path)).cloned().collect();
    (!within.is_empty()).then_some(Overlap::Around(within))
}

/// The same of a path as it is written; one that does not exist overlaps nothing.
pub fn overlap_of(path: &Path, own: &[PathBuf]) -> Option<Overlap> {
    overlap(&fs::canonicalize(path).ok()?, own)
}

/// Every path of this machine by which directories are reached, remembered for as long as no mount changes: to read all
/// mounts takes about a microsecond for each.
#[derive(Debug, Default)]
pub struct Everywhere(Mutex<Option<Known>>);

#[derive(Debug)]
struct Known {
    /// Tells when a mount has changed since it was opened.
    mountinfo: File,
    paths: Vec<PathBuf>,
}

impl Everywhere {
    /// Every path of this machine by which these directories, always the same ones, are reached, without those that lie
    /// in another one: a part of a file system may be mounted at several places.
    ///
    /// # Errors
    /// The mounts can't be read, or there are too many such paths.
    pub fn of(&self, dirs: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.as_ref().filter(|known| !has_changed(&known.mountinfo)) {
            return Ok(known.paths.clone());
        }
        *known = None;
        let mut mountinfo = File::open(mountinfo::OWN)?;
        let mut text = Vec::new();
        mountinfo.read_to_end(&mut text)?;
        let paths = everywhere(&mountinfo::parse(&text), dirs)?;
        *known = Some(Known { mountinfo, paths: paths.clone() });
        Ok(paths)
    }
}

/// Whether a mount has changed (proc_pid_mounts(5)). Where the kernel does not tell, one has.
fn has_changed(mountinfo: &File) -> bool {
    let mut fds = [PollFd::new(mountinfo, PollFlags::PRI)];
    !matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
}

fn everywhere(mounts: &[Mounted], dirs: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = Vec::new();
    let mut add = |path: PathBuf| {
        if !found.iter().any(|known| path.starts_with(known)) {
            found.retain(|known| !known.starts_with(&path));
            found.push(path);
        }
    };
    for dir in dirs {
        add(dir.clone());
        // A mount that another one covers is not what its path shows.
        aliases(mounts, dir).into_iter().filter(|(path, same)| is_same(path, same)).for_each(|(path, _)| add(path));
    }
    if found.len() > MOST_PATHS {
        let text = format!("they are mounted at more than {MOST_PATHS} places; use a state directory that is not");
        return Err(io::Error::other(text));
    }
    Ok(found)
}

fn is_same(one: &Path, other: &Path) -> bool {
    let key = |path: &Path| fs::metadata(path).map(|data| (data.dev(), data.ino())).ok();
    key(one).is_some_and(|one| Some(one) == key(other))
}

/// Other paths that show a directory or a part of it, each with the path below the directory that shows the same.
fn aliases(mounts: &[Mounted], dir: &Path) -> Vec<(PathBuf, PathBuf)> {
    // Of mounts at the same place the last one covers the others.
    let Some(own) =
        mounts.iter().filter(|one| dir.starts_with(&one.place)).max_by_key(|one| one.place.components().count())
    else {
        return Vec::new();
    };
    let Ok(below) = dir.strip_prefix(&own.place) else { return Vec::new() };
    let in_device = own.root.join(below);
    let alias = |one: &Mounted| {
        if let Ok(below) = in_device.strip_prefix(&one.root) {
            return Some((one.place.join(below), dir.to_owned()));
        }
        let below = one.root.strip_prefix(&in_device).ok()?;
        Some((one.place.clone(), dir.join(below)))
    };
    mounts.iter().filter(|one| one.device == own.device).filter_map(alias).filter(|(path, _)| path != dir).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &[u8] = b"20 1 8:1 / / rw - ext4 /dev/sda rw\n\
        21 20 8:2 / /var rw shared:1 - ext4 /dev/sdb rw\n\
        22 20 8:2 / /mnt/a\\040b rw - ext4 /dev/sdb rw\n\
        23 20 8:2 /lib /lib2 rw - ext4 /dev/sdb rw\n\
        24 20 8:2 /lib/keel/sandbox/volumes /data rw - ext4 /dev/sdb rw\n\
        25 20 8:2 /log /log rw - ext4 /dev/sdb rw\n\
        26 20 0:9 / /proc rw - proc proc rw\n";

    #[test]
    fn every_mount_of_the_same_part_of_a_file_system_leads_to_them() {
        let found = aliases(&mountinfo::parse(MOUNTINFO), Path::new("/var/lib/keel"));
        let told: Vec<(&str, &str)> =
            found.iter().map(|(path, same)| (path.to_str().unwrap(), same.to_str().unwrap())).collect();
        assert_eq!(
            told,
            [
                ("/mnt/a b/lib/keel", "/var/lib/keel"),
                ("/lib2/keel", "/var/lib/keel"),
                ("/data", "/var/lib/keel/sandbox/volumes")
            ]
        );
    }

    #[test]
    fn a_path_is_inside_around_or_beside_them() {
        let own = [PathBuf::from("/var/lib/keel"), PathBuf::from("/mnt/keel")];
        for inside in ["/var/lib/keel", "/var/lib/keel/sandbox"] {
            assert_eq!(overlap(Path::new(inside), &own), Some(Overlap::Inside(own[0].clone())), "{inside}");
        }
        assert_eq!(overlap(Path::new("/var"), &own), Some(Overlap::Around(vec![own[0].clone()])));
        assert_eq!(overlap(Path::new("/"), &own), Some(Overlap::Around(own.to_vec())));
        for beside in ["/var/lib/keel2", "/var/log"] {
            assert_eq!(overlap(Path::new(beside), &own), None, "{beside}");
        }
    }

    #[test]
    fn a_directory_that_lies_in_another_one_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let outer = fs::canonicalize(folder.path()).unwrap();
        fs::create_dir(outer.join("inner")).unwrap();
        let found = Everywhere::default().of(&[outer.join("inner"), outer.clone(), outer.join("inner")]).unwrap();
        assert!(found.contains(&outer) && !found.contains(&outer.join("inner")), "{found:?}");
    }
}
