//! The views themselves: the shape of `keel get -o json` and of the API.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{JobView, LifeState, PoolView};
use crate::spec::RuntimeKind;
use crate::state::{Condition, ConditionStatus, ExitReason, HealthState, PortBinding, RunId, StopCause};

/// Everything that is shown, taken at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Grows with every change; equal numbers mean equal content.
    pub generation: u64,
    /// Whether the sources were read once and every runtime that answers was listed once.
    pub synced: bool,
    /// By name.
    pub deployments: Vec<DeploymentView>,
    /// By deployment and name.
    pub services: Vec<ServiceView>,
    /// By deployment, service, slot, age. The current instance of each slot, and the outgoing one during a rollout, also while
    /// its successor crashes; dead instances that are kept only for their output are left out.
    pub instances: Vec<InstanceView>,
    /// What is wrong with source files.
    pub problems: Vec<ProblemView>,
    /// Deployments that files declare and that have problems and no good version, by name: nothing is done for them.
    #[serde(default)]
    pub left_out: Vec<String>,
    /// Pruning is held.
    pub hold: Option<HoldView>,
    /// Deployments of directories that are not watched any more, by name.
    #[serde(default)]
    pub unwatched: Vec<UnwatchedView>,
    /// What is kept because the database was lost that may have remembered it.
    #[serde(default)]
    pub reset: Option<ResetView>,
    /// The runtimes that are in use.
    pub runtimes: Vec<RuntimeView>,
}

/// One deployment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeploymentView {
    /// Name.
    pub deployment: String,
    /// Where it is declared, `file:line`; absent where it is not.
    pub source: Option<String>,
    /// How it stands.
    pub state: DeploymentState,
    /// What is being done or waited for, or what is wrong; empty where all is well.
    pub message: String,
    /// What else is true of it.
    pub conditions: Vec<Condition>,
}

impl DeploymentView {
    /// Why it runs on its last good version, and not on what its files say now; none where it does not.
    pub fn stale(&self) -> Option<&str> {
        let stale = self.conditions.iter().find(|one| one.kind == "Stale" && one.status == ConditionStatus::True);
        stale.map(|condition| condition.message.as_str())
    }
}

/// How a deployment stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeploymentState {
    /// What is declared runs, and nothing else.
    Running,
    /// All that is declared are jobs, and they have succeeded.
    Complete,
    /// Steps are being taken.
    Progressing,
    /// Something crashes or fails, and is tried again by itself.
    Degraded,
    /// Something is refused or given up; it stays so until somebody changes the spec.
    Failed,
    /// What is declared is not in force, as somebody asked: a rollout is paused before its end.
    Paused,
    /// What is declared is not in force, as somebody asked: an earlier revision runs in its place.
    Undone,
    /// It is being removed.
    Removing,
    /// It is not declared any more and is kept.
    Kept,
    /// The runtime does not answer.
    Unknown,
    /// Nothing is created, stopped or removed, as somebody asked.
    Suspended,
}

impl DeploymentState {
    /// The name for tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Progressing => "progressing",
            Self::Degraded => "degraded",
            Self::Failed => "failed",
            Self::Paused => "paused",
            Self::Undone => "undone",
            Self::Removing => "removing",
            Self::Kept => "kept",
            Self::Unknown => "unknown",
            Self::Suspended => "suspended",
        }
    }

    /// The name as the reason of a condition.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Running => "Running",
            Self::Complete => "Complete",
            Self::Progressing => "Progressing",
            Self::Degraded => "Degraded",
            Self::Failed => "Failed",
            Self::Paused => "Paused",
            Self::Undone => "Undone",
            Self::Removing => "Removing",
            Self::Kept => "Kept",
            Self::Unknown => "Unknown",
            Self::Suspended => "Suspended",
        }
    }
}

/// One service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceView {
    /// Deployment.
    pub deployment: String,
    /// Name.
    pub service: String,
    /// Where it is declared, `file:line`; absent where it is not.
    pub source: Option<String>,
    /// Runtime.
    pub runtime: RuntimeKind,
    /// Image, as it was written.
    pub image: String,
    /// Where it stands: what needs most to be known of any of its instances.
    #[serde(default)]
    pub state: LifeState,
    /// Replicas that there should be.
    pub desired: u32,
    /// Instances that run.
    pub running: u32,
    /// Instances that take traffic.
    pub ready: u32,
    /// Instances of the declared template that run.
    pub updated: u32,
    /// The declared revision.
    pub revision: String,
    /// Another revision that means the same template on this runtime, where there is one: instances of it are `updated`
    /// too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equivalent: Option<String>,
    /// What is to run in place of what is declared, where somebody asked for that (`keel rollout undo`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undone: Option<UndoneView>,
    /// Whether its rollout is under way, or its way back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rolling: bool,
    /// Services that it depends on and that are not as they have to be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub awaits: Vec<AwaitedView>,
    /// Why the last step for it failed, without when the next try is due; absent where none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// What of it is down and comes back only when somebody starts it (`keel stop`, `lifecycle.on_expiry: terminate`), and
    /// with which command; absent where nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_down: Option<String>,
    /// What is being waited for, or the worst that is true of it; empty where all is well.
    #[serde(default)]
    pub message: String,
    /// How it stands as a job or cron service; absent where it is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobView>,
    /// How it stands as a pool; absent where it is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolView>,
    /// What else is true of it.
    pub conditions: Vec<Condition>,
}

impl ServiceView {
    /// Whether instances of these two revisions were made from the same template, as far as the declared one tells.
    pub fn are_made_alike(&self, one: &str, other: &str) -> bool {
        let is_declared = |revision: &str| self.revision == revision || self.equivalent.as_deref() == Some(revision);
        one == other || (is_declared(one) && is_declared(other))
    }
}

/// How far a service is on its way back to an earlier revision that somebody asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndoneView {
    /// Number of the revision, as `keel rollout history` shows it.
    pub to: u64,
    /// Instances of it that run.
    pub updated: u32,
    /// Those of them that take traffic.
    pub ready: u32,
    /// Instances of other revisions that have not ended.
    pub old: u32,
    /// Whether the way there is over: no other is left, and all replicas have been ready for long enough.
    pub complete: bool,
    /// How it failed, where it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// A service that another one depends on and that is not as it has to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwaitedView {
    /// Which.
    pub service: String,
    /// Until when it is waited for; absent where it is not, or for as long as it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<DateTime<Utc>>,
    /// Whether the time for that is over.
    pub given_up: bool,
}

/// One instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceView {
    /// Deployment.
    pub deployment: String,
    /// Service.
    pub service: String,
    /// Stable ordinal inside the service.
    pub slot: u32,
    /// Counts the instances of one slot and revision, from 0.
    #[serde(default)]
    pub attempt: u32,
    /// Run of a job that it belongs to: the time that it has its name from, in milliseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// `DEPLOYMENT/SERVICE/SLOT`.
    pub name: String,
    /// Runtime.
    pub runtime: RuntimeKind,
    /// The runtime's own id; empty while it does not exist yet.
    pub runtime_id: String,
    /// Process id on this machine, while it runs and where known.
    pub pid: Option<u32>,
    /// `pending`, `created`, `running`, `paused`, `stopping`, `exited` or `unknown`.
    pub phase: String,
    /// Where it stands in its life: the phase, and why it is down or frozen.
    #[serde(default)]
    pub state: LifeState,
    /// Whether it takes traffic.
    pub ready: bool,
    /// What health checks say of it; absent where nothing checks it.
    #[serde(default)]
    pub health: Option<HealthState>,
    /// Revision that it was made from.
    pub revision: String,
    /// Restarts after an exit.
    pub restarts: u32,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When the present or last run started.
    pub started_at: Option<DateTime<Utc>>,
    /// How it ended; absent while it runs.
    pub exit: Option<ExitView>,
    /// Ports of the machine that lead to it.
    pub ports: Vec<PortBinding>,
    /// What is being waited for, in a sentence; empty where nothing is.
    pub message: String,
    /// What the runtime has to say about it.
    pub conditions: Vec<Condition>,
}

/// How an instance ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitView {
    /// Exit code; 128 + N after signal N.
    pub code: Option<i32>,
    /// Name of the signal that ended it.
    pub signal: Option<String>,
    /// Whether it was killed for want of memory.
    pub oom_killed: bool,
    /// The kind of end.
    pub reason: ExitReason,
    /// Why it was asked to end; absent where it ended by itself.
    #[serde(default)]
    pub stopped: Option<StopCause>,
    /// What the runtime said when it could not run the process, or the last health check where that failed.
    pub message: Option<String>,
    /// When it ended.
    pub finished_at: DateTime<Utc>,
}

/// One thing that is wrong with a source file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemView {
    /// File.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
    /// Path inside the document, `services.web.image`.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub help: Option<String>,
    /// What keeps running in the meantime.
    pub effect: String,
}

/// Pruning is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldView {
    /// Why, and what to do.
    pub reason: String,
    /// Deployments that are gone from the source and kept.
    pub missing: Vec<String>,
}

/// The database was lost, and what it may have remembered is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetView {
    /// What happened, and what to do.
    pub reason: String,
    /// Deployments that nothing declares and that are kept. Sorted.
    pub kept: Vec<String>,
}

/// A deployment that is kept although nobody watches the directory that declared it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnwatchedView {
    /// Name.
    pub deployment: String,
    /// Where it was declared, `file:line`.
    pub source: String,
    /// The directory that was watched.
    pub directory: String,
}

/// One runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeView {
    /// Which.
    pub runtime: RuntimeKind,
    /// Whether it is what services without a `runtime` use.
    pub default: bool,
    /// Why nothing is known of it; absent while it answers.
    pub unreachable: Option<String>,
}
