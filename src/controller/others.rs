//! What else is declared than the files of a request: a new file must not contradict it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::EngineError;
use super::engine::Engine;
use super::open::local;
use crate::source::{find, read_now};
use crate::spec::{Conflict, ParsedFile, merge, parse_bytes};
use crate::store::{AppliedFile, SourceState};

impl Engine {
    /// Problems between these files, parsed, and everything that would be declared beside them: in these copies of applied
    /// files, and in the watched directories. Only those at places in these files.
    ///
    /// # Errors
    /// The state database can't be read.
    pub(super) fn conflicts(
        &self,
        parsed: &[(PathBuf, ParsedFile)],
        copies: &[AppliedFile],
    ) -> Result<Vec<Conflict>, EngineError> {
        let state = self.inner.store.source_state().map_err(local("the state database can't be read"))?;
        let own: BTreeSet<&Path> = parsed.iter().map(|(path, _)| path.as_path()).collect();
        let redeclared: BTreeSet<String> =
            parsed.iter().flat_map(|(_, file)| file.deployments()).map(str::to_owned).collect();
        let applied = copies.iter().map(|copy| (copy.shown_path(&self.inner.applied), copy.parse()));
        let watched = self.watched_files(&state);
        let others = applied.chain(watched).filter(|(path, _)| !own.contains(path.as_path()));
        // A deployment that two places declare is told apart from this.
        let others = others.map(|(path, file)| (path, without(file, &redeclared)));
        let all: Vec<(PathBuf, ParsedFile)> = parsed.iter().cloned().chain(others).collect();
        let mut conflicts = merge(&all).problems;
        conflicts.retain(|conflict| own.contains(conflict.file.as_path()));
        Ok(conflicts)
    }

    /// What the files of the watched directories say; of one with problems, what its last good version said. What was
    /// deleted by name is left out.
    fn watched_files(&self, state: &SourceState) -> Vec<(PathBuf, ParsedFile)> {
        let present = self.inner.watched.iter().flat_map(|root| find(root).files);
        let read = |path: PathBuf| {
            let bytes = read_now(&path)?;
            let file = parse_bytes(&bytes);
            let good = state.files.iter().find(|good| good.path == path).filter(|_| !file.problems.is_empty());
            let counted = good.map_or(file, |good| parse_bytes(&good.content));
            Some((path, without(counted, &state.deleted)))
        };
        present.filter_map(read).collect()
    }
}

/// A file without the documents of these deployments.
fn without(mut file: ParsedFile, deployments: &BTreeSet<String>) -> ParsedFile {
    file.documents.retain(|document| !deployments.contains(document.kind.deployment()));
    file.broken.retain(|document| document.deployment.as_ref().is_none_or(|name| !deployments.contains(name)));
    file
}
