//! Further commands under the profile of an instance.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;

use super::launch::NoProgram;
use super::layout::InstanceDir;
use super::table::ProcessKey;
use super::{SeatbeltRuntime, commands, failed, gate, not_running, signals, table};
use crate::runtime::io::{Exec, ExecInput, ExecOutput, ExecRequest, ExecSession, Kill};
use crate::runtime::{ErrorKind, Result, RuntimeError};
use crate::state::{InstanceRef, Phase};

/// Pieces of input and output that wait.
const BACKLOG: usize = 64;
/// Size of one read.
const READ_SIZE: usize = 16 << 10;

#[async_trait]
impl Exec for SeatbeltRuntime {
    async fn exec(&self, instance: &InstanceRef, request: &ExecRequest) -> Result<ExecSession> {
        let found = self.known(instance).await?;
        if !matches!(found.instance.phase, Phase::Running { .. }) {
            return Err(not_running(&found));
        }
        let workdir = request.workdir.as_deref().map(Path::new);
        let Some(launch) = found.record.as_ref().map(|record| &record.launch) else { return Err(not_running(&found)) };
        let workdir = workdir.or(launch.workdir.as_deref());
        let command = launch.further(&request.command, &request.env, workdir).map_err(refusal)?;
        let what = |error: io::Error| failed(&format!("running a command in {}", instance.id), &error);
        let (input, from_client) = mpsc::channel(BACKLOG);
        let (to_client, output) = mpsc::channel(BACKLOG);
        let dir = self.dir(instance)?;
        let own = &self.inner.config.supervisor;
        let mut session = match request.tty {
            Some(size) => on_new_terminal(own, &command, size).map_err(what)?,
            None => piped(own, &command, request.stdin).map_err(what)?,
        };
        let key = session.noted(&dir).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => not_running(&found),
            _ => what(error),
        })?;
        let tree = Arc::new(Tree { dir, key, ended: AtomicBool::new(false) });
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

/// A command that runs, or is held back still.
struct Running {
    child: Child,
    /// Its first byte lets the command go on; what follows is its standard input.
    gate: ChildStdin,
    has_input: bool,
    out: Box<dyn AsyncRead + Send + Unpin>,
    err: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// The terminal, where it has one.
    terminal: Option<OwnedFd>,
}

fn piped(own: &Path, command: &std::process::Command, stdin: bool) -> io::Result<Running> {
    let how = if stdin { gate::HELD_WITH_INPUT } else { gate::HELD };
    let mut command = Command::from(gate::held(own, how, command));
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let (Some(gate), Some(out), Some(err)) = (child.stdin.take(), child.stdout.take(), child.stderr.take()) else {
        return Err(io::Error::other("it has no input or output"));
    };
    Ok(Running { child, gate, has_input: stdin, out: Box::new(out), err: Some(Box::new(err)), terminal: None })
}

fn on_new_terminal(own: &Path, of: &std::process::Command, size: (u16, u16)) -> io::Result<Running> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    rustix::io::fcntl_setfd(&master, rustix::io::FdFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    resize(&master, size)?;
    let name = ptsname(&master, Vec::new())?;
    let end = open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    let mut command = Command::from(gate::held(own, gate::HELD_ON_TERMINAL, of));
    command.stdin(Stdio::piped()).stdout(end.try_clone()?).stderr(end);
    let mut child = command.spawn()?;
    // It holds copies of the command's end, and the terminal is to end with the command.
    drop(command);
    let gate = child.stdin.take().ok_or_else(|| io::Error::other("it has no input"))?;
    let reader = tokio::fs::File::from_std(master.try_clone()?.into());
    Ok(Running { child, gate, has_input: true, out: Box::new(reader), err: None, terminal: Some(master) })
}

fn resize(terminal: &OwnedFd, (columns, rows): (u16, u16)) -> io::Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(terminal.as_fd(), size)?)
}

impl Running {
    /// Writes the command down, so that it ends with its instance, and lets it go on.
    async fn noted(&mut self, dir: &InstanceDir) -> io::Result<ProcessKey> {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.ok_or_else(|| io::Error::other("it has no number"))?;
        let dir = dir.clone();
        let note = move || {
            let key = ProcessKey::of(pid)?.ok_or_else(|| io::Error::other("it has ended"))?;
            commands::note(&dir, &key)?;
            Ok(key)
        };
        let noted = tokio::task::spawn_blocking(note).await.unwrap_or_else(|error| Err(io::Error::other(error)));
        let key = noted?;
        self.gate.write_all(b".").await?;
        Ok(key)
    }

    /// Hands input and output on until the command has ended, and then its exit. It is killed when nobody takes its output any
    /// more.
    async fn run(
        self,
        from_client: mpsc::Receiver<ExecInput>,
        to_client: mpsc::Sender<Result<ExecOutput>>,
        tree: Arc<Tree>,
    ) {
        let Self { mut child, gate, has_input, out, err, terminal } = self;
        let input: Option<Box<dyn AsyncWrite + Send + Unpin>> = match &terminal {
            Some(terminal) => terminal.try_clone().ok().map(|end| Box::new(tokio::fs::File::from_std(end.into())) as _),
            None => has_input.then(|| Box::new(gate) as _),
        };
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
            tree.over().await;
            return;
        };
        tree.over().await;
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
    mut input: Option<Box<dyn AsyncWrite + Send + Unpin>>,
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
    dir: InstanceDir,
    key: ProcessKey,
    ended: AtomicBool,
}

impl Tree {
    /// It has ended. What it left running goes on until the instance ends, as with Docker.
    async fn over(&self) {
        self.ended.store(true, Ordering::Release);
        let (dir, key) = (self.dir.clone(), self.key.clone());
        let look = move || {
            if table::processes().is_ok_and(|all| table::members(&all, &key).is_empty()) {
                commands::forget(&dir, &key);
            }
        };
        let _ = tokio::task::spawn_blocking(look).await;
    }
}

#[async_trait]
impl Kill for Tree {
    async fn kill(&self) -> Result<()> {
        if self.ended.load(Ordering::Acquire) {
            return Ok(());
        }
        let key = self.key.clone();
        let killed = tokio::task::spawn_blocking(move || table::kill_trees(&[key])).await;
        let killed = killed.unwrap_or_else(|error| Err(io::Error::other(error)));
        killed.map_err(|error| failed("killing the command", &error))
    }
}
