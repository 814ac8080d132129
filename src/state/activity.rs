//! Activity of instances as plain data: what was seen of their use, and when.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::spec::RuntimeKind;

/// A kind of use that is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    /// A command is run inside (`keel exec`).
    Exec,
    /// Somebody is attached to its program (`keel attach`).
    Attach,
    /// Its output is followed (`keel logs -f`).
    Logs,
    /// Somebody said that it is in use (`keel touch`, or the API).
    Touch,
    /// A session calls it.
    Session,
    /// A connection from outside to what listens in it is open, where the runtime tells.
    Connection,
    /// It sends or receives over interfaces of its own.
    Network,
    /// It computes.
    Cpu,
}

impl Signal {
    /// Every signal, in the order in which they are shown.
    pub const ALL: [Self; 8] =
        [Self::Exec, Self::Attach, Self::Logs, Self::Touch, Self::Session, Self::Connection, Self::Network, Self::Cpu];

    /// The name for tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::Logs => "logs",
            Self::Touch => "touch",
            Self::Session => "session",
            Self::Connection => "connection",
            Self::Network => "network",
            Self::Cpu => "cpu",
        }
    }

    /// How much of `lifecycle.max_idle` counts after the use has ended, in percent. While it lasts, every use counts as
    /// one; whoever has followed the output has only looked on, and keeps the instance for half as long as one who gave
    /// it something to do.
    pub const fn weight(self) -> u8 {
        match self {
            Self::Exec | Self::Attach | Self::Touch | Self::Session | Self::Connection | Self::Network | Self::Cpu => {
                100
            }
            Self::Logs => 50,
        }
    }
}

/// What was seen of one kind of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Use {
    /// When it was seen last; now while it is ongoing.
    pub last: DateTime<Utc>,
    /// From when on a limit counts after it: later than `last` by the time since then in which nobody watched.
    pub counted: DateTime<Utc>,
    /// Whether it still lasts.
    pub ongoing: bool,
}

/// What was seen of the use of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    /// Since when somebody watches.
    pub watched_since: DateTime<Utc>,
    /// From when on a limit counts where nothing was seen: what was before is not known, so that it counts as use.
    pub counted_since: DateTime<Utc>,
    /// By signal; those that were never seen are absent.
    pub uses: BTreeMap<Signal, Use>,
}

impl Activity {
    /// Nothing was seen, by one who watches from now on.
    pub const fn watched_from(now: DateTime<Utc>) -> Self {
        Self { watched_since: now, counted_since: now, uses: BTreeMap::new() }
    }

    /// Notes a use. One that was seen later already stays.
    pub fn note(&mut self, signal: Signal, at: DateTime<Utc>) {
        let seen = self.uses.entry(signal).or_insert(Use { last: at, counted: at, ongoing: false });
        (seen.last, seen.counted) = (seen.last.max(at), seen.counted.max(at));
    }

    /// The last use that was seen, or since when somebody watches where none was; none while a use lasts.
    pub fn last_use(&self) -> Option<DateTime<Utc>> {
        let lasts = self.uses.values().any(|seen| seen.ongoing);
        (!lasts).then(|| self.uses.values().map(|seen| seen.last).fold(self.watched_since, DateTime::max))
    }

    /// Nobody watched for so long until now, so that this time does not count as idle. Less than nothing where the clock was
    /// set back.
    pub fn was_unseen(&mut self, time: TimeDelta, now: DateTime<Utc>) {
        let moved = |at: DateTime<Utc>| at.checked_add_signed(time).unwrap_or(now).min(now);
        self.counted_since = moved(self.counted_since);
        for seen in self.uses.values_mut() {
            seen.counted = moved(seen.counted);
        }
    }
}

/// What is remembered of the use of one instance, so that it outlives the controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchedInstance {
    /// Runtime that runs it.
    pub runtime: RuntimeKind,
    /// The runtime's own id.
    pub runtime_id: String,
    /// When its run started.
    pub run: DateTime<Utc>,
    /// Since when it was watched.
    pub watched_since: DateTime<Utc>,
    /// When each signal was seen last.
    pub last: BTreeMap<Signal, DateTime<Utc>>,
    /// From when on limits count where nothing was seen; `watched_since` where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted_since: Option<DateTime<Utc>>,
    /// From when on limits count after each signal; `last` for those that are absent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub counted: BTreeMap<Signal, DateTime<Utc>>,
    /// Since when it was idle, where it was suspended for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended: Option<DateTime<Utc>>,
    /// The end of its life that was announced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announced: Option<DateTime<Utc>>,
}

impl WatchedInstance {
    /// What was seen of it.
    pub fn activity(&self) -> Activity {
        let seen = |(signal, last): (&Signal, &DateTime<Utc>)| {
            let counted = self.counted.get(signal).unwrap_or(last);
            (*signal, Use { last: *last, counted: *counted, ongoing: false })
        };
        Activity {
            watched_since: self.watched_since,
            counted_since: self.counted_since.unwrap_or(self.watched_since),
            uses: self.last.iter().map(seen).collect(),
        }
    }
}

/// What is remembered of the use of a deployment's instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivityRecord {
    /// Until when somebody watched. The time between that and the next watcher is not known, and does not count as idle.
    pub seen_at: DateTime<Utc>,
    /// The instances.
    pub instances: Vec<WatchedInstance>,
}
