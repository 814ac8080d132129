//! The spec files of a directory, for commands that read them once.

use std::path::{Path, PathBuf};

use super::list::{Entry, Flaw, RootState, list};

/// What a directory holds, as a source that watches it sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Spec files that can be read, by path.
    pub files: Vec<PathBuf>,
    /// Files and directories that can't be looked at, each with what is wrong and what to do.
    pub flawed: Vec<(PathBuf, String)>,
}

/// Finds the spec files below a directory: names, links, loops and bounds count as where it is watched.
pub fn find(directory: &Path) -> Found {
    let mut found = Found::default();
    let listing = list(directory);
    if listing.state == RootState::Missing {
        found.flawed.push((directory.to_path_buf(), "does not exist".to_owned()));
    }
    for gap in listing.gaps.into_iter().filter(|gap| !gap.only_if_known) {
        found.flawed.push((gap.under, words(&gap.flaw)));
    }
    for (path, entry) in listing.files {
        match entry {
            Entry::File(_) => found.files.push(path),
            Entry::Bad(flaw) => found.flawed.push((path, words(&flaw))),
        }
    }
    found
}

fn words(flaw: &Flaw) -> String {
    match flaw.help {
        Some(help) => format!("{}; {help}", flaw.message),
        None => flaw.message.clone(),
    }
}
