//! The lifecycle verdict: whether age or idleness ends an instance.
//!
//! One pure function, shared by everybody who asks, so that nothing restarts what something else expired.

use chrono::{DateTime, Utc};

use super::time::after;
use crate::spec::{HumanDuration, OnExpiry, OnIdle, ServiceSpec};
use crate::state::{Instance, Phase};

/// What an instance's limits on age and idleness say about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may go on.
    Keep {
        /// When the verdict changes if nothing else does; absent when no limit is running.
        next: Option<DateTime<Utc>>,
    },
    /// It reached its maximum age and is replaced by a new one, as a rollout would.
    Recycle {
        /// When it started.
        since: DateTime<Utc>,
    },
    /// It reached its maximum age and is stopped for good.
    Terminate {
        /// When it started.
        since: DateTime<Utc>,
    },
    /// It had no activity for too long and is stopped until the next use.
    Idle {
        /// Its last activity, or its start where that is later.
        since: DateTime<Utc>,
    },
}

/// Judges a running instance by the `lifecycle` block of its service; every other phase is kept.
///
/// Limits hold from the exact instant on. Idleness is judged only where the runtime reports activity, counts from
/// the later of last activity and start, and wins over age. `on_idle: suspend` keeps the instance as it is: no
/// runtime can freeze one yet, and stopping it would lose the memory that the user asked to keep.
pub fn verdict(instance: &Instance, spec: &ServiceSpec, now: DateTime<Utc>) -> Verdict {
    let (Some(lifecycle), Phase::Running { since, .. }) = (&spec.lifecycle, &instance.phase) else {
        return Verdict::Keep { next: None };
    };
    let end = |from: DateTime<Utc>, limit: Option<HumanDuration>| limit.map(|limit| after(from, limit.get()));

    let idle_since = instance.last_activity.map(|activity| activity.max(*since));
    let idle_end = match lifecycle.on_idle.unwrap_or_default() {
        OnIdle::Stop => idle_since.and_then(|since| end(since, lifecycle.max_idle)),
        OnIdle::Suspend => None,
    };
    if let (Some(since), Some(_)) = (idle_since, idle_end.filter(|end| *end <= now)) {
        return Verdict::Idle { since };
    }

    let age_end = end(*since, lifecycle.max_lifetime);
    if age_end.is_some_and(|end| end <= now) {
        return match lifecycle.on_expiry.unwrap_or_default() {
            OnExpiry::Recycle => Verdict::Recycle { since: *since },
            OnExpiry::Terminate => Verdict::Terminate { since: *since },
        };
    }
    Verdict::Keep { next: idle_end.into_iter().chain(age_end).min() }
}
