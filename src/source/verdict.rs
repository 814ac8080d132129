//! What becomes of each deployment after a scan, and what is said about each problem.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::findings::{Bad, Findings};
use super::known::{Inventory, Known};
use super::snapshot::{Effect, FileProblem, Unwatched};
use crate::spec::{Conflict, Merged, MergedDeployment, RuntimeKind};

/// What counts, by deployment. A deployment is taken over whole or not at all.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// As declared now.
    pub fresh: BTreeMap<String, MergedDeployment>,
    /// As it was: the last good version.
    pub kept: BTreeMap<String, MergedDeployment>,
    /// Why a deployment is kept because of a problem.
    pub stale: BTreeMap<String, String>,
    /// Deployments that are kept because their directory is not watched any more.
    pub unwatched: BTreeMap<String, Unwatched>,
    /// Why the inventory and this may not be all that is declared.
    pub unclear: Option<String>,
    /// Problems between documents.
    conflicts: Vec<Conflict>,
    /// Deployments that are not taken over and have no problem of their own: what they lack may be in what can't be
    /// read.
    lacking: BTreeSet<String>,
}

impl Verdict {
    /// Judges what a look found. What counts is `counted`, made of the last good versions; what is said of the files is
    /// what `present` says, made of the present texts.
    pub(super) fn new(findings: &Findings, counted: &Merged, present: &Merged, known: &Inventory) -> Self {
        let affected: BTreeSet<String> = findings.bad.iter().flat_map(|bad| bad.affected(known)).collect();
        let conflicts = conflicts(findings, counted, present, &affected);
        let mut verdict =
            Self { fresh: counted.deployments.clone(), unclear: findings.unclear.clone(), ..Self::default() };
        for (name, why) in troubled(findings, counted, present, known) {
            verdict.fresh.remove(&name);
            if !affected.contains(&name) && !conflicts.iter().any(|conflict| conflict.deployment == name) {
                verdict.lacking.insert(name.clone());
            }
            match known.get(&name).filter(|known| known.is_live()) {
                Some(known) => {
                    verdict.keep(&name, known, || why.clone());
                    verdict.stale.insert(name, why);
                }
                None => drop(verdict.unclear.get_or_insert(why)),
            }
        }
        verdict.conflicts = conflicts;
        verdict
    }

    /// Lets the runtime that is named for a deployment, or was when it was applied before, count for services of watched
    /// files that name none.
    pub(super) fn inherit_runtimes(
        &mut self,
        named: &BTreeMap<String, RuntimeKind>,
        known: &Inventory,
        is_watched: impl Fn(&Path) -> bool,
    ) {
        for (name, deployment) in &mut self.fresh {
            let known = known.get(name).filter(|known| known.is_live()).and_then(|known| known.deployment.as_ref());
            let before = || known.and_then(MergedDeployment::named_runtime);
            let Some(named) = named.get(name).copied().or_else(before) else { continue };
            let open = deployment.services.values_mut().filter(|service| service.runtime.is_none());
            for service in open.filter(|service| is_watched(&service.file)) {
                service.default_runtime = Some(named);
            }
        }
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

    /// Keeps a deployment as it was because a file that can't be read may be where its declaration went.
    pub(super) fn keep_for(&mut self, name: &str, known: &Known, file: &Path) {
        let file = file.display();
        let why = format!(
            "its declaration vanished, and {file}, which can't be read, may hold it now; mend or remove {file}, or end the \
             deployment with `keel delete {name}`"
        );
        self.fresh.remove(name);
        self.keep(name, known, || why.clone());
        self.stale.insert(name.to_owned(), why);
        self.lacking.insert(name.to_owned());
    }

    /// Takes deployments out, whatever the files say of them.
    pub(super) fn take_back(&mut self, names: &BTreeSet<String>) {
        for name in names {
            self.fresh.remove(name);
            self.kept.remove(name);
            self.stale.remove(name);
        }
    }

    /// Whether the sources still speak of it, be it with problems.
    pub(super) fn is_declared(&self, name: &str) -> bool {
        self.fresh.contains_key(name) || self.kept.contains_key(name) || self.stale.contains_key(name)
    }

    /// Everything that is wrong, with what comes of it, by file and position.
    pub(super) fn problems(&self, findings: &Findings, known: &Inventory) -> Vec<FileProblem> {
        let inside = findings.bad.iter().flat_map(|bad| {
            let lacking = self.lacking.iter().filter(|_| bad.present.may_declare_more());
            let effect = self.effect(bad.affected(known).into_iter().chain(lacking.cloned()).collect());
            bad.problems.iter().map(move |problem| (bad.path.clone(), problem.clone(), effect.clone()))
        });
        let between = self.conflicts.iter().map(|conflict| {
            let effect = self.effect([conflict.deployment.clone()].into());
            (conflict.file.clone(), conflict.problem.clone(), effect)
        });
        let all = inside.chain(between).map(|(file, problem, effect)| FileProblem { file, problem, effect });
        let mut problems: Vec<FileProblem> = all.collect();
        problems.sort_by(|a, b| (&a.file, a.problem.position).cmp(&(&b.file, b.problem.position)));
        problems
    }

    fn effect(&self, affected: BTreeSet<String>) -> Effect {
        if affected.is_empty() {
            return Effect::None;
        }
        let (kept, left_out) = affected.into_iter().partition(|name| self.is_declared(name));
        Effect::Deployments { kept, left_out }
    }
}

/// Problems between documents: those of the present texts, and those that only the last good version of a file makes,
/// which must not contradict what is said of its present text.
fn conflicts(findings: &Findings, counted: &Merged, present: &Merged, affected: &BTreeSet<String>) -> Vec<Conflict> {
    let mut conflicts = present.problems.clone();
    if findings.outdated.is_empty() {
        return conflicts;
    }
    let said = |conflict: &Conflict| {
        affected.contains(&conflict.deployment) || present.refused.contains_key(&conflict.deployment)
    };
    let more = counted.problems.iter().filter(|one| !said(one) && !findings.outdated.contains(&one.file));
    conflicts.extend(more.map(|conflict| {
        let mut conflict = conflict.clone();
        let help = conflict.problem.help.get_or_insert_default();
        help.push_str(" (of a file with problems, the last good version counts)");
        conflict
    }));
    conflicts
}

/// Deployments of which a part can't be trusted, with the first reason.
fn troubled(findings: &Findings, counted: &Merged, present: &Merged, known: &Inventory) -> BTreeMap<String, String> {
    let mut reasons = present.refused.clone();
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
    for (name, why) in &counted.refused {
        reasons.entry(name.clone()).or_insert_with(|| why.clone());
    }
    reasons
}

impl Bad {
    /// Deployments that its text names, and those that had a part in it.
    fn affected(&self, known: &Inventory) -> BTreeSet<String> {
        let with_part = known.iter().filter(|(_, known)| known.is_live() && self.has_part_of(known));
        self.present.deployments().map(str::to_owned).chain(with_part.map(|(name, _)| name.clone())).collect()
    }

    /// Whether the deployment had a part in it.
    fn has_part_of(&self, known: &Known) -> bool {
        match &self.only {
            Some(files) => known.files().into_iter().any(|file| files.contains(file)),
            // What was applied has its root in the state directory and its files elsewhere.
            None => known.declared.root == self.path || known.files().iter().any(|file| file.starts_with(&self.path)),
        }
    }
}
