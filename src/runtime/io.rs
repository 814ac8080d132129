//! Output of instances and commands inside them.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::Result;
pub use super::logline::{LONGEST_LINE, LogLine, LogText};
use crate::state::InstanceRef;

/// Reads what instances wrote.
#[async_trait]
pub trait Logs: Send + Sync {
    /// Lines, oldest first; with `follow` the stream goes on until the instance ends or the stream is dropped.
    /// Works for instances that ended.
    ///
    /// # Errors
    /// `NotFound` when the instance does not exist.
    async fn logs(&self, instance: &InstanceRef, options: &LogOptions) -> Result<BoxStream<'static, Result<LogLine>>>;
}

/// Which lines are wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogOptions {
    /// Only the last that many; all when absent.
    pub tail: Option<u64>,
    /// Go on with lines as they are written.
    pub follow: bool,
    /// Only lines from then on.
    pub since: Option<DateTime<Utc>>,
}

/// Standard output or standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Runs further commands inside running instances.
#[async_trait]
pub trait Exec: Send + Sync {
    /// Runs a command with the confinement of the instance.
    ///
    /// # Errors
    /// `NotFound` when the instance does not exist, `Rejected` when it does not run or the command is empty,
    /// `CommandNotFound` when there is no such program inside, `CommandNotExecutable` when there is and it can't be
    /// executed. The last two may also come as the last item of the output: some engines tell them no sooner.
    async fn exec(&self, instance: &InstanceRef, request: &ExecRequest) -> Result<ExecSession>;

    /// Like [`Self::exec`], and hands out what kills the command. Where a start goes on though nobody waits for it any more,
    /// that is before the start, so that whoever gives up waiting can kill what starts later; elsewhere it is once the
    /// command runs.
    ///
    /// # Errors
    /// Like [`Self::exec`]. What was handed out is still good to make sure that nothing runs.
    async fn exec_with_killer(
        &self,
        instance: &InstanceRef,
        request: &ExecRequest,
        hand_out: &(dyn Fn(Arc<dyn Kill>) + Send + Sync),
    ) -> Result<ExecSession> {
        let session = self.exec(instance, request).await?;
        hand_out(session.killer.clone());
        Ok(session)
    }
}

/// A command to run inside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// Program and arguments; never empty.
    pub command: Vec<String>,
    /// Gives it a terminal of this size, columns and rows.
    pub tty: Option<(u16, u16)>,
    /// Connects standard input.
    pub stdin: bool,
    /// Directory to start in; the instance's when absent.
    pub workdir: Option<String>,
    /// Further environment.
    pub env: Vec<(String, String)>,
}

/// Attaches to the programs of running instances.
#[async_trait]
pub trait Attach: Send + Sync {
    /// Connects to the output that the program writes from now on and, where wanted, to its standard input. Whoever is
    /// attached can't hold the program up by reading slowly.
    ///
    /// # Errors
    /// `NotFound` when the instance does not exist; `Rejected` when it does not run, has no standard input, or somebody
    /// else is attached to that.
    async fn attach(&self, instance: &InstanceRef, request: &AttachRequest) -> Result<AttachSession>;
}

/// What one who attaches wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// Connects standard input.
    pub stdin: bool,
    /// Size of the terminal, columns and rows, where the program has one; it keeps its size when absent.
    pub size: Option<(u16, u16)>,
}

/// An attached program.
pub struct AttachSession {
    /// Whether it has a terminal, so that its output is one stream that may steer one.
    pub tty: bool,
    /// Where input goes. Dropping it ends the input of this one; the program's stays open.
    pub input: mpsc::Sender<ExecInput>,
    /// Output, then how the program ended or an error as the last item. Dropping it detaches; the program goes on.
    pub output: BoxStream<'static, Result<ExecOutput>>,
}

/// A command that is running.
pub struct ExecSession {
    /// Where input goes; dropping it closes standard input.
    pub input: mpsc::Sender<ExecInput>,
    /// Output, then exactly one [`ExecOutput::Exit`] or an error as the last item. Dropping it before that kills the command.
    pub output: BoxStream<'static, Result<ExecOutput>>,
    /// Kills the command, also once the output was dropped, and tells whether it could be.
    pub killer: Arc<dyn Kill>,
}

/// Kills a command that was started inside an instance.
#[async_trait]
pub trait Kill: Send + Sync {
    /// Kills the command with everything that it started, and returns once that is gone, after some seconds at most. One
    /// that has ended is success; may be repeated.
    ///
    /// # Errors
    /// `Failed` when a process of it lives on or may still be started, which says why; `Unavailable` or `Timeout` where nobody tells.
    async fn kill(&self) -> Result<()>;
}

/// Input of a running command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecInput {
    /// Bytes for standard input.
    Data(Bytes),
    /// The terminal has a new size, columns and rows.
    Resize(u16, u16),
}

/// Output of a running command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecOutput {
    /// Bytes of standard output; of both streams where there is a terminal.
    Stdout(Bytes),
    /// Bytes of standard error.
    Stderr(Bytes),
    /// It ended with this code, 128 + N after signal N.
    Exit(i32),
}
