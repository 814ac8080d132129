//! What the use of an instance amounts to, and which limit strikes next.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::time::{after, before};
use crate::spec::{HumanDuration, OnExpiry, OnIdle, ServiceSpec};
use crate::state::{Activity, Instance, Phase, Signal};

/// Share of one processor from which on a program computes: one in fifty. A program that only waits, and its timers, stay
/// well below.
pub const BUSY_CPU: f64 = 0.02;

/// Bytes per second, sent and received, from which on a program uses the network. Broadcasts, keep-alives and the controller's
/// own health checks stay below.
pub const BUSY_NETWORK: f64 = 1024.0;

/// Longest time between two samples of what an instance uses.
pub const SAMPLE_MOST: Duration = Duration::from_secs(15);

/// Shortest time between two samples, whatever the limit.
pub const SAMPLE_LEAST: Duration = Duration::from_millis(250);

/// Samples within one limit: enough that none is reached by something that was busy in between.
const SAMPLES: u32 = 4;

/// Time within which a program that was seen to compute, or to use the network, counts as still at it: two samples.
const RECENT: u32 = 2;

/// Share of its lifetime before the end at which that is announced: a tenth.
const ANNOUNCED: u32 = 10;

/// Longest time before the end of its lifetime at which that is announced.
pub const ANNOUNCED_MOST: Duration = Duration::from_secs(300);

/// How often instances with this limit are sampled.
pub fn sample_every(max_idle: Duration) -> Duration {
    (max_idle / SAMPLES).clamp(SAMPLE_LEAST, SAMPLE_MOST)
}

/// What an instance was seen to do between two samples with so much time between them.
pub fn busy(passed: Duration, cpu_usec: u64, network_bytes: Option<u64>) -> Vec<Signal> {
    let seconds = passed.as_secs_f64();
    if seconds <= 0.0 {
        return Vec::new();
    }
    let computes = cpu_usec as f64 / 1e6 / seconds >= BUSY_CPU;
    let talks = network_bytes.is_some_and(|bytes| bytes as f64 / seconds >= BUSY_NETWORK);
    let seen = [(Signal::Cpu, computes), (Signal::Network, talks)];
    seen.into_iter().filter(|(_, is_seen)| *is_seen).map(|(signal, _)| signal).collect()
}

/// Whether one of the connections that are open counts as a use of the instance, of which these were open at the last look. A
/// running one is checked by connecting to it, so that only what lasts from one look to the next does; nobody checks one that
/// is frozen.
pub fn is_connected(open: &BTreeSet<String>, before: &BTreeSet<String>, is_frozen: bool) -> bool {
    if is_frozen { !open.is_empty() } else { !open.is_disjoint(before) }
}

/// From when on the instance counts as idle: now while a use lasts; else the last use, one that counts for less than the
/// whole limit moved back by what it lacks. Before it was watched it counts as used.
pub fn last_activity(activity: &Activity, max_idle: Duration, now: DateTime<Utc>) -> DateTime<Utc> {
    let counts = activity.uses.iter().map(|(signal, seen)| match seen.ongoing {
        true => now,
        false => before(seen.counted, (max_idle / 100).saturating_mul(u32::from(100 - signal.weight().min(100)))),
    });
    counts.fold(activity.counted_since, DateTime::max)
}

/// What an instance is doing, as far as its use tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Doing {
    /// It computes.
    Computing,
    /// It sends or receives, or a connection to it is open.
    WaitingOnTheNetwork,
    /// It was used lately, and nothing happens inside.
    WaitingForInput,
    /// It was not used for as long as it may be.
    Idle,
}

impl Doing {
    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Computing => "computing",
            Self::WaitingOnTheNetwork => "waiting on the network",
            Self::WaitingForInput => "waiting for input",
            Self::Idle => "idle",
        }
    }
}

/// What an instance of which this was seen is doing.
pub fn doing(activity: &Activity, max_idle: Duration, now: DateTime<Utc>) -> Doing {
    let recent = sample_every(max_idle) * RECENT;
    let is_recent = |signal| {
        let seen = activity.uses.get(&signal);
        seen.is_some_and(|seen| seen.ongoing || after(seen.last, recent) > now)
    };
    if is_recent(Signal::Cpu) {
        return Doing::Computing;
    }
    if is_recent(Signal::Network) || is_recent(Signal::Connection) {
        return Doing::WaitingOnTheNetwork;
    }
    match after(last_activity(activity, max_idle, now), max_idle) > now {
        true => Doing::WaitingForInput,
        false => Doing::Idle,
    }
}

/// A limit on the life of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// `lifecycle.max_idle`.
    MaxIdle,
    /// `lifecycle.max_lifetime`.
    MaxLifetime,
}

/// What reaching a limit does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strike {
    /// It is stopped until its next use.
    Stop,
    /// It is frozen until its next use.
    Suspend,
    /// Another instance takes its place.
    Recycle,
    /// It is stopped until it is started by hand, or its spec changes.
    Terminate,
}

impl Strike {
    /// In one word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Suspend => "suspend",
            Self::Recycle => "recycle",
            Self::Terminate => "terminate",
        }
    }
}

/// The limit that strikes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Next {
    /// Which.
    pub limit: Limit,
    /// When, if nothing happens before.
    pub at: DateTime<Utc>,
    /// What it does.
    pub strike: Strike,
}

/// The last activity of an instance, where it can be idle at all: one that is still starting can't be used yet, and would never
/// come up where that takes longer than it may be idle.
pub fn known_activity(instance: &Instance) -> Option<DateTime<Utc>> {
    instance.last_activity.filter(|_| !instance.is_starting())
}

/// The limits of an instance that runs or is frozen, the earliest first.
pub fn limits(
    phase: &Phase,
    last_activity: Option<DateTime<Utc>>,
    spec: &ServiceSpec,
    held_until: Option<DateTime<Utc>>,
) -> Vec<Next> {
    let Some(lifecycle) = &spec.lifecycle else { return Vec::new() };
    let (since, runs) = match phase {
        Phase::Running { since, .. } => (*since, true),
        Phase::Paused { since } => (*since, false),
        _ => return Vec::new(),
    };
    let end = |from: DateTime<Utc>, limit: Option<HumanDuration>| limit.map(|limit| after(from, limit.get()));
    let deferred = |at: DateTime<Utc>| held_until.map_or(at, |held| at.max(held));
    let idle = last_activity.filter(|_| runs).and_then(|activity| end(activity.max(since), lifecycle.max_idle));
    let idle = idle.map(|at| {
        let strike = match lifecycle.on_idle.unwrap_or_default() {
            OnIdle::Stop => Strike::Stop,
            OnIdle::Suspend => Strike::Suspend,
        };
        Next { limit: Limit::MaxIdle, at: deferred(at), strike }
    });
    let age = end(since, lifecycle.max_lifetime).and_then(|at| match lifecycle.on_expiry.unwrap_or_default() {
        OnExpiry::Terminate => Some(Next { limit: Limit::MaxLifetime, at, strike: Strike::Terminate }),
        // What is frozen serves nobody; it is replaced once it runs again.
        OnExpiry::Recycle if !runs => None,
        OnExpiry::Recycle => Some(Next { limit: Limit::MaxLifetime, at: deferred(at), strike: Strike::Recycle }),
    });
    let mut limits: Vec<Next> = idle.into_iter().chain(age).collect();
    limits.sort_by_key(|next| next.at);
    limits
}

/// When the maximum age of an instance strikes, as far as is known now; none where it has none, and while it is frozen unless
/// that ends it all the same.
pub fn age_limit(phase: &Phase, spec: &ServiceSpec, held_until: Option<DateTime<Utc>>) -> Option<DateTime<Utc>> {
    let limits = limits(phase, None, spec, held_until);
    limits.into_iter().find(|next| next.limit == Limit::MaxLifetime).map(|next| next.at)
}

/// When it is announced that a life of that length at most ends then.
pub fn announced_at(end: DateTime<Utc>, max_lifetime: Duration) -> DateTime<Utc> {
    before(end, (max_lifetime / ANNOUNCED).min(ANNOUNCED_MOST))
}
