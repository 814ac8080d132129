//! How many may be connected at once, and what one must show of whom nothing else tells that it runs outside of every
//! sandbox. Those who may turn out to be inside never take a place that others wait for.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{ApiError, Kind};
use crate::store::Token;

/// Most connections at a time; a quarter of the 1,024 open files that a service gets by default (systemd.exec), the
/// rest being for runtimes and watches. Further ones wait in the socket's backlog.
const MAX_CONNECTIONS: usize = 256;
/// Most connections at a time of those who have not shown the token yet. Each shows it with its first request.
const MAX_DOUBTFUL: usize = 32;
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
    token: Token,
}

impl Doors {
    pub fn new(token: Token) -> Self {
        let places = |most| Arc::new(Semaphore::new(most));
        Self { slots: places(MAX_CONNECTIONS), refused: places(MAX_REFUSED), doubtful: places(MAX_DOUBTFUL), token }
    }

    /// A place of one who has to show the token; `None` where there is none left.
    pub fn open_to_doubtful(&self) -> Option<Door> {
        let place = Arc::clone(&self.doubtful).try_acquire_owned().ok()?;
        let (slots, token) = (Arc::clone(&self.slots), self.token.clone());
        Some(Door { place: Arc::new(Mutex::new(Place { is_proven: false, _held: place })), slots, token })
    }
}

/// The place of a connection; given back when it is dropped.
#[derive(Debug)]
struct Place {
    is_proven: bool,
    _held: OwnedSemaphorePermit,
}

/// Stands before the router of one connection.
#[derive(Debug, Clone)]
pub(super) struct Door {
    place: Arc<Mutex<Place>>,
    slots: Arc<Semaphore>,
    token: Token,
}

impl Door {
    /// The router for requests that show the token; others are refused.
    pub fn before(self, router: Router) -> Router {
        router.layer(middleware::from_fn_with_state(self, pass))
    }

    fn is_shown(&self, headers: &HeaderMap) -> bool {
        let shown = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        shown.and_then(|value| value.strip_prefix("Bearer ")).is_some_and(|sent| self.token.is(sent.trim()))
    }

    /// Takes a place like everybody's.
    async fn prove(&self) {
        let place = || self.place.lock().unwrap_or_else(PoisonError::into_inner);
        if place().is_proven {
            return;
        }
        if let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await {
            *place() = Place { is_proven: true, _held: slot };
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
