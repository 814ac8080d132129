//! The caller's side: a controller's socket, or the same router in process.

use std::error::Error;
use std::future::ready;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use axum::http::{HeaderValue, Method, Request, Response};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use http_body_util::LengthLimitError;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio_util::codec::{Decoder, LinesCodec};
use tower::ServiceExt;

use super::frame::{Frame, frames};
use super::wire::{StatusQuery, TargetQuery, UsageQuery};
use super::{ApiError, AttachStart, Attached, ErrorBody, ExecStart, Kind, LogItem, LogQuery, LogResume, Version};
use crate::controller::{
    AcquireRequest, Acquired, Applied, ApplyRequest, CLAIM_TIMEOUT, DeleteRequest, Description, Engine, IdleReport,
    InstanceUsage, Order, Ordered, OrphanView, Preview, RolloutView, RuntimeReport, SessionChanged, SessionRequest,
    SessionStats, SessionView, TriggerRequest,
};
use crate::runtime::io::{ExecInput, ExecOutput, LONGEST_LINE};
use crate::spec::HumanDuration;
use crate::state::{RunId, Target};
use crate::status::Status;
use crate::store::Token;

/// Longest wait for a connection; the socket is on this machine.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Longest wait for the head of an answer: the controller's own deadline and some more.
const ANSWER_DEADLINE: Duration = Duration::from_secs(75);

/// Most bytes of an answer; a status of 10,000 instances has about 10 MiB.
const MAX_ANSWER: usize = 128 << 20;

/// Most bytes of one item of a log as JSON: twice what JSON makes of the longest line, as it writes a byte as six (`\u001b`).
/// What else there is of an item is short.
const MAX_LOG_LINE: usize = 2 * 6 * LONGEST_LINE;

/// Input frames that may wait for the controller; each is one read from a terminal or pipe.
const EXEC_INPUT_QUEUE: usize = 16;

/// Asks the engine, wherever it is.
#[derive(Clone)]
pub struct Client {
    transport: Transport,
}

#[derive(Clone)]
enum Transport {
    Socket { path: PathBuf, token: Option<Token> },
    InProcess { router: Router, engine: Engine },
}

/// What a log answer tells.
pub type LogItems = BoxStream<'static, Result<LogItem, ApiError>>;

/// A command that is running.
pub struct ExecStream {
    /// Where input goes; dropping it closes standard input.
    pub input: mpsc::Sender<ExecInput>,
    /// Output, then one exit as the last item.
    pub output: BoxStream<'static, Result<ExecOutput, ApiError>>,
}

impl Client {
    /// The controller that listens on this socket; `None` when nobody does. `token` is that of its state directory, where the
    /// caller can read it.
    ///
    /// # Errors
    /// Somebody listens and can't be reached: another user's controller, or one that does not answer.
    pub async fn to_controller(socket: &Path, token: Option<Token>) -> Result<Option<Self>, ApiError> {
        use std::io::ErrorKind;
        let connected = tokio::time::timeout(CONNECT_DEADLINE, UnixStream::connect(socket)).await;
        match connected.map_err(|_| silent(socket))? {
            Ok(_) => Ok(Some(Self { transport: Transport::Socket { path: socket.to_owned(), token } })),
            Err(error) => match error.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::NotADirectory => Ok(None),
                ErrorKind::PermissionDenied => Err(ApiError::transport(format!(
                    "{} belongs to another user's controller; run the command as that user, or name a state directory \
                     of your own with --state-dir",
                    socket.display()
                ))),
                _ => Err(ApiError::transport(format!("connecting to {} failed: {error}", socket.display()))),
            },
        }
    }

    /// An engine in this process.
    pub fn in_process(engine: Engine) -> Self {
        Self { transport: Transport::InProcess { router: super::router(engine.clone()), engine } }
    }

    /// Whether a running controller is asked.
    pub const fn has_controller(&self) -> bool {
        matches!(self.transport, Transport::Socket { .. })
    }

    /// Who answers.
    pub async fn version(&self) -> Result<Version, ApiError> {
        self.get("/v1/version").await
    }

    /// What there is.
    pub async fn status(&self) -> Result<Status, ApiError> {
        self.get("/v1/status").await
    }

    /// What there is, as soon as it differs from this generation, or the same after a while.
    pub async fn status_after(&self, generation: u64) -> Result<Status, ApiError> {
        self.get(&query("/v1/status", &StatusQuery { wait: Some(generation) })?).await
    }

    /// What each runtime can enforce on this machine.
    pub async fn runtimes(&self) -> Result<Vec<RuntimeReport>, ApiError> {
        self.get("/v1/runtimes").await
    }

    /// All that is known of what this name covers.
    pub async fn describe(&self, target: &Target) -> Result<Description, ApiError> {
        self.get(&query("/v1/describe", &TargetQuery { target: target.to_string() })?).await
    }

    /// What the running instances use that this name covers, or all.
    pub async fn usage(&self, target: Option<&Target>) -> Result<Vec<InstanceUsage>, ApiError> {
        self.get(&query("/v1/usage", &UsageQuery { target: target.map(ToString::to_string) })?).await
    }

    /// What applying these files would do.
    pub async fn preview(&self, request: &ApplyRequest) -> Result<Preview, ApiError> {
        self.post("/v1/preview", request).await
    }

    /// What declaring these files would answer.
    pub async fn dry_run(&self, request: &ApplyRequest) -> Result<Applied, ApiError> {
        self.post("/v1/dry-run", request).await
    }

    /// Declares these files.
    pub async fn apply(&self, request: &ApplyRequest) -> Result<Applied, ApiError> {
        self.post("/v1/apply", request).await
    }

    /// Takes declarations back.
    pub async fn delete(&self, request: &DeleteRequest) -> Result<Applied, ApiError> {
        self.post("/v1/delete", request).await
    }

    /// Has a job or cron service run.
    pub async fn trigger(&self, request: &TriggerRequest) -> Result<RunId, ApiError> {
        self.post("/v1/trigger", request).await
    }

    /// Confirms that what is missing from the source may go.
    pub async fn approve(&self) -> Result<Vec<String>, ApiError> {
        self.post("/v1/approve", &()).await
    }

    /// Does what a user orders of what is declared.
    pub async fn order(&self, order: &Order) -> Result<Ordered, ApiError> {
        self.post("/v1/order", order).await
    }

    /// The rollouts of the services that this name covers.
    pub async fn rollouts(&self, target: &Target) -> Result<Vec<RolloutView>, ApiError> {
        self.get(&query("/v1/rollouts", &TargetQuery { target: target.to_string() })?).await
    }

    /// Says that what this name covers is in use; gives a line for each instance: its name and what came of it.
    pub async fn touch(&self, target: &Target) -> Result<Vec<String>, ApiError> {
        self.post(&query("/v1/touch", &TargetQuery { target: target.to_string() })?, &()).await
    }

    /// What is known of the use of the instances that this name covers.
    pub async fn explain_idle(&self, target: &Target) -> Result<Vec<IdleReport>, ApiError> {
        self.get(&query("/v1/explain/idle", &TargetQuery { target: target.to_string() })?).await
    }

    /// What belongs to this installation and nothing declares.
    pub async fn orphans(&self) -> Result<Vec<OrphanView>, ApiError> {
        self.get("/v1/orphans").await
    }

    /// Has what nothing declares removed, once it was seen for long enough; gives what that is.
    pub async fn reap(&self) -> Result<Vec<OrphanView>, ApiError> {
        self.post("/v1/orphans", &()).await
    }

    /// Claims a member of a pool.
    pub async fn acquire(&self, request: &AcquireRequest) -> Result<Acquired, ApiError> {
        let patience = request.timeout.map_or(CLAIM_TIMEOUT, HumanDuration::get);
        let body = Body::from(json(request)?);
        let request = self::request(Method::POST, "/v1/sessions/acquire", body)?;
        self.call_within(request, patience.saturating_add(ANSWER_DEADLINE)).await
    }

    /// Does something with a session.
    pub async fn change_session(&self, request: &SessionRequest) -> Result<SessionChanged, ApiError> {
        self.post("/v1/sessions/change", request).await
    }

    /// All sessions that are kept.
    pub async fn sessions(&self) -> Result<Vec<SessionView>, ApiError> {
        self.get("/v1/sessions").await
    }

    /// Statistics of them.
    pub async fn session_stats(&self) -> Result<SessionStats, ApiError> {
        self.get("/v1/sessions/stats").await
    }

    /// Reads the sources again.
    pub async fn rescan(&self) -> Result<(), ApiError> {
        self.post("/v1/rescan", &()).await
    }

    /// Output of instances.
    pub async fn logs(&self, wanted: &LogQuery) -> Result<LogItems, ApiError> {
        self.log_items(request(Method::GET, &query("/v1/logs", wanted)?, Body::empty())?).await
    }

    /// Output that is followed, after what was read before.
    pub async fn resume_logs(&self, resume: &LogResume) -> Result<LogItems, ApiError> {
        self.log_items(request(Method::POST, "/v1/logs", Body::from(json(resume)?))?).await
    }

    async fn log_items(&self, request: Request<Body>) -> Result<LogItems, ApiError> {
        let response = self.send(request).await?;
        Ok(log_items(success(response).await?.into_body()).boxed())
    }

    /// Runs a command. An error here says that it was not started; one of its output, that it may have been.
    pub async fn exec(&self, start: &ExecStart) -> Result<ExecStream, ApiError> {
        let (input, answer) = self.start_stream("/v1/exec", json(start)?).await?;
        Ok(ExecStream { input, output: answer.map(|frame| output(frame?)).boxed() })
    }

    /// Attaches to the program of an instance.
    pub async fn attach(&self, start: &AttachStart) -> Result<(Attached, ExecStream), ApiError> {
        let (input, mut answer) = self.start_stream("/v1/attach", json(start)?).await?;
        let attached = match answer.next().await {
            Some(Ok(Frame::Attached(bytes))) => serde_json::from_slice(&bytes).map_err(|error| {
                ApiError::transport(format!(
                    "the controller's answer can't be read ({error}); is it of another version?"
                ))
            })?,
            Some(Ok(Frame::Error(bytes))) => return Err(Frame::read_error(&bytes)),
            Some(Ok(_)) => return Err(ApiError::transport("the controller's answer begins with another frame")),
            Some(Err(error)) => return Err(error),
            None => return Err(ApiError::ended("the controller went away before anything was attached")),
        };
        Ok((attached, ExecStream { input, output: answer.map(|frame| output(frame?)).boxed() }))
    }

    /// Sends a start frame, once somebody takes the request up, so that nothing was started where nobody does; gives where
    /// further input goes, and the frames of the answer.
    async fn start_stream(&self, path: &str, start: Vec<u8>) -> Result<(mpsc::Sender<ExecInput>, Frames), ApiError> {
        let first = Frame::Start(start.into()).encode();
        let (taken, take) = oneshot::channel();
        let (input, queue) = mpsc::channel(EXEC_INPUT_QUEUE);
        let rest = stream::unfold(queue, |mut queue| async move {
            let frame = match queue.recv().await? {
                ExecInput::Data(bytes) => Frame::Stdin(bytes),
                ExecInput::Resize(columns, rows) => Frame::Resize(columns, rows),
            };
            Some((frame.encode(), queue))
        });
        let first = stream::once(async move { take.await.ok().map(|()| first) }).filter_map(ready);
        let up = first.chain(rest).map(Ok::<_, std::convert::Infallible>);
        let response = success(self.send(request(Method::POST, path, Body::from_stream(up))?).await?).await?;
        // Where nobody takes it any more, the answer ends, and tells that.
        let _ = taken.send(());
        Ok((input, frames(response.into_body()).boxed()))
    }

    /// Ends an engine in this process; a controller goes on.
    pub async fn close(&self) {
        if let Transport::InProcess { engine, .. } = &self.transport {
            engine.shutdown().await;
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        self.call(request(Method::GET, path, Body::empty())?).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ApiError> {
        self.call(request(Method::POST, path, Body::from(json(body)?))?).await
    }

    async fn call<T: DeserializeOwned>(&self, request: Request<Body>) -> Result<T, ApiError> {
        self.call_within(request, ANSWER_DEADLINE).await
    }

    async fn call_within<T: DeserializeOwned>(
        &self,
        request: Request<Body>,
        deadline: Duration,
    ) -> Result<T, ApiError> {
        let response = success(self.send_within(request, deadline).await?).await?;
        let bytes = whole(response.into_body(), MAX_ANSWER).await?;
        serde_json::from_slice(&bytes).map_err(|error| {
            ApiError::transport(format!("the controller's answer can't be read ({error}); is it of another version?"))
        })
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, ApiError> {
        self.send_within(request, ANSWER_DEADLINE).await
    }

    async fn send_within(&self, mut request: Request<Body>, deadline: Duration) -> Result<Response<Body>, ApiError> {
        match &self.transport {
            Transport::InProcess { router, .. } => match router.clone().oneshot(request).await {
                Ok(response) => Ok(response),
                Err(never) => match never {},
            },
            Transport::Socket { path, token } => {
                if let Some(value) = token.as_ref().and_then(authorization) {
                    request.headers_mut().insert(AUTHORIZATION, value);
                }
                tokio::time::timeout(deadline, send_to(path, request))
                    .await
                    .map_err(|_| silent(path))?
                    .map_err(|error| broken(path, &error))
            }
        }
    }
}

/// How a token is sent (RFC 6750).
fn authorization(token: &Token) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.text())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Frames of an answer.
type Frames = BoxStream<'static, Result<Frame, ApiError>>;

/// What a frame of an answer says.
fn output(frame: Frame) -> Result<ExecOutput, ApiError> {
    match frame {
        Frame::Stdout(bytes) => Ok(ExecOutput::Stdout(bytes)),
        Frame::Stderr(bytes) => Ok(ExecOutput::Stderr(bytes)),
        Frame::Exit(code) => Ok(ExecOutput::Exit(code)),
        Frame::Error(bytes) => Err(Frame::read_error(&bytes)),
        Frame::Start(_) | Frame::Stdin(_) | Frame::Resize(..) | Frame::Attached(_) => {
            Err(ApiError::transport("the controller sent a frame that has no place there"))
        }
    }
}

async fn send_to(path: &Path, request: Request<Body>) -> Result<Response<Body>, Box<dyn Error + Send + Sync>> {
    let stream = UnixStream::connect(path).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the answer, or when the answer is dropped.
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?.map(Body::new))
}

fn silent(socket: &Path) -> ApiError {
    ApiError::new(
        Kind::Timeout,
        format!("the controller on {} does not answer; is it stopped (SIGSTOP) or overloaded?", socket.display()),
    )
}

fn broken(socket: &Path, error: &dyn std::fmt::Display) -> ApiError {
    ApiError::ended(format!("the controller on {} went away: {error}", socket.display()))
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, ApiError> {
    serde_json::to_vec(value)
        .map_err(|error| ApiError::new(Kind::Invalid, format!("the request can't be sent: {error}")))
}

fn query(path: &str, value: &impl Serialize) -> Result<String, ApiError> {
    let query = serde_urlencoded::to_string(value)
        .map_err(|error| ApiError::new(Kind::Invalid, format!("the request can't be sent: {error}")))?;
    Ok(format!("{path}?{query}"))
}

fn request(method: Method, path: &str, body: Body) -> Result<Request<Body>, ApiError> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "keel")
        .header(CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(|error| ApiError::new(Kind::Invalid, format!("the request can't be sent: {error}")))
}

/// All of an answer that has at most so many bytes. Of a longer one, the next try would be as long.
async fn whole(body: Body, most: usize) -> Result<Bytes, ApiError> {
    axum::body::to_bytes(body, most).await.map_err(|error| {
        let is_too_long = error.source().is_some_and(|source| source.is::<LengthLimitError>());
        match is_too_long {
            true => ApiError::transport(format!("the controller's answer is longer than {most} bytes")),
            false => ApiError::ended(format!("the controller's answer broke off: {error}")),
        }
    })
}

/// The answer, or the error that it holds.
async fn success(response: Response<Body>) -> Result<Response<Body>, ApiError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let bytes = axum::body::to_bytes(response.into_body(), MAX_LOG_LINE).await.unwrap_or_default();
    Err(serde_json::from_slice::<ErrorBody>(&bytes)
        .map_or_else(|_| ApiError::transport(format!("the controller answered {status}")), ApiError::from))
}

/// The JSON lines of a log answer; ends after the first error.
fn log_items(body: Body) -> impl futures::Stream<Item = Result<LogItem, ApiError>> + Send + 'static {
    let state = (body.into_data_stream(), BytesMut::new(), LinesCodec::new_with_max_length(MAX_LOG_LINE));
    stream::unfold(Some(state), |state| async move {
        let (mut body, mut buffer, mut codec) = state?;
        loop {
            let unreadable =
                |error: &dyn std::fmt::Display| ApiError::transport(format!("the log can't be read: {error}"));
            match codec.decode(&mut buffer) {
                Ok(Some(line)) => {
                    return Some(match serde_json::from_str(&line) {
                        Ok(item) => (Ok(item), Some((body, buffer, codec))),
                        Err(error) => (Err(unreadable(&error)), None),
                    });
                }
                Ok(None) => {}
                Err(error) => return Some((Err(unreadable(&error)), None)),
            }
            match body.next().await? {
                Ok(bytes) => buffer.extend_from_slice(&bytes),
                Err(error) => return Some((Err(ApiError::ended(format!("the log broke off: {error}"))), None)),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::io::{LogLine, OutputStream};
    use crate::spec::RuntimeKind;

    /// An answer in these pieces.
    fn body(pieces: &[Result<&'static str, std::io::ErrorKind>]) -> Body {
        Body::from_stream(stream::iter(pieces.to_vec()).map(|piece| piece.map_err(std::io::Error::from)))
    }

    #[tokio::test]
    async fn the_longest_line_is_read_whatever_its_bytes() {
        for byte in [&b"\x1b"[..], b"\0", b"\"", "\u{fffd}".as_bytes(), b"\xff"] {
            let text = byte.repeat(LONGEST_LINE / byte.len()).into();
            let line = LogLine { at: chrono::DateTime::UNIX_EPOCH, stream: OutputStream::Stdout, text, goes_on: true };
            let (instance, runtime_id) = ("d/s/0".to_owned(), "x".repeat(64));
            let item = LogItem::Line { instance, runtime: RuntimeKind::Docker, runtime_id, line };
            let sent = serde_json::to_string(&item).unwrap() + "\n";
            let read = log_items(Body::from(sent)).map(|item| serde_json::to_value(item.unwrap()).unwrap());
            assert_eq!(read.collect::<Vec<_>>().await, [serde_json::to_value(item).unwrap()], "{byte:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_too_long_is_not_taken_for_one_that_broke_off() {
        let kind = async |pieces: &[_]| whole(body(pieces), 4).await.map_err(|error| error.kind);
        assert_eq!(kind(&[Ok("1234")]).await, Ok(Bytes::from("1234")));
        assert_eq!(kind(&[Ok("123"), Ok("45")]).await, Err(Kind::Transport));
        assert_eq!(kind(&[Ok("123"), Err(std::io::ErrorKind::ConnectionReset)]).await, Err(Kind::Ended));
    }
}
