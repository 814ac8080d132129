//! Arithmetic on times that never overflows.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

/// That much later; the end of time where it would lie beyond.
pub(super) fn after(at: DateTime<Utc>, by: Duration) -> DateTime<Utc> {
    TimeDelta::from_std(by).ok().and_then(|by| at.checked_add_signed(by)).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// That much earlier; the beginning of time where it would lie before.
pub(super) fn before(at: DateTime<Utc>, by: Duration) -> DateTime<Utc> {
    TimeDelta::from_std(by).ok().and_then(|by| at.checked_sub_signed(by)).unwrap_or(DateTime::<Utc>::MIN_UTC)
}

/// Most that the clock of a runtime may be ahead: a machine's own engine has this clock, that of a virtual machine is a
/// few seconds off at most.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// When a pause is over that began at `since`. What lies further ahead than clocks may differ was written before the
/// clock was set back, maybe by hours; that pause is over now.
pub(super) fn due(since: DateTime<Utc>, pause: Duration, now: DateTime<Utc>) -> DateTime<Utc> {
    if since > after(now, CLOCK_SKEW) { now } else { after(since, pause) }
}

/// Time between the two; zero where `since` lies in the future.
pub(super) fn elapsed(since: DateTime<Utc>, now: DateTime<Utc>) -> Duration {
    (now - since).to_std().unwrap_or(Duration::ZERO)
}

/// The first of these times, where there is any.
pub(super) fn earliest(times: impl IntoIterator<Item = Option<DateTime<Utc>>>) -> Option<DateTime<Utc>> {
    times.into_iter().flatten().min()
}
