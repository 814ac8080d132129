//! What a look at the roots finds, file by file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::list::Flaw;
use super::mounts::Mounts;
use super::snapshot::CountedFile;
use super::trace::WatchPlan;
use crate::spec::{ParsedFile, Position, Problem};
use crate::store::SourceFile;

/// What a look at the roots found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// The version of each file that counts: as it is, or its last good one.
    pub inputs: BTreeMap<PathBuf, Arc<ParsedFile>>,
    /// Those of them that are a last good version in the place of a text that has problems or can't be seen.
    pub outdated: BTreeSet<PathBuf>,
    /// Files and directories that are not as they should be.
    pub bad: Vec<Bad>,
    /// New good versions.
    pub accepted: Vec<SourceFile>,
    /// Files with a good version that are not there any more.
    pub gone: Vec<PathBuf>,
    /// Roots that are gone, and what happened to them.
    pub roots_gone: BTreeMap<PathBuf, String>,
    /// For how long at least one of the files counts as being written, if nothing more is heard of it.
    pub unclosed: Option<Duration>,
    /// Which root holds no specs at all.
    pub bare: Option<String>,
    /// Why there may be declarations that nobody can read.
    pub unclear: Option<String>,
    /// Files that never were good and may declare anything, with the time at which they were first seen like that.
    pub riddles: BTreeMap<PathBuf, DateTime<Utc>>,
    /// Which directory each root is.
    pub identities: BTreeMap<PathBuf, String>,
    /// Files with a good version that are not there because their file system is not.
    pub unmounted: BTreeSet<PathBuf>,
    /// Folders of files that are on a file system other than that of their root.
    pub mounts: Mounts,
    /// What to watch.
    pub plan: WatchPlan,
}

impl Findings {
    /// A file that may be where something went that vanished at this time: it came at about the same time, and nobody can
    /// tell what it declares.
    pub(super) fn riddle_of(&self, vanished: DateTime<Utc>, settle: Duration) -> Option<&Path> {
        let near = |came: DateTime<Utc>| (came - vanished).abs().to_std().is_ok_and(|apart| apart <= settle);
        self.riddles.iter().find(|(_, came)| near(**came)).map(|(path, _)| path.as_path())
    }

    pub(super) fn unsure(&mut self, why: impl FnOnce() -> String) {
        self.unclear.get_or_insert_with(why);
    }

    /// Deployments that a file names which can be seen.
    pub(super) fn in_sight(&self) -> BTreeSet<String> {
        let current = self.inputs.iter().filter(|(path, _)| !self.outdated.contains(*path)).map(|(_, file)| file);
        let all = current.chain(self.bad.iter().map(|bad| &bad.present));
        all.flat_map(|file| file.deployments()).map(str::to_owned).collect()
    }

    /// Deployments that only the last good version of a file declares which can't be seen.
    pub(super) fn out_of_sight(&self) -> BTreeSet<String> {
        let outdated = self.inputs.iter().filter(|(path, _)| self.outdated.contains(*path));
        let mut names: BTreeSet<String> =
            outdated.flat_map(|(_, file)| file.deployments()).map(str::to_owned).collect();
        if !names.is_empty() {
            let seen = self.in_sight();
            names.retain(|name| !seen.contains(name));
        }
        names
    }

    /// What counts.
    pub(super) fn counted(&self) -> Texts {
        self.inputs.iter().map(|(path, file)| (path.clone(), Arc::clone(file))).collect()
    }

    /// What counts of those files that `is_watched` says so of; of one that never was good, what can be read of it.
    pub(super) fn counted_files(&self, is_watched: impl Fn(&Path) -> bool) -> Vec<CountedFile> {
        let counted = self.inputs.iter().map(|(path, file)| CountedFile {
            path: path.clone(),
            says: Arc::clone(file),
            is_present: !self.outdated.contains(path),
        });
        let never_good = self.bad.iter().filter(|bad| !self.inputs.contains_key(&bad.path) && bad.path.is_file());
        let never_good = never_good.map(|bad| CountedFile {
            path: bad.path.clone(),
            says: Arc::clone(&bad.present),
            is_present: true,
        });
        let mut files: Vec<CountedFile> = counted.chain(never_good).filter(|file| is_watched(&file.path)).collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files
    }

    /// What the files say now, with their problems, as far as it can be seen.
    pub(super) fn present(&self) -> Texts {
        let current = self.inputs.iter().filter(|(path, _)| !self.outdated.contains(*path));
        let bad = self.bad.iter().map(|bad| (&bad.path, &bad.present));
        let mut texts: Texts = current.chain(bad).map(|(path, file)| (path.clone(), Arc::clone(file))).collect();
        texts.sort_by(|(a, _), (b, _)| a.cmp(b));
        texts
    }
}

/// Files with what they say.
pub(super) type Texts = Vec<(PathBuf, Arc<ParsedFile>)>;

/// What is known of what can't be read.
static UNREAD: LazyLock<Arc<ParsedFile>> = LazyLock::new(|| Arc::new(ParsedFile::unread()));

/// Something that is not as it should be.
#[derive(Debug)]
pub(super) struct Bad {
    /// A file, or a directory with everything below it.
    pub path: PathBuf,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// What can be read of it all the same.
    pub present: Arc<ParsedFile>,
    /// The files that it is about, where it is not about everything at or below its path.
    pub only: Option<BTreeSet<PathBuf>>,
}

impl Bad {
    /// Something of which nothing can be read.
    pub(super) fn unread(path: &Path, flaw: &Flaw) -> Self {
        let help = flaw.help.map(str::to_owned);
        let problem = Problem { position: Position::START, path: String::new(), message: flaw.message.clone(), help };
        Self { path: path.to_path_buf(), problems: vec![problem], present: Arc::clone(&UNREAD), only: None }
    }

    /// The same of these files alone.
    pub(super) fn of(self, files: BTreeSet<PathBuf>) -> Self {
        Self { only: Some(files), ..self }
    }

    /// A text with problems.
    pub(super) fn text(path: &Path, file: &Arc<ParsedFile>) -> Self {
        Self { path: path.to_path_buf(), problems: file.problems.clone(), present: Arc::clone(file), only: None }
    }
}
