//! Bounds of this runtime's calls. Files of its own root need milliseconds; what takes longer is a file system that
//! hangs, such as that of a network or of a broken disk. The thread that waits for it is lost until it answers; the
//! call is not.

use std::time::Duration;

use crate::runtime::{ErrorKind, Result, RuntimeError};

/// Longest time that a complete list may take. A list reads three small files per instance, so that thousands take
/// less than a second.
pub const LIST_LIMIT: Duration = Duration::from_secs(30);
/// Longest time that files of one instance may take to be read or written, with some waits for the disk.
pub const FILE_LIMIT: Duration = Duration::from_secs(30);
/// Longest time that the creation of one instance may take: it also waits for others that are given a port, and
/// looks at the sources of its mounts. Kubernetes' kubelet gives its runtime two minutes for a request.
pub const CREATE_LIMIT: Duration = Duration::from_secs(120);
/// Longest time that the removal of a directory tree may take. File systems remove some 100,000 files in a second;
/// this is for layers and volumes of millions, on slow disks.
pub const REMOVE_LIMIT: Duration = Duration::from_secs(600);

/// Does file work away from the threads that drive futures, and waits for it that long. It goes on afterwards; the next
/// call with the same identity completes or recognises it.
///
/// # Errors
/// That of the work, or one of the kind `late` when the time is over.
pub async fn bounded<T: Send + 'static>(
    what: &str,
    limit: Duration,
    late: ErrorKind,
    action: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::time::timeout(limit, tokio::task::spawn_blocking(action)).await {
        Ok(Ok(result)) => result,
        Ok(Err(error)) => Err(RuntimeError::new(ErrorKind::Failed, format!("{what}: {error}"))),
        Err(_) => Err(RuntimeError::new(
            late,
            format!("{what} did not end within {} s; does a file system hang?", limit.as_secs()),
        )),
    }
}
