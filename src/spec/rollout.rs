//! How a changed template reaches the replicas.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{CountOrPercent, HumanDuration};

/// Surge and unavailability when nothing is written: Kubernetes' Deployment default.
const DEFAULT_SHARE: CountOrPercent = CountOrPercent::Percent(25);

/// Longest time without progress when nothing is written: Kubernetes' `progressDeadlineSeconds`.
const DEFAULT_PROGRESS_DEADLINE: Duration = Duration::from_secs(600);

/// Revisions kept when nothing is written: Kubernetes' `revisionHistoryLimit`.
const DEFAULT_HISTORY: u32 = 10;

/// Most earlier revisions of a service that are kept, each with its spec (about 1 KiB): a list that somebody still reads.
pub const MOST_HISTORY: u32 = 100;

/// Time for which a new instance has to run before it counts in a rollout where neither `health` nor `min_ready` tells more.
pub const UNCHECKED_RUN: Duration = Duration::from_secs(1);

/// How a changed template reaches the replicas.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// Replace step by step, or stop all before the first new one; `rolling` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "rolling"))]
    pub strategy: Option<Strategy>,
    /// Instances above the desired number during a rollout, shares rounded up; `25%` when nothing is written. Always 0 where
    /// the service has a `host_port`, which one instance holds at a time: the old one ends before the new one starts. The
    /// same holds where nothing is written and old and new would write one volume: a workspace, or a writable named volume
    /// of a single replica. Writing it down says that they may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "25%"))]
    pub max_surge: Option<CountOrPercent>,
    /// Replicas that may be missing during a rollout, shares rounded down; `25%` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "25%"))]
    pub max_unavailable: Option<CountOrPercent>,
    /// Time that an instance must be ready before it counts as available; `0s` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "0s"))]
    pub min_ready: Option<HumanDuration>,
    /// Longest time without progress; `10m` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "10m"))]
    pub progress_deadline: Option<HumanDuration>,
    /// What happens when a rollout fails; `rollback` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "rollback"))]
    pub on_failure: Option<OnRolloutFailure>,
    /// Earlier revisions kept besides what runs; 10 when nothing is written, and never more than 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = 10))]
    pub history: Option<u32>,
}

/// Order of stopping and starting.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Replace step by step, within the bounds.
    #[default]
    Rolling,
    /// Stop all, then start all.
    Recreate,
}

/// What happens when a rollout fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnRolloutFailure {
    /// Go back to the last good revision.
    Rollback,
    /// Stay as it is and wait for a person.
    Pause,
    /// Keep trying.
    Continue,
}

impl Rollout {
    /// The strategy that holds.
    pub fn strategy(&self) -> Strategy {
        self.strategy.unwrap_or_default()
    }

    /// Resolved surge and unavailability for `desired` replicas: surge rounded up, unavailability rounded
    /// down, and unavailability 1 where both come to 0 (Kubernetes' ResolveFenceposts).
    pub fn bounds(&self, desired: u32) -> (u32, u32) {
        let surge = self.max_surge.unwrap_or(DEFAULT_SHARE).rounded_up(desired);
        let unavailable = self.max_unavailable.unwrap_or(DEFAULT_SHARE).rounded_down(desired);
        match (surge, unavailable) {
            (0, 0) => (0, 1),
            bounds => bounds,
        }
    }

    /// Time that an instance must be ready before it counts as available.
    pub fn min_ready(&self) -> Duration {
        self.min_ready.map_or(Duration::ZERO, HumanDuration::get)
    }

    /// Longest time without progress after which the rollout has failed.
    pub fn progress_deadline(&self) -> Duration {
        self.progress_deadline.map_or(DEFAULT_PROGRESS_DEADLINE, HumanDuration::get)
    }

    /// What happens when the rollout fails.
    pub const fn on_failure(&self) -> OnRolloutFailure {
        match self.on_failure {
            Some(on_failure) => on_failure,
            None => OnRolloutFailure::Rollback,
        }
    }

    /// Earlier revisions kept besides what runs; at most [`MOST_HISTORY`].
    pub fn history(&self) -> u32 {
        self.history.unwrap_or(DEFAULT_HISTORY).min(MOST_HISTORY)
    }
}
