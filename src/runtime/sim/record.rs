//! What happened, for checks over time.

use std::collections::{BTreeMap, VecDeque};

use chrono::{DateTime, Utc};

use crate::state::{Exit, InstanceId, Owner, StopCause};

/// Changes that are remembered; older ones are forgotten. A simulated day of 1,000 instances restarting every few
/// minutes is about that many, at some 300 bytes each.
pub const MAX_CHANGES: usize = 200_000;

/// The calls that a runtime takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the variants are the methods of the runtime traits")]
pub enum Method {
    Capabilities,
    List,
    Inspect,
    Events,
    EnsureImage,
    Digest,
    Create,
    Start,
    Pause,
    Resume,
    Stop,
    Remove,
    Teardown,
    Logs,
    Exec,
    Dial,
    Stats,
}

impl Method {
    /// Whether it may change something on the machine.
    pub(super) const fn acts(self) -> bool {
        !matches!(
            self,
            Self::Capabilities
                | Self::List
                | Self::Inspect
                | Self::Events
                | Self::Digest
                | Self::Logs
                | Self::Exec
                | Self::Dial
                | Self::Stats
        )
    }
}

/// One thing that happened to one instance, and its service's numbers right after it.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// When.
    pub at: DateTime<Utc>,
    /// Whose instance it is.
    pub owner: Owner,
    /// Which one.
    pub id: InstanceId,
    /// Its id on the runtime.
    pub runtime_id: String,
    /// What happened.
    pub what: What,
    /// The numbers of its service right after it.
    pub counts: Counts,
}

/// What happened to an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// It came into being.
    Created,
    /// It runs.
    Started {
        /// Whether it takes traffic at once.
        ready: bool,
    },
    /// It takes traffic from now on.
    Ready,
    /// It takes no traffic from now on, though it runs.
    NotReady,
    /// It was asked to end, for this reason.
    StopAsked(StopCause),
    /// It ended.
    Ended(Exit),
    /// It was frozen, by a call or behind the controller's back.
    Frozen,
    /// It runs on after it was frozen.
    Resumed,
    /// It was removed.
    Removed {
        /// Whether it was running until then.
        running: bool,
        /// Whether a call of its owner did it, rather than somebody behind its back.
        asked: bool,
    },
}

/// How many instances a service has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Running and taking traffic.
    pub ready: u32,
    /// Running.
    pub running: u32,
    /// Created and never started, or running: those that take part in a rollout.
    pub live: u32,
    /// Whatever their phase.
    pub total: u32,
}

/// What happened and how often the runtime was called.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub calls: BTreeMap<Method, u64>,
    pub changes: VecDeque<Change>,
    pub forgotten: u64,
    pub trespasses: u64,
}

impl Record {
    pub fn called(&mut self, method: Method) {
        *self.calls.entry(method).or_default() += 1;
    }

    pub fn push(&mut self, change: Change) {
        if self.changes.len() == MAX_CHANGES {
            self.changes.pop_front();
            self.forgotten += 1;
        }
        self.changes.push_back(change);
    }
}
