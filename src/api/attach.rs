//! Attaching to the program of an instance, as frames both ways.

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use super::exec::{answer, encode, first, gone};
use super::frame::{Frame, frames};
use super::{ApiError, AttachStart, Attached, Kind};
use crate::controller::Engine;
use crate::state::Target;

pub(super) async fn attach(State(engine): State<Engine>, body: Body) -> Response {
    answer(async move { run(&engine, body).await })
}

async fn run(engine: &Engine, body: Body) -> Result<BoxStream<'static, Bytes>, ApiError> {
    let mut input = Box::pin(frames(body));
    let start: AttachStart = first(&mut input, "a request to attach").await?;
    let target: Target = start.target.parse().map_err(|error| ApiError::new(Kind::Invalid, format!("{error}")))?;
    let (instance, session) = engine.attach(&target, start.token.as_ref(), &start.request).await?;
    let attached = Attached { instance, tty: session.tty };
    let attached = Frame::Attached(serde_json::to_vec(&attached).unwrap_or_default().into());
    let output = session.output.take_until(gone(input, session.input)).map(encode);
    Ok(stream::once(async move { attached.encode() }).chain(output).boxed())
}
