//! How many instances there are: replicas, job runs, pools and their sessions.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{HumanDuration, RefillRate};

/// Most replicas of one service: the number of instances that one controller is measured with (`benches/controller.rs`).
/// A larger number on one machine is a slip of the finger, and would cost a slot in memory for each.
pub const MAX_REPLICAS: u32 = 10_000;

/// How many replicas a service has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "mode", rename_all = "snake_case", deny_unknown_fields)]
pub enum Scale {
    /// Always that many.
    Fixed {
        /// Desired replicas; 0 keeps the declaration and runs nothing.
        #[schemars(range(max = MAX_REPLICAS))]
        replicas: u32,
    },
    /// Between two bounds, by load.
    Adaptive {
        /// Fewest replicas.
        #[schemars(range(max = MAX_REPLICAS))]
        min: u32,
        /// Most replicas; at least `min`.
        #[schemars(range(max = MAX_REPLICAS))]
        max: u32,
        /// Shortest time between two changes; none when nothing is written. Fewer replicas come only when nothing asked for
        /// more in five minutes, in any case.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cooldown: Option<HumanDuration>,
        /// Loads to aim at.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        targets: Option<ScaleTargets>,
    },
    /// Set by command; starts at one.
    Manual,
}

impl Scale {
    /// Replicas before any load was seen or command was given: the fixed number, the lower bound (one at least), or one.
    pub fn initial(&self) -> u32 {
        match self {
            Self::Fixed { replicas } => *replicas,
            Self::Adaptive { min, .. } => (*min).max(1),
            Self::Manual => 1,
        }
    }
}

/// Loads that an adaptive service aims at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScaleTargets {
    /// CPU use in percent of `resources.cpu`, or of one processor without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub cpu: Option<u8>,
    /// Memory use in percent of `resources.memory`, which has to be written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub memory: Option<u8>,
    /// Requests per second and replica, as TCP connections that the instances accept: those that share a connection (HTTP
    /// keep-alive, HTTP/2) count once, and health checks and connections from inside count too. Only an instance with a network
    /// of its own on this machine is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub rps: Option<u32>,
}

/// Runs of a job or cron service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// Completions that a run needs, each with an index of its own; 1 when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_REPLICAS), extend("default" = 1))]
    pub completions: Option<u32>,
    /// Completions of a run that are tried side by side; 1 when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_REPLICAS), extend("default" = 1))]
    pub parallelism: Option<u32>,
    /// Failed instances of a run that are followed by another try; 6 when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = 6))]
    pub backoff_limit: Option<u32>,
    /// Longest time from the start of a run to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_deadline: Option<HumanDuration>,
    /// Time that the instances of a finished run are kept, with their output; as `history` says when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_after_finished: Option<HumanDuration>,
    /// What happens when a run is due while one is going; `forbid` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "forbid"))]
    pub overlap: Option<Overlap>,
    /// Finished runs whose instances are kept, with their output; 3 when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = MAX_JOB_HISTORY), extend("default" = 3))]
    pub history: Option<u32>,
}

/// Finished runs whose instances are kept at most: what somebody still looks through, and no heap of dead containers.
pub const MAX_JOB_HISTORY: u32 = 100;

impl Job {
    /// Runs that must succeed.
    pub fn completions(&self) -> u32 {
        self.completions.unwrap_or(1)
    }

    /// Runs side by side.
    pub fn parallelism(&self) -> u32 {
        self.parallelism.unwrap_or(1)
    }

    /// Failed runs before the job fails.
    pub fn backoff_limit(&self) -> u32 {
        self.backoff_limit.unwrap_or(6)
    }

    /// What happens when a run is due while one is going.
    pub fn overlap(&self) -> Overlap {
        self.overlap.unwrap_or(Overlap::Forbid)
    }

    /// Finished runs kept.
    pub fn history(&self) -> u32 {
        self.history.unwrap_or(3)
    }
}

/// What happens when a run is due while one is going.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// Both run.
    Allow,
    /// The new one is left out.
    Forbid,
    /// The old one is stopped.
    Replace,
}

/// A pool of sandboxes handed out by sessions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// Fewest warm sandboxes; 2 when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = 2))]
    pub min_warm: Option<u32>,
    /// Most warm sandboxes, beside those that will be too old soon and whose successors are being made; 10 when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = 10))]
    pub max_warm: Option<u32>,
    /// Age at which a warm sandbox is rebuilt; `10m` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "10m"))]
    pub warm_ttl: Option<HumanDuration>,
    /// Most sandboxes, warm and in use together; 100 when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = 100))]
    pub max_total: Option<u32>,
    /// Most warm sandboxes made per second, from 0.001 to 1000: as many as fit, a few at a time, when nothing is written.
    /// What a claim waits for is made without regard to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refill_rate: Option<RefillRate>,
}

impl Pool {
    /// Fewest warm sandboxes: 2, or fewer where `max_warm` is lower.
    pub fn min_warm(&self) -> u32 {
        self.min_warm.unwrap_or_else(|| self.max_warm.map_or(2, |max| max.min(2)))
    }

    /// Most warm sandboxes: 10, or what `min_warm` asks for, within `max_total`.
    pub fn max_warm(&self) -> u32 {
        let unbounded = 10.max(self.min_warm.unwrap_or(0));
        self.max_warm.unwrap_or_else(|| self.max_total.map_or(unbounded, |total| total.min(unbounded)))
    }

    /// Age at which a warm sandbox is rebuilt: 10 minutes.
    pub fn warm_ttl(&self) -> Duration {
        self.warm_ttl.map_or(Duration::from_secs(600), HumanDuration::get)
    }

    /// Most sandboxes, warm and in use together: 100, or what `max_warm` asks for.
    pub fn max_total(&self) -> u32 {
        self.max_total.unwrap_or_else(|| 100.max(self.max_warm()))
    }
}

/// Time limits of sessions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// Longest time without use while attached; `5m` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "5m"))]
    pub idle_timeout: Option<HumanDuration>,
    /// Longest time detached; `1h` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "1h"))]
    pub detach_timeout: Option<HumanDuration>,
    /// Longest time suspended; `24h` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "24h"))]
    pub suspend_timeout: Option<HumanDuration>,
}

impl Session {
    /// Longest time without use while attached: 5 minutes.
    pub fn idle_timeout(&self) -> Duration {
        self.idle_timeout.map_or(Duration::from_secs(300), HumanDuration::get)
    }

    /// Longest time detached: an hour.
    pub fn detach_timeout(&self) -> Duration {
        self.detach_timeout.map_or(Duration::from_secs(3600), HumanDuration::get)
    }

    /// Longest time suspended: a day.
    pub fn suspend_timeout(&self) -> Duration {
        self.suspend_timeout.map_or(Duration::from_secs(24 * 3600), HumanDuration::get)
    }
}
