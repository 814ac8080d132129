//! What is kept on disk of an instance.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::launch::Launch;
use super::table::ProcessKey;
use crate::runtime::Enforcement;
use crate::runtime::logfiles::LogBounds;
use crate::state::{Condition, InstanceId, PortBinding, StopCause, StopPolicy};

/// Version of the records. Fields are only ever added, with a default.
pub const RECORD_VERSION: u32 = 1;

/// Identity and launch of an instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Version of the format.
    pub version: u32,
    /// Identity.
    pub id: InstanceId,
    /// Restarts so far.
    pub restarts: u32,
    /// Restarts in a row so far.
    pub streak: u32,
    /// How it wants to be stopped.
    pub stop: StopPolicy,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// What could not be honoured.
    pub conditions: Vec<Condition>,
    /// Target port of its first endpoint, and the port that its program is told to listen on for it.
    pub first_port: Option<(u16, u16)>,
    /// Ports that lead to it.
    pub ports: Vec<PortBinding>,
    /// Volumes that are made where they are missing.
    pub volumes: Vec<PathBuf>,
    /// Its workspace, where that goes with its slot.
    pub workspace: Option<PathBuf>,
    /// Bytes of memory that the supervisor holds it to.
    pub memory: Option<u64>,
    /// Bounds of the kept output.
    pub log: LogBounds,
    /// What it asks for and gets, control by control, once it runs.
    pub enforcement: Vec<Enforcement>,
    /// How its program is run.
    pub launch: Launch,
}

/// A run of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// When it started.
    pub started_at: DateTime<Utc>,
    /// Its program, which leads a process group of its own.
    pub program: ProcessKey,
    /// When the machine's first process started, which tells one boot from another.
    pub boot: String,
}

/// What a supervisor is to do. Written as a whole, then the supervisor is told by a signal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// End the program.
    pub stop: Option<StopOrder>,
    /// Keep it frozen.
    pub frozen: bool,
}

/// The order to end a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopOrder {
    /// Asks the process to end, and how long it may take.
    pub policy: StopPolicy,
    /// Why; told with the exit.
    pub cause: StopCause,
}
