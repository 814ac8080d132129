//! Which roots there are to look at.

use std::path::Path;

use super::known::Inventory;
use super::scan::SourceError;
use super::snapshot::{Root, RootKind};
use crate::store::{Store, StoreError};

/// The watched roots of the last recorded scan: what commands look at while no controller runs. One that is not there
/// any more and of which nothing is in the inventory is left out.
///
/// # Errors
/// When the store can't be read.
pub fn last_roots(store: &Store) -> Result<Vec<Root>, StoreError> {
    let state = store.source_state()?;
    let matters = |path: &Path| path.exists() || state.inventory.iter().any(|declared| declared.root == path);
    let roots = state.roots.iter().filter(|root| matters(&root.path));
    Ok(roots.map(|root| Root { path: root.path.clone(), kind: RootKind::Watched }).collect())
}

/// A root with its absolute path; an error where a watched one was never there.
pub(super) fn checked(root: Root, known: &Inventory) -> Result<Root, SourceError> {
    let failed = |source| SourceError::Root { path: root.path.clone(), source };
    let path = std::path::absolute(&root.path).map_err(failed)?;
    let is_known = known.values().any(|known| known.declared.root == path);
    match std::fs::metadata(&path) {
        Err(source) if root.kind == RootKind::Watched && !is_known => Err(SourceError::Root { path, source }),
        _ => Ok(Root { path, ..root }),
    }
}
