//! Errors of runtime calls: what failed, and whether trying again can help.

use crate::state::{ErrorKind, Instance};

/// A runtime call failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct RuntimeError {
    /// What kind of failure it is.
    pub kind: ErrorKind,
    /// What is wrong, where, and what to do.
    pub message: String,
    /// How the instance of a failed start stands after it, where the runtime tells; absent for other calls.
    pub left: Option<Box<Instance>>,
}

impl RuntimeError {
    /// An error of this kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), left: None }
    }

    /// The same error of a start, which left the instance like this.
    #[must_use]
    pub fn leaving(mut self, instance: Instance) -> Self {
        self.left = Some(Box::new(instance));
        self
    }

    /// Whether the same call may succeed later without anybody changing the spec.
    pub const fn retryable(&self) -> bool {
        match self.kind {
            ErrorKind::Unavailable
            | ErrorKind::Timeout
            | ErrorKind::ImageUnavailable
            | ErrorKind::NameTaken
            | ErrorKind::NotFound
            | ErrorKind::InitFailed
            | ErrorKind::Failed => true,
            ErrorKind::Rejected
            | ErrorKind::Unsupported
            | ErrorKind::CommandNotFound
            | ErrorKind::CommandNotExecutable => false,
        }
    }

    /// Whether the runtime as a whole is in trouble, so that nothing is known about what it runs.
    pub const fn means_unreachable(&self) -> bool {
        matches!(self.kind, ErrorKind::Unavailable | ErrorKind::Timeout)
    }
}
