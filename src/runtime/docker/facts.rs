//! What is remembered of containers, so that a list needs no inspection of each.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::state::{EndedBy, Instance, Phase, StopCause};

/// Instances by container id, as they were last seen. Bounded by what the engine lists: every complete list drops the
/// rest.
#[derive(Debug, Default)]
pub(super) struct Facts {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Counts writes, so that an answer that was asked for before a later write does not overwrite it.
    version: u64,
    known: HashMap<String, Known>,
    /// Stops that were asked for, until the container is gone.
    causes: HashMap<String, StopCause>,
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
        if let Some(known) = inner.known.get(&instance.runtime_id).filter(|known| known.version > asked.0) {
            return known.instance.clone();
        }
        inner.attribute(&mut instance);
        inner.version += 1;
        let version = inner.version;
        inner.known.insert(instance.runtime_id.clone(), Known { version, instance: instance.clone() });
        instance
    }

    /// Forgets one container.
    pub(super) fn forget(&self, container: &str) {
        let mut inner = self.lock();
        inner.known.remove(container);
        inner.causes.remove(container);
    }

    /// Forgets how a container was last seen, because that may have changed unseen; a stop that was asked for stays.
    pub(super) fn doubt(&self, container: &str) {
        self.lock().known.remove(container);
    }

    /// Forgets every container that a complete list, asked for at `asked`, did not show.
    pub(super) fn keep_only(&self, asked: Moment, listed: &HashSet<String>) {
        let mut inner = self.lock();
        let Inner { known, causes, .. } = &mut *inner;
        known.retain(|id, known| known.version > asked.0 || listed.contains(id));
        causes.retain(|id, _| known.contains_key(id) || listed.contains(id));
    }

    /// Remembers that a stop is asked for, so that the exit that follows is not taken for a crash; gives what was
    /// remembered before.
    pub(super) fn will_stop(&self, container: &str, cause: StopCause) -> Option<StopCause> {
        self.lock().causes.insert(container.to_owned(), cause)
    }

    /// Takes back what [`Facts::will_stop`] remembered, because there was nothing left to stop.
    pub(super) fn did_not_stop(&self, container: &str, before: Option<StopCause>) {
        let causes = &mut self.lock().causes;
        match before {
            Some(cause) => causes.insert(container.to_owned(), cause),
            None => causes.remove(container),
        };
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

impl Inner {
    fn attribute(&self, instance: &mut Instance) {
        if let (Phase::Exited(exit), Some(cause)) = (&mut instance.phase, self.causes.get(&instance.runtime_id)) {
            exit.ended_by = EndedBy::Request(*cause);
        }
    }
}
