//! Why a step is taken.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::spec::{Revision, RuntimeKind};
use crate::state::{Exit, SourceRef};

/// Why a step is taken.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "cause", rename_all = "snake_case")]
pub enum Cause {
    /// A slot of the desired replicas has no instance.
    Missing {
        /// Desired replicas.
        replicas: u32,
    },
    /// The template changed.
    SpecChanged {
        /// Declared here.
        source: SourceRef,
        /// Template that the instance was made from.
        from: Revision,
        /// Template that it should be made from.
        to: Revision,
    },
    /// An earlier template is to run again.
    RolledBack {
        /// Template that the instance was made from.
        from: Revision,
        /// Template that it should be made from.
        to: Revision,
    },
    /// Somebody asked that every instance be replaced.
    RestartAsked {
        /// Revision that the instance was made from.
        from: Revision,
        /// Revision that it should be made from.
        to: Revision,
    },
    /// The service is to run on another runtime.
    RuntimeChanged {
        /// Where the instance runs.
        from: RuntimeKind,
        /// Where it should run.
        to: RuntimeKind,
    },
    /// The slot lies beyond the desired replicas.
    ScaledDown {
        /// Desired replicas.
        replicas: u32,
    },
    /// The instance ended and its policy starts another.
    Exited {
        /// How it ended.
        exit: Exit,
        /// Restarts in a row, this one included.
        streak: u32,
    },
    /// Somebody else stopped the instance, or the engine or machine that it ran on was shut down.
    StoppedByOthers {
        /// How it ended.
        exit: Exit,
    },
    /// The instance was created and never started.
    NotStarted,
    /// The instance is frozen and nobody asked for it.
    Paused,
    /// The instance reached its maximum age.
    Expired {
        /// When it started.
        since: DateTime<Utc>,
    },
    /// Somebody else changed the instance.
    ChangedByOthers {
        /// What is otherwise than it was created with.
        what: String,
    },
    /// The instance had no activity for too long.
    Idle {
        /// Its last activity.
        since: DateTime<Utc>,
    },
    /// Somebody asked that it stay down (`keel stop`).
    StopAsked,
    /// Somebody asked for it, or uses it, after it was stopped or suspended.
    StartAsked,
    /// It is idle, and something that depends on it is to start.
    Awaited {
        /// The service that waits for it.
        by: String,
    },
    /// Its health checks fail.
    Unhealthy {
        /// What the last one said.
        check: String,
    },
    /// A dead instance is no longer needed for its output.
    Superseded,
    /// Two instances hold one slot.
    Duplicate,
    /// The service is not declared any more.
    ServiceRemoved,
    /// The deployment is not declared any more.
    DeploymentRemoved,
    /// Nothing that this installation remembers declared it.
    Orphan {
        /// When it was first seen without a declaration.
        first_seen: DateTime<Utc>,
    },
    /// A crash shuts the service down (`errors.on_panic: shutdown`).
    Shutdown {
        /// The crash.
        exit: Exit,
    },
    /// It ran a command before a start, and nobody waits for that any more.
    InitEnded,
    /// A run of a job lacks a completion.
    Incomplete {
        /// Completions that it needs.
        completions: u32,
    },
    /// A run is due by its schedule.
    Scheduled {
        /// Since when.
        at: DateTime<Utc>,
    },
    /// Somebody asked for a run (`keel trigger`).
    Triggered,
    /// An instance of a run failed and is tried again.
    Retry {
        /// How it ended.
        exit: Exit,
        /// Instances of the run that failed so far.
        failed: u32,
        /// As many may fail.
        limit: u32,
    },
    /// The run of the instance has failed.
    RunFailed {
        /// How its last instance failed.
        exit: Exit,
    },
    /// The run of the instance takes longer than `job.active_deadline`.
    DeadlineExceeded {
        /// When it began.
        since: DateTime<Utc>,
    },
    /// Another run takes the place of that of the instance.
    Replaced,
    /// The run of the instance is over, and enough later ones are kept (`job.history`).
    BeyondHistory {
        /// Runs that are kept.
        history: u32,
    },
    /// The run of the instance is over for long enough (`job.ttl_after_finished`).
    TtlAfterFinished {
        /// Since when.
        finished_at: DateTime<Utc>,
    },
    /// The instance ended by itself and is not kept (`lifecycle.delete_on_exit`).
    DeleteOnExit,
    /// A pool has fewer free members than it is to have and claims wait for.
    PoolLow {
        /// Members that are free, or will be.
        warm: u32,
        /// As many as there should be.
        wanted: u32,
    },
    /// A session had the member of a pool, and nobody else is to.
    SessionEnded,
    /// Somebody was inside the member of a pool without a session, so that no session is to have it.
    Entered,
    /// The member of a pool is free for too long (`pool.warm_ttl`).
    Cold {
        /// When it was created.
        since: DateTime<Utc>,
    },
    /// The pool has more members than it may.
    PoolSurplus {
        /// Most free ones.
        max_warm: u32,
        /// Most of all.
        max_total: u32,
    },
    /// A claim asks for a member that is made for it, and the pool may have no more.
    MakesRoom,
    /// The member of a pool is older than what is remembered of who has had which.
    NotRemembered,
}

impl Cause {
    /// Whether the slot of the instance goes with it, and with the slot its workspace. What nothing declares any more, and nobody
    /// is known to have wanted gone, keeps it.
    pub const fn ends_slot(&self) -> bool {
        matches!(self, Self::ScaledDown { .. } | Self::ServiceRemoved | Self::DeploymentRemoved)
    }

    /// Whether something else is to run in the instance's place, as a rollout brings it.
    pub(super) const fn is_rollout(&self) -> bool {
        matches!(
            self,
            Self::SpecChanged { .. }
                | Self::RolledBack { .. }
                | Self::RestartAsked { .. }
                | Self::RuntimeChanged { .. }
        )
    }
}
