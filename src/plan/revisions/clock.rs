//! A clock that can be stopped: time without progress, as far as it counts.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::plan::time::{after, elapsed};

/// Most of the time without progress that a controller which is killed forgets: what was spent is noted in steps of this
/// length, each of which is one write to the database.
pub const CLOCK_STEP: Duration = Duration::from_secs(15);

/// Time without progress, as far as it counts. A wall clock that is set back makes it no shorter than what was spent
/// before it was last stopped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadlineClock {
    /// Time spent until it was last stopped.
    spent: Duration,
    /// Since when it runs; absent while it stands.
    running: Option<DateTime<Utc>>,
}

impl DeadlineClock {
    /// Begins anew.
    pub fn reset(&mut self, now: DateTime<Utc>) {
        *self = Self { spent: Duration::ZERO, running: self.running.map(|_| now) };
    }

    /// Lets it run or stand from now on.
    pub fn run(&mut self, runs: bool, now: DateTime<Utc>) {
        match (runs, self.running) {
            (true, None) => self.running = Some(now),
            (false, Some(since)) => *self = Self { spent: self.spent + elapsed(since, now), running: None },
            _ => {}
        }
    }

    /// Time spent so far.
    pub fn spent(&self, now: DateTime<Utc>) -> Duration {
        self.spent + self.running.map_or(Duration::ZERO, |since| elapsed(since, now))
    }

    /// When that much will have been spent; none while it stands.
    pub fn reaches(&self, limit: Duration, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.running.map(|_| after(now, limit.saturating_sub(self.spent(now))))
    }

    /// Counts what was spent until now, so that it outlives the controller.
    pub fn count_up(&mut self, now: DateTime<Utc>) {
        if let Some(since) = self.running {
            *self = Self { spent: self.spent + elapsed(since, now), running: Some(now) };
        }
    }

    /// The same where a step of [`CLOCK_STEP`] is over.
    pub(super) fn step(&mut self, now: DateTime<Utc>) {
        if self.running.is_some_and(|since| elapsed(since, now) >= CLOCK_STEP) {
            self.count_up(now);
        }
    }

    /// When the step is over that goes on; none while it stands.
    pub(super) fn next_step(&self) -> Option<DateTime<Utc>> {
        self.running.map(|since| after(since, CLOCK_STEP))
    }

    /// Forgets since when it runs.
    pub(super) const fn forget_running(&mut self) {
        self.running = None;
    }
}
