//! Looking at the roots: what is there now, and which version of each file counts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::findings::{Bad, Findings};
use super::gate::VANISHED;
use super::list::{Entry, Flaw, Listing, RootState, list};
use super::mounts::{Away, Mounts, Place, recorded};
use super::read::{Parsed, ReadError, Reader, read_now};
use super::settle::Settling;
use super::snapshot::{Root, RootKind, SourceOptions};
use super::unclosed::Unclosed;
use crate::spec::{Document, DocumentKind, ParsedFile};
use crate::store::{AppliedFile, MountedFolder, RootIdentity, SourceChange, SourceFile, read_applied};

/// Sees the files below the roots, and knows the last good version of each.
#[derive(Debug)]
pub(super) struct Lookout {
    roots: Vec<Root>,
    options: SourceOptions,
    reader: Reader,
    /// Roots that are missing.
    settling: Settling<PathBuf>,
    /// Files that are being written.
    unclosed: Unclosed,
    /// Last good version of every file.
    good: BTreeMap<PathBuf, Good>,
    /// Applied files by the path that they came from, with what they say.
    applied: BTreeMap<PathBuf, (AppliedFile, Arc<ParsedFile>)>,
    /// Which directory each watched root was.
    identities: BTreeMap<PathBuf, String>,
    /// Watched roots, folders of good files that are, or were, on a file system other than that of their root, and files that
    /// can't be seen because theirs is not there.
    mounts: Mounts,
    /// The riddles of the last look ([`Findings::riddles`]).
    riddles: BTreeMap<PathBuf, DateTime<Utc>>,
}

/// The last good version of a file.
#[derive(Debug)]
struct Good {
    hash: [u8; 32],
    file: Arc<ParsedFile>,
}

impl Good {
    fn of(parsed: Parsed) -> Self {
        Self { hash: parsed.hash, file: parsed.file }
    }
}

impl Lookout {
    /// Starts from the good versions and identities that the store remembers.
    pub(super) fn new(
        roots: Vec<Root>,
        options: SourceOptions,
        files: Vec<SourceFile>,
        identities: Vec<RootIdentity>,
        mounts: Vec<MountedFolder>,
    ) -> Self {
        let good = files.into_iter().map(|file| (file.path, Good::of(Parsed::of(&file.content))));
        Self {
            roots,
            options,
            reader: Reader::default(),
            settling: Settling::default(),
            unclosed: Unclosed::default(),
            good: good.collect(),
            applied: BTreeMap::new(),
            identities: identities.into_iter().map(|root| (root.path, root.identity)).collect(),
            mounts: recorded(mounts),
            riddles: BTreeMap::new(),
        }
    }

    /// Lets files that are being written wait from now on.
    pub(super) fn heed(&mut self, unclosed: Unclosed) {
        self.unclosed = unclosed;
    }

    pub(super) fn roots(&self) -> &[Root] {
        &self.roots
    }

    /// Whether the path lies in a directory that is watched.
    pub(super) fn is_watched(&self, path: &Path) -> bool {
        self.roots.iter().any(|root| root.kind == RootKind::Watched && path.starts_with(&root.path))
    }

    /// Whether the file was seen in a directory that was watched before and is not any more.
    pub(super) fn was_watched(&self, path: &Path) -> bool {
        self.good.contains_key(path) && !self.is_watched(path)
    }

    /// Ends a look; tells when to look again because a root that is missing may be the middle of a save.
    pub(super) fn finish(&mut self, now: DateTime<Utc>) -> Option<Duration> {
        self.settling.finish(now)
    }

    /// What to remember of a look: new good versions, and the identities of the roots.
    pub(super) fn accepted(&mut self, findings: &Findings, settled: bool) -> SourceChange {
        let mut change = SourceChange { files: findings.accepted.clone(), ..SourceChange::default() };
        let watched = self.roots.iter().filter(|root| root.kind == RootKind::Watched);
        let identities: BTreeMap<PathBuf, String> = watched
            .map(|root| {
                let identity = findings.identities.get(&root.path).or_else(|| self.identities.get(&root.path));
                (root.path.clone(), identity.cloned().unwrap_or_default())
            })
            .collect();
        // While something may be the middle of a save, the decision about it still needs the old ones.
        if settled && findings.mounts != self.mounts {
            let places =
                |mounts: &Mounts| mounts.iter().map(|(folder, place)| place.record(folder)).collect::<Vec<_>>();
            let now = places(&findings.mounts);
            change.mounts = (now != places(&self.mounts)).then_some(now);
            self.mounts.clone_from(&findings.mounts);
        }
        if settled && !identities.is_empty() && identities != self.identities {
            let rows = identities.iter().map(|(path, id)| RootIdentity { path: path.clone(), identity: id.clone() });
            change.roots = Some(rows.collect());
            self.identities = identities;
        }
        change
    }

    /// Whether some folder of specs is on a file system of its own, whose unmounting nobody tells of.
    pub(super) fn has_mounts(&self) -> bool {
        self.mounts.keys().any(|path| self.is_watched(path) && !self.roots.iter().any(|root| root.path == *path))
    }

    /// Whether the last good version of a file declares nothing but parts of these deployments.
    pub(super) fn declares_only(&self, path: &Path, names: &BTreeSet<String>) -> bool {
        self.good.get(path).is_some_and(|good| good.file.deployments().all(|name| names.contains(name)))
    }

    /// Lets go of the good versions of files.
    pub(super) fn drop_files(&mut self, files: &[PathBuf]) {
        for file in files {
            self.good.remove(file);
        }
    }

    /// Looks at every root, and reads what changed.
    pub(super) fn look(&mut self, now: DateTime<Utc>) -> Findings {
        let mut findings = Findings::default();
        let mut listed = BTreeSet::new();
        for root in self.roots.clone() {
            let listing = list(&root.path);
            if root.kind == RootKind::Applied {
                self.look_at_applied(&root, &mut findings);
                findings.plan.add(&root.path, &listing);
                continue;
            }
            self.look_at_root(&root, &listing, now, &mut findings);
            for (path, entry) in &listing.files {
                self.look_at_file(path, entry, now, &mut findings);
            }
            look_for_mounts(&root.path, &listing, &mut findings);
            self.look_for_missing(&root, &listing, &mut findings);
            if !self.options.allow_empty && !findings.inputs.keys().any(|path| path.starts_with(&root.path)) {
                findings.bare.get_or_insert_with(|| format!("{} holds no specs", root.path.display()));
            }
            findings.plan.add(&root.path, &listing);
            listed.extend(listing.files.into_keys());
        }
        self.carry_mounts(&listed, &mut findings);
        self.reader.retain(|path| listed.contains(path));
        self.riddles.clone_from(&findings.riddles);
        let elsewhere = self.good.keys().filter(|path| !self.roots.iter().any(|root| path.starts_with(&root.path)));
        findings.gone.extend(elsewhere.cloned());
        findings
    }

    /// Takes the copies of applied files over under the paths that they came from. Commands write them in one step and
    /// only when they are good. What came from a watched root is seen there.
    fn look_at_applied(&mut self, root: &Root, findings: &mut Findings) {
        let copies = match read_applied(&root.path) {
            Ok(copies) => copies,
            Err(error) => {
                findings.bad.push(Bad::unread(&root.path, &Flaw::unreadable(&error)));
                findings.unsure(|| format!("{} can't be read", root.path.display()));
                findings.inputs.extend(self.applied.iter().map(|(path, (_, file))| (path.clone(), Arc::clone(file))));
                return;
            }
        };
        let mut before = std::mem::take(&mut self.applied);
        for copy in copies {
            if self.is_watched(&copy.origin) {
                continue;
            }
            let path = copy.shown_path(&root.path);
            let file = match before.remove(&path) {
                Some((known, file)) if known == copy => file,
                _ => Arc::new(copy.parse()),
            };
            if !file.problems.is_empty() {
                findings.bad.push(Bad::text(&path, &file));
                findings.outdated.insert(path.clone());
            }
            findings.inputs.insert(path.clone(), Arc::clone(&file));
            self.applied.insert(path, (copy, file));
        }
    }

    fn look_at_root(&mut self, root: &Root, listing: &Listing, now: DateTime<Utc>, findings: &mut Findings) {
        for gap in &listing.gaps {
            if !gap.only_if_known || self.good.keys().any(|path| path.starts_with(&gap.under)) {
                findings.bad.push(Bad::unread(&gap.under, &gap.flaw));
                findings.unsure(|| format!("{} {}", gap.under.display(), gap.flaw.message));
            }
        }
        match &listing.state {
            RootState::Unreadable => {}
            RootState::Missing => {
                findings.roots_gone.insert(root.path.clone(), format!("{} {VANISHED}", root.path.display()));
                let settled = self.settling.is_settled(&root.path, self.options.settle, now);
                // Where everything may go, that it is gone is no problem.
                if settled && !self.options.allow_empty {
                    let flaw = Flaw::new("does not exist", "restore it, or mount its file system");
                    findings.bad.push(Bad::unread(&root.path, &flaw));
                }
            }
            RootState::Present(identity) => {
                let before = self.identities.get(&root.path).filter(|before| !before.is_empty());
                let place = self.mounts.get(&root.path);
                let what = match before {
                    Some(before) if listing.files.is_empty() && before != identity => {
                        Some("was replaced by an empty directory")
                    }
                    // Without what it was before, it may be a mount point as well.
                    None if listing.files.is_empty() => Some("was found empty"),
                    _ if place.is_some_and(|place| place.is_unmounted(&root.path)) => {
                        Some("was unmounted, or something else is mounted there")
                    }
                    _ => None,
                };
                if let Some(what) = what {
                    findings.roots_gone.insert(root.path.clone(), format!("{} {what}", root.path.display()));
                }
                findings.identities.insert(root.path.clone(), identity.clone());
                findings.mounts.extend(Place::here(&root.path).map(|place| (root.path.clone(), place)));
            }
        }
    }

    fn look_at_file(&mut self, path: &Path, entry: &Entry, now: DateTime<Utc>, findings: &mut Findings) {
        let stamp = match entry {
            Entry::File(stamp) => *stamp,
            Entry::Bad(flaw) => return self.keep_good(path, Bad::unread(path, flaw), now, findings),
        };
        let read = self.reader.read(path, stamp);
        // Asked after it was read: whoever began to write later changed nothing of that.
        if let Some(left) = self.unclosed.left(path, now) {
            return self.wait_for_writer(path, left, findings);
        }
        match read {
            Ok((parsed, bytes)) if parsed.file.problems.is_empty() => match self.looks_cut_off(path, &parsed) {
                Some(flaw) => self.keep_good(path, Bad::unread(path, &flaw), now, findings),
                None => self.accept(path, parsed, bytes, now, findings),
            },
            Ok((parsed, _)) => self.keep_good(path, Bad::text(path, &parsed.file), now, findings),
            Err(ReadError::Bad(flaw)) => self.keep_good(path, Bad::unread(path, &flaw), now, findings),
            // The search for missing files finds it.
            Err(ReadError::Gone) => {}
        }
    }

    /// Lets the last good version of a file count while it is being written; a new one waits.
    fn wait_for_writer(&self, path: &Path, left: Duration, findings: &mut Findings) {
        findings.unclosed = findings.unclosed.into_iter().chain([left]).min();
        if !self.keep_for_now(path, findings) {
            findings.unsure(|| format!("{} is being written", path.display()));
        }
    }

    fn accept(
        &mut self,
        path: &Path,
        parsed: Parsed,
        bytes: Option<Vec<u8>>,
        now: DateTime<Utc>,
        findings: &mut Findings,
    ) {
        findings.inputs.insert(path.to_path_buf(), Arc::clone(&parsed.file));
        if let Some(good) = self.good.get_mut(path).filter(|good| good.hash == parsed.hash) {
            // One value for one content, so that an unchanged file is recognised by its address.
            good.file = parsed.file;
            return;
        }
        // What was read before and counts only now is read again, unless it changed yet again.
        let bytes = bytes.or_else(|| read_now(path).filter(|bytes| Parsed::hash(bytes) == parsed.hash));
        if let Some(content) = bytes {
            let file = SourceFile { path: path.to_path_buf(), content, hash: parsed.hash, accepted_at: now };
            findings.accepted.push(file);
        }
        self.good.insert(path.to_path_buf(), Good::of(parsed));
    }

    /// Why a text that has no problems may be less than what is meant, where it ends what the last good version declared: a
    /// full disk, a power failure and a copy that was cut off leave such texts behind; who means it removes the file, or
    /// writes that there are none.
    fn looks_cut_off(&self, path: &Path, parsed: &Parsed) -> Option<Flaw> {
        let good = &self.good.get(path)?.file;
        if parsed.is_bare() && good.deployments().next().is_some() {
            let what = if parsed.is_of_nothing() { "is empty" } else { "declares nothing any more" };
            return Some(Flaw::new(what, "remove the file to end what it declared, or write its text again"));
        }
        let had_services = |document: &Document| match &document.kind {
            DocumentKind::Deployment(whole) => {
                parsed.file.lost_services(&whole.name, whole.services.keys().map(String::as_str))
            }
            DocumentKind::Service { .. } => false,
        };
        good.documents.iter().any(had_services).then(|| {
            Flaw::new("has no `services` any more", "write them again, or `services: {}` to end what it declared")
        })
    }

    /// Lets the last good version of a file count in the place of what is wrong with it.
    fn keep_good(&self, path: &Path, bad: Bad, now: DateTime<Utc>, findings: &mut Findings) {
        let names_all = !bad.present.may_declare_more();
        findings.bad.push(bad);
        findings.outdated.insert(path.to_path_buf());
        if !self.keep_for_now(path, findings) {
            findings.unsure(|| format!("{} has problems and was never good", path.display()));
            if !names_all {
                // A clock that went back starts the time again.
                let came = self.riddles.get(path).copied().filter(|came| *came <= now).unwrap_or(now);
                findings.riddles.insert(path.to_path_buf(), came);
            }
        }
    }

    /// Lets the last good version of a file count; false where there is none.
    fn keep_for_now(&self, path: &Path, findings: &mut Findings) -> bool {
        let good = self.good.get(path).map(|good| Arc::clone(&good.file));
        good.is_some_and(|good| {
            findings.inputs.insert(path.to_path_buf(), good);
            true
        })
    }

    /// Finds out about files that have a good version and were not found: whether they are gone, or can't be seen.
    fn look_for_missing(&self, root: &Root, listing: &Listing, findings: &mut Findings) {
        let missing: Vec<PathBuf> = self
            .good
            .range(root.path.clone()..)
            .map(|(path, _)| path)
            .take_while(|path| path.starts_with(&root.path))
            .filter(|path| !findings.inputs.contains_key(*path))
            .cloned()
            .collect();
        let mut unmounted: BTreeMap<Away, BTreeSet<PathBuf>> = BTreeMap::new();
        for path in missing {
            let place = self.unmounted(&path, root);
            if place.is_some() || listing.gap_over(&path).is_some() {
                if let Some(place) = place {
                    // By file: another file system there may hold files of its own, which come and go.
                    findings.mounts.insert(path.clone(), place.clone());
                    let away = path
                        .parent()
                        .and_then(|folder| place.cover(folder))
                        .map_or_else(|| Away::Unmounted(place.mount.clone()), Away::Covered);
                    unmounted.entry(away).or_default().insert(path.clone());
                }
                self.keep_for_now(&path, findings);
                findings.outdated.insert(path);
            } else {
                findings.gone.push(path);
            }
        }
        for (away, files) in unmounted {
            findings.unmounted.extend(files.iter().cloned());
            findings.bad.push(Bad::unread(away.place(), &away.flaw()).of(files));
        }
    }

    /// Keeps in mind where folders lie that can't be seen now, as long as a good version of a file in them counts, and where
    /// files lay.
    fn carry_mounts(&self, listed: &BTreeSet<PathBuf>, findings: &mut Findings) {
        let is_listed = |folder: &Path| below(listed.range(folder.to_path_buf()..), folder);
        let has_good = |folder: &Path| below(self.good.range(folder.to_path_buf()..).map(|(path, _)| path), folder);
        let is_root = |path: &PathBuf| self.roots.iter().any(|root| root.path == *path);
        let is_out_of_sight = |path: &PathBuf| match self.good.contains_key(path) {
            true => !listed.contains(path) && !findings.gone.contains(path),
            false => !is_listed(path) && has_good(path),
        };
        let out_of_sight: Vec<_> =
            self.mounts.iter().filter(|(path, _)| is_root(path) || is_out_of_sight(path)).collect();
        for (path, place) in out_of_sight {
            findings.mounts.entry(path.clone()).or_insert_with(|| place.clone());
        }
    }

    /// Where a file lay that is not there, where that is because its file system is not: that says nothing of the file.
    fn unmounted(&self, path: &Path, root: &Root) -> Option<Place> {
        let folder = path.parent()?;
        // What becomes of the root is the whole root's matter.
        let of_folder = || self.mounts.get(folder).filter(|_| folder != root.path);
        let known = self.mounts.get(path).or_else(of_folder).cloned();
        known.or_else(|| Place::beside_root(folder, &root.path)).filter(|place| place.is_unmounted(folder))
    }
}

/// Whether one of these paths, which come in order, is that of a file in this folder.
fn below<'a>(paths: impl Iterator<Item = &'a PathBuf>, folder: &Path) -> bool {
    paths.take_while(|path| path.starts_with(folder)).any(|path| path.parent() == Some(folder))
}

/// Finds out which folders of files are on another file system than their root.
fn look_for_mounts(root: &Path, listing: &Listing, findings: &mut Findings) {
    let folders: BTreeSet<&Path> = listing.files.keys().filter_map(|path| path.parent()).collect();
    let places = folders.into_iter().filter_map(|folder| Some((folder.to_path_buf(), Place::of(folder, root)?)));
    findings.mounts.extend(places);
}
