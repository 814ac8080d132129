//! The Unix socket of a running controller.

use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::MissedTickBehavior;

use super::doors::Doors;
use super::peer::{Peer, judge};
use super::{ApiError, Kind};
use crate::store::{StateDir, StoreError, Token};

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

/// How often is looked whether the socket is still where callers look for it. Whoever calls meanwhile is told that no
/// controller runs, or waits for longer than this where it needs one; a look is one `stat`.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Serves until closed or dropped.
#[derive(Debug)]
pub struct Server {
    task: JoinHandle<()>,
}

impl Server {
    /// Listens on the socket of this state directory, readable and writable for the owner alone, and replaces what a dead
    /// controller left there. Where the socket goes, or its directory, it is made again within seconds. The caller holds the
    /// state directory's lock, so nobody alive listens on it; the directory is the owner's alone, so nobody can connect
    /// before the mode is set. `token` is shown by callers of which nothing else tells that they run outside of every
    /// sandbox.
    ///
    /// # Errors
    /// The socket can't be made.
    pub fn bind(state_dir: &StateDir, router: Router, token: Token) -> Result<Self, ServeError> {
        let bound = Bound::on(state_dir)?;
        Ok(Self { task: tokio::spawn(accept(state_dir.clone(), bound, router, token)) })
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
    }
}

/// A socket that is listened on.
#[derive(Debug)]
struct Bound {
    path: PathBuf,
    identity: (u64, u64),
    /// The file that is locked by the one who listens.
    lock_file: Option<(u64, u64)>,
    listener: UnixListener,
}

impl Bound {
    fn on(state_dir: &StateDir) -> Result<Self, ServeError> {
        let path = state_dir.claim_socket()?;
        let failed = |source| ServeError::Listen { path: path.clone(), source };
        remove_if_there(&path).map_err(failed)?;
        let listener = UnixListener::bind(&path).map_err(failed)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let metadata = std::fs::symlink_metadata(&path).map_err(failed)?;
        let identity = (metadata.dev(), metadata.ino());
        Ok(Self { path, identity, lock_file: state_dir.lock_file(), listener })
    }

    /// Whether who connects to the path comes here; so it is taken to be where nobody may look.
    fn is_in_place(&self) -> bool {
        match std::fs::symlink_metadata(&self.path) {
            Ok(now) => (now.dev(), now.ino()) == self.identity,
            Err(error) => !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
        }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // Somebody else's socket stays.
        if self.is_in_place() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes the socket again where it is not in its place any more. What is told of a failure, `told` keeps, so that it is
/// told once.
fn keep_in_place(state_dir: &StateDir, bound: &mut Bound, told: &mut Option<String>) {
    if bound.is_in_place() {
        return;
    }
    let why = if state_dir.lock_file() == bound.lock_file {
        match Bound::on(state_dir) {
            Ok(again) => {
                tracing::warn!("{} was gone; listening on {} again", bound.path.display(), again.path.display());
                (*bound, *told) = (again, None);
                return;
            }
            Err(error) => format!("its socket was removed: {:#}", anyhow::Error::new(error)),
        }
    } else {
        // Another controller may hold the lock of what is there now, and the socket would be its.
        "its state directory was moved away or removed; end it, and start one where the directory is".to_owned()
    };
    let text = format!("no command finds this controller, as {why}");
    if told.as_ref() != Some(&text) {
        tracing::warn!("{text}");
        *told = Some(text);
    }
}

/// Serves connections; dropping the future ends them all. Who is on the other side is judged before it takes anything that
/// others wait for.
async fn accept(state_dir: StateDir, mut bound: Bound, router: Router, token: Token) {
    let doors = Doors::new(token);
    let mut connections = JoinSet::new();
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = None;
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = bound.listener.accept() => accepted,
            _ = looks.tick() => {
                keep_in_place(&state_dir, &mut bound, &mut told);
                continue;
            }
        };
        let stream = match accepted {
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
                connections.spawn(serve(stream, router.clone().layer(Extension(doors.seat(slot)))));
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
pub enum ServeError {
    /// There is no place for it.
    #[error(transparent)]
    Place(#[from] StoreError),
    /// Nobody can listen there.
    #[error("listening on {} failed", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Role;

    #[tokio::test(start_paused = true)]
    async fn a_socket_that_is_removed_is_made_again_and_goes_with_its_server() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = StateDir::open(dir.path()).unwrap();
        let server = Server::bind(&state_dir, Router::new(), state_dir.token().unwrap()).unwrap();
        let path = state_dir.find_socket().unwrap().unwrap();
        for place_taken in [false, true] {
            std::fs::remove_file(&path).unwrap();
            if place_taken {
                drop(UnixListener::bind(&path).unwrap());
            }
            assert!(UnixStream::connect(&path).await.is_err());
            tokio::time::sleep(LOOK_EVERY + ACCEPT_PAUSE).await;
            UnixStream::connect(&path).await.unwrap();
        }
        server.close().await;
        assert!(!path.exists());
    }

    #[tokio::test(start_paused = true)]
    async fn the_socket_of_a_directory_that_took_the_place_of_its_own_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("state");
        let open = || {
            let state_dir = StateDir::open(&place).unwrap();
            let guard = state_dir.lock(Role::Controller).unwrap();
            (state_dir, guard)
        };
        let (first, _guard) = open();
        let _robbed = Server::bind(&first, Router::new(), first.token().unwrap()).unwrap();
        std::fs::rename(&place, dir.path().join("elsewhere")).unwrap();
        let (second, _other_guard) = open();
        let _owner = Server::bind(&second, Router::new(), second.token().unwrap()).unwrap();
        let path = second.find_socket().unwrap().unwrap();
        let number = || std::fs::symlink_metadata(&path).map(|socket| socket.ino()).ok();
        let its = number();
        assert!(its.is_some());
        tokio::time::sleep(3 * LOOK_EVERY).await;
        assert_eq!(number(), its);
    }
}
