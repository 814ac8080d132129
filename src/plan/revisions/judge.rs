//! How far a service is on its way to a revision, as far as is observed now.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use crate::plan::availability::Judge;
use crate::plan::backoff::PROVEN_RUN;
use crate::plan::depends::{HeldBack, held_back};
use crate::plan::diff::{count, exit_of};
use crate::plan::rest::{Rest, rest};
use crate::plan::restart::{AfterExit, after_exit};
use crate::plan::rollout::{crashed, ended_well};
use crate::plan::time::{after, earliest, elapsed};
use crate::plan::{Failure, Input, Wait};
use crate::spec::Revision;
use crate::state::{DesiredService, Exit, FailureReason, HealthState, Instance, Phase, RolloutFailure};

/// Crashes in a row of one new instance after which its revision has failed, as long as no new instance was trusted yet.
/// The first restart comes at once and the second after ten seconds, so that a program which only needed another try has
/// had two.
pub const CRASHES_IN_A_ROW: u32 = 3;

/// What is known of a revision before this look at it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Past {
    /// From when on calls that failed, and crashes, count.
    pub counts_from: Option<DateTime<Utc>>,
    /// An instance of it was ready once, as far as is known.
    pub was_ready: bool,
    /// One was available, and its rollout has not failed since.
    pub was_available: bool,
    /// One was available for long enough to be trusted.
    pub was_proven: bool,
}

/// How far a service is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Findings {
    /// New instances that are available.
    pub available: u32,
    /// Instances of other revisions that are not dead.
    pub old: u32,
    /// Whether any new instance takes traffic.
    pub ready: bool,
    /// Slots that were put to rest for idleness.
    pub idle: u32,
    /// Nothing is to be done in any slot for now, as what does not serve is stopped or idle.
    pub rests: bool,
    /// Whether what is wanted runs, and nothing else; or did, and is at rest.
    pub complete: bool,
    /// New instances that are available and have run for long enough to be trusted.
    pub proven: u32,
    /// Whether that is true of all that are to run, and any are or were: where none was, nothing was tried.
    pub settled: bool,
    /// Those that are, by the runtime's own id.
    pub trusted: BTreeSet<String>,
    /// New instances that ended before they could be, by the runtime's own id.
    pub short_lived: BTreeSet<String>,
    /// When the next one will be available, or is to be trusted, if it goes on as now.
    pub next: Option<DateTime<Utc>>,
    /// Nothing is known of a runtime that matters.
    pub blind: bool,
    /// Why it can't come to what is wanted, or hardly, by what ended.
    pub ended: Option<RolloutFailure>,
    /// Why it can't, by what was refused.
    pub refused: Option<RolloutFailure>,
    /// Other revisions that serve.
    pub serving: BTreeSet<Revision>,
    /// What is missing may not be made yet, because of what the service depends on.
    pub waits: bool,
    /// Why that will hardly change, where it was waited for long enough.
    pub forsaken: Option<RolloutFailure>,
    /// Nothing can be said of the new instances that are to become ready: not one of them was checked yet.
    pub unchecked: bool,
}

/// Looks at the instances of a service that is to become like this.
pub(super) fn look(input: &Input<'_>, wanted: &DesiredService, past: Past) -> Findings {
    let mine = |instance: &&Instance| instance.id.deployment == input.deployment && instance.id.service == wanted.name;
    let (new, other): (Vec<&Instance>, Vec<&Instance>) = input
        .observed
        .iter()
        .filter(mine)
        .partition(|instance| wanted.is_made_from(&instance.id.revision) && instance.runtime == wanted.runtime);
    let lives = |instance: &&&Instance| !matches!(instance.phase, Phase::Exited(_));
    let is_silent = |instance: &&Instance| input.unreachable.contains_key(&instance.runtime);
    // A clock that was set back says nothing of what came before.
    let counts_from = past.counts_from.filter(|from| *from <= input.now);
    let serves = other.iter().any(|one| matches!(one.phase, Phase::Running { .. }));
    let judge = Judge { input, spec: &wanted.spec, rolls_out: Some(wanted) };
    let eye = Eye { judge, wanted, new: &new, serves, counts_from };
    let slots: Vec<Slot> = (0..wanted.replicas).map(|slot| eye.slot(slot)).collect();
    let old = count(other.iter().filter(lives));
    let tally = Tally::of(&slots);
    let is_missing = |slot: u32, is: &Slot| {
        let is_there = new.iter().any(|one| one.id.slot == slot && !matches!(one.phase, Phase::Exited(_)));
        !is_there && !matches!(is, Slot::AtRest(Rest::Stopped | Rest::Idle))
    };
    let is_made = !(0..).zip(&slots).any(|(slot, is)| is_missing(slot, is));
    let held = if is_made { HeldBack::No } else { held_back(input, wanted) };
    Findings {
        available: tally.available,
        old,
        ready: new.iter().any(|one| judge.is_ready(one)),
        idle: tally.idle,
        rests: tally.rests(),
        complete: old == 0 && tally.is_complete(past),
        proven: tally.proven,
        settled: wanted.replicas > 0 && old == 0 && tally.is_settled(past),
        trusted: new.iter().filter(|one| eye.is_trusted(one)).map(|one| one.runtime_id.clone()).collect(),
        short_lived: new.iter().filter(|one| is_short_lived(one)).map(|one| one.runtime_id.clone()).collect(),
        next: earliest(slots.iter().map(Slot::next)),
        blind: input.unreachable.contains_key(&wanted.runtime) || new.iter().chain(&other).any(is_silent),
        ended: slots.into_iter().find_map(|slot| if let Slot::Failing(failure) = slot { Some(failure) } else { None }),
        refused: refusal(input, wanted, counts_from),
        serving: serving(&other, input.now),
        waits: held != HeldBack::No,
        forsaken: match held {
            HeldBack::TimedOut(message) => Some(RolloutFailure { reason: FailureReason::DependencyTimeout, message }),
            HeldBack::No | HeldBack::Waits => None,
        },
        unchecked: is_unchecked(new.iter().copied().filter(|one| !judge.is_ready(one))),
    }
}

/// Whether all of these that run wait for their first check, and any does.
fn is_unchecked<'a>(unready: impl Iterator<Item = &'a Instance>) -> bool {
    let mut running = unready.filter(|one| matches!(one.phase, Phase::Running { .. })).peekable();
    running.peek().is_some() && running.all(|one| matches!(one.health, Some(HealthState::Waiting { .. })))
}

/// What one slot has come to.
enum Slot {
    /// A new instance is available; when it is to be trusted, where it is not yet.
    Available { proven: Option<DateTime<Utc>> },
    /// It is down on purpose, or frozen.
    AtRest(Rest),
    /// It is on its way; when it will be available, where only time is missing.
    Coming { available: Option<DateTime<Utc>> },
    /// It will hardly get there.
    Failing(RolloutFailure),
}

impl Slot {
    /// When time alone makes another of it.
    const fn next(&self) -> Option<DateTime<Utc>> {
        match self {
            Self::Available { proven: next } | Self::Coming { available: next } => *next,
            Self::AtRest(_) | Self::Failing(_) => None,
        }
    }
}

/// How many slots have come to what.
#[derive(Debug, Clone, Copy)]
struct Tally {
    slots: u32,
    available: u32,
    proven: u32,
    stopped: u32,
    idle: u32,
    over: u32,
}

impl Tally {
    fn of(slots: &[Slot]) -> Self {
        let of = |test: fn(&Slot) -> bool| count(slots.iter().filter(|slot| test(slot)));
        Self {
            slots: count(slots.iter()),
            available: of(|slot| matches!(slot, Slot::Available { .. })),
            proven: of(|slot| matches!(slot, Slot::Available { proven: None })),
            stopped: of(|slot| matches!(slot, Slot::AtRest(Rest::Stopped))),
            idle: of(|slot| matches!(slot, Slot::AtRest(Rest::Idle))),
            over: of(|slot| matches!(slot, Slot::AtRest(Rest::Over))),
        }
    }

    /// Those that come back by a start or a use. Whether what is in them works, they do not tell by themselves.
    const fn resting(self) -> u32 {
        self.stopped + self.idle
    }

    const fn rests(self) -> bool {
        self.resting() > 0 && self.available + self.over + self.resting() == self.slots
    }

    const fn is_complete(self, past: Past) -> bool {
        let is_tried = self.available + self.over > 0 || past.was_available || (self.idle > 0 && past.was_ready);
        self.available + self.over + self.resting() == self.slots && (self.resting() == 0 || is_tried)
    }

    const fn is_settled(self, past: Past) -> bool {
        let is_tried = self.proven + self.over > 0 || past.was_proven;
        self.proven + self.over + self.resting() == self.slots && (self.resting() == 0 || is_tried)
    }
}

struct Eye<'a> {
    judge: Judge<'a>,
    wanted: &'a DesiredService,
    new: &'a [&'a Instance],
    /// Instances of other revisions run.
    serves: bool,
    counts_from: Option<DateTime<Utc>>,
}

impl Eye<'_> {
    fn slot(&self, slot: u32) -> Slot {
        let of_slot = || self.new.iter().copied().filter(move |instance| instance.id.slot == slot);
        if let Some(instance) = of_slot().find(|instance| self.judge.is_available(instance)) {
            return Slot::Available { proven: self.proven_from(instance) };
        }
        let coming =
            Slot::Coming { available: earliest(of_slot().map(|instance| self.judge.available_from(instance))) };
        let newest = of_slot().max_by_key(|instance| instance.id.attempt);
        let at_rest = rest(self.judge.input, self.wanted, slot, newest);
        if let Some(at_rest @ (Rest::Stopped | Rest::Idle)) = at_rest {
            return Slot::AtRest(at_rest);
        }
        let Some(newest) = newest else { return coming };
        let crashes = match exit_of(newest) {
            Some(exit) => match after_exit(newest, exit, self.wanted) {
                // Others serve, which it was to take the place of.
                AfterExit::AtRest(Wait::Ended { .. }) if self.serves && self.counts(exit.finished_at) => {
                    return Slot::Failing(gave_up(newest, exit));
                }
                AfterExit::AtRest(_) => return Slot::AtRest(Rest::Over),
                AfterExit::Failed(_) | AfterExit::ShutDown => return Slot::Failing(gave_up(newest, exit)),
                AfterExit::Restart { streak, .. } if self.counts(exit.finished_at) => streak,
                AfterExit::Restart { .. } | AfterExit::Replace => 0,
            },
            // It runs, and may be here to stay.
            None if self.judge.is_ready(newest) => return coming,
            None if self.counts(newest.created_at) => newest.streak,
            None => 0,
        };
        if crashes < CRASHES_IN_A_ROW {
            return coming;
        }
        let newest_of = |test: fn(&Instance) -> bool| {
            of_slot().filter(|instance| test(instance)).max_by_key(|instance| instance.id.attempt).and_then(exit_of)
        };
        // What it was restarted for may be a clean end, and is not known any more where none is kept.
        let (did, exit) = match newest_of(crashed) {
            Some(exit) => ("crashed", Some(exit)),
            None => ("ended", newest_of(|instance| exit_of(instance).is_some())),
        };
        let keeps_none = self.wanted.spec.lifecycle.as_ref().is_some_and(|life| life.delete_on_exit == Some(true));
        let how = match exit {
            Some(exit) => format!(": {exit}"),
            None if keeps_none => "; how is not known, as none is kept (lifecycle.delete_on_exit)".to_owned(),
            None => String::new(),
        };
        let message = format!("{} {did} {crashes} times in a row{how}", newest.id);
        Slot::Failing(RolloutFailure { reason: FailureReason::Crashing, message })
    }

    /// Whether what happened then counts.
    fn counts(&self, at: DateTime<Utc>) -> bool {
        self.counts_from.is_none_or(|from| at >= from)
    }

    fn is_trusted(&self, instance: &Instance) -> bool {
        self.judge.is_available(instance) && self.proven_from(instance).is_none()
    }

    /// When an available instance is to be trusted, where it is not yet.
    fn proven_from(&self, instance: &Instance) -> Option<DateTime<Utc>> {
        let from = after(instance.runs_since()?, PROVEN_RUN);
        (from > self.judge.input.now).then_some(from)
    }
}

/// How it fails that an instance ended like this and none follows.
fn gave_up(instance: &Instance, exit: &Exit) -> RolloutFailure {
    let message = format!("{} ended and is not started again: {exit}", instance.id);
    RolloutFailure { reason: FailureReason::GaveUp, message }
}

/// The revisions of these instances that serve, and may be hoped to go on with it.
fn serving(instances: &[&Instance], now: DateTime<Utc>) -> BTreeSet<Revision> {
    let serves = |one: &&&Instance| one.phase.is_ready() && !is_failing(one, now);
    instances.iter().filter(serves).map(|one| one.id.revision.clone()).collect()
}

/// Whether the last instance in any slot of a service is made from such a revision and is failing.
pub(super) fn is_failing_in_a_slot(input: &Input<'_>, service: &str, is_of: impl Fn(&Revision) -> bool) -> bool {
    let mine =
        |one: &&Instance| one.id.deployment == input.deployment && one.id.service == service && is_of(&one.id.revision);
    let mut last: BTreeMap<u32, &Instance> = BTreeMap::new();
    for one in input.observed.iter().filter(mine) {
        let place = last.entry(one.id.slot).or_insert(one);
        if one.recency() > place.recency() {
            *place = one;
        }
    }
    last.values().any(|one| is_failing(one, input.now))
}

/// Whether an instance ended too early by itself, or follows one that failed and has not run for long enough to be trusted.
fn is_failing(instance: &Instance, now: DateTime<Utc>) -> bool {
    match exit_of(instance) {
        Some(_) => is_short_lived(instance) && (crashed(instance) || ended_well(instance)),
        None => instance.streak > 0 && instance.runs_since().is_none_or(|since| after(since, PROVEN_RUN) > now),
    }
}

/// Whether an instance ended before it had run for long enough to be trusted, as its runtime knows.
fn is_short_lived(instance: &Instance) -> bool {
    let ran = exit_of(instance).zip(instance.runs_since()).map(|(exit, since)| elapsed(since, exit.finished_at));
    ran.is_some_and(|ran| ran < PROVEN_RUN)
}

/// The refusal of a call for what is wanted.
fn refusal(input: &Input<'_>, wanted: &DesiredService, counts_from: Option<DateTime<Utc>>) -> Option<RolloutFailure> {
    let counts = |failure: &Failure| counts_from.is_none_or(|from| failure.at >= from);
    let of_service = input.history.failures.iter().filter(|((service, _), _)| *service == wanted.name);
    let mut of_service = of_service.filter(|(_, failure)| counts(failure));
    let refused = of_service.find(|(_, failure)| !failure.retryable && wanted.is_made_from(&failure.revision));
    let ((_, slot), failure) = refused?;
    let message = format!("{}/{}/{slot} was refused: {}", input.deployment, wanted.name, failure.message);
    Some(RolloutFailure { reason: FailureReason::Refused, message })
}
