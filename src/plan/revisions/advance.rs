//! Carries the memory of a service's rollouts on: a rollout begins, makes progress, completes or fails.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use super::history::{
    Declaration, FailedOrder, KnownRevision, Ordered, Outcome, Pin, Restart, RolloutHistory, RolloutProgress,
};
use super::judge::{Findings, Past, is_failing_in_a_slot, look};
use super::obstacle::obstacle;
use super::order::resume;
use crate::plan::Input;
use crate::plan::depends::{HeldBack, held_back};
use crate::plan::time::{earliest, elapsed};
use crate::plan::{PROVEN_RUN, replicas};
use crate::spec::{HumanDuration, OnRolloutFailure, RType, Revision};
use crate::state::{DesiredService, Failed, FailureReason, GoesOn, Instance, Pause, Phase, RolloutFailure};

/// Most restarts by hand of one template that are told apart where nothing remembers them any more.
const MOST_RESTARTS: u32 = 1_000;

/// What a service's rollouts are judged by.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Everything that is planned from.
    pub input: &'a Input<'a>,
    /// The service as it is declared, with the replicas that were ordered.
    pub declared: &'a DesiredService,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Advance {
    /// What was decided, in order.
    pub decisions: Vec<Decision>,
    /// Whether a rollout began: calls that failed for the service say nothing of it.
    pub began: bool,
    /// When time alone can change something.
    pub next_look: Option<DateTime<Utc>>,
}

/// Something that was decided, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What kind of thing, in one CamelCase word.
    pub kind: &'static str,
    /// What, with what it was decided from.
    pub message: String,
    /// Whether somebody should have a look.
    pub is_trouble: bool,
}

/// Carries the memory of one service on to now. Nothing for jobs and pools, whose instances are not rolled.
///
/// A second call straight afterwards changes nothing.
pub fn advance(history: &mut RolloutHistory, seen: Seen<'_>) -> Advance {
    let declared = seen.declared;
    let mut advance = Advance::default();
    if declared.spec.rtype() != RType::Service || declared.spec.pool.is_some() {
        *history = RolloutHistory::default();
        return advance;
    }
    history.follow_template(declared);
    let declared = &history.with_image(declared);
    let mut course = Course { history, seen: Seen { declared, ..seen }, advance: &mut advance };
    course.forget_what_is_over();
    course.adopt_restarts();
    course.go_on();
    advance
}

struct Course<'c, 'a> {
    history: &'c mut RolloutHistory,
    seen: Seen<'a>,
    advance: &'c mut Advance,
}

impl Course<'_, '_> {
    fn now(&self) -> DateTime<Utc> {
        self.seen.input.now
    }

    fn say(&mut self, kind: &'static str, is_trouble: bool, what: impl std::fmt::Display) {
        let message = format!("{}/{}: {what}", self.seen.input.deployment, self.seen.declared.name);
        self.advance.decisions.push(Decision { kind, message, is_trouble });
    }

    /// Lets go of what held for another declaration.
    fn forget_what_is_over(&mut self) {
        let (declared, now) = (self.seen.declared, self.now());
        // A clock that was set back says nothing of what came before.
        self.history.tried_anew = self.history.tried_anew.filter(|at| *at <= now);
        self.history.checks_changed = self.history.checks_changed.filter(|at| *at <= now);
        let pin = &self.history.pin;
        if pin.as_ref().is_some_and(|pin| !pin.declared.is(declared) || self.history.known(&pin.to).is_none()) {
            self.history.pin = None;
        }
        let is_new = self.history.rollout.as_ref().is_none_or(|rollout| !rollout.declaration.is(declared));
        if is_new && matches!(self.history.pause, Some(Pause::Failure { .. })) {
            self.history.pause = None;
        }
        self.history.failed_order.take_if(|failed| !failed.declared.is(declared));
        self.try_what_waited_in_vain();
        let target = self.history.pin.as_ref().map(|pin| &pin.to);
        let is_of = |of: &Revision| match target {
            Some(target) => target == of,
            None => declared.is_made_from(of),
        };
        if self.history.restart.as_ref().is_some_and(|restart| !is_of(&restart.of)) {
            self.history.restart = None;
        }
    }

    /// Tries what failed only because something that it depends on was not as it had to be, where that is so now: a job was
    /// mended and has completed, or a service is healthy. Nothing is tried of what `keel stop` holds down.
    fn try_what_waited_in_vain(&mut self) {
        let waited = |failure: &RolloutFailure| failure.reason == FailureReason::DependencyTimeout;
        match (&self.history.pause, &self.history.pin) {
            (Some(Pause::Failure { failure }), _) if waited(failure) => self.go_on_from_pause(),
            (None, Some(Pin { failure: Some(failure), .. })) if waited(failure) => self.leave_way_back(),
            (None, None) if self.history.failed_order.as_ref().is_some_and(|failed| waited(&failed.failure)) => {
                self.undo_again();
            }
            _ => {}
        }
    }

    fn go_on_from_pause(&mut self) {
        let wanted = self.history.wanted(self.seen.declared);
        if self.may_be_tried(&wanted) && resume(self.history, self.now()).is_ok() {
            self.say_it_is_tried(&wanted.revision);
        }
    }

    fn leave_way_back(&mut self) {
        let declared = self.seen.declared;
        let Some(pin) = self.history.pin.clone() else { return };
        // What is declared may have failed otherwise before somebody asked for another one, which alone is tried.
        let (tried, pin) = match pin.from_undo {
            true => (pin.from.clone(), Some(self.undo_to(pin.from))),
            false => (declared.revision.clone(), None),
        };
        self.try_with(pin, &tried);
    }

    /// Has the target of an undo run again that was left for what is declared.
    fn undo_again(&mut self) {
        let undone = self.history.failed_order.as_ref().and_then(|failed| match &failed.order {
            Ordered::Undo(to) => Some(to.clone()),
            Ordered::Restart => None,
        });
        let Some(to) = undone.filter(|to| self.history.known(to).is_some()) else { return };
        if self.try_with(Some(self.undo_to(to.clone())), &to) {
            self.history.failed_order = None;
        }
    }

    /// Has that revision run in place of what is declared.
    fn undo_to(&self, to: Revision) -> Pin {
        let declared = self.seen.declared;
        Pin {
            declared: Declaration::of(declared),
            from: declared.revision.clone(),
            to,
            since: self.now(),
            failure: None,
            from_undo: false,
        }
    }

    /// Tries a revision from the start under this pin, where what it depends on is as it has to be and nothing else is in the
    /// way. Returns whether it is.
    fn try_with(&mut self, pin: Option<Pin>, tried: &Revision) -> bool {
        let before = std::mem::replace(&mut self.history.pin, pin);
        let is_tried = self.may_be_tried(&self.history.wanted(self.seen.declared));
        match is_tried {
            true => self.try_from_the_start(tried),
            false => self.history.pin = before,
        }
        is_tried
    }

    fn try_from_the_start(&mut self, revision: &Revision) {
        self.say_it_is_tried(revision);
        self.history.rollout = None;
        self.history.tried_anew = Some(self.now());
    }

    fn may_be_tried(&self, wanted: &DesiredService) -> bool {
        let input = self.seen.input;
        let is_stopped = input.history.lives.orders.stopped.contains_key(&wanted.name);
        let is_silent = input.unreachable.contains_key(&wanted.runtime);
        !input.history.suspended && !is_stopped && !is_silent && held_back(input, wanted) == HeldBack::No
    }

    fn say_it_is_tried(&mut self, revision: &Revision) {
        let number = self.history.number(revision);
        let text = format!("revision {number} is tried again, as what it depends on is as it has to be now");
        self.say("RolloutRetried", false, text);
    }

    /// Where nothing is remembered and all that lives was restarted by hand before, it stays.
    fn adopt_restarts(&mut self) {
        let declared = self.seen.declared;
        if !self.history.revisions.is_empty() || self.history.restart.is_some() {
            return;
        }
        let mut alive = self.alive().filter(|instance| !declared.is_made_from(&instance.id.revision));
        let Some(revision) = alive.next().map(|instance| instance.id.revision.clone()) else { return };
        drop(alive);
        self.history.restart = self.restart_to(&revision);
    }

    /// The restart by hand of what is declared that leads to a revision, where one does.
    fn restart_to(&self, revision: &Revision) -> Option<Restart> {
        let declared = self.seen.declared;
        let bases = || [&declared.revision].into_iter().chain(&declared.equivalent);
        (1..=MOST_RESTARTS).find_map(|count| {
            let of = bases().find(|base| base.restarted(count) == *revision)?;
            Some(Restart { of: of.clone(), count })
        })
    }

    fn alive(&self) -> impl Iterator<Item = &Instance> {
        let input = self.seen.input;
        let mine = |instance: &&Instance| {
            instance.id.deployment == input.deployment && instance.id.service == self.seen.declared.name
        };
        input.observed.iter().filter(mine).filter(|instance| !matches!(instance.phase, Phase::Exited(_)))
    }

    fn go_on(&mut self) {
        let now = self.now();
        self.history.compare_checks(self.seen.declared, now);
        let wanted = self.history.wanted(self.seen.declared);
        self.try_what_was_untried(&wanted);
        let mut found = look(self.seen.input, &wanted, self.past(&wanted));
        if self.begin(&wanted, &found) {
            found = look(self.seen.input, &wanted, self.past(&wanted));
        }
        self.history.refresh(&wanted);
        let failure = self.measure(&wanted, &found);
        match failure {
            Some(failure) => self.fail(&wanted, &found, failure),
            None => self.look_again(&wanted, &found),
        }
    }

    /// What is known of what is wanted. Where nothing is remembered, what was put to rest for idleness had worked.
    fn past(&self, wanted: &DesiredService) -> Past {
        let rollout = self.history.rollout.as_ref();
        let counts_from = rollout.and_then(|rollout| rollout.counts_from);
        let rollout = rollout.filter(|rollout| wanted.is_made_from(&rollout.revision));
        let known = self.history.known(&wanted.revision);
        let was_complete = known.is_some_and(|known| known.completed_at.is_some() && !known.untried);
        let has_failed = known.is_some_and(|known| known.failed);
        Past {
            counts_from,
            was_ready: was_complete
                || self.history.revisions.is_empty()
                || rollout.is_some_and(|rollout| rollout.was_ready),
            was_available: was_complete || !has_failed && rollout.is_some_and(|rollout| rollout.available > 0),
            was_proven: known.is_some_and(|known| known.settled) || rollout.is_some_and(|rollout| rollout.proven),
        }
    }

    /// Begins another rollout where something else is to run, or what failed is declared in another way. Returns whether it
    /// did.
    fn begin(&mut self, wanted: &DesiredService, found: &Findings) -> bool {
        let (now, declared) = (self.now(), self.seen.declared);
        if let Some(rollout) = &mut self.history.rollout
            && rollout.outcome == Outcome::Going
            && wanted.is_made_from(&rollout.revision)
            && rollout.declaration.is_but_for_image(declared)
        {
            rollout.declaration = Declaration::of(declared);
        }
        let goes_on = self.history.rollout.as_ref().is_some_and(|rollout| {
            let is_done = matches!(rollout.outcome, Outcome::Complete { .. });
            wanted.is_made_from(&rollout.revision) && (is_done || rollout.declaration.is(declared))
        });
        if goes_on {
            return false;
        }
        let is_first = self.history.revisions.is_empty();
        self.trust_what_was_complete();
        self.history.note(wanted, now);
        self.history.rollout = Some(RolloutProgress {
            revision: wanted.revision.clone(),
            declaration: Declaration::of(declared),
            began: now,
            counts_from: (!is_first).then_some(now),
            clock: Default::default(),
            replicas: wanted.replicas,
            available: found.available,
            old: found.old,
            was_ready: is_first && found.idle > 0,
            proven: false,
            trusted: BTreeSet::new(),
            outcome: Outcome::Going,
        });
        let running: BTreeSet<Revision> = self.alive().map(|instance| instance.id.revision.clone()).collect();
        self.history.prune(wanted, &running.iter().collect());
        if !(is_first && found.complete) {
            let number = self.history.number(&wanted.revision);
            let text = format!(
                "rollout of revision {number} ({}) begins: {} of {} available, {}",
                wanted.revision.short(),
                found.available,
                replicas(wanted.replicas),
                old_instances(found.old)
            );
            self.say("RolloutStarted", false, text);
        }
        self.advance.began |= !is_first;
        true
    }

    /// Judges what was complete without replicas as one that begins, now that some are to run.
    fn try_what_was_untried(&mut self, wanted: &DesiredService) {
        let now = self.now();
        let Some(rollout) = &mut self.history.rollout else { return };
        let is_untried = rollout.replicas == 0 && matches!(rollout.outcome, Outcome::Complete { settled: false, .. });
        if is_untried && wanted.replicas > 0 && wanted.is_made_from(&rollout.revision) {
            (rollout.began, rollout.counts_from, rollout.outcome) = (now, Some(now), Outcome::Going);
        }
    }

    /// Trusts what was complete for long enough by now, though nobody looked in between, unless it fails as far as is seen.
    fn trust_what_was_complete(&mut self) {
        let Some(rollout) = &self.history.rollout else { return };
        let Outcome::Complete { at, .. } = rollout.outcome else { return };
        let revision = rollout.revision.clone();
        let is_of = |of: &Revision| *of == revision || self.history.known(&revision).is_some_and(|known| known.is(of));
        let fails = is_failing_in_a_slot(self.seen.input, &self.seen.declared.name, is_of);
        let ran = rollout.replicas > 0;
        if ran && !fails && elapsed(at, self.now()) >= PROVEN_RUN {
            self.history.set_completed(&revision, at, true);
        }
    }

    /// Takes stock of the rollout; gives how it has failed, where it has now.
    fn measure(&mut self, wanted: &DesiredService, found: &Findings) -> Option<RolloutFailure> {
        let now = self.now();
        let stands = self.history.pause.is_some() || self.seen.input.history.suspended || found.blind;
        let rollout = self.history.rollout.as_mut()?;
        // What may not begin yet, is to be down for now, or nobody had a look at, makes no progress, and is none the worse for
        // it.
        let counts = !stands && !found.waits && !found.unchecked && !found.rests;
        rollout.clock.run(counts && rollout.outcome == Outcome::Going, now);
        rollout.clock.step(now);
        if found.blind {
            return None;
        }
        rollout.was_ready |= found.ready;
        trust(rollout, found);
        let made_progress = found.available > rollout.available || found.old < rollout.old;
        if made_progress || rollout.replicas != wanted.replicas {
            rollout.clock.reset(now);
            (rollout.available, rollout.old) = match rollout.replicas == wanted.replicas {
                true => (rollout.available.max(found.available), rollout.old.min(found.old)),
                false => (found.available, found.old),
            };
            rollout.replicas = wanted.replicas;
            if made_progress && matches!(rollout.outcome, Outcome::Failed { .. }) && !stands {
                rollout.outcome = Outcome::Going;
                rollout.clock.run(counts, now);
            }
        }
        let watched = !matches!(rollout.outcome, Outcome::Complete { settled: true, .. });
        if found.complete && watched {
            self.complete(wanted, found);
            return None;
        }
        let rollout = self.history.rollout.as_ref()?;
        if stands || !watched || matches!(rollout.outcome, Outcome::Failed { .. }) {
            return None;
        }
        let crashes = found.ended.clone().filter(|ended| !rollout.proven || ended.reason == FailureReason::GaveUp);
        let is_going = rollout.outcome == Outcome::Going;
        let deadline = wanted.spec.rollout().progress_deadline();
        let overdue = is_going && rollout.clock.spent(now) >= deadline;
        let overdue = overdue.then(|| {
            let obstacle = obstacle(self.seen.input, wanted, rollout.counts_from);
            overdue_after(HumanDuration(deadline), wanted, found, obstacle)
        });
        // What is declared for the first time waits on.
        let leads_back = || self.way_back(wanted, found).is_some();
        let forsaken = || found.forsaken.clone().filter(|_| is_going && leads_back());
        crashes.or_else(|| found.refused.clone().filter(|_| is_going)).or_else(forsaken).or(overdue)
    }

    fn complete(&mut self, wanted: &DesiredService, found: &Findings) {
        let now = self.now();
        let Some(rollout) = &mut self.history.rollout else { return };
        let at = match rollout.outcome {
            Outcome::Complete { at, .. } => Some(at),
            Outcome::Going | Outcome::Failed { .. } => None,
        };
        let since = at.unwrap_or(now);
        rollout.outcome = Outcome::Complete { at: since, settled: found.settled };
        rollout.clock = Default::default();
        let began = rollout.began;
        match wanted.replicas {
            0 => self.history.set_completed_untried(&wanted.revision, since),
            _ => self.history.set_completed(&wanted.revision, since, found.settled),
        }
        self.history.tried_anew = None;
        if at.is_some() {
            return;
        }
        let took = HumanDuration(std::time::Duration::from_secs((now - began).num_seconds().try_into().unwrap_or(0)));
        if matches!(self.history.pause, Some(Pause::Failure { .. })) {
            self.history.pause = None;
        }
        let number = self.history.number(&wanted.revision);
        let text = format!(
            "revision {number} ({}) is rolled out to {}, {took} after it began",
            wanted.revision.short(),
            replicas(wanted.replicas)
        );
        // What was there from the first moment on was not rolled out.
        if began < now {
            self.say("RolloutComplete", false, text);
        }
    }

    /// Where a rollout that fails leads back to: what was complete, else what serves.
    fn way_back(&self, wanted: &DesiredService, found: &Findings) -> Option<&KnownRevision> {
        let serves = |known: &KnownRevision| found.serving.iter().any(|revision| known.is(revision));
        let complete = self.history.way_back(&wanted.revision, serves);
        complete.or_else(|| self.history.serving(&wanted.revision, serves))
    }

    /// Does what the spec asks for where a rollout fails.
    fn fail(&mut self, wanted: &DesiredService, found: &Findings, failure: RolloutFailure) {
        let now = self.now();
        let number = self.history.number(&wanted.revision);
        self.history.set_failed(&wanted.revision, failure.reason);
        // Whatever it has come to, it is not complete any more.
        self.set_failed(now, None);
        let good = self.way_back(wanted, found).map(|good| (good.number, good.revision.clone()));
        let on_failure = wanted.spec.rollout().on_failure();
        // An undo is an order as any other, and fails as any other rollout.
        let is_way_back = wanted.standing.rolled_back.as_ref().is_some_and(|back| back.failure.is_some());
        let goes_on = match (on_failure, good) {
            _ if is_way_back => GoesOn::RollingBack,
            (OnRolloutFailure::Continue, _) => GoesOn::Continue,
            (OnRolloutFailure::Rollback, None) => GoesOn::NoTarget,
            (OnRolloutFailure::Rollback, Some((target, to))) => {
                let text = format!(
                    "revision {number} failed: {}; rolling back to revision {target} ({})",
                    failure.message,
                    to.short()
                );
                self.go_back(wanted, to, failure);
                self.say("RolledBack", true, text);
                return self.go_on();
            }
            (OnRolloutFailure::Pause, _) => {
                self.say(
                    "RolloutPaused",
                    true,
                    format!("revision {number} failed, and its rollout is paused: {}", failure.message),
                );
                self.set_failed(now, None);
                self.history.pause = Some(Pause::Failure { failure });
                return;
            }
        };
        // What ended for good is not tried on.
        let goes = if failure.reason == FailureReason::GaveUp { "" } else { ", and goes on" };
        self.say("RolloutFailed", true, format!("the rollout of revision {number} failed{goes}: {}", failure.message));
        self.set_failed(now, Some(Failed { failure, goes_on }));
    }

    /// Has the revision run that a failure leads back to.
    fn go_back(&mut self, wanted: &DesiredService, to: Revision, failure: RolloutFailure) {
        let declared = self.seen.declared;
        let restart = self.restart_to(&to);
        // The way back of an undo or a restart may be what is declared, restarted before or not.
        let is_declared = restart.is_some() || declared.is_made_from(&to);
        self.history.restart = restart;
        if is_declared {
            let declared = Declaration::of(declared);
            self.history.pin = None;
            let order = match &wanted.standing {
                standing if standing.is_undone() => Some(Ordered::Undo(wanted.revision.clone())),
                standing => standing.restarted.then_some(Ordered::Restart),
            };
            self.history.failed_order = order.map(|order| FailedOrder { declared, order, failure });
            return;
        }
        self.history.failed_order = None;
        self.history.pin = Some(Pin {
            declared: Declaration::of(declared),
            from: wanted.revision.clone(),
            to,
            since: self.now(),
            failure: Some(failure),
            from_undo: wanted.standing.is_undone(),
        });
    }

    fn set_failed(&mut self, at: DateTime<Utc>, failed: Option<Failed>) {
        if let Some(rollout) = &mut self.history.rollout {
            rollout.clock.run(false, at);
            rollout.outcome = Outcome::Failed { at, failed };
        }
    }

    /// Notes when time alone will change something.
    fn look_again(&mut self, wanted: &DesiredService, found: &Findings) {
        let now = self.now();
        let Some(rollout) = &self.history.rollout else { return };
        let deadline = match rollout.outcome {
            Outcome::Going => {
                let deadline = rollout.clock.reaches(wanted.spec.rollout().progress_deadline(), now);
                earliest([deadline, rollout.clock.next_step()])
            }
            Outcome::Complete { .. } | Outcome::Failed { .. } => None,
        };
        let is_watched = !matches!(rollout.outcome, Outcome::Complete { settled: true, .. });
        let next = found.next.filter(|_| is_watched && !found.blind);
        self.advance.next_look = earliest([deadline, next]);
    }
}

/// Notes which new instances are to be trusted, and takes that back for those of which it is known by now that they ended too
/// early.
fn trust(rollout: &mut RolloutProgress, found: &Findings) {
    if !rollout.trusted.is_disjoint(&found.short_lived) {
        rollout.proven = rollout.trusted.difference(&found.short_lived).next().is_some();
        if let Outcome::Complete { settled, .. } = &mut rollout.outcome {
            *settled = false;
        }
    }
    rollout.proven |= found.proven > 0;
    rollout.trusted = found.trusted.clone();
}

fn overdue_after(
    deadline: HumanDuration,
    wanted: &DesiredService,
    found: &Findings,
    obstacle: Option<String>,
) -> RolloutFailure {
    let message = format!(
        "no progress within rollout.progress_deadline ({deadline}): {} of {} new replicas are available, and {} {} left{}",
        found.available,
        wanted.replicas,
        old_instances(found.old),
        if found.old == 1 { "is" } else { "are" },
        obstacle.map(|what| format!("; the last trouble: {what}")).unwrap_or_default()
    );
    RolloutFailure { reason: FailureReason::ProgressDeadlineExceeded, message }
}

fn old_instances(count: u32) -> String {
    format!("{count} old {}", if count == 1 { "instance" } else { "instances" })
}
