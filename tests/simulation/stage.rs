//! A machine, a source that outlives controllers, and at most one controller at a time.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use evenkeel::clock::{Clock, VirtualClock};
use evenkeel::controller::{
    Command, Connected, Core, Declared, JobChanges, Jobs, KeepJobs, Keeper, Message, Note, NoteKey, Order, Parts,
    Scope, Settled,
};
use evenkeel::plan::revisions::{Memory, Orders, RolloutHistory};
use evenkeel::runtime::sim::{Faults, ForgetfulRuntime, SimRuntime, World};
use evenkeel::runtime::{RuntimeError, StopRecord, StopRecords};
use evenkeel::spec::RuntimeKind;
use evenkeel::state::{ActivityRecord, Owner, ServiceName};
use evenkeel::store::JobRecords;
use tokio::sync::{mpsc, oneshot, watch};

use crate::shop::{Source, Wants, wants};

/// Runs a future on one thread whose time passes only while nothing can be done.
pub fn in_virtual_time<T>(story: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().expect("a runtime").block_on(story)
}

/// What is told of a story.
#[derive(Clone, Default)]
pub struct Trace(Arc<Mutex<Vec<String>>>);

impl Trace {
    pub fn note(&self, line: String) {
        self.0.lock().expect("a trace").push(line);
    }

    pub fn lines(&self) -> Vec<String> {
        self.0.lock().expect("a trace").clone()
    }
}

/// A controller.
struct Controller {
    core: Core,
    declared: watch::Sender<Arc<Declared>>,
    settled: mpsc::Receiver<Settled>,
}

/// Records of stops that outlive controllers, as a database does.
#[derive(Default)]
pub struct Stops(Mutex<BTreeMap<String, StopRecord>>);

impl Stops {
    pub fn count(&self) -> usize {
        self.0.lock().expect("records").len()
    }
}

#[async_trait]
impl StopRecords for Stops {
    async fn all(&self, _: RuntimeKind) -> Result<Vec<StopRecord>, RuntimeError> {
        Ok(self.0.lock().expect("records").values().cloned().collect())
    }

    async fn keep(&self, record: StopRecord) -> Result<(), RuntimeError> {
        self.0.lock().expect("records").insert(record.runtime_id.clone(), record);
        Ok(())
    }

    async fn forget(&self, record: StopRecord) -> Result<(), RuntimeError> {
        self.0.lock().expect("records").retain(|_, kept| *kept != record);
        Ok(())
    }
}

/// What is remembered of rollouts, which outlives controllers as a database does.
pub struct Notes {
    clock: Arc<VirtualClock>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    memory: BTreeMap<String, Memory>,
    activity: BTreeMap<String, ActivityRecord>,
    /// Where rollouts led, and from when on.
    led: Vec<(DateTime<Utc>, ServiceName, String)>,
}

impl Notes {
    fn memory(&self) -> BTreeMap<String, Memory> {
        let mut memory = self.kept.lock().expect("notes").memory.clone();
        for history in memory.values_mut().flat_map(|memory| memory.rollouts.values_mut()) {
            *history = std::mem::take(history).resumed();
        }
        memory
    }

    fn activity(&self) -> BTreeMap<String, ActivityRecord> {
        self.kept.lock().expect("notes").activity.clone()
    }

    /// What is remembered of a service.
    pub fn of(&self, name: &ServiceName) -> Option<RolloutHistory> {
        self.kept.lock().expect("notes").memory.get(&name.deployment)?.rollouts.get(&name.service).cloned()
    }

    /// Where rollouts of a service led between these times.
    pub fn led(&self, name: &ServiceName, from: DateTime<Utc>, to: DateTime<Utc>) -> Vec<String> {
        let kept = self.kept.lock().expect("notes");
        let of_service = || kept.led.iter().filter(|(at, of, _)| of == name && *at <= to);
        let before = of_service().rfind(|(at, _, _)| *at <= from);
        let within = of_service().filter(|(at, _, _)| *at > from);
        before.into_iter().chain(within).map(|(_, _, revision)| revision.clone()).collect()
    }
}

impl Kept {
    fn note(&mut self, at: DateTime<Utc>, (deployment, service): NoteKey, note: Note) {
        let memory = self.memory.entry(deployment.clone()).or_default();
        match (note, service) {
            (Note::Orders(orders), _) => memory.orders = orders,
            (Note::Rollout(history), Some(service)) => {
                let leads = history.rollout.as_ref().map(|rollout| rollout.revision.to_string());
                memory.rollouts.insert(service.clone(), *history);
                let name = ServiceName { deployment, service };
                self.led.extend(leads.map(|revision| (at, name, revision)));
            }
            (Note::Forget, Some(service)) => drop(memory.rollouts.remove(&service)),
            (Note::Forget | Note::Rollout(_), None) => memory.orders = Orders::default(),
        }
    }
}

impl Keeper for Notes {
    fn keep(&self, key: NoteKey, note: Note, kept: Option<evenkeel::controller::Kept>) {
        self.kept.lock().expect("notes").note(self.clock.now(), key, note);
        if let Some(kept) = kept {
            let _ = kept.send(Ok(()));
        }
    }

    fn keep_together(&self, notes: Vec<(NoteKey, Note)>) {
        let mut kept = self.kept.lock().expect("notes");
        notes.into_iter().for_each(|(key, note)| kept.note(self.clock.now(), key, note));
    }

    fn keep_activity(&self, deployment: &str, record: Option<ActivityRecord>) {
        let mut notes = self.kept.lock().expect("notes");
        match record {
            Some(record) => drop(notes.activity.insert(deployment.to_owned(), record)),
            None => drop(notes.activity.remove(deployment)),
        }
    }
}

/// What controllers remember of jobs, as a database does; writing takes a while, in which a controller may crash.
#[derive(Default)]
pub struct Book(Mutex<JobRecords>);

/// Longest time that it takes to write something down.
const WRITING: Duration = Duration::from_millis(300);

impl Book {
    pub fn records(&self) -> JobRecords {
        self.0.lock().expect("records").clone()
    }
}

#[async_trait]
impl KeepJobs for Book {
    async fn keep(&self, deployment: &str, changes: &JobChanges) -> Result<(), String> {
        tokio::time::sleep(WRITING).await;
        let mut records = self.0.lock().expect("records");
        let of_deployment = records.entry(deployment.to_owned()).or_default();
        for (service, record) in changes {
            match record {
                Some(record) => drop(of_deployment.insert(service.clone(), record.clone())),
                None => drop(of_deployment.remove(service)),
            }
        }
        Ok(())
    }
}

/// What happened to the controller and its declarations, for the checker.
#[derive(Default)]
pub struct Chronicle {
    /// What was declared to a controller, and from when on.
    pub wants: Vec<(DateTime<Utc>, Wants)>,
    /// When each controller crashed.
    pub crashes: Vec<DateTime<Utc>>,
    /// When somebody did something to an instance, or took a name that is wanted.
    pub troubles: Vec<DateTime<Utc>>,
    /// From the start of each controller to the moment when its source was synced.
    pub unsynced: Vec<(DateTime<Utc>, DateTime<Utc>)>,
}

/// Everything that a story is played on.
pub struct Stage {
    pub world: Arc<World>,
    pub source: Source,
    pub chronicle: Chronicle,
    /// What controllers recorded of stops.
    pub stops: Arc<Stops>,
    /// What controllers remember of rollouts.
    pub notes: Arc<Notes>,
    /// What controllers remember of jobs.
    pub book: Arc<Book>,
    clock: Arc<VirtualClock>,
    controller: Option<Controller>,
    trace: Trace,
}

pub fn owner() -> Owner {
    Owner("ours".to_owned())
}

impl Stage {
    pub fn new(seed: u64, faults: Faults, trace: Trace) -> Self {
        let start = "2026-01-01T00:00:00Z".parse().expect("a time");
        let clock = Arc::new(VirtualClock::starting_at(start));
        let world = World::new(clock.clone(), seed, faults);
        let (source, chronicle, stops, book) = Default::default();
        let notes = Arc::new(Notes { clock: clock.clone(), kept: Mutex::default() });
        Self { world, source, chronicle, stops, book, notes, clock, controller: None, trace }
    }

    pub fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    pub fn runtime(&self) -> SimRuntime {
        self.world.runtime(owner())
    }

    pub fn note(&self, line: impl std::fmt::Display) {
        self.trace.note(format!("{} {line}", self.now().format("%H:%M:%S%.3f")));
    }

    pub fn is_up(&self) -> bool {
        self.controller.is_some()
    }

    /// Starts a controller on what is there, whose source takes this long to be synced.
    pub async fn start(&mut self, sync: Duration) {
        self.note(format!("the controller starts, synced after {sync:?}"));
        self.start_unsynced().await;
        let began = self.now();
        tokio::time::sleep(sync).await;
        self.chronicle.unsynced.push((began, self.now()));
        self.declare();
    }

    async fn start_unsynced(&mut self) {
        let runtime = ForgetfulRuntime::open(&self.world, owner(), self.stops.clone()).await.expect("a runtime");
        let (declared, declarations) = watch::channel(Arc::new(Declared::default()));
        let (settle, settled) = mpsc::channel(8);
        let core = Core::start(Parts {
            runtimes: vec![Arc::new(Connected(Arc::new(runtime)))],
            default_runtime: RuntimeKind::Sim,
            declared: declarations,
            clock: self.clock.clone(),
            scope: Scope::Everything,
            removing: std::collections::BTreeMap::new(),
            memory: self.notes.memory(),
            keeper: Some(self.notes.clone()),
            jobs: Jobs { records: self.book.records(), keeper: Some(self.book.clone()) },
            activity: self.notes.activity(),
            sessions: Default::default(),
            events: None,
            settled: Some(settle),
        });
        self.controller = Some(Controller { core, declared, settled });
    }

    /// Starts a controller that is told this at once.
    pub async fn start_with(&mut self, declared: Declared) {
        self.start_unsynced().await;
        self.tell(declared);
    }

    /// Tells the controller this, whatever the files say.
    pub fn tell(&self, declared: Declared) {
        if let Some(controller) = &self.controller {
            controller.declared.send_replace(Arc::new(declared));
        }
    }

    /// Ends the controller at once, wherever it is.
    pub async fn crash(&mut self) {
        self.note("the controller crashes");
        self.forget();
        self.controller = None;
        self.chronicle.crashes.push(self.now());
        // Tasks end when they are looked at next.
        tokio::task::yield_now().await;
    }

    /// Reads the files and tells the controller, where one is up.
    pub fn declare(&mut self) {
        self.forget();
        let declared = self.source.read();
        let Some(controller) = &self.controller else { return };
        self.chronicle.wants.push((self.clock.now(), wants(&declared)));
        controller.declared.send_replace(Arc::new(declared));
    }

    /// Declares anew where the controller said that nothing is left of a removed deployment.
    pub fn declare_if_forgotten(&mut self) {
        if self.forget() {
            self.declare();
        }
    }

    /// Takes what is gone completely out of the inventory; says whether anything was.
    fn forget(&mut self) -> bool {
        let Some(controller) = &mut self.controller else { return false };
        let mut any = false;
        while let Ok(settled) = controller.settled.try_recv() {
            let Settled::Deployment { name, .. } = settled else { continue };
            self.source.forget(&name);
            any = true;
        }
        any
    }

    /// Orders something; says whether it was taken.
    pub async fn order(&self, order: Order) -> bool {
        let Some(controller) = &self.controller else { return false };
        let (reply, answer) = tokio::sync::oneshot::channel();
        if controller.core.messages.send(Message::Command(Command::Order(order, reply))).await.is_err() {
            return false;
        }
        answer.await.is_ok_and(|taken| taken.is_ok())
    }

    /// Asks the controller something; none where none is up.
    pub async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let controller = self.controller.as_ref()?;
        controller.core.messages.send(Message::Command(command(reply))).await.ok()?;
        answer.await.ok()
    }

    /// Tells the controller something.
    pub async fn message(&self, message: Message) {
        if let Some(controller) = &self.controller {
            controller.core.messages.send(message).await.expect("a core");
        }
    }

    /// What the controller shows.
    pub fn status(&self) -> Arc<evenkeel::status::Status> {
        self.controller.as_ref().map(|controller| controller.core.status.borrow().clone()).unwrap_or_default()
    }

    /// What is declared now.
    pub fn wanted(&self) -> Wants {
        self.chronicle.wants.last().map(|(_, wants)| wants.clone()).unwrap_or_default()
    }
}
