//! What the views of one deployment are computed from.

use std::collections::BTreeMap;

use crate::plan::{ClaimFigures, JobStates, Plan, PoolFigures};
use crate::state::{Condition, DesiredDeployment, Fate, Instance, InstanceId};

/// How a pool stands.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PoolFacts {
    /// Its members.
    pub members: PoolFigures,
    /// How claims went.
    pub claims: ClaimFigures,
    /// Claims that wait for a member.
    pub waiting: u32,
    /// Bytes of memory that its free members hold; absent until it was measured.
    pub memory_bytes: Option<u64>,
}

/// What the views of a deployment are computed from.
#[derive(Debug)]
pub struct Facts<'a> {
    /// Its name.
    pub deployment: &'a str,
    /// What is declared, or what becomes of the instances without a declaration.
    pub desired: Result<&'a DesiredDeployment, Fate>,
    /// Its instances, those with a step under way pending or stopping.
    pub observed: &'a [Instance],
    /// What each service asks for and its runtime does not give, by service.
    pub unsupported: &'a BTreeMap<String, Vec<Condition>>,
    /// The plan that was made last.
    pub plan: &'a Plan,
    /// How its jobs and cron services stand.
    pub jobs: &'a JobStates,
    /// How its pools stand, by service.
    pub pools: &'a BTreeMap<String, PoolFacts>,
    /// Whether anybody takes the steps that are planned; commands that only look do not.
    pub acting: bool,
    /// Whether any step is under way.
    pub working: bool,
    /// Why it runs on its last good version, where it does.
    pub stale: Option<&'a str>,
    /// Why it is kept though nothing declares it, where it is.
    pub kept: Option<&'a str>,
    /// Where it was declared and how that ends, where nobody watches its directory any more.
    pub unwatched: Option<&'a str>,
    /// Why it stays though its declaration is gone from the source, where pruning is held.
    pub held: Option<&'a str>,
    /// How far the making of instances is, in the runtime's words.
    pub progress: &'a BTreeMap<InstanceId, String>,
    /// Whether its removal was asked for by name.
    pub removing: bool,
}
