//! Limits and shares of the machine.

use serde::{Deserialize, Serialize};

use super::{Bytes, Cpu, Distributed};

/// Limits and shares of the machine; none when nothing is written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Most CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Most memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Most disk space that an instance takes with what it writes in its root file system and in its anonymous volumes,
    /// together. Named volumes have a `size` of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Bytes>,
    /// Memory that is kept free for the instance under pressure; at most `memory`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_reservation: Option<Bytes>,
    /// Most memory and swap together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_swap: Option<Bytes>,
    /// Tendency to swap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub memory_swappiness: Option<u8>,
    /// Most processes and threads; -1 is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1))]
    pub pids_limit: Option<i64>,
    /// Weight among instances that compete for CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2))]
    pub cpu_shares: Option<u32>,
    /// CPUs that may be used, such as `0-2,4`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<super::Scalar>")]
    pub cpuset: Option<String>,
    /// Weight among instances that compete for disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 1000))]
    pub blkio_weight: Option<u16>,
    /// How soon the kernel kills it when memory runs out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1000, max = 1000))]
    pub oom_score_adj: Option<i32>,
    /// Keeps the kernel from killing it when it reaches its memory limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_kill_disable: Option<bool>,
    /// Graphics processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,
}

/// Graphics processors.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// How many; 1 when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1), extend("default" = 1))]
    pub count: Option<u32>,
    /// `nvidia`, `amd`, `intel` or `apple`; `nvidia` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["nvidia", "amd", "intel", "apple"], "default" = "nvidia"))]
    pub vendor: Option<String>,
    /// Mode of access, such as `mps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Model, such as `A100`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// `best-effort`, `gang` or `spread`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["best-effort", "gang", "spread"]))]
    pub scheduling: Option<String>,
    /// `exclusive`, `mps` or `time-slice`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["exclusive", "mps", "time-slice"]))]
    pub sharing: Option<String>,
    /// Distributed training settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distributed: Option<Distributed>,
}
