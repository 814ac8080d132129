//! Why more is not done now.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{Dependency, RetireCall, Retired};
use crate::spec::{DependsCondition, HumanDuration, RuntimeKind};
use crate::state::{ErrorKind, Exit, Failed, InstanceId, Pause, RolledBack, RolloutFailure, RunEnd, ServiceName};

/// Why an instance is left running on which checks never passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Spared {
    /// What is restarted for the same checks has yet to show whether it passes them.
    Untold,
    /// What was restarted for them does not pass them either.
    FailedAgain,
}

/// Why more is not done now.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "wait", rename_all = "snake_case")]
pub enum Wait {
    /// A step for this instance is under way.
    InFlight {
        /// The instance.
        id: InstanceId,
    },
    /// The instance ended and its next start is not due.
    BackOff {
        /// The dead instance.
        id: InstanceId,
        /// How it ended.
        exit: Exit,
        /// When the next start is due.
        until: DateTime<Utc>,
    },
    /// A call for this instance failed and its next try is not due.
    Retry {
        /// The instance that was to be made or changed.
        id: InstanceId,
        /// Kind of the last failure.
        kind: ErrorKind,
        /// Failures in a row.
        failures: u32,
        /// What the runtime said.
        error: String,
        /// When the next try is due.
        until: DateTime<Utc>,
    },
    /// A call for this instance was refused, so that another spec is needed, or something around it put right.
    Refused {
        /// The instance that was to be made or changed.
        id: InstanceId,
        /// Kind of failure.
        kind: ErrorKind,
        /// What the runtime said.
        error: String,
        /// When it is tried once more, in case the cause was outside of the spec.
        until: DateTime<Utc>,
    },
    /// A call to stop, freeze or remove something failed; it is tried again.
    RetireFailed {
        /// What it is about.
        retired: Retired,
        /// The deployment.
        deployment: String,
        /// What it was to do.
        call: RetireCall,
        /// Failures in a row.
        failures: u32,
        /// What the runtime said.
        error: String,
        /// When the next try is due; in the past where it is being made.
        until: DateTime<Utc>,
    },
    /// An instance does not take traffic yet, or has not for long enough for a rollout to go on.
    NotReady {
        /// The instance.
        id: InstanceId,
        /// What the last health check said, or why none was made.
        check: Option<String>,
        /// When it will have been ready for long enough, where only time is missing.
        until: Option<DateTime<Utc>>,
    },
    /// Health checks of the instance fail. It is ended, where its policy starts another.
    Unhealthy {
        /// The instance.
        id: InstanceId,
        /// What the last check said.
        check: String,
        /// Why it is left running for now, where it is: these checks never passed on it, and not yet on what was restarted
        /// for them.
        spared: Option<Spared>,
        /// When that ends if no check says anything until then; absent where checks have to.
        until: Option<DateTime<Utc>>,
    },
    /// The instance was frozen by somebody and is to run on.
    Paused {
        /// The instance.
        id: InstanceId,
    },
    /// A service waits for another one (`depends`) before anything of it is started.
    Dependency {
        /// Which, and which waits for it.
        dependency: Dependency,
        /// What it has to be.
        condition: DependsCondition,
        /// What it lacks.
        why: String,
        /// Until when it is waited for.
        until: DateTime<Utc>,
    },
    /// A service waited too long for another one (`depends.on_timeout: fail`); it is started when that is as it has to be.
    DependencyTimeout {
        /// Which, and which waited for it.
        dependency: Dependency,
        /// What it has to be.
        condition: DependsCondition,
        /// What it lacks.
        why: String,
        /// For how long it was waited for.
        waited: HumanDuration,
    },
    /// A service waited too long for another one and goes on without it (`depends.on_timeout: warn`).
    WithoutDependency {
        /// Which, and which waited for it.
        dependency: Dependency,
        /// What it has to be.
        condition: DependsCondition,
        /// What it lacks.
        why: String,
        /// For how long it was waited for.
        waited: HumanDuration,
    },
    /// A service that is to end waits for those that depend on it.
    Dependents {
        /// The service.
        service: String,
        /// Those that depend on it and run.
        by: Vec<String>,
    },
    /// Old instances have to end before new ones start (`rollout.strategy: recreate`).
    Draining {
        /// The service.
        service: String,
    },
    /// The dead instance is kept for inspection (`errors.on_panic: isolate`).
    Isolated {
        /// The instance.
        id: InstanceId,
        /// How it ended.
        exit: Exit,
    },
    /// The service is down because an instance crashed (`errors.on_panic: shutdown`).
    ShutDown {
        /// The instance that crashed.
        id: InstanceId,
        /// How it ended.
        exit: Exit,
    },
    /// The instance ended and its policy starts no other.
    Ended {
        /// The instance.
        id: InstanceId,
        /// How it ended.
        exit: Exit,
    },
    /// The instance ended with one of `restart_policy.final_exit_codes`.
    Final {
        /// The instance.
        id: InstanceId,
        /// How it ended.
        exit: Exit,
    },
    /// The instance crashed as often as `restart_policy.max_attempts` allows.
    GaveUp {
        /// The instance.
        id: InstanceId,
        /// How it ended.
        exit: Exit,
    },
    /// The instance was stopped for want of activity; the next use starts it.
    Idle {
        /// The instance.
        id: InstanceId,
        /// When it was stopped.
        since: DateTime<Utc>,
    },
    /// The instance is frozen for want of activity (`lifecycle.on_idle: suspend`); the next use lets it run on.
    IdleSuspended {
        /// The instance.
        id: InstanceId,
        /// Its last activity.
        since: DateTime<Utc>,
    },
    /// Somebody asked that the slot stay down (`keel stop`).
    StopAsked {
        /// The instance that was stopped, or would be made.
        id: InstanceId,
    },
    /// The instance reached its maximum age and stays down (`lifecycle.on_expiry: terminate`).
    Terminated {
        /// The instance.
        id: InstanceId,
    },
    /// The undeclared instance has to be seen for longer before it counts as an orphan.
    OrphanSettling {
        /// The instance.
        id: InstanceId,
        /// When it may be removed.
        until: DateTime<Utc>,
    },
    /// The deployment is not declared any more and is kept (`prune: never`, or pruning is held).
    Kept,
    /// The runtime does not answer, so nothing is known of what it runs.
    RuntimeUnreachable {
        /// The runtime.
        runtime: RuntimeKind,
        /// What it said.
        error: String,
    },
    /// There is no such runtime here, so nothing is run on it.
    RuntimeAbsent {
        /// The runtime.
        runtime: RuntimeKind,
        /// Why there is none, and what to do.
        why: String,
    },
    /// The runtime reports the instance in a phase that nothing can be done about.
    Unknown {
        /// The instance.
        id: InstanceId,
        /// What the runtime said.
        message: String,
    },
    /// An earlier revision runs in place of the declared one, until something else is declared.
    RolledBack {
        /// The service.
        service: ServiceName,
        /// From what to what, and why.
        rolled_back: RolledBack,
        /// How the way there failed, where it did.
        failed: Option<RolloutFailure>,
    },
    /// The rollout is paused before its end.
    RolloutPaused {
        /// The service.
        service: ServiceName,
        /// Why.
        pause: Pause,
    },
    /// The rollout has failed, and goes on all the same.
    RolloutFailed {
        /// The service.
        service: ServiceName,
        /// How, and why it goes on.
        failed: Failed,
    },
    /// Its registry is asked what the tag of its image stands for, before anything of the service is begun.
    ImageAsked {
        /// The service.
        service: String,
        /// Reference of the image.
        image: String,
    },
    /// Somebody asked that nothing be created, stopped or removed.
    Suspended {
        /// The deployment.
        deployment: String,
    },
    /// The service is of a kind that is not run yet, or its runtime can't run its image.
    NotRun {
        /// The service.
        service: String,
        /// Which kind or image, and what to do.
        why: String,
    },
    /// An instance of a job runs and is to end.
    Completion {
        /// The instance.
        id: InstanceId,
    },
    /// An instance of a cron service runs and is to end; nothing else waits for it.
    CronRun {
        /// The instance.
        id: InstanceId,
    },
    /// A job has succeeded.
    Completed {
        /// The service.
        service: String,
        /// When.
        at: DateTime<Utc>,
    },
    /// A job has failed, and is not tried again until its template changes or somebody asks for it.
    JobFailed {
        /// The service.
        service: String,
        /// How its run ended.
        end: RunEnd,
        /// Instances that may fail before a run fails.
        limit: u32,
    },
    /// A cron service runs again.
    NextRun {
        /// The service.
        service: String,
        /// When.
        at: DateTime<Utc>,
    },
    /// The schedule of a cron service names no time that is still to come.
    ScheduleOver {
        /// The service.
        service: String,
    },
}

impl Wait {
    /// Why something failed that is tried again, where it is about that.
    pub fn failure(&self) -> Option<String> {
        match self {
            Self::Retry { error, .. } | Self::Refused { error, .. } | Self::RetireFailed { error, .. } => {
                Some(error.clone())
            }
            Self::BackOff { exit, .. } if !exit.is_by_others() => Some(exit.to_string()),
            _ => None,
        }
    }

    /// The instance that it is about, where it is about one.
    pub const fn instance(&self) -> Option<&InstanceId> {
        match self {
            Self::InFlight { id }
            | Self::BackOff { id, .. }
            | Self::Retry { id, .. }
            | Self::Refused { id, .. }
            | Self::Paused { id }
            | Self::NotReady { id, .. }
            | Self::Unhealthy { id, .. }
            | Self::Isolated { id, .. }
            | Self::ShutDown { id, .. }
            | Self::Ended { id, .. }
            | Self::GaveUp { id, .. }
            | Self::Final { id, .. }
            | Self::Idle { id, .. }
            | Self::IdleSuspended { id, .. }
            | Self::StopAsked { id }
            | Self::Terminated { id }
            | Self::OrphanSettling { id, .. }
            | Self::Completion { id }
            | Self::CronRun { id }
            | Self::RetireFailed { retired: Retired::Instance { id, .. }, .. }
            | Self::Unknown { id, .. } => Some(id),
            Self::RetireFailed { retired: Retired::Shared { .. }, .. }
            | Self::Draining { .. }
            | Self::Dependency { .. }
            | Self::DependencyTimeout { .. }
            | Self::WithoutDependency { .. }
            | Self::Dependents { .. }
            | Self::Completed { .. }
            | Self::JobFailed { .. }
            | Self::NextRun { .. }
            | Self::ScheduleOver { .. }
            | Self::Kept
            | Self::RuntimeUnreachable { .. }
            | Self::RuntimeAbsent { .. }
            | Self::RolledBack { .. }
            | Self::RolloutPaused { .. }
            | Self::RolloutFailed { .. }
            | Self::ImageAsked { .. }
            | Self::Suspended { .. }
            | Self::NotRun { .. } => None,
        }
    }

    /// The dependency that it is about, where it is about one.
    pub const fn dependency(&self) -> Option<&Dependency> {
        match self {
            Self::Dependency { dependency, .. }
            | Self::DependencyTimeout { dependency, .. }
            | Self::WithoutDependency { dependency, .. } => Some(dependency),
            _ => None,
        }
    }

    /// When it is over, where time ends it.
    pub const fn until(&self) -> Option<DateTime<Utc>> {
        match self {
            Self::BackOff { until, .. }
            | Self::Retry { until, .. }
            | Self::Refused { until, .. }
            | Self::RetireFailed { until, .. }
            | Self::Dependency { until, .. }
            | Self::OrphanSettling { until, .. } => Some(*until),
            Self::NotReady { until, .. } | Self::Unhealthy { until, .. } => *until,
            Self::InFlight { .. }
            | Self::Paused { .. }
            | Self::Draining { .. }
            | Self::DependencyTimeout { .. }
            | Self::WithoutDependency { .. }
            | Self::Dependents { .. }
            | Self::Isolated { .. }
            | Self::ShutDown { .. }
            | Self::Ended { .. }
            | Self::GaveUp { .. }
            | Self::Final { .. }
            | Self::Idle { .. }
            | Self::IdleSuspended { .. }
            | Self::StopAsked { .. }
            | Self::Terminated { .. }
            | Self::Kept
            | Self::RuntimeUnreachable { .. }
            | Self::RuntimeAbsent { .. }
            | Self::Unknown { .. }
            | Self::RolledBack { .. }
            | Self::RolloutPaused { .. }
            | Self::RolloutFailed { .. }
            | Self::ImageAsked { .. }
            | Self::Suspended { .. }
            | Self::Completion { .. }
            | Self::CronRun { .. }
            | Self::Completed { .. }
            | Self::JobFailed { .. }
            | Self::NextRun { .. }
            | Self::ScheduleOver { .. }
            | Self::NotRun { .. } => None,
        }
    }
}
