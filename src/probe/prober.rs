//! One task that checks every run it is told of, and tells what changed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::{FutureExt, StreamExt};
use tokio::sync::{Notify, mpsc};
use tokio::task::{self, AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::time::{DelayQueue, delay_queue};

use super::check::{self, LastCommand};
use super::schedule::{Course, News, Outcome, Rules};
use super::turns::{Crowd, Turns};
use crate::clock::Clock;
use crate::runtime::Runtime;
use crate::spec::{Check, Revision, RuntimeKind, ServiceSpec};
use crate::state::{HealthState, InstanceRef, ServiceName};

/// Connections that are checked side by side. One takes a socket and some kilobytes; with the longest time that is
/// commonly allowed (5 s) even 50 checks a second of one service that all hang leave half of them to others.
pub const CONNECTIONS_AT_ONCE: usize = 512;

/// Commands that run side by side: each is a process, and engines are known to lock up under many calls at once. One
/// service alone comes to half of that.
pub const COMMANDS_AT_ONCE: usize = 16;

/// A run that is to be checked.
#[derive(Clone)]
pub struct Subject {
    /// The instance.
    pub instance: InstanceRef,
    /// When its run started.
    pub since: DateTime<Utc>,
    /// Its service; what has no health block is not checked.
    pub spec: Arc<ServiceSpec>,
    /// Adapter of its runtime.
    pub runtime: Arc<dyn Runtime>,
    /// Whether it served until it was to be checked, when nothing checked it.
    pub served: bool,
}

impl Subject {
    fn key(&self) -> RunKey {
        (self.instance.runtime, self.instance.runtime_id.clone(), self.since)
    }
}

impl PartialEq for Subject {
    fn eq(&self, other: &Self) -> bool {
        let same_spec = Arc::ptr_eq(&self.spec, &other.spec) || self.spec == other.spec;
        self.instance == other.instance
            && (self.since, self.served) == (other.since, other.served)
            && same_spec
            && Arc::ptr_eq(&self.runtime, &other.runtime)
    }
}

/// What checks found out of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// The instance.
    pub instance: InstanceRef,
    /// When its run started.
    pub since: DateTime<Utc>,
    /// By whose checks.
    pub spec: Arc<ServiceSpec>,
    /// What is known of it from now on.
    pub health: HealthState,
    /// Why the check that is due is not made, where it waits for its turn for long.
    pub held_up: Option<String>,
}

/// A task that checks runs. It ends when this is dropped.
pub struct Prober {
    orders: Arc<Orders>,
    _task: JoinSet<()>,
}

/// What is to be checked, by deployment, as far as it was not read yet. Orders for one deployment replace each other, so
/// that nobody waits for the prober and there are no more of them than deployments.
#[derive(Default)]
struct Orders {
    unread: Mutex<BTreeMap<String, Vec<Subject>>>,
    changed: Notify,
}

impl Prober {
    /// Starts the task. Only changes are told.
    pub fn start(clock: Arc<dyn Clock>, tell: mpsc::Sender<Verdict>) -> Self {
        let orders = Arc::new(Orders::default());
        let mut task = JoinSet::new();
        let state = State {
            clock,
            orders: orders.clone(),
            tell,
            deployments: HashMap::new(),
            ids: HashMap::new(),
            runs: HashMap::new(),
            next_id: 0,
            due: DelayQueue::new(),
            connections: Lane::new(CONNECTIONS_AT_ONCE),
            commands: Lane::new(COMMANDS_AT_ONCE),
        };
        task.spawn(state.run());
        Self { orders, _task: task }
    }

    /// From now on exactly these runs of a deployment are checked. Those that were go on undisturbed, unless their health
    /// block differs: then they are checked anew at once, and a check under way is given up.
    pub fn check(&self, deployment: &str, subjects: Vec<Subject>) {
        let mut unread = self.orders.unread.lock().unwrap_or_else(PoisonError::into_inner);
        unread.insert(deployment.to_owned(), subjects);
        drop(unread);
        self.orders.changed.notify_one();
    }
}

/// What tells a run from others: the runtime, its own id of the instance, and the start.
type RunKey = (RuntimeKind, String, DateTime<Utc>);

/// Number of a run that is checked.
type Id = u64;

/// Runs that share places: those of one revision of a service, so that those of another one, which may mend what hangs,
/// don't wait for them.
type Group = Arc<(ServiceName, Revision)>;

/// One run that is checked.
struct Run {
    subject: Arc<Subject>,
    group: Group,
    course: Course,
    /// When its check is due, or, where that waits for its turn, when that is worth telling.
    due: Option<delay_queue::Key>,
    stage: Stage,
    /// Number of that check, or of the last one. What comes of an earlier one does not count any more.
    round: u64,
    last_command: LastCommand,
}

/// How far the next check of a run is.
enum Stage {
    /// It is not due.
    Ahead,
    /// It waits for its turn.
    Waiting(Kind),
    /// It is under way.
    UnderWay(AbortHandle),
}

/// Kinds of checks, each with places of its own, so that those of one never keep those of the other from theirs.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Connection,
    Command,
}

impl Kind {
    fn of(subject: &Subject) -> Self {
        match subject.spec.health.as_ref().map(|health| &health.check) {
            Some(Check::Command { .. }) => Self::Command,
            _ => Self::Connection,
        }
    }
}

/// The checks of one kind.
struct Lane {
    turns: Turns<Group, Id>,
    checks: JoinSet<Done>,
    /// Who holds the place of each check under way, also of one that was given up and is not over yet.
    holders: HashMap<task::Id, Group>,
}

impl Lane {
    fn new(places: usize) -> Self {
        Self { turns: Turns::new(places), checks: JoinSet::new(), holders: HashMap::new() }
    }

    /// The next check that is over, whose place is free then; nothing came of one that was given up.
    async fn over(&mut self) -> Option<Option<Done>> {
        let (task, done) = match self.checks.join_next_with_id().await? {
            Ok((task, done)) => (task, Some(done)),
            Err(error) => (error.id(), None),
        };
        if let Some(group) = self.holders.remove(&task) {
            self.turns.give_back(&group);
        }
        Some(done)
    }
}

/// What came of one check.
struct Done {
    id: Id,
    round: u64,
    began: Instant,
    outcome: Outcome,
}

struct State {
    clock: Arc<dyn Clock>,
    orders: Arc<Orders>,
    tell: mpsc::Sender<Verdict>,
    deployments: HashMap<String, HashSet<Id>>,
    ids: HashMap<RunKey, Id>,
    runs: HashMap<Id, Run>,
    next_id: Id,
    due: DelayQueue<Id>,
    connections: Lane,
    commands: Lane,
}

impl State {
    async fn run(mut self) {
        let orders = self.orders.clone();
        loop {
            while let Some(id) = self.next() {
                if !self.tell(id).await {
                    return;
                }
            }
            let checked = tokio::select! {
                biased;
                () = orders.changed.notified() => {
                    self.take_orders();
                    None
                }
                Some(done) = self.connections.over() => done.and_then(|done| self.take(done)),
                Some(done) = self.commands.over() => done.and_then(|done| self.take(done)),
                Some(due) = self.due.next(), if !self.due.is_empty() => self.came_due(due.into_inner()),
            };
            if let Some(id) = checked
                && !self.tell(id).await
            {
                return;
            }
        }
    }

    /// Begins the check of a run whose turn it is.
    fn next(&mut self) -> Option<Id> {
        let id = self.connections.turns.next().or_else(|| self.commands.turns.next())?;
        self.begin(id);
        Some(id)
    }

    /// Tells what is worth telling of a run; gives whether anybody listens.
    async fn tell(&mut self, id: Id) -> bool {
        let Some(run) = self.runs.get_mut(&id) else { return true };
        let Some(News { health, held_up }) = run.course.news(Instant::now()) else { return true };
        let Subject { instance, since, spec, .. } = run.subject.as_ref();
        let verdict = Verdict { instance: instance.clone(), since: *since, spec: spec.clone(), health, held_up };
        self.tell.send(verdict).await.is_ok()
    }

    fn take_orders(&mut self) {
        let unread = std::mem::take(&mut *self.orders.unread.lock().unwrap_or_else(PoisonError::into_inner));
        for (deployment, subjects) in unread {
            let before = self.deployments.remove(&deployment).unwrap_or_default();
            let runs = subjects.len();
            let now: HashSet<Id> = subjects.into_iter().filter_map(|subject| self.admit(subject, runs)).collect();
            for id in before.difference(&now) {
                self.dismiss(*id);
            }
            if !now.is_empty() {
                self.deployments.insert(deployment, now);
            }
        }
    }

    /// Takes a run that is to be checked, one of so many.
    fn admit(&mut self, subject: Subject, runs: usize) -> Option<Id> {
        let rules = Rules::of(subject.spec.health.as_ref()?);
        let key = subject.key();
        if let Some(id) = self.ids.get(&key).copied() {
            let run = self.runs.get_mut(&id)?;
            let differs = run.subject.spec.health != subject.spec.health;
            run.subject = Arc::new(subject);
            if differs {
                self.check_anew(id, rules, runs);
            }
            return Some(id);
        }
        let age = (self.clock.now() - subject.since).to_std().unwrap_or(Duration::ZERO);
        let (course, due) = Course::begin(rules, &subject.instance.runtime_id, age, subject.served, Instant::now());
        self.next_id += 1;
        let id = self.next_id;
        let due = Some(self.due.insert_at(id, due));
        self.ids.insert(key, id);
        let group = Arc::new((subject.instance.id.service_name(), subject.instance.id.revision.clone()));
        let (last_command, stage) = (LastCommand::default(), Stage::Ahead);
        self.runs.insert(id, Run { subject: Arc::new(subject), group, course, due, stage, round: 0, last_command });
        Some(id)
    }

    fn dismiss(&mut self, id: Id) {
        self.give_up(id);
        if let Some(run) = self.runs.remove(&id) {
            self.ids.remove(&run.subject.key());
        }
    }

    /// Checks a run by other rules from now on.
    fn check_anew(&mut self, id: Id, rules: Rules, runs: usize) {
        self.give_up(id);
        let Some(run) = self.runs.get_mut(&id) else { return };
        let due = run.course.adjust(rules, runs, Instant::now());
        run.due = Some(self.due.insert_at(id, due));
    }

    /// Gives up the check of a run that is under way, waits for its turn or is not due yet.
    fn give_up(&mut self, id: Id) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        if let Some(due) = run.due.take() {
            self.due.remove(&due);
        }
        // It may have ended just now, and then it can't be aborted any more.
        run.round += 1;
        let group = run.group.clone();
        match std::mem::replace(&mut run.stage, Stage::Ahead) {
            Stage::Ahead => {}
            Stage::Waiting(kind) => self.lane(kind).turns.withdraw(&group, &id),
            Stage::UnderWay(check) => check.abort(),
        }
    }

    const fn lane(&mut self, kind: Kind) -> &mut Lane {
        match kind {
            Kind::Connection => &mut self.connections,
            Kind::Command => &mut self.commands,
        }
    }

    /// Begins the check of a run that is due, or lets it wait for its turn. One that waits has done so for long then; gives
    /// the run where there may be something to tell of it.
    fn came_due(&mut self, id: Id) -> Option<Id> {
        let run = self.runs.get_mut(&id)?;
        run.due = None;
        let (group, kind) = (run.group.clone(), Kind::of(&run.subject));
        if let Stage::Waiting(kind) = run.stage {
            let crowd = self.lane(kind).turns.crowd();
            self.runs.get_mut(&id)?.course.hold_up(held_up_by(&crowd, kind));
            return Some(id);
        }
        if self.lane(kind).turns.ask(&group, id) {
            self.begin(id);
            return None;
        }
        let run = self.runs.get_mut(&id)?;
        run.stage = Stage::Waiting(kind);
        run.due = Some(self.due.insert(id, run.course.patience()));
        None
    }

    /// Begins the check of a run, whose place is taken.
    fn begin(&mut self, id: Id) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        if let Some(due) = run.due.take() {
            self.due.remove(&due);
        }
        run.course.has_turn();
        run.round += 1;
        let (subject, group, round) = (run.subject.clone(), run.group.clone(), run.round);
        let (limit, last) = (run.course.rules().timeout, run.last_command.clone());
        let began = Instant::now();
        let lane = match Kind::of(&subject) {
            Kind::Connection => &mut self.connections,
            Kind::Command => &mut self.commands,
        };
        let check = lane.checks.spawn(async move {
            let outcome = AssertUnwindSafe(check(&subject, &last, limit)).catch_unwind().await;
            let outcome = outcome.unwrap_or_else(|_| Outcome::NotMade("the check panicked".to_owned()));
            Done { id, round, began, outcome }
        });
        lane.holders.insert(check.id(), group);
        run.stage = Stage::UnderWay(check);
    }

    /// Takes a result; gives the run that it is of, where it counts.
    fn take(&mut self, done: Done) -> Option<Id> {
        let run = self.runs.get_mut(&done.id).filter(|run| run.round == done.round)?;
        let next = run.course.take(done.outcome, done.began, Instant::now());
        run.stage = Stage::Ahead;
        run.due = Some(self.due.insert_at(done.id, next));
        Some(done.id)
    }
}

/// Why a check of this kind waits for its turn.
fn held_up_by(crowd: &Crowd<Group>, kind: Kind) -> String {
    let (kind, places) = match kind {
        Kind::Connection => ("tcp and http", CONNECTIONS_AT_ONCE),
        Kind::Command => ("command", COMMANDS_AT_ONCE),
    };
    let most = crowd.most.as_ref().map(|(group, held)| format!(", most of them ({held}) of {}", group.0));
    format!(
        "its check waits for its turn, which comes when others end: {} of at most {places} {kind} checks are under way{}",
        crowd.taken,
        most.unwrap_or_default()
    )
}

async fn check(subject: &Subject, last: &LastCommand, limit: Duration) -> Outcome {
    let Subject { instance, spec, runtime, .. } = subject;
    match &spec.health {
        Some(health) => check::run(&health.check, spec, runtime.as_ref(), instance, last, limit).await,
        None => Outcome::NotMade("there is no health block".to_owned()),
    }
}

#[cfg(test)]
mod tests;
