//! What the specs ask for: plain data, validated, with defaults that the controller chose filled in.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Condition, Standing};
use crate::spec::{Prune, Revision, RuntimeKind, ServiceSpec};

/// Everything that should exist.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Desired {
    /// By deployment name.
    pub deployments: BTreeMap<String, DesiredDeployment>,
}

/// One deployment that should exist.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DesiredDeployment {
    /// Name.
    pub name: String,
    /// Where it is declared.
    pub source: SourceRef,
    /// What happens when its declaration goes.
    pub prune: Prune,
    /// By service name.
    pub services: BTreeMap<String, DesiredService>,
    /// What is declared outside of services and nothing honours.
    pub unsupported: Vec<Condition>,
}

/// One service that should exist.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DesiredService {
    /// Name.
    pub name: String,
    /// The validated spec.
    pub spec: Arc<ServiceSpec>,
    /// Template that its instances are made from.
    pub revision: Revision,
    /// Another revision that means the same template on this runtime, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub equivalent: Option<Revision>,
    /// Where it is declared.
    pub source: SourceRef,
    /// Runtime that runs its instances.
    pub runtime: RuntimeKind,
    /// How many instances there should be; of a pool, how many free ones at least.
    pub replicas: u32,
    /// How its rollout bears on what is to run.
    #[serde(skip_serializing_if = "Standing::is_plain")]
    pub standing: Standing,
}

impl DesiredService {
    /// Whether an instance of this revision was made from the template.
    pub fn is_made_from(&self, revision: &Revision) -> bool {
        self.revision == *revision || self.equivalent.as_ref() == Some(revision)
    }

    /// Whether an instance of this revision is left as it is: it was made from the template, or nothing is replaced for now.
    pub fn keeps(&self, revision: &Revision) -> bool {
        self.standing.paused.is_some() || self.is_made_from(revision)
    }

    /// Whether instances of these two revisions were made from the same template.
    pub fn are_made_alike(&self, one: &Revision, other: &Revision) -> bool {
        one == other || (self.is_made_from(one) && self.is_made_from(other))
    }
}

/// What becomes of a deployment that has instances and no declaration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Its declaration was seen and has gone, or it was deleted: remove it now.
    Removed,
    /// Its declaration has gone and said `prune: never`, or pruning is held: leave it alone.
    Kept,
    /// This installation does not remember it: remove it after two sightings and a minimum age.
    Orphaned,
}

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SourceRef {
    /// File.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: u32,
}

impl std::fmt::Display for SourceRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}
