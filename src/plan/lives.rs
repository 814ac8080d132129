//! What users ordered of the lives of instances, and which were suspended for idleness.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Cause;
use crate::spec::{Revision, Storage};
use crate::state::{DesiredDeployment, DesiredService, Instance};

/// Longest time for which instances may be held in one order: a day covers a working day, and whoever forgets to release
/// one finds it gone the next.
pub const HOLD_MOST: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

/// Slots of a service that are to stay down (`keel stop`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// The template that was stopped; as soon as another one is to run, all of this is over, but where that is so only because
    /// the tag of its image moved.
    pub of: Revision,
    /// Which slots; all where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<BTreeSet<u32>>,
}

impl Stopped {
    /// Whether it holds for this slot of the service as it is to run.
    pub fn covers(&self, service: &DesiredService, slot: u32) -> bool {
        service.keeps(&self.of) && self.slots.as_ref().is_none_or(|slots| slots.contains(&slot))
    }
}

/// What users ordered of the lives of a deployment's instances.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LifeOrders {
    /// What is to stay down, by service.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stopped: BTreeMap<String, Stopped>,
    /// Until when slots are held, by service.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub holds: BTreeMap<String, BTreeMap<u32, DateTime<Utc>>>,
    /// Instances that are down or suspended and are to be brought back, by the runtime's own id.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub started: BTreeSet<String>,
    /// Services whose workspaces were to be kept (`keep: true`) when workspaces of theirs were declared last: that holds also
    /// where their declaration is gone when their slots end, and where no instance has been made from it yet.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub kept_workspaces: BTreeSet<String>,
}

impl LifeOrders {
    /// Whose workspaces are to be kept, as it is declared now and was where it says nothing of them, whatever runs.
    pub fn kept_workspaces_by(&self, declared: &DesiredDeployment) -> BTreeSet<String> {
        let mut kept = self.kept_workspaces.clone();
        for service in declared.services.values() {
            let storage = &service.spec.storage;
            if storage.iter().any(Storage::is_kept_workspace) {
                kept.insert(service.name.clone());
            } else if storage.iter().any(|one| matches!(one, Storage::Workspace { .. })) {
                kept.remove(&service.name);
            }
        }
        kept
    }

    /// Whether the slot of the instance is to stay down as long as it is made from this template.
    pub fn is_stopped_by_name(&self, instance: &Instance) -> bool {
        let covers = |stopped: &Stopped| {
            stopped.of == instance.id.revision
                && stopped.slots.as_ref().is_none_or(|slots| slots.contains(&instance.id.slot))
        };
        self.stopped.get(&instance.id.service).is_some_and(covers)
    }

    /// Has what was to stay down of a service stay so where the tag of its image moved: nobody asked for anything else.
    /// `before` and `now` are the service as it was to run and as it is. Returns whether it is remembered otherwise by that.
    pub fn follow_tag(&mut self, before: &DesiredService, now: &DesiredService) -> bool {
        let stopped = self.stopped.get_mut(&now.name).filter(|stopped| before.is_made_from(&stopped.of));
        let Some(stopped) = stopped.filter(|stopped| !now.is_made_from(&stopped.of)) else { return false };
        stopped.of = now.revision.clone();
        true
    }

    /// Lets go of what was to stay down of services that are not declared any more, or of which another template is to run
    /// now, so that it does not strike again when the former one comes back. `effective` is what is to run. Gives the
    /// services that are let go.
    pub fn end_stops(&mut self, effective: &DesiredDeployment) -> Vec<String> {
        let holds = |name: &str, stopped: &Stopped| {
            effective.services.get(name).is_some_and(|service| service.keeps(&stopped.of))
        };
        let over = self.stopped.iter().filter(|(name, stopped)| !holds(name, stopped));
        let over: Vec<String> = over.map(|(name, _)| name.clone()).collect();
        self.stopped.retain(|name, _| !over.contains(name));
        over
    }
}

/// What is known of the lives of a deployment's instances beyond what runtimes tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lives {
    /// What users ordered.
    pub orders: LifeOrders,
    /// Instances that were suspended for idleness, by the runtime's own id, and since when they were idle.
    pub suspended: BTreeMap<String, DateTime<Utc>>,
    /// Idle instances that something waits for which depends on them, by the runtime's own id, and the name of what waits.
    /// Planning finds that out itself.
    pub awaited: BTreeMap<String, String>,
}

impl LifeOrders {
    /// Until when the instance's slot is held, where it is.
    pub fn held_until(&self, instance: &Instance) -> Option<DateTime<Utc>> {
        self.holds.get(&instance.id.service)?.get(&instance.id.slot).copied()
    }
}

impl Lives {
    /// Whether the slot is to stay down.
    pub fn is_stopped(&self, service: &DesiredService, slot: u32) -> bool {
        self.orders.stopped.get(&service.name).is_some_and(|stopped| stopped.covers(service, slot))
    }

    /// Whether somebody asked for the instance to be brought back, or waits for it.
    pub fn is_started(&self, instance: &Instance) -> bool {
        self.orders.started.contains(&instance.runtime_id) || self.awaited.contains_key(&instance.runtime_id)
    }

    /// Why the instance is brought back, where it is.
    pub(super) fn why_started(&self, instance: &Instance) -> Option<Cause> {
        let awaited_by = || self.awaited.get(&instance.runtime_id);
        match self.orders.started.contains(&instance.runtime_id) {
            true => Some(Cause::StartAsked),
            false => awaited_by().map(|by| Cause::Awaited { by: by.clone() }),
        }
    }

    /// Since when the instance was idle, where it is suspended for that and nobody asked for it to be brought back.
    pub fn suspended_since(&self, instance: &Instance) -> Option<DateTime<Utc>> {
        self.suspended.get(&instance.runtime_id).copied().filter(|_| !self.is_started(instance))
    }
}
