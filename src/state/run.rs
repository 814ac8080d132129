//! Runs of jobs: what identifies one, and what is remembered of it when its instances have gone.

use std::collections::BTreeSet;
use std::str::FromStr;

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use serde::{Deserialize, Deserializer, Serialize};

use super::{BadIdentity, Exit};
use crate::spec::{Revision, RuntimeKind};

/// Milliseconds of a second.
const SECOND: i64 = 1000;

/// Identity of one run of a job or cron service: a time, in milliseconds since the epoch.
///
/// A run by a schedule has the time that it was due at, so that whoever makes it, however often, makes the same one; that
/// is a whole second. Every other run has the time at which it was first planned or asked for, which never is a whole
/// second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(i64);

impl RunId {
    /// The run that a schedule asks for at that time; parts of a second are left out.
    pub fn scheduled(at: DateTime<Utc>) -> Self {
        Self(at.trunc_subsecs(0).timestamp_millis())
    }

    /// A run that begins now for another reason, after all of those that are known.
    pub fn after(last: Option<Self>, now: DateTime<Utc>) -> Self {
        let earliest = last.map_or(i64::MIN, |last| last.0.saturating_add(1));
        let id = now.timestamp_millis().max(earliest);
        Self(if id % SECOND == 0 { id.saturating_add(1) } else { id })
    }

    /// Whether a schedule asked for it.
    pub const fn is_scheduled(self) -> bool {
        self.0 % SECOND == 0
    }

    /// The time that it has its name from.
    pub fn at(self) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH.checked_add_signed(TimeDelta::milliseconds(self.0)).unwrap_or(DateTime::<Utc>::MAX_UTC)
    }
}

impl std::fmt::Display for RunId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for RunId {
    type Err = BadIdentity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self).map_err(|_| BadIdentity(format!("{text:?} is not a run")))
    }
}

/// What outlives the instances of a job or cron service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Finished runs, in order of their identity.
    #[serde(default)]
    pub runs: Vec<RunRecord>,
    /// Runs that somebody asked for and that have not begun.
    #[serde(default)]
    pub triggered: Vec<RunId>,
    /// How far a schedule is worked off.
    #[serde(default)]
    pub schedule: Option<ScheduleMark>,
    /// Runs under way, in order of their identity: those of which an instance was made, and those that are limited by
    /// `job.active_deadline` from the moment at which they were to begin. Records of old have one run, as `begun`.
    #[serde(default, alias = "begun", deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub active: Vec<ActiveRecord>,
}

/// A run under way: what counts of it together with what its instances tell, which anybody may remove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveRecord {
    /// Which.
    pub run: RunId,
    /// The template that it is made from.
    pub revision: Revision,
    /// When it was to begin, or its first instance was created.
    pub since: DateTime<Utc>,
    /// Completions that have succeeded, by index.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub done: BTreeSet<u32>,
    /// Completions that were tried, by index; not those that succeeded at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tried: Vec<Tried>,
}

impl ActiveRecord {
    /// Whether an instance of it was ever made.
    pub fn was_made(&self) -> bool {
        !self.done.is_empty() || !self.tried.is_empty()
    }

    /// What is remembered of the tries of a completion.
    pub fn tried(&self, index: u32) -> Option<&Tried> {
        self.tried.iter().find(|one| one.index == index)
    }
}

/// What the tries of one completion have come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// Its index.
    pub index: u32,
    /// The last attempt that was made.
    pub attempt: u32,
    /// Attempts that failed.
    pub failures: u32,
    /// How the last one failed, where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Exit>,
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ActiveRecord>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Stored {
        Many(Vec<ActiveRecord>),
        One(Box<ActiveRecord>),
    }
    Ok(match Stored::deserialize(deserializer)? {
        Stored::Many(many) => many,
        Stored::One(one) => vec![*one],
    })
}

/// How far a schedule is worked off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleMark {
    /// The expression and its time zone; another one begins where it is first seen.
    pub schedule: String,
    /// Everything that was due up to this time has begun, or was left out.
    pub done_until: DateTime<Utc>,
}

/// A finished run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Which.
    pub run: RunId,
    /// Template of its last instance.
    pub revision: Revision,
    /// Runtime of its last instance.
    pub runtime: RuntimeKind,
    /// When it was to begin, or its first instance was created.
    pub started_at: DateTime<Utc>,
    /// When its last instance ended.
    pub finished_at: DateTime<Utc>,
    /// Completions that succeeded.
    pub succeeded: u32,
    /// Instances that failed.
    pub failed: u32,
    /// How it ended.
    pub end: RunEnd,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "end", rename_all = "snake_case")]
pub enum RunEnd {
    /// Every completion succeeded.
    Completed,
    /// More instances failed than `job.backoff_limit` allows.
    Failed {
        /// Index of the completion that failed last.
        index: u32,
        /// How that ended.
        exit: Exit,
    },
    /// It took longer than `job.active_deadline`.
    DeadlineExceeded,
    /// It was stopped because another run takes its place.
    Replaced,
}

impl RunEnd {
    /// Whether every completion succeeded.
    pub const fn is_success(&self) -> bool {
        matches!(self, Self::Completed)
    }

    /// The name for JSON and tables.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed { .. } => "failed",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Replaced => "replaced",
        }
    }
}

impl std::fmt::Display for RunEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Completed => f.write_str("completed"),
            Self::Failed { exit, .. } => write!(f, "{exit}"),
            Self::DeadlineExceeded => f.write_str("deadline exceeded"),
            Self::Replaced => f.write_str("replaced by another run"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn runs_by_a_schedule_are_whole_seconds_and_no_others_are() {
        let due = time("2026-01-01T00:00:07.9Z");
        assert_eq!(RunId::scheduled(due).at(), time("2026-01-01T00:00:07Z"));
        for now in ["2026-01-01T00:00:07Z", "2026-01-01T00:00:07.123Z", "2026-01-01T00:00:06.999Z"].map(time) {
            let last = RunId::scheduled(time("2026-01-01T00:00:06.999Z"));
            let run = RunId::after(Some(last), now);
            assert!(!run.is_scheduled() && run > last && last.is_scheduled(), "{now}");
        }
    }

    #[test]
    fn a_run_under_way_is_read_as_it_was_stored_now_and_before() {
        let run = ActiveRecord {
            run: RunId(5),
            revision: "v1-0123456789abcdef".parse().unwrap(),
            since: time("2026-01-01T00:00:07Z"),
            done: BTreeSet::new(),
            tried: Vec::new(),
        };
        let old =
            r#"{"runs": [], "begun": {"run": 5, "revision": "v1-0123456789abcdef", "since": "2026-01-01T00:00:07Z"}}"#;
        let read = |text: &str| serde_json::from_str::<JobRecord>(text).unwrap().active;
        assert_eq!(read(old), std::slice::from_ref(&run));
        let exit = Exit::from_code(3, None, time("2026-01-01T00:00:08Z"));
        let tried = vec![Tried { index: 1, attempt: 2, failures: 3, failure: Some(exit) }];
        let active = vec![ActiveRecord { done: BTreeSet::from([0, 7]), tried, ..run.clone() }, run];
        let record = JobRecord { active: active.clone(), ..JobRecord::default() };
        assert_eq!(read(&serde_json::to_string(&record).unwrap()), active);
        assert_eq!(read("{}"), []);
    }

    #[test]
    fn a_run_comes_after_those_that_are_known_also_when_the_clock_was_set_back() {
        let last = RunId::after(None, time("2026-01-01T00:00:07.999Z"));
        let next = RunId::after(Some(last), time("2020-01-01T00:00:00Z"));
        assert_eq!(next.at(), time("2026-01-01T00:00:08.001Z"));
        assert_eq!(next.to_string().parse(), Ok(next));
    }
}
