//! Replaces, fills and thins out a service's slots without going below or above its bounds.
//!
//! Two bounds hold at every instant, in whatever order the lanes of a plan come to run and whichever of them
//! fail: what lives (dead instances don't count, those being made or removed do) never grows beyond the desired
//! replicas plus max_surge, and what is available is never brought below the desired replicas minus
//! max_unavailable. So a place that a retirement will free is used by the next plan, not by this one, and an
//! instance that a launch will bring counts once it is seen to be available.
//!
//! A worked example, four replicas at 25 % and 25 % (surge 1, unavailable 1): one new instance is made and one old
//! one retired at the same time (five live, three available). When the old one is gone, a second new one is made;
//! when a new one is available, the next old one goes; and so on.

use std::cmp::Reverse;

use chrono::{DateTime, Utc};

use super::availability::{Judge, Ledger};
use super::diff::{Matched, Slot, count, exit_of};
use super::draft::Draft;
use super::need::{Need, failure, old_held_back};
use super::{Cause, Wait};
use crate::spec::Strategy;
use crate::state::{DesiredService, EndedBy, HealthState, Instance, Phase, StopCause};

/// The replacement of one service's instances.
pub(super) struct Rollout<'p, 'a, 'i> {
    draft: &'p mut Draft<'a>,
    desired: &'p DesiredService,
    matched: &'p Matched<'i>,
    needs: Vec<Need<'i>>,
    judge: Judge<'p>,
    ledger: Ledger,
    /// Old instances that are frozen for idleness, which the budget counts as available where one of them is to go.
    asleep: u32,
    /// Instances that may live at once.
    ceiling: u32,
    /// Nothing may be made: a runtime that matters to the service does not answer.
    blocked: bool,
    /// Old instances have to end before new ones start.
    draining: bool,
    /// Something waits for an instance to become available.
    held: bool,
}

/// An instance that may be taken away, in the order of preference.
struct Candidate<'i, 'p> {
    rank: Rank,
    instance: &'i Instance,
    cause: &'p Cause,
}

/// What taking an instance away costs; the cheapest goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// It serves nobody: created, frozen by somebody else, or in no phase that has a name.
    Idle,
    /// It is frozen for idleness and would serve whoever uses it; whether its slot has nothing else that is available.
    Asleep { is_alone: bool },
    /// It runs and is not ready as far as is known.
    Unready,
    /// It is ready and its slot has an available instance, or is at rest.
    Replaced,
    /// It is ready and its slot has nothing else.
    Ready,
}

impl<'p, 'a, 'i> Rollout<'p, 'a, 'i>
where
    'a: 'p,
    'i: 'p,
{
    pub(super) fn new(
        draft: &'p mut Draft<'a>,
        desired: &'p DesiredService,
        matched: &'p Matched<'i>,
        instances: &[&Instance],
        needs: Vec<Need<'i>>,
    ) -> Self {
        let recreate = desired.spec.rollout().strategy() == Strategy::Recreate;
        let (surge, unavailable) = desired.spec.rollout_bounds(desired.replicas);
        let mut needs = needs;
        for (slot, need) in matched.slots.iter().zip(&mut needs) {
            // What is there serves, and what takes its place is to serve as well.
            let is_in_place = slot.fresh.is_none() && !slot.stale.is_empty();
            if matches!(need, Need::AtRest) && is_in_place && slot.newest.is_some_and(ended_well) {
                *need = Need::Patience;
            }
        }
        let at_rest = count(needs.iter().filter(|need| matches!(need, Need::AtRest)));
        let rolls_out = matched.outdated_live.then_some(desired);
        let judge = Judge { input: draft.input, spec: &desired.spec, rolls_out };
        let lives_unreachable =
            |instance: &&Instance| !matches!(instance.phase, Phase::Exited(_)) && !draft.reachable(instance.runtime);
        let mut rollout = Self {
            blocked: !draft.reachable(desired.runtime) || instances.iter().any(lives_unreachable),
            draft,
            desired,
            matched,
            needs,
            judge,
            ledger: Ledger {
                floor: desired.replicas.saturating_sub(at_rest).saturating_sub(unavailable),
                available: 0,
                ready: 0,
                serving: 0,
            },
            asleep: 0,
            ceiling: desired.replicas.saturating_add(surge),
            draining: recreate && matched.outdated_live,
            held: false,
        };
        rollout.count_instances();
        rollout
    }

    pub(super) fn plan(mut self) {
        self.thin_out();
        self.resume();
        // What can't be followed by a launch is not begun.
        match (self.blocked, self.draining) {
            (true, _) => {}
            (false, true) if self.draft.is_held_back(&self.desired.name) => {}
            (false, true) => self.drain(),
            (false, false) => {
                self.fill();
                self.replace();
            }
        }
        self.say_what_holds();
    }

    fn count_instances(&mut self) {
        let judge = self.judge;
        let slots = || self.matched.slots.iter().zip(&self.needs);
        let holding = slots().filter(|(_, need)| !matches!(need, Need::AtRest)).filter_map(|(slot, _)| slot.fresh);
        let doubles = slots().flat_map(|(slot, _)| slot.duplicates.iter().chain(&slot.beside).copied());
        let current: Vec<&Instance> = holding.chain(doubles).collect();
        let stale = slots().flat_map(|(slot, _)| slot.stale.iter().map(|stale| stale.instance));
        let leaving: Vec<&Instance> = stale.chain(self.matched.surplus.iter().copied()).collect();

        let available = |instances: &[&Instance]| count(instances.iter().filter(|one| judge.is_available(one)));
        let ready = |instances: &[&Instance]| count(instances.iter().filter(|one| judge.is_ready(one)));
        let stale = slots().flat_map(|(slot, _)| slot.stale.iter().map(|stale| stale.instance));
        self.asleep = count(stale.filter(|one| self.is_asleep(one)));
        self.ledger.available = available(&current) + available(&leaving);
        self.ledger.ready = ready(&current) + ready(&leaving);
        self.ledger.serving = available(&current) + count(leaving.iter().filter(|one| judge.may_serve(one)));
    }

    /// Retires what lies beyond the desired replicas, at once; only as many available ones stay as stand in for
    /// slots whose instance is still coming up.
    fn thin_out(&mut self) {
        let mut stand_ins = if self.draining { 0 } else { self.stand_ins() };
        let cause = Cause::ScaledDown { replicas: self.desired.replicas };
        for &instance in &self.matched.surplus {
            let available = self.judge.is_available(instance);
            if available && stand_ins > 0 {
                stand_ins -= 1;
                self.held = true;
                continue;
            }
            let retired = self.draft.retire(instance, Some(&self.desired.spec), &cause);
            match (retired, self.judge.is_ready(instance), self.judge.may_serve(instance)) {
                (true, true, _) => self.ledger.take(available),
                (true, false, true) => self.ledger.take_unready(),
                _ => {}
            }
        }
    }

    /// Lets every frozen instance that holds its slot run on; whatever else is due, nothing is in its way.
    fn resume(&mut self) {
        for need in &self.needs {
            if let Need::Resume(instance) = need {
                self.draft.resume(instance);
            }
        }
    }

    fn stand_ins(&self) -> u32 {
        let available = |instance: &Instance| self.judge.is_available(instance);
        let coming = |(slot, need): &(&Slot<'_>, &Need<'_>)| match (slot.fresh, need) {
            (_, Need::Launch(_) | Need::Start(_) | Need::Resume(_)) => true,
            // A call for it failed and is tried again.
            (_, Need::Patience) => {
                failure(self.draft, self.desired, slot.number).is_some_and(|failure| failure.retryable)
            }
            (Some(fresh), Need::Nothing) => !available(fresh),
            _ => false,
        };
        let coming = count(self.matched.slots.iter().zip(&self.needs).filter(coming));
        let inside = self.matched.slots.iter().zip(&self.needs).filter(|(slot, need)| {
            let holds = !matches!(need, Need::AtRest) && slot.fresh.is_some_and(available);
            holds || slot.stale.iter().any(|stale| available(stale.instance))
        });
        self.ledger.floor.saturating_sub(count(inside)).min(coming)
    }

    /// Fills slots: first those where nothing lives, each of which has a place of its own, then, in the places
    /// that surge adds, those whose instance is to be replaced. A slot whose new instance crashed keeps its place, so that a
    /// bad template is tried in no more slots than were begun with it.
    fn fill(&mut self) {
        let room = self.ceiling.saturating_sub(self.matched.live);
        let vacant = count(self.matched.slots.iter().filter(|slot| slot.is_vacant()));
        let begun = count(self.matched.slots.iter().filter(|slot| has_begun(slot)));
        let surge = room.saturating_sub(vacant);
        let (mut places, mut fresh_places) = ([room, surge], surge.saturating_sub(begun));
        for index in self.order_of_need() {
            let launch = match &self.needs[index] {
                Need::Start(instance) => {
                    self.draft.start(self.desired, instance);
                    continue;
                }
                Need::Launch(launch) => launch.as_ref().clone(),
                Need::Nothing | Need::Resume(_) | Need::Patience | Need::AtRest => continue,
            };
            let slot = &self.matched.slots[index];
            let is_fresh = !slot.is_vacant() && !has_begun(slot);
            let places = &mut places[usize::from(!slot.is_vacant())];
            if *places == 0 || (is_fresh && fresh_places == 0) {
                self.held = true;
                continue;
            }
            *places -= 1;
            fresh_places = fresh_places.saturating_sub(u32::from(is_fresh));
            self.draft.launch(self.desired, launch);
            self.needs[index] = Need::Patience;
        }
    }

    /// Slots that serve nobody first, then by number.
    fn order_of_need(&self) -> Vec<usize> {
        let serves = |slot: &Slot<'_>| slot.stale.iter().any(|stale| self.judge.is_ready(stale.instance));
        let (serving, waiting): (Vec<usize>, Vec<usize>) =
            (0..self.matched.slots.len()).partition(|index| serves(&self.matched.slots[*index]));
        waiting.into_iter().chain(serving).collect()
    }

    /// Retires every outdated instance before the first new one is made.
    fn drain(&mut self) {
        self.draft.wait(Wait::Draining { service: self.desired.name.clone() });
        for stale in self.matched.slots.iter().flat_map(|slot| &slot.stale) {
            if stale.cause.is_rollout() {
                self.draft.retire(stale.instance, Some(&self.desired.spec), &stale.cause);
            }
        }
    }

    /// Retires what is stale and what is double, as far as availability allows.
    fn replace(&mut self) {
        let failing = self.is_failing();
        for candidate in self.candidates() {
            let Candidate { rank, instance, cause } = candidate;
            if !self.draft.may_act(instance) {
                continue;
            }
            let may = match rank {
                Rank::Idle => true,
                Rank::Asleep { is_alone: true } if failing => false,
                Rank::Asleep { .. } => self.spend_asleep(),
                Rank::Unready => self.ledger.spend_unready(),
                Rank::Ready if failing => false,
                Rank::Replaced | Rank::Ready => self.ledger.spend_ready(self.judge.is_available(instance)),
            };
            if may {
                self.draft.retire(instance, Some(&self.desired.spec), cause);
            } else {
                self.held = true;
                // Somebody uses it, and what takes its place may never come.
                let is_used =
                    matches!(rank, Rank::Asleep { .. }) && self.draft.input.history.lives.is_started(instance);
                if is_used && !old_held_back(self.draft, self.desired, instance) {
                    self.draft.resume(instance);
                }
            }
        }
    }

    /// Whether it is frozen for idleness, and whoever uses it has it run on.
    fn is_asleep(&self, instance: &Instance) -> bool {
        matches!(instance.phase, Phase::Paused { .. })
            && self.draft.reachable(instance.runtime)
            && self.draft.input.history.lives.suspended.contains_key(&instance.runtime_id)
    }

    /// Takes one away that is frozen for idleness, if what is left is enough, asleep or not.
    fn spend_asleep(&mut self) -> bool {
        let may = self.ledger.available.saturating_add(self.asleep) > self.ledger.floor;
        self.asleep = self.asleep.saturating_sub(u32::from(may));
        may
    }

    /// Whether calls for new instances fail, or new instances crash; a ready instance then goes only where its successor is
    /// available, so that a bad template takes no more than what was begun with it. A slot whose next try is due and lacks
    /// nothing but a place does not count, or it would never get one.
    fn is_failing(&self) -> bool {
        // No successor may be started while what it depends on is missing.
        if self.draft.is_held_back(&self.desired.name) {
            return true;
        }
        let mut slots = self.matched.slots.iter().zip(&self.needs);
        slots.any(|(slot, need)| match slot.fresh {
            Some(fresh) => fresh.streak > 0 && !self.judge.is_available(fresh),
            // One that is launched now has become patience.
            None if matches!(need, Need::Patience) => {
                failure(self.draft, self.desired, slot.number).is_some()
                    || slot.newest.is_some_and(|newest| crashed(newest) || ended_well(newest))
            }
            None => false,
        })
    }

    fn candidates(&self) -> Vec<Candidate<'i, 'p>> {
        let mut candidates = Vec::new();
        for (slot, need) in self.matched.slots.iter().zip(&self.needs) {
            let at_rest = matches!(need, Need::AtRest);
            let replaced = at_rest || slot.fresh.is_some_and(|fresh| self.judge.is_available(fresh));
            let stale = slot.stale.iter().map(|stale| Candidate {
                rank: self.rank(stale.instance, replaced),
                instance: stale.instance,
                cause: &stale.cause,
            });
            let double = slot.duplicates.iter().map(|instance| Candidate {
                // One of the two is enough, so an unready double serves nobody.
                rank: if self.judge.is_ready(instance) { Rank::Replaced } else { Rank::Idle },
                instance,
                cause: &Cause::Duplicate,
            });
            candidates.extend(stale.chain(double));
        }
        candidates.sort_by_key(|candidate| (candidate.rank, doubt(candidate.instance)));
        candidates
    }

    fn rank(&self, instance: &Instance, replaced: bool) -> Rank {
        match (self.judge.is_ready(instance), self.judge.may_serve(instance)) {
            (true, _) if replaced => Rank::Replaced,
            (true, _) => Rank::Ready,
            (false, true) => Rank::Unready,
            (false, false) if self.is_asleep(instance) => Rank::Asleep { is_alone: !replaced },
            (false, false) => Rank::Idle,
        }
    }

    /// Names the instances that are not ready, and those that the rest waits for.
    fn say_what_holds(&mut self) {
        for fresh in self.matched.slots.iter().filter_map(|slot| slot.fresh) {
            let running = matches!(fresh.phase, Phase::Running { .. }) && fresh.unhealthy().is_none();
            let is_awaited = self.held || self.judge.is_young(fresh) || !fresh.phase.is_ready();
            let is_awaited = is_awaited && !self.judge.is_available(fresh);
            if !running || !(is_awaited || fresh.is_assumed_healthy()) {
                continue;
            }
            let until = self.judge.available_from(fresh).filter(|_| is_awaited);
            if let Some(until) = until {
                self.draft.look_at(until);
            }
            let check = fresh.health.as_ref().filter(|_| until.is_none()).and_then(HealthState::message);
            self.draft.wait(Wait::NotReady { id: fresh.id.clone(), check: check.map(str::to_owned), until });
        }
    }
}

/// How much of what is not ready may serve all the same, the least first: what is known not to, then what was not asked yet,
/// as after the start of a controller, and of that what has run for the longest time last.
fn doubt(instance: &Instance) -> (bool, Reverse<Option<DateTime<Utc>>>) {
    let is_unknown = matches!(instance.health, Some(HealthState::Unknown { .. } | HealthState::Waiting { .. }));
    (is_unknown, Reverse(instance.phase.started_at().filter(|_| is_unknown)))
}

/// Whether a slot whose instance is to be replaced had its new one, which crashed, or ended though it was to serve.
fn has_begun(slot: &Slot<'_>) -> bool {
    let is_over = |newest: &Instance| crashed(newest) || ended_well(newest);
    !slot.is_vacant() && slot.fresh.is_none() && slot.newest.is_some_and(is_over)
}

/// Whether it ended by itself, and well.
pub(super) fn ended_well(instance: &Instance) -> bool {
    exit_of(instance).is_some_and(|exit| exit.ended_by == EndedBy::Itself && exit.is_success())
}

/// Whether it ended by itself, and not well, or had to be ended because its checks failed.
pub(super) fn crashed(instance: &Instance) -> bool {
    exit_of(instance).is_some_and(|exit| match exit.ended_by {
        EndedBy::Itself => !exit.is_success(),
        EndedBy::Request(cause) => cause == StopCause::Unhealthy,
    })
}
