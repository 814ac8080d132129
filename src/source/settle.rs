//! What may be the middle of a save: seen once, it does not count yet.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};

/// Since when things have been in a state that may be the middle of a save.
#[derive(Debug)]
pub(super) struct Settling<K> {
    since: BTreeMap<K, Since>,
    /// Seen in the scan under way; the others are over.
    touched: BTreeMap<K, Since>,
}

#[derive(Debug, Clone, Copy)]
struct Since {
    at: DateTime<Utc>,
    needs: Duration,
}

impl Since {
    fn left(&self, now: DateTime<Utc>) -> Duration {
        let passed = (now - self.at).to_std().unwrap_or_default();
        self.needs.saturating_sub(passed)
    }
}

impl<K> Default for Settling<K> {
    fn default() -> Self {
        Self { since: BTreeMap::new(), touched: BTreeMap::new() }
    }
}

impl<K: Ord + Clone> Settling<K> {
    /// Notes that something is in such a state now, and tells whether it has been for as long as it takes to count.
    pub(super) fn is_settled(&mut self, key: &K, needs: Duration, now: DateTime<Utc>) -> bool {
        let before = self.since.get(key).copied();
        // A clock that went back starts the time again.
        let at = before.map(|since| since.at).filter(|at| *at <= now).unwrap_or(now);
        let since = Since { at, needs };
        self.touched.insert(key.clone(), since);
        since.left(now).is_zero()
    }

    /// Since when something is in such a state that was noted in the scan under way.
    pub(super) fn since(&self, key: &K) -> Option<DateTime<Utc>> {
        self.touched.get(key).map(|since| since.at)
    }

    /// Ends a scan: forgets what was not noted in it, and tells how long until the next of them may count.
    pub(super) fn finish(&mut self, now: DateTime<Utc>) -> Option<Duration> {
        self.since = std::mem::take(&mut self.touched);
        self.since.values().map(|since| since.left(now)).filter(|left| !left.is_zero()).min()
    }
}
