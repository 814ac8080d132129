//! Desired and observed state as plain data, and the identities that tie them together.

mod activity;
mod call;
mod condition;
mod desired;
mod health;
mod id;
mod late_mount;
mod observed;
mod phase;
mod remnant;
mod rollout;
mod run;
mod session;

pub use activity::{Activity, ActivityRecord, Signal, Use, WatchedInstance};
pub use call::{ErrorKind, SlotFate, StopPolicy, StopRecord, StopRequest, Volumes};
pub use condition::{Condition, ConditionStatus};
pub use desired::{Desired, DesiredDeployment, DesiredService, Fate, SourceRef};
pub use health::{HealthState, NOBODY_CHECKS, NOT_CHECKED, last_line};
pub use id::{BadIdentity, InstanceId, Owner, ServiceName, Target, labels};
pub use late_mount::{BadMount, LateMount, MOST_LATE_MOUNTS, are_same_mounts, check_late_mounts};
pub use observed::{Frozen, Instance, InstanceRef, PortBinding};
pub use phase::{EndedBy, Exit, ExitReason, Phase, StopCause};
pub use remnant::{Remnant, RemnantKind};
pub use rollout::{
    Failed, FailureReason, GoesOn, OrderFailure, Pause, RolledBack, RolloutCourse, RolloutFailure, Standing,
};
pub use run::{ActiveRecord, JobRecord, RunEnd, RunId, RunRecord, ScheduleMark, Tried};
pub use session::{
    SECRET_BYTES, Session, SessionEnd, SessionId, SessionState, Token, TokenDigest, check_client, check_sandbox,
    secrets,
};
