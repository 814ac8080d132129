//! Which part of the hierarchy of version 2 is keel's to divide.
//!
//! A service manager owns the whole of it and hands out parts (systemd's `Delegate=`). Keel uses the part that was handed
//! to it. Without one, root divides the top of what it sees, as Docker's cgroupfs driver does; an ordinary user has
//! nothing to divide.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use super::super::mountinfo;
use super::hierarchy::{Controller, Hierarchy, parse};
use super::home::{make_dir, write};

/// Group that keel itself moves to, because a group with processes in it can't give controllers to others.
const LEAF: &str = "controller";
/// Mark of systemd on a group that it handed to somebody (`Delegate=`, since version 251 also for ordinary users).
const MARKS: [&str; 2] = ["user.delegate", "trusted.delegate"];

/// The hierarchies that this process sees.
pub fn hierarchies() -> super::hierarchy::Hierarchies {
    let mounts = fs::read(mountinfo::OWN).unwrap_or_default();
    parse(mounts, &fs::read_to_string("/proc/self/cgroup").unwrap_or_default())
}

/// The group that keel may divide, or why there is none.
///
/// # Errors
/// The text says what to do.
pub fn base(unified: &Hierarchy, is_root: bool) -> Result<PathBuf, String> {
    let own = unified.own_dir();
    if let Some(own) = &own {
        let above = own.parent().filter(|parent| parent.starts_with(&unified.mount));
        let in_leaf = own.file_name().is_some_and(|name| name == LEAF);
        // systemd moves the service itself into a group below the one that it hands out (`DelegateSubgroup=`).
        let marked = [Some(own.as_path()), above].into_iter().flatten().find(|dir| is_marked(dir) && is_writable(dir));
        let moved = above.filter(|above| in_leaf && !is_root && is_writable(above));
        let given = (!is_root && is_writable(own)).then_some(own.as_path());
        if let Some(dir) = marked.or(moved).or(given) {
            return Ok(dir.to_owned());
        }
    }
    if is_root {
        return Ok(unified.mount.clone());
    }
    let own =
        own.map_or_else(|| "keel's own control group".to_owned(), |own| format!("the control group {}", own.display()));
    Err(format!(
        "{own} is not delegated to this user; run keel as `systemd-run --user --scope -p Delegate=yes keel ...`"
    ))
}

fn is_marked(dir: &Path) -> bool {
    MARKS.iter().any(|mark| {
        let mut value = [0_u8; 8];
        rustix::fs::getxattr(dir, *mark, &mut value).is_ok_and(|size| value.get(..size) == Some(b"1"))
    })
}

/// Whether this process may make groups below a group and move processes in it.
fn is_writable(dir: &Path) -> bool {
    ["", "cgroup.procs", "cgroup.subtree_control"].iter().all(|file| access(dir.join(file), Access::WRITE_OK).is_ok())
}

/// Moves this process one group down where it sits in the group that it is to divide and the kernel would refuse that.
/// Best effort: what then can't be used is told by the probe.
pub fn settle_in() {
    let Some(unified) = hierarchies().unified else { return };
    let is_root = rustix::process::geteuid().is_root();
    let Some(own) = unified.own_dir() else { return };
    // The top of the whole hierarchy, which has no type, may have both.
    if base(&unified, is_root).as_ref() != Ok(&own) || !own.join("cgroup.type").exists() {
        return;
    }
    let words = |file: &str| fs::read_to_string(own.join(file)).unwrap_or_default();
    let (there, given) = (words("cgroup.controllers"), words("cgroup.subtree_control"));
    let has = |text: &str, wanted: Controller| text.split_ascii_whitespace().any(|word| word == wanted.unified_name());
    if Controller::ALL.into_iter().any(|wanted| has(&there, wanted) && !has(&given, wanted)) {
        let leaf = own.join(LEAF);
        if make_dir(&leaf).is_ok() && write(&leaf.join("cgroup.procs"), "0").is_err() {
            let _ = fs::remove_dir(leaf);
        }
    }
}
