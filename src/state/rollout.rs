//! What rollouts say of a service: why what runs is not what is declared, or why it may never come to it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Exit;
use crate::spec::Revision;

/// How the rollout of a service bears on what is to run. Nothing where what is declared is rolled out as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// An earlier revision is to run in place of the declared one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rolled_back: Option<RolledBack>,
    /// The instances are to be replaced although their template is the same, as somebody asked.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub restarted: bool,
    /// The rollout is paused: nothing is replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused: Option<Pause>,
    /// The rollout has failed and goes on all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<Failed>,
    /// What was ordered last failed, and what is declared runs as it did before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_order: Option<OrderFailure>,
    /// How its rollout goes.
    #[serde(skip_serializing_if = "RolloutCourse::is_over")]
    pub course: RolloutCourse,
    /// When somebody asked that it be tried anew: what ended before is followed by another at once, and counts no more.
    #[serde(skip)]
    pub tried_anew: Option<DateTime<Utc>>,
    /// When its health checks were last declared otherwise: what ended before because others failed is followed by another
    /// at once.
    #[serde(skip)]
    pub checks_changed: Option<DateTime<Utc>>,
}

/// How a rollout goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutCourse {
    /// It is complete, or has failed.
    #[default]
    Over,
    /// It is under way.
    UnderWay,
    /// A pause keeps it from its end.
    Held,
}

impl RolloutCourse {
    const fn is_over(&self) -> bool {
        matches!(self, Self::Over)
    }
}

impl Standing {
    /// Whether what is declared is rolled out as it is.
    pub fn is_plain(&self) -> bool {
        let Self { rolled_back, restarted, paused, failed, .. } = self;
        rolled_back.is_none() && !restarted && paused.is_none() && failed.is_none()
    }

    /// Whether an earlier revision is to run because somebody asked for it.
    pub fn is_undone(&self) -> bool {
        self.rolled_back.as_ref().is_some_and(|back| back.failure.is_none())
    }

    /// Whether this end says nothing of what is declared now: it came before somebody asked for another try, or was one by
    /// checks before others were declared.
    pub fn is_outdated(&self, exit: &Exit) -> bool {
        self.since_when_counts(exit).is_some_and(|at| exit.finished_at <= at)
    }

    /// Since when an end of this kind counts, where it did not before.
    pub fn since_when_counts(&self, exit: &Exit) -> Option<DateTime<Utc>> {
        self.tried_anew.max(self.checks_changed.filter(|_| exit.is_unhealthy()))
    }
}

/// An earlier revision is to run in place of the declared one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledBack {
    /// Number of the revision that is not to run.
    pub from: u64,
    /// Number of the one that is.
    pub to: u64,
    /// The declared revision.
    pub declared: Revision,
    /// Revisions of the instances that are made from the template that is to run: its own, and another one that means the
    /// same, where there is one.
    #[serde(default)]
    pub runs: Vec<Revision>,
    /// Why; absent where somebody asked for it.
    pub failure: Option<RolloutFailure>,
    /// Whether what failed is an earlier revision that somebody had asked for, and not what is declared.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub from_undo: bool,
}

/// What somebody ordered of a rollout failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum OrderFailure {
    /// A restart.
    Restart {
        /// How.
        failure: RolloutFailure,
    },
    /// An undo.
    Undo {
        /// Number of the revision that was asked for.
        to: u64,
        /// How.
        failure: RolloutFailure,
    },
}

/// Why a rollout is paused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Pause {
    /// Somebody asked for it.
    User,
    /// It failed, and `rollout.on_failure` is `pause`.
    Failure {
        /// How.
        failure: RolloutFailure,
    },
}

/// A rollout has failed and goes on all the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// How.
    pub failure: RolloutFailure,
    /// Why it goes on.
    pub goes_on: GoesOn,
}

/// Why a rollout goes on that has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GoesOn {
    /// `rollout.on_failure` is `continue`.
    Continue,
    /// There is no earlier revision to go back to.
    NoTarget,
    /// It is itself the way back to an earlier revision.
    RollingBack,
}

/// How a rollout failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutFailure {
    /// In one word.
    pub reason: FailureReason,
    /// In a sentence.
    pub message: String,
}

/// How a rollout failed, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureReason {
    /// `rollout.progress_deadline` passed without progress (Kubernetes' word).
    ProgressDeadlineExceeded,
    /// A call was refused, and will be again.
    Refused,
    /// New instances crash, or are unhealthy, time and again.
    Crashing,
    /// A new instance ended, and its policy starts no other.
    GaveUp,
    /// What it depends on was not as it has to be within the time for which it is waited for (`depends.timeout`).
    DependencyTimeout,
}

impl FailureReason {
    /// The reason of a condition.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ProgressDeadlineExceeded => "ProgressDeadlineExceeded",
            Self::Refused => "Refused",
            Self::Crashing => "Crashing",
            Self::GaveUp => "GaveUp",
            Self::DependencyTimeout => "DependencyTimeout",
        }
    }
}
