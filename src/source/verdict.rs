//! What becomes of each deployment after a scan, and what is said about each problem.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::findings::{Bad, Findings};
use super::scan::Known;
use super::snapshot::{Effect, FileProblem};
use crate::spec::{DocumentKind, Merged, MergedDeployment};

/// What counts, by deployment. A deployment is taken over whole or not at all.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// As declared now.
    pub fresh: BTreeMap<String, MergedDeployment>,
    /// As it was: the last good version.
    pub kept: BTreeMap<String, MergedDeployment>,
    /// Why a deployment is kept because of a problem.
    pub stale: BTreeMap<String, String>,
    /// Why the inventory and this may not be all that is declared.
    pub unclear: Option<String>,
}

impl Verdict {
    pub(super) fn new(findings: &Findings, merged: &Merged, known: &BTreeMap<String, Known>) -> Self {
        let mut verdict =
            Self { fresh: merged.deployments.clone(), unclear: findings.unclear.clone(), ..Self::default() };
        for (name, why) in troubled(findings, merged, known) {
            verdict.fresh.remove(&name);
            match known.get(&name).filter(|known| known.is_live()) {
                Some(known) => {
                    verdict.keep(&name, known, || why.clone());
                    verdict.stale.insert(name, why);
                }
                None => drop(verdict.unclear.get_or_insert(why)),
            }
        }
        verdict
    }

    /// Keeps a deployment as it was. Where not even that is known, it is named as stale, so that nobody touches it.
    pub(super) fn keep(&mut self, name: &str, known: &Known, why: impl FnOnce() -> String) {
        match &known.deployment {
            Some(deployment) => {
                self.kept.insert(name.to_owned(), deployment.clone());
            }
            None => {
                self.stale.insert(name.to_owned(), why());
            }
        }
    }

    /// Whether the sources still speak of it, be it with problems.
    pub(super) fn is_declared(&self, name: &str) -> bool {
        self.fresh.contains_key(name) || self.kept.contains_key(name) || self.stale.contains_key(name)
    }
}

/// Deployments of which a part can't be trusted, with the first reason.
fn troubled(findings: &Findings, merged: &Merged, known: &BTreeMap<String, Known>) -> BTreeMap<String, String> {
    let mut reasons = merged.refused.clone();
    for bad in &findings.bad {
        let Some(problem) = bad.problems.first() else { continue };
        // A root that is gone is no problem of its deployments: that is what a hold is for.
        if findings.roots_gone.contains_key(&bad.path) {
            continue;
        }
        for name in bad.affected(known) {
            reasons.entry(name).or_insert_with(|| format!("{}:{problem}", bad.path.display()));
        }
    }
    reasons
}

impl Bad {
    /// Deployments that its text names, and those that had a part in it.
    fn affected(&self, known: &BTreeMap<String, Known>) -> BTreeSet<String> {
        self.names.iter().cloned().chain(parts_below(&self.path, known)).collect()
    }
}

fn parts_below(path: &Path, known: &BTreeMap<String, Known>) -> impl Iterator<Item = String> {
    // What was applied has its root in the state directory and its files elsewhere.
    let has_part =
        move |known: &Known| known.declared.root == path || known.files().iter().any(|file| file.starts_with(path));
    let with_part = known.iter().filter(move |(_, known)| known.is_live() && has_part(known));
    with_part.map(|(name, _)| name.clone())
}

/// Everything that is wrong, with what comes of it, by file and position.
pub(super) fn problems(
    findings: &Findings,
    merged: &Merged,
    verdict: &Verdict,
    known: &BTreeMap<String, Known>,
) -> Vec<FileProblem> {
    let mut problems = Vec::new();
    for bad in &findings.bad {
        let effect = effect(bad.affected(known), verdict);
        problems.extend(bad.problems.iter().map(|problem| FileProblem {
            file: bad.path.clone(),
            problem: problem.clone(),
            effect: effect.clone(),
        }));
    }
    for (file, problem) in &merged.problems {
        let refused = declared_in(file, findings).filter(|name| merged.refused.contains_key(*name));
        let effect = effect(refused.map(str::to_owned).collect(), verdict);
        problems.push(FileProblem { file: file.clone(), problem: problem.clone(), effect });
    }
    problems.sort_by(|a, b| (&a.file, a.problem.position).cmp(&(&b.file, b.problem.position)));
    problems
}

fn declared_in<'a>(file: &Path, findings: &'a Findings) -> impl Iterator<Item = &'a str> {
    let documents = findings.inputs.get(file).into_iter().flat_map(|parsed| &parsed.documents);
    documents.map(|document| match &document.kind {
        DocumentKind::Deployment(deployment) => deployment.name.as_str(),
        DocumentKind::Service { deployment, .. } => deployment.as_str(),
    })
}

fn effect(affected: BTreeSet<String>, verdict: &Verdict) -> Effect {
    if affected.is_empty() {
        return Effect::None;
    }
    let (kept, left_out) = affected.into_iter().partition(|name| verdict.is_declared(name));
    Effect::Deployments { kept, left_out }
}
