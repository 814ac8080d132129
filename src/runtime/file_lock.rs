//! Locks of files, of which none is waited for without end.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Pause between two tries: others hold it for some microseconds while a start waits.
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
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "the sandbox runtime of Linux alone shares locks"))]
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::files::private_file;

    #[test]
    fn what_is_held_is_waited_for_no_longer_than_until_the_end_and_what_is_shared_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let open = || private_file().create(true).truncate(false).open(&path).unwrap();
        let end = Instant::now() + 20 * SHORT_PAUSE;
        let shares = [shared(open(), &path, end).unwrap().unwrap(), shared(open(), &path, end).unwrap().unwrap()];
        assert!(exclusive(open(), &path, end).unwrap().is_none() && Instant::now() >= end);
        drop(shares);
        let held = exclusive(open(), &path, end).unwrap().unwrap();
        assert!(shared(open(), &path, end).unwrap().is_none());
        drop(held);
    }
}
