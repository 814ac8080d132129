//! What the source says: everything that is declared, and everything that is wrong, at one moment.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::bounds::LOSS_SETTLE;
use crate::spec::{MergedDeployment, ParsedFile, Problem, Prune, RuntimeKind};
use crate::state::SourceRef;

/// A directory tree, or a single file, that declares deployments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Where it is.
    pub path: PathBuf,
    /// Whose it is.
    pub kind: RootKind,
}

/// Whose a root is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootKind {
    /// The user's. What vanishes from it may have vanished by mistake.
    Watched,
    /// Our own, which only commands write. What goes from it went on purpose; that it does not exist means that
    /// nothing was applied.
    Applied,
}

/// How a source works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceOptions {
    /// How long there must be no event before a scan.
    pub quiet: Duration,
    /// How long events may put a scan off.
    pub most: Duration,
    /// How often a scan follows without any event.
    pub rescan: Duration,
    /// How long what was declared must be away before it counts as gone.
    pub settle: Duration,
    /// Nothing that vanishes is held: the user confirmed it beforehand.
    pub allow_empty: bool,
    /// What becomes of what was deleted by name and what a file declares all the same.
    pub deleted: Deleted,
    /// What is recorded of what watched files declare.
    pub records: Records,
    /// What becomes of runtimes that were named when deployments of watched files were applied.
    pub runtimes: NamedRuntimes,
}

/// What becomes of the runtime that was named when a deployment was applied whose file is watched now, and that is no part
/// of the file: it counts for services that name none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamedRuntimes {
    /// It stays, in whichever file the deployment is, until every service names one or the deployment goes: nothing is moved
    /// unasked.
    Remembered,
    /// Somebody named another one for all.
    Forgotten,
}

/// What is recorded as declared of what watched files declare. What commands keep in our own directory is recorded always.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Records {
    /// Everything: whoever records it acts on it.
    Everything,
    /// What somebody asks for. Of the rest, whoever looks next finds what has changed.
    Asked,
}

/// What becomes of a deployment that was deleted by name while no controller ran, and that a file still declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// It stays deleted: a command does one thing, and does not undo what another one did.
    Stays,
    /// What a watched file declares counts as soon as the file can be seen: a controller keeps its directory running.
    Returns,
}

impl Default for SourceOptions {
    /// Quiet for 150 ms: longer than any editor takes between its steps, too short to be felt. At most 1 s: a tree
    /// that is written to without end is still followed. Every 30 s: twice as often as the kubelet looks into its
    /// manifest directory's lost events, and a few hundred `stat` calls at most.
    fn default() -> Self {
        Self {
            quiet: Duration::from_millis(150),
            most: Duration::from_secs(1),
            rescan: Duration::from_secs(30),
            settle: LOSS_SETTLE,
            allow_empty: false,
            deleted: Deleted::Stays,
            records: Records::Everything,
            runtimes: NamedRuntimes::Remembered,
        }
    }
}

/// Everything that is declared at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SpecSnapshot {
    /// Whether every root was scanned and nothing is about to settle that changed while nobody watched. Nothing may be
    /// removed before; once true it stays true.
    pub synced: bool,
    /// What should exist, by name: as declared now, or the last good version where `stale` or `hold` says so.
    pub deployments: BTreeMap<String, MergedDeployment>,
    /// What is wrong, by file and position.
    pub problems: Vec<FileProblem>,
    /// Deployments that keep their last good version, and why. One that is not in `deployments` is known only by name
    /// (an older version of keel recorded it in another form): leave what runs of it alone.
    pub stale: BTreeMap<String, String>,
    /// Deployments of the inventory that are not declared any more, and what that means for them. They stay here until
    /// they are forgotten or declared again.
    pub removed: BTreeMap<String, Removed>,
    /// Too much vanished at once: what is missing stays as it was, in `deployments`.
    pub hold: Option<Hold>,
    /// Deployments of directories that are not watched any more: they stay as they were, in `deployments`, until a
    /// watched file declares them, or somebody confirms that they may go.
    pub unwatched: BTreeMap<String, Unwatched>,
    /// Why a deployment that is neither declared nor in the inventory may be declared all the same, such as a file that
    /// can't be read and never was good (after the state directory was lost, say). While this is set, nobody knows
    /// what an unclaimed instance belongs to: leave it alone.
    pub unclear: Option<String>,
    /// What happened to the database that remembered what was declared before, where it was lost and nobody has confirmed
    /// that: leave alone what is neither declared nor in the inventory.
    pub reset: Option<String>,
    /// Why changes are found only by looking from time to time; absent where the roots are watched.
    pub polling: Option<String>,
}

/// What counts of a file.
#[derive(Debug, Clone)]
pub struct CountedFile {
    /// Absolute path.
    pub path: PathBuf,
    /// What it says: now, or in its last good version; of one that never was good, what can be read of it.
    pub says: Arc<ParsedFile>,
    /// Whether that is what it says now, and not a version before that can't be seen any more.
    pub is_present: bool,
}

/// A deployment that is not declared any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// What its declaration said of that.
    pub prune: Prune,
    /// Runtimes that its services ran on; none stands for the default one.
    pub runtimes: BTreeSet<Option<RuntimeKind>>,
}

/// Pruning is stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Why, and what to do.
    pub reason: String,
    /// Deployments that are not declared any more and stay. Sorted.
    pub missing: Vec<String>,
    /// Since when.
    pub since: DateTime<Utc>,
}

/// Where a deployment was declared that no watched file declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unwatched {
    /// The place of its declaration.
    pub source: SourceRef,
    /// The directory that was watched.
    pub directory: PathBuf,
}

/// One thing that is wrong with a file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileProblem {
    /// Absolute path.
    pub file: PathBuf,
    /// What is wrong, where in the file, and what would be right.
    pub problem: Problem,
    /// What comes of it.
    pub effect: Effect,
}

impl std::fmt::Display for FileProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.problem)
    }
}

/// What comes of a problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: no deployment depends on it, as far as is known.
    None,
    /// Deployments are not what the files say.
    Deployments {
        /// These keep their last good version. Sorted.
        kept: Vec<String>,
        /// These have none and are not started. Sorted.
        left_out: Vec<String>,
    },
}

impl Effect {
    /// Deployments that have no good version and are not started.
    pub fn left_out(&self) -> &[String] {
        match self {
            Self::None => &[],
            Self::Deployments { left_out, .. } => left_out,
        }
    }
}

impl std::fmt::Display for Effect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self::Deployments { kept, left_out } = self else { return f.write_str("nothing of the file is used") };
        if !kept.is_empty() {
            let verb = if kept.len() == 1 { "keeps its" } else { "keep their" };
            write!(f, "{} {verb} last good version", kept.join(", "))?;
        }
        if !left_out.is_empty() {
            let separator = if kept.is_empty() { "" } else { "; " };
            let verb = if left_out.len() == 1 { "is" } else { "are" };
            write!(f, "{separator}{} {verb} left out", left_out.join(", "))?;
        }
        Ok(())
    }
}
