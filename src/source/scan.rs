//! One look at all roots: what counts now, given what counted before.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::findings::{Findings, Good};
use super::gate::{self, Loss, Losses};
use super::read::{Parsed, Reader};
use super::settle::Settling;
use super::snapshot::{Hold, Root, RootKind, SourceOptions, SpecSnapshot};
use super::trace::WatchPlan;
use super::verdict::Verdict;
use crate::clock::Clock;
use crate::spec::{Merged, MergedDeployment, ParsedFile, merge};
use crate::state::SourceRef;
use crate::store::{AppliedFile, Declared, HoldRecord, RootIdentity, SourceChange, Store, StoreError};

/// Whether a scan's result is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recording {
    /// It is: the next scan, also after a restart, starts from it.
    On,
    /// It is not: only a look, for commands that change nothing.
    Off,
}

/// Why a source can't start.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// What is remembered can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A root was never there.
    #[error("{}: {source}; name the directory that holds your specs, or create it", path.display())]
    Root {
        /// The root.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Looks at roots, again and again, and knows what counted before. Everything here is synchronous; the time is an
/// argument.
#[derive(Debug)]
pub struct Scanner {
    pub(super) roots: Vec<Root>,
    pub(super) options: SourceOptions,
    pub(super) reader: Reader,
    pub(super) settling: Settling,
    /// Last good version of every file.
    pub(super) good: BTreeMap<PathBuf, Good>,
    /// Applied files by the path that they came from, with what they say.
    pub(super) applied: BTreeMap<PathBuf, (AppliedFile, Arc<ParsedFile>)>,
    /// Which directory each watched root was.
    pub(super) identities: BTreeMap<PathBuf, String>,
    store: Arc<Store>,
    recording: Recording,
    known: BTreeMap<String, Known>,
    hold: Option<HoldRecord>,
    merged: Cached,
    /// What could not be stored yet.
    unstored: SourceChange,
    snapshot: Arc<SpecSnapshot>,
    plan: WatchPlan,
    has_all_roots: bool,
}

/// A deployment of the inventory.
#[derive(Debug)]
pub(super) struct Known {
    /// As it is stored.
    pub declared: Declared,
    /// The same as a value; absent where another version of keel stored it in a form that can't be read.
    pub deployment: Option<MergedDeployment>,
}

impl Known {
    pub(super) fn is_live(&self) -> bool {
        self.declared.removed_at.is_none()
    }

    /// Files that it has a part in.
    pub(super) fn files(&self) -> BTreeSet<&Path> {
        let services = self.deployment.iter().flat_map(|deployment| deployment.services.values());
        services.map(|service| service.file.as_path()).chain([self.declared.source.file.as_path()]).collect()
    }
}

/// The last merge, with what it was made from.
#[derive(Debug, Default)]
struct Cached {
    inputs: BTreeMap<PathBuf, Arc<ParsedFile>>,
    merged: Arc<Merged>,
}

/// What a scan gives.
#[derive(Debug, Clone)]
pub struct Scanned {
    /// What counts now; the same [`Arc`] as before where nothing changed.
    pub snapshot: Arc<SpecSnapshot>,
    /// When to look again because something may be the middle of a save; `None` where all is settled.
    pub settles_in: Option<Duration>,
}

impl Scanner {
    /// Starts from what the store remembers.
    ///
    /// # Errors
    /// When the store can't be read, or a watched root can't be looked at and nothing is known of it: then its path is
    /// most probably wrong.
    pub fn load(
        roots: Vec<Root>,
        store: Arc<Store>,
        options: SourceOptions,
        recording: Recording,
    ) -> Result<Self, SourceError> {
        let state = store.source_state()?;
        let known: BTreeMap<String, Known> = state
            .inventory
            .into_iter()
            .map(|declared| (declared.name.clone(), Known { deployment: decode(&declared.spec), declared }))
            .collect();
        let roots = roots.into_iter().map(|root| checked(root, &known)).collect::<Result<_, _>>()?;
        let good = state.files.into_iter().map(|file| (file.path, Good::of(Parsed::of(&file.content)))).collect();
        let identities = state.roots.into_iter().map(|root| (root.path, root.identity)).collect();
        Ok(Self {
            roots,
            options,
            reader: Reader::default(),
            settling: Settling::default(),
            good,
            applied: BTreeMap::new(),
            identities,
            store,
            recording,
            known,
            hold: state.hold,
            merged: Cached::default(),
            unstored: SourceChange::default(),
            snapshot: Arc::default(),
            plan: WatchPlan::default(),
            has_all_roots: false,
        })
    }

    /// Looks at all roots once.
    pub fn scan(&mut self, now: DateTime<Utc>) -> Scanned {
        let findings = self.look(now);
        let settles_in = self.settling.finish(now);
        let merged = self.merge(&findings.inputs);
        let mut verdict = Verdict::new(&findings, &merged, &self.known);
        let losses = self.losses(&findings, &verdict);
        let hold = match &self.hold {
            // What may be the middle of a save is not back yet.
            Some(hold) if settles_in.is_some() => Some(hold.clone()),
            before => gate::hold(before.as_ref(), &losses, now),
        };
        let mut change = self.settle_files(&findings, hold.is_some(), settles_in.is_none());
        change.declared = self.update_inventory(&mut verdict, &losses, hold.is_some(), now);
        change.hold = (hold != self.hold).then(|| hold.clone());
        self.hold = hold;
        self.record(change);
        let snapshot = self.compose(&findings, &merged, verdict, &losses, settles_in.is_none());
        if *self.snapshot != snapshot {
            self.snapshot = Arc::new(snapshot);
        }
        let mut watched = self.roots.iter().filter(|root| root.kind == RootKind::Watched);
        self.has_all_roots = watched.all(|root| findings.identities.contains_key(&root.path));
        self.plan = findings.plan;
        Scanned { snapshot: Arc::clone(&self.snapshot), settles_in }
    }

    /// Confirms the loss that is held and looks again; gives the names that were missing.
    ///
    /// # Errors
    /// When it can't be recorded; nothing is confirmed then.
    pub fn approve(&mut self, now: DateTime<Utc>) -> Result<(Vec<String>, Scanned), StoreError> {
        let missing = self.snapshot.hold.as_ref().map(|hold| hold.missing.clone()).unwrap_or_default();
        let confirmed = missing
            .iter()
            .filter_map(|name| self.known.get(name))
            .map(|known| Declared { removed_at: Some(now), ..known.declared.clone() });
        let declared: Vec<Declared> = confirmed.collect();
        let change = SourceChange { declared, hold: Some(None), ..SourceChange::default() };
        if self.recording == Recording::On {
            self.store.record_scan(&change)?;
        }
        for declared in change.declared {
            if let Some(known) = self.known.get_mut(&declared.name) {
                known.declared = declared;
            }
        }
        self.hold = None;
        Ok((missing, self.scan(now)))
    }

    /// Takes a deployment that is not declared any more out of the inventory: nothing of it exists. One that is
    /// declared (again) stays.
    ///
    /// # Errors
    /// When it can't be recorded; the deployment then stays in the inventory.
    pub fn forget(&mut self, deployment: &str) -> Result<(), StoreError> {
        if self.known.get(deployment).is_none_or(Known::is_live) {
            return Ok(());
        }
        if self.recording == Recording::On {
            self.store.forget(deployment)?;
        }
        self.known.remove(deployment);
        self.unstored.declared.retain(|declared| declared.name != deployment);
        let mut snapshot = SpecSnapshot::clone(&self.snapshot);
        if snapshot.removed.remove(deployment).is_some() {
            self.snapshot = Arc::new(snapshot);
        }
        Ok(())
    }

    /// What the last scan or [`Scanner::forget`] came to.
    pub fn snapshot(&self) -> Arc<SpecSnapshot> {
        Arc::clone(&self.snapshot)
    }

    pub(super) fn watch_plan(&self) -> &WatchPlan {
        &self.plan
    }

    /// Whether every watched root was there when it was last looked at.
    pub(super) fn has_all_roots(&self) -> bool {
        self.has_all_roots
    }

    pub(super) fn set_polling(&mut self, why: Option<String>) {
        if self.snapshot.polling != why {
            self.snapshot = Arc::new(SpecSnapshot { polling: why, ..SpecSnapshot::clone(&self.snapshot) });
        }
    }

    fn merge(&mut self, inputs: &BTreeMap<PathBuf, Arc<ParsedFile>>) -> Arc<Merged> {
        let same = self.merged.inputs.len() == inputs.len()
            && self.merged.inputs.iter().zip(inputs).all(|((a, x), (b, y))| a == b && Arc::ptr_eq(x, y));
        if !same {
            let files: Vec<_> = inputs.iter().map(|(path, file)| (path.clone(), ParsedFile::clone(file))).collect();
            self.merged = Cached { inputs: inputs.clone(), merged: Arc::new(merge(&files)) };
        }
        Arc::clone(&self.merged.merged)
    }

    fn losses(&self, findings: &Findings, verdict: &Verdict) -> Losses {
        let held = |known: &Known| !self.options.allow_empty && self.kind_of(&known.declared.root) == RootKind::Watched;
        let before = || self.known.iter().filter(|(_, known)| known.is_live() && held(known));
        let lost = before().filter(|(name, _)| !verdict.is_declared(name)).map(|(name, known)| {
            let root = &known.declared.root;
            let watched = self.roots.iter().any(|current| current.path == *root);
            let loss = match findings.roots_gone.get(root) {
                Some(what) => Loss::RootGone(what.clone()),
                None if !watched => Loss::RootGone(format!("{} is not watched any more", root.display())),
                None => Loss::Undeclared,
            };
            (name.clone(), loss)
        });
        Losses { known: before().count(), lost: lost.collect() }
    }

    /// Of a root that is not looked at any more nothing is known but that somebody wanted it.
    fn kind_of(&self, root: &Path) -> RootKind {
        self.roots.iter().find(|current| current.path == root).map_or(RootKind::Watched, |current| current.kind)
    }

    /// Takes over new good versions, and lets go of files that are gone and not held.
    fn settle_files(&mut self, findings: &Findings, held: bool, settled: bool) -> SourceChange {
        let mut change = SourceChange { files: findings.accepted.clone(), ..SourceChange::default() };
        if !held {
            for path in &findings.gone {
                self.good.remove(path);
            }
            change.dropped_files.clone_from(&findings.gone);
        }
        let watched = self.roots.iter().filter(|root| root.kind == RootKind::Watched);
        let identities: BTreeMap<PathBuf, String> = watched
            .map(|root| {
                let identity = findings.identities.get(&root.path).or_else(|| self.identities.get(&root.path));
                (root.path.clone(), identity.cloned().unwrap_or_default())
            })
            .collect();
        // While something may be the middle of a save, the decision about it still needs the old ones.
        if settled && !identities.is_empty() && identities != self.identities {
            let rows = identities.iter().map(|(path, id)| RootIdentity { path: path.clone(), identity: id.clone() });
            change.roots = Some(rows.collect());
            self.identities = identities;
        }
        change
    }

    /// Brings the inventory up to the verdict; gives the entries that changed.
    fn update_inventory(
        &mut self,
        verdict: &mut Verdict,
        losses: &Losses,
        held: bool,
        now: DateTime<Utc>,
    ) -> Vec<Declared> {
        let mut changed = Vec::new();
        for (name, deployment) in &verdict.fresh {
            if self.known.get(name).is_some_and(|k| k.is_live() && k.deployment.as_ref() == Some(deployment)) {
                continue;
            }
            let declared = self.declare(deployment, now);
            changed.push(declared.clone());
            self.known.insert(name.clone(), Known { declared, deployment: Some(deployment.clone()) });
        }
        for (name, known) in &mut self.known {
            if verdict.is_declared(name) || !known.is_live() {
                continue;
            }
            if held && losses.lost.contains_key(name) {
                verdict.keep(name, known, || "it vanished from the source and pruning is stopped".to_owned());
            } else {
                known.declared.removed_at = Some(now);
                changed.push(known.declared.clone());
            }
        }
        changed
    }

    fn declare(&self, deployment: &MergedDeployment, now: DateTime<Utc>) -> Declared {
        let watched = self.roots.iter().find(|root| deployment.file.starts_with(&root.path));
        let root = watched.or_else(|| self.roots.iter().find(|root| root.kind == RootKind::Applied));
        Declared {
            name: deployment.name.clone(),
            prune: deployment.prune,
            root: root.map_or_else(PathBuf::new, |root| root.path.clone()),
            source: SourceRef { file: deployment.file.clone(), line: deployment.position.line },
            // A spec is made of maps with text keys, which always can be written.
            spec: serde_json::to_string(deployment).unwrap_or_default(),
            updated_at: now,
            removed_at: None,
        }
    }

    /// Stores a change, with what could not be stored before. What can't be stored is kept for the next scan: it is
    /// only needed after a restart.
    fn record(&mut self, change: SourceChange) {
        if self.recording == Recording::Off {
            return;
        }
        self.unstored.append(change);
        if self.unstored.is_empty() {
            return;
        }
        match self.store.record_scan(&self.unstored) {
            Ok(()) => self.unstored = SourceChange::default(),
            Err(error) => tracing::warn!(%error, "what the source declares is not recorded yet; trying again"),
        }
    }

    fn compose(
        &self,
        findings: &Findings,
        merged: &Merged,
        verdict: Verdict,
        losses: &Losses,
        settled: bool,
    ) -> SpecSnapshot {
        let removed = self.known.iter().filter(|(_, known)| !known.is_live());
        let hold = self.hold.as_ref().map(|hold| Hold {
            reason: format!("{}; {}", hold.reason, gate::HOLD_HELP),
            missing: if settled {
                losses.lost.keys().cloned().collect()
            } else {
                hold.missing.iter().chain(losses.lost.keys()).cloned().collect::<BTreeSet<_>>().into_iter().collect()
            },
            since: hold.since,
        });
        SpecSnapshot {
            synced: self.snapshot.synced || settled,
            problems: super::verdict::problems(findings, merged, &verdict, &self.known),
            removed: removed.map(|(name, known)| (name.clone(), known.declared.prune)).collect(),
            stale: verdict.stale,
            unclear: verdict.unclear,
            deployments: verdict.fresh.into_iter().chain(verdict.kept).collect(),
            hold,
            polling: self.snapshot.polling.clone(),
        }
    }
}

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

/// Looks at roots for one command. Waits (at most for a few seconds) where something may be the middle of a save.
///
/// # Errors
/// Those of [`Scanner::load`].
pub fn read_once(
    roots: Vec<Root>,
    store: Arc<Store>,
    clock: &dyn Clock,
    options: SourceOptions,
    recording: Recording,
) -> Result<Arc<SpecSnapshot>, SourceError> {
    let mut scanner = Scanner::load(roots, store, options, recording)?;
    let mut scanned = scanner.scan(clock.now());
    // A file may be missing first and then be empty.
    for _ in 0..2 {
        let Some(wait) = scanned.settles_in else { break };
        std::thread::sleep(wait);
        scanned = scanner.scan(clock.now());
    }
    Ok(scanned.snapshot)
}

fn checked(root: Root, known: &BTreeMap<String, Known>) -> Result<Root, SourceError> {
    let failed = |source| SourceError::Root { path: root.path.clone(), source };
    let path = std::path::absolute(&root.path).map_err(failed)?;
    let is_known = known.values().any(|known| known.declared.root == path);
    match std::fs::metadata(&path) {
        Err(source) if root.kind == RootKind::Watched && !is_known => Err(SourceError::Root { path, source }),
        _ => Ok(Root { path, ..root }),
    }
}

fn decode(spec: &str) -> Option<MergedDeployment> {
    serde_json::from_str(spec).ok()
}
