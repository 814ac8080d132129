//! One service: its slots are filled, its surplus goes, its dead are tidied up.

use super::availability::Judge;
use super::diff::{Matched, Slot, exit_of, match_slots};
use super::draft::Draft;
use super::need::need;
use super::restart::{AfterExit, after_exit};
use super::rollout::Rollout;
use super::{Cause, Wait};
use crate::spec::{RType, ServiceSpec};
use crate::state::{DesiredService, EndedBy, Exit, Instance, Phase, StopCause};

/// Plans one declared service. `instances` are those of the service, in order of their identity.
pub(super) fn plan_service(draft: &mut Draft<'_>, desired: &DesiredService, instances: &[&Instance]) {
    if let Some(why) = not_run(&desired.spec) {
        draft.wait(Wait::NotRun { service: desired.name.clone(), why: why.to_owned() });
        return remove_service(draft, Some(&desired.spec), instances);
    }
    let matched = match_slots(desired, instances, draft);
    if !shut_down(draft, desired, &matched) {
        let needs = matched.slots.iter().map(|slot| need(draft, desired, slot)).collect();
        Rollout::new(draft, desired, &matched, instances, needs).plan();
    }
    let judge = Judge { input: draft.input, spec: &desired.spec };
    for slot in &matched.slots {
        tidy(draft, desired, slot, judge);
    }
}

/// Retires every instance of a service that is not declared any more.
pub(super) fn remove_service(draft: &mut Draft<'_>, spec: Option<&ServiceSpec>, instances: &[&Instance]) {
    for instance in instances {
        draft.retire(instance, spec, &Cause::ServiceRemoved);
    }
}

/// Why no replicas of the service are kept, if so.
fn not_run(spec: &ServiceSpec) -> Option<&'static str> {
    match spec.rtype() {
        _ if spec.pool.is_some() => Some("pools are not run yet; remove `pool` to run plain replicas"),
        RType::Job => Some("jobs are not run yet; use `rtype: service` with `restart_policy: {kind: on_failure}`"),
        RType::Cron => Some("cron jobs are not run yet; start it from the machine's own cron until then"),
        RType::Service => None,
    }
}

/// Takes the whole service down where a crash asks for it (`errors.on_panic: shutdown`). Returns whether it did.
fn shut_down(draft: &mut Draft<'_>, desired: &DesiredService, matched: &Matched<'_>) -> bool {
    let crash = |slot: &Slot<'_>| -> Option<Exit> {
        let dead = slot.newest.filter(|dead| dead.runtime == desired.runtime)?;
        let exit = exit_of(dead)?;
        (after_exit(dead, exit, &desired.spec) == AfterExit::ShutDown).then(|| exit.clone())
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
        slot.fresh.into_iter().chain(slot.duplicates.iter().copied()).chain(stale)
    });
    for instance in of_slots.chain(matched.surplus.iter().copied()) {
        draft.retire(instance, Some(&desired.spec), &cause);
    }
    true
}

/// Removes the dead instances of a slot that nobody needs any more.
///
/// Kept are the last dead one of the desired template, for `logs -p` and as the memory of its end, and the last
/// of other templates until something is ready in its place. `lifecycle.delete_on_exit` gives the former up as
/// soon as another instance runs in the slot; until then it is the only sign that the slot is not just empty.
fn tidy(draft: &mut Draft<'_>, desired: &DesiredService, slot: &Slot<'_>, judge: Judge<'_>) {
    if slot.dead.is_empty() {
        return;
    }
    let of_template = |dead: &&&Instance| dead.id.revision == desired.revision;
    let last = slot.dead.iter().filter(of_template).max_by_key(|dead| dead.id.attempt).copied();
    let ended = |dead: &Instance| exit_of(dead).map(|exit| exit.finished_at);
    let last_of_others = slot.dead.iter().filter(|dead| !of_template(dead)).max_by_key(|dead| ended(dead)).copied();
    let is = |one: Option<&Instance>, other: &Instance| one.is_some_and(|one| std::ptr::eq(one, other));

    let runs = slot.fresh.is_some_and(|fresh| matches!(fresh.phase, Phase::Running { .. }));
    let ready = slot.fresh.is_some_and(|fresh| judge.is_ready(fresh));
    let delete = desired.spec.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.delete_on_exit == Some(true));
    for &dead in &slot.dead {
        let retired = exit_of(dead).is_some_and(|exit| exit.ended_by == EndedBy::Request(StopCause::Retired));
        let cause = match () {
            () if retired => Cause::Superseded,
            () if is(last, dead) && delete && runs => Cause::DeleteOnExit,
            () if is(last, dead) || (is(last_of_others, dead) && !ready) => continue,
            () => Cause::Superseded,
        };
        draft.retire(dead, Some(&desired.spec), &cause);
    }
}
