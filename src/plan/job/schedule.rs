//! When a cron service is due.

use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use croner::Cron;

use crate::plan::time::{after, elapsed};
use crate::spec::ServiceSpec;
use crate::state::ScheduleMark;

/// Longest time after which a run is made up for that was due while nobody could start it: a daily run that a night's
/// downtime hid is wanted, one that is days late is a surprise.
pub const MISSED_RUN_AGE: Duration = Duration::from_secs(24 * 3600);

/// How far ahead of the clock the last run may lie. A clock that was set back further than that was wrong before, and a
/// schedule goes on from now instead of waiting for that time to come again.
pub const CLOCK_SET_BACK: Duration = Duration::from_secs(24 * 3600);

/// A cron expression in its time zone.
///
/// A single time of day that a change of clocks leaves out is due right after the gap, and one that it repeats is due
/// once, the first time. Several times of day, ranges and steps go by the wall clock: what is left out is left out, what is
/// repeated is due twice.
#[derive(Debug, Clone)]
pub struct Schedule {
    cron: Cron,
    zone: Tz,
}

impl Schedule {
    /// The schedule of a service; none where it has none. The validator has read both parts before.
    pub fn of(spec: &ServiceSpec) -> Option<Self> {
        let cron = Cron::from_str(spec.schedule.as_deref()?).ok()?;
        let zone = spec.time_zone.as_deref().map_or(Ok(Tz::UTC), Tz::from_str).ok()?;
        Some(Self { cron, zone })
    }

    /// The next time after that one; none where there is none any more.
    pub fn next(&self, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let next = self.cron.find_next_occurrence(&time.with_timezone(&self.zone), false).ok()?;
        Some(next.with_timezone(&Utc))
    }

    /// The last time up to that one.
    fn last(&self, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let last = self.cron.find_previous_occurrence(&time.with_timezone(&self.zone), true).ok()?;
        Some(last.with_timezone(&Utc)).filter(|last| *last <= time)
    }

    /// The last of the times after `done_until` that have come, where it is not too long ago.
    pub(super) fn due(&self, done_until: DateTime<Utc>, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.next(done_until).filter(|first| *first <= now)?;
        self.last(now).filter(|last| *last > done_until && elapsed(*last, now) <= MISSED_RUN_AGE)
    }
}

/// The expression and its time zone as they are remembered.
pub(super) fn text(spec: &ServiceSpec) -> String {
    let (schedule, zone) = (spec.schedule.as_deref().unwrap_or_default(), spec.time_zone.as_deref().unwrap_or("UTC"));
    format!("{schedule} {zone}")
}

/// Up to when a schedule is worked off: as it was remembered, or until now where it is another one, or where the clock was
/// set back far.
pub(super) fn done_until(mark: Option<&ScheduleMark>, spec: &ServiceSpec, now: DateTime<Utc>) -> DateTime<Utc> {
    match mark.filter(|mark| mark.schedule == text(spec)) {
        Some(mark) if mark.done_until <= after(now, CLOCK_SET_BACK) => mark.done_until,
        _ => now,
    }
}
