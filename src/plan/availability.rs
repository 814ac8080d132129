//! Which instances count as available, and how much of that a rollout may spend.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::Input;
use super::backoff::{PROBATION, PROVEN_RUN};
use super::time::after;
use crate::spec::ServiceSpec;
use crate::state::{DesiredService, Instance, Phase};

/// Judges the availability of a service's instances at one time.
#[derive(Clone, Copy)]
pub(super) struct Judge<'a> {
    pub(super) input: &'a Input<'a>,
    pub(super) spec: &'a ServiceSpec,
    /// What is being rolled out, while anything else of the service is left.
    pub(super) rolls_out: Option<&'a DesiredService>,
}

impl Judge<'_> {
    /// Whether it takes traffic. What an unreachable runtime ran is not known to.
    pub(super) fn is_ready(&self, instance: &Instance) -> bool {
        instance.phase.is_ready() && !self.input.unreachable.contains_key(&instance.runtime)
    }

    /// Whether it takes traffic and has for long enough.
    pub(super) fn is_available(&self, instance: &Instance) -> bool {
        self.available_from(instance).is_some_and(|from| from <= self.input.now)
    }

    /// From when on it counts as available if it stays ready; none while it is not ready.
    ///
    /// The time is counted from the start of the run, without the time for which it was frozen, for nothing remembers when
    /// readiness came.
    pub(super) fn available_from(&self, instance: &Instance) -> Option<DateTime<Utc>> {
        let since = running_since(instance)?;
        let proven = if instance.streak > 0 { PROVEN_RUN } else { Duration::ZERO };
        let least = self.min_ready().max(proven).max(self.probation(instance));
        self.is_ready(instance).then(|| after(since, least))
    }

    /// How long a new instance has to run before an old one goes for it, where nothing else tells that it is sound.
    fn probation(&self, instance: &Instance) -> Duration {
        let is_unchecked = self.spec.health.is_none() && instance.health.is_none() && self.min_ready().is_zero();
        let is_new = |desired: &DesiredService| {
            desired.is_made_from(&instance.id.revision) && desired.runtime == instance.runtime
        };
        match self.rolls_out.is_some_and(|desired| is_unchecked && is_new(desired)) {
            true => PROBATION,
            false => Duration::ZERO,
        }
    }

    /// Whether it is ready and has not been for as long as the spec asks.
    pub(super) fn is_young(&self, instance: &Instance) -> bool {
        let Some(since) = running_since(instance) else { return false };
        self.is_ready(instance) && after(since, self.min_ready()) > self.input.now
    }

    fn min_ready(&self) -> Duration {
        self.spec.rollout.as_ref().map_or(Duration::ZERO, crate::spec::Rollout::min_ready)
    }

    /// Whether it may serve: it runs, ready or not as far as is known.
    pub(super) fn may_serve(&self, instance: &Instance) -> bool {
        matches!(instance.phase, Phase::Running { .. }) && !self.input.unreachable.contains_key(&instance.runtime)
    }
}

/// Since when it runs, without the time for which it was frozen; none where it does not run.
fn running_since(instance: &Instance) -> Option<DateTime<Utc>> {
    instance.runs_since().filter(|_| matches!(instance.phase, Phase::Running { .. }))
}

/// What may be taken away without falling below the least that has to be left.
///
/// Three counts, because readiness may be unknown for a while (a controller that has just started has probed
/// nothing yet): what is available, what is ready, and what may serve at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ledger {
    /// The least that has to be left: desired replicas without those at rest, minus max_unavailable.
    pub(super) floor: u32,
    /// Available instances.
    pub(super) available: u32,
    /// Ready instances.
    pub(super) ready: u32,
    /// Available instances that hold their slot, and all running ones that don't.
    pub(super) serving: u32,
}

impl Ledger {
    /// Takes one ready instance away, if what is left is enough.
    pub(super) fn spend_ready(&mut self, available: bool) -> bool {
        // What is available also is ready and serves.
        let counted = if available { self.available } else { self.ready.min(self.serving) };
        let may = counted > self.floor;
        if may {
            self.take(available);
        }
        may
    }

    /// Takes one running instance that is not ready away, if what is left is enough.
    pub(super) const fn spend_unready(&mut self) -> bool {
        let may = self.serving > self.floor;
        if may {
            self.take_unready();
        }
        may
    }

    /// Takes one running instance that is not ready away whatever is left.
    pub(super) const fn take_unready(&mut self) {
        self.serving = self.serving.saturating_sub(1);
    }

    /// Takes one ready instance away whatever is left.
    pub(super) const fn take(&mut self, available: bool) {
        self.ready = self.ready.saturating_sub(1);
        self.serving = self.serving.saturating_sub(1);
        if available {
            self.available = self.available.saturating_sub(1);
        }
    }
}
