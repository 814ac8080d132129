//! Pure decisions: what to do next for one deployment, and why.
//!
//! Planning is a function of its [`Input`]: no clock, no randomness, no I/O. Jitter comes from a hash of the
//! instance's name. What it returns is a value: comparable, printable one line per step, serialisable; a dry run is
//! printing it. It plans only what may be done *now*; when a step's effect is observed, it is asked again. What is
//! expected to follow is the [`forecast()`]: the same planning, over and over, on a model of the world.

mod action;
mod availability;
mod backoff;
mod bridge;
mod cause;
mod check;
mod depends;
mod diff;
mod draft;
mod fold;
mod forecast;
pub mod idle;
mod input;
mod job;
mod lifecycle;
mod lives;
mod model;
mod need;
mod order;
mod planner;
mod pool;
mod remnants;
mod render;
mod replicas;
mod rest;
mod restart;
mod retire;
pub mod revisions;
mod rollout;
mod scale;
mod snapshot;
mod time;
mod undeclared;
mod unproven;
mod wait;
mod wake;

pub use action::{Action, Lane, Step};
pub use backoff::{
    PROBATION, PROVEN_RUN, RESTART_DELAY, RESTART_DELAY_MAX, RETRY_DELAY, RETRY_DELAY_MAX, STABLE_RUN, backoff,
};
pub use cause::Cause;
pub use check::{Violation, check};
use chrono::{DateTime, Utc};
pub use depends::awaited;
pub use forecast::{End, FORECAST_LOOKS, FORECAST_PLANS, Forecast, Stage, forecast};
pub use input::{Awaited, Dependency, Failure, History, Input, Unreachable};
pub use job::{
    ActiveRun, CLOCK_SET_BACK, JOB_DELAY_MAX, JobState, JobStates, MISSED_RUN_AGE, RUNS_AT_ONCE, RUNS_REMEMBERED,
    Schedule, job_states, remember,
};
pub use lifecycle::{Verdict, verdict};
pub use lives::{HOLD_MOST, LifeOrders, Lives, Stopped};
pub use order::dependencies;
pub use planner::plan;
pub use pool::{
    ClaimFigures, Distribution, MemberUse, PoolFigures, PoolRecord, REFILL_AT_ONCE, RENEW_LEAD, claim_figures, cold_at,
    pool_figures,
};
pub use remnants::{Found as FoundRemnant, Remains};
pub(crate) use render::replicas;
pub use rest::stands_for_slot;
pub use retire::{RETIRE_DELAY, RETIRE_DELAY_MAX, RetireCall, RetireFailure, Retired};
pub use scale::{
    Load, Mean, Metric, SCALE_EVERY, SCALE_STABILISATION, SCALE_TOLERANCE, ScaleDecision, ScaleRule, Scaling,
};
use serde::Serialize;
pub use snapshot::Snapshot;
pub use undeclared::{ORPHAN_MIN_AGE, ORPHAN_PACE, ORPHAN_SETTLE, ORPHANS_AT_ONCE, sightings};
pub use wait::{Spared, Wait};
pub use wake::used_by_waits;

/// What to do now for one deployment, what is being waited for, and when to look again.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Plan {
    /// Run side by side, each in order; one lane per instance. Sorted by service, slot and revision.
    pub lanes: Vec<Lane>,
    /// Why more is not done now.
    pub waits: Vec<Wait>,
    /// The earliest time at which looking again can change something; absent when only an event can.
    pub next_look: Option<DateTime<Utc>>,
}

impl Plan {
    /// Whether nothing is to be done now. A plan may be empty and still wait.
    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Leaves out all that was to be done for a service, for which this is waited first.
    pub fn hold(&mut self, service: &str, wait: Wait) {
        let is_other = |lane: &Lane| {
            let id = lane.steps.first().and_then(|step| step.action.instance());
            id.is_none_or(|id| id.service != service)
        };
        self.lanes.retain(is_other);
        self.waits.push(wait);
    }

    /// Every step, lane by lane.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.lanes.iter().flat_map(|lane| &lane.steps)
    }
}
