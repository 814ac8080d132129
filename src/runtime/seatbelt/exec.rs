//! Further commands under the profile of an instance.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{ioctl_tiocsctty, setsid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use super::launch::NoProgram;
use super::{SeatbeltRuntime, failed, not_running, signals, table};
use crate::runtime::io::{Exec, ExecInput, ExecOutput, ExecRequest, ExecSession, Kill};
use crate::runtime::{ErrorKind, Result, RuntimeError};
use crate::state::{InstanceRef, Phase};

/// The hidden command that takes its standard input for its terminal and becomes the command that follows.
pub const ON_TERMINAL: &str = "__on-terminal";
/// Pieces of input and output that wait.
const BACKLOG: usize = 64;
/// Size of one read.
const READ_SIZE: usize = 16 << 10;

/// Becomes a command on a terminal.
pub fn on_terminal(mut words: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(program) = words.next() else { return ExitCode::FAILURE };
    let taken = setsid().and_then(|_| ioctl_tiocsctty(rustix::stdio::stdin()));
    if let Err(error) = taken {
        eprintln!("the terminal can't be taken: {error}");
        return ExitCode::FAILURE;
    }
    // Only returns where it fails.
    let error = std::process::Command::new(program).args(words).exec();
    eprintln!("{error}");
    ExitCode::FAILURE
}

#[async_trait]
impl Exec for SeatbeltRuntime {
    async fn exec(&self, instance: &InstanceRef, request: &ExecRequest) -> Result<ExecSession> {
        let found = self.known(instance).await?;
        if !matches!(found.instance.phase, Phase::Running { .. }) {
            return Err(not_running(&found));
        }
        let workdir = request.workdir.as_deref().map(Path::new);
        let launch = &found.record.launch;
        let workdir = workdir.or(launch.workdir.as_deref());
        let command = launch.further(&request.command, &request.env, workdir).map_err(refusal)?;
        let what = |error: io::Error| failed(&format!("running a command in {}", instance.id), &error);
        let (input, from_client) = mpsc::channel(BACKLOG);
        let (to_client, output) = mpsc::channel(BACKLOG);
        let session = match request.tty {
            Some(size) => on_new_terminal(&self.inner.config.supervisor, &command, size).map_err(what)?,
            None => piped(command, request.stdin).map_err(what)?,
        };
        let tree = Arc::new(Tree { pid: session.child.id(), ended: AtomicBool::new(false) });
        tokio::spawn(session.run(from_client, to_client, Arc::clone(&tree)));
        let next = |mut output: mpsc::Receiver<_>| async move { Some((output.recv().await?, output)) };
        Ok(ExecSession { input, output: futures::stream::unfold(output, next).boxed(), killer: tree })
    }
}

fn refusal(error: NoProgram) -> RuntimeError {
    let kind = match error {
        NoProgram::Missing(_) => ErrorKind::CommandNotFound,
        NoProgram::NotExecutable(_) => ErrorKind::CommandNotExecutable,
        NoProgram::Empty => ErrorKind::Rejected,
    };
    RuntimeError::new(kind, error.to_string())
}

/// A command that runs.
struct Running {
    child: Child,
    input: Option<Box<dyn tokio::io::AsyncWrite + Send + Unpin>>,
    out: Box<dyn AsyncRead + Send + Unpin>,
    err: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// The terminal, where it has one.
    terminal: Option<OwnedFd>,
}

fn piped(command: std::process::Command, stdin: bool) -> io::Result<Running> {
    let mut command = Command::from(command);
    command.process_group(0).stdin(if stdin { Stdio::piped() } else { Stdio::null() });
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(io::Error::other("it has no output"));
    };
    let input = child.stdin.take().map(|stdin| Box::new(stdin) as _);
    Ok(Running { child, input, out: Box::new(out), err: Some(Box::new(err)), terminal: None })
}

fn on_new_terminal(program: &Path, of: &std::process::Command, size: (u16, u16)) -> io::Result<Running> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    rustix::io::fcntl_setfd(&master, rustix::io::FdFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    resize(&master, size)?;
    let name = ptsname(&master, Vec::new())?;
    let end = open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    let mut command = Command::new(program);
    command.arg(ON_TERMINAL).arg(of.get_program()).args(of.get_args()).env_clear();
    command.envs(of.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(folder) = of.get_current_dir() {
        command.current_dir(folder);
    }
    command.stdin(end.try_clone()?).stdout(end.try_clone()?).stderr(end);
    let child = command.spawn()?;
    // The command itself holds copies of the end, which is closed here with it, so that the terminal ends with the command.
    drop(command);
    let reader = tokio::fs::File::from_std(master.try_clone()?.into());
    let writer = tokio::fs::File::from_std(master.try_clone()?.into());
    Ok(Running { child, input: Some(Box::new(writer)), out: Box::new(reader), err: None, terminal: Some(master) })
}

fn resize(terminal: &OwnedFd, (columns, rows): (u16, u16)) -> io::Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(terminal.as_fd(), size)?)
}

impl Running {
    /// Hands input and output on until the command has ended, and then its exit. It is killed when nobody takes its output any
    /// more.
    async fn run(
        self,
        from_client: mpsc::Receiver<ExecInput>,
        to_client: mpsc::Sender<Result<ExecOutput>>,
        tree: Arc<Tree>,
    ) {
        let Self { mut child, input, out, err, terminal } = self;
        let writing = tokio::spawn(write(input, terminal, from_client));
        let err = async {
            if let Some(err) = err {
                read(err, ExecOutput::Stderr, &to_client).await;
            }
        };
        let output = async { tokio::join!(read(out, ExecOutput::Stdout, &to_client), err) };
        let ended = async {
            let (status, _) = tokio::join!(child.wait(), output);
            status
        };
        let status = tokio::select! {
            status = ended => Some(status),
            () = to_client.closed() => None,
        };
        writing.abort();
        let Some(status) = status else {
            let _ = tree.kill().await;
            let _ = child.wait().await;
            tree.ended.store(true, Ordering::Release);
            return;
        };
        tree.ended.store(true, Ordering::Release);
        let _ = to_client
            .send(
                status
                    .map(|status| ExecOutput::Exit(code(status)))
                    .map_err(|error| failed("waiting for the command", &error)),
            )
            .await;
    }
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().map_or(0, signals::number))
}

async fn read(
    mut stream: Box<dyn AsyncRead + Send + Unpin>,
    wrap: fn(Bytes) -> ExecOutput,
    to_client: &mpsc::Sender<Result<ExecOutput>>,
) {
    let mut buffer = vec![0; READ_SIZE];
    // A terminal whose end was closed gives an error in place of nothing.
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        if to_client.send(Ok(wrap(Bytes::copy_from_slice(&buffer[..count])))).await.is_err() {
            return;
        }
    }
}

async fn write(
    mut input: Option<Box<dyn tokio::io::AsyncWrite + Send + Unpin>>,
    terminal: Option<OwnedFd>,
    mut from_client: mpsc::Receiver<ExecInput>,
) {
    while let Some(next) = from_client.recv().await {
        match (next, &terminal) {
            (ExecInput::Data(bytes), _) => {
                let Some(to) = &mut input else { continue };
                if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
                    input = None;
                }
            }
            (ExecInput::Resize(columns, rows), Some(terminal)) => drop(resize(terminal, (columns, rows))),
            (ExecInput::Resize(..), None) => {}
        }
    }
}

/// A command with all that it started.
struct Tree {
    pid: Option<u32>,
    ended: AtomicBool,
}

#[async_trait]
impl Kill for Tree {
    async fn kill(&self) -> Result<()> {
        let Some(pid) = self.pid.and_then(|pid| i32::try_from(pid).ok()) else { return Ok(()) };
        if self.ended.load(Ordering::Acquire) {
            return Ok(());
        }
        let killed = tokio::task::spawn_blocking(move || table::kill_tree(pid)).await;
        let killed = killed.unwrap_or_else(|error| Err(io::Error::other(error)));
        killed.map_err(|error| failed("killing the command", &error))
    }
}
