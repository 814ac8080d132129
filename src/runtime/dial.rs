//! Connections to instances.

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Result;
use crate::state::InstanceRef;

/// Connects to what listens inside instances, from wherever the controller is.
#[async_trait]
pub trait Dial: Send + Sync {
    /// Connects to a TCP port that the spec of a running instance names. Where the program was told another port for it
    /// (`PORT` of a sandbox), to that one. The caller bounds the time.
    ///
    /// # Errors
    /// `NotFound` when the instance does not exist; `Unsupported` when there is no way to this port, and the next try would
    /// not find one either; `Failed` when nothing listens there.
    async fn dial(&self, instance: &InstanceRef, port: u16) -> Result<Dialed>;
}

/// A connection to an instance.
pub struct Dialed {
    /// What is said.
    pub stream: Box<dyn Connection>,
    /// What that it was made means.
    pub answered_by: AnsweredBy,
}

/// Who took a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnsweredBy {
    /// The instance.
    Instance,
    /// Something in front of it, which ends the connection at once where nothing listens inside.
    Relay,
}

/// Two streams of bytes.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

impl Dialed {
    /// A connection that the instance took.
    pub fn direct(stream: impl Connection + 'static) -> Self {
        Self { stream: Box::new(stream), answered_by: AnsweredBy::Instance }
    }

    /// A connection that something in front of the instance took.
    pub fn relayed(stream: impl Connection + 'static) -> Self {
        Self { stream: Box::new(stream), answered_by: AnsweredBy::Relay }
    }
}

impl std::fmt::Debug for Dialed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialed").field("answered_by", &self.answered_by).finish_non_exhaustive()
    }
}
