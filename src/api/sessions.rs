//! Sessions: claims, and what is done with them.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;

use super::routes::{Answer, given};
use super::{ApiError, Kind};
use crate::controller::{
    AcquireRequest, Acquired, CLAIM_TIMEOUT_MAX, Engine, SessionChanged, SessionRequest, SessionStats, SessionView,
};

/// Longest time until a claim is answered: the longest that it may wait for a member, and some more to look at that.
const ACQUIRE_DEADLINE: Duration = CLAIM_TIMEOUT_MAX.saturating_add(Duration::from_secs(15));

pub(super) async fn acquire(
    State(engine): State<Engine>,
    body: Result<Json<AcquireRequest>, JsonRejection>,
) -> Answer<Acquired> {
    let acquired = tokio::time::timeout(ACQUIRE_DEADLINE, engine.acquire(given(body)?)).await;
    Ok(Json(acquired.map_err(|_| ApiError::new(Kind::Timeout, "no member was handed out in time"))??))
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
