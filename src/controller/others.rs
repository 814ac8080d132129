//! What else is declared than the files of a request: a new file must not contradict it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::EngineError;
use super::engine::Engine;
use super::open::local;
use crate::source::{find, read_now};
use crate::spec::{Conflict, DocumentKind, Merged, MergedDeployment, ParsedFile, Position, merge, parse_bytes};
use crate::state::SourceRef;
use crate::store::{AppliedFile, Declared, SourceState};

/// What the files of the watched directories say; of one with problems, what its last good version said.
#[derive(Debug, Default)]
pub(super) struct Watched {
    files: Vec<(PathBuf, ParsedFile)>,
    /// Deployments that were deleted by name and don't count for as long as no controller watches.
    deleted: BTreeSet<String>,
}

impl Watched {
    /// Where a file declares a deployment, or has a part in it.
    pub(super) fn part(&self, deployment: &str) -> Option<SourceRef> {
        self.place(|file| {
            let good = file.documents.iter().filter(|document| document.kind.deployment() == deployment);
            let broken = file.broken.iter().filter(|document| document.deployment.as_deref() == Some(deployment));
            good.map(|document| document.position).chain(broken.map(|document| document.position)).min()
        })
    }

    /// Where a file declares a deployment as such, and not only a service of it.
    pub(super) fn whole(&self, deployment: &str) -> Option<SourceRef> {
        self.place(|file| {
            let is_whole =
                |kind: &DocumentKind| matches!(kind, DocumentKind::Deployment(one) if one.name == deployment);
            file.documents.iter().find(|document| is_whole(&document.kind)).map(|document| document.position)
        })
    }

    fn place(&self, find: impl Fn(&ParsedFile) -> Option<Position>) -> Option<SourceRef> {
        let mut places = self.files.iter().filter_map(|(path, file)| Some((path, find(file)?)));
        places.next().map(|(path, position)| SourceRef { file: path.clone(), line: position.line })
    }

    /// Whether an entry of the inventory comes from a file that is there and can't be read.
    pub(super) fn hides(&self, entry: &Declared) -> bool {
        let file = &entry.source.file;
        file.exists() && !self.files.iter().any(|(path, _)| path == file)
    }
}

impl Engine {
    /// Reads the watched directories.
    ///
    /// # Errors
    /// The state database can't be read.
    pub(super) fn watched(&self) -> Result<Watched, EngineError> {
        let state = self.inner.store.source_state().map_err(local("the state database can't be read"))?;
        let present = self.inner.watched.iter().flat_map(|root| find(root).files);
        let files = present.filter_map(|path| Some((path.clone(), counted(&path, &state)?))).collect();
        Ok(Watched { files, deleted: state.deleted })
    }

    /// What these files declare, parsed and merged, with the services that other files of the watched directories add to it.
    pub(super) fn completed(
        &self,
        parsed: &[(PathBuf, ParsedFile)],
        merged: Merged,
        watched: &Watched,
    ) -> BTreeMap<String, MergedDeployment> {
        let own: BTreeSet<&Path> = parsed.iter().map(|(path, _)| path.as_path()).collect();
        let others = watched.files.iter().filter(|(path, _)| !own.contains(path.as_path()));
        let counts = |file: &ParsedFile| only(without(file.clone(), &watched.deleted), &merged.deployments);
        let parts = others.map(|(path, file)| (path.clone(), counts(file)));
        let parts: Vec<(PathBuf, ParsedFile)> = parts.filter(|(_, file)| !file.documents.is_empty()).collect();
        if parts.is_empty() {
            return merged.deployments;
        }
        let all: Vec<(PathBuf, ParsedFile)> = parsed.iter().cloned().chain(parts).collect();
        let mut whole = merge(&all).deployments;
        // What contradicts the others is told as a problem; then nothing comes of it.
        let complete = merged.deployments.into_iter().map(|(name, alone)| {
            let complete = whole.remove(&name).unwrap_or(alone);
            (name, complete)
        });
        complete.collect()
    }

    /// Problems between these files, parsed, and everything that would be declared beside them: in these copies of applied
    /// files, and in the watched directories. Only those at places in these files.
    pub(super) fn conflicts(
        &self,
        parsed: &[(PathBuf, ParsedFile)],
        copies: &[AppliedFile],
        watched: &Watched,
    ) -> Vec<Conflict> {
        let own: BTreeSet<&Path> = parsed.iter().map(|(path, _)| path.as_path()).collect();
        let redeclared: BTreeSet<String> =
            parsed.iter().flat_map(|(_, file)| file.deployments()).map(str::to_owned).collect();
        let applied = copies.iter().map(|copy| (copy.shown_path(&self.inner.applied), copy.parse()));
        let watched = watched.files.iter().map(|(path, file)| (path.clone(), without(file.clone(), &watched.deleted)));
        let others = applied.chain(watched).filter(|(path, _)| !own.contains(path.as_path()));
        // A deployment that two places declare is told apart from this.
        let others = others.map(|(path, file)| (path, without(file, &redeclared)));
        let all: Vec<(PathBuf, ParsedFile)> = parsed.iter().cloned().chain(others).collect();
        let mut conflicts = merge(&all).problems;
        conflicts.retain(|conflict| own.contains(conflict.file.as_path()));
        conflicts
    }
}

/// What a watched file says, or what its last good version said; none where it can't be read.
fn counted(path: &Path, state: &SourceState) -> Option<ParsedFile> {
    let file = parse_bytes(&read_now(path)?);
    let good = state.files.iter().find(|good| good.path == path).filter(|_| !file.problems.is_empty());
    Some(good.map_or(file, |good| parse_bytes(&good.content)))
}

/// The documents of these deployments alone.
fn only(mut file: ParsedFile, deployments: &BTreeMap<String, MergedDeployment>) -> ParsedFile {
    file.documents.retain(|document| deployments.contains_key(document.kind.deployment()));
    file
}

/// A file without the documents of these deployments.
fn without(mut file: ParsedFile, deployments: &BTreeSet<String>) -> ParsedFile {
    file.documents.retain(|document| !deployments.contains(document.kind.deployment()));
    file.broken.retain(|document| document.deployment.as_ref().is_none_or(|name| !deployments.contains(name)));
    file
}
