//! A clock that can be stopped: time without progress, as far as it counts.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::plan::time::{after, elapsed};

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

    /// Forgets since when it runs.
    pub(super) const fn forget_running(&mut self) {
        self.running = None;
    }
}
