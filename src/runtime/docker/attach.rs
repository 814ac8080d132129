//! Attaching to the programs of containers.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::models::ContainerInspectResponse;
use bollard::query_parameters::{AttachContainerOptionsBuilder, ResizeContainerTTYOptionsBuilder};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::container::end_of;
use super::engine::{READ_DEADLINE, WRITE_DEADLINE};
use super::error::explain;
use super::readers::Following;
use super::{DockerRuntime, Inner};
use crate::runtime::io::{Attach, AttachRequest, AttachSession, ExecInput, ExecOutput};
use crate::runtime::{ErrorKind, Result, RuntimeError};
use crate::state::InstanceRef;

/// Pieces of input that wait for a program that reads slowly.
const WAITING_INPUT: usize = 16;
/// Longest time that an engine takes, under load, to tell that a container has ended whose output has.
const SETTLED: Duration = Duration::from_secs(10);
/// How often, and how many times, a container's state is asked for where the engine does not tell: [`SETTLED`] in all.
const SETTLING: Duration = Duration::from_millis(50);
const SETTLING_LOOKS: usize = 200;

type Output = BoxStream<'static, std::result::Result<LogOutput, Error>>;
type Input = Pin<Box<dyn AsyncWrite + Send>>;

#[async_trait]
impl Attach for DockerRuntime {
    async fn attach(&self, instance: &InstanceRef, request: &AttachRequest) -> Result<AttachSession> {
        self.inner.attach(instance, request).await
    }
}

impl Inner {
    async fn attach(self: &Arc<Self>, instance: &InstanceRef, request: &AttachRequest) -> Result<AttachSession> {
        let what = format!("attaching to {}", instance.id);
        if !self.owns(instance).await? {
            return Err(RuntimeError::new(ErrorKind::NotFound, format!("{what}: it does not exist")));
        }
        let container = Arc::new(Container { inner: self.clone(), id: instance.runtime_id.clone(), what });
        let found = container.inspect().await?;
        let config = found.config.clone().unwrap_or_default();
        let (tty, stdin) = (config.tty == Some(true), config.open_stdin == Some(true));
        let refused = match () {
            () if !is_running(&found) => Some("it does not run; start it first"),
            () if request.stdin && !stdin => {
                Some("it has no standard input; write stdin_open: true, or attach without input")
            }
            () => None,
        };
        if let Some(why) = refused {
            return Err(RuntimeError::new(ErrorKind::Rejected, format!("{}: {why}", container.what)));
        }
        // Asked for before the output is opened, so that the engine has most often taken it up when that ends, and tells the
        // exit code also where the container is removed at once.
        let end = End::of(&container);
        let (output, input) = container.open(request.stdin).await?;
        if let Some((columns, rows)) = request.size.filter(|_| tty) {
            container.resize(columns, rows).await;
        }
        let (sender, receiver) = mpsc::channel(WAITING_INPUT);
        let feeding = feed(container.clone(), tty, receiver, request.stdin.then_some(input));
        let feeding = AbortOnDropHandle::new(tokio::spawn(feeding));
        Ok(AttachSession { tty, input: sender, output: read(end, output, feeding) })
    }
}

fn is_running(found: &ContainerInspectResponse) -> bool {
    found.state.as_ref().and_then(|state| state.running) == Some(true)
}

/// A container that somebody is attached to.
struct Container {
    inner: Arc<Inner>,
    id: String,
    what: String,
}

impl Container {
    async fn inspect(&self) -> Result<ContainerInspectResponse> {
        self.inner.inspection(&self.id).await.map_err(|error| error.explain(&self.what))
    }

    async fn open(&self, stdin: bool) -> Result<(Output, Input)> {
        let options = AttachContainerOptionsBuilder::default().stream(true).stdin(stdin).stdout(true).stderr(true);
        let (id, options) = (&self.id, options.build());
        let attached = self
            .inner
            .engine
            .call(WRITE_DEADLINE, |docker| async move { docker.attach_container(id, Some(options)).await })
            .await
            .map_err(|error| error.explain(&self.what))?;
        Ok((attached.output, attached.input))
    }

    async fn resize(&self, columns: u16, rows: u16) {
        let options = ResizeContainerTTYOptionsBuilder::default().h(i32::from(rows)).w(i32::from(columns)).build();
        let id = &self.id;
        let resized = self
            .inner
            .engine
            .call(READ_DEADLINE, |docker| async move { docker.resize_container_tty(id, options).await })
            .await;
        if let Err(error) = resized {
            tracing::debug!(problem = error.words(), "the terminal keeps its size");
        }
    }

    /// The exit code, which the engine tells by itself once the container ends, also where that is removed at once. None
    /// where it can't be asked, or does not tell.
    async fn wait(&self) -> Option<i64> {
        let docker = self.inner.engine.client().await.ok()?;
        end_of(&docker, &self.id).await.unwrap_or_else(|problem| {
            tracing::debug!(?problem, "{}: the engine does not tell the exit code", self.what);
            None
        })
    }

    /// The exit code of a container whose output has ended.
    async fn look_for_code(&self) -> Result<i64> {
        for _ in 0..SETTLING_LOOKS {
            let found = self.inner.inspection(&self.id).await.map_err(|error| match error.is_missing() {
                true => {
                    let message = format!("{}: it was removed before its exit code was read", self.what);
                    RuntimeError::new(ErrorKind::NotFound, message)
                }
                false => error.explain(&self.what),
            })?;
            if !is_running(&found) {
                return Ok(found.state.and_then(|state| state.exit_code).unwrap_or_default());
            }
            tokio::time::sleep(SETTLING).await;
        }
        Err(self.goes_on())
    }

    fn goes_on(&self) -> RuntimeError {
        let message = format!("{}: its output broke off, and it goes on", self.what);
        RuntimeError::new(ErrorKind::Failed, message)
    }
}

/// Waits for the end of a container.
struct End {
    container: Arc<Container>,
    code: AbortOnDropHandle<Option<i64>>,
    /// Until the code was read.
    _following: Following,
}

impl End {
    fn of(container: &Arc<Container>) -> Self {
        let following = container.inner.readers.follow(&container.id);
        let waiting = container.clone();
        let code = AbortOnDropHandle::new(tokio::spawn(async move { waiting.wait().await }));
        Self { container: container.clone(), code, _following: following }
    }

    /// The exit code, once the output has ended.
    async fn code(self) -> Result<i32> {
        let code = match tokio::time::timeout(SETTLED, self.code).await {
            Ok(Ok(Some(code))) => code,
            Ok(Ok(None) | Err(_)) => self.container.look_for_code().await?,
            Err(_) => return Err(self.container.goes_on()),
        };
        Ok(i32::try_from(code).unwrap_or(i32::MAX))
    }
}

/// Passes input on. Its end leaves the program's input open, for whoever attaches next.
async fn feed(container: Arc<Container>, tty: bool, mut inputs: mpsc::Receiver<ExecInput>, mut input: Option<Input>) {
    while let Some(next) = inputs.recv().await {
        match (next, &mut input) {
            (ExecInput::Data(bytes), Some(input)) => {
                if input.write_all(&bytes).await.is_err() || input.flush().await.is_err() {
                    return;
                }
            }
            (ExecInput::Resize(columns, rows), _) if tty => container.resize(columns, rows).await,
            (ExecInput::Data(_) | ExecInput::Resize(..), _) => {}
        }
    }
    // Held until whoever is attached leaves: closing it would end the connection on some engines.
    let _open = input;
    std::future::pending::<()>().await;
}

/// Output, then the exit code.
fn read(end: End, output: Output, feeding: AbortOnDropHandle<()>) -> BoxStream<'static, Result<ExecOutput>> {
    futures::stream::unfold(Some((end, output, feeding)), |state| async move {
        let (end, mut output, feeding) = state?;
        match output.next().await {
            Some(Ok(LogOutput::StdErr { message })) => {
                Some((Ok(ExecOutput::Stderr(message)), Some((end, output, feeding))))
            }
            Some(Ok(LogOutput::StdOut { message } | LogOutput::Console { message } | LogOutput::StdIn { message })) => {
                Some((Ok(ExecOutput::Stdout(message)), Some((end, output, feeding))))
            }
            Some(Err(error)) => Some((Err(explain(&end.container.what, &error)), None)),
            None => Some((end.code().await.map(ExecOutput::Exit), None)),
        }
    })
    .boxed()
}
