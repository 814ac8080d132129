//! What others do to instances, told as events; what follows from it is planned like everything else.

use super::core::State;
use crate::spec::Signal;
use crate::state::{Instance, InstanceRef, Phase};

impl State {
    /// Notes that an instance has gone, where nobody here removes it.
    pub(super) fn note_removal(&self, instance: &InstanceRef) {
        let InstanceRef { id, runtime, .. } = instance;
        // What runs commands before a start is removed by that; where nobody acts here, whoever does is no stranger.
        if id.is_helper() || self.flights.works_on(*runtime, id) || !self.covers(&id.deployment) {
            return;
        }
        let message = format!("{id} was removed from {runtime} by somebody else");
        tracing::warn!("{message}");
        self.record_event(Some(&id.deployment), "RemovedByOthers", message);
    }

    /// Notes that a signal was sent to an instance that is to run, where nobody here sends any.
    pub(super) fn note_signal(&self, instance: &InstanceRef, signal: Signal) {
        let InstanceRef { id, runtime, .. } = instance;
        let is_it = |one: &&Instance| one.as_ref() == *instance;
        // What has ended in the meantime may have been asked to by us.
        let runs = |one: &Instance| matches!(one.phase, Phase::Running { .. } | Phase::Paused { .. });
        let runs = self.cache.of(&id.deployment).find(is_it).is_some_and(runs);
        if id.is_helper() || self.flights.works_on(*runtime, id) || !runs || !self.covers(&id.deployment) {
            return;
        }
        let message = format!("{id} was sent {signal} by somebody else");
        tracing::warn!("{message}");
        self.record_event(Some(&id.deployment), "SignalledByOthers", message);
    }

    /// Notes that an instance is not what was created any more, once for each change.
    pub(super) fn note_change(&self, instance: &Instance) {
        let Instance { id, runtime, runtime_id, .. } = instance;
        let Some(what) = instance.changed_by_others() else { return };
        let before = self.cache.get(*runtime, runtime_id).and_then(Instance::changed_by_others);
        if before == Some(what) || !self.covers(&id.deployment) {
            return;
        }
        let message = format!("{id} was changed by somebody else: {what}");
        tracing::warn!("{message}");
        self.record_event(Some(&id.deployment), "ChangedByOthers", message);
    }
}
