//! The lifecycle verdict: whether age or idleness ends an instance.
//!
//! One pure function, shared by everybody who asks, so that nothing restarts what something else expired.

use chrono::{DateTime, Utc};

use super::idle::{Limit, Strike, known_activity, limits};
use crate::spec::ServiceSpec;
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
    /// Somebody else changed it, and it is replaced as by age.
    Changed,
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
/// `on_expiry: terminate` alone; every other phase is kept. One that waits for its start or runs, and that somebody else changed,
/// is replaced where no limit has struck.
///
/// Limits hold from the exact instant on. Idleness is judged only where activity is known, counts from the later of last
/// activity and start, begins once it has started as its checks say, and wins over age. While its slot is held, an instance is neither idle, nor recycled, nor replaced;
/// `on_expiry: terminate` is a bound that no hold moves.
pub fn verdict(
    instance: &Instance,
    spec: &ServiceSpec,
    held_until: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Verdict {
    let limits = limits(&instance.phase, known_activity(instance), spec, held_until);
    let due = limits.iter().filter(|next| next.at <= now).min_by_key(|next| next.limit != Limit::MaxIdle);
    let Some(due) = due else {
        let next = limits.first().map(|next| next.at);
        return match is_changed(instance).then(|| held_until.filter(|held| *held > now)) {
            None => Verdict::Keep { next },
            Some(None) => Verdict::Changed,
            Some(Some(held)) => Verdict::Keep { next: Some(next.map_or(held, |next| next.min(held))) },
        };
    };
    let started = instance.phase.started_at().unwrap_or(now);
    let idle_since = instance.last_activity.unwrap_or(started).max(started);
    match due.strike {
        Strike::Stop => Verdict::Idle { since: idle_since },
        Strike::Suspend => Verdict::Suspend { since: idle_since },
        Strike::Recycle => Verdict::Recycle { since: started },
        Strike::Terminate => Verdict::Terminate { since: started },
    }
}

/// Whether it is not what was created any more. What is frozen is replaced once it runs again.
fn is_changed(instance: &Instance) -> bool {
    matches!(instance.phase, Phase::Created | Phase::Running { .. }) && instance.changed_by_others().is_some()
}
