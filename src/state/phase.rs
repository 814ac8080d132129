//! Where an instance stands in its life, with the facts of that stage.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::StopPolicy;
use crate::spec::Signal;

/// Where an instance stands in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// Its creation or start is under way; no runtime needs to know it yet.
    Pending,
    /// It exists and was never started.
    Created,
    /// It runs.
    Running {
        /// When it started.
        since: DateTime<Utc>,
        /// Whether it takes traffic; the same as running where nothing checks health.
        ready: bool,
    },
    /// It is frozen.
    Paused {
        /// When it started.
        since: DateTime<Utc>,
    },
    /// Its stop or removal is under way.
    Stopping,
    /// It ended.
    Exited(Exit),
    /// The runtime reports something that has no other name here.
    Unknown {
        /// What the runtime said.
        message: String,
    },
}

impl Phase {
    /// The name for tables and JSON.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Created => "created",
            Self::Running { .. } => "running",
            Self::Paused { .. } => "paused",
            Self::Stopping => "stopping",
            Self::Exited(_) => "exited",
            Self::Unknown { .. } => "unknown",
        }
    }

    /// Whether it runs and takes traffic.
    pub const fn is_ready(&self) -> bool {
        matches!(self, Self::Running { ready: true, .. })
    }

    /// When the present or last run started, where known.
    pub const fn started_at(&self) -> Option<DateTime<Utc>> {
        match self {
            Self::Running { since, .. } | Self::Paused { since } => Some(*since),
            Self::Exited(exit) => exit.started_at,
            Self::Pending | Self::Created | Self::Stopping | Self::Unknown { .. } => None,
        }
    }
}

/// How an instance ended; one encoding on every runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code; 128 + N after signal N, absent where the process never ran.
    pub code: Option<i32>,
    /// Name of the signal that ended it.
    pub signal: Option<String>,
    /// Whether it was killed for want of memory.
    pub oom_killed: bool,
    /// The kind of end.
    pub reason: ExitReason,
    /// What the runtime said when it could not run the process.
    pub runtime_error: Option<String>,
    /// When the run started; absent where it never did.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub finished_at: DateTime<Utc>,
    /// Who ended it, as far as the runtime remembers.
    pub ended_by: EndedBy,
    /// What the last health check said, where it was ended for being unhealthy and that is remembered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_check: Option<String>,
}

impl Exit {
    /// An exit with this code, which is split into signal and code the way shells encode it: N above 128 is
    /// signal N - 128.
    pub fn from_code(code: i32, started_at: Option<DateTime<Utc>>, finished_at: DateTime<Utc>) -> Self {
        let signal = (code > 128 && code <= 128 + 64).then(|| Signal::name_of(code - 128));
        Self {
            code: Some(code),
            reason: if signal.is_some() { ExitReason::Signal } else { ExitReason::Exited },
            signal,
            oom_killed: false,
            runtime_error: None,
            started_at,
            finished_at,
            ended_by: EndedBy::Itself,
            failed_check: None,
        }
    }

    /// The same exit, known to be for want of memory.
    #[must_use]
    pub fn out_of_memory(mut self) -> Self {
        self.oom_killed = true;
        self.reason = ExitReason::OomKilled;
        self
    }

    /// An end because the runtime could not run the process.
    pub fn runtime_error(message: impl Into<String>, finished_at: DateTime<Utc>) -> Self {
        Self {
            code: None,
            signal: None,
            oom_killed: false,
            reason: ExitReason::RuntimeError,
            runtime_error: Some(message.into()),
            started_at: None,
            finished_at,
            ended_by: EndedBy::Itself,
            failed_check: None,
        }
    }

    /// The same exit, after a stop that was asked for. One that a stop's kill ended, since the program did not end in the
    /// grace before it, is a [`ExitReason::StopTimeout`].
    #[must_use]
    pub fn asked_for(mut self, cause: StopCause, policy: StopPolicy) -> Self {
        self.ended_by = EndedBy::Request(cause);
        let gave_time = policy.signal != Signal::KILL && !policy.grace.get().is_zero();
        if gave_time && self.reason == ExitReason::Signal && self.code == Some(128 + Signal::KILL.number()) {
            self.reason = ExitReason::StopTimeout;
        }
        self
    }

    /// Whether it ended well: code 0, and not for being unhealthy.
    pub fn is_success(&self) -> bool {
        self.code == Some(0) && !self.oom_killed && !self.is_unhealthy()
    }

    /// Whether somebody else stopped it, or its engine or machine was shut down.
    pub fn is_by_others(&self) -> bool {
        self.ended_by == EndedBy::Request(StopCause::Others)
    }

    /// Whether nothing that this installation asked for ended it.
    pub fn is_unasked(&self) -> bool {
        self.ended_by == EndedBy::Itself || self.is_by_others()
    }

    /// Whether it was ended because its health checks failed.
    pub fn is_unhealthy(&self) -> bool {
        self.ended_by == EndedBy::Request(StopCause::Unhealthy)
    }
}

impl std::fmt::Display for Exit {
    /// One short phrase: `exited 1`, `killed by SIGKILL`, `killed after its stop grace`, `out of memory`, `could not run: ...`,
    /// `unhealthy: ...`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_unhealthy() {
            f.write_str("unhealthy")?;
            return self.failed_check.as_ref().map_or(Ok(()), |check| write!(f, ": {check}"));
        }
        match (&self.reason, &self.signal, self.code, &self.runtime_error) {
            (ExitReason::OomKilled, ..) => f.write_str("out of memory"),
            (ExitReason::RuntimeError, _, _, Some(error)) => write!(f, "could not run: {error}"),
            (ExitReason::StopTimeout, ..) => f.write_str("killed after its stop grace"),
            (ExitReason::Signal, Some(signal), ..) => write!(f, "killed by {signal}"),
            (_, _, Some(code), _) => write!(f, "exited {code}"),
            _ => f.write_str("ended"),
        }
    }
}

/// The kind of end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The process ended by itself, with a code.
    Exited,
    /// A signal ended it.
    Signal,
    /// It was asked to stop, did not end in its grace (`stop_grace_period`), and was killed.
    StopTimeout,
    /// It was killed for want of memory.
    OomKilled,
    /// The runtime could not run it.
    RuntimeError,
}

/// Who ended an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndedBy {
    /// The process, the kernel, or somebody who killed it outright.
    Itself,
    /// A stop that was asked for, by this installation or behind its back.
    Request(StopCause),
}

/// Why a stop was asked for; told with the exit for as long as the instance exists, whatever becomes of the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopCause {
    /// It is to be removed, and maybe replaced.
    Retired,
    /// No activity for too long.
    Idle,
    /// It reached its maximum age and is to stay down.
    Expired,
    /// Its health checks failed; what follows is what follows a crash.
    Unhealthy,
    /// Somebody asked that it stay down (`keel stop`).
    Asked,
    /// Somebody else stopped it behind our back, or the engine or machine that it ran on was shut down.
    Others,
}
