//! What somebody waits for.

use std::collections::BTreeMap;

use crate::controller::Change;

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

/// What a change of declarations does, by deployment; each is there once.
pub type Results = Vec<(String, Change)>;

/// What follows from a change of declarations.
pub fn goals(results: &[(String, Change)]) -> Goals {
    let goal = |change: Change| match change {
        Change::Created | Change::Configured | Change::Unchanged => Goal::Running,
        Change::Pruned | Change::Deleted => Goal::Gone,
    };
    results.iter().map(|(name, change)| (name.clone(), goal(*change))).collect()
}
