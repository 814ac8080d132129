//! What a look at the roots finds, file by file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::bounds::EMPTY_SETTLE;
use super::list::{Entry, Flaw, Listing, RootState, list};
use super::read::{Parsed, ReadError};
use super::scan::Scanner;
use super::snapshot::{Root, RootKind};
use super::trace::WatchPlan;
use crate::spec::{ParsedFile, Position, Problem};
use crate::store::{SourceFile, read_applied};

/// The last good version of a file.
#[derive(Debug)]
pub(super) struct Good {
    hash: [u8; 32],
    file: Arc<ParsedFile>,
}

impl Good {
    pub(super) fn of(parsed: Parsed) -> Self {
        Self { hash: parsed.hash, file: parsed.file }
    }
}

/// What a look at the roots found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// The version of each file that counts: as it is, or its last good one.
    pub inputs: BTreeMap<PathBuf, Arc<ParsedFile>>,
    /// Files and directories that are not as they should be.
    pub bad: Vec<Bad>,
    /// New good versions.
    pub accepted: Vec<SourceFile>,
    /// Files with a good version that are not there any more.
    pub gone: Vec<PathBuf>,
    /// Roots that are gone, and what happened to them.
    pub roots_gone: BTreeMap<PathBuf, String>,
    /// Why there may be declarations that nobody can read.
    pub unclear: Option<String>,
    /// Which directory each root is.
    pub identities: BTreeMap<PathBuf, String>,
    /// What to watch.
    pub plan: WatchPlan,
}

impl Findings {
    fn unsure(&mut self, why: impl FnOnce() -> String) {
        self.unclear.get_or_insert_with(why);
    }
}

/// Something that is not as it should be.
#[derive(Debug)]
pub(super) struct Bad {
    /// A file, or a directory with everything below it.
    pub path: PathBuf,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// Deployments that the present text names.
    pub names: BTreeSet<String>,
}

impl Bad {
    fn new(path: &Path, flaw: &Flaw) -> Self {
        let help = flaw.help.map(str::to_owned);
        let problem = Problem { position: Position::START, path: String::new(), message: flaw.message.clone(), help };
        Self { path: path.to_path_buf(), problems: vec![problem], names: BTreeSet::new() }
    }
}

impl Scanner {
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
            self.look_for_missing(&root, &listing, now, &mut findings);
            if !self.options.allow_empty && !findings.inputs.keys().any(|path| path.starts_with(&root.path)) {
                findings.unsure(|| format!("{} holds no specs", root.path.display()));
            }
            findings.plan.add(&root.path, &listing);
            listed.extend(listing.files.into_keys());
        }
        self.reader.retain(|path| listed.contains(path));
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
                findings.bad.push(Bad::new(&root.path, &Flaw::unreadable(&error)));
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
            findings.inputs.insert(path.clone(), Arc::clone(&file));
            self.applied.insert(path, (copy, file));
        }
    }

    fn is_watched(&self, path: &Path) -> bool {
        self.roots.iter().any(|root| root.kind == RootKind::Watched && path.starts_with(&root.path))
    }

    fn look_at_root(&mut self, root: &Root, listing: &Listing, now: DateTime<Utc>, findings: &mut Findings) {
        for gap in &listing.gaps {
            if !gap.only_if_known || self.good.keys().any(|path| path.starts_with(&gap.under)) {
                findings.bad.push(Bad::new(&gap.under, &gap.flaw));
                findings.unsure(|| format!("{} {}", gap.under.display(), gap.flaw.message));
            }
        }
        match &listing.state {
            RootState::Unreadable => {}
            RootState::Missing => {
                if self.settling.is_settled(&root.path, self.options.quiet, now) {
                    let flaw = Flaw::new("does not exist", "restore it, or mount its file system");
                    findings.bad.push(Bad::new(&root.path, &flaw));
                    findings.roots_gone.insert(root.path.clone(), format!("{} vanished", root.path.display()));
                }
            }
            RootState::Present(identity) => {
                let before = self.identities.get(&root.path).filter(|before| !before.is_empty());
                if listing.files.is_empty() && before.is_some_and(|before| before != identity) {
                    let what = format!("{} was replaced by an empty directory", root.path.display());
                    findings.roots_gone.insert(root.path.clone(), what);
                }
                findings.identities.insert(root.path.clone(), identity.clone());
            }
        }
    }

    fn look_at_file(&mut self, path: &Path, entry: &Entry, now: DateTime<Utc>, findings: &mut Findings) {
        let stamp = match entry {
            Entry::File(stamp) => *stamp,
            Entry::Bad(flaw) => return self.keep_good(path, Some(Bad::new(path, flaw)), findings),
        };
        match self.reader.read(path, stamp) {
            Ok((parsed, _)) if parsed.empty && self.may_be_truncated(path, now) => self.keep_good(path, None, findings),
            Ok((parsed, bytes)) if parsed.file.problems.is_empty() => self.accept(path, parsed, bytes, now, findings),
            Ok((parsed, _)) => {
                let names = parsed.names().map(str::to_owned).collect();
                let problems = parsed.file.problems.clone();
                self.keep_good(path, Some(Bad { path: path.to_path_buf(), problems, names }), findings);
            }
            Err(ReadError::Bad(flaw)) => self.keep_good(path, Some(Bad::new(path, &flaw)), findings),
            // The search for missing files finds it.
            Err(ReadError::Gone) => {}
        }
    }

    /// Whether an empty file declared something so recently that it is probably being written.
    fn may_be_truncated(&mut self, path: &Path, now: DateTime<Utc>) -> bool {
        let declared = self.good.get(path).is_some_and(|good| !good.file.documents.is_empty());
        declared && !self.settling.is_settled(path, EMPTY_SETTLE, now)
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
        if self.good.get(path).is_some_and(|good| good.hash == parsed.hash) {
            // One value for one content, so that an unchanged file is recognised by its address.
            if let Some(good) = self.good.get_mut(path) {
                good.file = parsed.file;
            }
            return;
        }
        // What was read before and counts only now is read again, unless it changed yet again.
        let bytes = bytes.or_else(|| std::fs::read(path).ok().filter(|bytes| Parsed::hash(bytes) == parsed.hash));
        if let Some(content) = bytes {
            let file = SourceFile { path: path.to_path_buf(), content, hash: parsed.hash, accepted_at: now };
            findings.accepted.push(file);
        }
        self.good.insert(path.to_path_buf(), Good::of(parsed));
    }

    /// Lets the last good version of a file count.
    fn keep_good(&self, path: &Path, bad: Option<Bad>, findings: &mut Findings) {
        findings.bad.extend(bad);
        match self.good.get(path) {
            Some(good) => drop(findings.inputs.insert(path.to_path_buf(), Arc::clone(&good.file))),
            None => findings.unsure(|| format!("{} has problems and was never good", path.display())),
        }
    }

    /// Decides about files that have a good version and were not found.
    fn look_for_missing(&mut self, root: &Root, listing: &Listing, now: DateTime<Utc>, findings: &mut Findings) {
        let missing: Vec<PathBuf> = self
            .good
            .range(root.path.clone()..)
            .map(|(path, _)| path)
            .take_while(|path| path.starts_with(&root.path))
            .filter(|path| !findings.inputs.contains_key(*path))
            .cloned()
            .collect();
        for path in missing {
            let hidden = listing.gap_over(&path).is_some();
            let settled = self.settling.is_settled(&path, self.options.quiet, now);
            if hidden || !settled {
                self.keep_good(&path, None, findings);
            } else {
                findings.gone.push(path);
            }
        }
    }
}
