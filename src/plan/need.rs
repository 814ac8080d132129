//! What one slot needs: nothing, a launch, a start, a resume, or patience.

use super::availability::Judge;
use super::diff::{Slot, exit_of, outdated};
use super::draft::{Draft, Launch};
use super::input::Failure;
use super::lifecycle::Verdict;
use super::restart::{AfterExit, OTHERS_MOMENT, after_exit, ends_unhealthy, restart_delay};
use super::time::due;
use super::unproven::is_down_for_checks;
use super::{Cause, RESTART_DELAY_MAX, RETRY_DELAY, RETRY_DELAY_MAX, Wait, backoff};
use crate::spec::{Errors, Lifecycle, OnExpiry, OnIdle, OnInitFailure, ServiceSpec};
use crate::state::{DesiredService, ErrorKind, Instance, InstanceId, Phase, StopCause};

/// What one slot needs.
pub(super) enum Need<'a> {
    /// Nothing: its instance is there, or is being made.
    Nothing,
    /// A new instance.
    Launch(Box<Launch>),
    /// The start of the instance that was created for it.
    Start(&'a Instance),
    /// That its instance runs on, which somebody froze.
    Resume(&'a Instance),
    /// Nothing can be done now; the plan says why.
    Patience,
    /// It is down on purpose, and nobody misses it.
    AtRest,
}

/// Decides what a slot needs and writes down what is waited for.
pub(super) fn need<'a>(draft: &mut Draft<'_>, desired: &DesiredService, slot: &Slot<'a>) -> Need<'a> {
    let need = match slot.fresh {
        Some(fresh) => need_of_fresh(draft, desired, slot, fresh),
        None => need_of_empty(draft, desired, slot),
    };
    let must_wait = match &need {
        Need::Launch(launch) => is_refused(draft, desired) || may_not_begin(draft, desired, slot.number, &launch.id),
        Need::Start(instance) => may_not_begin(draft, desired, slot.number, &instance.id),
        Need::Resume(instance) => held_back(draft, desired, slot.number, &instance.id),
        Need::Nothing | Need::Patience | Need::AtRest => return need,
    };
    if must_wait { Need::Patience } else { need }
}

/// Says so where the runtime would refuse the image, time and again.
pub(super) fn is_refused(draft: &mut Draft<'_>, desired: &DesiredService) -> bool {
    let refusal = desired.runtime.refusal(&desired.spec.image.name);
    let is_refused = refusal.is_some();
    if let Some(why) = refusal {
        draft.wait_once(Wait::NotRun { service: desired.name.clone(), why });
    }
    is_refused
}

/// Says so where the instance may not be started yet: another service has to come first, what helped an earlier start is not
/// gone, or calls for the slot failed.
pub(super) fn may_not_begin(draft: &mut Draft<'_>, desired: &DesiredService, slot: u32, id: &InstanceId) -> bool {
    if draft.is_held_back(&desired.name) {
        draft.say_what_holds_back(&desired.name);
        return true;
    }
    if let Some(helper) = draft.leftover.iter().find(|helper| helper.helps(id)).cloned() {
        draft.wait_once(Wait::InFlight { id: helper });
        return true;
    }
    held_back(draft, desired, slot, id)
}

/// Says so where calls for the slot failed and the next one is not due, which is meant for this instance.
fn held_back(draft: &mut Draft<'_>, desired: &DesiredService, slot: u32, id: &InstanceId) -> bool {
    holds_back(draft, desired, failure(draft, desired, slot), id)
}

/// The same of calls for an instance that another one is to replace.
pub(super) fn old_held_back(draft: &mut Draft<'_>, desired: &DesiredService, old: &Instance) -> bool {
    let failed = draft.input.history.failures.get(&(desired.name.clone(), old.id.slot));
    holds_back(draft, desired, failed.filter(|failure| failure.revision == old.id.revision), &old.id)
}

fn holds_back(draft: &mut Draft<'_>, desired: &DesiredService, failed: Option<&Failure>, id: &InstanceId) -> bool {
    let Some(wait) = failed.and_then(|failure| wait_after(failure, id, desired, draft)) else { return false };
    if let Some(until) = wait.until() {
        draft.look_at(until);
    }
    draft.wait(wait);
    true
}

/// The failed calls for the slot, if they were made for the template that is desired now.
pub(super) fn failure<'a>(draft: &Draft<'a>, desired: &DesiredService, slot: u32) -> Option<&'a Failure> {
    let failures = &draft.input.history.failures;
    if failures.is_empty() {
        return None;
    }
    failures.get(&(desired.name.clone(), slot)).filter(|failure| desired.is_made_from(&failure.revision))
}

/// What failed calls make the next one wait for, unless it is due.
fn wait_after(failure: &Failure, id: &InstanceId, desired: &DesiredService, draft: &Draft<'_>) -> Option<Wait> {
    let (id, error) = (id.clone(), failure.message.clone());
    let refused = |id, error| {
        // What was refused may be put right outside of the spec: a directory made, a variable set.
        let until = due(failure.at, RETRY_DELAY_MAX, draft.input.now);
        (until > draft.input.now).then_some(Wait::Refused { id, kind: failure.kind, error, until })
    };
    if !failure.retryable {
        return refused(id, error);
    }
    let (first, longest, count) = match (failure.kind, on_init_failure(&desired.spec)) {
        (ErrorKind::InitFailed, OnInitFailure::Fail) => return refused(id, error),
        (ErrorKind::InitFailed, OnInitFailure::Restart) => (RETRY_DELAY, RETRY_DELAY, 1),
        (ErrorKind::InitFailed, OnInitFailure::Backoff) => {
            let first = restart_delay(&desired.spec);
            (first, RESTART_DELAY_MAX.max(first), failure.count)
        }
        _ => (RETRY_DELAY, RETRY_DELAY_MAX, failure.count),
    };
    let pause = backoff(first, longest, count, &id.runtime_name());
    let until = due(failure.at, pause, draft.input.now);
    let (failures, kind) = (failure.count, failure.kind);
    (until > draft.input.now).then_some(Wait::Retry { id, kind, failures, error, until })
}

fn on_init_failure(spec: &ServiceSpec) -> OnInitFailure {
    spec.errors.as_ref().map(Errors::on_init_failure).unwrap_or_default()
}

fn need_of_fresh<'a>(
    draft: &mut Draft<'_>,
    desired: &DesiredService,
    slot: &Slot<'_>,
    fresh: &'a Instance,
) -> Need<'a> {
    let halt = match &fresh.phase {
        _ if draft.input.history.lives.is_stopped(desired, fresh.id.slot) => {
            return need_of_stopped(draft, desired, fresh);
        }
        Phase::Created => return Need::Start(fresh),
        Phase::Paused { .. } => return need_of_frozen(draft, desired, fresh),
        Phase::Unknown { message } => {
            draft.wait(Wait::Unknown { id: fresh.id.clone(), message: message.clone() });
            return Need::Patience;
        }
        Phase::Running { .. } if is_spared(draft, desired, slot, fresh) => return Need::Nothing,
        Phase::Running { .. } if is_ended_as_unhealthy(draft, desired, fresh) => return Need::Nothing,
        _ => match draft.verdict(fresh, &desired.spec) {
            Verdict::Idle { since } => (StopCause::Idle, Cause::Idle { since }),
            Verdict::Terminate { since } => (StopCause::Expired, Cause::Expired { since }),
            Verdict::Suspend { since } => {
                return if draft.suspend(fresh, &Cause::Idle { since }) { Need::AtRest } else { Need::Nothing };
            }
            Verdict::Keep { .. } | Verdict::Recycle { .. } | Verdict::Changed => return Need::Nothing,
        },
    };
    if draft.halt(fresh, &desired.spec, halt.0, &halt.1) { Need::AtRest } else { Need::Nothing }
}

/// Says of an instance that it is unhealthy and may not be restarted for that yet, where that is so. It is missed all the same.
fn is_spared(draft: &mut Draft<'_>, desired: &DesiredService, slot: &Slot<'_>, fresh: &Instance) -> bool {
    let judge = Judge { input: draft.input, spec: &desired.spec, rolls_out: None };
    if !fresh.never_passed() || !ends_unhealthy(&desired.spec) || is_down_for_checks(slot, judge) {
        return false;
    }
    if draft.unproven.free > 0 {
        draft.unproven.free -= 1;
        return false;
    }
    let until = draft.unproven.next;
    if let Some(check) = fresh.unhealthy() {
        let spared = Some(draft.unproven.spared);
        draft.wait(Wait::Unhealthy { id: fresh.id.clone(), check: check.to_owned(), spared, until });
    }
    if let Some(until) = until {
        draft.look_at(until);
    }
    true
}

/// What an instance needs that is frozen: nothing while it is suspended for idleness, but for its end where that is due; else
/// that it runs on.
fn need_of_frozen<'a>(draft: &mut Draft<'_>, desired: &DesiredService, fresh: &'a Instance) -> Need<'a> {
    let lives = &draft.input.history.lives;
    let Some(since) = lives.suspended_since(fresh) else {
        if !lives.is_started(fresh) {
            draft.wait(Wait::Paused { id: fresh.id.clone() });
        }
        return Need::Resume(fresh);
    };
    if let Verdict::Terminate { since } = draft.verdict(fresh, &desired.spec) {
        let halts = draft.halt(fresh, &desired.spec, StopCause::Expired, &Cause::Expired { since });
        return if halts { Need::AtRest } else { Need::Nothing };
    }
    let suspends = |lifecycle: &Lifecycle| lifecycle.max_idle.is_some() && lifecycle.on_idle == Some(OnIdle::Suspend);
    if !desired.spec.lifecycle.as_ref().is_some_and(suspends) {
        // Nothing keeps it frozen any more.
        return Need::Resume(fresh);
    }
    draft.wait(Wait::IdleSuspended { id: fresh.id.clone(), since });
    Need::AtRest
}

/// What an instance needs whose slot is to stay down: its end.
fn need_of_stopped<'a>(draft: &mut Draft<'_>, desired: &DesiredService, fresh: &Instance) -> Need<'a> {
    match fresh.phase {
        Phase::Running { .. } | Phase::Paused { .. } => {
            let halts = draft.halt(fresh, &desired.spec, StopCause::Asked, &Cause::StopAsked);
            if halts { Need::AtRest } else { Need::Nothing }
        }
        // It was never started, and is not now.
        Phase::Created => {
            draft.wait(Wait::StopAsked { id: fresh.id.clone() });
            Need::AtRest
        }
        Phase::Unknown { ref message } => {
            draft.wait(Wait::Unknown { id: fresh.id.clone(), message: message.clone() });
            Need::Patience
        }
        Phase::Pending | Phase::Stopping | Phase::Exited(_) => Need::Nothing,
    }
}

/// Says of an instance that it is unhealthy, and ends it where its policy has an answer to that, as to a crash. Returns
/// whether it is to end. It is missed either way.
pub(super) fn is_ended_as_unhealthy(draft: &mut Draft<'_>, desired: &DesiredService, fresh: &Instance) -> bool {
    let Some(check) = fresh.unhealthy().map(str::to_owned) else { return false };
    draft.wait(Wait::Unhealthy { id: fresh.id.clone(), check: check.clone(), spared: None, until: None });
    let ends = ends_unhealthy(&desired.spec);
    if ends {
        draft.halt(fresh, &desired.spec, StopCause::Unhealthy, &Cause::Unhealthy { check });
    }
    ends
}

fn need_of_empty<'a>(draft: &mut Draft<'_>, desired: &DesiredService, slot: &Slot<'_>) -> Need<'a> {
    let restarts = slot.newest.map_or(0, |newest| newest.restarts);
    let replace = || Need::Launch(Box::new(launch(draft, desired, slot, restarts, 0, replaced(desired, slot))));
    // An end on another runtime, or of another template, says nothing about this one.
    let last = slot.newest.filter(|newest| newest.runtime == desired.runtime);
    if draft.input.history.lives.is_stopped(desired, slot.number) {
        let would_be = || launch(draft, desired, slot, restarts, 0, Cause::StopAsked).id;
        let id = last.map_or_else(would_be, |last| last.id.clone());
        draft.wait(Wait::StopAsked { id });
        return Need::AtRest;
    }
    let is_ending = |last: &&Instance| last.phase == Phase::Stopping;
    if last.filter(is_ending).is_some_and(|last| may_rest(&desired.spec) || last.unhealthy().is_some()) {
        // Why it ends will say whether it is missed.
        return Need::Patience;
    }
    let Some((dead, exit)) = last.and_then(|dead| exit_of(dead).map(|exit| (dead, exit))) else {
        return replace();
    };
    if let Some(cause) = draft.input.history.lives.why_started(dead) {
        return Need::Launch(Box::new(launch(draft, desired, slot, restarts, 0, cause)));
    }
    match after_exit(dead, exit, desired) {
        AfterExit::Replace if exit.is_by_others() => {
            let until = due(exit.finished_at, OTHERS_MOMENT, draft.input.now);
            if until > draft.input.now {
                draft.wait(Wait::BackOff { id: dead.id.clone(), exit: exit.clone(), until });
                draft.look_at(until);
                return Need::Patience;
            }
            let cause = Cause::StoppedByOthers { exit: exit.clone() };
            Need::Launch(Box::new(launch(draft, desired, slot, restarts, dead.streak, cause)))
        }
        AfterExit::Replace => replace(),
        AfterExit::Restart { pause, streak } => {
            let until = due(exit.finished_at, pause, draft.input.now);
            if until <= draft.input.now {
                let cause = Cause::Exited { exit: exit.clone(), streak };
                let restarts = restarts.saturating_add(1);
                return Need::Launch(Box::new(launch(draft, desired, slot, restarts, streak, cause)));
            }
            draft.wait(Wait::BackOff { id: dead.id.clone(), exit: exit.clone(), until });
            draft.look_at(until);
            Need::Patience
        }
        AfterExit::AtRest(wait) => {
            draft.wait(wait);
            Need::AtRest
        }
        AfterExit::Failed(wait) => {
            draft.wait(wait);
            Need::Patience
        }
        // The whole service is down, which is decided before any slot is asked.
        AfterExit::ShutDown => Need::Patience,
    }
}

/// Whether an instance may be stopped and stay down.
fn may_rest(spec: &ServiceSpec) -> bool {
    let lifecycle = spec.lifecycle.as_ref();
    lifecycle.is_some_and(|one| one.max_idle.is_some() || one.on_expiry == Some(OnExpiry::Terminate))
}

fn launch(
    draft: &Draft<'_>,
    desired: &DesiredService,
    slot: &Slot<'_>,
    restarts: u32,
    streak: u32,
    cause: Cause,
) -> Launch {
    let id = InstanceId {
        deployment: draft.input.deployment.to_owned(),
        service: desired.name.clone(),
        slot: slot.number,
        revision: desired.revision.clone(),
        attempt: slot.next_attempt(),
        run: None,
    };
    Launch { id, restarts, streak, cause }
}

/// Why a slot without an instance of its own gets one: what is in its place is stale, or there is nothing.
fn replaced(desired: &DesiredService, slot: &Slot<'_>) -> Cause {
    let stale = slot.stale.last().map(|stale| stale.cause.clone());
    let dead = || slot.dead.iter().rev().find_map(|dead| outdated(dead, desired));
    stale.or_else(dead).unwrap_or(Cause::Missing { replicas: desired.replicas })
}
