//! What is remembered of containers, so that a list needs no inspection of each.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::Utc;

use crate::runtime::stops::Stops;
use crate::state::{Instance, Phase};

/// Instances by container id, as they were last seen. Bounded by what the engine lists: every complete list drops the
/// rest.
#[derive(Debug)]
pub(super) struct Facts {
    /// Stops that were asked for, until the container is gone.
    pub stops: Stops,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Counts writes, so that an answer that was asked for before a later write does not overwrite it.
    version: u64,
    known: HashMap<String, Known>,
    /// How many event streams are connected. Without one, a restart between two lists would go unseen.
    watched: usize,
}

#[derive(Debug)]
struct Known {
    version: u64,
    instance: Instance,
}

/// A moment in the order of writes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment(u64);

impl Facts {
    /// Nothing but these stops is remembered.
    pub(super) fn new(stops: Stops) -> Self {
        Self { stops, inner: Mutex::default() }
    }

    /// The moment from which an answer that is being asked for now holds.
    pub(super) fn now(&self) -> Moment {
        Moment(self.lock().version)
    }

    /// What is remembered of a container.
    pub(super) fn get(&self, container: &str) -> Option<Instance> {
        self.lock().known.get(container).map(|known| known.instance.clone())
    }

    /// What is remembered of a container, where an event stream has told every change since.
    pub(super) fn get_watched(&self, container: &str) -> Option<Instance> {
        let inner = self.lock();
        if inner.watched == 0 {
            return None;
        }
        inner.known.get(container).map(|known| known.instance.clone())
    }

    /// Remembers an answer that was asked for at `asked`, and returns what holds: a later write wins.
    pub(super) fn learn(&self, asked: Moment, mut instance: Instance) -> Instance {
        let mut inner = self.lock();
        let known = inner.known.get(&instance.runtime_id);
        if let Some(known) = known.filter(|known| known.version > asked.0) {
            return known.instance.clone();
        }
        let runs = |known: &Known| matches!(known.instance.phase, Phase::Running { .. } | Phase::Paused { .. });
        self.stops.attribute(&mut instance, known.is_some_and(runs), Utc::now());
        inner.version += 1;
        let version = inner.version;
        inner.known.insert(instance.runtime_id.clone(), Known { version, instance: instance.clone() });
        instance
    }

    /// Forgets one container.
    pub(super) fn forget(&self, container: &str) {
        self.lock().known.remove(container);
        self.stops.forget(container);
    }

    /// Forgets how a container was last seen, because that may have changed unseen; a stop that was asked for stays.
    pub(super) fn doubt(&self, container: &str) {
        self.lock().known.remove(container);
    }

    /// Forgets every container that a complete list, asked for at `asked`, did not show.
    pub(super) fn keep_only(&self, asked: Moment, listed: &HashSet<String>) {
        let mut inner = self.lock();
        let known = &mut inner.known;
        known.retain(|id, known| known.version > asked.0 || listed.contains(id));
        self.stops.keep_only(|id| known.contains_key(id) || listed.contains(id));
    }

    /// Whether an event stream is connected.
    pub(super) fn is_watched(&self) -> bool {
        self.lock().watched > 0
    }

    /// An event stream is connected; what was remembered before it may have changed unseen.
    pub(super) fn watch(&self) {
        let mut inner = self.lock();
        inner.watched += 1;
        inner.known.clear();
    }

    /// An event stream is gone.
    pub(super) fn unwatch(&self) {
        let mut inner = self.lock();
        inner.watched = inner.watched.saturating_sub(1);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
