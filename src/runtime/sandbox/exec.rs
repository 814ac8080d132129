//! Running further commands inside instances: the controller's side.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::unix::pipe;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;

use super::bounds::FILE_LIMIT;
use super::failure::{self, Failure};
use super::order::{Order, Place};
use super::output::{PIECE, REST, hand_on, pieces};
use super::pty::{self, Size};
use super::watch::ended;
use super::{SandboxRuntime, checked_id, descriptors, dispatch, failed, not_found, sys};
use crate::runtime::io::{Exec, ExecInput, ExecOutput, ExecRequest, ExecSession, Kill};
use crate::runtime::process_tree::{ProcessTree, Unkilled};
use crate::runtime::{ErrorKind, Result, RuntimeError};
use crate::state::{InstanceRef, Phase};

/// Pieces of input or output that wait for the other side; with the size of a piece at most half a MiB each way.
const BACKLOG: usize = 8;
/// Longest time until a command runs or is refused; it takes some milliseconds.
const START_LIMIT: Duration = Duration::from_secs(30);

#[async_trait]
impl Exec for SandboxRuntime {
    async fn exec(&self, instance: &InstanceRef, request: &ExecRequest) -> Result<ExecSession> {
        if request.command.first().is_none_or(String::is_empty) {
            return Err(rejected("the command is empty; name a program to run"));
        }
        let found = self.look(instance).await?.ok_or_else(|| not_found(instance))?;
        let Some(run) = &found.run else {
            let phase = found.instance.phase.name();
            return Err(rejected(format!("instance {} does not run ({phase}); start it first", instance.id)));
        };
        if matches!(found.instance.phase, Phase::Paused { .. }) {
            return Err(rejected(format!("instance {} is paused; resume it first", instance.id)));
        }
        let order = Order {
            command: request.command.clone(),
            env: request.env.clone(),
            workdir: request.workdir.clone(),
            tty: request.tty,
        };
        let place = self.place_order(&checked_id(instance)?, order).await?;
        // One that is gone by now takes the command along, or the helper finds nothing to join.
        let supervisor = run.supervisor.open().ok().flatten();
        let result = self.run_helper(&place, request, supervisor).await;
        // What is not removed in time is removed with a later order.
        let _ = tokio::task::spawn_blocking(move || place.discard()).await;
        result
    }
}

impl SandboxRuntime {
    async fn place_order(&self, id: &str, order: Order) -> Result<Place> {
        let id = id.to_owned();
        self.blocking("preparing a command", FILE_LIMIT, move |inner| {
            let dir = inner.dir(&id);
            let what = format!("preparing a command in {}", dir.path().display());
            Place::new(dir, &order).map_err(|error| failed(&what, &error))
        })
        .await
    }

    /// Starts the helper and waits until it says that the command runs.
    async fn run_helper(
        &self,
        place: &Place,
        request: &ExecRequest,
        supervisor: Option<OwnedFd>,
    ) -> Result<ExecSession> {
        let wrong = |error: io::Error| failed("running a command", &error);
        let answer = pipe::OpenOptions::new().read_write(true).open_receiver(place.pipe()).map_err(wrong)?;
        let mut command = Command::new(&self.inner.config.supervisor);
        command.arg(dispatch::EXEC).arg(place.dir.path()).arg(&place.name).current_dir("/");
        command.env_clear().env(descriptors::VARIABLE, descriptors::told());
        let terminal = match request.tty {
            Some(_) => {
                let (taking, handing) = pty::channel().map_err(wrong)?;
                command.stdin(handing).stdout(Stdio::null()).stderr(Stdio::null());
                Some(taking)
            }
            None => {
                let stdin = if request.stdin { Stdio::piped() } else { Stdio::null() };
                command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
                None
            }
        };
        let mut child = command.spawn().map_err(wrong)?;
        // It holds a copy of the side that hands the terminal over.
        drop(command);
        // Taken before the helper is waited for, which closes what is left.
        let streams = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let mut line = String::new();
        let mut answer = BufReader::new(answer);
        let limit = tokio::select! {
            biased;
            _ = answer.fill_buf() => START_LIMIT,
            // A command that ended at once has been told of; one that was not will not be.
            _ = child.wait() => REST,
            () = tokio::time::sleep(START_LIMIT) => Duration::ZERO,
        };
        match tokio::time::timeout(limit, answer.read_line(&mut line)).await {
            Ok(read) => read.map_err(wrong)?,
            Err(_) => return Err(RuntimeError::new(ErrorKind::Failed, "the command did not start in time")),
        };
        let outcome: std::result::Result<i32, Failure> =
            serde_json::from_str(&line).map_err(|error| wrong(io::Error::other(error)))?;
        let pid = outcome.map_err(|failure| RuntimeError::new(kind(&failure), failure.message))?;
        // One that is gone already has nothing to be killed.
        let command = Running { child, tree: ProcessTree::of(pid).ok(), lifeline: answer.into_inner(), supervisor };
        Ok(match terminal {
            Some(taking) => with_terminal(command, Arc::new(Terminal::take_over(taking).await.map_err(wrong)?)),
            None => with_pipes(command, streams),
        })
    }
}

fn rejected(message: impl Into<String>) -> RuntimeError {
    RuntimeError::new(ErrorKind::Rejected, message)
}

/// A command that runs.
struct Running {
    /// Its helper. To kill that would be to lose what the command started.
    child: Child,
    tree: Option<ProcessTree>,
    /// The helper ends the command when this is closed, as by the end of this process.
    lifeline: pipe::Receiver,
    /// The supervisor of its instance.
    supervisor: Option<OwnedFd>,
}

/// Kills a command of a sandbox.
struct Killer {
    tree: Option<ProcessTree>,
}

#[async_trait]
impl Kill for Killer {
    async fn kill(&self) -> Result<()> {
        let Some(tree) = self.tree else { return Ok(()) };
        let failed = |why: &str| RuntimeError::new(ErrorKind::Failed, format!("the command can't be ended: {why}"));
        match tokio::task::spawn_blocking(move || tree.kill()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Unkilled::Refused(_))) => Err(failed("this user may not signal it; run keel as root")),
            Ok(Err(Unkilled::Alive(_))) => Err(failed("it was killed and has not ended")),
            Err(error) => Err(failed(&error.to_string())),
        }
    }
}

/// Whether the command was in the way, or its surroundings.
const fn kind(failure: &Failure) -> ErrorKind {
    match failure.code {
        failure::NOT_FOUND => ErrorKind::CommandNotFound,
        failure::NOT_EXECUTABLE => ErrorKind::CommandNotExecutable,
        _ if failure.lasting => ErrorKind::Rejected,
        _ => ErrorKind::Failed,
    }
}

/// The controller's side of a terminal.
struct Terminal {
    master: AsyncFd<OwnedFd>,
}

impl Terminal {
    /// The terminal that the helper made; it was sent before the command could be run.
    async fn take_over(taking: OwnedFd) -> io::Result<Self> {
        let taking = sys::wait_ready(taking, Interest::READABLE)?;
        let received = taking.async_io(Interest::READABLE, |taking| pty::take_over(taking.as_fd()));
        let master = tokio::time::timeout(START_LIMIT, received).await??;
        rustix::io::ioctl_fionbio(&master, true)?;
        Ok(Self { master: sys::wait_ready(master, Interest::READABLE | Interest::WRITABLE)? })
    }

    fn resize(&self, size: Size) {
        // A command that ended needs no size.
        let _ = pty::resize(self.master.get_ref().as_fd(), size);
    }

    /// Reads what the command wrote; nothing is its end, which the kernel tells as an error.
    async fn read(&self, buffer: &mut [u8]) -> usize {
        self.master.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut *buffer)?)).await.unwrap_or(0)
    }

    async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.master.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?)).await?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }
}

fn with_terminal(command: Running, terminal: Arc<Terminal>) -> ExecSession {
    let (input, mut inputs) = mpsc::channel(BACKLOG);
    let writer = Arc::clone(&terminal);
    let feed = async move {
        while let Some(piece) = inputs.recv().await {
            match piece {
                ExecInput::Data(bytes) => {
                    if writer.write(&bytes).await.is_err() {
                        return;
                    }
                }
                ExecInput::Resize(columns, rows) => writer.resize((columns, rows)),
            }
        }
    };
    let output = stream::unfold((terminal, vec![0; PIECE]), |(terminal, mut buffer)| async {
        let size = terminal.read(&mut buffer).await;
        let piece = Bytes::copy_from_slice(buffer.get(..size).unwrap_or_default());
        (size > 0).then_some((ExecOutput::Stdout(piece), (terminal, buffer)))
    });
    session(command, input, feed, output)
}

/// The ends of a command's pipes.
type Streams = (Option<ChildStdin>, Option<ChildStdout>, Option<ChildStderr>);

fn with_pipes(command: Running, (stdin, stdout, stderr): Streams) -> ExecSession {
    let (input, mut inputs) = mpsc::channel(BACKLOG);
    let feed = async move {
        let Some(mut stdin) = stdin else { return };
        while let Some(piece) = inputs.recv().await {
            if let ExecInput::Data(bytes) = piece
                && stdin.write_all(&bytes).await.is_err()
            {
                return;
            }
        }
    };
    let output = stream::select(pieces(stdout, ExecOutput::Stdout), pieces(stderr, ExecOutput::Stderr));
    session(command, input, feed, output)
}

/// Joins the parts. When nobody reads the output any more the command is killed, and the helper after it.
fn session(
    Running { mut child, tree, lifeline, supervisor }: Running,
    input: mpsc::Sender<ExecInput>,
    feed: impl Future<Output = ()> + Send + 'static,
    output: impl Stream<Item = ExecOutput> + Send + 'static,
) -> ExecSession {
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let feeding = tokio::spawn(feed);
    let ending = tokio::spawn(end_with(supervisor, tree));
    tokio::spawn(async move {
        let run = async {
            let exit = match hand_on(output, &sender, child.wait()).await {
                Ok(status) => Ok(ExecOutput::Exit(code(status))),
                Err(error) => Err(failed("waiting for a command", &error)),
            };
            let _ = sender.send(exit).await;
        };
        tokio::select! {
            () = run => {}
            () = sender.closed() => {
                if let Err(error) = (Killer { tree }).kill().await {
                    tracing::warn!(%error, "a command whose reader has gone runs on");
                }
            }
        }
        feeding.abort();
        ending.abort();
        drop(lifeline);
    });
    let output = tokio_stream(receiver);
    ExecSession { input, output, killer: Arc::new(Killer { tree }) }
}

/// Kills a command once its instance has ended. A process namespace and a control group take it along by themselves; where
/// there are neither, nobody else knows of it.
async fn end_with(supervisor: Option<OwnedFd>, tree: Option<ProcessTree>) {
    let Some(supervisor) = supervisor else { return };
    if ended(supervisor).await.is_ok()
        && let Err(error) = (Killer { tree }).kill().await
    {
        tracing::warn!(%error, "a command whose instance has ended runs on");
    }
}

fn code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(libc::SIGKILL))
}

fn tokio_stream(receiver: mpsc::Receiver<Result<ExecOutput>>) -> stream::BoxStream<'static, Result<ExecOutput>> {
    stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) }).boxed()
}
