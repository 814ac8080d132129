//! One service: its slots are filled, its surplus goes, its dead are tidied up.

use std::cmp::Reverse;

use super::availability::Judge;
use super::diff::{Matched, Slot, exit_of, match_slots};
use super::draft::Draft;
use super::job::plan_job;
use super::need::need;
use super::pool::plan_pool;
use super::restart::{AfterExit, after_exit};
use super::rollout::Rollout;
use super::unproven::Places;
use super::{Cause, Wait};
use crate::spec::RType;
use crate::state::{
    DesiredService, EndedBy, Exit, Instance, Pause, Phase, RolloutCourse, ServiceName, Standing, StopCause,
};

/// Plans one declared service. `instances` are those of the service, in order of their identity.
pub(super) fn plan_service(draft: &mut Draft<'_>, desired: &DesiredService, instances: &[&Instance]) {
    if desired.spec.pool.is_some() {
        return plan_pool(draft, desired, instances);
    }
    if desired.spec.rtype() != RType::Service {
        return plan_job(draft, desired, instances);
    }
    say_how_it_stands(draft, desired);
    let matched = match_slots(desired, instances, draft);
    let judge = Judge { input: draft.input, spec: &desired.spec, rolls_out: None };
    if !shut_down(draft, desired, &matched) {
        draft.unproven = Places::of(desired, &matched, judge);
        let needs = matched.slots.iter().map(|slot| need(draft, desired, slot)).collect();
        Rollout::new(draft, desired, &matched, instances, needs).plan();
    }
    draft.say_what_is_missing(&desired.name);
    for slot in &matched.slots {
        tidy(draft, desired, slot, judge);
    }
}

/// Says where the rollout is not, or may not be, on its way to what is declared.
fn say_how_it_stands(draft: &mut Draft<'_>, desired: &DesiredService) {
    let Standing { rolled_back, paused, course, failed, .. } = desired.standing.clone();
    let name = || ServiceName { deployment: draft.input.deployment.to_owned(), service: desired.name.clone() };
    let of_pause = paused.as_ref().and_then(|pause| match pause {
        Pause::Failure { failure } => Some(failure.clone()),
        Pause::User => None,
    });
    let why = failed.as_ref().map(|failed| failed.failure.clone()).or(of_pause);
    let waits = [
        rolled_back.map(|rolled_back| Wait::RolledBack { service: name(), rolled_back, failed: why }),
        paused.filter(|_| course == RolloutCourse::Held).map(|pause| Wait::RolloutPaused { service: name(), pause }),
        failed.map(|failed| Wait::RolloutFailed { service: name(), failed }),
    ];
    waits.into_iter().flatten().for_each(|wait| draft.wait(wait));
}

/// Takes the whole service down where a crash asks for it (`errors.on_panic: shutdown`). Returns whether it did.
fn shut_down(draft: &mut Draft<'_>, desired: &DesiredService, matched: &Matched<'_>) -> bool {
    let crash = |slot: &Slot<'_>| -> Option<Exit> {
        let is_started = |dead: &Instance| draft.input.history.lives.is_started(dead);
        let dead = slot.newest.filter(|dead| dead.runtime == desired.runtime && !is_started(dead))?;
        let exit = exit_of(dead)?;
        (after_exit(dead, exit, desired) == AfterExit::ShutDown).then(|| exit.clone())
    };
    let mut crashes = matched.slots.iter().filter_map(|slot| crash(slot).map(|exit| (slot, exit))).peekable();
    let Some(cause) = crashes.peek().map(|(_, exit)| Cause::Shutdown { exit: exit.clone() }) else { return false };
    for (slot, exit) in crashes {
        if let Some(dead) = slot.newest {
            draft.wait(Wait::ShutDown { id: dead.id.clone(), exit });
        }
    }
    let of_slots = matched.slots.iter().flat_map(|slot| {
        let stale = slot.stale.iter().map(|stale| stale.instance);
        slot.fresh.into_iter().chain(slot.duplicates.iter().chain(&slot.beside).copied()).chain(stale)
    });
    for instance in of_slots.chain(matched.surplus.iter().copied()) {
        draft.retire(instance, Some(&desired.spec), &cause);
    }
    true
}

/// Whether it was made from the declared template, which another one runs in the place of, or whose rollout failed and is
/// paused for that.
fn was_rolled_back(desired: &DesiredService, dead: &Instance) -> bool {
    let is_back = |rolled_back: &crate::state::RolledBack| rolled_back.declared == dead.id.revision;
    let Standing { rolled_back, paused, .. } = &desired.standing;
    rolled_back.as_ref().is_some_and(is_back) || matches!(paused, Some(Pause::Failure { .. }))
}

/// Most dead instances of a slot in which something runs: the run before it, for `logs -p`.
const KEPT_BESIDE_A_RUN: usize = 1;

/// Most dead instances of a slot in which nothing runs: the last run, for `logs` and as the memory of its end, and the
/// one before it, for `logs -p`.
const KEPT_WITHOUT_A_RUN: usize = 2;

/// Removes the dead instances of a slot that nobody needs any more.
///
/// Kept are the last ones, so that at any time of a series of crashes there is a last run and one before it. Those of
/// other templates are kept until something is ready in their place, and the last of one that was rolled back, whose output
/// says why, until it is declared no more. `lifecycle.delete_on_exit` gives up all that is kept
/// for its output alone; the last one stays until another instance runs in the slot, for until then it is the only sign
/// that the slot is not just empty.
fn tidy(draft: &mut Draft<'_>, desired: &DesiredService, slot: &Slot<'_>, judge: Judge<'_>) {
    if slot.dead.is_empty() {
        return;
    }
    let runs = slot.fresh.is_some_and(|fresh| matches!(fresh.phase, Phase::Running { .. }));
    let ready = slot.fresh.is_some_and(|fresh| judge.is_ready(fresh));
    let delete = desired.spec.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.delete_on_exit == Some(true));
    let of_template = |dead: &Instance| desired.is_made_from(&dead.id.revision);
    let is_memory = |dead: &Instance| slot.newest.is_some_and(|newest| std::ptr::eq(newest, dead));
    let gives_up = |dead: &Instance| -> Option<Cause> {
        let retired = exit_of(dead).is_some_and(|exit| exit.ended_by == EndedBy::Request(StopCause::Retired));
        match of_template(dead) {
            _ if retired => Some(Cause::Superseded),
            _ if was_rolled_back(desired, dead) => None,
            true => (delete && runs).then_some(Cause::DeleteOnExit),
            false => ready.then_some(Cause::Superseded),
        }
    };
    let mut newest_first = slot.dead.clone();
    newest_first.sort_by_key(|dead| Reverse((is_memory(dead), dead.recency())));
    let mut places = if runs || delete { KEPT_BESIDE_A_RUN } else { KEPT_WITHOUT_A_RUN };
    for dead in newest_first {
        let cause = gives_up(dead).or_else(|| (places == 0).then_some(Cause::Superseded));
        match cause {
            None => places -= 1,
            Some(cause) => drop(draft.retire(dead, Some(&desired.spec), &cause)),
        }
    }
}
