//! Words of runtime calls that plans use too.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::spec::{DEFAULT_STOP_GRACE, HumanDuration, RuntimeKind, ServiceSpec, Signal};
use crate::state::StopCause;

/// How an instance is to be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct StopRequest {
    /// Asks the process to end.
    pub signal: Signal,
    /// Time until it is killed.
    pub grace: Duration,
    /// Why; told with the exit that follows.
    pub cause: StopCause,
}

/// A stop that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StopRecord {
    /// Runtime of the instance.
    pub runtime: RuntimeKind,
    /// The runtime's own id of it.
    pub runtime_id: String,
    /// Why it was to end.
    pub cause: StopCause,
    /// Start of the run that was to end, as the runtime tells it; absent where it is not known.
    pub run: Option<DateTime<Utc>>,
    /// When it had ended at the latest, if it was to end by this stop.
    pub over_at: DateTime<Utc>,
}

/// How an instance wants to be stopped; kept with it, so that it holds when nothing declares the instance any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StopPolicy {
    /// Asks the process to end.
    pub signal: Signal,
    /// Time until it is killed.
    pub grace: HumanDuration,
}

impl StopPolicy {
    /// What a spec says, defaults filled in.
    pub fn of(spec: &ServiceSpec) -> Self {
        Self { signal: spec.stop_signal(), grace: HumanDuration(spec.stop_grace()) }
    }
}

impl Default for StopPolicy {
    fn default() -> Self {
        Self { signal: Signal::TERM, grace: HumanDuration(DEFAULT_STOP_GRACE) }
    }
}

/// What becomes of a deployment's named volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Volumes {
    /// They stay.
    Keep,
    /// They go.
    Remove,
}

/// What becomes of the slot of an instance that is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotFate {
    /// It stays, and with it its workspace.
    Stays,
    /// It goes.
    Ends {
        /// What becomes of its workspace: one that stays does so whatever its instances were made to do, one that goes stays
        /// where its instance was made to keep it.
        workspace: Volumes,
    },
}

/// Kinds of failures that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The instance does not exist. Never used for a runtime that does not answer.
    NotFound,
    /// Something that is not ours has the name.
    NameTaken,
    /// The runtime can't be reached.
    Unavailable,
    /// The runtime did not answer in time.
    Timeout,
    /// The image can't be had.
    ImageUnavailable,
    /// The runtime understood and refused; the same request will be refused again.
    Rejected,
    /// This runtime can't do that.
    Unsupported,
    /// The command to run inside an instance does not exist there; shells tell it as exit code 127.
    CommandNotFound,
    /// The command to run inside an instance exists and can't be executed; shells tell it as exit code 126.
    CommandNotExecutable,
    /// A step before the start (`init.steps`) failed; what follows says `errors.on_init_failure`.
    InitFailed,
    /// Anything else; trying again may help.
    Failed,
}
