//! One task that checks every run it is told of, and tells what changed.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::{FutureExt, StreamExt};
use tokio::sync::{Notify, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::time::{DelayQueue, delay_queue};

use super::check::{self, LastCommand};
use super::schedule::{Course, Outcome, Rules};
use crate::clock::Clock;
use crate::runtime::Runtime;
use crate::spec::{Check, RuntimeKind, ServiceSpec};
use crate::state::{HealthState, InstanceRef};

/// Connections that are checked side by side. One takes a socket and some kilobytes; with the longest time that is
/// commonly allowed (5 s) even 100 checks a second that all hang leave room for others.
pub const CONNECTIONS_AT_ONCE: usize = 512;

/// Commands that run side by side: each is a process, and engines are known to lock up under many calls at once.
pub const COMMANDS_AT_ONCE: usize = 8;

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The instance.
    pub instance: InstanceRef,
    /// When its run started.
    pub since: DateTime<Utc>,
    /// What is known of it from now on.
    pub health: HealthState,
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
            connections: JoinSet::new(),
            commands: JoinSet::new(),
            waiting: VecDeque::new(),
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

/// One run that is checked.
struct Run {
    subject: Arc<Subject>,
    course: Course,
    /// Its place in the queue, while no check of it is under way.
    due: Option<delay_queue::Key>,
    /// The check under way.
    check: Option<AbortHandle>,
    /// Number of that check, or of the last one. What comes of an earlier one does not count any more.
    round: u64,
    last_command: LastCommand,
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
    /// Checks under way that connect, and those that run a command.
    connections: JoinSet<Done>,
    commands: JoinSet<Done>,
    /// Runs whose command waits for its turn; one each at most.
    waiting: VecDeque<Id>,
}

impl State {
    async fn run(mut self) {
        let orders = self.orders.clone();
        loop {
            while self.commands.len() < COMMANDS_AT_ONCE
                && let Some(id) = self.waiting.pop_front()
            {
                self.begin(id);
            }
            // One that was ended with its run is no result.
            let done = tokio::select! {
                biased;
                () = orders.changed.notified() => {
                    self.take_orders();
                    continue;
                }
                Some(done) = self.connections.join_next(), if !self.connections.is_empty() => done,
                Some(done) = self.commands.join_next(), if !self.commands.is_empty() => done,
                Some(due) = self.due.next(), if self.has_room() && !self.due.is_empty() => {
                    self.came_due(due.into_inner());
                    continue;
                }
            };
            if let Ok(done) = done
                && let Some(verdict) = self.take(done)
                && self.tell.send(verdict).await.is_err()
            {
                return;
            }
        }
    }

    fn has_room(&self) -> bool {
        self.connections.len() < CONNECTIONS_AT_ONCE
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
        let last_command = LastCommand::default();
        self.runs.insert(id, Run { subject: Arc::new(subject), course, due, check: None, round: 0, last_command });
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
        if let Some(check) = run.check.take() {
            check.abort();
        }
        // It may have ended just now, and then it can't be aborted any more.
        run.round += 1;
        self.waiting.retain(|waiting| *waiting != id);
    }

    /// Begins the check of a run, or lets it wait for its turn.
    fn came_due(&mut self, id: Id) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        run.due = None;
        match is_command(&run.subject) && self.commands.len() >= COMMANDS_AT_ONCE {
            true => self.waiting.push_back(id),
            false => self.begin(id),
        }
    }

    fn begin(&mut self, id: Id) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let subject = run.subject.clone();
        let checks = if is_command(&subject) { &mut self.commands } else { &mut self.connections };
        let (limit, last) = (run.course.rules().timeout, run.last_command.clone());
        let began = Instant::now();
        run.round += 1;
        let round = run.round;
        run.check = Some(checks.spawn(async move {
            let outcome = AssertUnwindSafe(check(&subject, &last, limit)).catch_unwind().await;
            let outcome = outcome.unwrap_or_else(|_| Outcome::NotMade("the check panicked".to_owned()));
            Done { id, round, began, outcome }
        }));
    }

    /// Takes a result; gives what is worth telling.
    fn take(&mut self, done: Done) -> Option<Verdict> {
        let run = self.runs.get_mut(&done.id).filter(|run| run.round == done.round)?;
        let now = Instant::now();
        let next = run.course.take(done.outcome, done.began, now);
        run.check = None;
        run.due = Some(self.due.insert_at(done.id, next));
        let Subject { instance, since, .. } = run.subject.as_ref();
        run.course.news(now).map(|health| Verdict { instance: instance.clone(), since: *since, health })
    }
}

fn is_command(subject: &Subject) -> bool {
    subject.spec.health.as_ref().is_some_and(|health| matches!(health.check, Check::Command { .. }))
}

async fn check(subject: &Subject, last: &LastCommand, limit: Duration) -> Outcome {
    let Subject { instance, spec, runtime, .. } = subject;
    match &spec.health {
        Some(health) => check::run(&health.check, spec, runtime.as_ref(), instance, last, limit).await,
        None => Outcome::NotMade("there is no health block".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::clock::VirtualClock;
    use crate::runtime::sim::{Faults, Method, SimRuntime, World};
    use crate::runtime::{CreateRequest, Suspend};
    use crate::state::{InstanceId, Owner};

    struct Rig {
        world: Arc<World>,
        runtime: Arc<SimRuntime>,
        clock: Arc<VirtualClock>,
        prober: Prober,
        verdicts: mpsc::Receiver<Verdict>,
    }

    const HTTP: &str = "type: http, url: 'http://localhost:80/'";

    fn spec(check: &str) -> Arc<ServiceSpec> {
        let text = format!("image: {{name: sim/run}}\nhealth: {{interval: 10s, retries: 2, check: {{{check}}}}}\n");
        Arc::new(serde_yaml::from_str(&text).unwrap())
    }

    impl Rig {
        fn new() -> Self {
            let clock = Arc::new(VirtualClock::starting_at("2026-01-01T00:00:00Z".parse().unwrap()));
            let world = World::new(clock.clone(), 1, Faults::none());
            let runtime = Arc::new(world.runtime(Owner("tests".to_owned())));
            let (tell, verdicts) = mpsc::channel(10_000);
            Self { prober: Prober::start(clock.clone(), tell), world, runtime, clock, verdicts }
        }

        /// Runs an instance, which the prober is to know as one of this age.
        async fn start(&self, slot: u32, check: &str, age: i64) -> Subject {
            let id = InstanceId {
                deployment: "demo".to_owned(),
                service: "web".to_owned(),
                slot,
                revision: "v1-0123456789abcdef".parse().unwrap(),
                attempt: 0,
                run: None,
            };
            let spec = spec(check);
            let request =
                CreateRequest { id, restarts: 0, streak: 0, spec: spec.clone(), env: BTreeMap::new(), source: None };
            let instance = self.runtime.create(&request).await.unwrap().as_ref();
            self.runtime.start(&instance).await.unwrap();
            let since = self.clock.now() - TimeDelta::seconds(age);
            Subject { instance, since, spec, runtime: self.runtime.clone(), served: false }
        }

        async fn start_all(&self, slots: std::ops::Range<u32>, check: &str, age: i64) -> Vec<Subject> {
            let mut all = Vec::new();
            for slot in slots {
                all.push(self.start(slot, check, age).await);
            }
            all
        }

        fn dials(&self) -> u64 {
            self.world.calls().get(&Method::Dial).copied().unwrap_or(0)
        }

        /// The slots and words of all verdicts so far, in order of the slots.
        fn told(&mut self) -> Vec<(u32, &'static str)> {
            let mut told = Vec::new();
            while let Ok(verdict) = self.verdicts.try_recv() {
                told.push((verdict.instance.id.slot, verdict.health.name()));
            }
            told.sort_unstable();
            told
        }
    }

    async fn pass(milliseconds: u64) {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn only_changes_are_told() {
        let mut rig = Rig::new();
        let subject = rig.start(0, HTTP, 0).await;
        rig.prober.check("demo", vec![subject.clone()]);
        pass(100).await;
        assert_eq!(rig.told(), [(0, "healthy")]);
        pass(60_000).await;
        assert_eq!(rig.told(), []);
        let unhealthy = HealthState::Unhealthy { last: "overloaded".to_owned(), passed: true };
        assert!(rig.world.answer_as(&subject.instance.runtime_id, unhealthy));
        pass(60_000).await;
        let verdict = rig.verdicts.try_recv().unwrap();
        let last = "GET http://localhost:80/ answered 503 Service Unavailable, expected 200".to_owned();
        assert_eq!(verdict.health, HealthState::Unhealthy { last, passed: true });
        assert_eq!(rig.told(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn what_ran_for_a_while_is_not_checked_all_at_once() {
        let mut rig = Rig::new();
        let subjects = rig.start_all(0..2_000, "type: tcp, port: 80", 3_600).await;
        rig.prober.check("demo", subjects);
        let mut most = 0;
        for _ in 0..20 {
            let before = rig.dials();
            pass(100).await;
            most = most.max(rig.dials() - before);
        }
        pass(100).await;
        assert_eq!(rig.told().len(), 2_000, "all are known after two seconds");
        assert!(most < 200, "{most} in a tenth of a second");
    }

    #[tokio::test(start_paused = true)]
    async fn checks_that_hang_hold_up_no_others() {
        let mut rig = Rig::new();
        let hanging = rig.start_all(0..400, HTTP, 0).await;
        for subject in &hanging {
            rig.runtime.pause(&subject.instance).await.unwrap();
        }
        rig.prober.check("demo", hanging);
        pass(1_000).await;
        assert_eq!(rig.told(), []);
        let other = rig.start(1_000, HTTP, 0).await;
        rig.prober.check("shop", vec![other]);
        pass(100).await;
        assert_eq!(rig.told(), [(1_000, "healthy")]);
        // They are given up after their time.
        pass(4_500).await;
        let told = rig.told();
        assert_eq!((told.len(), told[0].1), (400, "starting"));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_run_at_once_than_may() {
        let rig = Rig::new();
        let many = u32::try_from(CONNECTIONS_AT_ONCE).unwrap() + 100;
        let hanging = rig.start_all(0..many, HTTP, 0).await;
        for subject in &hanging {
            rig.runtime.pause(&subject.instance).await.unwrap();
        }
        rig.prober.check("demo", hanging);
        pass(4_000).await;
        assert_eq!(rig.dials(), CONNECTIONS_AT_ONCE as u64);
        // The rest has its turn when these are given up.
        pass(2_000).await;
        assert!(rig.dials() >= u64::from(many), "{}", rig.dials());
    }

    #[tokio::test(start_paused = true)]
    async fn commands_take_turns() {
        let mut rig = Rig::new();
        let subjects = rig.start_all(0..100, "type: command, command: 'true'", 0).await;
        rig.world.set_faults(Faults { slow: 1.0, slow_for: Duration::from_secs(2), ..Faults::none() });
        let calls = |rig: &Rig| rig.world.calls().get(&Method::Exec).copied().unwrap_or(0);
        rig.prober.check("demo", subjects);
        pass(51).await;
        assert_eq!(calls(&rig), COMMANDS_AT_ONCE as u64);
        pass(60_000).await;
        assert_eq!(rig.told().len(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_to_be_checked_any_more_is_let_go() {
        let mut rig = Rig::new();
        let subjects = rig.start_all(0..3, HTTP, 0).await;
        rig.prober.check("demo", subjects.clone());
        pass(20_000).await;
        assert_eq!(rig.told().len(), 3);
        rig.prober.check("demo", subjects[..1].to_vec());
        pass(1).await;
        let before = rig.dials();
        pass(100_000).await;
        let checks = rig.dials() - before;
        assert!((9..=12).contains(&checks), "{checks} checks of one instance in 100 s");
        // A restart is another run.
        let again = Subject { since: subjects[0].since + TimeDelta::seconds(1), ..subjects[0].clone() };
        rig.prober.check("demo", vec![again.clone()]);
        pass(2_500).await;
        assert_eq!(rig.verdicts.try_recv().map(|verdict| verdict.since), Ok(again.since));
    }

    /// The same run with this health block.
    fn with_health(subject: &Subject, health: &str) -> Subject {
        let text = format!("image: {{name: sim/run}}\nhealth: {{{health}}}\n");
        Subject { spec: Arc::new(serde_yaml::from_str(&text).unwrap()), ..subject.clone() }
    }

    #[tokio::test(start_paused = true)]
    async fn another_health_block_counts_at_once() {
        let mut rig = Rig::new();
        let subject = rig.start(0, HTTP, 0).await;
        rig.prober.check("demo", vec![with_health(&subject, &format!("interval: 1h, check: {{{HTTP}}}"))]);
        pass(100).await;
        assert_eq!(rig.told(), [(0, "healthy")]);
        let down = HealthState::Unhealthy { last: "down".to_owned(), passed: true };
        assert!(rig.world.answer_as(&subject.instance.runtime_id, down));
        let block = format!("interval: 1h, retries: 1, start_grace: 0s, check: {{{HTTP}}}");
        rig.prober.check("demo", vec![with_health(&subject, &block)]);
        pass(100).await;
        assert_eq!(rig.told(), [(0, "unhealthy")]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_under_way_is_given_up_with_its_block() {
        let mut rig = Rig::new();
        let subject = rig.start(0, HTTP, 0).await;
        rig.runtime.pause(&subject.instance).await.unwrap();
        let block = |retries: u32| format!("timeout: 1h, retries: {retries}, start_grace: 0s, check: {{{HTTP}}}");
        rig.prober.check("demo", vec![with_health(&subject, &block(3))]);
        pass(1_000).await;
        rig.runtime.resume(&subject.instance).await.unwrap();
        rig.prober.check("demo", vec![with_health(&subject, &block(1))]);
        pass(100).await;
        assert_eq!((rig.told(), rig.dials()), (vec![(0, "healthy")], 2));
        // Nothing comes of the first one.
        pass(2 * 3_600_000).await;
        assert_eq!(rig.told(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_is_away_makes_nothing_unhealthy() {
        let mut rig = Rig::new();
        let subject = rig.start(0, HTTP, 0).await;
        rig.prober.check("demo", vec![subject]);
        pass(100).await;
        assert_eq!(rig.told(), [(0, "healthy")]);
        rig.world.go_unreachable(Duration::from_secs(600));
        pass(900_000).await;
        assert_eq!(rig.told(), []);
    }
}
