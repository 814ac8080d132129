//! The engine: observes, plans, executes and reports for every deployment, for as long as it runs.

mod cache;
mod convert;
mod core;
mod declared;
mod flight;
mod message;
mod observe;
mod publish;
mod queue;
mod reconcile;
mod record;
mod request;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use futures::stream::BoxStream;

pub use self::core::{Core, Parts, Scope};
pub use self::declared::Declared;
pub use self::message::{Command, Message};
pub use self::observe::{Connect, Connected};
pub use request::{Applied, ApplyRequest, Change, DeleteRequest, DeploymentPreview, EngineError, Preview, SpecFile};
use tokio::sync::watch;

use crate::runtime::io::{ExecRequest, ExecSession, LogLine, LogOptions};
use crate::spec::RuntimeKind;
use crate::state::Target;
use crate::status::Status;

/// How an engine is to work.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// The state directory.
    pub state_dir: PathBuf,
    /// What it may do.
    pub mode: Mode,
    /// Runtime of services that name none; docker where an engine answers, else sandbox, when absent.
    pub runtime: Option<RuntimeKind>,
    /// The `keel` program, for supervisors.
    pub program: PathBuf,
}

/// What an engine may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Look only; takes no lock.
    Observe,
    /// Converge these deployments and nothing else; takes the lock.
    OneShot(BTreeSet<String>),
    /// Watch a directory and keep everything converged; takes the lock.
    Controller {
        /// The watched directory.
        directory: PathBuf,
        /// Prune even when the directory lost most of its deployments.
        allow_empty: bool,
    },
}

/// The engine. Cheap to clone; all clones are one engine.
#[derive(Clone)]
pub struct Engine {
    status: watch::Receiver<Arc<Status>>,
}

impl Engine {
    /// Opens the state directory, the runtimes and the sources, and starts working.
    ///
    /// # Errors
    /// `Conflict` with the holder's pid when the mode needs the lock and another process holds it; `Invalid` when the
    /// watched directory does not exist.
    pub async fn open(_options: EngineOptions) -> Result<Self, EngineError> {
        Err(EngineError::Invalid("not built yet".to_owned()))
    }

    /// What there is, at this moment.
    pub fn status(&self) -> Arc<Status> {
        self.status.borrow().clone()
    }

    /// The same, with a way to wait for changes.
    pub fn watch(&self) -> watch::Receiver<Arc<Status>> {
        self.status.clone()
    }

    /// Reads the sources again and waits until the result counts.
    pub async fn rescan(&self) -> Result<(), EngineError> {
        Ok(())
    }

    /// What applying these files would do. Changes nothing.
    pub async fn preview(&self, _request: &ApplyRequest) -> Result<Preview, EngineError> {
        Ok(Preview::default())
    }

    /// Declares these files. Returns as soon as they count; watch the status for what comes of it.
    pub async fn apply(&self, _request: &ApplyRequest) -> Result<Applied, EngineError> {
        Ok(Applied::default())
    }

    /// Takes back the declarations of these deployments. Returns as soon as that counts.
    ///
    /// # Errors
    /// `Conflict` for a deployment that the watched directory declares, `NotFound` for an unknown one.
    pub async fn delete(&self, _request: &DeleteRequest) -> Result<Applied, EngineError> {
        Ok(Applied::default())
    }

    /// Confirms that what is missing from the source may go; returns what it was.
    pub async fn approve(&self) -> Result<Vec<String>, EngineError> {
        Ok(Vec::new())
    }

    /// Output of every instance that the target covers, by instance name; of the runs before when `previous`.
    pub async fn logs(
        &self,
        _target: &Target,
        _previous: bool,
        _options: &LogOptions,
    ) -> Result<Vec<(String, BoxStream<'static, crate::runtime::Result<LogLine>>)>, EngineError> {
        Ok(Vec::new())
    }

    /// Runs a command inside the running instance that the target covers; the lowest slot where it covers several.
    pub async fn exec(&self, _target: &Target, _request: &ExecRequest) -> Result<ExecSession, EngineError> {
        Err(EngineError::Invalid("not built yet".to_owned()))
    }

    /// Stops working; workloads go on.
    pub async fn shutdown(&self) {}
}
