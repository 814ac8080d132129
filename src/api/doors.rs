//! How many may be connected at once, and what one must show of whom nothing else tells that it runs outside of every
//! sandbox. Those who may turn out to be inside never take a place that others wait for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use rustix::process::{Resource, getrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{ApiError, Kind};
use crate::store::Token;

/// Most connections at a time; a quarter of the 1,024 open files that a service gets by default (systemd.exec), the
/// rest being for runtimes and watches. Further ones wait in the socket's backlog.
const MAX_CONNECTIONS: usize = 256;
/// Most connections at a time of those who have not shown the token yet. Each shows it with its first request.
const MAX_DOUBTFUL: usize = 32;
/// Most claims at a time that wait for members of pools, as many as wait for those of one pool; fewer where that would be more
/// than a quarter of the open files that this process may have.
const MAX_WAITING: usize = 1000;
/// Most of those at a time who are told that they are refused.
const MAX_REFUSED: usize = 8;

/// What one is told who shows no token, or a wrong one.
const UNPROVEN: &str = "this process can gain no privileges (no_new_privs), as no program inside of a sandbox can, and did not \
                        show that it can read the state directory; run keel as the user whose controller it is, or send \
                        what the file token in the state directory holds: `Authorization: Bearer TOKEN`";

/// The places that there are.
#[derive(Debug)]
pub(super) struct Doors {
    /// Those of everybody outside.
    pub slots: Arc<Semaphore>,
    /// Those of who is refused.
    pub refused: Arc<Semaphore>,
    doubtful: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    token: Token,
}

impl Doors {
    pub fn new(token: Token) -> Self {
        let places = |most| Arc::new(Semaphore::new(most));
        Self {
            slots: places(MAX_CONNECTIONS),
            refused: places(MAX_REFUSED),
            doubtful: places(MAX_DOUBTFUL),
            waiting: places(most_waiting(getrlimit(Resource::Nofile).current)),
            token,
        }
    }

    /// The seat of one who has a place like everybody's.
    pub fn seat(&self, slot: OwnedSemaphorePermit) -> Seat {
        self.seated(true, slot)
    }

    fn seated(&self, is_proven: bool, held: OwnedSemaphorePermit) -> Seat {
        let place = Arc::new(Mutex::new(Place { is_proven, held: Some(held) }));
        Seat { place, waiting: Arc::clone(&self.waiting) }
    }

    /// A place of one who has to show the token; `None` where there is none left.
    pub fn open_to_doubtful(&self) -> Option<Door> {
        let place = Arc::clone(&self.doubtful).try_acquire_owned().ok()?;
        let (slots, token) = (Arc::clone(&self.slots), self.token.clone());
        Some(Door { seat: self.seated(false, place), slots, token })
    }
}

/// Claims that may wait at a time where a process may have so many open files; `None` is any number.
fn most_waiting(files: Option<u64>) -> usize {
    let quarter = files.and_then(|files| usize::try_from(files / 4).ok());
    quarter.map_or(MAX_WAITING, |quarter| quarter.min(MAX_WAITING))
}

/// The place of a connection; given back when it is dropped.
#[derive(Debug)]
struct Place {
    is_proven: bool,
    held: Option<OwnedSemaphorePermit>,
}

/// The place of one connection, as those see it who answer its requests.
#[derive(Debug, Clone)]
pub(super) struct Seat {
    place: Arc<Mutex<Place>>,
    waiting: Arc<Semaphore>,
}

impl Seat {
    /// Gives the place back for one among those who wait long, so that short requests find places. The connection is to be
    /// closed after the answer, as it has no place any more.
    ///
    /// # Errors
    /// As many wait as may.
    pub fn leave(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let full = |_| ApiError::new(Kind::Conflict, "as many claims wait for sandboxes as may; ask again later");
        let waiting = Arc::clone(&self.waiting).try_acquire_owned().map_err(full)?;
        self.place().held = None;
        Ok(waiting)
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stands before the router of one connection.
#[derive(Debug, Clone)]
pub(super) struct Door {
    seat: Seat,
    slots: Arc<Semaphore>,
    token: Token,
}

impl Door {
    /// The router for requests that show the token; others are refused.
    pub fn before(self, router: Router) -> Router {
        let seat = self.seat.clone();
        router.layer(Extension(seat)).layer(middleware::from_fn_with_state(self, pass))
    }

    fn is_shown(&self, headers: &HeaderMap) -> bool {
        let shown = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        shown.and_then(|value| value.strip_prefix("Bearer ")).is_some_and(|sent| self.token.is(sent.trim()))
    }

    /// Takes a place like everybody's.
    async fn prove(&self) {
        if self.seat.place().is_proven {
            return;
        }
        if let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await {
            *self.seat.place() = Place { is_proven: true, held: Some(slot) };
        }
    }
}

async fn pass(State(door): State<Door>, request: Request, next: Next) -> Response {
    if !door.is_shown(request.headers()) {
        return ApiError::new(Kind::Conflict, UNPROVEN).into_response();
    }
    door.prove().await;
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::StatusCode;
    use axum::routing::get;
    use tower::ServiceExt;

    use super::*;

    fn doors() -> (tempfile::TempDir, Doors, String) {
        let folder = tempfile::tempdir().unwrap();
        let token = crate::store::StateDir::open(folder.path()).unwrap().token().unwrap();
        let text = token.text().to_owned();
        (folder, Doors::new(token), text)
    }

    async fn ask(router: &Router, header: &str) -> StatusCode {
        let request = Request::builder().uri("/").header(AUTHORIZATION, header).body(Body::empty()).unwrap();
        router.clone().oneshot(request).await.unwrap().status()
    }

    #[test]
    fn claims_that_wait_leave_most_files_to_others() {
        assert_eq!([None, Some(100_000), Some(1024), Some(60)].map(most_waiting), [1000, 1000, 256, 15]);
    }

    #[test]
    fn whoever_waits_gives_the_place_back_to_others_and_has_one_among_so_many_that_wait() {
        let (_folder, doors, _) = doors();
        let left = || (doors.slots.available_permits(), doors.waiting.available_permits());
        let (slots, most) = left();
        let seat = doors.seat(Arc::clone(&doors.slots).try_acquire_owned().unwrap());
        assert_eq!(left(), (slots - 1, most));
        let waits = seat.leave().unwrap();
        assert_eq!(left(), (slots, most - 1));
        let others = Arc::clone(&doors.waiting).try_acquire_many_owned(u32::try_from(most - 1).unwrap()).unwrap();
        let late = doors.seat(Arc::clone(&doors.slots).try_acquire_owned().unwrap());
        assert_eq!(late.leave().unwrap_err().kind, Kind::Conflict);
        assert_eq!(left(), (slots - 1, 0), "it keeps its place for the answer");
        drop((waits, others, late));
        assert_eq!(left(), (slots, most));
    }

    #[tokio::test]
    async fn who_shows_the_token_is_served_and_takes_a_place_like_everybodys() {
        let (_folder, doors, token) = doors();
        let all: Vec<Door> = std::iter::from_fn(|| doors.open_to_doubtful()).collect();
        assert_eq!(all.len(), MAX_DOUBTFUL);
        let router = all.into_iter().next().unwrap().before(Router::new().route("/", get(|| async {})));
        let left = || (doors.doubtful.available_permits(), doors.slots.available_permits());
        // The others were dropped.
        assert_eq!(left(), (MAX_DOUBTFUL - 1, MAX_CONNECTIONS));
        for wrong in ["", "Bearer", "Bearer ", "Bearer x", &token, &format!("Basic {token}")] {
            assert_eq!(ask(&router, wrong).await, StatusCode::CONFLICT, "{wrong}");
        }
        assert_eq!(left(), (MAX_DOUBTFUL - 1, MAX_CONNECTIONS));
        for _ in 0..2 {
            assert_eq!(ask(&router, &format!("Bearer {token}")).await, StatusCode::OK);
            assert_eq!(left(), (MAX_DOUBTFUL, MAX_CONNECTIONS - 1));
        }
        drop(router);
        assert_eq!(left(), (MAX_DOUBTFUL, MAX_CONNECTIONS));
    }
}
