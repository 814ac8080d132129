//! Errors on the wire: one word and one status code per kind, both ways.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use crate::controller::EngineError;
use crate::runtime::RuntimeError;
use crate::state::ErrorKind;

/// An error as it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What is wrong and what to do, with its causes.
    pub error: String,
    /// What kind of error it is.
    pub kind: Kind,
}

/// Kinds of errors that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The request itself is wrong.
    Invalid,
    /// What it names does not exist.
    NotFound,
    /// It can't be done in the present state.
    Conflict,
    /// The runtime failed.
    Runtime(ErrorKind),
    /// Reading or writing local state failed.
    Local,
    /// Whoever was asked ended before it answered; what was asked for may have been done.
    Ended,
    /// It took too long.
    Timeout,
    /// Whoever was to be asked can't be connected to, or answers too much or what can't be read; another try would end the
    /// same way.
    Transport,
}

impl Kind {
    /// The status code that it travels with.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Invalid => StatusCode::BAD_REQUEST,
            Self::NotFound | Self::Runtime(ErrorKind::NotFound) => StatusCode::NOT_FOUND,
            Self::Conflict => StatusCode::CONFLICT,
            Self::Runtime(
                ErrorKind::Rejected
                | ErrorKind::Unsupported
                | ErrorKind::CommandNotFound
                | ErrorKind::CommandNotExecutable,
            ) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Runtime(ErrorKind::Unavailable) | Self::Ended => StatusCode::SERVICE_UNAVAILABLE,
            Self::Runtime(ErrorKind::Timeout) | Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Runtime(_) | Self::Transport => StatusCode::BAD_GATEWAY,
            Self::Local => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// A request to the engine failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What kind of error it is.
    pub kind: Kind,
    /// What is wrong and what to do, with its causes.
    pub message: String,
}

impl ApiError {
    /// An error of this kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub(crate) fn ended(message: impl Into<String>) -> Self {
        Self::new(Kind::Ended, message)
    }

    pub(super) fn transport(message: impl Into<String>) -> Self {
        Self::new(Kind::Transport, message)
    }

    /// As it is sent.
    pub fn body(&self) -> ErrorBody {
        ErrorBody { error: self.message.clone(), kind: self.kind }
    }
}

impl From<ErrorBody> for ApiError {
    fn from(body: ErrorBody) -> Self {
        Self { kind: body.kind, message: body.error }
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let kind = match &error {
            EngineError::Invalid(_) => Kind::Invalid,
            EngineError::NotFound(_) => Kind::NotFound,
            EngineError::Conflict(_) | EngineError::Busy(_) => Kind::Conflict,
            EngineError::Ended => Kind::Ended,
            EngineError::Runtime(error) => Kind::Runtime(error.kind),
            EngineError::Local { .. } => Kind::Local,
        };
        Self::new(kind, with_causes(&error))
    }
}

impl From<RuntimeError> for ApiError {
    fn from(error: RuntimeError) -> Self {
        Self::new(Kind::Runtime(error.kind), error.message)
    }
}

/// An error and its causes in one line, each said once.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.kind.status(), Json(self.body())).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_engine_error_comes_back_as_it_was() {
        let errors = [
            EngineError::Invalid("bad".to_owned()),
            EngineError::NotFound("gone".to_owned()),
            EngineError::Conflict("held".to_owned()),
            EngineError::Ended,
            EngineError::Runtime(RuntimeError::new(ErrorKind::Rejected, "no")),
            EngineError::Runtime(RuntimeError::new(ErrorKind::Unavailable, "down")),
            EngineError::Runtime(RuntimeError::new(ErrorKind::CommandNotFound, "not there")),
            EngineError::Runtime(RuntimeError::new(ErrorKind::CommandNotExecutable, "no program")),
        ];
        for error in errors {
            let sent = ApiError::from(error);
            let text = serde_json::to_string(&sent.body()).unwrap();
            let received: ErrorBody = serde_json::from_str(&text).unwrap();
            assert_eq!(ApiError::from(received), sent, "{text}");
        }
    }

    #[test]
    fn causes_of_local_errors_are_told_once() {
        let cause = std::io::Error::other("disk full");
        let error = EngineError::Local { context: "saving demo".to_owned(), source: Box::new(cause) };
        assert_eq!(ApiError::from(error).message, "saving demo: disk full");
    }

    #[test]
    fn kinds_read_as_one_word_or_one_pair() {
        assert_eq!(serde_json::to_string(&Kind::NotFound).unwrap(), r#""not_found""#);
        assert_eq!(serde_json::to_string(&Kind::Runtime(ErrorKind::Rejected)).unwrap(), r#"{"runtime":"rejected"}"#);
    }
}
