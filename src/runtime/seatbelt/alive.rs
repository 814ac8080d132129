//! The lock by which a supervisor is known: who holds it lives, whatever its number was before, and the system takes it away
//! when it ends, also when it is killed.

use std::fs::File;
use std::io;

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;
use rustix::process::{Flock, FlockType, Pid, fcntl_getlk};

use super::layout::InstanceDir;
use crate::runtime::files::private_file;

/// Takes the lock, for as long as this process lives and never opens and closes the file again, which would give it up
/// (fcntl(2)). None where another process has it.
///
/// # Errors
/// The file can't be opened or locked.
pub fn hold(dir: &InstanceDir) -> io::Result<Option<File>> {
    let file = private_file().create(true).truncate(false).open(dir.alive())?;
    match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Who holds it.
///
/// # Errors
/// The file can't be opened.
pub fn holder(dir: &InstanceDir) -> io::Result<Option<Pid>> {
    let file = match private_file().read(true).open(dir.alive()) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let found = fcntl_getlk(&file, &Flock::from(FlockType::WriteLock))?;
    Ok(found.and_then(|lock| lock.pid))
}
