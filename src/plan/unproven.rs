//! How many replicas may be down at once for checks that have passed on none of them.
//!
//! A check that passed on an instance and fails now speaks of the instance, which is restarted at once. One that never
//! passed, be it new, changed, or not made for long enough by this controller, may be what is wrong: if it is, each
//! restart only costs a replica that serves. So no more are down for such a check than a rollout may take
//! (max_unavailable, at least one), until one of them passes.

use chrono::{DateTime, Utc};

use super::Spared;
use super::availability::Judge;
use super::diff::{Matched, Slot, count, exit_of};
use super::time::after;
use crate::state::{DesiredService, Exit, Instance, Phase};

/// Places of replicas that may be down for such checks.
#[derive(Debug)]
pub(super) struct Places {
    /// Those that nobody has.
    pub(super) free: u32,
    /// Why those run on that find none.
    pub(super) spared: Spared,
    /// When the next one becomes free if no check says anything until then.
    pub(super) next: Option<DateTime<Utc>>,
}

impl Places {
    /// None: nothing may be restarted for them.
    pub(super) const NONE: Self = Self { free: 0, spared: Spared::Untold, next: None };

    /// The places of a service.
    pub(super) fn of(desired: &DesiredService, matched: &Matched<'_>, judge: Judge<'_>) -> Self {
        let (_, unavailable) = desired.spec.rollout_bounds(desired.replicas);
        let down: Vec<&Slot<'_>> = matched.slots.iter().filter(|slot| is_down_for_checks(slot, judge)).collect();
        let up_from =
            |fresh: &Instance| judge.available_from(fresh).into_iter().chain(time_is_over(fresh, judge)).min();
        Self {
            free: unavailable.max(1).saturating_sub(count(down.iter())),
            spared: why_spared(matched),
            next: down.iter().filter_map(|slot| slot.fresh.and_then(up_from)).filter(|at| *at > judge.input.now).min(),
        }
    }
}

fn why_spared(matched: &Matched<'_>) -> Spared {
    let is_unhealthy = |one: &Instance| one.unhealthy().is_some() || exit_of(one).is_some_and(Exit::is_unhealthy);
    let has_failed_again = |one: &Instance| one.streak > 0 && !one.has_passed() && is_unhealthy(one);
    match matched.slots.iter().filter_map(|slot| slot.newest).any(has_failed_again) {
        true => Spared::FailedAgain,
        false => Spared::Untold,
    }
}

/// Whether the slot's instance was ended by checks, or is being so, and its successor is not there yet, or has not had the
/// time to pass them.
pub(super) fn is_down_for_checks(slot: &Slot<'_>, judge: Judge<'_>) -> bool {
    let is_worked_on = |one: &Instance| judge.input.history.kept_under_way.contains(&one.id);
    let ends =
        |newest: &Instance| (newest.phase == Phase::Stopping || is_worked_on(newest)) && newest.unhealthy().is_some();
    if slot.newest.is_some_and(ends) {
        return true;
    }
    if slot.fresh.is_some_and(|fresh| judge.is_available(fresh) || has_had_its_time(fresh, judge)) {
        return false;
    }
    let last = slot.dead.iter().max_by_key(|dead| dead.recency());
    match last {
        Some(dead) => exit_of(dead).is_some_and(Exit::is_unhealthy),
        // The one before is not kept (`lifecycle.delete_on_exit`), but it counts in its successor.
        None => slot.fresh.is_some_and(|fresh| fresh.streak > 0),
    }
}

fn has_had_its_time(fresh: &Instance, judge: Judge<'_>) -> bool {
    time_is_over(fresh, judge).is_some_and(|at| at <= judge.input.now)
}

/// From when on it has run for so long that checks which it never passed would have ended it twice over. That they did not
/// says that it passed some, before others were declared or before a controller forgot.
fn time_is_over(fresh: &Instance, judge: Judge<'_>) -> Option<DateTime<Utc>> {
    let (Phase::Running { since, .. }, Some(health)) = (&fresh.phase, &judge.spec.health) else { return None };
    let a_try = health.interval().saturating_add(health.timeout());
    let to_the_end = health.start_grace().saturating_add(a_try.saturating_mul(health.retries()));
    Some(after(*since, to_the_end.saturating_mul(2)))
}
