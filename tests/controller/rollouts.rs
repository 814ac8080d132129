//! Rollouts in the core: what is given up for what comes after it, and what is remembered.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use evenkeel::controller::{
    Command, Core, Declared, JobChanges, Jobs, KeepJobs, Keeper, Message, Note, NoteKey, Order, Parts, RolloutView,
    Trigger,
};
use evenkeel::plan::revisions::{CLOCK_STEP, Memory};
use evenkeel::runtime::sim::{Faults, Method, What};
use evenkeel::state::{ConditionStatus, RunId, ServiceName};
use evenkeel::status::{DeploymentState, Status};
use tokio::sync::{oneshot, watch};

use super::{Rig, web};

fn revisions(status: &Status) -> Vec<String> {
    status.instances.iter().map(|one| one.revision.clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_hangs_is_given_up_within_a_second_for_the_next_revision() {
    let rig = Rig::new();
    rig.declare(&web(2, "one"));
    let running = |status: &Status| status.deployments.iter().any(|view| view.state == DeploymentState::Running);
    rig.until("the first revision runs", running).await;
    let day = Duration::from_secs(24 * 3600);
    rig.world.set_faults(Faults { slow: 1.0, slow_for: day, ..Faults::none() });
    rig.declare(&web(2, "two"));
    let first = rig.until("the next one is being made", |status| status.instances.len() > 2).await;
    // Its call is under way by then, and hangs.
    tokio::time::sleep(Duration::from_secs(5)).await;
    rig.world.set_faults(Faults::none());
    rig.declare(&web(2, "three"));
    let declared = tokio::time::Instant::now();
    let runs = |status: &Status| {
        let last = &status.services[0].revision;
        *last != first.services[0].revision
            && status.instances.iter().any(|one| one.phase == "running" && one.revision == *last)
    };
    rig.until("the last one runs", runs).await;
    assert!(declared.elapsed() < Duration::from_secs(1), "{:?}", declared.elapsed());
    let status = rig
        .until("the last one is rolled out", |status| {
            running(status)
                && status.services[0].updated == 2
                && status.services[0].revision != first.services[0].revision
        })
        .await;
    assert_eq!(revisions(&status), vec![status.services[0].revision.clone(); 2]);
}

/// `web` whose rollout pauses where it fails, or with these fields.
fn guarded(greeting: &str, rollout: &str) -> String {
    format!("{}    rollout: {{{rollout}}}\n", web(2, greeting))
}

pub async fn order(rig: &Rig, order: Order) {
    let (reply, answer) = oneshot::channel();
    let command = Message::Command(Command::Order(order, reply));
    rig.core.messages.send(command).await.expect("the core runs");
    assert!(answer.await.expect("an answer").is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_is_asked_for_again_at_once_when_somebody_orders_that() {
    let orders = [
        ("on_failure: pause", Order::Resume { target: "demo".to_owned() }),
        ("on_failure: rollback", Order::Restart { target: "demo".to_owned() }),
        ("on_failure: rollback", Order::Undo { target: "demo/web".to_owned(), to_revision: Some(2) }),
    ];
    for (rollout, ordered) in orders {
        let rig = Rig::new();
        rig.declare(&guarded("one", rollout));
        rig.until_running().await;
        rig.world.set_faults(Faults { refused: 1.0, ..Faults::none() });
        rig.declare(&guarded("two", rollout));
        rig.until("the failure", |status| status.deployments[0].state == DeploymentState::Failed).await;
        rig.world.set_faults(Faults::none());
        let began = tokio::time::Instant::now();
        order(&rig, ordered.clone()).await;
        let done = |status: &Status| {
            status.deployments[0].state == DeploymentState::Running && status.services[0].updated == 2
        };
        rig.until("the rollout", done).await;
        assert!(began.elapsed() < Duration::from_secs(5), "{ordered:?}: {:?}", began.elapsed());
    }
}

/// Keeps the last note of each key.
#[derive(Default)]
pub struct Notes(pub Mutex<BTreeMap<NoteKey, Note>>);

impl Keeper for Notes {
    fn keep(&self, key: NoteKey, note: Note, _: Option<evenkeel::controller::Kept>) {
        self.0.lock().expect("notes").insert(key, note);
    }

    fn keep_together(&self, notes: Vec<(NoteKey, Note)>) {
        self.0.lock().expect("notes").extend(notes);
    }
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_ends_leaves_all_that_was_spent_of_a_deadline() {
    let mut rig = Rig::new();
    let notes = Arc::new(Notes::default());
    rig.core = Core::start(Parts { keeper: Some(notes.clone()), ..rig.parts() });
    let rollout = "progress_deadline: 60s, max_surge: 1, max_unavailable: 0, min_ready: 50s";
    rig.declare(&guarded("one", rollout));
    rig.until_running().await;
    rig.declare(&guarded("two", rollout));
    rig.until("the next one runs", |status| status.instances.len() == 3).await;
    let step = i64::try_from(CLOCK_STEP.as_secs()).expect("a small number");
    let spent = || {
        let key = ("demo".to_owned(), Some("web".to_owned()));
        match notes.0.lock().expect("notes").get(&key) {
            Some(Note::Rollout(history)) => {
                let clock = history.clone().resumed().rollout.expect("a rollout").clock;
                i64::try_from(clock.spent(rig.clock_now()).as_secs()).expect("a small number")
            }
            other => panic!("{other:?}"),
        }
    };
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert!((40 - step..=40).contains(&spent()), "{}", spent());
    let (reply, answer) = oneshot::channel();
    rig.core.messages.send(Message::Command(Command::NoteClocks(reply))).await.expect("the core runs");
    answer.await.expect("an answer");
    assert_eq!(spent(), 40);
}

/// Keeps jobs in its own time.
struct Slow;

#[async_trait::async_trait]
impl KeepJobs for Slow {
    async fn keep(&self, _: &str, _: &JobChanges) -> Result<(), String> {
        tokio::time::sleep(Duration::from_secs(60)).await;
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_is_asked_for_though_another_job_waits_for_its_own() {
    let mut rig = Rig::new();
    let jobs = Jobs { keeper: Some(Arc::new(Slow)), ..Jobs::default() };
    rig.core = Core::start(Parts { jobs, ..rig.parts() });
    let cron =
        |name: &str| format!("  {name}:\n    rtype: cron\n    schedule: '@yearly'\n    image: {{name: sim/run}}\n");
    rig.declare(&format!("version: v1\ndeployment: demo\nservices:\n{}{}", cron("one"), cron("two")));
    rig.until("it is known", |status| status.synced && !status.services.is_empty()).await;
    let ask = |service: &str| {
        let (reply, answer) = oneshot::channel();
        let service = ServiceName { deployment: "demo".to_owned(), service: service.to_owned() };
        let trigger = Trigger { service, run: RunId::after(None, rig.clock_now()), reply };
        let messages = rig.core.messages.clone();
        async move {
            messages.send(Message::Command(Command::Trigger(trigger))).await.expect("the core runs");
            answer.await.expect("an answer")
        }
    };
    let (one, two) = tokio::join!(ask("one"), ask("two"));
    assert!(one.is_ok() && two.is_ok(), "{one:?} {two:?}");
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_finds_nothing_declared_ends_services_in_their_order() {
    let mut rig = Rig::new();
    let notes = Arc::new(Notes::default());
    let parts = || Parts { keeper: Some(notes.clone()), ..rig.parts() };
    let first = parts();
    let removed = BTreeMap::from([("demo".to_owned(), super::removed())]);
    let nothing = Arc::new(Declared { synced: true, removed, ..Declared::default() });
    let (_sender, declared) = watch::channel(nothing);
    let second = Parts { declared, ..parts() };
    rig.core = Core::start(first);
    let service = |name: &str, depends: &str| format!("  {name}:\n    image: {{name: sim/run}}\n{depends}");
    let depends = "    depends: [{service: db, condition: started}]\n";
    rig.declare(&format!("version: v1\ndeployment: demo\nservices:\n{}{}", service("db", ""), service("web", depends)));
    rig.until_running().await;
    let mut memory = Memory::default();
    for ((_, service), note) in notes.0.lock().expect("notes").clone() {
        match (note, service) {
            (Note::Orders(orders), _) => memory.orders = orders,
            (Note::Rollout(history), Some(service)) => drop(memory.rollouts.insert(service, *history)),
            (note, service) => panic!("{service:?}: {note:?}"),
        }
    }
    rig.core = Core::start(Parts { memory: BTreeMap::from([("demo".to_owned(), memory)]), ..second });
    rig.until("all is gone", |status| status.synced && status.deployments.is_empty()).await;
    let changes = rig.world.changes();
    let stopped = changes.iter().filter(|change| matches!(change.what, What::StopAsked(_)));
    let order: Vec<&str> = stopped.map(|change| change.id.service.as_str()).collect();
    assert_eq!(order, ["web", "db"]);
}

async fn rollout_of(rig: &Rig) -> RolloutView {
    let (reply, answer) = oneshot::channel();
    let target = "demo/web".parse().expect("a name");
    rig.core.messages.send(Message::Command(Command::Rollouts(target, reply))).await.expect("the core runs");
    answer.await.expect("an answer").expect("it is rolled out").remove(0)
}

#[tokio::test(start_paused = true)]
async fn a_revision_that_failed_and_is_paused_is_told_as_such_until_it_is_resumed() {
    let rig = Rig::new();
    let told = async |rig: &Rig| -> Vec<(u64, bool, bool)> {
        rollout_of(rig).await.revisions.iter().map(|one| (one.number, one.failed, one.paused)).collect()
    };
    rig.declare(&guarded("one", "on_failure: pause"));
    rig.until_running().await;
    rig.world.set_faults(Faults { refused: 1.0, ..Faults::none() });
    rig.declare(&guarded("two", "on_failure: pause"));
    rig.until("the failure", |status| status.deployments[0].state == DeploymentState::Failed).await;
    assert_eq!(told(&rig).await, [(1, false, false), (2, true, true)]);
    rig.world.set_faults(Faults::none());
    order(&rig, Order::Resume { target: "demo".to_owned() }).await;
    rig.until("it runs", |status| {
        status.deployments[0].state == DeploymentState::Running && status.services[0].updated == 2
    })
    .await;
    assert_eq!(told(&rig).await, [(1, false, false), (2, false, false)]);
    // A pause that somebody asked for is no failure.
    order(&rig, Order::Pause { target: "demo".to_owned() }).await;
    rig.declare(&guarded("three", "on_failure: pause"));
    rig.until("it is held", |status| status.deployments[0].state == DeploymentState::Paused).await;
    assert!(told(&rig).await.iter().all(|(_, failed, paused)| !failed && !paused));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_of_a_job_ends_it_though_its_image_does_not_come() {
    let rig = Rig::new();
    rig.declare(&web(1, "one"));
    rig.until_running().await;
    let count = |method: Method| rig.world.calls().get(&method).copied().unwrap_or_default();
    let before = (count(Method::EnsureImage), count(Method::Create));
    let day = Duration::from_secs(24 * 3600);
    rig.world.set_faults(Faults { slow: 1.0, slow_for: day, ..Faults::none() });
    let job = "  work:\n    rtype: job\n    image: {name: sim/run}\n    job: {active_deadline: 30s}\n";
    rig.declare(&format!("{}{job}", web(1, "one")));
    let began = tokio::time::Instant::now();
    let is_over = |status: &Status| status.deployments[0].state == DeploymentState::Failed;
    let status = rig.until("it is over", is_over).await;
    assert_eq!(began.elapsed().as_secs(), 30);
    let why = "work failed: deadline exceeded (job.active_deadline)";
    assert_eq!(status.deployments[0].message, why);
    assert_eq!((count(Method::EnsureImage), count(Method::Create)), (before.0 + 1, before.1));
}

/// `web` depends on `db`, of which nothing runs any more when its next revision is made.
fn pair(db: &str, greeting: &str) -> String {
    format!(
        "version: v1\ndeployment: demo\nservices:\n  db:\n    image: {{name: 'sim/{db}'}}\n    \
         rollout: {{strategy: recreate, progress_deadline: 12s}}\n  web:\n    image: {{name: sim/run}}\n    \
         env: {{GREETING: {greeting}}}\n    depends: [{{service: db, condition: healthy, timeout: 4s}}]\n"
    )
}

/// Why the service was rolled back, where it is.
fn rolled_back(status: &Status, service: &str) -> Option<String> {
    let view = status.services.iter().find(|view| view.service == service)?;
    let back = view.conditions.iter().find(|one| one.kind == "RolledBack" && one.status == ConditionStatus::True);
    back.map(|one| one.reason.clone())
}

#[tokio::test(start_paused = true)]
async fn what_waited_in_vain_for_a_service_is_tried_again_once_that_is_rolled_back_and_healthy() {
    let rig = Rig::new();
    rig.declare(&pair("run", "one"));
    rig.until_running().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    rig.declare(&pair("slow:9999s", "two"));
    let back = |service, reason| move |status: &Status| rolled_back(status, service).as_deref() == Some(reason);
    rig.until("web is rolled back", back("web", "DependencyTimeout")).await;
    rig.until("db is rolled back", back("db", "ProgressDeadlineExceeded")).await;
    let began = tokio::time::Instant::now();
    let is_tried = |status: &Status| {
        let web = status.services.iter().find(|view| view.service == "web");
        rolled_back(status, "web").is_none() && web.is_some_and(|web| (web.ready, web.updated) == (1, 1))
    };
    let status = rig.until("web is tried again", is_tried).await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(rolled_back(&status, "db").as_deref(), Some("ProgressDeadlineExceeded"));
}
