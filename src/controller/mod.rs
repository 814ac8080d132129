//! The engine: observes, plans, executes and reports for every deployment, for as long as it runs.
//!
//! [`Engine`] is what the commands and the API talk to. Behind it, [`Core`] is one task that owns all state and
//! decides; the sources and the runtimes reach it as messages, and what it decides runs in tasks of their own.

mod access;
mod apply;
mod archive;
mod cache;
mod convert;
mod copies;
mod core;
mod declared;
mod delete;
mod depends;
mod describe;
mod drift;
mod engine;
mod event;
mod explain;
mod flight;
mod follow;
mod health;
mod images;
mod jobs;
mod ledger;
mod lists;
mod lives;
mod memory;
mod message;
mod news;
#[cfg(any(target_os = "linux", target_os = "macos"))]
mod nothing;
mod observe;
mod open;
mod orders;
mod orphans;
mod others;
mod outlook;
mod publish;
mod queue;
mod reconcile;
mod record;
mod remnants;
mod reports;
mod request;
mod reread;
mod rollouts;
mod runtimes;
mod scaling;
mod sessions;
mod stops;
mod trigger;
mod usage;
mod using;
mod wait;
mod watching;

use std::path::PathBuf;

pub use describe::{Description, InstanceDescription};
pub use engine::Engine;
pub use reports::{ControlReport, RuntimeReport};
pub use request::{
    Applied, ApplyRequest, Change, DeleteRequest, DeploymentPreview, EngineError, Preview, SpecFile, TriggerRequest,
};

pub use self::convert::desired;
pub use self::core::{Core, Parts, Scope, Settled};
pub use self::declared::{Declared, Removed};
pub use self::event::Event;
pub use self::explain::{IdleReport, Membership, SignalReport};
pub use self::follow::{Bookmark, Followed, Observed, follow};
pub use self::images::IMAGE_EVERY;
pub use self::jobs::{JobChanges, Jobs, KeepJobs, StoredJobs, Trigger};
pub use self::ledger::Used;
pub use self::memory::{Keeper, Kept, Note, NoteKey};
pub use self::message::{Command, Message, UseNews};
pub use self::observe::{Connect, Connected};
pub use self::orders::{Order, Ordered};
pub use self::orphans::{OrphanKind, OrphanView};
pub use self::rollouts::{RevisionView, RolloutView};
pub use self::sessions::{
    AcquireRequest, Acquired, CLAIM_TIMEOUT, CLAIM_TIMEOUT_MAX, Changed, Claim, Entry, KeepSessions, KeptSessions,
    Lease, PoolInfo, SessionChanged, SessionCommand, SessionRequest, SessionStats, SessionVerb, SessionView, Todo,
    Turn,
};
pub use self::stops::StoredStops;
pub use self::usage::InstanceUsage;
use crate::spec::RuntimeKind;

/// How an engine is to work.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// The state directory.
    pub state_dir: PathBuf,
    /// What it may do.
    pub mode: Mode,
    /// Runtime of services that name none. When absent: what this state directory used before, else docker where
    /// `DOCKER_HOST` names an engine or one answers, else sandbox.
    pub runtime: Option<RuntimeKind>,
    /// The `keel` program, for supervisors.
    pub program: PathBuf,
    /// Whether sandboxes may have devices and graphics processors of the machine from now on; as before when absent.
    pub devices: Option<bool>,
}

/// What an engine may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Look only; takes no lock.
    Observe,
    /// Record what is applied, deleted and approved, and do nothing about it; takes the lock.
    Record,
    /// Converge what is applied and deleted through this engine, and nothing else; takes the lock.
    OneShot,
    /// Watch a directory and keep everything converged; takes the lock.
    Controller {
        /// The watched directory.
        directory: PathBuf,
        /// Prune even when the directory lost most of its deployments.
        allow_empty: bool,
        /// Leave what other directories declared as it is, instead of keeping it running.
        once: bool,
    },
}
