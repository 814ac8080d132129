//! Opens an engine: state directory, lock, runtimes, sources.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;

use super::core::{Core, Parts, Scope};
use super::declared::Declared;
use super::engine::{Engine, Inner};
use super::{EngineError, EngineOptions, Mode, convert, runtimes};
use crate::clock::SystemClock;
use crate::source::{
    DirectorySource, Recording, Root, RootKind, SourceError, SourceHandle, SourceOptions, SpecSnapshot, last_roots,
    read_once,
};
use crate::spec::RuntimeKind;
use crate::state::Desired;
use crate::status::HoldView;
use crate::store::{Locked, StateDir, Store};

/// Longest wait for the first list of every runtime when only looking: a runtime that takes longer is shown as not
/// answering.
const FIRST_LOOK: Duration = Duration::from_secs(10);

impl Engine {
    /// Opens the state directory, the runtimes and the sources, and starts working.
    ///
    /// # Errors
    /// `Conflict` with the holder's pid when the mode needs the lock and another process holds it; `Invalid` when the
    /// watched directory does not exist.
    pub async fn open(options: EngineOptions) -> Result<Self, EngineError> {
        let state_dir = StateDir::open(&options.state_dir).map_err(local("the state directory can't be used"))?;
        let lock = match options.mode {
            Mode::Observe => None,
            Mode::OneShot(_) | Mode::Controller { .. } => Some(state_dir.lock().map_err(locked)?),
        };
        let store = Arc::new(state_dir.store().map_err(local("the state database can't be used"))?);
        let default_runtime = runtimes::choose_default(&options, state_dir.path()).await?;
        let watched = watched_roots(&options.mode, &store)?;
        let (declared, source, mut tasks) =
            sources(&options.mode, &watched, &state_dir, &store, default_runtime).await?;
        let (forgotten, gone) = mpsc::unbounded_channel();
        tasks.spawn(forget(gone, store.clone(), source.clone()));
        let core = Core::start(Parts {
            runtimes: runtimes::connectors(&options, state_dir.path(), state_dir.owner(), default_runtime),
            default_runtime,
            declared,
            clock: Arc::new(SystemClock),
            scope: scope(&options.mode),
            forgotten,
        });
        let inner = Inner {
            messages: core.messages.clone(),
            status: core.status.clone(),
            core: Mutex::new(Some(core)),
            applied: state_dir.applied(),
            store,
            source,
            mode: options.mode,
            default_runtime,
            watched,
            applying: Mutex::new(()),
            _tasks: tasks,
            _lock: lock,
        };
        let engine = Self { inner: Arc::new(inner) };
        engine.first_look().await;
        Ok(engine)
    }

    /// Waits until every runtime was listed or failed to be, so that the first answer is a true one.
    async fn first_look(&self) {
        let mut status = self.watch();
        let synced = status.wait_for(|status| status.synced);
        // A runtime that takes longer is shown as what it is.
        let _ = tokio::time::timeout(FIRST_LOOK, synced).await;
    }
}

fn scope(mode: &Mode) -> Scope {
    match mode {
        Mode::Observe => Scope::Nothing,
        Mode::OneShot(names) => Scope::Only(names.clone()),
        Mode::Controller { .. } => Scope::Everything,
    }
}

pub(super) fn local<E>(context: &str) -> impl FnOnce(E) -> EngineError
where
    E: std::error::Error + Send + Sync + 'static,
{
    let context = context.to_owned();
    move |source| EngineError::Local { context: format!("{context}: {source}"), source: Box::new(source) }
}

fn source_error(error: SourceError) -> EngineError {
    match error {
        missing @ SourceError::Root { .. } => EngineError::Invalid(missing.to_string()),
        failed @ SourceError::Store(_) => local("the sources can't be read")(failed),
    }
}

fn locked(locked: Locked) -> EngineError {
    match locked {
        held @ Locked::Held { .. } => EngineError::Conflict(held.to_string()),
        failed => local("the lock can't be taken")(failed),
    }
}

/// The directories that are looked at: the one that is named, or those of the last controller.
fn watched_roots(mode: &Mode, store: &Store) -> Result<Vec<PathBuf>, EngineError> {
    match mode {
        Mode::Controller { directory, .. } => {
            let absolute = std::path::absolute(directory);
            Ok(vec![absolute.map_err(local("the watched directory can't be found"))?])
        }
        Mode::OneShot(_) | Mode::Observe => {
            let roots = last_roots(store).map_err(local("the state database can't be read"))?;
            Ok(roots.into_iter().map(|root| root.path).collect())
        }
    }
}

type Sources = (watch::Receiver<Arc<Declared>>, Option<SourceHandle>, JoinSet<()>);

/// The sources of the mode, as the core needs them.
async fn sources(
    mode: &Mode,
    watched: &[PathBuf],
    state_dir: &StateDir,
    store: &Arc<Store>,
    default_runtime: RuntimeKind,
) -> Result<Sources, EngineError> {
    let applied = Root { path: state_dir.applied(), kind: RootKind::Applied };
    let watched = watched.iter().map(|path| Root { path: path.clone(), kind: RootKind::Watched });
    let roots: Vec<Root> = watched.chain([applied]).collect();
    let mut options = SourceOptions::default();
    match mode {
        Mode::Controller { allow_empty, .. } => options.allow_empty = *allow_empty,
        Mode::OneShot(_) => {}
        Mode::Observe => {
            let (store, clock) = (store.clone(), SystemClock);
            let look = move || read_once(roots, store, &clock, options, Recording::Off);
            let snapshot = tokio::task::spawn_blocking(look).await.map_err(local("the sources can't be read"))?;
            let snapshot = snapshot.map_err(source_error)?;
            let (_, declared) = watch::channel(Arc::new(convert_snapshot(&snapshot, default_runtime)));
            return Ok((declared, None, JoinSet::new()));
        }
    }
    let spawned = DirectorySource::spawn(roots, store.clone(), Arc::new(SystemClock), options);
    let (mut incoming, handle) = spawned.map_err(source_error)?;
    let (sender, declared) = watch::channel(Arc::new(Declared::default()));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let next = convert_snapshot(&incoming.borrow_and_update(), default_runtime);
            sender.send_replace(Arc::new(next));
            if incoming.changed().await.is_err() {
                return;
            }
        }
    });
    Ok((declared, Some(handle), tasks))
}

fn convert_snapshot(snapshot: &SpecSnapshot, default_runtime: RuntimeKind) -> Declared {
    let deployments = snapshot.deployments.iter();
    Declared {
        synced: snapshot.synced,
        desired: Desired {
            deployments: deployments
                .map(|(name, one)| (name.clone(), convert::desired(one, default_runtime)))
                .collect(),
        },
        removed: snapshot.removed.clone(),
        stale: snapshot.stale.clone(),
        unclear: snapshot.unclear.clone(),
        problems: snapshot
            .problems
            .iter()
            .map(|one| convert::problem(&one.file, &one.problem, &one.effect.to_string()))
            .collect(),
        hold: snapshot
            .hold
            .as_ref()
            .map(|hold| HoldView { reason: hold.reason.clone(), missing: hold.missing.clone() }),
    }
}

/// Lets the inventory forget what is gone completely.
async fn forget(mut gone: mpsc::UnboundedReceiver<String>, store: Arc<Store>, source: Option<SourceHandle>) {
    while let Some(deployment) = gone.recv().await {
        let forgotten = match &source {
            Some(source) => source.forget(&deployment).await.unwrap_or(Ok(())),
            None => store.forget(&deployment),
        };
        if let Err(error) = forgotten {
            tracing::warn!("{deployment} stays in the inventory: {error}");
        }
    }
}
