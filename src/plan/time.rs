//! Arithmetic on times that never overflows.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

/// That much later; the end of time where it would lie beyond.
pub(super) fn after(at: DateTime<Utc>, by: Duration) -> DateTime<Utc> {
    TimeDelta::from_std(by).ok().and_then(|by| at.checked_add_signed(by)).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// Time between the two; zero where `since` lies in the future.
pub(super) fn elapsed(since: DateTime<Utc>, now: DateTime<Utc>) -> Duration {
    (now - since).to_std().unwrap_or(Duration::ZERO)
}
