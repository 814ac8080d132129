//! Locks of files, of which none is waited for without end; the lock of an instance, by which one supervisor at a time has
//! it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::layout::{InstanceDir, private_file};

/// Longest time that a supervisor may take to leave after it recorded the end of its instance: all that is left to do
/// is to exit.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);

/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(1);
/// The same where others hold it for some microseconds and a start waits.
const SHORT_PAUSE: Duration = Duration::from_micros(200);

/// Locks what was opened at a path, for as long as the file is open. `None` where another has it until `end`. It is tried once
/// at least.
///
/// # Errors
/// It can't be locked; `NotFound` where it is not what lies at the path any more.
pub fn exclusive(file: File, path: &Path, end: Instant) -> io::Result<Option<File>> {
    locked(file, path, end, FlockOperation::NonBlockingLockExclusive)
}

/// The same where others may share the lock.
///
/// # Errors
/// The same.
pub fn shared(file: File, path: &Path, end: Instant) -> io::Result<Option<File>> {
    locked(file, path, end, FlockOperation::NonBlockingLockShared)
}

fn locked(file: File, path: &Path, end: Instant, operation: FlockOperation) -> io::Result<Option<File>> {
    loop {
        match flock(&file, operation) {
            Ok(()) => break,
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() >= end => return Ok(None),
            Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(SHORT_PAUSE),
            Err(error) => return Err(error.into()),
        }
    }
    if is_at(&file, path)? { Ok(Some(file)) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Whether a file is the one that lies at a path.
///
/// # Errors
/// Nothing lies there, or it can't be looked at.
pub fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let (held, there) = (file.metadata()?, fs::symlink_metadata(path)?);
    Ok((held.dev(), held.ino()) == (there.dev(), there.ino()))
}

/// Takes the lock of an instance, which is held until the file is closed; none where a supervisor has it. One that
/// recorded its end leaves at once, and is waited for. None also where the instance was removed meanwhile, even if there is
/// another one of its name by now.
///
/// # Errors
/// The file can't be opened.
pub fn take(dir: &InstanceDir) -> io::Result<Option<File>> {
    let lock = private_file().create(true).truncate(false).open(dir.lock())?;
    let end = Instant::now() + LEAVE_LIMIT;
    while flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        if !dir.exit().exists() || Instant::now() >= end {
            return Ok(None);
        }
        std::thread::sleep(PAUSE);
    }
    Ok(is_at(&lock, &dir.lock()).unwrap_or(false).then_some(lock))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_waited_for_no_longer_than_until_the_end_and_what_is_shared_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let open = || private_file().create(true).truncate(false).open(&path).unwrap();
        let end = Instant::now() + 20 * PAUSE;
        let shares = [shared(open(), &path, end).unwrap().unwrap(), shared(open(), &path, end).unwrap().unwrap()];
        assert!(exclusive(open(), &path, end).unwrap().is_none() && Instant::now() >= end);
        drop(shares);
        let held = exclusive(open(), &path, end).unwrap().unwrap();
        assert!(shared(open(), &path, end).unwrap().is_none());
        drop(held);
    }

    #[test]
    fn one_at_a_time_has_it_and_nobody_that_of_what_was_removed() {
        let folder = tempfile::tempdir().unwrap();
        let dir = InstanceDir(folder.path().join("one"));
        assert_eq!(take(&dir).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::create_dir(dir.path()).unwrap();
        let held = take(&dir).unwrap().unwrap();
        assert!(take(&dir).unwrap().is_none());
        // One that waits for a supervisor that ended finds the instance removed, and another one in its place.
        fs::write(dir.exit(), "").unwrap();
        let waiting = std::thread::spawn({
            let dir = dir.clone();
            move || take(&dir).unwrap().is_some()
        });
        std::thread::sleep(20 * PAUSE);
        fs::rename(dir.path(), folder.path().join("gone")).unwrap();
        fs::create_dir(dir.path()).unwrap();
        fs::write(dir.lock(), "").unwrap();
        fs::write(dir.exit(), "").unwrap();
        drop(held);
        assert!(!waiting.join().unwrap());
        assert!(take(&dir).unwrap().is_some());
    }
}
