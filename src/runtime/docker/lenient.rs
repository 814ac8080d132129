//! Reads answers that bollard's types do not take: Podman says states such as `stopped` and `initialized` for a moment,
//! and one of them would make a whole list unreadable.

use std::path::Path;

use bollard::errors::Error;
use bollard::models::{ContainerInspectResponse, ContainerSummary};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::{HOST, HeaderMap};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

/// Largest answer that is read. Docker's list of 500 containers has 388 KB.
const LARGEST_ANSWER: usize = 256 << 20;

/// Whether bollard refused an answer because of a word that it does not know.
pub(super) fn is_unknown_word(error: &Error) -> bool {
    matches!(error, Error::JsonDataError { message, .. } if message.contains("unknown variant"))
}

/// A list, states that are not Docker's replaced.
pub(super) fn summaries(answer: &[u8]) -> Result<Vec<ContainerSummary>, Error> {
    let mut list: Value = serde_json::from_slice(answer)?;
    for line in list.as_array_mut().into_iter().flatten() {
        replace_state(line.get_mut("State"));
    }
    Ok(serde_json::from_value(list)?)
}

/// An inspection, a state that is not Docker's replaced.
pub(super) fn inspection(answer: &[u8]) -> Result<ContainerInspectResponse, Error> {
    let mut inspection: Value = serde_json::from_slice(answer)?;
    replace_state(inspection.pointer_mut("/State/Status"));
    Ok(serde_json::from_value(inspection)?)
}

fn replace_state(state: Option<&mut Value>) {
    if let Some(Value::String(state)) = state {
        let known = match state.as_str() {
            "configured" | "initialized" => "created",
            "stopped" => "exited",
            "created" | "running" | "paused" | "restarting" | "removing" | "exited" | "dead" | "stopping" => return,
            _ => "",
        };
        known.clone_into(state);
    }
}

/// Text as a part of a query.
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Makes one request without a body on a connection of its own; gives the body of the answer as it comes.
///
/// # Errors
/// Nobody answers there; or the answer is no success, which is an error of its own kind. The caller bounds the time until the
/// body begins.
pub(super) async fn stream(
    socket: &Path,
    path: &str,
) -> Result<BoxStream<'static, Result<bytes::Bytes, Error>>, Error> {
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // It ends with the body, which it hands on.
    tokio::spawn(connection);
    let request = hyper::Request::get(path).header(HOST, "localhost").body(Empty::<bytes::Bytes>::new())?;
    let (head, body) = sender.send_request(request).await.map_err(broken)?.into_parts();
    if head.status.is_success() {
        return Ok(body.into_data_stream().map_err(broken).boxed());
    }
    Err(refused(head.status, body).await?)
}

fn broken(error: hyper::Error) -> Error {
    Error::IOError { err: std::io::Error::other(error) }
}

/// What an answer that is no success says.
async fn refused(status: hyper::StatusCode, body: hyper::body::Incoming) -> Result<Error, Error> {
    let message = String::from_utf8_lossy(&whole(body).await?).into_owned();
    Ok(Error::DockerResponseServerError { status_code: status.as_u16(), message })
}

async fn whole(body: hyper::body::Incoming) -> Result<bytes::Bytes, Error> {
    let read = Limited::new(body, LARGEST_ANSWER).collect().await;
    Ok(read.map_err(|error| Error::IOError { err: std::io::Error::other(error) })?.to_bytes())
}

/// Makes one request without a body on a connection of its own; gives the headers and the body of the answer. The
/// caller bounds the time.
///
/// # Errors
/// Nobody answers there; or the answer is no success, which is an error of its own kind.
pub(super) async fn get(socket: &Path, path: &str) -> Result<(HeaderMap, bytes::Bytes), Error> {
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let request = hyper::Request::get(path).header(HOST, "localhost").body(Empty::<bytes::Bytes>::new())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let (head, body) = response.into_parts();
        match head.status.is_success() {
            true => Ok((head.headers, whole(body).await?)),
            false => Err(refused(head.status, body).await?),
        }
    };
    tokio::pin!(connection);
    tokio::pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        ended = &mut connection => match ended {
            // The whole answer has arrived.
            Ok(()) => answer.await,
            Err(error) => Err(broken(error)),
        },
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::{ContainerStateStatusEnum, ContainerSummaryStateEnum};

    use super::*;

    #[test]
    fn podmans_passing_states_do_not_spoil_a_list() {
        let list =
            br#"[{"Id": "a", "State": "stopped"}, {"Id": "b", "State": "running"}, {"Id": "c", "State": "odd"}]"#;
        let states: Vec<_> = summaries(list).unwrap().into_iter().map(|line| line.state).collect();
        use ContainerSummaryStateEnum::{EMPTY, EXITED, RUNNING};
        assert_eq!(states, [Some(EXITED), Some(RUNNING), Some(EMPTY)]);
        let one = inspection(br#"{"Id": "a", "State": {"Status": "initialized", "Pid": 7}}"#).unwrap();
        assert_eq!(one.state.unwrap().status, Some(ContainerStateStatusEnum::CREATED));
    }

    #[test]
    fn filters_survive_a_query() {
        assert_eq!(encode(r#"{"label":["a=b"]}"#), "%7B%22label%22%3A%5B%22a%3Db%22%5D%7D");
    }
}
