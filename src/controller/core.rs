//! The core: one task that owns all mutable state, and makes no runtime call itself.
//!
//! Everything that happens reaches it as a [`Message`]; a message changes what is known and asks for the keys that
//! it concerns, nothing more. Due keys are planned from everything that is known, and the plan's lanes run as tasks
//! of their own, which report back. So no lock is ever held across a runtime call, a key is never planned twice
//! at once, and no deployment waits for another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::cache::Cache;
use super::declared::Declared;
use super::event::Event;
use super::flight::Flights;
use super::health::Checks;
use super::images::FollowedTags;
use super::jobs::{Jobs, KeepJobs};
use super::ledger::Ledger;
use super::lists::Lists;
use super::memory::Keeper;
use super::message::{Command, Message};
use super::observe::{self, Connect};
use super::publish::Board;
use super::queue::Queue;
use super::record::Record;
use super::remnants::Left;
use super::scaling::Scalers;
use super::sessions::{KeptSessions, Sessions};
use crate::clock::Clock;
use crate::execute::Gate;
use crate::plan::revisions::Memory;
use crate::runtime::{Runtime, Volumes};
use crate::spec::RuntimeKind;
use crate::status::Status;
use crate::store::{ActivityRecords, RemovalId, RemovalRequest};

/// Messages that may wait; senders wait beyond that, which slows events down and loses none.
const MESSAGES: usize = 1024;

/// Messages taken in one go before planning, so that a burst of events leads to one plan per key.
const BURST: usize = 256;

/// What is said of a runtime until it was tried once.
pub(super) const NOT_REACHED_YET: &str = "not reached yet";

/// What the core is made of.
pub struct Parts {
    /// Runtimes to attach to.
    pub runtimes: Vec<Arc<dyn Connect>>,
    /// Runtime of services that name none.
    pub default_runtime: RuntimeKind,
    /// What the sources say.
    pub declared: watch::Receiver<Arc<Declared>>,
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
    /// What may be acted on.
    pub scope: Scope,
    /// Deployments whose removal was asked for by name before and is not done.
    pub removing: BTreeMap<String, RemovalRequest>,
    /// What is remembered of deployments, by name.
    pub memory: BTreeMap<String, Memory>,
    /// Keeps what is to be remembered, where anybody does.
    pub keeper: Option<Arc<dyn Keeper>>,
    /// What is remembered of jobs.
    pub jobs: Jobs,
    /// What is remembered of the use of instances.
    pub activity: ActivityRecords,
    /// What is remembered of sessions.
    pub sessions: KeptSessions,
    /// Told what happened, where anybody keeps a record. What does not fit is left out.
    pub events: Option<mpsc::Sender<Event>>,
    /// Told what needs no remembering any more. What does not fit is told again later.
    pub settled: Option<mpsc::Sender<Settled>>,
}

/// What needs no remembering any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// The removal of a deployment by name: it is wanted again.
    Removal(RemovalId),
    /// A deployment: nothing of it is left.
    Deployment {
        /// Which.
        name: String,
        /// Its removal by name, where that was asked for.
        removal: Option<RemovalId>,
    },
}

/// A removal that was asked for by name.
#[derive(Debug)]
pub(super) struct Removal {
    /// The last request for it.
    pub id: RemovalId,
    /// What becomes of named volumes.
    pub volumes: Volumes,
    /// Runtimes that have removed what was shared since it was asked for.
    pub torn_down: BTreeSet<RuntimeKind>,
}

impl Removal {
    const fn of(RemovalRequest { id, volumes }: RemovalRequest) -> Self {
        Self { id, volumes, torn_down: BTreeSet::new() }
    }
}

/// What may be acted on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Nothing.
    Nothing,
    /// These deployments.
    Only(BTreeSet<String>),
    /// Everything, orphans included, but what directories declared that are not watched any more.
    Watched,
    /// Everything, orphans included.
    Everything,
}

/// A runtime that answers, or did.
pub struct Attached {
    pub runtime: Arc<dyn Runtime>,
    pub gate: Arc<Gate>,
    pub(super) lists: Lists,
}

/// A running core. Dropping it ends every task of it at once, like a crash; workloads go on.
pub struct Core {
    /// Where messages go.
    pub messages: mpsc::Sender<Message>,
    /// What is shown.
    pub status: watch::Receiver<Arc<Status>>,
    _tasks: JoinSet<()>,
}

impl Core {
    /// Starts the core and its observers.
    pub fn start(parts: Parts) -> Self {
        let (messages, inbox) = mpsc::channel(MESSAGES);
        let (board, status) = Board::new();
        let mut tasks = JoinSet::new();
        for connect in &parts.runtimes {
            tasks.spawn(observe::follow(connect.clone(), messages.clone()));
        }
        tasks.spawn(State::new(parts, messages.clone(), board).run(inbox));
        Self { messages, status, _tasks: tasks }
    }
}

/// All mutable state.
pub struct State {
    pub(super) runtimes: BTreeMap<RuntimeKind, Attached>,
    pub(super) unreachable: BTreeMap<RuntimeKind, String>,
    pub(super) expected: BTreeSet<RuntimeKind>,
    pub(super) default_runtime: RuntimeKind,
    pub(super) cache: Cache,
    pub(super) queue: Queue,
    pub(super) flights: Flights,
    pub(super) checks: Checks,
    pub(super) scalers: Scalers,
    pub(super) images: FollowedTags,
    pub(super) ledger: Ledger,
    pub(super) sessions: Sessions,
    pub(super) left: Left,
    pub(super) records: BTreeMap<String, Record>,
    pub(super) removing: BTreeMap<String, Removal>,
    pub(super) memory: BTreeMap<String, Memory>,
    pub(super) keeper: Option<Arc<dyn Keeper>>,
    /// When time alone can change something of a deployment's rollouts.
    pub(super) rollout_looks: BTreeMap<String, DateTime<Utc>>,
    pub(super) declared: Arc<Declared>,
    pub(super) scope: Scope,
    pub(super) board: Board,
    pub(super) messages: mpsc::Sender<Message>,
    pub(super) settled: Option<mpsc::Sender<Settled>>,
    pub(super) events: Option<mpsc::Sender<Event>>,
    pub(super) job_keeper: Option<Arc<dyn KeepJobs>>,
    pub(super) lanes: JoinSet<()>,
    declarations: watch::Receiver<Arc<Declared>>,
    clock: Arc<dyn Clock>,
}

impl State {
    fn new(parts: Parts, messages: mpsc::Sender<Message>, board: Board) -> Self {
        let expected: BTreeSet<RuntimeKind> = parts.runtimes.iter().map(|connect| connect.kind()).collect();
        let unreachable = expected.iter().map(|kind| (*kind, NOT_REACHED_YET.to_owned())).collect();
        Self {
            runtimes: BTreeMap::new(),
            unreachable,
            expected,
            default_runtime: parts.default_runtime,
            cache: Cache::default(),
            queue: Queue::default(),
            flights: Flights::default(),
            checks: Checks::new(parts.clock.clone(), messages.clone()),
            scalers: Scalers::default(),
            images: FollowedTags::default(),
            ledger: Ledger::new(parts.activity),
            left: Left::default(),
            sessions: Sessions::new(parts.sessions, parts.clock.now()),
            records: parts.jobs.records.into_iter().map(|(name, jobs)| (name, Record::of(jobs))).collect(),
            removing: parts.removing.into_iter().map(|(name, request)| (name, Removal::of(request))).collect(),
            memory: parts.memory,
            keeper: parts.keeper,
            rollout_looks: BTreeMap::new(),
            declared: Arc::new(Declared::default()),
            scope: parts.scope,
            board,
            messages,
            settled: parts.settled,
            events: parts.events,
            job_keeper: parts.jobs.keeper,
            lanes: JoinSet::new(),
            declarations: parts.declared,
            clock: parts.clock,
        }
    }

    /// The time, both ways: for planning, and for sleeping.
    pub(super) fn now(&self) -> (DateTime<Utc>, Instant) {
        (self.clock.now(), Instant::now())
    }

    async fn run(mut self, mut inbox: mpsc::Receiver<Message>) {
        self.take_declared();
        loop {
            let deadline = self.deadline();
            tokio::select! {
                // In this order, so that equal courses of events lead to equal courses of action. Nobody is left
                // out: declarations are rare, and what is due is looked at in every turn.
                biased;
                changed = self.declarations.changed() => match changed {
                    Ok(()) => self.take_declared(),
                    // No source is left to say anything new; what it said last still holds.
                    Err(_) => self.without_declarations(&mut inbox).await,
                },
                message = inbox.recv() => match message {
                    Some(message) => self.take(message, &mut inbox),
                    None => return,
                },
                () = sleep_until(deadline) => {}
            }
            self.ledger.pass(self.now());
            while self.lanes.try_join_next().is_some() {}
            self.relist();
            self.measure_due();
            self.ask_for_due_images();
            self.tell_needed_images();
            self.sample_due();
            self.sweep_sessions();
            self.look_for_remnants();
            self.plan_due();
            self.publish_due();
        }
    }

    /// One turn without sources, so that the loop doesn't spin on their closed channel.
    async fn without_declarations(&mut self, inbox: &mut mpsc::Receiver<Message>) {
        let deadline = self.deadline();
        tokio::select! {
            message = inbox.recv() => if let Some(message) = message { self.take(message, inbox) },
            () = sleep_until(deadline) => {}
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let lists = self.runtimes.values().filter_map(|attached| attached.lists.next());
        // Before the sources are synced no key is planned, so none is a reason to wake.
        let queued = self.queue.next().filter(|_| self.declared.synced);
        let timed = self.scalers.next().into_iter().chain(self.images.next()).chain(self.ledger.next());
        let timed = timed.chain(self.next_of_sessions()).chain(self.next_of_remnants()).chain(self.board.due());
        lists.chain(queued).chain(timed).min()
    }

    fn take(&mut self, message: Message, inbox: &mut mpsc::Receiver<Message>) {
        self.handle(message);
        for _ in 0..BURST {
            match inbox.try_recv() {
                Ok(message) => self.handle(message),
                Err(_) => return,
            }
        }
    }

    fn handle(&mut self, message: Message) {
        self.ledger.pass(self.now());
        match message {
            Message::Attached(runtime) => self.attached(runtime),
            Message::Unreachable(kind, why) => self.lost(kind, why),
            Message::Subscribed(kind) => self.list_now(kind),
            Message::Event(kind, event) => self.event(kind, event),
            Message::Listed(kind, call, listing) => self.listed(kind, call, listing),
            Message::Reported(flight, report) => self.reported(flight, *report),
            Message::Progress(flight, words) => self.progressed(flight, words),
            Message::Landed(flight) => self.landed(flight),
            Message::Checked(verdict) => {
                if let Some(deployment) = self.checks.learn(verdict) {
                    self.queue.add(&deployment, Instant::now());
                }
            }
            Message::Measured(measured) => self.measured(measured),
            Message::ImageFound(kind, reference, found) => self.image_found(kind, reference, found),
            Message::Sampled(deployment, sample) => self.sampled(&deployment, sample),
            Message::Used(news) => self.used(news),
            Message::Remembered(deployment, changes, kept) => self.remembered(&deployment, changes, kept),
            Message::Remnants(kind, news) => self.remnant_news(kind, news),
            Message::Session(message) => self.session_message(*message),
            Message::Command(command) => self.command(command),
        }
    }

    /// Notes what happened, for the record.
    pub(super) fn record_event(&self, deployment: Option<&str>, kind: &'static str, message: String) {
        let Some(events) = &self.events else { return };
        let event = Event { at: self.clock.now(), deployment: deployment.map(str::to_owned), kind, message };
        // History must not hold up what it is about.
        let _ = events.try_send(event);
    }

    fn take_declared(&mut self) {
        let before = std::mem::replace(&mut self.declared, self.declarations.borrow_and_update().clone());
        for problem in self.declared.problems.iter().filter(|problem| !before.problems.contains(problem)) {
            let place = format!("{}:{}:{}", problem.file, problem.line, problem.column);
            self.record_event(None, "SourceProblem", format!("{place}: {} ({})", problem.message, problem.effect));
        }
        // What is declared again after its removal was asked for is wanted again.
        let declared = &self.declared.desired.deployments;
        let anew = |name: &String| declared.contains_key(name) && !before.desired.deployments.contains_key(name);
        let wanted: Vec<String> = self.removing.keys().filter(|name| anew(name)).cloned().collect();
        for name in wanted {
            self.settle_removal(&name);
        }
        self.sessions.touch();
        self.enqueue_all();
    }

    pub(super) fn enqueue_all(&mut self) {
        let now = Instant::now();
        let declared = self.declared.desired.deployments.keys().cloned();
        let known = self.cache.deployments();
        let removed = self.declared.removed.keys().cloned();
        // A removal by name may be all that is known of a deployment: volumes are left of it.
        let removing = self.removing.keys().cloned();
        let remembered = self.memory.keys().cloned();
        for name in
            declared.chain(known).chain(removed).chain(removing).chain(remembered).chain(self.board.deployments())
        {
            self.queue.add(&name, now);
        }
        self.board.touch(now, self.cache.len());
    }

    fn plan_due(&mut self) {
        if !self.declared.synced {
            return;
        }
        for deployment in self.queue.take_due(Instant::now()) {
            self.reconcile(&deployment);
        }
    }

    fn command(&mut self, command: Command) {
        // A caller that has gone needs no answer.
        match command {
            Command::Settle(reply) => {
                if self.declarations.has_changed().unwrap_or(false) {
                    self.take_declared();
                }
                self.plan_due();
                self.publish();
                let _ = reply.send(());
            }
            Command::NoteClocks(reply) => {
                self.note_clocks();
                let _ = reply.send(());
            }
            Command::Preview(deployments, reply) => {
                let _ = reply
                    .send(deployments.iter().map(|(name, desired)| self.preview(name, desired.as_ref())).collect());
            }
            Command::Snapshots(reply) => {
                let _ = reply.send(self.snapshots());
            }
            Command::Instances(target, reply) => {
                let instances = self.cache.of(&target.deployment).filter(|instance| target.covers(&instance.id));
                let _ = reply.send(instances.cloned().collect());
            }
            Command::WhyStopped(one, reply) => drop(reply.send(self.why_stopped(&one))),
            Command::Runtime(kind, reply) => {
                let _ = reply.send(self.runtimes.get(&kind).map(|attached| attached.runtime.clone()));
            }
            Command::Remove(requests, reply) => {
                for (name, request) in requests {
                    self.queue.add(&name, Instant::now());
                    self.removing.insert(name, Removal::of(request));
                }
                let _ = reply.send(());
            }
            Command::Want(names, reply) => {
                for name in names {
                    if let Some(record) = self.records.get_mut(&name) {
                        record.begin_anew();
                    }
                    self.try_again(&name);
                    self.ask_for_images(&name);
                    self.settle_removal(&name);
                    self.queue.add(&name, Instant::now());
                }
                let _ = reply.send(());
            }
            Command::Order(order, reply) => {
                let _ = reply.send(self.order(&order));
            }
            Command::Rollouts(target, reply) => {
                let _ = reply.send(self.rollouts_of(&target));
            }
            Command::Trigger(trigger) => self.trigger(trigger),
            Command::Wake(target, reply) => drop(reply.send(self.wake(&target))),
            Command::Touch(target, reply) => drop(reply.send(self.touch_unclaimed(&target))),
            Command::ExplainIdle(target, reply) => drop(reply.send(self.explain_idle(&target))),
            Command::Orphans(reply) => self.tell_orphans(reply),
            Command::ClearRemnants(reply) => {
                self.want_remnants_cleared();
                let _ = reply.send(());
            }
            Command::Session(command) => self.session_command(command),
            Command::AttendTo(names, reply) => {
                names.iter().for_each(|name| self.queue.add(name, Instant::now()));
                if let Scope::Only(attended) = &mut self.scope {
                    attended.extend(names);
                }
                let _ = reply.send(());
            }
        }
    }

    /// Forgets a removal by name, and has the store forget it as soon as it has room for that.
    fn settle_removal(&mut self, deployment: &str) {
        let Some(Removal { id, .. }) = self.removing.remove(deployment) else { return };
        let Some(store) = &self.settled else { return };
        if let Err(TrySendError::Full(settled)) = store.try_send(Settled::Removal(id)) {
            let store = store.clone();
            // A store that has ended is read by the next controller.
            self.lanes.spawn(async move { store.send(settled).await.unwrap_or_default() });
        }
    }

    /// Whether the store was told, where one is to be told.
    pub(super) fn settle(&mut self, settled: Settled) -> bool {
        self.settled.as_ref().is_none_or(|store| store.try_send(settled).is_ok())
    }

    /// Whether the sources were read and every runtime has either been listed or failed to be.
    pub(super) fn synced(&self) -> bool {
        self.declared.synced
            && self.expected.iter().all(|kind| {
                self.runtimes.get(kind).is_some_and(|attached| attached.lists.succeeded_once())
                    || self.unreachable.get(kind).is_some_and(|why| why != NOT_REACHED_YET)
            })
    }

    /// Whether anything depends on the runtime.
    pub(super) fn is_used(&self, kind: RuntimeKind) -> bool {
        let services = self.declared.desired.deployments.values().flat_map(|deployment| deployment.services.values());
        self.default_runtime == kind
            || self.runtimes.contains_key(&kind)
            || services.map(|service| service.runtime).any(|runtime| runtime == kind)
    }

    pub(super) fn covers(&self, deployment: &str) -> bool {
        match &self.scope {
            Scope::Nothing => false,
            Scope::Only(names) => names.contains(deployment),
            Scope::Watched => !self.declared.unwatched.contains_key(deployment),
            Scope::Everything => true,
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::super::lists::RELIST;
    use super::*;
    use crate::clock::SystemClock;
    use crate::runtime::sim::{Faults, World};
    use crate::state::Owner;
    use std::time::Duration;

    const SIM: RuntimeKind = RuntimeKind::Sim;

    fn state() -> (State, mpsc::Receiver<Message>, Arc<World>) {
        let clock = Arc::new(SystemClock);
        let (messages, inbox) = mpsc::channel(MESSAGES);
        let parts = Parts {
            runtimes: Vec::new(),
            default_runtime: SIM,
            declared: watch::channel(Arc::default()).1,
            clock: clock.clone(),
            scope: Scope::Everything,
            removing: BTreeMap::new(),
            memory: BTreeMap::new(),
            keeper: None,
            jobs: Jobs::default(),
            activity: Default::default(),
            sessions: KeptSessions::default(),
            events: None,
            settled: None,
        };
        let mut state = State::new(parts, messages, Board::new().0);
        let world = World::new(clock, 1, Faults::none());
        state.attached(Arc::new(world.runtime(Owner("test".to_owned()))));
        (state, inbox, world)
    }

    /// Takes the next result of a list.
    async fn take_result(state: &mut State, inbox: &mut mpsc::Receiver<Message>) {
        let result = inbox.recv().await.expect("the result of a list");
        assert!(matches!(result, Message::Listed(..)));
        state.handle(result);
        state.publish_due();
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_list_is_due_a_while_after_one_that_succeeded() {
        let (mut state, mut inbox, _world) = state();
        state.list_now(SIM);
        state.relist();
        assert_eq!((state.lanes.len(), state.deadline()), (1, None));
        take_result(&mut state, &mut inbox).await;
        assert_eq!(state.deadline(), Some(Instant::now() + RELIST));
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_hangs_holds_up_none_that_is_asked_for_and_does_not_gainsay_it() {
        let (mut state, mut inbox, world) = state();
        let day = Duration::from_secs(24 * 3600);
        world.set_faults(Faults { slow: 1.0, slow_for: day, ..Faults::none() });
        state.list_now(SIM);
        state.relist();
        // It is asked for a first time, and hangs from then on.
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.set_faults(Faults::none());
        let asked = Instant::now();
        state.handle(Message::Subscribed(SIM));
        state.relist();
        take_result(&mut state, &mut inbox).await;
        assert_eq!((asked.elapsed(), state.unreachable.get(&SIM)), (Duration::ZERO, None));
        take_result(&mut state, &mut inbox).await;
        assert_eq!((asked.elapsed().as_secs(), state.unreachable.get(&SIM)), (59, None));
        assert_eq!(state.deadline(), Some(asked + RELIST));
    }
}
