//! What else is declared than the files of a request: a new file must not contradict it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tokio::time::Instant;

use super::EngineError;
use super::apply::blocking;
use super::engine::Engine;
use super::open::{blinded, local};
use crate::source::{CountedFile, read_now};
use crate::spec::{Conflict, DocumentKind, Merged, MergedDeployment, ParsedFile, Position, merge, parse_bytes};
use crate::state::SourceRef;
use crate::store::{AppliedFile, Declared};

/// What counts of the files of the watched directories.
#[derive(Debug, Default)]
pub(super) struct Watched {
    files: Vec<CountedFile>,
    /// Deployments that were deleted by name and don't count for as long as no controller watches.
    deleted: BTreeSet<String>,
    /// Deployments of which something else than their files say now counts, and why.
    stale: BTreeMap<String, String>,
}

impl Watched {
    /// Where a file declares a deployment, or has a part in it, whether that is there to be seen or not.
    pub(super) fn part(&self, deployment: &str) -> Option<SourceRef> {
        self.place(|file| part_of(&file.says, deployment))
    }

    /// The same of files that are there.
    pub(super) fn part_of_existing(&self, deployment: &str) -> Option<SourceRef> {
        self.place(|file| part_of(&file.says, deployment).filter(|_| file.path.exists()))
    }

    /// The same of what files say now.
    pub(super) fn part_in_sight(&self, deployment: &str) -> Option<SourceRef> {
        self.place(|file| part_of(&file.says, deployment).filter(|_| file.is_present))
    }

    /// Why something else than what its files say now counts of a deployment, if so.
    pub(super) fn why_stale(&self, deployment: &str) -> Option<&str> {
        self.stale.get(deployment).map(String::as_str)
    }

    /// Where a file declares a deployment as such, and not only a service of it.
    pub(super) fn whole(&self, deployment: &str) -> Option<SourceRef> {
        self.place(|file| {
            let is_whole =
                |kind: &DocumentKind| matches!(kind, DocumentKind::Deployment(one) if one.name == deployment);
            file.says.documents.iter().find(|document| is_whole(&document.kind)).map(|document| document.position)
        })
    }

    fn place(&self, find: impl Fn(&CountedFile) -> Option<Position>) -> Option<SourceRef> {
        let mut places = self.files.iter().filter_map(|file| Some((file, find(file)?)));
        places.next().map(|(file, position)| SourceRef { file: file.path.clone(), line: position.line })
    }

    /// Whether an entry of the inventory comes from a file that is there and can't be read.
    pub(super) fn hides(&self, entry: &Declared) -> bool {
        let file = &entry.source.file;
        file.exists() && !self.files.iter().any(|counted| counted.path == *file)
    }
}

impl Engine {
    /// Looks at the watched directories.
    ///
    /// # Errors
    /// They, or the state database, can't be read.
    pub(super) async fn watched(&self) -> Result<Watched, EngineError> {
        let (stale, files) = match (&self.inner.source, &self.inner.reread) {
            (Some(source), _) => {
                let snapshot = source.handle.rescan().await.map_err(blinded)?;
                (snapshot.stale.clone(), source.handle.files().await.map_err(blinded)?)
            }
            (None, Some(reread)) => reread.read_files(Instant::now()).await?,
            (None, None) => <_>::default(),
        };
        let store = self.inner.store.clone();
        let read = move || store.source_state().map_err(local("the state database can't be read"));
        Ok(Watched { files, deleted: blocking(read).await?.deleted, stale })
    }

    /// What these files declare, parsed and merged, with the services that other files of the watched directories add to it.
    pub(super) fn completed(
        &self,
        parsed: &[(PathBuf, ParsedFile)],
        merged: Merged,
        watched: &Watched,
    ) -> BTreeMap<String, MergedDeployment> {
        let own: BTreeSet<&Path> = parsed.iter().map(|(path, _)| path.as_path()).collect();
        let others = watched.files.iter().filter(|file| !own.contains(file.path.as_path()));
        let counts = |file: &ParsedFile| only(without(file.clone(), &watched.deleted), &merged.deployments);
        let parts = others.map(|file| (file.path.clone(), counts(&file.says)));
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
        let applied = copies.iter().map(|copy| (copy.shown_path(&self.inner.archive.applied()), copy.parse()));
        let counts = |file: &CountedFile| without(ParsedFile::clone(&file.says), &watched.deleted);
        let watched = watched.files.iter().map(|file| (file.path.clone(), counts(file)));
        let others = applied.chain(watched).filter(|(path, _)| !own.contains(path.as_path()));
        // A deployment that two places declare is told apart from this.
        let others = others.map(|(path, file)| (path, without(file, &redeclared)));
        let all: Vec<(PathBuf, ParsedFile)> = parsed.iter().cloned().chain(others).collect();
        let mut conflicts = merge(&all).problems;
        conflicts.retain(|conflict| own.contains(conflict.file.as_path()));
        conflicts
    }
}

/// Where a file that nobody looks at declares a deployment, or has a part in it, now.
pub(super) fn declared_in(file: &Path, deployment: &str) -> Option<SourceRef> {
    let position = part_of(&parse_bytes(&read_now(file)?), deployment)?;
    Some(SourceRef { file: file.to_path_buf(), line: position.line })
}

/// Where a text declares a deployment, or has a part in it.
fn part_of(file: &ParsedFile, deployment: &str) -> Option<Position> {
    let good = file.documents.iter().filter(|document| document.kind.deployment() == deployment);
    let broken = file.broken.iter().filter(|document| document.deployment.as_deref() == Some(deployment));
    good.map(|document| document.position).chain(broken.map(|document| document.position)).min()
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
