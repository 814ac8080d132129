//! Whose output is read: which to open, when, and from where on. Pure: what exists and the time come from outside.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::place::{Bookmark, Key, Place};
use crate::runtime::RuntimeError;
use crate::runtime::io::{LogLine, LogOptions};
use crate::state::{ErrorKind, Instance, InstanceId, InstanceRef, Phase};

/// Most outputs that are open at a time; each holds a file or a connection of the runtime open. Twice what one answer
/// may begin with (100), because a rollout may double the instances while it is under way.
pub const MOST_OPEN: usize = 200;

/// Pause before the output of an instance that still runs is opened again; whatever ended it, this is no busy loop. It
/// doubles while that fails.
const AGAIN_FIRST: Duration = Duration::from_secs(1);

/// Longest pause: an engine that comes back is noticed within this time.
const AGAIN_MOST: Duration = Duration::from_secs(15);

/// Longest time without a line that a replacement waits for the end of its dead predecessor's output, so that the last
/// lines of that come first; and that the output of an instance that is gone stays open. They are there already; reading
/// them takes milliseconds. Podman 4 never tells the end where a container is removed while it is followed.
const DRAIN: Duration = Duration::from_secs(5);

/// Longest time without a line that the output of a dead instance stays open: a runtime that does not tell the end by
/// then never will.
const STUCK: Duration = Duration::from_secs(30);

/// Coarseness of the times at which instances were started: Docker's lists have whole seconds.
const GRAIN: chrono::Duration = chrono::Duration::seconds(1);

/// An output to be opened now.
#[derive(Debug, Clone, PartialEq)]
pub struct Opening {
    /// Whose.
    pub instance: InstanceRef,
    /// From where on; it always follows.
    pub options: LogOptions,
}

/// What a look at what exists comes to.
#[derive(Debug, Default, PartialEq)]
pub struct Look {
    /// To be opened now.
    pub open: Vec<Opening>,
    /// To be closed, as their end is not told.
    pub close: Vec<Key>,
    /// Instances for which there is no room at present; told once each time.
    pub refused: Vec<InstanceId>,
    /// When to look again though nothing has changed.
    pub again: Option<Instant>,
}

/// What to tell of an output that could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing: the instance is gone, or it was told before.
    Silent,
    /// It is tried again.
    Passing,
    /// It is given up.
    Lasting,
}

/// Everything that is or was read.
#[derive(Debug)]
pub struct Roster {
    asked: LogOptions,
    began: DateTime<Utc>,
    is_first: bool,
    entries: BTreeMap<Key, Entry>,
    /// Outputs that another follower read, until they are found again.
    left: BTreeMap<Key, Place>,
    /// Whether another follower began.
    resumes: bool,
}

#[derive(Debug)]
struct Entry {
    id: InstanceId,
    reading: Reading,
    place: Place,
    /// Whether a line was given, or there was none to give.
    has_begun: bool,
    /// What to ask for until then.
    first: LogOptions,
    /// What to ask for after that where no line was given.
    from: LogOptions,
    /// Pause before the next try.
    pause: Duration,
}

#[derive(Debug)]
enum Reading {
    /// Its output is open; `over_since` is when the instance was first seen dead or gone, or wrote its last line after
    /// that.
    Open { over_since: Option<Instant> },
    /// Its output came to an end. Where the instance runs nevertheless, or again, it is opened again then.
    Ended { again: Instant },
    /// Its output broke off; it is opened again then, whether the instance runs or not.
    Broken { again: Instant },
    /// It is opened with these options as soon as there is room.
    NoRoom { options: LogOptions },
    /// It is not read: it died before anybody asked, or it can't be read.
    LeftOut,
}

impl Entry {
    /// What to ask for where reading ended.
    fn onward(&mut self) -> LogOptions {
        if self.has_begun {
            return LogOptions { since: self.place.reopen().or(self.from.since), ..self.from };
        }
        self.first_later()
    }

    /// What to ask for later than at once, where nothing was given.
    fn first_later(&self) -> LogOptions {
        // Of what there was before following began no line is wanted; of what came since, all are.
        if self.first.tail == Some(0) { self.from } else { self.first }
    }
}

impl Roster {
    /// Nothing is read yet. Of instances that were started before `began` only the lines that were asked for count; all
    /// lines of later ones are new.
    pub const fn new(asked: LogOptions, began: DateTime<Utc>) -> Self {
        Self { asked, began, is_first: true, entries: BTreeMap::new(), left: BTreeMap::new(), resumes: false }
    }

    /// Goes on where another one ended.
    pub fn resume(asked: LogOptions, bookmark: &Bookmark) -> Self {
        let left = bookmark.places();
        Self { asked, began: bookmark.began, is_first: false, entries: BTreeMap::new(), left, resumes: true }
    }

    /// Whether any output of these instances is read, or will be without anything else that happens.
    pub fn is_reading(&self, instances: &[Instance]) -> bool {
        let runs = |of: &Key| instances.iter().any(|instance| !is_dead(instance) && key(instance) == *of);
        self.entries.iter().any(|(key, entry)| match entry.reading {
            Reading::Open { .. } | Reading::Broken { .. } | Reading::NoRoom { .. } => true,
            Reading::Ended { .. } => runs(key),
            Reading::LeftOut => false,
        })
    }

    /// How many more outputs may be open.
    fn room(&self) -> usize {
        let open = self.entries.values().filter(|entry| matches!(entry.reading, Reading::Open { .. })).count();
        MOST_OPEN.saturating_sub(open)
    }

    /// Decides what to open, given every instance that there is.
    pub fn look(&mut self, instances: &[Instance], now: Instant) -> Look {
        let there: BTreeMap<Key, &Instance> = instances.iter().map(|one| (key(one), one)).collect();
        let mut look = Look::default();
        self.note_ends(&there, now, &mut look);
        let mut room = self.room();
        for (key, instance) in &there {
            if let Some(entry) = self.entries.get_mut(key) {
                look.reopen(entry, instance, &mut room, now);
            }
        }
        for instance in in_order(instances) {
            if !self.entries.contains_key(&key(instance)) && has_started(instance) {
                self.enlist(instance, instances, &mut room, now, &mut look);
            }
        }
        self.is_first = false;
        look
    }

    /// Notes who has ended, and forgets who is gone and read.
    fn note_ends(&mut self, there: &BTreeMap<Key, &Instance>, now: Instant, look: &mut Look) {
        self.entries.retain(|key, entry| {
            let instance = there.get(key);
            let Reading::Open { over_since } = &mut entry.reading else { return instance.is_some() };
            if instance.is_some_and(|instance| !is_dead(instance)) {
                *over_since = None;
                return true;
            }
            let end = *over_since.get_or_insert(now) + if instance.is_some() { STUCK } else { DRAIN };
            if now < end {
                look.look_at(end);
                return true;
            }
            look.close.push(key.clone());
            entry.reading = Reading::LeftOut;
            instance.is_some()
        });
    }

    /// Begins with an instance that was not known.
    fn enlist(&mut self, instance: &Instance, all: &[Instance], room: &mut usize, now: Instant, look: &mut Look) {
        if let Some(until) = self.draining(instance, now) {
            look.look_at(until);
            return;
        }
        let started = instance.phase.started_at().unwrap_or(instance.created_at);
        let is_old = self.is_first || started + GRAIN < self.began;
        let place = self.left.remove(&key(instance));
        let is_past = place.is_none() && is_old && self.was_over(instance) && !is_newest(instance, all);
        let (first, from) = self.options(is_old);
        let has_begun = place.is_some();
        let reading = Reading::LeftOut;
        let place = place.unwrap_or_default();
        let mut entry = Entry { id: instance.id.clone(), reading, place, has_begun, first, from, pause: AGAIN_FIRST };
        if !is_past {
            let options = if self.resumes { entry.onward() } else { first };
            look.open(&mut entry, instance, options, room, now);
        }
        self.entries.insert(key(instance), entry);
    }

    /// Whether its lines were told, or were none, when following began.
    fn was_over(&self, instance: &Instance) -> bool {
        match &instance.phase {
            Phase::Exited(exit) => !self.resumes || exit.finished_at + GRAIN < self.began,
            _ => false,
        }
    }

    /// What to ask for of an output: at first, and where it is opened again although no line was there.
    fn options(&self, is_old: bool) -> (LogOptions, LogOptions) {
        let tail = self.asked.tail.filter(|_| is_old);
        let since = self.asked.since;
        // Another follower may have come as far in a time of which only the last lines are wanted.
        let is_late = tail == Some(0) || self.resumes && tail.is_some();
        let later = if is_late { since.max(Some(self.began)) } else { since };
        (LogOptions { tail, follow: true, since }, LogOptions { tail: None, follow: true, since: later })
    }

    /// Until when the instance waits for the last lines of a dead one in its slot.
    fn draining(&self, instance: &Instance, now: Instant) -> Option<Instant> {
        let until = |entry: &Entry| match entry.reading {
            Reading::Open { over_since: Some(since) } if same_slot(&entry.id, &instance.id) => Some(since + DRAIN),
            _ => None,
        };
        self.entries.values().filter_map(until).filter(|until| *until > now).min()
    }

    /// Takes note of a line; says whether it is a new one.
    pub fn line(&mut self, key: &Key, line: &LogLine, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(key) else { return false };
        entry.pause = AGAIN_FIRST;
        entry.has_begun = true;
        if let Reading::Open { over_since: Some(since) } = &mut entry.reading {
            *since = now;
        }
        entry.place.pass(line.at)
    }

    /// Takes note of an output that is open and has no line to give so far; says whether that is new.
    pub fn no_lines(&mut self, key: &Key) -> bool {
        match self.entries.get_mut(key) {
            Some(entry) if matches!(entry.reading, Reading::Open { .. }) => {
                !std::mem::replace(&mut entry.has_begun, true)
            }
            _ => false,
        }
    }

    /// Takes note of an output that came to its end; says whether no line was there and that is new.
    pub fn ended(&mut self, key: &Key, now: Instant) -> bool {
        let is_new = self.no_lines(key);
        if let Some(entry) = self.entries.get_mut(key)
            && matches!(entry.reading, Reading::Open { .. })
        {
            entry.reading = Reading::Ended { again: now + entry.pause };
        }
        is_new
    }

    /// Takes note of an output that could not be read on.
    pub fn failed(&mut self, key: &Key, error: &RuntimeError, now: Instant) -> Trouble {
        let Some(entry) = self.entries.get_mut(key) else { return Trouble::Silent };
        let again = now + entry.pause;
        let is_new = entry.pause == AGAIN_FIRST;
        entry.pause = (entry.pause * 2).min(AGAIN_MOST);
        if error.kind == ErrorKind::NotFound {
            // Removed a moment ago, unless the list that still has it proves right.
            entry.reading = Reading::Ended { again };
            Trouble::Silent
        } else if error.retryable() {
            entry.reading = Reading::Broken { again };
            if is_new { Trouble::Passing } else { Trouble::Silent }
        } else {
            entry.reading = Reading::LeftOut;
            Trouble::Lasting
        }
    }
}

impl Look {
    fn look_at(&mut self, at: Instant) {
        self.again = Some(self.again.map_or(at, |again| again.min(at)));
    }

    /// Opens an output again where it is due, at the line where reading ended.
    fn reopen(&mut self, entry: &mut Entry, instance: &Instance, room: &mut usize, now: Instant) {
        let again = match entry.reading {
            Reading::NoRoom { options } => return self.open(entry, instance, options, room, now),
            Reading::Broken { again } => again,
            Reading::Ended { again } if !is_dead(instance) => again,
            _ => return,
        };
        if now < again {
            return self.look_at(again);
        }
        let options = entry.onward();
        self.open(entry, instance, options, room, now);
    }

    /// Opens an output if there is room.
    fn open(&mut self, entry: &mut Entry, instance: &Instance, options: LogOptions, room: &mut usize, now: Instant) {
        if *room == 0 {
            if !matches!(entry.reading, Reading::NoRoom { .. }) {
                self.refused.push(entry.id.clone());
            }
            let options = if entry.has_begun { options } else { entry.first_later() };
            entry.reading = Reading::NoRoom { options };
            return;
        }
        *room -= 1;
        self.open.push(Opening { instance: instance.as_ref(), options });
        entry.reading = Reading::Open { over_since: is_dead(instance).then_some(now) };
    }
}

/// The key of an instance.
pub fn key(instance: &Instance) -> Key {
    (instance.runtime, instance.runtime_id.clone())
}

const fn is_dead(instance: &Instance) -> bool {
    matches!(instance.phase, Phase::Exited(_))
}

/// Whether it may have written anything.
const fn has_started(instance: &Instance) -> bool {
    !matches!(instance.phase, Phase::Pending | Phase::Created)
}

fn same_slot(one: &InstanceId, other: &InstanceId) -> bool {
    one.slot == other.slot && one.service == other.service && one.deployment == other.deployment
}

/// Whether no other instance of its slot that has started is newer.
fn is_newest(instance: &Instance, all: &[Instance]) -> bool {
    let is_newer = |other: &Instance| other.recency() > instance.recency();
    !all.iter().any(|other| same_slot(&other.id, &instance.id) && has_started(other) && is_newer(other))
}

/// By service and slot, the older ones first.
fn in_order(instances: &[Instance]) -> Vec<&Instance> {
    let mut sorted: Vec<&Instance> = instances.iter().collect();
    sorted.sort_by(|one, other| {
        let key = |one: &Instance| (one.id.service.clone(), one.id.slot, one.recency());
        key(one).cmp(&key(other))
    });
    sorted
}
