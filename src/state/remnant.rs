//! What is left of instances that are gone, and what nothing needs any more: it is no instance, so nothing else would come
//! upon it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// Something of one owner that belongs to no instance and that nothing needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Remnant {
    /// What it is.
    pub kind: RemnantKind,
    /// What the machine calls it: a path, a name, or the number of a process.
    pub name: String,
    /// Tells it from another one that has its name later, as the start time of a process does.
    pub identity: String,
    /// Why nothing needs it.
    pub reason: String,
    /// When it was made or last used, where that is known.
    pub since: Option<DateTime<Utc>>,
}

/// What something is that is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RemnantKind {
    /// A process that supervises an instance.
    Supervisor,
    /// A control group, with the processes in it.
    ControlGroup,
    /// A mount.
    Mount,
    /// A network device.
    Device,
    /// A directory.
    Directory,
    /// An image.
    Image,
}

impl RemnantKind {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Supervisor, Self::ControlGroup, Self::Mount, Self::Device, Self::Directory, Self::Image];
}
