//! Sessions: claims, and what is done with them.

use std::time::Duration;

use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::header::CONNECTION;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use super::doors::Seat;
use super::routes::{Answer, given};
use super::{ApiError, Kind};
use crate::controller::{
    AcquireRequest, Acquired, CLAIM_TIMEOUT_MAX, Engine, SessionChanged, SessionRequest, SessionStats, SessionView,
};

/// Longest time until a claim is answered: the longest that it may wait for a member, and some more to look at that.
const ACQUIRE_DEADLINE: Duration = CLAIM_TIMEOUT_MAX.saturating_add(Duration::from_secs(15));

/// Time within which a claim is answered for which a member is ready. One that takes longer waits for a member, and gives its
/// place among the connections to others.
const AT_ONCE: Duration = Duration::from_millis(100);

pub(super) async fn acquire(
    State(engine): State<Engine>,
    seat: Option<Extension<Seat>>,
    body: Result<Json<AcquireRequest>, JsonRejection>,
) -> Result<Response, ApiError> {
    let mut acquired = std::pin::pin!(engine.acquire(given(body)?));
    if let Ok(acquired) = tokio::time::timeout(AT_ONCE, &mut acquired).await {
        return Ok(Json(acquired?).into_response());
    }
    let _waits = seat.map(|Extension(seat)| seat.leave()).transpose()?;
    let answer: Answer<Acquired> = match tokio::time::timeout(ACQUIRE_DEADLINE, acquired).await {
        Ok(acquired) => acquired.map(Json).map_err(ApiError::from),
        Err(_) => Err(ApiError::new(Kind::Timeout, "no member was handed out in time")),
    };
    Ok(([(CONNECTION, "close")], answer).into_response())
}

pub(super) async fn change(
    State(engine): State<Engine>,
    body: Result<Json<SessionRequest>, JsonRejection>,
) -> Answer<SessionChanged> {
    Ok(Json(engine.change_session(given(body)?).await?))
}

pub(super) async fn list(State(engine): State<Engine>) -> Answer<Vec<SessionView>> {
    Ok(Json(engine.sessions().await?))
}

pub(super) async fn stats(State(engine): State<Engine>) -> Answer<SessionStats> {
    Ok(Json(engine.session_stats().await?))
}
