//! What a decision is made from.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use super::Lives;
use super::PoolRecord;
use super::{RetireFailure, Retired};
use crate::spec::{Depends, Revision, RuntimeKind};
use crate::state::{DesiredDeployment, ErrorKind, Fate, Instance, InstanceId, JobRecord, Volumes};

/// Everything that a decision about one deployment is made from.
#[derive(Debug, Clone)]
pub struct Input<'a> {
    /// The deployment's name.
    pub deployment: &'a str,
    /// What is declared, or what becomes of the instances without a declaration.
    pub desired: Result<&'a DesiredDeployment, Fate>,
    /// Its instances on every runtime, in any order. Those with a step under way are [`Phase::Pending`] (being
    /// made or started) or [`Phase::Stopping`] (being removed) and are left alone. One that stays in its slot while it is
    /// stopped or resumed is given as it is; what is planned for it again is not done twice.
    ///
    /// [`Phase::Pending`]: crate::state::Phase::Pending
    /// [`Phase::Stopping`]: crate::state::Phase::Stopping
    pub observed: &'a [Instance],
    /// Runtimes on which something shared (a network) exists for it.
    pub shared: &'a BTreeSet<RuntimeKind>,
    /// Runtimes that nothing is known of.
    pub unreachable: &'a BTreeMap<RuntimeKind, Unreachable>,
    /// What happened before and no runtime remembers.
    pub history: &'a History,
    /// What becomes of named volumes when the deployment goes.
    pub volumes: Volumes,
    /// The time now.
    pub now: DateTime<Utc>,
}

/// Why nothing is known of a runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unreachable {
    /// It does not answer, and may at any time; what it said.
    Silent(String),
    /// There is none here, and there will be none as long as this controller runs; why, and what to do.
    Absent(String),
}

/// What happened before and no runtime remembers. Losing it costs a quicker retry or a later reaping, and, for jobs whose
/// instances have gone, another run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// Failed calls in a row, by service and slot.
    pub failures: BTreeMap<(String, u32), Failure>,
    /// Failed calls in a row to stop, freeze or remove something that is still there. Whoever plans forgets those of what is
    /// gone.
    pub retiring: BTreeMap<Retired, RetireFailure>,
    /// When what nothing declares was first seen, by the keys that [`sightings`](super::sightings) gives. Whoever
    /// plans an orphaned deployment records the missing ones with the time of that planning, and forgets those that
    /// are not given any more; until a key is recorded, what it names is left alone.
    pub orphans: BTreeMap<String, DateTime<Utc>>,
    /// Orphans of other deployments that are being removed.
    pub reaped_elsewhere: usize,
    /// Somebody asked that nothing be created, stopped or removed.
    pub suspended: bool,
    /// What is remembered of jobs, by service, as [`remember`](super::remember) gives it.
    pub jobs: BTreeMap<String, JobRecord>,
    /// Since when services wait for others, as [`awaited`](super::awaited) gives it after each planning.
    pub awaited: BTreeMap<Dependency, Awaited>,
    /// On what each service depends, by service, as [`dependencies`](super::dependencies) gives it before each planning:
    /// it tells in which order what is not declared any more ends.
    pub dependencies: BTreeMap<String, BTreeSet<String>>,
    /// Instances that are being stopped or let run on and stay in their slots.
    pub kept_under_way: BTreeSet<InstanceId>,
    /// What users ordered of the lives of instances, and which were suspended for idleness.
    pub lives: Lives,
    /// Who has which member of pools, and who waits for one, by service.
    pub pools: BTreeMap<String, PoolRecord>,
}

/// A service and another one of its deployment that it depends on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Dependency {
    /// The service that waits.
    pub service: String,
    /// The one that it waits for.
    pub on: String,
}

/// A dependency that is waited for, or was given up.
#[derive(Debug, Clone, PartialEq)]
pub struct Awaited {
    /// Since when.
    pub since: DateTime<Utc>,
    /// Template of the service that waits; another one waits afresh.
    pub revision: Revision,
    /// As it was declared; declared otherwise it is waited for afresh.
    pub depends: Depends,
}

/// Failed calls in a row for one slot.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// Template that was to be run; another one starts afresh.
    pub revision: Revision,
    /// How many in a row; at least 1.
    pub count: u32,
    /// When the last one failed.
    pub at: DateTime<Utc>,
    /// Kind of the last one.
    pub kind: ErrorKind,
    /// Whether the same call may succeed later.
    pub retryable: bool,
    /// What the runtime said.
    pub message: String,
}
