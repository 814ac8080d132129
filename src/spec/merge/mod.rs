//! All files together: services join their deployments, and what only shows across documents is checked.

mod depends;
mod draft;
mod paths;
mod ports;
mod runtimes;

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{ParsedFile, Position, Problem, Prune, Revision, RuntimeKind, ServiceSpec, UnsupportedField};

/// What a set of files declares.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Merged {
    /// The deployments that are good, by name.
    pub deployments: BTreeMap<String, MergedDeployment>,
    /// What is wrong between documents, by file and position. Problems inside of documents stay with their
    /// [`ParsedFile`].
    pub problems: Vec<Conflict>,
    /// Deployments that are declared and have a problem, with the reason: their state stays as it is.
    pub refused: BTreeMap<String, String>,
}

/// A problem between documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The deployment that has it.
    pub deployment: String,
    /// The file that it is in.
    pub file: PathBuf,
    /// What is wrong there.
    pub problem: Problem,
}

/// One deployment, whole.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct MergedDeployment {
    /// Its name.
    pub name: String,
    /// The file that declares it: its own document, else the first of its services.
    pub file: PathBuf,
    /// Where in that file.
    pub position: Position,
    /// What happens when the declaration goes.
    pub prune: Prune,
    /// Its services by name.
    pub services: BTreeMap<String, MergedService>,
    /// Its fields outside of services that nothing honours yet.
    pub unsupported: Vec<UnsupportedField>,
}

/// One service, with paths made absolute.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct MergedService {
    /// Its name.
    pub name: String,
    /// What was written; relative paths are resolved against the directory of the file.
    pub spec: Arc<ServiceSpec>,
    /// Hash over its template, as written.
    pub revision: Revision,
    /// The revision that instances on a runtime have if they were made from the same template when its runtime was written
    /// and now is not, or the other way round.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub equivalents: BTreeMap<RuntimeKind, Revision>,
    /// The file that declares it.
    pub file: PathBuf,
    /// Where in that file.
    pub position: Position,
    /// The runtime that is written: the service's own, else the deployment's.
    pub runtime: Option<RuntimeKind>,
    /// The runtime where none is written, if one was named when the deployment was applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_runtime: Option<RuntimeKind>,
}

impl MergedDeployment {
    /// The runtime that was named when it was applied, for services that name none; none where none was, or all of them
    /// name one.
    pub fn named_runtime(&self) -> Option<RuntimeKind> {
        self.services.values().filter(|service| service.runtime.is_none()).find_map(|service| service.default_runtime)
    }
}

impl MergedService {
    /// The runtime that it was declared for; `None` where that is left to whoever runs it.
    pub fn declared_runtime(&self) -> Option<RuntimeKind> {
        self.runtime.or(self.default_runtime)
    }
}

/// Brings the documents of many files together.
///
/// The paths of the files are best absolute: relative paths in specs are resolved against their directories.
///
/// A service in a document of its own joins its deployment, or makes one. A deployment of which any part has a
/// problem, in its documents or between them, is left out and named in [`Merged::refused`].
///
/// Documents that have problems are checked against the others as far as they can be read. A problem that may be
/// gone as soon as others are mended is none: a service is only said to be unknown where everything that may declare
/// it can be read.
pub fn merge<F: Borrow<ParsedFile>>(files: &[(PathBuf, F)]) -> Merged {
    let mut findings = Findings::default();
    let drafts = draft::collect(files.iter().map(|(path, file)| (path.as_path(), file.borrow())), &mut findings);
    for (name, draft) in &drafts {
        depends::check(name, draft, &mut findings);
        runtimes::check(name, draft, &mut findings);
    }
    ports::check(&drafts, &mut findings);
    let Findings { mut problems, refused, .. } = findings;
    problems.sort_by(|a, b| (&a.file, a.problem.position).cmp(&(&b.file, b.problem.position)));
    let good = drafts.into_iter().filter(|(name, _)| !refused.contains_key(*name));
    let deployments = good.filter_map(|(name, draft)| Some((name.to_owned(), draft.finish(name)?))).collect();
    Merged { deployments, problems, refused }
}

/// Everything that is wrong with a set of files, inside of documents and between them, by file and position.
pub fn problems<F: Borrow<ParsedFile>>(files: &[(PathBuf, F)], merged: &Merged) -> Vec<(PathBuf, Problem)> {
    let inside = files.iter().flat_map(|(path, file)| file.borrow().problems.iter().map(move |one| (path, one)));
    let between = merged.problems.iter().map(|conflict| (&conflict.file, &conflict.problem));
    let mut problems: Vec<(PathBuf, Problem)> =
        inside.chain(between).map(|(path, problem)| (path.clone(), problem.clone())).collect();
    problems.sort_by(|(a, x), (b, y)| (a, x.position).cmp(&(b, y.position)));
    problems
}

/// What is found while files are brought together.
#[derive(Default)]
struct Findings {
    problems: Vec<Conflict>,
    refused: BTreeMap<String, String>,
    /// Files that are copies of what was applied.
    applied: BTreeSet<PathBuf>,
    /// Whether there are files that may declare parts of any deployment.
    may_declare_more: bool,
}

impl Findings {
    fn refuse(&mut self, deployment: &str, file: &Path, problem: Problem) {
        let reason = format!("{}:{problem}", file.display());
        self.refused.entry(deployment.to_owned()).or_insert(reason);
        self.problems.push(Conflict { deployment: deployment.to_owned(), file: file.to_owned(), problem });
    }
}

/// A place as messages name it.
fn place(file: &Path, position: Position) -> String {
    format!("{}:{position}", file.display())
}
