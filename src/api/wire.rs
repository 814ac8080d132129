//! Bodies and queries that are not the engine's own types.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::ErrorBody;
use crate::controller::Bookmark;
use crate::runtime::io::{AttachRequest, ExecRequest, LogLine, LogOptions};
use crate::spec::RuntimeKind;
use crate::state::Token;

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Version of the program.
    pub version: String,
    /// Version of this interface.
    pub api: String,
    /// Process id.
    pub pid: u32,
}

impl Version {
    /// Of this process.
    pub fn here() -> Self {
        Self { version: env!("CARGO_PKG_VERSION").to_owned(), api: "v1".to_owned(), pid: std::process::id() }
    }
}

/// Query of a status request.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct StatusQuery {
    /// Answer as soon as the generation is another one, or after a while.
    pub wait: Option<u64>,
}

/// Query of a request about what a name covers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct TargetQuery {
    /// `DEPLOYMENT[/SERVICE[/SLOT]]`.
    pub target: String,
}

/// Query of a request for what instances use.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct UsageQuery {
    /// `DEPLOYMENT[/SERVICE[/SLOT]]`; all where it is absent.
    pub target: Option<String>,
}

/// Query of a log request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogQuery {
    /// `DEPLOYMENT[/SERVICE[/SLOT]]`.
    pub target: String,
    /// Go on with lines as they are written, by whatever takes the place of an instance too.
    #[serde(default)]
    pub follow: bool,
    /// Only the last that many of each instance.
    pub tail: Option<u64>,
    /// Of the run before, which has ended; there is nothing to follow.
    #[serde(default)]
    pub previous: bool,
    /// Only lines from then on.
    pub since: Option<DateTime<Utc>>,
    /// Only the output of the instance that the runtime knows by this id, whatever came after it in its slot. There is nothing
    /// to follow, and `previous` says nothing then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_id: Option<String>,
}

impl LogQuery {
    /// Whether the answer goes on with what comes.
    pub const fn goes_on(&self) -> bool {
        self.follow && !self.previous && self.runtime_id.is_none()
    }

    /// What the runtime is asked.
    pub const fn options(&self) -> LogOptions {
        LogOptions { tail: self.tail, follow: self.follow, since: self.since }
    }
}

/// Goes on with a followed answer that ended before its target did, maybe another controller's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogResume {
    /// As it was asked for; it follows.
    #[serde(flatten)]
    pub query: LogQuery,
    /// Where the reader is.
    pub after: Bookmark,
}

/// One line of a log answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogItem {
    /// Which instances the answer covers: always the first line. While it is followed, it comes again with all of them
    /// when another one is covered.
    Instances(Vec<String>),
    /// A line of one of them.
    Line {
        /// Name of the instance.
        instance: String,
        /// Runtime that runs it.
        runtime: RuntimeKind,
        /// The runtime's own id: another one with the same name has another.
        runtime_id: String,
        /// The line.
        #[serde(flatten)]
        line: LogLine,
    },
    /// The output of this instance is open, or was, and there was no line to give: every later one is new. Whoever goes
    /// on with the answer says so, see [`Bookmark::no_lines`].
    NoLines {
        /// Name of the instance.
        instance: String,
        /// Runtime that runs it.
        runtime: RuntimeKind,
        /// The runtime's own id.
        runtime_id: String,
    },
    /// No more lines of this instance can be read.
    Failed {
        /// Name of the instance.
        instance: String,
        /// Why.
        #[serde(flatten)]
        error: ErrorBody,
    },
    /// The lines of this instance can't be read at present; that is tried again.
    Interrupted {
        /// Name of the instance.
        instance: String,
        /// Why.
        #[serde(flatten)]
        error: ErrorBody,
    },
    /// No instance runs whose lines could be read; the answer goes on when one does.
    Waiting,
    /// Nothing that the target covers is declared or exists any more; the last line.
    Gone,
    /// The answer can't go on; the last line.
    Broken(ErrorBody),
}

/// First frame of a request to attach.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachStart {
    /// `DEPLOYMENT/SERVICE[/SLOT]`, or the id of a session.
    pub target: String,
    /// Token of the session that has the instance, where one has it.
    #[serde(default)]
    pub token: Option<Token>,
    /// What is wanted.
    pub request: AttachRequest,
}

/// First frame of the answer to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// Name of the instance.
    pub instance: String,
    /// Whether its program has a terminal.
    pub tty: bool,
}

/// First frame of an exec request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecStart {
    /// `DEPLOYMENT/SERVICE[/SLOT]`, or the id of a session.
    pub target: String,
    /// Token of the session that has the instance, where one has it.
    #[serde(default)]
    pub token: Option<Token>,
    /// What to run.
    pub request: ExecRequest,
}
