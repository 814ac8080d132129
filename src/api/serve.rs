//! The Unix socket of a running controller.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

use super::doors::Doors;
use super::peer::{Peer, judge};
use super::{ApiError, Kind};
use crate::store::Token;

/// Longest time for the head of a request (nginx: 60 s; local clients need milliseconds).
const HEAD_DEADLINE: Duration = Duration::from_secs(10);

/// Longest time for one who is refused to take the answer: it is told why, and is of no further interest.
const REFUSAL_DEADLINE: Duration = Duration::from_secs(1);

/// What one who runs inside of a sandbox is told.
const INSIDE: &str =
    "this runs inside of a sandbox, and nobody directs the controller from there; run keel outside of it";

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
    /// owner's alone, so nobody can connect before the mode is set. `token` is shown by callers of which nothing else tells
    /// that they run outside of every sandbox.
    ///
    /// # Errors
    /// The socket can't be made.
    pub fn bind(path: &Path, router: Router, token: Token) -> Result<Self, ServeError> {
        let failed = |source| ServeError { path: path.to_owned(), source };
        remove_if_there(path).map_err(failed)?;
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let metadata = std::fs::symlink_metadata(path).map_err(failed)?;
        let task = tokio::spawn(accept(listener, router, token));
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

/// Serves connections; dropping the future ends them all. Who is on the other side is judged before it takes anything that
/// others wait for.
async fn accept(listener: UnixListener, router: Router, token: Token) {
    let doors = Doors::new(token);
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a client failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        match judge(&stream) {
            Peer::Outside => {
                let Ok(slot) = Arc::clone(&doors.slots).acquire_owned().await else { return };
                let router = router.clone();
                connections.spawn(async move {
                    serve(stream, router).await;
                    drop(slot);
                });
            }
            // Dropped where too many are there: the connection is closed at once.
            Peer::Doubtful => {
                if let Some(door) = doors.open_to_doubtful() {
                    connections.spawn(serve(stream, door.before(router.clone())));
                }
            }
            Peer::Inside => {
                if let Ok(slot) = Arc::clone(&doors.refused).try_acquire_owned() {
                    connections.spawn(async move {
                        let _ = tokio::time::timeout(REFUSAL_DEADLINE, serve(stream, refuse(INSIDE))).await;
                        drop(slot);
                    });
                }
            }
        }
    }
}

async fn serve(stream: UnixStream, router: Router) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a client's connection broke off");
    }
}

/// Answers everything with a refusal.
fn refuse(words: &'static str) -> Router {
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
