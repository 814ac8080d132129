//! Further commands inside containers.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::exec::{ResizeExecOptions, StartExecOptions, StartExecResults};
use bollard::models::{ExecConfig, ExecInspectResponse};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{Mutex, mpsc};

use super::engine::{CallError, READ_DEADLINE, WRITE_DEADLINE};
use super::error::explain;
use super::ping::Product;
use super::process::{Process, Unkilled};
use super::unrun::{Said, refused, says_podman_did_not_run, unrun};
use super::{DockerRuntime, Inner};
use crate::runtime::io::{Exec, ExecInput, ExecOutput, ExecRequest, ExecSession, Kill};
use crate::runtime::{ErrorKind, Result, RuntimeError};
use crate::state::InstanceRef;

/// Pieces of input that wait for a command that reads slowly.
const WAITING_INPUT: usize = 16;

/// How often, and how many times, a command's state is asked for while the engine has not settled it: two seconds, well
/// above the tens of milliseconds that a start or an end takes.
const SETTLING: Duration = Duration::from_millis(10);
const SETTLING_LOOKS: usize = 200;

/// Exit codes that engines note for a command that was not run, which the command itself may give as well: Docker 126,
/// later versions 127 and 128 too; Podman 125, 126 and 127.
const UNRUN: std::ops::RangeInclusive<i64> = 125..=128;

type Output = BoxStream<'static, std::result::Result<LogOutput, Error>>;
type Input = Pin<Box<dyn AsyncWrite + Send>>;

#[async_trait]
impl Exec for DockerRuntime {
    async fn exec(&self, instance: &InstanceRef, request: &ExecRequest) -> Result<ExecSession> {
        self.inner.exec(instance, request).await
    }
}

impl Inner {
    async fn exec(self: &Arc<Self>, instance: &InstanceRef, request: &ExecRequest) -> Result<ExecSession> {
        let what = format!("running a command in {}", instance.id);
        if request.command.is_empty() {
            return Err(RuntimeError::new(ErrorKind::Rejected, format!("{what}: the command is empty")));
        }
        if !self.owns(instance).await? {
            return Err(RuntimeError::new(ErrorKind::NotFound, format!("{what}: it does not exist")));
        }
        let id = self.create_exec(instance, request).await.map_err(|error| refused(error, &what))?;
        let command = Arc::new(Command {
            inner: self.clone(),
            container: instance.runtime_id.clone(),
            id,
            program: request.command.first().cloned().unwrap_or_default(),
            what,
            process: OnceLock::new(),
            gone: Mutex::new(false),
        });
        // From the start on, since whoever waits for it may give up at any time.
        let end = KillOnDrop { command: Some(command.clone()) };
        let (output, input) = self.start_exec(&command.id, request.tty.is_some(), &command.what).await?;
        let output = command.started(output).await?;
        if let Some((columns, rows)) = request.tty {
            command.resize(columns, rows).await;
        }
        let (sender, receiver) = mpsc::channel(WAITING_INPUT);
        tokio::spawn(feed(command.clone(), receiver, request.stdin.then_some(input)));
        Ok(ExecSession { input: sender, output: read(end, output), killer: command })
    }

    async fn create_exec(
        &self,
        instance: &InstanceRef,
        request: &ExecRequest,
    ) -> std::result::Result<String, CallError> {
        let config = ExecConfig {
            attach_stdin: Some(request.stdin),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            tty: Some(request.tty.is_some()),
            cmd: Some(request.command.clone()),
            env: Some(request.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
            working_dir: request.workdir.clone(),
            ..ExecConfig::default()
        };
        let container = &instance.runtime_id;
        let made = self
            .engine
            .call(WRITE_DEADLINE, |docker| async move { docker.create_exec(container, config).await })
            .await?;
        Ok(made.id)
    }

    async fn start_exec(&self, id: &str, tty: bool, what: &str) -> Result<(Output, Input)> {
        let options = StartExecOptions { detach: false, tty, output_capacity: None };
        let started = self
            .engine
            .call(WRITE_DEADLINE, |docker| async move { docker.start_exec(id, Some(options)).await })
            .await
            .map_err(|error| refused(error, what))?;
        match started {
            StartExecResults::Attached { output, input } => Ok((output.boxed(), input)),
            StartExecResults::Detached => {
                Err(RuntimeError::new(ErrorKind::Failed, format!("{what}: the engine did not attach to it")))
            }
        }
    }
}

/// A command that was handed to the engine.
struct Command {
    inner: Arc<Inner>,
    container: String,
    id: String,
    /// As it was asked for.
    program: String,
    what: String,
    /// Its process, once the engine has told it.
    process: OnceLock<Process>,
    /// Whether it is known to have ended.
    gone: Mutex<bool>,
}

impl Command {
    async fn inspect(&self) -> Result<ExecInspectResponse> {
        let id = &self.id;
        self.inner
            .engine
            .call(READ_DEADLINE, |docker| async move { docker.inspect_exec(id).await })
            .await
            .map_err(|error| error.explain(&self.what))
    }

    /// The output of a command that really runs. Engines attach first and start then, and tell a failure as output.
    async fn started(&self, output: Output) -> Result<Output> {
        for _ in 0..SETTLING_LOOKS {
            let state = self.inspect().await?;
            let has_process = self.note_process(&state);
            let code = state.exit_code.filter(|_| state.running == Some(false));
            match code {
                _ if has_process => break,
                Some(code) => return self.unless_unrun(output, code).await,
                None => tokio::time::sleep(SETTLING).await,
            }
        }
        Ok(output)
    }

    /// The output of a command that ended before its process was seen, unless it never had one. Docker remembers the
    /// process of a command that ended, so that one without was not run; Podman does not, and only its words tell.
    async fn unless_unrun(&self, mut output: Output, code: i64) -> Result<Output> {
        if !UNRUN.contains(&code) {
            return Ok(output);
        }
        let first = tokio::time::timeout(READ_DEADLINE, output.next()).await.unwrap_or_default();
        let words = match &first {
            Some(Ok(said)) => said.to_string(),
            Some(Err(error)) => return Err(explain(&self.what, error)),
            None => String::new(),
        };
        let knows_processes = self.inner.engine.product().await? == Product::Docker;
        if knows_processes || says_podman_did_not_run(&words) {
            return Err(unrun(&self.what, &words));
        }
        Ok(futures::stream::iter(first).chain(output).boxed())
    }

    /// The exit code, once the output has ended.
    async fn exit_code(&self) -> Result<i32> {
        for _ in 0..SETTLING_LOOKS {
            let state = self.inspect().await?;
            if let (Some(false), Some(code)) = (state.running, state.exit_code) {
                return Ok(i32::try_from(code).unwrap_or(i32::MAX));
            }
            tokio::time::sleep(SETTLING).await;
        }
        Err(RuntimeError::new(
            ErrorKind::Failed,
            format!("{}: its output ended and the engine does not say how it ended", self.what),
        ))
    }

    async fn resize(&self, columns: u16, rows: u16) {
        let id = &self.id;
        let size = ResizeExecOptions { height: rows, width: columns };
        let resized =
            self.inner.engine.call(READ_DEADLINE, |docker| async move { docker.resize_exec(id, size).await }).await;
        if let Err(error) = resized {
            tracing::debug!(problem = error.words(), "the terminal keeps its size");
        }
    }

    /// Remembers the command's process; whether it has or had one.
    fn note_process(&self, state: &ExecInspectResponse) -> bool {
        let pid = state.pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0);
        if let Some(process) = pid.and_then(|pid| Process::find(pid, &self.container)) {
            let _noted_already = self.process.set(process);
        }
        pid.is_some()
    }

    /// Kills the command's processes from here, since engines have no call for that.
    async fn kill_processes(&self) -> Result<()> {
        if self.process.get().is_none() {
            let state = match self.inspect().await {
                Err(error) if error.kind == ErrorKind::NotFound => return Ok(()),
                state => state?,
            };
            if state.running != Some(true) {
                return Ok(());
            }
            self.note_process(&state);
        }
        let process = *self.process.get().ok_or_else(|| self.lives_on("its process is not to be seen from here"))?;
        match process.kill().await {
            Ok(()) => Ok(()),
            Err(Unkilled::Alive) => Err(self.lives_on("it was killed and has not ended")),
            Err(Unkilled::Refused(inside)) => {
                self.kill_from_inside(inside).await?;
                process.await_end().await.map_err(|_| {
                    self.lives_on("this user may not kill it, and neither may the container's; run keel as root")
                })
            }
        }
    }

    /// Kills processes by a command in the container, whose user may signal its own where this program's user may not.
    async fn kill_from_inside(&self, processes: Vec<i32>) -> Result<()> {
        let words = ["sh", "-c", "kill -9 \"$@\"", "sh"].map(str::to_owned).into_iter();
        let config = ExecConfig {
            cmd: Some(words.chain(processes.iter().map(ToString::to_string)).collect()),
            ..ExecConfig::default()
        };
        let (engine, container) = (&self.inner.engine, &self.container);
        let made =
            engine.call(WRITE_DEADLINE, |docker| async move { docker.create_exec(container, config).await }).await;
        let id = &made.map_err(|error| refused(error, &self.what))?.id;
        let options = StartExecOptions { detach: true, tty: false, output_capacity: None };
        let started = engine.call(WRITE_DEADLINE, |docker| async move { docker.start_exec(id, Some(options)).await });
        started.await.map(|_| ()).map_err(|error| refused(error, &self.what))
    }

    fn lives_on(&self, why: &str) -> RuntimeError {
        RuntimeError::new(ErrorKind::Failed, format!("{}: the command can't be ended: {why}", self.what))
    }
}

#[async_trait]
impl Kill for Command {
    async fn kill(&self) -> Result<()> {
        let mut gone = self.gone.lock().await;
        if !*gone {
            self.kill_processes().await?;
            *gone = true;
        }
        Ok(())
    }
}

/// Passes input on until the sender is dropped, and closes standard input then.
async fn feed(command: Arc<Command>, mut receiver: mpsc::Receiver<ExecInput>, mut input: Option<Input>) {
    while let Some(next) = receiver.recv().await {
        match (next, &mut input) {
            (ExecInput::Data(bytes), Some(input)) => {
                // A command that closed its input, or ended, reads no more.
                if input.write_all(&bytes).await.is_err() || input.flush().await.is_err() {
                    break;
                }
            }
            (ExecInput::Data(_), None) => {}
            (ExecInput::Resize(columns, rows), _) => command.resize(columns, rows).await,
        }
    }
    if let Some(mut input) = input {
        let _closed_already = input.shutdown().await;
    }
}

/// Output, then the exit code.
fn read(end: KillOnDrop, output: Output) -> BoxStream<'static, Result<ExecOutput>> {
    let reading = Reading { output: Some(output), said: Said::default(), end };
    futures::stream::unfold(reading, |mut reading| async { reading.next().await.map(|output| (output, reading)) })
        .boxed()
}

struct Reading {
    /// Absent after its end.
    output: Option<Output>,
    /// What came so far.
    said: Said,
    end: KillOnDrop,
}

impl Reading {
    async fn next(&mut self) -> Option<Result<ExecOutput>> {
        let frame = self.output.as_mut()?.next().await;
        if let Some(Ok(frame)) = &frame {
            self.said.push(frame.as_ref());
        }
        match frame {
            Some(Ok(LogOutput::StdErr { message })) => Some(Ok(ExecOutput::Stderr(message))),
            Some(Ok(LogOutput::StdOut { message } | LogOutput::Console { message } | LogOutput::StdIn { message })) => {
                Some(Ok(ExecOutput::Stdout(message)))
            }
            Some(Err(error)) => {
                self.output = None;
                let command = self.end.command.as_ref()?;
                Some(Err(explain(&command.what, &error)))
            }
            None => {
                self.output = None;
                let command = self.end.command.take()?;
                let end = command.exit_code().await.and_then(|code| {
                    self.said.failed_exec(&command.program, code, &command.what).map_or(Ok(code), Err)
                });
                Some(end.map(ExecOutput::Exit))
            }
        }
    }
}

/// Kills the command when its output is dropped before its end.
struct KillOnDrop {
    command: Option<Arc<Command>>,
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let (Some(command), Ok(handle)) = (self.command.take(), tokio::runtime::Handle::try_current()) {
            handle.spawn(async move {
                if let Err(error) = command.kill().await {
                    tracing::warn!(%error, "a command whose reader has gone runs on");
                }
            });
        }
    }
}
