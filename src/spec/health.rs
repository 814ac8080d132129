//! Health checks, dependencies and init steps.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{HumanDuration, InitStep, OnFailure};

/// Longest wait for a dependency where none is written.
const DEPENDS_TIMEOUT: Duration = Duration::from_secs(300);

/// When an instance counts as ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// Time after the start in which failed checks do not count; `5s` when nothing is written. Checks begin at once, so
    /// that an instance is ready as soon as one passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "5s"))]
    pub start_grace: Option<HumanDuration>,
    /// Time between two checks; `10s` when nothing is written. Until the first one passes they are made every second at
    /// least, and a failure counts once in that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "10s"))]
    pub interval: Option<HumanDuration>,
    /// Longest time for one check; `5s` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "5s"))]
    pub timeout: Option<HumanDuration>,
    /// Failures in a row before an instance counts as unhealthy and is restarted, as after a crash; 3 when nothing is
    /// written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1), extend("default" = 3))]
    pub retries: Option<u32>,
    /// What is checked.
    pub check: Check,
}

impl Health {
    /// Time after the start in which failures do not count.
    pub fn start_grace(&self) -> Duration {
        self.start_grace.map_or(Duration::from_secs(5), HumanDuration::get)
    }

    /// Time between two checks.
    pub fn interval(&self) -> Duration {
        self.interval.map_or(Duration::from_secs(10), HumanDuration::get)
    }

    /// Longest time for one check.
    pub fn timeout(&self) -> Duration {
        self.timeout.map_or(Duration::from_secs(5), HumanDuration::get)
    }

    /// Failures in a row before an instance counts as unhealthy.
    pub fn retries(&self) -> u32 {
        self.retries.unwrap_or(3)
    }
}

/// What is checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Check {
    /// A connection can be opened.
    Tcp {
        /// Port; 0 is the first endpoint's.
        port: u16,
    },
    /// A GET is answered.
    Http {
        /// The address; `localhost` means the instance, and port 0 its first endpoint. Other hosts are asked as the machine
        /// reaches them. Redirects are not followed, and certificates are not verified.
        url: String,
        /// Status that counts; 200 when nothing is written.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(range(min = 100, max = 599), extend("default" = 200))]
        expect_status: Option<u16>,
    },
    /// A shell command inside the instance ends with 0.
    Command {
        /// The command line.
        command: String,
    },
}

/// A service that comes first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Depends {
    /// Its name, in the same deployment: a service, a pool or a job; nothing waits for a cron service.
    pub service: String,
    /// What it must be; `healthy` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "healthy"))]
    pub condition: Option<DependsCondition>,
    /// Longest wait, from when the service first waits; `5m` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "5m"))]
    pub timeout: Option<HumanDuration>,
    /// What happens after that; `fail` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "fail"))]
    pub on_timeout: Option<OnFailure>,
}

impl Depends {
    /// What it must be.
    pub fn condition(&self) -> DependsCondition {
        self.condition.unwrap_or(DependsCondition::Healthy)
    }

    /// Longest wait for it.
    pub fn timeout(&self) -> Duration {
        self.timeout.map_or(DEPENDS_TIMEOUT, HumanDuration::get)
    }
}

/// What a dependency must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DependsCondition {
    /// An instance of it has run.
    Started,
    /// Health checks of an instance of it pass; where it has none, one runs. A job has completed.
    Healthy,
    /// As many instances of it take traffic as it has replicas. A job has completed.
    Ready,
}

impl std::fmt::Display for DependsCondition {
    /// The word as users write it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Started => "started",
            Self::Healthy => "healthy",
            Self::Ready => "ready",
        })
    }
}

/// Steps before each start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Init {
    /// In this order.
    #[serde(default)]
    pub steps: Vec<InitStep>,
}

/// What a failed init step does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnInitFailure {
    /// The service has failed; the start is tried once more every five minutes, in case something was put right.
    #[default]
    Fail,
    /// The start begins anew after a second.
    Restart,
    /// The start begins anew after a delay that grows: `restart_policy.delay` at first, twice as long each time, up to five
    /// minutes.
    Backoff,
}
