//! What calls that were cut off left in the root of this runtime: directories that were being made, removed or tried
//! things out in. Calls that make or take away room remove them on the way.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};

use super::layout::Layout;
use super::{own_disk, remove, volumes, workspace};

/// What names of directories of instances that are being made begin with.
pub const NEW: &str = ".new";
/// What names of directories of instances, and of all volumes of a deployment, that are being removed begin with.
pub const GONE: &str = ".gone";
/// What names of scratch directories of probes begin with.
pub const PROBE: &str = ".probe";

/// Age from which a directory that is being made or used belongs to a process that is gone, unless it is held.
const LEFTOVER_AGE: Duration = Duration::from_secs(60);

/// Holds a directory that is being made for as long as the file is open, however long that takes.
///
/// # Errors
/// It can't be opened, or somebody took it for a leftover.
pub fn hold(path: &Path) -> io::Result<File> {
    let folder = File::open(path)?;
    flock(&folder, FlockOperation::NonBlockingLockExclusive)?;
    Ok(folder)
}

/// Removes what processes that are gone were making or removing. Failures are left to the next time.
pub fn sweep(layout: &Layout) {
    clear(
        &layout.instances(),
        NEW,
        own_disk::discard,
        |path| {
            if is_old(path) { hold(path).ok().map(Some) } else { None }
        },
    );
    clear(layout.root(), PROBE, remove::tree, |path| is_old(path).then_some(None));
    sweep_gone(layout);
    clear(&layout.all_volumes(), GONE, volumes::discard, |path| hold(path).ok().map(Some));
    for folder in fs::read_dir(layout.all_volumes()).into_iter().flatten().flatten() {
        // Whoever makes or removes a volume holds its folder.
        if let Ok(_held) = hold(&folder.path()) {
            let _ = workspace::forget_gone(&folder.path(), is_old);
        }
    }
}

fn is_old(path: &Path) -> bool {
    let changed = fs::metadata(path).and_then(|data| data.modified()).ok();
    let age = changed.and_then(|changed| SystemTime::now().duration_since(changed).ok());
    age.is_some_and(|age| age >= LEFTOVER_AGE)
}

/// Whether this is the name of a directory of an instance, or of all volumes of a deployment, that is being removed.
pub fn is_gone(name: &str) -> bool {
    name.strip_prefix(GONE).is_some_and(|rest| rest.starts_with('-'))
}

/// Whether the directory of an instance that was being made or removed is old enough and held by nobody.
pub fn is_left(path: &Path) -> bool {
    is_old(path) && hold(path).is_ok()
}

/// Removes what is left of instances whose removal was cut off, which nobody needs any more; whoever is removing one goes
/// on with that.
pub fn sweep_gone(layout: &Layout) {
    clear(&layout.instances(), GONE, own_disk::discard, |path| hold(path).ok().map(Some));
}

/// Removes what can be claimed, and holds the claim meanwhile.
fn clear(
    folder: &Path,
    prefix: &str,
    remove: impl Fn(&Path) -> io::Result<()>,
    claim: impl Fn(&Path) -> Option<Option<File>>,
) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_one = name.to_str().and_then(|name| name.strip_prefix(prefix)).is_some_and(|rest| rest.starts_with('-'));
        if !is_one {
            continue;
        }
        if let Some(_claim) = claim(&entry.path()) {
            let _ = remove(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_and_what_is_no_leftover_stays() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path());
        layout.prepare().unwrap();
        let old = [
            "instances/.new-1-1",
            "instances/.new-1-0",
            "instances/.gone-1-1",
            "volumes/.gone-1-1",
            ".probe-1-2",
            "instances/demo_web_0",
            "instances/.newer",
            "volumes/demo",
        ];
        let new = ["instances/.new-2-0", ".probe-2-1", "instances/.gone-2-2"];
        for name in old.iter().chain(&new) {
            fs::create_dir_all(folder.path().join(name).join("inside")).unwrap();
        }
        for name in old {
            let long_ago = SystemTime::now() - 2 * LEFTOVER_AGE;
            fs::File::open(folder.path().join(name)).unwrap().set_modified(long_ago).unwrap();
        }
        fs::create_dir_all(folder.path().join("instances/.gone-3-3")).unwrap();
        let removing = hold(&folder.path().join("instances/.gone-3-3")).unwrap();
        let making = hold(&folder.path().join("instances/.new-1-1")).unwrap();
        sweep(&layout);
        let stays = |name: &str| folder.path().join(name).exists();
        assert!(stays("instances/.new-1-1"), "it is still being made");
        assert!(stays("instances/.gone-3-3"), "somebody is removing it");
        drop((making, removing));
        assert!(stays("instances/.gone-3-3"));
        sweep(&layout);
        let stays = |name: &&str| folder.path().join(name).exists();
        assert!(!stays(&"instances/.gone-3-3"));
        let left: Vec<&str> = old.into_iter().chain(new).filter(stays).collect();
        let kept = ["instances/demo_web_0", "instances/.newer", "volumes/demo", "instances/.new-2-0", ".probe-2-1"];
        assert_eq!(left, kept);
    }

    #[test]
    fn what_tells_whose_a_workspace_was_goes_once_that_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        layout.prepare().unwrap();
        let folder = layout.volumes("demo");
        fs::create_dir_all(folder.join("web.0")).unwrap();
        for (name, age) in [(".web.0.slot", 2), (".web.1.slot", 2), (".web.2.slot", 0)] {
            let mark = fs::File::create(folder.join(name)).unwrap();
            mark.set_modified(SystemTime::now() - age * LEFTOVER_AGE).unwrap();
        }
        let left = || {
            let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|one| one.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let held = hold(&folder).unwrap();
        sweep(&layout);
        assert_eq!(left(), [".web.0.slot", ".web.1.slot", ".web.2.slot", "web.0"], "somebody is at the volumes");
        drop(held);
        sweep(&layout);
        assert_eq!(left(), [".web.0.slot", ".web.2.slot", "web.0"]);
        assert!(volumes::are_in(&folder).unwrap());
        fs::remove_dir(folder.join("web.0")).unwrap();
        assert!(!volumes::are_in(&folder).unwrap(), "what only tells whose one was is no volume");
    }
}
