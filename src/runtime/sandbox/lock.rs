//! The lock of an instance, by which one supervisor at a time has it.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::layout::{InstanceDir, private_file};
use crate::runtime::file_lock::is_at;

/// Longest time that a supervisor may take to leave after it recorded the end of its instance: all that is left to do
/// is to exit.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);

/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(1);

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
    use std::fs;

    use super::*;

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
