//! The connection to the engine: found, negotiated, and every call on it bounded in time.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::ImageInspect;
use futures::stream::BoxStream;

use super::error::{explain, status};
use super::lenient::{get, stream};
use super::ping::{Pong, Product, ping};
use super::socket::Sockets;
use crate::runtime::{ErrorKind, Result, RuntimeError};

/// Time for asking an engine whether it is there. Docker answers in a millisecond; Podman's service was seen to need
/// 1.3 s for its first answer after a start.
pub(super) const PROBE_DEADLINE: Duration = Duration::from_secs(5);

/// Time for a call that reads. A list of 500 containers takes 22 ms; a minute is an engine in trouble.
pub(super) const READ_DEADLINE: Duration = Duration::from_secs(60);

/// Time for a call that changes something. Kubernetes' kubelet gives its runtime two minutes for a request.
pub(super) const WRITE_DEADLINE: Duration = Duration::from_secs(120);

/// How often the engine is asked for what it fails over. Podman does where a container, an image or an interface of the
/// machine goes while it looks (`read /proc/787/cgroup: no such process`, `locating item named "manifest"`, `no such network
/// interface`), and Docker where somebody else changes the firewall; two in a row were not seen.
const ATTEMPTS: u32 = 4;

/// Between two of them: what is going has gone by then.
const AGAIN_PAUSE: Duration = Duration::from_millis(10);

/// bollard's own time limit, in seconds: out of the way, because each call has its own deadline here, and a stop may
/// rightly take as long as its grace.
const CLIENT_TIMEOUT_SECS: u64 = 10 * 365 * 24 * 3600;

/// The connection to one engine.
#[derive(Debug)]
pub(super) struct Engine {
    sockets: Mutex<Sockets>,
    connection: Mutex<Option<Connection>>,
}

/// A connection that was agreed on.
#[derive(Debug, Clone)]
struct Connection {
    product: Product,
    docker: Docker,
}

impl Engine {
    /// A connection that is made when it is first needed.
    pub(super) const fn new(sockets: Sockets) -> Self {
        Self { sockets: Mutex::new(sockets), connection: Mutex::new(None) }
    }

    /// Makes a call and waits for it at most that long. `what` says what is being done, for messages.
    ///
    /// # Errors
    /// `Unavailable` and `Timeout` as far as the engine as a whole is concerned; else what the engine answered.
    pub(super) async fn call<T, F>(
        &self,
        deadline: Duration,
        call: impl FnOnce(Docker) -> F,
    ) -> std::result::Result<T, CallError>
    where
        F: Future<Output = std::result::Result<T, Error>>,
    {
        let docker = self.client().await?;
        let answer = tokio::time::timeout(deadline, call(docker)).await;
        let error = match answer {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => error,
            Err(_) => Error::RequestTimeoutError,
        };
        self.forget_on(&error);
        Err(CallError::Engine(error))
    }

    /// What the engine says of an image, by name or id.
    pub(super) async fn image(&self, name: &str) -> std::result::Result<ImageInspect, CallError> {
        again(|| self.call(READ_DEADLINE, |docker| async move { docker.inspect_image(name).await })).await
    }

    /// A client that speaks the engine's version of the API.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout` when no engine answers.
    pub(super) async fn client(&self) -> Result<Docker> {
        Ok(self.connection().await?.docker)
    }

    /// Which engine it is.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout` when no engine answers.
    pub(super) async fn product(&self) -> Result<Product> {
        Ok(self.connection().await?.product)
    }

    /// Which engine it is, where one has answered.
    pub(super) fn known_product(&self) -> Option<Product> {
        lock(&self.connection).as_ref().map(|connection| connection.product)
    }

    /// Whether the engine answers now, for what somebody waits for: within less time than a call has that works. `what` says
    /// what is to be done, for messages.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout` when no engine answers.
    pub(super) async fn answers(&self, what: &str) -> Result<()> {
        // A connection is only made where an engine answers.
        let known = self.known_product().and_then(|_| self.socket());
        let answered = match known {
            None => self.connection().await.map(|_| ()),
            Some(socket) => answer(&socket).await.map(|_| ()).map_err(|error| {
                self.forget_on(&error);
                explain(&connecting(&socket), &error)
            }),
        };
        answered.map_err(|error| CallError::from(error).explain(what))
    }

    async fn connection(&self) -> Result<Connection> {
        if let Some(connection) = lock(&self.connection).clone() {
            return Ok(connection);
        }
        let sockets = lock(&self.sockets).clone();
        let (socket, connection) = match sockets {
            Sockets::Pinned(socket) => connect(&socket).await.map(|connection| (socket, connection))?,
            Sockets::Candidates(candidates) => first_that_answers(&candidates).await?,
        };
        // From now on only this one: another engine that answers while this one restarts would look like an empty one.
        *lock(&self.sockets) = Sockets::Pinned(socket);
        *lock(&self.connection) = Some(connection.clone());
        Ok(connection)
    }

    /// Reads an answer by our own means, for what bollard's types do not take. `path` begins below the version.
    pub(super) async fn get(&self, path: &str) -> std::result::Result<bytes::Bytes, CallError> {
        let version = self.client().await?.client_version();
        let Some(socket) = self.socket() else { return Err(CallError::Engine(Error::RequestTimeoutError)) };
        let path = format!("/v{version}{path}");
        match tokio::time::timeout(READ_DEADLINE, get(&socket, &path)).await {
            Ok(Ok((_, body))) => Ok(body),
            Ok(Err(error)) => Err(CallError::Engine(error)),
            Err(_) => Err(CallError::Engine(Error::RequestTimeoutError)),
        }
    }

    /// Reads an answer as it comes, by our own means. `path` begins below the version.
    pub(super) async fn stream(
        &self,
        path: &str,
    ) -> std::result::Result<BoxStream<'static, std::result::Result<bytes::Bytes, Error>>, CallError> {
        let version = self.client().await?.client_version();
        let Some(socket) = self.socket() else { return Err(CallError::Engine(Error::RequestTimeoutError)) };
        let path = format!("/v{version}{path}");
        match tokio::time::timeout(READ_DEADLINE, stream(&socket, &path)).await {
            Ok(begun) => begun.map_err(CallError::Engine),
            Err(_) => Err(CallError::Engine(Error::RequestTimeoutError)),
        }
    }

    /// The socket that is used, once one is known.
    pub(super) fn socket(&self) -> Option<PathBuf> {
        match &*lock(&self.sockets) {
            Sockets::Pinned(socket) => Some(socket.clone()),
            Sockets::Candidates(_) => None,
        }
    }

    /// Drops the negotiated client after an error by which the engine may have become another one: it went away, or
    /// it does not take the version any more.
    pub(super) fn forget_on(&self, error: &Error) {
        let unreachable = matches!(super::error::kind(error), ErrorKind::Unavailable | ErrorKind::Timeout);
        let other_version = status(error) == Some(400) && error.to_string().contains("client version");
        if unreachable || other_version {
            *lock(&self.connection) = None;
        }
    }
}

/// Why a call failed: before it was made, or by the engine's answer.
#[derive(Debug)]
pub(super) enum CallError {
    /// There is no engine.
    Connection(RuntimeError),
    /// The engine said no, or broke off.
    Engine(Error),
}

impl From<RuntimeError> for CallError {
    fn from(error: RuntimeError) -> Self {
        Self::Connection(error)
    }
}

impl CallError {
    /// The error for callers; `what` says what was being done.
    pub(super) fn explain(self, what: &str) -> RuntimeError {
        self.explain_with(what, explain)
    }

    /// The error for callers, the engine's part by another rule.
    pub(super) fn explain_with(self, what: &str, rule: impl FnOnce(&str, &Error) -> RuntimeError) -> RuntimeError {
        match self {
            Self::Connection(error) => RuntimeError::new(error.kind, format!("{what}: {}", error.message)),
            Self::Engine(error) => rule(what, &error),
        }
    }

    /// Whether the engine answered that what was asked for does not exist.
    pub(super) const fn is_missing(&self) -> bool {
        matches!(self, Self::Engine(error) if super::error::is_missing(error))
    }

    /// Whether the answer holds a word that bollard does not know.
    pub(super) fn is_unknown_word(&self) -> bool {
        matches!(self, Self::Engine(error) if super::lenient::is_unknown_word(error))
    }

    /// HTTP status of the answer, where there is one.
    pub(super) const fn status(&self) -> Option<u16> {
        match self {
            Self::Engine(error) => status(error),
            Self::Connection(_) => None,
        }
    }

    /// The engine's words.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Engine(error) => super::error::words(error),
            Self::Connection(error) => error.message.clone(),
        }
    }
}

/// Asks again where the engine failed over something else that was just going.
pub(super) async fn again<T, F>(call: impl Fn() -> F) -> std::result::Result<T, CallError>
where
    F: Future<Output = std::result::Result<T, CallError>>,
{
    for _ in 1..ATTEMPTS {
        match call().await {
            Err(error) if error.status() == Some(500) => tokio::time::sleep(AGAIN_PAUSE).await,
            answer => return answer,
        }
    }
    call().await
}

async fn connect(socket: &Path) -> Result<Connection> {
    let what = connecting(socket);
    let pong = answer(socket).await.map_err(|error| explain(&what, &error))?;
    Docker::connect_with_unix(&socket.to_string_lossy(), CLIENT_TIMEOUT_SECS, &pong.version)
        .map(|docker| Connection { product: pong.product, docker })
        .map_err(|error| explain(&what, &error))
}

fn connecting(socket: &Path) -> String {
    format!("connecting to {}", socket.display())
}

/// What the engine says when it is asked whether it is there.
async fn answer(socket: &Path) -> std::result::Result<Pong, Error> {
    tokio::time::timeout(PROBE_DEADLINE, ping(socket)).await.unwrap_or(Err(Error::RequestTimeoutError))
}

async fn first_that_answers(candidates: &[PathBuf]) -> Result<(PathBuf, Connection)> {
    let mut failure = None;
    for socket in candidates.iter().filter(|socket| socket.exists()) {
        match connect(socket).await {
            Ok(connection) => return Ok((socket.clone(), connection)),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    let tried: Vec<_> = candidates.iter().map(|socket| socket.display().to_string()).collect();
    // A socket that exists and does not answer says more than all that are missing.
    Err(failure.unwrap_or_else(|| {
        RuntimeError::new(
            ErrorKind::Unavailable,
            format!(
                "no container engine found (tried {}); start Docker or Podman's service, or set DOCKER_HOST",
                tried.join(", ")
            ),
        )
    }))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
