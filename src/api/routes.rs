//! The requests that have one answer.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Query, Request, State};
use axum::http::header::CONTENT_LENGTH;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};

use super::wire::{StatusQuery, TargetQuery, UsageQuery};
use super::{ApiError, Kind, Version, attach, exec, logs, sessions};
use crate::controller::{
    Applied, ApplyRequest, DeleteRequest, Description, Engine, IdleReport, InstanceUsage, Order, Ordered, OrphanView,
    Preview, RolloutView, RuntimeReport, TriggerRequest,
};
use crate::state::{BadIdentity, RunId, Target};
use crate::status::Status;

/// Most bytes of a request: room for thousands of spec files (a file of a service is about 1 KiB; Kubernetes takes
/// 3 MiB per object), and no way to fill the controller's memory.
pub const MAX_REQUEST: usize = 32 << 20;

/// Longest time until a request is answered, streams aside. Runtime calls have bounds of their own; this one is for
/// their sum, and for a client that stops in the middle of its request (kube-apiserver: 60 s).
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);

/// Longest wait for another status; shorter than what proxies and clients take for a dead connection (commonly 30 s).
const LONGEST_WAIT: Duration = Duration::from_secs(25);

/// The engine over HTTP.
pub fn router(engine: Engine) -> Router {
    Router::new()
        .route("/v1/version", get(|| async { Json(Version::here()) }))
        .route("/v1/status", get(status))
        .route("/v1/describe", get(describe))
        .route("/v1/usage", get(usage))
        .route("/v1/preview", post(preview))
        .route("/v1/dry-run", post(dry_run))
        .route("/v1/apply", post(apply))
        .route("/v1/delete", post(delete))
        .route("/v1/trigger", post(trigger))
        .route("/v1/approve", post(approve))
        .route("/v1/order", post(order))
        .route("/v1/rollouts", get(rollouts))
        .route("/v1/touch", post(touch))
        .route("/v1/explain/idle", get(explain_idle))
        .route("/v1/orphans", get(orphans).post(reap))
        .route("/v1/rescan", post(rescan))
        .route("/v1/runtimes", get(runtimes))
        .route("/v1/logs", get(logs::logs).post(logs::resume))
        .route("/v1/sessions", get(sessions::list))
        .route("/v1/sessions/stats", get(sessions::stats))
        .route("/v1/sessions/change", post(sessions::change))
        .route_layer(middleware::from_fn(bounded))
        .route("/v1/sessions/acquire", post(sessions::acquire))
        .route("/v1/exec", post(exec::exec))
        .route("/v1/attach", post(attach::attach))
        .fallback(|| async {
            ApiError::new(Kind::NotFound, "no such request; is the client newer than the controller?")
        })
        .method_not_allowed_fallback(|| async { ApiError::new(Kind::Invalid, "this request takes another method") })
        .layer(DefaultBodyLimit::max(MAX_REQUEST))
        .with_state(engine)
}

pub(super) type Answer<T> = Result<Json<T>, ApiError>;

async fn status(
    State(engine): State<Engine>,
    query: Result<Query<StatusQuery>, QueryRejection>,
) -> Answer<Arc<Status>> {
    let Query(query) = query.map_err(|error| ApiError::new(Kind::Invalid, error.body_text()))?;
    Ok(Json(match query.wait {
        Some(generation) => engine.status_after(generation, LONGEST_WAIT).await,
        None => engine.status(),
    }))
}

async fn describe(
    State(engine): State<Engine>,
    query: Result<Query<TargetQuery>, QueryRejection>,
) -> Answer<Description> {
    let Query(query) = query.map_err(|error| ApiError::new(Kind::Invalid, error.body_text()))?;
    Ok(Json(engine.describe(&target(&query.target)?).await?))
}

async fn usage(
    State(engine): State<Engine>,
    query: Result<Query<UsageQuery>, QueryRejection>,
) -> Answer<Vec<InstanceUsage>> {
    let Query(query) = query.map_err(|error| ApiError::new(Kind::Invalid, error.body_text()))?;
    let target = query.target.as_deref().map(target).transpose()?;
    Ok(Json(engine.usage(target.as_ref()).await?))
}

fn target(name: &str) -> Result<Target, ApiError> {
    name.parse().map_err(|error: BadIdentity| ApiError::new(Kind::Invalid, format!("{error}")))
}

async fn preview(State(engine): State<Engine>, body: Result<Json<ApplyRequest>, JsonRejection>) -> Answer<Preview> {
    Ok(Json(engine.preview(&given(body)?).await?))
}

async fn dry_run(State(engine): State<Engine>, body: Result<Json<ApplyRequest>, JsonRejection>) -> Answer<Applied> {
    Ok(Json(engine.dry_run(&given(body)?).await?))
}

async fn apply(State(engine): State<Engine>, body: Result<Json<ApplyRequest>, JsonRejection>) -> Answer<Applied> {
    Ok(Json(engine.apply(&given(body)?).await?))
}

async fn delete(State(engine): State<Engine>, body: Result<Json<DeleteRequest>, JsonRejection>) -> Answer<Applied> {
    Ok(Json(engine.delete(&given(body)?).await?))
}

async fn trigger(State(engine): State<Engine>, body: Result<Json<TriggerRequest>, JsonRejection>) -> Answer<RunId> {
    Ok(Json(engine.trigger(&given(body)?).await?))
}

async fn approve(State(engine): State<Engine>) -> Answer<Vec<String>> {
    Ok(Json(engine.approve().await?))
}

async fn order(State(engine): State<Engine>, body: Result<Json<Order>, JsonRejection>) -> Answer<Ordered> {
    Ok(Json(engine.order(&given(body)?).await?))
}

async fn rollouts(
    State(engine): State<Engine>,
    query: Result<Query<TargetQuery>, QueryRejection>,
) -> Answer<Vec<RolloutView>> {
    let Query(query) = query.map_err(|error| ApiError::new(Kind::Invalid, error.body_text()))?;
    Ok(Json(engine.rollouts(&target(&query.target)?).await?))
}

async fn touch(State(engine): State<Engine>, query: Result<Query<TargetQuery>, QueryRejection>) -> Answer<Vec<String>> {
    let Query(query) = query.map_err(|error| ApiError::new(Kind::Invalid, error.body_text()))?;
    Ok(Json(engine.touch(&target(&query.target)?).await?))
}

async fn explain_idle(
    State(engine): State<Engine>,
    query: Result<Query<TargetQuery>, QueryRejection>,
) -> Answer<Vec<IdleReport>> {
    let Query(query) = query.map_err(|error| ApiError::new(Kind::Invalid, error.body_text()))?;
    Ok(Json(engine.explain_idle(&target(&query.target)?).await?))
}

async fn orphans(State(engine): State<Engine>) -> Answer<Vec<OrphanView>> {
    Ok(Json(engine.orphans().await?))
}

async fn reap(State(engine): State<Engine>) -> Answer<Vec<OrphanView>> {
    Ok(Json(engine.reap().await?))
}

async fn rescan(State(engine): State<Engine>) -> Answer<()> {
    Ok(Json(engine.rescan().await?))
}

async fn runtimes(State(engine): State<Engine>) -> Answer<Vec<RuntimeReport>> {
    Ok(Json(engine.runtimes().await?))
}

pub(super) fn given<T>(body: Result<Json<T>, JsonRejection>) -> Result<T, ApiError> {
    body.map(|Json(value)| value).map_err(|error| ApiError::new(Kind::Invalid, error.body_text()))
}

/// Refuses a request that says it is too long before any of it is read, and ends one that takes too long, be it
/// because its client stopped in the middle.
async fn bounded(request: Request, next: Next) -> Result<Response, ApiError> {
    let length = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > MAX_REQUEST) {
        return Err(ApiError::new(Kind::Invalid, format!("a request has at most {} MiB", MAX_REQUEST >> 20)));
    }
    tokio::time::timeout(REQUEST_DEADLINE, next.run(request)).await.map_err(|_| {
        let seconds = REQUEST_DEADLINE.as_secs();
        ApiError::new(
            Kind::Timeout,
            format!("not done after {seconds} s; `keel get deployments` shows how far it came"),
        )
    })
}
