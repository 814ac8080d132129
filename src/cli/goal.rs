//! What somebody waits for.

use std::collections::BTreeMap;

use crate::controller::{Applied, Change};

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// It runs as declared.
    Running,
    /// It is gone.
    Gone,
}

/// What is waited for, by deployment.
pub type Goals = BTreeMap<String, Goal>;

/// What follows from a change of declarations.
pub fn goals(applied: &Applied) -> Goals {
    let goal = |change: Change| match change {
        Change::Created | Change::Configured | Change::Unchanged => Goal::Running,
        Change::Pruned | Change::Deleted => Goal::Gone,
    };
    applied.results.iter().map(|(name, change)| (name.clone(), goal(*change))).collect()
}
