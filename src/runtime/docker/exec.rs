//! Further commands inside containers.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
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
use tokio::time::Instant;

use super::engine::{CallError, READ_DEADLINE, WRITE_DEADLINE};
use super::error::explain;
use super::ping::Product;
use super::process::{Process, Unkilled};
use super::stage::{Stage, until_told};
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

/// How often, and how many times, one that is to be killed is looked at while the engine has not started it: five seconds,
/// so that an engine that is slow for a while starts it within.
const START_PAUSE: Duration = Duration::from_millis(50);
const START_LOOKS: usize = 100;

/// How long one whose reader has gone is waited for in the background: as long as a start may take.
const START_LIMIT: Duration = WRITE_DEADLINE;

/// Exit codes that engines note for a command that was not run, which the command itself may give as well: Docker 126,
/// later versions 127 and 128 too; Podman 125, 126 and 127.
const UNRUN: std::ops::RangeInclusive<i64> = 125..=128;

type Output = BoxStream<'static, std::result::Result<LogOutput, Error>>;
type Input = Pin<Box<dyn AsyncWrite + Send>>;

#[async_trait]
impl Exec for DockerRuntime {
    async fn exec(&self, instance: &InstanceRef, request: &ExecRequest) -> Result<ExecSession> {
        self.inner.exec(instance, request, &|_| {}).await
    }

    async fn exec_with_killer(
        &self,
        instance: &InstanceRef,
        request: &ExecRequest,
        hand_out: &(dyn Fn(Arc<dyn Kill>) + Send + Sync),
    ) -> Result<ExecSession> {
        self.inner.exec(instance, request, hand_out).await
    }
}

impl Inner {
    async fn exec(
        self: &Arc<Self>,
        instance: &InstanceRef,
        request: &ExecRequest,
        hand_out: &(dyn Fn(Arc<dyn Kill>) + Send + Sync),
    ) -> Result<ExecSession> {
        let what = format!("running a command in {}", instance.id);
        if request.command.is_empty() {
            return Err(RuntimeError::new(ErrorKind::Rejected, format!("{what}: the command is empty")));
        }
        self.engine.answers(&what).await?;
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
            refused: AtomicBool::new(false),
            process: OnceLock::new(),
            gone: Mutex::new(false),
        });
        // From the start on, since whoever waits for it may give up at any time.
        let end = KillOnDrop { command: Some(command.clone()) };
        hand_out(command.clone());
        let (output, input) = command.clone().start(request.tty.is_some()).await?;
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
    /// Whether the engine has refused to start it.
    refused: AtomicBool,
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

    /// Starts it, also where the caller is dropped meanwhile: an engine that was asked may start it at any later time, so
    /// that its answer must not be missed.
    async fn start(self: Arc<Self>, tty: bool) -> Result<(Output, Input)> {
        let what = self.what.clone();
        let start = tokio::spawn(async move {
            let started = self.inner.start_exec(&self.id, tty, &self.what).await;
            // Without an answer, whether it starts is not known.
            if started.as_ref().is_err_and(|error| !error.means_unreachable()) {
                self.refused.store(true, Ordering::Release);
            }
            started
        });
        let aborted = |error| RuntimeError::new(ErrorKind::Failed, format!("{what}: it was not started: {error}"));
        start.await.map_err(aborted)?
    }

    /// The output of a command that really runs. Engines attach first and start then, and tell a failure as output.
    async fn started(&self, output: Output) -> Result<Output> {
        let look = || async {
            let stage = Stage::of(&self.inspect().await?);
            Ok((stage != Stage::Unstarted).then_some(stage))
        };
        match until_told(SETTLING_LOOKS, SETTLING, look).await? {
            Some(Stage::Ended { code, had_process: false }) => return self.unless_unrun(output, code).await,
            Some(Stage::Running(pid)) => self.note_process(pid),
            Some(Stage::Ended { .. } | Stage::Unstarted) | None => {}
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
        let look = || async {
            let state = self.inspect().await?;
            Ok(state.exit_code.filter(|_| state.running == Some(false)))
        };
        let untold = || format!("{}: its output ended and the engine does not say how it ended", self.what);
        let code = until_told(SETTLING_LOOKS, SETTLING, look).await?;
        let code = code.ok_or_else(|| RuntimeError::new(ErrorKind::Failed, untold()))?;
        Ok(i32::try_from(code).unwrap_or(i32::MAX))
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

    /// Remembers the command's process, where it is to be seen from here.
    fn note_process(&self, pid: i32) {
        if let Some(process) = Process::find(pid, &self.container) {
            let _noted_already = self.process.set(process);
        }
    }

    /// Kills it, where it has started by now or does so within some seconds.
    async fn kill_once_started(&self) -> Result<Killed> {
        let mut gone = self.gone.lock().await;
        if *gone {
            return Ok(Killed::Gone);
        }
        let killed = self.kill_processes().await?;
        *gone = killed == Killed::Gone;
        Ok(killed)
    }

    /// Kills the command's processes from here, since engines have no call for that.
    async fn kill_processes(&self) -> Result<Killed> {
        if self.process.get().is_none() {
            match until_told(START_LOOKS, START_PAUSE, || self.remains()).await? {
                Some(Remains::Process(pid)) => self.note_process(pid),
                Some(Remains::Nothing) => return Ok(Killed::Gone),
                None => return Ok(Killed::Unstarted),
            }
        }
        let process = *self.process.get().ok_or_else(|| self.lives_on("its process is not to be seen from here"))?;
        self.kill_process(process).await.map(|()| Killed::Gone)
    }

    /// What there is to kill, once that is known.
    async fn remains(&self) -> Result<Option<Remains>> {
        if self.refused.load(Ordering::Acquire) {
            return Ok(Some(Remains::Nothing));
        }
        let state = match self.inspect().await {
            Err(error) if error.kind == ErrorKind::NotFound => return Ok(Some(Remains::Nothing)),
            state => state?,
        };
        Ok(match Stage::of(&state) {
            Stage::Unstarted => None,
            Stage::Running(pid) => Some(Remains::Process(pid)),
            Stage::Ended { .. } => Some(Remains::Nothing),
        })
    }

    async fn kill_process(&self, process: Process) -> Result<()> {
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

/// What there is to kill of a command.
#[derive(Debug, Clone, Copy)]
enum Remains {
    /// It runs as this process.
    Process(i32),
    /// It has ended, or never starts.
    Nothing,
}

/// What came of killing a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Killed {
    /// Nothing of it runs, nor will.
    Gone,
    /// The engine has not started it, and may do so yet.
    Unstarted,
}

#[async_trait]
impl Kill for Command {
    async fn kill(&self) -> Result<()> {
        match self.kill_once_started().await? {
            Killed::Gone => Ok(()),
            Killed::Unstarted => Err(self.lives_on("the engine has not started it yet, and may do so")),
        }
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
                let until = Instant::now() + START_LIMIT;
                let mut killed = command.kill_once_started().await;
                while matches!(killed, Ok(Killed::Unstarted)) && Instant::now() < until {
                    killed = command.kill_once_started().await;
                }
                match killed {
                    Ok(Killed::Gone) => {}
                    Ok(Killed::Unstarted) => {
                        tracing::warn!(what = command.what, "a command is not known to have started")
                    }
                    Err(error) => tracing::warn!(%error, "a command whose reader has gone runs on"),
                }
            });
        }
    }
}
