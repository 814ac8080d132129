//! The observed cache: what the runtimes reported last, with our own last writes in it.
//!
//! Three writers meet here: full lists, events, and the results of our own calls. A list that began before a change
//! does not undo that change, and a late event does not bring back what has ended or gone.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, Utc};

use crate::runtime::Listing;
use crate::spec::RuntimeKind;
use crate::state::{Instance, InstanceRef, Phase};

/// Instances that have gone are remembered until the next complete list; more than that many are not expected
/// between two lists, and forgetting one costs a repeated call that finds nothing.
const GONE_BOUND: usize = 10_000;

/// A point in the cache's history; taken before a list begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(u64);

/// The runtime and the runtime's own id.
type Handle = (RuntimeKind, String);

#[derive(Debug)]
struct Entry {
    instance: Instance,
    changed: u64,
}

/// What is known of all runtimes.
#[derive(Debug, Default)]
pub struct Cache {
    clock: u64,
    deployments: BTreeMap<String, BTreeMap<Handle, Entry>>,
    deployment_of: HashMap<Handle, String>,
    gone: HashMap<Handle, u64>,
    shared: BTreeMap<RuntimeKind, BTreeSet<String>>,
}

impl Cache {
    /// The present point; take it before asking for a list.
    pub const fn mark(&self) -> Mark {
        Mark(self.clock)
    }

    /// Instances of a deployment on every runtime.
    pub fn of(&self, deployment: &str) -> impl Iterator<Item = &Instance> {
        self.deployments.get(deployment).into_iter().flat_map(|entries| entries.values().map(|entry| &entry.instance))
    }

    /// One instance, by its runtime and the runtime's own id.
    pub fn get(&self, runtime: RuntimeKind, runtime_id: &str) -> Option<&Instance> {
        self.entry(&(runtime, runtime_id.to_owned())).map(|entry| &entry.instance)
    }

    /// Runtimes on which something shared may exist for the deployment.
    pub fn shared(&self, deployment: &str) -> BTreeSet<RuntimeKind> {
        self.shared.iter().filter(|(_, names)| names.contains(deployment)).map(|(kind, _)| *kind).collect()
    }

    /// Every deployment that something is known of.
    pub fn deployments(&self) -> BTreeSet<String> {
        self.deployments.keys().chain(self.shared.values().flatten()).cloned().collect()
    }

    /// Number of instances.
    pub fn len(&self) -> usize {
        self.deployment_of.len()
    }

    /// The result of a call of our own: it is the truth at this moment. Returns whether anything changed.
    pub fn wrote(&mut self, instance: Instance, now: DateTime<Utc>) -> bool {
        self.gone.remove(&handle(&instance));
        self.shared.entry(instance.runtime).or_default().insert(instance.id.deployment.clone());
        self.put(instance, now)
    }

    /// An event: ignored for what has gone. Returns whether anything changed.
    pub fn changed(&mut self, instance: Instance, now: DateTime<Utc>) -> bool {
        !self.gone.contains_key(&handle(&instance)) && self.put(instance, now)
    }

    /// An instance has gone. Returns whether it was known.
    pub fn gone(&mut self, instance: &InstanceRef) -> bool {
        let handle = (instance.runtime, instance.runtime_id.clone());
        self.clock += 1;
        if self.gone.len() < GONE_BOUND {
            self.gone.insert(handle.clone(), self.clock);
        }
        self.drop(&handle)
    }

    /// Nothing shared is left of the deployment on this runtime.
    pub fn torn_down(&mut self, runtime: RuntimeKind, deployment: &str) {
        if let Some(names) = self.shared.get_mut(&runtime) {
            names.remove(deployment);
        }
    }

    /// A complete list that began at `began`. Returns the deployments for which anything changed, and the instances that
    /// have gone.
    pub fn listed(
        &mut self,
        runtime: RuntimeKind,
        began: Mark,
        listing: Listing,
        now: DateTime<Utc>,
    ) -> (BTreeSet<String>, Vec<InstanceRef>) {
        let mut touched = BTreeSet::new();
        let mut seen = BTreeSet::new();
        for instance in listing.instances {
            let handle = handle(&instance);
            let deployment = instance.id.deployment.clone();
            seen.insert(handle.clone());
            let newer = self.entry(&handle).is_some_and(|entry| entry.changed > began.0)
                || self.gone.get(&handle).is_some_and(|at| *at > began.0);
            if !newer && self.replace(instance, now) {
                touched.insert(deployment);
            }
        }
        let stale: Vec<(Handle, String)> = self
            .deployment_of
            .iter()
            .filter(|(handle, _)| handle.0 == runtime && !seen.contains(*handle))
            .filter(|(handle, _)| self.entry(handle).is_some_and(|entry| entry.changed <= began.0))
            .map(|(handle, deployment)| (handle.clone(), deployment.clone()))
            .collect();
        let mut gone = Vec::new();
        for (handle, deployment) in stale {
            gone.extend(self.entry(&handle).map(|entry| entry.instance.as_ref()));
            self.drop(&handle);
            touched.insert(deployment);
        }
        self.gone.retain(|handle, at| handle.0 != runtime || *at > began.0);
        self.list_shared(runtime, listing.shared, &mut touched);
        (touched, gone)
    }

    fn list_shared(&mut self, runtime: RuntimeKind, listed: BTreeSet<String>, touched: &mut BTreeSet<String>) {
        let known = self.shared.entry(runtime).or_default();
        // What was made since the list began is in use, so it has instances.
        let mut now = listed;
        now.extend(known.iter().filter(|name| self.deployments.contains_key(*name)).cloned());
        touched.extend(now.symmetric_difference(known).cloned());
        *known = now;
    }

    fn entry(&self, handle: &Handle) -> Option<&Entry> {
        self.deployments.get(self.deployment_of.get(handle)?)?.get(handle)
    }

    /// Writes an instance unless that would undo what is known to have happened later.
    fn put(&mut self, instance: Instance, now: DateTime<Utc>) -> bool {
        let regresses =
            self.entry(&handle(&instance)).is_some_and(|entry| regresses(&entry.instance.phase, &instance.phase));
        !regresses && self.replace(instance, now)
    }

    fn replace(&mut self, mut instance: Instance, now: DateTime<Utc>) -> bool {
        self.clock += 1;
        let handle = handle(&instance);
        let deployment = instance.id.deployment.clone();
        if let Some(entry) = self.deployments.get_mut(&deployment).and_then(|entries| entries.get_mut(&handle)) {
            entry.changed = self.clock;
            instance.follow_freezes(&entry.instance, now);
            let differs = entry.instance != instance;
            entry.instance = instance;
            return differs;
        }
        if matches!(instance.phase, Phase::Paused { .. }) {
            instance.frozen.since = Some(now);
        }
        self.deployment_of.insert(handle.clone(), deployment.clone());
        self.deployments.entry(deployment).or_default().insert(handle, Entry { instance, changed: self.clock });
        true
    }

    fn drop(&mut self, handle: &Handle) -> bool {
        let Some(deployment) = self.deployment_of.remove(handle) else { return false };
        if let Some(entries) = self.deployments.get_mut(&deployment) {
            entries.remove(handle);
            if entries.is_empty() {
                self.deployments.remove(&deployment);
            }
        }
        true
    }
}

fn handle(instance: &Instance) -> Handle {
    (instance.runtime, instance.runtime_id.clone())
}

/// Whether going from one phase to the other would undo what is known to have happened later: back to never
/// started, or back into the run whose end is known.
fn regresses(known: &Phase, reported: &Phase) -> bool {
    match (known, reported) {
        (Phase::Running { .. } | Phase::Paused { .. } | Phase::Exited(_), Phase::Created) => true,
        (Phase::Exited(exit), Phase::Running { since, .. } | Phase::Paused { since }) => *since <= exit.finished_at,
        _ => false,
    }
}
