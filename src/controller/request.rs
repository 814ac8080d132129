//! What callers ask of the engine, and what they get.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::runtime::Volumes;
use crate::spec::RuntimeKind;
use crate::state::{RunId, ServiceName};
use crate::status::ProblemView;

/// A file as the caller read it; the engine need not see the caller's file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpecFile {
    /// Absolute path, for messages and relative paths inside; `-` for standard input.
    pub path: PathBuf,
    /// Content.
    pub text: String,
}

/// Declare these files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyRequest {
    /// Every file that was named.
    pub files: Vec<SpecFile>,
    /// The absolute paths that were named; what was applied from one of these files and directories before and is not in it
    /// now is pruned.
    pub origins: Vec<PathBuf>,
    /// Runtime of services that name none. When absent: the one that was last named for their deployment, else the engine's
    /// default.
    #[serde(default)]
    pub runtime: Option<RuntimeKind>,
    /// Deployments that the caller waits for besides those that this changes, because the answer to an earlier try said so or
    /// was lost: an engine that works on nothing else works on them too.
    #[serde(default)]
    pub attend_to: BTreeSet<String>,
}

/// What an apply, a delete or a preview does to one deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It is new.
    Created,
    /// It is declared differently.
    Configured,
    /// It is declared as it was.
    Unchanged,
    /// It goes, because its declaration has gone.
    Pruned,
    /// It goes, because somebody said so.
    Deleted,
}

impl Change {
    /// The word that is printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
            Self::Pruned => "pruned",
            Self::Deleted => "deleted",
        }
    }
}

/// What happened to the declarations.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Applied {
    /// By deployment name.
    pub results: Vec<(String, Change)>,
    /// Why nothing was applied; where this is not empty, nothing was.
    pub problems: Vec<ProblemView>,
    /// What the caller should know besides.
    pub notes: Vec<String>,
}

/// Remove these deployments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteRequest {
    /// Their names.
    pub deployments: Vec<String>,
    /// What becomes of their named volumes.
    pub volumes: Volumes,
    /// Whether names that nothing has are passed over, rather than refused with all the others.
    #[serde(default)]
    pub ignore_not_found: bool,
}

/// Make a run of a job or cron service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TriggerRequest {
    /// Which.
    pub service: ServiceName,
    /// The name of the run. One that has begun already is not made again.
    pub run: RunId,
}

/// What applying files would do.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Preview {
    /// By deployment name.
    pub deployments: Vec<DeploymentPreview>,
    /// Why nothing would be applied; where this is not empty, nothing would be.
    pub problems: Vec<ProblemView>,
    /// What the caller should know besides.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// What applying files would do to one deployment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeploymentPreview {
    /// Name.
    pub deployment: String,
    /// To its declaration.
    pub change: Change,
    /// What is declared now, as JSON; absent where nothing is. Services by name, each as it was written.
    pub old: Option<serde_json::Value>,
    /// What would be declared.
    pub new: Option<serde_json::Value>,
    /// Every step that is expected, in order, one line each.
    pub steps: Vec<String>,
    /// The same with what is waited for in between, for people: what is alike or comes again is told once.
    pub course: Vec<String>,
    /// What is still waited for after that, one line each.
    pub waits: Vec<String>,
    /// What may be done at once, as a value.
    pub plan: serde_json::Value,
    /// What is expected to happen, as a value.
    pub forecast: serde_json::Value,
    /// Why nobody looked beyond what may be done at once; absent where somebody did.
    pub cut_short: Option<String>,
}

/// A request could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The request itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// What it names does not exist.
    #[error("{0}")]
    NotFound(String),
    /// It can't be done in the present state.
    #[error("{0}")]
    Conflict(String),
    /// Another command works on the state directory; it can be done when that has ended.
    #[error("{0}")]
    Busy(String),
    /// The engine was shut down before it answered.
    #[error("the controller is shutting down")]
    Ended,
    /// The runtime failed.
    #[error(transparent)]
    Runtime(#[from] crate::runtime::RuntimeError),
    /// Reading or writing local state failed.
    #[error("{context}")]
    Local {
        /// What was being done.
        context: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
