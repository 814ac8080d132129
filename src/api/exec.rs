//! A command inside an instance, as frames both ways.

use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::frame::{Frame, frames};
use super::{ApiError, ExecStart, Kind};
use crate::controller::Engine;
use crate::runtime::io::{ExecInput, ExecOutput};
use crate::state::Target;

/// Longest wait for the first frame; clients send it at once.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// Type of a body of frames.
const CONTENT: &str = "application/vnd.keel.frames";

pub(super) async fn exec(State(engine): State<Engine>, body: Body) -> Response {
    answer(async move { run(&engine, body).await })
}

async fn run(engine: &Engine, body: Body) -> Result<BoxStream<'static, Bytes>, ApiError> {
    let mut input = Box::pin(frames(body));
    let start: ExecStart = first(&mut input, "an exec request").await?;
    let target: Target = start.target.parse().map_err(|error| ApiError::new(Kind::Invalid, format!("{error}")))?;
    if start.request.command.is_empty() {
        return Err(ApiError::new(Kind::Invalid, "the command is empty"));
    }
    let session = engine.exec(&target, start.token.as_ref(), &start.request).await?;
    Ok(session.output.take_until(gone(input, session.input)).map(encode).boxed())
}

/// An answer whose head is sent at once, and whose frames begin when the request was carried out; a request that is not
/// carried out is answered by an error frame.
pub(super) fn answer(
    request: impl Future<Output = Result<BoxStream<'static, Bytes>, ApiError>> + Send + 'static,
) -> Response {
    let output = stream::once(request).flat_map(|begun| {
        begun.unwrap_or_else(|error| stream::once(async move { Frame::error(&error).encode() }).boxed())
    });
    let body = Body::from_stream(output.map(Ok::<_, std::convert::Infallible>));
    ([(CONTENT_TYPE, CONTENT)], body).into_response()
}

/// What the first frame holds.
pub(super) async fn first<T: DeserializeOwned>(
    input: &mut (impl Stream<Item = Result<Frame, ApiError>> + Unpin),
    what: &str,
) -> Result<T, ApiError> {
    let bad = |why: &str| ApiError::new(Kind::Invalid, format!("{what} begins with a start frame: {why}"));
    match tokio::time::timeout(START_DEADLINE, input.next()).await {
        Err(_) => Err(bad("none came in time")),
        Ok(Some(Ok(Frame::Start(json)))) => serde_json::from_slice(&json).map_err(|error| bad(&error.to_string())),
        Ok(Some(Ok(_))) => Err(bad("another frame came")),
        Ok(Some(Err(error))) => Err(error),
        Ok(None) => Err(bad("the request is empty")),
    }
}

/// Hands input on, in a task that ends with what waits for it: whoever waits for more input would keep the instance's
/// session open. Ready once the client is gone, which nothing else tells while there is no output to send.
pub(super) async fn gone(
    input: impl Stream<Item = Result<Frame, ApiError>> + Send + Unpin + 'static,
    to: mpsc::Sender<ExecInput>,
) {
    match AbortOnDropHandle::new(tokio::spawn(forward(input, to))).await {
        Ok(InputEnd::BrokenOff) => {}
        Ok(InputEnd::Complete) | Err(_) => std::future::pending().await,
    }
}

/// How the input of a client ended.
enum InputEnd {
    /// It was closed; output goes on.
    Complete,
    /// The client is gone, or sends what it may not.
    BrokenOff,
}

/// Hands input on until it ends; dropping the sender then closes standard input. What nobody takes any more is dropped,
/// and read all the same: only who reads notices that the client leaves.
async fn forward(
    mut input: impl Stream<Item = Result<Frame, ApiError>> + Unpin,
    to: mpsc::Sender<ExecInput>,
) -> InputEnd {
    let mut to = Some(to);
    loop {
        let input = match input.next().await {
            Some(Ok(Frame::Stdin(bytes))) => ExecInput::Data(bytes),
            Some(Ok(Frame::Resize(columns, rows))) => ExecInput::Resize(columns, rows),
            Some(Ok(_) | Err(_)) => return InputEnd::BrokenOff,
            None => return InputEnd::Complete,
        };
        if let Some(taken) = &to
            && taken.send(input).await.is_err()
        {
            to = None;
        }
    }
}

/// The bytes to send for an item of output.
pub(super) fn encode(output: crate::runtime::Result<ExecOutput>) -> Bytes {
    match output {
        Ok(ExecOutput::Stdout(bytes)) => Frame::encode_output(Frame::Stdout, bytes),
        Ok(ExecOutput::Stderr(bytes)) => Frame::encode_output(Frame::Stderr, bytes),
        Ok(ExecOutput::Exit(code)) => Frame::Exit(code).encode(),
        Err(error) => Frame::error(&ApiError::from(error)).encode(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_leaves_is_noticed_although_its_input_is_not_taken_any_more() {
        let (to, taken) = mpsc::channel(1);
        drop(taken);
        let typed = || Ok(Frame::Stdin("x".into()));
        let input = [typed(), typed(), Err(ApiError::new(Kind::Transport, "the stream broke off"))];
        let gone = gone(stream::iter(input), to);
        assert_eq!(tokio::time::timeout(START_DEADLINE, gone).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn output_goes_on_after_the_end_of_input() {
        let (to, mut taken) = mpsc::channel(1);
        let gone = gone(stream::iter([Ok(Frame::Stdin("x".into()))]), to);
        assert!(tokio::time::timeout(START_DEADLINE, gone).await.is_err());
        assert_eq!(taken.recv().await, Some(ExecInput::Data("x".into())));
        assert_eq!(taken.recv().await, None, "its end is told");
    }
}
