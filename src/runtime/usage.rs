//! What instances use of the machine.

use std::collections::BTreeSet;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Result;
use super::accepted::{self, Uncounted};
use crate::state::InstanceRef;

/// Tells what instances use.
#[async_trait]
pub trait Stats: Send + Sync {
    /// What an instance used so far, and uses now. Costs a few reads or one request; nothing is watched.
    ///
    /// # Errors
    /// `NotFound` when the instance does not exist, `Rejected` when it does not run.
    async fn stats(&self, instance: &InstanceRef) -> Result<Usage>;

    /// Whether it tells of connections, those to frozen instances included.
    fn tells_connections(&self) -> bool {
        false
    }
}

impl Usage {
    /// Nothing that is known but the time.
    pub const fn nothing(at: DateTime<Utc>) -> Self {
        Self {
            at,
            cpu_usec: 0,
            memory: None,
            memory_limit: None,
            pids: None,
            pids_limit: None,
            read_bytes: None,
            written_bytes: None,
            received_bytes: None,
            sent_bytes: None,
            accepted: Err(Uncounted::Untold),
            connections: None,
        }
    }
}

/// What an instance uses. What a runtime does not know is absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// When this was true.
    pub at: DateTime<Utc>,
    /// Processor time since its start, in microseconds.
    pub cpu_usec: u64,
    /// Memory in use, in bytes, without cached files that are not in use.
    pub memory: Option<u64>,
    /// Most memory that it may have, in bytes; absent without a limit.
    pub memory_limit: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Most processes and threads; absent without a limit.
    pub pids_limit: Option<u64>,
    /// Bytes read from disks since its start.
    pub read_bytes: Option<u64>,
    /// Bytes written to disks since its start.
    pub written_bytes: Option<u64>,
    /// Bytes received by network interfaces of its own.
    pub received_bytes: Option<u64>,
    /// Bytes sent by network interfaces of its own.
    pub sent_bytes: Option<u64>,
    /// TCP connections that were accepted in a network of its own since its start, from outside and from inside; why that is not
    /// known, where it is not, which is told to nobody outside of this program.
    #[serde(default = "accepted::untold", with = "accepted")]
    pub accepted: std::result::Result<u64, Uncounted>,
    /// Connections from outside to what listens in it that are open now, each by what tells it from the others. They are told
    /// to nobody outside of this program.
    #[serde(skip)]
    pub connections: Option<BTreeSet<String>>,
}
