//! Mounts of an instance.

use serde::{Deserialize, Serialize};

use super::schema::DNS_LABEL;
use super::{Bytes, FileMode, StorageTier};

/// Where a workspace is mounted unless something else is written.
const WORKSPACE: &str = "/workspace";

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Storage {
    /// A path of the machine.
    Bind {
        /// Path on the machine; relative ones start at the file that declares them.
        source: String,
        /// Absolute path inside.
        #[schemars(extend("pattern" = "^/"))]
        target: String,
        /// Whether it is read-only; `false` when nothing is written.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        readonly: Option<bool>,
    },
    /// A volume with a name; it outlives the deployment unless told otherwise.
    Named {
        /// Name of the volume, a DNS label.
        #[schemars(extend("pattern" = DNS_LABEL))]
        name: String,
        /// Absolute path inside.
        #[schemars(extend("pattern" = "^/"))]
        target: String,
        /// Whether it is read-only; `false` when nothing is written.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        readonly: Option<bool>,
        /// Largest size.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<Bytes>,
        /// How fast it is; `local` when nothing is written.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tier: Option<StorageTier>,
    },
    /// A volume that goes with the instance.
    Anonymous {
        /// Absolute path inside.
        #[schemars(extend("pattern" = "^/"))]
        target: String,
        /// How fast it is; `local` when nothing is written.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tier: Option<StorageTier>,
    },
    /// A directory of the slot: every instance in it has the same one, over restarts and rollouts. It goes with the slot, when
    /// there are fewer replicas or the service is removed, unless it is kept.
    Workspace {
        /// Absolute path inside; `/workspace` when nothing is written.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(extend("pattern" = "^/", "default" = "/workspace"))]
        target: Option<String>,
        /// Whether it stays when its slot goes, as a named volume does; `false` when nothing is written.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(extend("default" = false))]
        keep: Option<bool>,
    },
    /// Memory.
    Tmpfs {
        /// Absolute path inside.
        #[schemars(extend("pattern" = "^/"))]
        target: String,
        /// Largest size.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<Bytes>,
        /// Permission bits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<FileMode>,
    },
    /// A bucket of an object store.
    S3 {
        /// Name of the bucket.
        bucket: String,
        /// Only keys that begin with this.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        prefix: Option<String>,
        /// Absolute path inside.
        #[schemars(extend("pattern" = "^/"))]
        target: String,
        /// Whether it is read-only; `false` when nothing is written.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        readonly: Option<bool>,
        /// Address of the store.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        endpoint: Option<String>,
        /// Name of the secret that holds the credentials.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        credentials: Option<String>,
    },
}

impl Storage {
    /// Absolute path inside the instance.
    pub fn target(&self) -> &str {
        match self {
            Self::Bind { target, .. }
            | Self::Named { target, .. }
            | Self::Anonymous { target, .. }
            | Self::Tmpfs { target, .. }
            | Self::S3 { target, .. } => target,
            Self::Workspace { target, .. } => target.as_deref().unwrap_or(WORKSPACE),
        }
    }

    /// Whether it is a workspace that outlives its slot.
    pub const fn is_kept_workspace(&self) -> bool {
        matches!(self, Self::Workspace { keep: Some(true), .. })
    }

    /// Name of the volume that holds the workspace of a slot. No named volume has one like it: a DNS label has no dot.
    pub fn workspace_name(service: &str, slot: u32) -> String {
        format!("{service}.{slot}")
    }
}
