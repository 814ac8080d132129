//! Files that were applied and lie in a directory that is watched from now on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};

use super::read::Parsed;
use crate::store::{AppliedFile, Declared, SourceChange, SourceFile, SourceState, Store, StoreError};

/// Records copies of applied files as what was seen last in these directories, so that a file that is gone, cut off or
/// unmounted meanwhile is judged as one that was watched all the time. From then on the copies may go. Repeating it changes
/// nothing, also where the copies are still there because whoever called was cut off.
///
/// `applied` is the directory of the copies, `watched` the directories that are watched from now on, absolute.
///
/// # Errors
/// When the store can't be read or written; nothing is recorded then.
pub fn hand_over(
    store: &Store,
    copies: &[AppliedFile],
    applied: &Path,
    watched: &[PathBuf],
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let change = change(&store.source_state()?, copies, applied, watched, now);
    if change.is_empty() { Ok(()) } else { store.record_scan(&change) }
}

fn change(
    before: &SourceState,
    copies: &[AppliedFile],
    applied: &Path,
    watched: &[PathBuf],
    now: DateTime<Utc>,
) -> SourceChange {
    let root_of = |file: &Path| watched.iter().find(|root| file.starts_with(root));
    let was_watched = |file: &Path| before.roots.iter().any(|root| file.starts_with(&root.path));
    // What was seen of a watched file is newer than a copy of it.
    let seen: BTreeSet<&Path> =
        before.files.iter().map(|file| file.path.as_path()).filter(|file| was_watched(file)).collect();
    let taken_over = copies.iter().filter(|copy| root_of(&copy.origin).is_some());
    let files = taken_over.filter(|copy| !seen.contains(copy.origin.as_path())).map(|copy| {
        let content = copy.counting_text().into_bytes();
        SourceFile { path: copy.origin.clone(), hash: Parsed::hash(&content), content, accepted_at: now }
    });
    let declared = before.inventory.iter().filter(|entry| entry.root == applied).filter_map(|entry| {
        let root = root_of(&entry.source.file)?.clone();
        Some(Declared { root, ..entry.clone() })
    });
    SourceChange { files: files.collect(), declared: declared.collect(), ..SourceChange::default() }
}
