//! Those who read what is gone with an instance: its last output, and how it ended. Each holds a shared lock on the
//! directory of its output, which other processes that remove it see too. A removal itself holds the directory of the
//! instance (`leftovers.rs`), which no reader keeps from it.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::layout::InstanceDir;
use super::{SandboxRuntime, checked_id};
use crate::runtime::file_lock;
use crate::state::InstanceRef;

/// Longest time that a removal waits: what is read is there within milliseconds of the end, and a reader that nobody
/// reads from holds up nothing for longer.
const LAST_LOOK: Duration = Duration::from_secs(2);
/// Longest time until a reader begins: who looks whether there is one holds the lock for microseconds.
const BEGIN_LIMIT: Duration = Duration::from_secs(2);
/// Time between two looks; nothing tells when a lock is given up.
const PAUSE: Duration = Duration::from_millis(5);

/// A reader, for as long as it lives.
#[derive(Debug)]
pub struct Reading {
    _locked: File,
}

impl Reading {
    /// Somebody reads of an instance.
    ///
    /// # Errors
    /// Its directory is gone, or can't be locked in time.
    pub fn begin(dir: &InstanceDir) -> io::Result<Self> {
        let path = dir.logs();
        let locked = file_lock::shared(File::open(&path)?, &path, Instant::now() + BEGIN_LIMIT)?;
        let held = || io::Error::new(io::ErrorKind::TimedOut, format!("{} is held for too long", path.display()));
        Ok(Self { _locked: locked.ok_or_else(held)? })
    }
}

/// Whether somebody reads of an instance.
fn is_read(dir: &InstanceDir) -> bool {
    let Ok(file) = File::open(dir.logs()) else { return false };
    flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(rustix::io::Errno::WOULDBLOCK)
}

impl SandboxRuntime {
    /// Waits until nobody reads of an instance any more, and not for long; not at all for one that runs, whose readers
    /// have no reason to end.
    pub(super) async fn readers_done(&self, instance: &InstanceRef) {
        let Ok(id) = checked_id(instance) else { return };
        if !matches!(self.look(instance).await, Ok(Some(found)) if found.run.is_none()) {
            return;
        }
        let dir = self.inner.dir(&id);
        let done = async {
            loop {
                let dir = dir.clone();
                match tokio::task::spawn_blocking(move || is_read(&dir)).await {
                    Ok(true) => tokio::time::sleep(PAUSE).await,
                    Ok(false) | Err(_) => break,
                }
            }
        };
        if tokio::time::timeout(LAST_LOOK, done).await.is_err() {
            tracing::debug!(instance = id, "it is removed although somebody is attached to it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reader_is_seen_until_it_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let dir = InstanceDir(folder.path().to_owned());
        std::fs::create_dir(dir.logs()).unwrap();
        assert!(!is_read(&dir));
        let (first, second) = (Reading::begin(&dir).unwrap(), Reading::begin(&dir).unwrap());
        drop(first);
        assert!(is_read(&dir));
        drop(second);
        assert!(!is_read(&dir));
        drop(folder);
        assert!(!is_read(&dir), "its directory is gone");
        assert_eq!(Reading::begin(&dir).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
