//! What is kept on disk of an instance; the labels of this runtime.

use std::collections::BTreeMap;
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::cgroup::Groups;
use super::devices::Node;
use super::failure::Failure;
use super::landlock::Reach;
use super::network::Network;
use super::process::ProcessKey;
use super::sys::Namespaces;
use crate::runtime::logfiles::LogBounds;
use crate::spec::{Control, SeccompProfile, Signal};
use crate::state::{Condition, InstanceId, Owner, PortBinding, StopCause, StopPolicy};

/// Version of the records. Fields are only ever added, with a default, so that a newer program can adopt what an
/// older one started.
pub const RECORD_VERSION: u32 = 1;

/// Identity and launch of an instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Version of the format.
    pub version: u32,
    /// Installation that made it.
    pub owner: Owner,
    /// Identity.
    pub id: InstanceId,
    /// Restarts so far.
    pub restarts: u32,
    /// Restarts in a row so far.
    pub streak: u32,
    /// How it wants to be stopped.
    #[serde(default)]
    pub stop: StopPolicy,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// Port that was assigned to it.
    pub port: Option<u16>,
    /// Target port of its first endpoint, and the port that its program is told to listen on for it.
    #[serde(default)]
    pub first_port: Option<(u16, u16)>,
    /// Ports that lead to it, as reported.
    pub ports: Vec<PortBinding>,
    /// What could not be honoured, as known at creation.
    pub conditions: Vec<Condition>,
    /// What its spec asks of the controls, for showing it.
    #[serde(default)]
    pub requested: BTreeMap<Control, String>,
    /// How its program is run.
    pub launch: Launch,
}

/// How a program is run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    /// Its root file system.
    pub root: Root,
    /// Program and arguments; never empty.
    pub command: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// Directory to start in; the root when absent.
    pub workdir: Option<String>,
    /// User, or user:group, as written.
    pub user: Option<String>,
    /// Whether its spec requires a user other than root.
    #[serde(default)]
    pub not_root: bool,
    /// Supplementary groups, as written.
    pub extra_groups: Vec<String>,
    /// Host name inside.
    pub hostname: String,
    /// Namespaces of its own.
    pub namespaces: Namespaces,
    /// Mounts, outer ones before inner ones.
    pub mounts: Vec<Mount>,
    /// Paths of a read-only image that can be written all the same.
    #[serde(default)]
    pub writable: Vec<String>,
    /// Paths inside of device nodes of the machine.
    pub devices: Vec<String>,
    /// What is shown at these; records of older versions do not tell.
    #[serde(default)]
    pub nodes: BTreeMap<String, Node>,
    /// What it is connected to.
    #[serde(default)]
    pub network: Network,
    /// Kernel parameters of its own namespaces: paths below `/proc/sys` and their values.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// Paths of the machine that stay out of sight where the root is the machine's.
    pub hidden: Vec<PathBuf>,
    /// Every path of the machine that leads to Evenkeel's own files, which stay out of sight in whatever is shown of it.
    #[serde(default)]
    pub own_files: Vec<PathBuf>,
    /// Capabilities as a bit set of capabilities(7).
    pub capabilities: u64,
    /// System-call filter; none when absent.
    #[serde(default)]
    pub seccomp: Option<SeccompProfile>,
    /// What it may reach by path and by name.
    #[serde(default)]
    pub reach: Reach,
    /// Whether an init process reaps what the program leaves behind.
    pub init: bool,
    /// Limits of the process.
    pub limits: Vec<Limit>,
    /// Value for oom_score_adj.
    pub oom_score_adj: Option<i32>,
    /// Control groups.
    #[serde(default)]
    pub groups: Groups,
    /// Bytes of memory that the supervisor holds it to, where no control group does.
    #[serde(default)]
    pub memory_watch: Option<u64>,
    /// Most bytes that it takes on the disk of the state directory, besides its volumes with names.
    #[serde(default)]
    pub disk: Option<u64>,
    /// Whether it has a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Whether its standard input is kept open for whoever attaches.
    #[serde(default)]
    pub stdin: bool,
    /// Bounds of the kept output.
    pub log: LogBounds,
    /// Who the program is, where that was found out when it was created; else it is looked up at the start.
    #[serde(default)]
    pub identity: Option<Identity>,
}

impl Launch {
    /// Whether anything of it is held to a size on the disk.
    pub fn limits_disk(&self) -> bool {
        self.disk.is_some() || self.mounts.iter().any(|mount| mount.size.is_some())
    }
}

/// A root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Root {
    /// The machine's, read-only.
    Host,
    /// A directory.
    Dir {
        /// Absolute path.
        path: PathBuf,
        /// What becomes of writes.
        layer: Layer,
    },
    /// The layers of an image.
    Layers {
        /// Absolute paths, the uppermost first; never empty.
        lower: Vec<PathBuf>,
        /// What becomes of writes.
        layer: Layer,
    },
    /// A copy of its own, made when it was created.
    Copy {
        /// What was copied: absolute paths, the uppermost first.
        from: Vec<PathBuf>,
        /// Whether writes are refused.
        read_only: bool,
    },
    /// The machine's as it is, where there are no namespaces.
    Shared,
}

impl Root {
    /// Whether it becomes read-only once all mount points are made in it.
    pub fn is_closed(&self) -> bool {
        match self {
            Self::Dir { layer, .. } | Self::Layers { layer, .. } => *layer == Layer::ReadOnly,
            Self::Copy { read_only, .. } => *read_only,
            Self::Host | Self::Shared => false,
        }
    }
}

/// What becomes of writes to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// They go to a layer of the instance.
    Writable,
    /// They are refused; the layer only holds mount points.
    ReadOnly,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// What is mounted.
    pub source: MountSource,
    /// Absolute path inside.
    pub target: String,
    /// Whether it is read-only.
    pub read_only: bool,
    /// Most bytes that a volume may hold.
    #[serde(default)]
    pub size: Option<u64>,
    /// Whether it is removed with its slot: a workspace that is not to be kept.
    #[serde(default)]
    pub goes_with_slot: bool,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountSource {
    /// A path of the machine.
    Path(PathBuf),
    /// A directory of this runtime, made where it is missing and given to the program's user then.
    Volume(PathBuf),
    /// Memory.
    Tmpfs {
        /// Largest size in bytes.
        size: u64,
        /// Permission bits.
        mode: u32,
    },
}

/// One limit of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// The kernel's number of the resource (getrlimit(2)).
    pub resource: u32,
    /// The bound that holds; none is no bound.
    pub soft: Option<u64>,
    /// What the soft bound may be raised to; none is no bound.
    pub hard: Option<u64>,
}

/// Who supervises and runs an instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Boot in which this is true.
    pub boot_id: String,
    /// Supervisor.
    pub supervisor: ProcessKey,
    /// First process: the program, or the init process above it.
    pub first: ProcessKey,
    /// The program.
    pub program: ProcessKey,
    /// When it was started.
    pub started_at: DateTime<Utc>,
    /// User and groups that it runs as.
    pub identity: Identity,
    /// What could not be honoured, as found at the start.
    pub conditions: Vec<Condition>,
}

/// User and groups, as numbers inside the instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

/// The order to stop an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopOrder {
    /// Asks the process to end.
    pub signal: Signal,
    /// Milliseconds until it is killed.
    pub grace_ms: u64,
    /// Why.
    pub cause: StopCause,
}

/// What a supervisor tells about the start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Started {
    /// The program runs.
    Running,
    /// It could not be run.
    Failed(Failure),
    /// Another supervisor has it already.
    Taken,
}
