//! One run of an instance, and what was seen of its use.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

use crate::plan::idle::{busy, is_connected, last_activity, sample_every};
use crate::runtime::Usage;
use crate::spec::RuntimeKind;
use crate::state::{Activity, ActivityRecord, Instance, InstanceId, Signal, WatchedInstance};

use super::{Answer, UNANSWERED};

/// Passes that may be left out between two that follow each other: the time that is lost then is well below the limit.
const PASSES: u32 = 2;

/// Time between two looks for who waits for one that is suspended: whoever connects waits that long at most, and a look
/// costs a few reads.
const LISTEN_EVERY: Duration = Duration::from_secs(1);

/// Least step of the machine's clock that is taken for one: clocks are slewed by less between two looks.
pub(super) const STEP: TimeDelta = TimeDelta::seconds(1);

/// One run of an instance.
pub(super) struct Watch {
    pub id: InstanceId,
    pub run: DateTime<Utc>,
    pub activity: Activity,
    pub max_idle: Option<Duration>,
    /// Since when it was idle, where it is, or is being, suspended for that.
    pub suspended: Option<DateTime<Utc>>,
    /// Whether it is on its way to be used: it is still starting, or something that depends on it waits to start.
    is_coming: bool,
    /// The end of its life that was announced.
    pub announced: Option<DateTime<Utc>>,
    /// What it had used when it was asked last.
    before: Option<Usage>,
    /// When it is to be asked; where it was asked already, when that is given up.
    due: Option<Instant>,
    /// Whether it was asked and has not answered.
    is_asked: bool,
    /// Connections that were open when it was asked last.
    connected: BTreeSet<String>,
    /// Whether nobody can tell who waits for it while it is suspended.
    is_deaf: bool,
}

impl Watch {
    /// Of a run that was not watched by this controller so far.
    pub fn of(
        instance: &Instance,
        run: DateTime<Utc>,
        remembered: Option<&ActivityRecord>,
        now: DateTime<Utc>,
    ) -> Self {
        let is_it = |one: &&WatchedInstance| {
            one.runtime == instance.runtime && one.runtime_id == instance.runtime_id && one.run == run
        };
        let known = remembered.and_then(|record| Some((record, record.instances.iter().find(is_it)?)));
        let activity = known.map_or_else(
            || Activity::watched_from(now),
            |(record, known)| {
                let mut activity = known.activity();
                activity.was_unseen((now - record.seen_at).max(TimeDelta::zero()), now);
                activity
            },
        );
        let known = known.map(|(_, known)| known);
        Self {
            id: instance.id.clone(),
            run,
            activity,
            max_idle: None,
            suspended: known.and_then(|known| known.suspended),
            is_coming: false,
            announced: known.and_then(|known| known.announced),
            before: None,
            due: None,
            is_asked: false,
            connected: BTreeSet::new(),
            is_deaf: false,
        }
    }

    /// As it is written down.
    pub fn record(&self, (runtime, runtime_id): &(RuntimeKind, String)) -> WatchedInstance {
        let uses = &self.activity.uses;
        WatchedInstance {
            runtime: *runtime,
            runtime_id: runtime_id.clone(),
            run: self.run,
            watched_since: self.activity.watched_since,
            last: uses.iter().map(|(signal, seen)| (*signal, seen.last)).collect(),
            counted_since: Some(self.activity.counted_since),
            counted: uses.iter().map(|(signal, seen)| (*signal, seen.counted)).collect(),
            suspended: self.suspended,
            announced: self.announced,
        }
    }

    /// Sets the limit, and when it is sampled. `is_new` where nobody watched it before.
    pub fn limit(&mut self, max_idle: Option<Duration>, is_new: bool, (now, at): (DateTime<Utc>, Instant)) {
        if !is_new && self.max_idle.is_none() && max_idle.is_some() {
            // It was not sampled, so what it did is not known.
            self.activity.counted_since = now;
        }
        self.max_idle = max_idle;
        // The first sample only tells what the second is compared with, so that it is taken at once.
        let due = max_idle.map(|limit| self.due.unwrap_or(if is_new { at } else { at + self.pace(limit) }));
        // Whoever connects to one that was suspended a moment ago does not wait for the pace of before.
        let due =
            due.map(|due| if self.suspended.is_some() && !self.is_asked { due.min(at + LISTEN_EVERY) } else { due });
        self.due = due.filter(|_| self.suspended.is_none() || !self.is_deaf);
    }

    /// Time between two looks at it.
    fn pace(&self, max_idle: Duration) -> Duration {
        if self.suspended.is_some() { LISTEN_EVERY } else { sample_every(max_idle) }
    }

    /// It runs again after it was suspended: a use, whoever woke it.
    pub fn runs_again(&mut self, now: DateTime<Utc>) {
        (self.suspended, self.before, self.is_deaf) = (None, None, false);
        self.activity.counted_since = now;
    }

    /// Says whether it is on its way to be used, which counts as a use: its time begins when that ends.
    pub fn comes(&mut self, is_coming: bool, now: DateTime<Utc>) {
        if self.is_coming || is_coming {
            self.activity.counted_since = self.activity.counted_since.max(now);
        }
        self.is_coming = is_coming;
    }

    /// When it is to be asked what it uses.
    pub const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// It is asked now.
    pub fn ask(&mut self, at: Instant) {
        (self.due, self.is_asked) = (Some(at + UNANSWERED), true);
    }

    /// From when on it counts as idle, where that is limited. What was asked and did not answer is not known to be idle.
    pub fn idle_from(&self, activity: &Activity, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let max_idle = self.max_idle?;
        if self.is_coming {
            return Some(now);
        }
        let seen = last_activity(activity, max_idle, now);
        let is_over = TimeDelta::from_std(max_idle).is_ok_and(|limit| now - seen >= limit);
        Some(if is_over && self.is_asked { now } else { seen })
    }

    /// So much time has passed since the last look at the ledger, by the machine's clock, of which the machine ran
    /// `ran`: more than is usual was not watched, and does not count as idle.
    pub fn passed(&mut self, passed: TimeDelta, ran: TimeDelta, now: DateTime<Utc>) {
        let Some(max_idle) = self.max_idle else { return };
        let usual = TimeDelta::from_std(sample_every(max_idle) * PASSES).unwrap_or(TimeDelta::MAX);
        // The clock was set, or the machine slept.
        let step = passed - ran;
        if passed > usual {
            self.activity.was_unseen(passed, now);
        } else if step.abs() > STEP {
            self.activity.was_unseen(step, now);
        }
    }

    /// Takes what it answered. Says whether somebody waits for it, who it is to be woken for.
    pub fn learn(&mut self, answer: Answer, (now, at): (DateTime<Utc>, Instant)) -> bool {
        self.is_asked = false;
        self.due = self.max_idle.map(|limit| at + self.pace(limit));
        let open = match &answer {
            Answer::Used(usage) => usage.connections.clone().unwrap_or_default(),
            Answer::Unknown | Answer::Nothing => BTreeSet::new(),
        };
        let is_used = is_connected(&open, &self.connected, self.suspended.is_some());
        self.connected = open;
        if is_used {
            self.activity.note(Signal::Connection, now);
        }
        if self.suspended.is_some() {
            if matches!(answer, Answer::Nothing) {
                (self.is_deaf, self.due) = (true, None);
            }
            return is_used;
        }
        let usage = match answer {
            Answer::Used(usage) => usage,
            Answer::Nothing => return false,
            Answer::Unknown => {
                // What it did since it was asked last is not known.
                self.activity.counted_since = now;
                return false;
            }
        };
        if let Some(before) = self.before.replace(usage.clone()) {
            let passed = (usage.at - before.at).to_std().unwrap_or_default();
            let network = |usage: &Usage| Some(usage.received_bytes? + usage.sent_bytes?);
            let sent = network(&usage).zip(network(&before)).map(|(now, before)| now.saturating_sub(before));
            for signal in busy(passed, usage.cpu_usec.saturating_sub(before.cpu_usec), sent) {
                self.activity.note(signal, now);
            }
        }
        false
    }
}
