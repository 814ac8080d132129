//! Opens an engine: state directory, lock, runtimes, sources.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::access::Access;
use super::apply::blocking;
use super::archive::Archive;
use super::core::{Core, Parts, Scope, Settled};
use super::declared::{Declared, Removed};
use super::engine::{Engine, Inner};
use super::event::{self, Event};
use super::jobs::{Jobs, StoredJobs};
use super::memory::{self, Keeper, Notebook};
use super::reread::Reread;
use super::sessions::{KeptSessions, SessionBook};
use super::{EngineError, EngineOptions, Mode, convert, runtimes};
use crate::clock::{Clock, SystemClock};
use crate::plan::revisions;
use crate::source::{
    self, Deleted, DirectorySource, NamedRuntimes, Records, Root, RootKind, SourceError, SourceHandle, SourceOptions,
    SourceStopped, SpecSnapshot, hand_over, last_roots,
};
use crate::spec::RuntimeKind;
use crate::state::Desired;
use crate::status::HoldView;
use crate::store::{
    ActivityRecords, AppliedFile, Holder, LockGuard, Locked, RemovalRequest, Role, StateDir, Store, StoreError,
    discard_applied, read_applied, sweep_applied,
};

/// What the store is told and has not taken yet; more than that is told again.
const SETTLED: usize = 64;

/// Longest wait for the first list of every runtime when only looking: a runtime that takes longer is shown as not
/// answering.
const FIRST_LOOK: Duration = Duration::from_secs(10);

impl Engine {
    /// Opens the state directory, the runtimes and the sources, and starts working. An engine that may only look makes
    /// no state directory.
    ///
    /// # Errors
    /// `Conflict` with the holder's pid when the mode needs the lock and another process holds it; `Invalid` when the
    /// watched directory does not exist, or the state directory is another user's.
    pub async fn open(options: EngineOptions) -> Result<Self, EngineError> {
        let access = Access::of(&options);
        let state_dir = place(&options, access)?;
        let lock = match options.mode {
            Mode::Observe => None,
            Mode::Controller { once: false, .. } => Some(state_dir.lock(Role::Controller).map_err(locked)?),
            Mode::Record | Mode::OneShot | Mode::Controller { once: true, .. } => {
                Some(state_dir.lock(Role::Command).map_err(locked)?)
            }
        };
        // With the lock, as whoever had it may have begun to run something.
        let archive = Archive::of(&options, access, &state_dir)?;
        let store = Arc::new(archive.store(access, lock.as_ref())?);
        if access == Access::Work
            && archive.are_kept()
            && let Err(error) = sweep_applied(&archive.applied())
        {
            tracing::debug!("what writers left behind stays: {error}");
        }
        runtimes::remember_devices(&options, state_dir.path())?;
        let default_runtime = runtimes::choose_default(&options, &state_dir).await?;
        let watched = watched_roots(&options.mode, &store)?;
        let clock = Arc::new(SystemClock);
        // Whoever names a runtime now means all that name none.
        let named = options.runtime.map_or(NamedRuntimes::Remembered, |_| NamedRuntimes::Forgotten);
        let taken_over = match options.mode {
            Mode::Controller { .. } => take_over(&archive.applied(), &watched, &store, clock.now())?,
            Mode::Record | Mode::OneShot | Mode::Observe => Vec::new(),
        };
        let Sources { declared, source, reread, blind, mut tasks } =
            sources(&options.mode, &watched, archive.applied(), &store, (default_runtime, named), clock).await?;
        if archive.are_kept() {
            discard_applied(&taken_over, &archive.applied())
                .map_err(local("copies of applied files can't be removed"))?;
        }
        let Memory { removing, settled, events, jobs, memory, activity, notebook, sessions, session_book } =
            remember(access, &store, source.as_ref(), &mut tasks)?;
        let sessions = KeptSessions { follows: lock.as_ref().is_some_and(LockGuard::worked_before), ..sessions };
        let core = Core::start(Parts {
            runtimes: runtimes::connectors(&options, access, &state_dir, default_runtime, &store),
            default_runtime,
            declared,
            clock: Arc::new(SystemClock),
            scope: scope(&options.mode),
            removing,
            jobs,
            memory,
            activity,
            keeper: notebook.clone().map(|notebook| notebook as Arc<dyn Keeper>),
            sessions,
            events,
            settled,
        });
        let inner = Inner {
            messages: core.messages.clone(),
            status: core.status.clone(),
            core: Mutex::new(Some(core)),
            archive,
            store,
            source,
            reread,
            blind,
            mode: options.mode,
            notebook,
            session_book,
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

/// What the core knows from before, and where it notes what it does.
#[derive(Default)]
struct Memory {
    removing: BTreeMap<String, RemovalRequest>,
    settled: Option<mpsc::Sender<Settled>>,
    events: Option<mpsc::Sender<Event>>,
    jobs: Jobs,
    memory: BTreeMap<String, revisions::Memory>,
    activity: ActivityRecords,
    notebook: Option<Arc<Notebook>>,
    sessions: KeptSessions,
    session_book: Option<Arc<SessionBook>>,
}

/// Opens the memory of an engine that works; one that only looks reads it, and changes nothing.
fn remember(
    access: Access,
    store: &Arc<Store>,
    source: Option<&Source>,
    tasks: &mut JoinSet<()>,
) -> Result<Memory, EngineError> {
    let unread = local("the state database can't be read");
    let memory = memory::load(store, access == Access::Work).map_err(unread)?;
    let records = store.jobs().map_err(local("the state database can't be read"))?;
    let activity = store.activity().map_err(local("the state database can't be read"))?;
    let stored = store.sessions(access == Access::Work).map_err(local("the state database can't be read"))?;
    if access != Access::Work {
        let sessions = KeptSessions::of(stored, None);
        return Ok(Memory { memory, activity, jobs: Jobs { records, keeper: None }, sessions, ..Memory::default() });
    }
    let session_book = Arc::new(SessionBook::default());
    tasks.spawn(session_book.clone().write_on(store.clone()));
    let sessions = KeptSessions::of(stored, Some(session_book.clone()));
    let jobs = Jobs { records, keeper: Some(Arc::new(StoredJobs { store: store.clone() })) };
    let removing = store.removals().map_err(local("the state database can't be read"))?;
    let (settled, inbox) = mpsc::channel(SETTLED);
    tasks.spawn(settle(inbox, store.clone(), source.map(|source| source.handle.clone())));
    let (events, recording) = event::record(store.clone());
    tasks.spawn(recording);
    let notebook = Arc::new(Notebook::default());
    tasks.spawn(notebook.clone().write_on(store.clone()));
    Ok(Memory {
        removing,
        settled: Some(settled),
        events: Some(events),
        jobs,
        memory,
        activity,
        notebook: Some(notebook),
        sessions,
        session_book: Some(session_book),
    })
}

fn place(options: &EngineOptions, access: Access) -> Result<StateDir, EngineError> {
    let path = &options.state_dir;
    let state_dir = match access {
        Access::Work | Access::Look => StateDir::open(path),
        Access::LookAtNothing => StateDir::unmade(path),
    };
    state_dir.map_err(|error| match error {
        foreign @ StoreError::Foreign { .. } => EngineError::Invalid(foreign.to_string()),
        failed => local("the state directory can't be used")(failed),
    })
}

fn scope(mode: &Mode) -> Scope {
    match mode {
        Mode::Observe | Mode::Record => Scope::Nothing,
        Mode::OneShot => Scope::Only(BTreeSet::new()),
        Mode::Controller { once: true, .. } => Scope::Watched,
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

pub(super) fn source_error(error: SourceError) -> EngineError {
    match error {
        missing @ SourceError::Root { .. } => EngineError::Invalid(missing.to_string()),
        failed @ SourceError::Store(_) => local("the sources can't be read")(failed),
    }
}

/// A source is never ended before the engine, so one that has ended has failed by a defect of ours.
pub(super) fn blinded(ended: SourceStopped) -> EngineError {
    local(
        "the specs can't be read any more, by a defect of keel that its log tells of; what runs goes on, start keel again",
    )(ended)
}

fn locked(locked: Locked) -> EngineError {
    match locked {
        Locked::Held { holder: Holder { role: Some(Role::Command), .. }, .. } => EngineError::Busy(locked.to_string()),
        Locked::Held { .. } => EngineError::Conflict(locked.to_string()),
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
        Mode::OneShot | Mode::Record | Mode::Observe => {
            let roots = last_roots(store).map_err(local("the state database can't be read"))?;
            Ok(roots.into_iter().map(|root| root.path).collect())
        }
    }
}

/// Hands what was applied from a directory that is watched from now on over to its source: what is there counts in its
/// place, and what is not is judged as if it had been watched all the time. Gives the copies, of which nothing is needed any
/// more once the source is at work.
fn take_over(
    applied: &Path,
    watched: &[PathBuf],
    store: &Store,
    now: DateTime<Utc>,
) -> Result<Vec<AppliedFile>, EngineError> {
    // The source tells why copies can't be read.
    let Ok(copies) = read_applied(applied) else { return Ok(Vec::new()) };
    let is_watched = |copy: &AppliedFile| watched.iter().any(|root| copy.origin.starts_with(root));
    let taken_over: Vec<AppliedFile> = copies.into_iter().filter(is_watched).collect();
    hand_over(store, &taken_over, applied, watched, now).map_err(local("applied files can't be taken over"))?;
    Ok(taken_over)
}

/// What says what is declared.
struct Sources {
    declared: watch::Receiver<Arc<Declared>>,
    /// Watches, except where an engine only looks.
    source: Option<Source>,
    /// Reads once more where nothing watches.
    reread: Option<Arc<Reread>>,
    /// Whether what watches has ended by itself.
    blind: watch::Receiver<bool>,
    tasks: JoinSet<()>,
}

/// A directory source at work, and the way of what it says to the core.
#[derive(Clone)]
pub(super) struct Source {
    pub handle: SourceHandle,
    relay: Arc<Relay>,
}

impl Source {
    /// Reads everything again and passes the result on, before anything else is asked of the core.
    pub async fn rescan(&self) -> Result<(), SourceStopped> {
        self.handle.rescan().await?;
        self.relay.pass_on();
        Ok(())
    }
}

/// Passes what the source says on to the core. Whoever does so passes on the newest, one at a time, so that nothing
/// older ever follows.
struct Relay {
    incoming: watch::Receiver<Arc<SpecSnapshot>>,
    outgoing: std::sync::Mutex<watch::Sender<Arc<Declared>>>,
    default_runtime: RuntimeKind,
}

impl Relay {
    fn pass_on(&self) {
        let outgoing = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        let next = convert_snapshot(&self.incoming.borrow(), self.default_runtime);
        outgoing.send_if_modified(|last| {
            let changed = **last != next;
            if changed {
                *last = Arc::new(next);
            }
            changed
        });
    }
}

/// The sources of the mode, as the core needs them.
async fn sources(
    mode: &Mode,
    watched: &[PathBuf],
    applied: PathBuf,
    store: &Arc<Store>,
    (default_runtime, runtimes): (RuntimeKind, NamedRuntimes),
    clock: Arc<dyn Clock>,
) -> Result<Sources, EngineError> {
    let (ended, blind) = watch::channel(false);
    let applied = Root { path: applied, kind: RootKind::Applied };
    let watched = watched.iter().map(|path| Root { path: path.clone(), kind: RootKind::Watched });
    let roots: Vec<Root> = watched.chain([applied]).collect();
    let mut options = SourceOptions::default();
    match mode {
        Mode::Controller { allow_empty, .. } => {
            options.allow_empty = *allow_empty;
            options.deleted = Deleted::Returns;
            options.runtimes = runtimes;
        }
        // What they are not asked for they do nothing about: who does must find it changed.
        Mode::Record | Mode::OneShot => options.records = Records::Asked,
        Mode::Observe => {
            let (sender, declared) = watch::channel(Arc::new(Declared::default()));
            let reread = Reread::new(roots, store.clone(), default_runtime, sender);
            reread.read(Instant::now()).await?;
            return Ok(Sources {
                declared,
                source: None,
                reread: Some(Arc::new(reread)),
                blind,
                tasks: JoinSet::new(),
            });
        }
    }
    let spawned = DirectorySource::spawn(roots, store.clone(), clock, options);
    let (mut snapshots, handle) = spawned.map_err(source_error)?;
    let (sender, declared) = watch::channel(Arc::new(Declared::default()));
    let relay =
        Arc::new(Relay { incoming: snapshots.clone(), outgoing: std::sync::Mutex::new(sender), default_runtime });
    let mut tasks = JoinSet::new();
    let passing_on = relay.clone();
    tasks.spawn(async move {
        loop {
            passing_on.pass_on();
            if snapshots.changed().await.is_err() {
                ended.send_replace(true);
                return;
            }
        }
    });
    Ok(Sources { declared, source: Some(Source { handle, relay }), reread: None, blind, tasks })
}

pub(super) fn convert_snapshot(snapshot: &SpecSnapshot, default_runtime: RuntimeKind) -> Declared {
    let deployments = snapshot.deployments.iter();
    Declared {
        synced: snapshot.synced,
        desired: Desired {
            deployments: deployments
                .map(|(name, one)| (name.clone(), convert::desired(one, default_runtime)))
                .collect(),
        },
        removed: snapshot.removed.iter().map(|(name, one)| (name.clone(), removed(one, default_runtime))).collect(),
        stale: snapshot.stale.clone(),
        unwatched: snapshot.unwatched.clone(),
        unclear: snapshot.unclear.clone(),
        reset: snapshot.reset.clone(),
        problems: snapshot
            .problems
            .iter()
            .map(|one| convert::problem(&one.file, &one.problem, &one.effect.to_string()))
            .collect(),
        left_out: snapshot.problems.iter().flat_map(|one| one.effect.left_out()).cloned().collect(),
        hold: snapshot
            .hold
            .as_ref()
            .map(|hold| HoldView { reason: hold.reason.clone(), missing: hold.missing.clone() }),
    }
}

fn removed(removed: &source::Removed, default_runtime: RuntimeKind) -> Removed {
    let runtimes = removed.runtimes.iter().map(|runtime| runtime.unwrap_or(default_runtime));
    Removed { prune: removed.prune, runtimes: runtimes.collect() }
}

/// Lets the store forget what needs no remembering.
async fn settle(mut inbox: mpsc::Receiver<Settled>, store: Arc<Store>, source: Option<SourceHandle>) {
    while let Some(settled) = inbox.recv().await {
        let (name, removal) = match settled {
            Settled::Removal(id) => (None, Some(id)),
            Settled::Deployment { name, removal } => (Some(name), removal),
        };
        let forgotten = match (&source, &name) {
            (_, None) => Ok(()),
            (Some(source), Some(name)) => source.forget(name).await.unwrap_or(Ok(())),
            (None, Some(name)) => store.forget(name),
        };
        let removals = store.clone();
        let forget = move || removal.map_or(Ok(()), |id| removals.settle_removal(id));
        let settled = blocking(move || forget().map_err(local("a removal stays recorded"))).await;
        if let Err(error) = forgotten.map_err(local("it stays in the inventory")).and(settled) {
            tracing::warn!("{}: {error}", name.as_deref().unwrap_or("a removal"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use chrono::{DateTime, Utc};

    use super::*;
    use crate::state::Volumes;

    #[tokio::test]
    async fn a_removal_that_is_asked_for_again_outlives_the_end_of_the_one_before() {
        let store = Arc::new(Store::in_memory().unwrap());
        let names = BTreeSet::from(["demo".to_owned()]);
        let first = store.request_removals(&names, Volumes::Keep).unwrap()["demo"];
        let (settled, inbox) = mpsc::channel(2);
        let done = Settled::Deployment { name: "demo".to_owned(), removal: Some(first.id) };
        settled.try_send(done.clone()).unwrap();
        settled.try_send(done).unwrap();
        drop(settled);
        let later = store.request_removals(&names, Volumes::Remove).unwrap();
        settle(inbox, store.clone(), None).await;
        assert_eq!(store.removals().unwrap(), later);
        let (settled, inbox) = mpsc::channel(1);
        settled.try_send(Settled::Removal(later["demo"].id)).unwrap();
        drop(settled);
        settle(inbox, store.clone(), None).await;
        assert_eq!(store.removals().unwrap(), BTreeMap::new());
        // What is asked for after all were settled is another one.
        let last = store.request_removals(&names, Volumes::Keep).unwrap()["demo"];
        assert!(last.id != first.id && last.id != later["demo"].id);
        assert_eq!(last.volumes, Volumes::Keep);
    }

    /// Panics once it was told to: a defect in whatever looks at it.
    #[derive(Default)]
    struct Defective(AtomicBool);

    impl Clock for Defective {
        fn now(&self) -> DateTime<Utc> {
            assert!(!self.0.load(Ordering::Relaxed), "a defect");
            SystemClock.now()
        }
    }

    #[tokio::test]
    async fn a_scan_that_panics_is_no_shutdown_and_blinds_the_engine() {
        let base = tempfile::tempdir().unwrap();
        let state_dir = StateDir::open(&base.path().join("state")).unwrap();
        let (store, clock) = (Arc::new(Store::in_memory().unwrap()), Arc::new(Defective::default()));
        let directory = base.path().to_path_buf();
        let mode = Mode::Controller { directory: directory.clone(), allow_empty: false, once: false };
        let opened = sources(
            &mode,
            &[directory],
            state_dir.applied(),
            &store,
            (RuntimeKind::Sim, NamedRuntimes::Remembered),
            clock.clone(),
        )
        .await;
        let Sources { source, mut blind, tasks: _tasks, .. } = opened.unwrap();
        let source = source.unwrap();
        source.rescan().await.unwrap();
        assert!(!*blind.borrow());
        clock.0.store(true, Ordering::Relaxed);
        let error = source.rescan().await.map_err(blinded).unwrap_err();
        assert!(error.to_string().contains("the specs can't be read any more"), "{error}");
        blind.wait_for(|blind| *blind).await.unwrap();
    }
}
