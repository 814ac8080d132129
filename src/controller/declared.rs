//! What the sources say, as the controller needs it.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::Unwatched;
use crate::spec::{Prune, RuntimeKind};
use crate::state::{Desired, Fate};
use crate::status::{HoldView, ProblemView, ResetView, UnwatchedView};

/// Most deployments that a reason names.
const MOST_NAMED: usize = 5;

/// What the sources say, complete, at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Declared {
    /// Whether the sources were read completely once; nothing is done before that.
    pub synced: bool,
    /// What should exist.
    pub desired: Desired,
    /// Deployments that were declared and are not any more.
    pub removed: BTreeMap<String, Removed>,
    /// Deployments that run on their last good version, and why.
    pub stale: BTreeMap<String, String>,
    /// Deployments that a directory declared which is not watched any more.
    pub unwatched: BTreeMap<String, Unwatched>,
    /// Why what nobody declares and nobody remembers may be declared all the same.
    pub unclear: Option<String>,
    /// What happened to the database that remembered what was declared before, where it was lost and nobody has confirmed
    /// that.
    pub reset: Option<String>,
    /// What is wrong with source files.
    pub problems: Vec<ProblemView>,
    /// Deployments that files declare and that have problems and no good version.
    pub left_out: BTreeSet<String>,
    /// Pruning is held.
    pub hold: Option<HoldView>,
}

/// A deployment that is not declared any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// What its declaration said of that.
    pub prune: Prune,
    /// Runtimes that its services ran on.
    pub runtimes: BTreeSet<RuntimeKind>,
}

impl Declared {
    /// What becomes of a deployment that is not declared.
    pub fn fate(&self, deployment: &str) -> Fate {
        match self.removed.get(deployment).map(|removed| removed.prune) {
            Some(Prune::Auto) => Fate::Removed,
            Some(Prune::Never) => Fate::Kept,
            // It runs on a version that can't be read any more, or its file can't be read.
            None if self.stale.contains_key(deployment) || self.unclear.is_some() => Fate::Kept,
            // It may have been held, or to be kept for ever.
            None if self.reset.is_some() => Fate::Kept,
            None => Fate::Orphaned,
        }
    }

    /// Whether a deployment is kept because a lost database may have remembered it.
    fn is_forgotten(&self, deployment: &str) -> bool {
        self.reset.is_some()
            && !self.desired.deployments.contains_key(deployment)
            && !self.removed.contains_key(deployment)
            && !self.stale.contains_key(deployment)
    }

    /// Which of these deployments are kept because a lost database may have remembered them, and what to do about it; none
    /// where none of them is.
    pub fn reset_view(&self, deployments: BTreeSet<String>) -> Option<ResetView> {
        let reset = self.reset.as_ref()?;
        let kept: Vec<String> = deployments.into_iter().filter(|name| self.is_forgotten(name)).collect();
        let (count, listed) =
            (kept.len(), kept.iter().take(MOST_NAMED).map(String::as_str).collect::<Vec<_>>().join(", "));
        let listed = if count > MOST_NAMED { format!("{listed} and {} more", count - MOST_NAMED) } else { listed };
        (count > 0).then(|| ResetView {
            reason: format!(
                "{reset}; what no file declares now is kept: {listed}; restore its files or, where it may go, end it with \
                 `keel approve` (for all) or `keel delete NAME`"
            ),
            kept,
        })
    }

    /// Why a deployment stays although its declaration is gone from the source, and what to do about it; none where
    /// pruning is not held or the declaration is there.
    pub fn why_held(&self, deployment: &str) -> Option<String> {
        let hold = self.hold.as_ref().filter(|hold| hold.missing.iter().any(|name| name == deployment))?;
        Some(format!("its declaration is gone and it is kept: {}", hold.reason))
    }

    /// Where a deployment was declared, and how that ends; none where its directory is watched.
    pub fn why_unwatched(&self, deployment: &str) -> Option<String> {
        let Unwatched { source, directory } = self.unwatched.get(deployment)?;
        Some(format!(
            "declared in {source}, which is not watched any more; `keel delete {deployment}` or `keel approve` ends it, \
             `keel run {}` takes it up again",
            directory.display()
        ))
    }

    /// The same deployments, as users are shown them.
    pub fn unwatched_views(&self) -> Vec<UnwatchedView> {
        let view = |(deployment, one): (&String, &Unwatched)| UnwatchedView {
            deployment: deployment.clone(),
            source: one.source.to_string(),
            directory: one.directory.display().to_string(),
        };
        self.unwatched.iter().map(view).collect()
    }

    /// Why a deployment that is not declared is kept, and what to do about it; none where it is not kept.
    pub fn why_kept(&self, deployment: &str) -> Option<String> {
        if self.fate(deployment) != Fate::Kept {
            return None;
        }
        let unreadable = self.stale.get(deployment).or(self.unclear.as_ref());
        Some(match (self.removed.get(deployment), unreadable) {
            (None, Some(why)) => format!("whether it is declared can't be read: {why}"),
            (None, None) if let Some(reset) = &self.reset => format!(
                "no file declares it, and whether it was to be kept is not known: {reset}; restore its file, or end it with \
                 `keel approve` (for all) or `keel delete {deployment}`"
            ),
            _ => "its declaration has gone and said prune: never; `keel delete` removes it".to_owned(),
        })
    }
}
