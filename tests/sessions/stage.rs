//! A machine, a database that outlives controllers, and at most one controller at a time.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, Utc};
use evenkeel::clock::{Clock, VirtualClock};
use evenkeel::controller::{
    AcquireRequest, Acquired, Changed, Claim, Command, Connected, Core, Declared, EngineError, Entry, IdleReport,
    KeepSessions, Kept, KeptSessions, Message, Order, Parts, Scope, SessionCommand, SessionRequest, SessionStats,
    SessionVerb, SessionView, desired,
};
use evenkeel::runtime::Runtime as _;
use evenkeel::runtime::sim::{Faults, World};
use evenkeel::spec::{RuntimeKind, merge, parse};
use evenkeel::state::{Desired, Instance, InstanceRef, Owner, ServiceName, Session, SessionId, Target, Token};
use evenkeel::status::{ServiceView, Status};
use evenkeel::store::SessionNote;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

/// Runs a future on one thread whose time passes only while nothing can be done.
pub fn in_virtual_time<T>(story: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().expect("a runtime").block_on(story)
}

/// What is counted of stories.
pub const COUNTED: [&str; 6] = ["claims met", "claims refused", "timeouts", "dead sandboxes", "takeovers", "crashes"];

/// What is told of a story.
#[derive(Clone, Default)]
pub struct Trace(Arc<Mutex<(Vec<String>, [u64; 6])>>);

impl Trace {
    pub fn note(&self, line: String) {
        self.0.lock().expect("a trace").0.push(line);
    }

    pub fn count(&self, what: usize, more: u64) {
        self.0.lock().expect("a trace").1[what] += more;
    }

    pub fn lines(&self) -> Vec<String> {
        self.0.lock().expect("a trace").0.clone()
    }

    pub fn counts(&self) -> [u64; 6] {
        self.0.lock().expect("a trace").1
    }
}

/// Sessions as a database keeps them; writing takes a while, in which a controller may be killed.
pub struct Book {
    since: DateTime<Utc>,
    written: Mutex<Written>,
}

#[derive(Default)]
struct Written {
    sessions: BTreeMap<SessionId, Session>,
    spent: BTreeMap<(RuntimeKind, String), ServiceName>,
    /// Of which controller notes are taken.
    controller: u64,
    waiting: VecDeque<(u64, SessionNote, Option<Kept>)>,
}

/// How long it takes to write a note down.
const WRITING: Duration = Duration::from_millis(3);

/// The book in the hands of one controller.
struct Hand {
    book: Arc<Book>,
    controller: u64,
}

impl KeepSessions for Hand {
    fn keep(&self, note: SessionNote, kept: Option<Kept>) {
        self.book.written.lock().expect("a book").waiting.push_back((self.controller, note, kept));
        let book = self.book.clone();
        tokio::spawn(async move {
            tokio::time::sleep(WRITING).await;
            book.write_one();
        });
    }
}

impl Book {
    fn new(since: DateTime<Utc>) -> Arc<Self> {
        Arc::new(Self { since, written: Mutex::default() })
    }

    fn write_one(&self) {
        let mut written = self.written.lock().expect("a book");
        let Some((controller, note, kept)) = written.waiting.pop_front() else { return };
        if controller != written.controller {
            return;
        }
        match note {
            SessionNote::Session(session) => drop(written.sessions.insert(session.id.clone(), *session)),
            SessionNote::Forget(id) => drop(written.sessions.remove(&id)),
            SessionNote::Spent { pool, runtime, runtime_id } => {
                written.spent.insert((runtime, runtime_id), pool);
            }
            SessionNote::Removed { runtime, runtime_id } => drop(written.spent.remove(&(runtime, runtime_id))),
        }
        if let Some(kept) = kept {
            let _ = kept.send(Ok(()));
        }
    }

    /// What the next controller finds, and where it writes.
    fn open(self: &Arc<Self>) -> KeptSessions {
        let mut written = self.written.lock().expect("a book");
        written.controller += 1;
        let hand = Hand { book: self.clone(), controller: written.controller };
        KeptSessions {
            sessions: written.sessions.values().cloned().collect(),
            spent: written.spent.clone(),
            since: Some(self.since),
            keeper: Some(Arc::new(hand)),
            follows: written.controller > 1,
        }
    }

    /// What is not written yet is lost.
    fn lose(&self) {
        self.written.lock().expect("a book").controller += 1;
    }
}

struct Controller {
    core: Core,
    declared: watch::Sender<Arc<Declared>>,
}

/// Everything that a story is played on.
pub struct Stage {
    pub world: Arc<World>,
    pub trace: Trace,
    clock: Arc<VirtualClock>,
    book: Arc<Book>,
    spec: String,
    controller: Option<Controller>,
}

pub fn owner() -> Owner {
    Owner("ours".to_owned())
}

pub fn pool() -> ServiceName {
    ServiceName { deployment: "demo".to_owned(), service: "box".to_owned() }
}

/// A deployment with a pool, of the given fields.
pub fn spec(image: &str, fields: &str) -> String {
    format!("version: v1\ndeployment: demo\nservices:\n  box:\n    image: {{name: {image}}}\n{fields}")
}

impl Stage {
    /// A machine on which a controller runs.
    pub async fn new(seed: u64, faults: Faults, spec: String, trace: Trace) -> Self {
        let start = "2026-01-01T00:00:00Z".parse().expect("a time");
        let clock = Arc::new(VirtualClock::starting_at(start));
        let world = World::new(clock.clone(), seed, faults);
        let book = Book::new(clock.now());
        let mut stage = Self { world, trace, clock, book, spec, controller: None };
        stage.start();
        stage
    }

    pub fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    pub fn note(&self, line: impl std::fmt::Display) {
        self.trace.note(format!("{} {line}", self.now().format("%H:%M:%S%.3f")));
    }

    pub fn is_up(&self) -> bool {
        self.controller.is_some()
    }

    /// Starts a controller on what is there.
    pub fn start(&mut self) {
        self.note("the controller starts");
        let (declared, declarations) = watch::channel(Arc::new(Declared::default()));
        let core = Core::start(Parts {
            runtimes: vec![Arc::new(Connected(Arc::new(self.world.runtime(owner()))))],
            default_runtime: RuntimeKind::Sim,
            declared: declarations,
            clock: self.clock.clone(),
            scope: Scope::Everything,
            removing: BTreeMap::new(),
            memory: BTreeMap::new(),
            keeper: None,
            jobs: Default::default(),
            activity: Default::default(),
            sessions: self.book.open(),
            events: None,
            settled: None,
        });
        self.controller = Some(Controller { core, declared });
        self.declare(self.spec.clone());
    }

    /// Ends the controller at once, wherever it is.
    pub async fn crash(&mut self) {
        self.note("the controller is killed");
        self.controller = None;
        self.book.lose();
        // Tasks end when they are looked at next.
        tokio::task::yield_now().await;
    }

    /// Declares this; nothing where the text is empty.
    pub fn declare(&mut self, spec: String) {
        self.spec = spec;
        let merged = merge(&[(PathBuf::from("/specs/a.yaml"), parse(&self.spec))]);
        let deployments =
            merged.deployments.values().map(|one| (one.name.clone(), desired(one, RuntimeKind::Sim))).collect();
        if let Some(controller) = &self.controller {
            let declared = Declared { synced: true, desired: Desired { deployments }, ..Declared::default() };
            controller.declared.send_replace(Arc::new(declared));
        }
    }

    fn core(&self) -> Option<mpsc::Sender<Message>> {
        self.controller.as_ref().map(|controller| controller.core.messages.clone())
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> SessionCommand) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let message = Message::Command(Command::Session(command(reply)));
        self.core()?.send(message).await.ok()?;
        answer.await.ok()
    }

    /// Claims a member; the answer comes when it comes.
    pub async fn claim(&self, request: AcquireRequest) -> oneshot::Receiver<Result<Acquired, EngineError>> {
        let (reply, answer) = oneshot::channel();
        let claim = Claim::new(pool(), request, (self.now(), Instant::now()), reply);
        let message = Message::Command(Command::Session(SessionCommand::Acquire(Box::new(claim))));
        if let Some(core) = self.core() {
            core.send(message).await.unwrap_or_default();
        }
        answer
    }

    /// Claims a member and waits for it.
    pub async fn acquire(&self, request: AcquireRequest) -> Result<Acquired, EngineError> {
        self.claim(request).await.await.unwrap_or(Err(EngineError::Ended))
    }

    /// Does something with a session, as an engine does.
    pub async fn change(&self, session: &SessionId, token: &Token, verb: SessionVerb) -> Result<Changed, EngineError> {
        let request = SessionRequest { session: session.to_string(), token: Some(token.clone()), verb };
        let asked = self.ask(|reply| SessionCommand::Change(request, reply)).await;
        let mut changed = asked.unwrap_or(Err(EngineError::Ended))?;
        if let Some(kept) = changed.kept.take() {
            kept.await.map_err(|_| EngineError::Ended)?.expect("it is written");
        }
        if let Some(turn) = changed.turn.take() {
            turn.settle().await?;
        }
        Ok(changed)
    }

    pub async fn enter(&self, target: &str, token: Option<&Token>) -> Result<Entry, EngineError> {
        let target: Target = target.parse().expect("a target");
        let asked = self.ask(|reply| SessionCommand::Enter(target, token.cloned(), reply)).await;
        let mut entry = asked.unwrap_or(Err(EngineError::Ended))?;
        if let Some(kept) = entry.kept.take() {
            kept.await.map_err(|_| EngineError::Ended)?.expect("it is written");
        }
        if let Some(turn) = entry.turn.take() {
            drop(turn.open().await?);
        }
        Ok(entry)
    }

    /// Says that what a name covers is in use.
    pub async fn touch(&self, target: &str) -> Result<Vec<String>, EngineError> {
        let (target, (reply, answer)) = (target.parse().expect("a target"), oneshot::channel());
        let core = self.core().ok_or(EngineError::Ended)?;
        core.send(Message::Command(Command::Touch(target, reply))).await.unwrap_or_default();
        answer.await.unwrap_or(Err(EngineError::Ended))
    }

    /// Suspends the deployment, or lets it go on.
    pub async fn suspend(&self, suspend: bool) {
        let (reply, answer) = oneshot::channel();
        let order = Order::Suspend { deployment: "demo".to_owned(), suspend };
        let core = self.core().expect("a controller");
        core.send(Message::Command(Command::Order(order, reply))).await.unwrap_or_default();
        answer.await.expect("an answer").map(drop).expect("ordered");
    }

    /// What is known of the use of what a name covers.
    pub async fn idle(&self, target: &str) -> Option<Vec<IdleReport>> {
        let target: Target = target.parse().expect("a target");
        let (reply, answer) = oneshot::channel();
        self.core()?.send(Message::Command(Command::ExplainIdle(target, reply))).await.ok()?;
        answer.await.ok()?.ok()
    }

    pub async fn sessions(&self) -> Vec<SessionView> {
        self.ask(SessionCommand::List).await.unwrap_or_default()
    }

    pub async fn stats(&self) -> Option<SessionStats> {
        self.ask(SessionCommand::Stats).await
    }

    /// What is shown once everything is planned.
    pub async fn status(&self) -> Arc<Status> {
        let (reply, answer) = oneshot::channel();
        let Some(core) = self.core() else { return Arc::default() };
        core.send(Message::Command(Command::Settle(reply))).await.unwrap_or_default();
        answer.await.unwrap_or_default();
        self.controller.as_ref().map(|controller| controller.core.status.borrow().clone()).unwrap_or_default()
    }

    pub async fn view(&self) -> Option<ServiceView> {
        self.status().await.services.first().cloned()
    }

    /// Lets a frozen member run on, as somebody does who goes past the controller.
    pub async fn thaw_behind_its_back(&self, member: &InstanceRef) {
        let runtime = self.world.runtime(owner());
        runtime.suspend().expect("the sim freezes").resume(member).await.expect("it is there");
    }

    /// Every member on the machine.
    pub fn members(&self) -> Vec<Instance> {
        self.world.instances().into_iter().map(|(_, instance)| instance).collect()
    }
}
