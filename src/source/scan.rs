//! One look at all roots: what counts now, given what counted before.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::findings::{Findings, Texts};
use super::gate::{self, Loss, Losses};
use super::known::{Inventory, Known, files_of};
use super::list::identity;
use super::lookout::Lookout;
use super::roots::checked;
use super::settle::Settling;
use super::snapshot::{
    CountedFile, Deleted, Hold, NamedRuntimes, Records, Removed, Root, RootKind, SourceOptions, SpecSnapshot, Unwatched,
};
use super::trace::WatchPlan;
use super::unclosed::Unclosed;
use super::verdict::Verdict;
use crate::clock::Clock;
use crate::spec::{Merged, MergedDeployment, RuntimeKind, merge};
use crate::state::SourceRef;
use crate::store::{Declared, HoldRecord, Reset, SourceChange, Store, StoreError};

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
    lookout: Lookout,
    options: SourceOptions,
    store: Arc<Store>,
    recording: Recording,
    known: Inventory,
    hold: Option<HoldRecord>,
    reset: Option<Reset>,
    /// Deployments that have lost something.
    settling: Settling<String>,
    /// Deleted by name, whatever the files say.
    deleted: BTreeSet<String>,
    /// Deployments that only the last good version of a file declares which can't be seen, or whose file may be one that
    /// can't be read.
    out_of_sight: BTreeSet<String>,
    /// Files with a good version that are not there because their file system is not.
    unmounted: BTreeSet<PathBuf>,
    counted: Cached,
    present: Cached,
    /// What could not be stored yet.
    unstored: SourceChange,
    /// Deployments that somebody asked for.
    asked: BTreeSet<String>,
    /// The runtimes that were named for them then, by name.
    named: BTreeMap<String, RuntimeKind>,
    /// What is not recorded because nobody asked for it, by name.
    unasked: BTreeMap<String, Declared>,
    snapshot: Arc<SpecSnapshot>,
    plan: WatchPlan,
    files: Vec<CountedFile>,
    /// Which directory each watched root was when it was last looked at; none where it was not there.
    seen_roots: BTreeMap<PathBuf, Option<String>>,
}

/// The last merge, with what it was made from.
#[derive(Debug, Default)]
struct Cached {
    texts: Texts,
    merged: Arc<Merged>,
}

impl Cached {
    fn merge(&mut self, texts: Texts) -> Arc<Merged> {
        let same = self.texts.len() == texts.len()
            && self.texts.iter().zip(&texts).all(|((a, x), (b, y))| a == b && Arc::ptr_eq(x, y));
        if !same {
            let merged = Arc::new(merge(&texts));
            *self = Self { texts, merged };
        }
        Arc::clone(&self.merged)
    }
}

/// What a scan gives.
#[derive(Debug, Clone)]
pub struct Scanned {
    /// What counts now; the same [`Arc`] as before where nothing changed.
    pub snapshot: Arc<SpecSnapshot>,
    /// When to look again because something may be the middle of a save; `None` where all is settled.
    pub settles_in: Option<Duration>,
    /// When to look again because a file is being written: until then its last good version counts, and what other files
    /// lose may be what it is to say.
    pub closes_in: Option<Duration>,
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
        let known = state.inventory.into_iter().map(|declared| (declared.name.clone(), Known::from(declared)));
        let known: Inventory = known.collect();
        let roots = roots.into_iter().map(|root| checked(root, &known)).collect::<Result<_, _>>()?;
        Ok(Self {
            lookout: Lookout::new(roots, options, state.files, state.roots, state.mounts),
            options,
            store,
            recording,
            known,
            hold: state.hold,
            reset: state.reset,
            settling: Settling::default(),
            deleted: state.deleted,
            out_of_sight: BTreeSet::new(),
            unmounted: BTreeSet::new(),
            counted: Cached::default(),
            present: Cached::default(),
            unstored: SourceChange::default(),
            asked: BTreeSet::new(),
            named: BTreeMap::new(),
            unasked: BTreeMap::new(),
            snapshot: Arc::default(),
            plan: WatchPlan::default(),
            files: Vec::new(),
            seen_roots: BTreeMap::new(),
        })
    }

    /// Lets files that are being written wait from now on.
    pub(super) fn heed(&mut self, unclosed: Unclosed) {
        self.lookout.heed(unclosed);
    }

    /// Looks at all roots once.
    pub fn scan(&mut self, now: DateTime<Utc>) -> Scanned {
        let findings = self.lookout.look(now);
        let counted = self.counted.merge(findings.counted());
        let present = match findings.bad.is_empty() && findings.outdated.is_empty() {
            true => Arc::clone(&counted),
            false => self.present.merge(findings.present()),
        };
        let mut verdict = Verdict::new(&findings, &counted, &present, &self.known);
        if self.options.runtimes == NamedRuntimes::Remembered {
            verdict.inherit_runtimes(&self.named, &self.known, |file| self.lookout.is_watched(file));
        }
        self.out_of_sight = findings.out_of_sight();
        self.unmounted.clone_from(&findings.unmounted);
        let deleted = self.still_deleted();
        verdict.take_back(&deleted);
        self.set_aside_unwatched(&mut verdict);
        let settling = self.keep_settling(&mut verdict, &findings, now);
        let settles_in = self.lookout.finish(now).into_iter().chain(self.settling.finish(now)).min();
        if settles_in.is_none() {
            verdict.unclear = verdict.unclear.or_else(|| findings.bare.clone());
        }
        let losses = self.losses(&findings, &verdict, settling);
        let hold = match &self.hold {
            // What may be the middle of a save is not back yet.
            Some(hold) if settles_in.is_some() => Some(hold.clone()),
            before => gate::hold(before.as_ref(), &losses, now),
        };
        let mut change = self.lookout.accepted(&findings, settles_in.is_none());
        change.declared = self.update_inventory(&mut verdict, &losses, hold.is_some(), now);
        // A file that comes back broken still has its last good version.
        if settles_in.is_none() && findings.unclosed.is_none() && hold.is_none() {
            change.dropped_files = self.drop_files(&findings, &verdict);
        }
        if settles_in.is_none() && self.deleted != deleted {
            change.deleted = Some(deleted.clone());
            self.deleted = deleted;
        }
        change.hold = (hold != self.hold).then(|| hold.clone());
        self.hold = hold;
        self.record(change);
        let snapshot = SpecSnapshot {
            synced: self.snapshot.synced || settles_in.is_none(),
            problems: verdict.problems(&findings, &self.known),
            hold: self.shown_hold(&losses, settles_in.is_none()),
            removed: self.removed(),
            stale: verdict.stale,
            unclear: verdict.unclear,
            reset: self.reset.as_ref().map(ToString::to_string),
            deployments: verdict.fresh.into_iter().chain(verdict.kept).collect(),
            unwatched: verdict.unwatched,
            polling: self.snapshot.polling.clone(),
        };
        if *self.snapshot != snapshot {
            self.snapshot = Arc::new(snapshot);
        }
        let watched = self.lookout.roots().iter().filter(|root| root.kind == RootKind::Watched);
        let seen = |root: &Root| (root.path.clone(), findings.identities.get(&root.path).cloned());
        self.seen_roots = watched.map(seen).collect();
        self.files = findings.counted_files(|path| self.lookout.is_watched(path));
        self.plan = findings.plan;
        Scanned { snapshot: Arc::clone(&self.snapshot), settles_in, closes_in: findings.unclosed }
    }

    /// Looks at all roots, and waits (at most for a few seconds) where something may be the middle of a save. It holds the
    /// thread meanwhile.
    pub fn settle(&mut self, clock: &dyn Clock) -> Arc<SpecSnapshot> {
        let mut scanned = self.scan(clock.now());
        // A file may be missing first and then be empty.
        for _ in 0..2 {
            let Some(wait) = scanned.settles_in else { break };
            std::thread::sleep(wait);
            scanned = self.scan(clock.now());
        }
        scanned.snapshot
    }

    /// Confirms the loss that is held; where none is, that what other directories declared may go, and what nothing
    /// declares and a lost database may have remembered. Each of the two is a decision of its own. Looks again, and gives the
    /// names that are known.
    ///
    /// # Errors
    /// When it can't be recorded; nothing is confirmed then.
    pub fn approve(&mut self, now: DateTime<Utc>) -> Result<(Vec<String>, Scanned), StoreError> {
        let (held, reset_confirmed) = match &self.snapshot.hold {
            Some(hold) => (hold.missing.iter().cloned().collect(), false),
            None => (self.held(), self.reset.is_some()),
        };
        self.confirm(&held, SourceChange { hold: Some(None), reset_confirmed, ..SourceChange::default() }, now)?;
        self.hold = None;
        self.reset = self.reset.take().filter(|_| !reset_confirmed);
        Ok((held.into_iter().collect(), self.scan(now)))
    }

    /// Takes these deployments back because they are deleted by name, and looks again. While a controller watches, that
    /// confirms the loss of those that are kept although no file that can be seen declares them, and what such a file
    /// declares stays; without one, they all stay deleted until they are asked for or a controller sees their file.
    ///
    /// # Errors
    /// When it can't be recorded; nothing is taken back then.
    pub fn delete(&mut self, names: &BTreeSet<String>, now: DateTime<Utc>) -> Result<Scanned, StoreError> {
        let (gone, deleted) = match self.options.deleted {
            Deleted::Returns => {
                let hidden: BTreeSet<String> = self.out_of_sight.intersection(names).cloned().collect();
                let gone = self.held().intersection(names).chain(&hidden).cloned().collect();
                (gone, (!hidden.is_empty()).then(|| self.deleted.union(&hidden).cloned().collect()))
            }
            Deleted::Stays => (names.clone(), Some(self.deleted.union(names).cloned().collect())),
        };
        // Of a file system that is not mounted, nothing more is kept than what is still wanted.
        let unwanted = self.unmounted.iter().filter(|path| self.lookout.declares_only(path, &gone));
        let dropped_files: Vec<PathBuf> = unwanted.cloned().collect();
        let dropped = dropped_files.clone();
        self.confirm(&gone, SourceChange { deleted, dropped_files, ..SourceChange::default() }, now)?;
        self.lookout.drop_files(&dropped);
        Ok(self.scan(now))
    }

    /// Lets what files declare of these deployments, or that they don't any more, count and be recorded, whoever deleted
    /// them. A runtime that is named with it counts for their services in watched files that name none, in the place of one
    /// that was named before. The next scan follows it.
    ///
    /// # Errors
    /// When it can't be recorded; they stay deleted then.
    pub fn ask_for(&mut self, names: &BTreeSet<String>, runtime: Option<RuntimeKind>) -> Result<(), StoreError> {
        self.asked.extend(names.iter().cloned());
        self.named.extend(names.iter().filter_map(|name| Some((name.clone(), runtime?))));
        let declared = names.iter().filter_map(|name| self.unasked.remove(name)).collect();
        self.unstored.append(SourceChange { declared, ..SourceChange::default() });
        if self.deleted.is_disjoint(names) {
            return Ok(());
        }
        let left: BTreeSet<String> = self.deleted.difference(names).cloned().collect();
        if self.recording == Recording::On {
            self.store.record_scan(&SourceChange { deleted: Some(left.clone()), ..SourceChange::default() })?;
        }
        self.deleted = left;
        Ok(())
    }

    /// Of what was deleted by name, what stays so: where a controller watches, a file that it sees brings back what it
    /// declares. The last good version of one that can't be seen brings nothing back.
    fn still_deleted(&self) -> BTreeSet<String> {
        match self.options.deleted {
            Deleted::Stays => self.deleted.clone(),
            Deleted::Returns => self.deleted.intersection(&self.out_of_sight).cloned().collect(),
        }
    }

    /// Deployments that are kept although no file that is looked at declares them.
    fn held(&self) -> BTreeSet<String> {
        let missing = self.snapshot.hold.iter().flat_map(|hold| &hold.missing);
        missing.chain(self.snapshot.unwatched.keys()).cloned().collect()
    }

    /// Records that these deployments are not declared any more, with what else is to change, all or nothing.
    fn confirm(
        &mut self,
        names: &BTreeSet<String>,
        change: SourceChange,
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let confirmed = names.iter().filter_map(|name| self.known.get(name));
        let declared = confirmed.map(|known| Declared { removed_at: Some(now), ..known.declared.clone() }).collect();
        let change = SourceChange { declared, ..change };
        if self.recording == Recording::On {
            self.store.record_scan(&change)?;
        }
        self.unstored.declared.retain(|declared| !names.contains(&declared.name));
        self.unasked.retain(|name, _| !names.contains(name));
        for declared in change.declared {
            if let Some(known) = self.known.get_mut(&declared.name) {
                known.declared = declared;
            }
        }
        self.deleted = change.deleted.unwrap_or_else(|| std::mem::take(&mut self.deleted));
        Ok(())
    }

    /// Takes a deployment that is not declared any more out of the inventory: nothing of it exists. One that is
    /// declared (again) stays, and so does one whose loss is not recorded.
    ///
    /// # Errors
    /// When it can't be recorded; the deployment then stays in the inventory.
    pub fn forget(&mut self, deployment: &str) -> Result<(), StoreError> {
        if self.known.get(deployment).is_none_or(Known::is_live) || self.unasked.contains_key(deployment) {
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

    /// Whether some folder of specs is on a file system of its own, whose unmounting nobody tells of.
    pub(super) fn has_mounts(&self) -> bool {
        self.lookout.has_mounts()
    }

    /// Whether every watched root was there when it was last looked at.
    pub(super) fn has_all_roots(&self) -> bool {
        self.seen_roots.values().all(Option::is_some)
    }

    /// What counted of each watched file when they were last looked at, by path.
    pub fn files(&self) -> &[CountedFile] {
        &self.files
    }

    /// Whether a watched root is another directory than when it was last looked at, or came, or went: nobody tells when a file
    /// system is mounted or unmounted there.
    pub(super) fn has_other_roots(&self) -> bool {
        self.seen_roots.iter().any(|(path, seen)| std::fs::metadata(path).ok().as_ref().map(identity) != *seen)
    }

    pub(super) fn set_polling(&mut self, why: Option<String>) {
        if self.snapshot.polling != why {
            self.snapshot = Arc::new(SpecSnapshot { polling: why, ..SpecSnapshot::clone(&self.snapshot) });
        }
    }

    /// Keeps what a directory declared that is not watched any more: that somebody watches another one now says nothing
    /// about it. What the watched files declare by the same name takes its place, unless that is only what is left of
    /// its parts.
    fn set_aside_unwatched(&self, verdict: &mut Verdict) {
        for (name, known) in self.known.iter().filter(|(_, known)| known.is_live()) {
            let Some(file) = self.unwatched_part(known) else { continue };
            let taken_over = verdict.fresh.get(name).is_some_and(|fresh| {
                let (now, before) = (files_of(fresh), known.files());
                now == before || !now.is_subset(&before)
            });
            if taken_over || verdict.kept.contains_key(name) || verdict.stale.contains_key(name) {
                continue;
            }
            let Declared { root, source, .. } = &known.declared;
            let directory = if self.is_root(root) { file.parent().unwrap_or(file) } else { root };
            let aside = Unwatched { source: source.clone(), directory: directory.to_path_buf() };
            verdict.fresh.remove(name);
            verdict.keep(name, known, || format!("{source} declared it, and is not watched any more"));
            verdict.unwatched.insert(name.clone(), aside);
        }
    }

    /// Keeps a deployment as it was that is not declared any more, or has lost a service, for as long as that may be the
    /// middle of a save: what is away has to stay away for a while, and a file that is being written may be where it went. So
    /// may one that came when it vanished and that can't be read; that lasts until it can be read, or goes.
    /// What commands take back is meant. Gives those that nothing declares.
    fn keep_settling(&mut self, verdict: &mut Verdict, findings: &Findings, now: DateTime<Utc>) -> BTreeSet<String> {
        let held = self.hold.iter().flat_map(|hold| &hold.missing).collect::<BTreeSet<_>>();
        let mut vanished = BTreeSet::new();
        for (name, known) in self.known.iter().filter(|(_, known)| known.is_live()) {
            let is_kept = verdict.kept.contains_key(name) || verdict.stale.contains_key(name);
            let fresh = verdict.fresh.get(name);
            if is_kept || held.contains(name) || !known.has_lost(fresh, |file| self.lookout.is_watched(file)) {
                continue;
            }
            let is_settled = self.settling.is_settled(name, self.options.settle, now);
            let riddle = self.settling.since(name).and_then(|since| findings.riddle_of(since, self.options.settle));
            if let Some(file) = riddle.filter(|_| is_settled) {
                verdict.keep_for(name, known, file);
                self.out_of_sight.insert(name.clone());
                continue;
            }
            if is_settled && findings.unclosed.is_none() {
                continue;
            }
            if verdict.fresh.remove(name).is_none() {
                vanished.insert(name.clone());
            }
            verdict.keep(name, known, || match is_settled {
                true => "it vanished from the source while a file there is being written".to_owned(),
                false => "it has only just vanished from the source".to_owned(),
            });
        }
        vanished
    }

    /// A file that has a part in the deployment and is not looked at any more.
    fn unwatched_part<'a>(&self, known: &'a Known) -> Option<&'a Path> {
        let source = &known.declared.source.file;
        if !self.is_root(&known.declared.root) && !self.lookout.is_watched(source) {
            return Some(source);
        }
        known.files().into_iter().find(|file| self.lookout.was_watched(file))
    }

    fn is_root(&self, path: &Path) -> bool {
        self.lookout.roots().iter().any(|root| root.path == path)
    }

    fn losses(&self, findings: &Findings, verdict: &Verdict, settling: BTreeSet<String>) -> Losses {
        let applied =
            |path: &Path| self.lookout.roots().iter().any(|root| root.kind == RootKind::Applied && root.path == path);
        let held = |known: &Known| !self.options.allow_empty && !applied(&known.declared.root);
        let before = || {
            let live = self.known.iter().filter(|(_, known)| known.is_live() && held(known));
            live.filter(|(name, _)| !verdict.unwatched.contains_key(*name))
        };
        let is_lost = |name: &String| !verdict.is_declared(name) || settling.contains(name);
        let lost = before().filter(|(name, _)| is_lost(name)).map(|(name, known)| {
            let loss = match findings.roots_gone.get(&known.declared.root) {
                Some(what) => Loss::RootGone(what.clone()),
                None => Loss::Undeclared,
            };
            (name.clone(), loss)
        });
        Losses { known: before().count(), lost: lost.collect(), settling }
    }

    /// Lets go of files that are gone, unless something is kept of them.
    fn drop_files(&mut self, findings: &Findings, verdict: &Verdict) -> Vec<PathBuf> {
        let kept = verdict.unwatched.keys().filter_map(|name| self.known.get(name));
        let kept: BTreeSet<&Path> = kept.flat_map(Known::files).collect();
        let gone: Vec<PathBuf> = findings.gone.iter().filter(|path| !kept.contains(path.as_path())).cloned().collect();
        self.lookout.drop_files(&gone);
        gone
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
            let declared = self.declare(deployment, now);
            let same =
                |known: &Known| known.deployment.as_ref() == Some(deployment) && known.declared.root == declared.root;
            if self.known.get(name).is_some_and(|known| known.is_live() && same(known)) {
                continue;
            }
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
        let roots = self.lookout.roots();
        let watched = roots.iter().find(|root| deployment.file.starts_with(&root.path));
        let root = watched.or_else(|| roots.iter().find(|root| root.kind == RootKind::Applied));
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
    fn record(&mut self, mut change: SourceChange) {
        if self.recording == Recording::Off {
            return;
        }
        if self.options.records == Records::Asked {
            self.set_aside_unasked(&mut change);
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

    /// Takes out what watched files declare and nobody asked for.
    fn set_aside_unasked(&mut self, change: &mut SourceChange) {
        let is_watched =
            |path: &Path| self.lookout.roots().iter().any(|root| root.kind == RootKind::Watched && root.path == path);
        let unasked = change.declared.extract_if(.., |one| is_watched(&one.root) && !self.asked.contains(&one.name));
        self.unasked.extend(unasked.map(|declared| (declared.name.clone(), declared)));
    }

    fn removed(&self) -> BTreeMap<String, Removed> {
        let removed = self.known.iter().filter(|(_, known)| !known.is_live());
        removed.map(|(name, known)| (name.clone(), known.removed())).collect()
    }

    fn shown_hold(&self, losses: &Losses, settled: bool) -> Option<Hold> {
        let hold = self.hold.as_ref()?;
        let before = hold.missing.iter().filter(|_| !settled);
        let missing: BTreeSet<String> = before.chain(losses.settled()).cloned().collect();
        Some(Hold {
            reason: gate::describe(hold, &missing, losses),
            missing: missing.into_iter().collect(),
            since: hold.since,
        })
    }
}
