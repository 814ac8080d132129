//! The Unix socket of a running controller.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use super::peer::is_inside_sandbox;
use super::{ApiError, Kind};

/// Most connections at a time; a quarter of the 1,024 open files that a service gets by default (systemd.exec), the
/// rest being for runtimes and watches. Further ones wait in the socket's backlog.
const MAX_CONNECTIONS: usize = 256;

/// Longest time for the head of a request (nginx: 60 s; local clients need milliseconds).
const HEAD_DEADLINE: Duration = Duration::from_secs(10);

/// Pause after a failed accept, which is what running out of open files looks like (nginx `accept_mutex_delay`:
/// 500 ms; shorter, because connections are few).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until closed or dropped.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    identity: (u64, u64),
    task: JoinHandle<()>,
}

impl Server {
    /// Listens on this path, readable and writable for the owner alone, and replaces what a dead controller left
    /// there. The caller holds the state directory's lock, so nobody alive listens on it; the directory is the
    /// owner's alone, so nobody can connect before the mode is set.
    ///
    /// # Errors
    /// The socket can't be made.
    pub fn bind(path: &Path, router: Router) -> Result<Self, ServeError> {
        let failed = |source| ServeError { path: path.to_owned(), source };
        remove_if_there(path).map_err(failed)?;
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let metadata = std::fs::symlink_metadata(path).map_err(failed)?;
        let task = tokio::spawn(accept(listener, router));
        Ok(Self { path: path.to_owned(), identity: (metadata.dev(), metadata.ino()), task })
    }

    /// Ends every connection and removes the socket.
    pub async fn close(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        // Somebody else's socket stays.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Serves connections; dropping the future ends them all.
async fn accept(listener: UnixListener, router: Router) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let is_inside = stream.peer_cred().ok().and_then(|peer| peer.pid()).is_some_and(is_inside_sandbox);
                let service = TowerToHyperService::new(if is_inside { refuse() } else { router.clone() });
                connections.spawn(async move {
                    let served = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEAD_DEADLINE)
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                    if let Err(error) = served {
                        tracing::debug!(%error, "a client's connection broke off");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a client failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Answers everything with a refusal.
fn refuse() -> Router {
    let words = "this runs inside of a sandbox, and nobody directs the controller from there; run keel outside of it";
    Router::new().fallback(async move || ApiError::new(Kind::Conflict, words))
}

/// The socket can't be made.
#[derive(Debug, thiserror::Error)]
#[error("listening on {} failed", path.display())]
pub struct ServeError {
    /// The socket.
    pub path: PathBuf,
    /// Why.
    pub source: std::io::Error,
}
