//! The list of known revisions: each new one is noted, and old ones are let go of.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use super::history::{KnownRevision, Ordered, RolloutHistory};
use crate::spec::Revision;
use crate::state::{DesiredService, FailureReason};

impl RolloutHistory {
    /// Notes that this is to run from now on. One that was known before gets the next number, where others came after it.
    pub(super) fn note(&mut self, wanted: &DesiredService, now: DateTime<Utc>) {
        let place = self.revisions.iter().position(|known| known.is(&wanted.revision));
        let before = place.map(|place| self.revisions.remove(place));
        let next = self.revisions.last().map_or(1, |known| known.number + 1);
        let number = before.as_ref().map_or(next, |known| known.number.max(next));
        self.revisions.push(KnownRevision {
            number,
            declared_at: before.as_ref().map_or(now, |known| known.declared_at),
            completed_at: before.as_ref().and_then(|known| known.completed_at),
            settled: before.as_ref().is_some_and(|known| known.settled),
            untried: before.as_ref().is_some_and(|known| known.untried),
            failed: before.as_ref().is_some_and(|known| known.failed),
            waited_in_vain: before.as_ref().is_some_and(|known| known.waited_in_vain),
            ..known(wanted, now)
        });
    }

    /// Notes how what is declared is declared now; its template is the same.
    pub(super) fn refresh(&mut self, wanted: &DesiredService) {
        let Some(place) = self.revisions.iter_mut().find(|known| known.is(&wanted.revision)) else { return };
        if wanted.standing.rolled_back.is_none() && (*place.spec != *wanted.spec || place.source != wanted.source) {
            (place.spec, place.source) = (wanted.spec.clone(), wanted.source.clone());
        }
    }

    /// Notes when the health checks of what is to run are declared otherwise than before, before that is [noted](Self::note)
    /// or [refreshed](Self::refresh).
    pub(super) fn compare_checks(&mut self, declared: &DesiredService, now: DateTime<Utc>) {
        let wanted = self.wanted(declared);
        if self.known(&wanted.revision).is_some_and(|known| known.spec.health != wanted.spec.health) {
            self.checks_changed = Some(now);
        }
    }

    /// Notes that the rollout of a revision is complete, since when, and whether that can be trusted.
    pub(super) fn set_completed(&mut self, revision: &Revision, at: DateTime<Utc>, settled: bool) {
        if let Some(known) = self.revisions.iter_mut().find(|known| known.is(revision)) {
            (known.completed_at, known.settled, known.untried, known.failed) = (Some(at), settled, false, false);
            known.waited_in_vain = false;
        }
    }

    /// Notes that nothing is left to do for a revision of which no replicas are to run, since when. That says nothing of
    /// whether it works: what was known of that before stays.
    pub(super) fn set_completed_untried(&mut self, revision: &Revision, at: DateTime<Utc>) {
        if let Some(known) = self.revisions.iter_mut().find(|known| known.is(revision) && !known.failed) {
            known.untried |= known.completed_at.is_none();
            known.completed_at = Some(at);
        }
    }

    /// Notes that the rollout of a revision failed for this reason: it is no way back any more.
    pub(super) fn set_failed(&mut self, revision: &Revision, reason: FailureReason) {
        if let Some(known) = self.revisions.iter_mut().find(|known| known.is(revision)) {
            let worked = known.completed_at.is_some() || known.waited_in_vain;
            known.waited_in_vain = worked && reason == FailureReason::DependencyTimeout;
            (known.completed_at, known.settled, known.untried, known.failed) = (None, false, false, true);
        }
    }

    /// Lets go of the oldest revisions beyond what the spec keeps. What is to run or does, and what a rollback goes to or
    /// came from, stays.
    pub(super) fn prune(&mut self, wanted: &DesiredService, running: &BTreeSet<&Revision>) {
        let most = usize::try_from(wanted.spec.rollout().history()).unwrap_or(usize::MAX).saturating_add(1);
        let runs = |known: &KnownRevision| running.iter().any(|revision| known.is(revision));
        let trusted = self.way_back(&wanted.revision, |_| false).map(|known| known.revision.clone());
        let good = self.way_back(&wanted.revision, runs).map(|known| known.revision.clone());
        let pinned = self.pin.iter().flat_map(|pin| [&pin.from, &pin.to]);
        let undone = self.failed_order.iter().filter_map(|failed| match &failed.order {
            Ordered::Undo(to) => Some(to),
            Ordered::Restart => None,
        });
        let needed: Vec<Revision> = pinned
            .chain(undone)
            .chain(running.iter().copied())
            .chain(&good)
            .chain(&trusted)
            .chain([&wanted.revision])
            .cloned()
            .collect();
        let mut surplus = self.revisions.len().saturating_sub(most);
        self.revisions.retain(|known| {
            let goes = surplus > 0 && !needed.iter().any(|revision| known.is(revision));
            surplus -= usize::from(goes);
            !goes
        });
    }
}

fn known(wanted: &DesiredService, now: DateTime<Utc>) -> KnownRevision {
    KnownRevision {
        number: 0,
        revision: wanted.revision.clone(),
        equivalent: wanted.equivalent.clone(),
        runtime: wanted.runtime,
        spec: wanted.spec.clone(),
        source: wanted.source.clone(),
        declared_at: now,
        completed_at: None,
        settled: false,
        untried: false,
        failed: false,
        waited_in_vain: false,
    }
}
