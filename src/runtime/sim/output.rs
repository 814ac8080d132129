//! Output of simulated instances, and commands inside them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::SimRuntime;
use super::adapter::running;
use super::machine::not_found;
use super::program::{Obstacle, Program, Statement};
use super::record::Method;
use crate::runtime::io::{Exec, ExecInput, ExecOutput, ExecRequest, ExecSession, Kill, LogLine, LogOptions, Logs};
use crate::runtime::{ErrorKind, Result, RuntimeError};
use crate::state::InstanceRef;

/// Chunks of input or output on their way; a pipe's worth of small ones.
const CHANNEL: usize = 16;

/// Longest time until a log or a command is opened; these are quick on every runtime.
const OPEN_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);

/// A reader's place in an instance's output.
struct Reader {
    runtime: SimRuntime,
    instance: InstanceRef,
    options: LogOptions,
    next: u64,
    lines: VecDeque<LogLine>,
    ticks: watch::Receiver<u64>,
}

impl Reader {
    /// Takes the lines that are new; false where there will be none any more.
    fn fetch(&mut self) -> bool {
        let mut machine = self.runtime.world.machine();
        let Some(entry) = machine.find(&self.runtime.owner, &self.instance) else { return false };
        let skip = usize::try_from(self.next.saturating_sub(entry.first_line)).unwrap_or(usize::MAX);
        let since = self.options.since;
        let fresh = entry.output.iter().skip(skip).filter(|line| since.is_none_or(|since| line.at >= since));
        self.lines.extend(fresh.cloned());
        self.next = entry.first_line + entry.output.len() as u64;
        entry.is_running()
    }

    async fn next_line(mut self) -> Option<(Result<LogLine>, Self)> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some((Ok(line), self));
            }
            self.ticks.borrow_and_update();
            let more = self.options.follow && self.fetch();
            if self.lines.is_empty() && (!more || self.ticks.changed().await.is_err()) {
                return None;
            }
        }
    }
}

#[async_trait]
impl Logs for SimRuntime {
    async fn logs(&self, instance: &InstanceRef, options: &LogOptions) -> Result<BoxStream<'static, Result<LogLine>>> {
        let (instance, options) = (instance.clone(), *options);
        let effect = move |runtime: Self| async move {
            let exists = runtime.world.machine().find(&runtime.owner, &instance).is_some();
            if !exists {
                return Err(not_found(&instance));
            }
            let ticks = runtime.world.ticks();
            let mut reader = Reader { runtime, instance, options, next: 0, lines: VecDeque::new(), ticks };
            reader.fetch();
            let mut wanted = options.tail.unwrap_or(u64::MAX);
            let is_older = |line: &LogLine| match (line.goes_on, wanted) {
                (true, _) => false,
                (false, 0) => true,
                (false, _) => {
                    wanted -= 1;
                    false
                }
            };
            let surplus = reader.lines.iter().rposition(is_older).map_or(0, |at| at + 1);
            reader.lines.drain(..surplus);
            Ok(reader)
        };
        let reader = self.call(Method::Logs, OPEN_TIMEOUT, effect).await?;
        Ok(stream::unfold(reader, Reader::next_line).boxed())
    }
}

#[async_trait]
impl Exec for SimRuntime {
    async fn exec(&self, instance: &InstanceRef, request: &ExecRequest) -> Result<ExecSession> {
        let rejected = |text: String| RuntimeError::new(ErrorKind::Rejected, text);
        if request.command.is_empty() {
            return Err(rejected("the command is empty; write a program and its arguments".to_owned()));
        }
        let program = Program::of_command(&request.command).map_err(rejected)?;
        let (instance, extra, stdin) = (instance.clone(), request.env.clone(), request.stdin);
        let words = request.command.join(" ");
        let effect = move |runtime: Self| async move {
            let mut env = running(&runtime, &instance)?;
            if let Some(obstacle) = program.obstacle() {
                let kind = match obstacle {
                    Obstacle::Missing => ErrorKind::CommandNotFound,
                    Obstacle::Unexecutable => ErrorKind::CommandNotExecutable,
                };
                return Err(RuntimeError::new(kind, format!("{words:?} can't be run in {}: {obstacle}", instance.id)));
            }
            env.extend(extra);
            Ok((program, env))
        };
        let (program, env) = self.call(Method::Exec, OPEN_TIMEOUT, effect).await?;
        let (input, inbox) = mpsc::channel(CHANNEL);
        let (outbox, output) = mpsc::channel(CHANNEL);
        let playing = tokio::spawn(play(program, env, stdin.then_some(inbox), outbox));
        let output = stream::unfold(output, |mut output| async move { output.recv().await.map(|item| (item, output)) });
        Ok(ExecSession { input, output: output.boxed(), killer: Arc::new(Playing(playing.abort_handle())) })
    }
}

/// A command that is being played.
struct Playing(AbortHandle);

#[async_trait]
impl Kill for Playing {
    async fn kill(&self) -> Result<()> {
        self.0.abort();
        Ok(())
    }
}

/// Plays a command's statements and ends with its exit. It ends early where nobody reads.
async fn play(
    program: Program,
    env: BTreeMap<String, String>,
    mut inbox: Option<mpsc::Receiver<ExecInput>>,
    outbox: mpsc::Sender<Result<ExecOutput>>,
) {
    let line = |text: &[u8]| Bytes::from([text, b"\n"].concat());
    let mut code = 0;
    for statement in program.statements {
        let chunk = match statement {
            Statement::Print(text) => ExecOutput::Stdout(line(text.as_bytes())),
            Statement::Bytes(bytes) => ExecOutput::Stdout(line(&bytes)),
            Statement::Warn(text) => ExecOutput::Stderr(line(text.as_bytes())),
            Statement::Env(name) => ExecOutput::Stdout(line(env.get(&name).map_or(&[], String::as_bytes))),
            Statement::Wait(length) => {
                tokio::select! {
                    () = tokio::time::sleep(length) => continue,
                    () = outbox.closed() => return,
                }
            }
            Statement::Cat => {
                if copy(inbox.as_mut(), &outbox).await.is_err() {
                    return;
                }
                continue;
            }
            Statement::Exit(ended) => {
                code = ended;
                break;
            }
            Statement::OutOfMemory => {
                code = 137;
                break;
            }
            Statement::Requests(_)
            | Statement::Ready
            | Statement::Ignore
            | Statement::Missing
            | Statement::Unexecutable => continue,
        };
        if outbox.send(Ok(chunk)).await.is_err() {
            return;
        }
    }
    // An error only means that nobody reads any more.
    let _ = outbox.send(Ok(ExecOutput::Exit(code))).await;
}

/// Copies input to output until the input is closed.
async fn copy(
    inbox: Option<&mut mpsc::Receiver<ExecInput>>,
    outbox: &mpsc::Sender<Result<ExecOutput>>,
) -> std::result::Result<(), mpsc::error::SendError<Result<ExecOutput>>> {
    let Some(inbox) = inbox else { return Ok(()) };
    loop {
        let item = tokio::select! {
            item = inbox.recv() => item,
            () = outbox.closed() => None,
        };
        match item {
            Some(ExecInput::Data(bytes)) => outbox.send(Ok(ExecOutput::Stdout(bytes))).await?,
            Some(ExecInput::Resize(..)) => {}
            None => return Ok(()),
        }
    }
}
