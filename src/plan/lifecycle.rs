//! The lifecycle verdict: whether age or idleness ends an instance.
//!
//! One pure function, shared by everybody who asks, so that nothing restarts what something else expired.

use chrono::{DateTime, Utc};

use super::idle::{Limit, Strike, limits};
use crate::spec::ServiceSpec;
use crate::state::Instance;

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
    /// It had no activity for too long and is frozen until the next use.
    Suspend {
        /// Its last activity, or its start where that is later.
        since: DateTime<Utc>,
    },
}

/// Judges an instance by the `lifecycle` block of its service: one that runs, and one that is frozen by
/// `on_expiry: terminate` alone; every other phase is kept.
///
/// Limits hold from the exact instant on. Idleness is judged only where activity is known, counts from the later of last
/// activity and start, and wins over age. While its slot is held, an instance is neither idle nor recycled;
/// `on_expiry: terminate` is a bound that no hold moves.
pub fn verdict(
    instance: &Instance,
    spec: &ServiceSpec,
    held_until: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Verdict {
    let limits = limits(&instance.phase, instance.last_activity, spec, held_until);
    let due = limits.iter().filter(|next| next.at <= now).min_by_key(|next| next.limit != Limit::MaxIdle);
    let Some(due) = due else { return Verdict::Keep { next: limits.first().map(|next| next.at) } };
    let started = instance.phase.started_at().unwrap_or(now);
    let idle_since = instance.last_activity.unwrap_or(started).max(started);
    match due.strike {
        Strike::Stop => Verdict::Idle { since: idle_since },
        Strike::Suspend => Verdict::Suspend { since: idle_since },
        Strike::Recycle => Verdict::Recycle { since: started },
        Strike::Terminate => Verdict::Terminate { since: started },
    }
}
