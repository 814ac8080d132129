//! Errors of runtime calls: what failed, and whether trying again can help.

/// A runtime call failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct RuntimeError {
    /// What kind of failure it is.
    pub kind: ErrorKind,
    /// What is wrong, where, and what to do.
    pub message: String,
}

/// Kinds of failures that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The instance does not exist. Never used for a runtime that does not answer.
    NotFound,
    /// Something that is not ours has the name.
    NameTaken,
    /// The runtime can't be reached.
    Unavailable,
    /// The runtime did not answer in time.
    Timeout,
    /// The image can't be had.
    ImageUnavailable,
    /// The runtime understood and refused; the same request will be refused again.
    Rejected,
    /// This runtime can't do that.
    Unsupported,
    /// Anything else; trying again may help.
    Failed,
}

impl RuntimeError {
    /// An error of this kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// Whether the same call may succeed later without anybody changing the spec.
    pub const fn retryable(&self) -> bool {
        match self.kind {
            ErrorKind::Unavailable
            | ErrorKind::Timeout
            | ErrorKind::ImageUnavailable
            | ErrorKind::NameTaken
            | ErrorKind::NotFound
            | ErrorKind::Failed => true,
            ErrorKind::Rejected | ErrorKind::Unsupported => false,
        }
    }

    /// Whether the runtime as a whole is in trouble, so that nothing is known about what it runs.
    pub const fn means_unreachable(&self) -> bool {
        matches!(self.kind, ErrorKind::Unavailable | ErrorKind::Timeout)
    }
}
