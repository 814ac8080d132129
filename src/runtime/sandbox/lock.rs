//! The lock of an instance, by which one supervisor at a time has it.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::layout::{InstanceDir, private_file};

/// Longest time that a supervisor may take to leave after it recorded the end of its instance: all that is left to do
/// is to exit.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);

/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(1);

/// Takes the lock of an instance, which is held until the file is closed; none where a supervisor has it. One that
/// recorded its end leaves at once, and is waited for.
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
    Ok(Some(lock))
}
