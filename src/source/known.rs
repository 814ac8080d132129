//! The inventory: deployments that were declared, and are not completely gone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::snapshot::Removed;
use crate::spec::{MergedDeployment, MergedService};
use crate::store::Declared;

/// By name.
pub(super) type Inventory = BTreeMap<String, Known>;

/// A deployment of the inventory.
#[derive(Debug)]
pub(super) struct Known {
    /// As it is stored.
    pub declared: Declared,
    /// The same as a value; absent where another version of keel stored it in a form that can't be read.
    pub deployment: Option<MergedDeployment>,
}

impl From<Declared> for Known {
    fn from(declared: Declared) -> Self {
        Self { deployment: serde_json::from_str(&declared.spec).ok(), declared }
    }
}

impl Known {
    /// Whether it is declared, as far as is known.
    pub(super) fn is_live(&self) -> bool {
        self.declared.removed_at.is_none()
    }

    /// What there is to know of it once it is not declared any more.
    pub(super) fn removed(&self) -> Removed {
        let services = self.deployment.iter().flat_map(|deployment| deployment.services.values());
        Removed { prune: self.declared.prune, runtimes: services.map(MergedService::declared_runtime).collect() }
    }

    /// Whether something of it is not there any more that a file of this kind declared: all of it, or a service.
    pub(super) fn has_lost(&self, now: Option<&MergedDeployment>, counts: impl Fn(&Path) -> bool) -> bool {
        let Some(now) = now else { return self.files().into_iter().any(counts) };
        let mut before = self.deployment.iter().flat_map(|deployment| &deployment.services);
        before.any(|(name, service)| !now.services.contains_key(name) && counts(&service.file))
    }

    /// Files that it has a part in.
    pub(super) fn files(&self) -> BTreeSet<&Path> {
        let mut files = self.deployment.as_ref().map(files_of).unwrap_or_default();
        files.insert(&self.declared.source.file);
        files
    }
}

/// Files that a deployment has a part in.
pub(super) fn files_of(deployment: &MergedDeployment) -> BTreeSet<&Path> {
    let services = deployment.services.values().map(|service| service.file.as_path());
    services.chain([deployment.file.as_path()]).collect()
}
