//! The core on the sim runtime, with virtual time: what becomes of what is declared.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use evenkeel::clock::{Clock, VirtualClock};
use evenkeel::controller::{Connect, Connected, Core, Declared, Jobs, Parts, Removed, Scope, Settled, desired};
use evenkeel::runtime::sim::{Faults, World};
use evenkeel::runtime::{ErrorKind, Runtime, RuntimeError, Volumes};
use evenkeel::spec::{Prune, RuntimeKind, merge, parse};
use evenkeel::state::{Desired, DesiredDeployment, Owner};
use evenkeel::status::{DeploymentState, Status};
use evenkeel::store::{RemovalId, RemovalRequest, Store};
use tokio::sync::{mpsc, watch};

#[path = "controller/follow.rs"]
mod follow;
#[path = "controller/health.rs"]
mod health;
#[path = "controller/images.rs"]
mod images;
#[path = "controller/init.rs"]
mod init;
#[path = "controller/requests.rs"]
mod requests;
#[path = "controller/rollouts.rs"]
mod rollouts;
#[path = "controller/scaling.rs"]
mod scaling;

/// What is known of a deployment that is to go.
fn removed() -> Removed {
    Removed { prune: Prune::Auto, runtimes: [RuntimeKind::Sim].into() }
}

/// What is told once nothing is left of the deployment.
fn gone(removal: Option<RemovalId>) -> Settled {
    Settled::Deployment { name: "demo".to_owned(), removal }
}

struct Rig {
    clock: Arc<VirtualClock>,
    world: Arc<World>,
    core: Core,
    declare: watch::Sender<Arc<Declared>>,
    settled: mpsc::Receiver<Settled>,
}

fn owner() -> Owner {
    Owner("test".to_owned())
}

fn deployments(text: &str) -> BTreeMap<String, DesiredDeployment> {
    let merged = merge(&[(PathBuf::from("/specs/a.yaml"), parse(text))]);
    assert_eq!(merged.problems, []);
    merged.deployments.values().map(|one| (one.name.clone(), desired(one, RuntimeKind::Sim))).collect()
}

fn web(replicas: u32, greeting: &str) -> String {
    format!(
        "version: v1\ndeployment: demo\nservices:\n  web:\n    image: {{name: sim/run}}\n    env: {{GREETING: {greeting}}}\n    scale: {{mode: fixed, replicas: {replicas}}}\n"
    )
}

/// A core on one runtime, and what it tells the store to forget.
fn core_of(
    runtime: Arc<dyn Connect>,
    declared: watch::Receiver<Arc<Declared>>,
    clock: Arc<dyn Clock>,
    removing: BTreeMap<String, RemovalRequest>,
) -> (Core, mpsc::Receiver<Settled>) {
    let (forget, settled) = mpsc::channel(8);
    let core = Core::start(Parts { removing, settled: Some(forget), ..parts(runtime, declared, clock) });
    (core, settled)
}

/// A core on one runtime that remembers nothing and tells nobody.
fn parts(runtime: Arc<dyn Connect>, declared: watch::Receiver<Arc<Declared>>, clock: Arc<dyn Clock>) -> Parts {
    Parts {
        runtimes: vec![runtime],
        default_runtime: RuntimeKind::Sim,
        declared,
        clock,
        scope: Scope::Everything,
        removing: BTreeMap::new(),
        memory: Default::default(),
        keeper: None,
        jobs: Jobs::default(),
        activity: Default::default(),
        sessions: Default::default(),
        events: None,
        settled: None,
    }
}

impl Rig {
    /// The parts of a core on this machine, with what is declared here.
    fn parts(&self) -> Parts {
        let runtime = Connected(Arc::new(self.world.runtime(owner())));
        parts(Arc::new(runtime), self.declare.subscribe(), self.clock.clone())
    }

    fn new() -> Self {
        Self::with(1, Faults::none())
    }

    fn with(seed: u64, faults: Faults) -> Self {
        let clock =
            Arc::new(VirtualClock::starting_at(DateTime::<Utc>::UNIX_EPOCH + Duration::from_secs(1_800_000_000)));
        let world = World::new(clock.clone(), seed, faults);
        let (declare, declared) = watch::channel(Arc::default());
        let runtime = Arc::new(Connected(Arc::new(world.runtime(owner()))));
        let (core, settled) = core_of(runtime, declared, clock.clone(), BTreeMap::new());
        Self { clock, world, core, declare, settled }
    }

    fn clock_now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    fn declare(&self, text: &str) {
        let deployments = deployments(text);
        self.declare.send_replace(Arc::new(Declared {
            synced: true,
            desired: Desired { deployments },
            ..Declared::default()
        }));
    }

    async fn until(&self, what: &str, test: impl Fn(&Status) -> bool) -> Arc<Status> {
        let mut watch = self.core.status.clone();
        let found = watch.wait_for(|status| test(status));
        if let Ok(status) = tokio::time::timeout(Duration::from_secs(3600), found).await {
            return status.expect("the core runs").clone();
        }
        panic!("{what} did not happen: {:#?}", self.core.status.borrow());
    }

    async fn until_running(&self) -> Arc<Status> {
        self.until("convergence", |status| {
            status.deployments.first().is_some_and(|view| view.state == DeploymentState::Running)
        })
        .await
    }
}

fn names(status: &Status) -> Vec<(String, String, u32)> {
    status.instances.iter().map(|one| (one.name.clone(), one.phase.clone(), one.restarts)).collect()
}

fn running(slots: &[(u32, u32)]) -> Vec<(String, String, u32)> {
    slots.iter().map(|(slot, restarts)| (format!("demo/web/{slot}"), "running".to_owned(), *restarts)).collect()
}

#[tokio::test(start_paused = true)]
async fn what_is_declared_runs_and_scales() {
    let rig = Rig::new();
    rig.declare(&web(3, "hello"));
    let status = rig.until_running().await;
    assert_eq!(names(&status), running(&[(0, 0), (1, 0), (2, 0)]));
    rig.declare(&web(1, "hello"));
    let status = rig.until("scale down", |status| status.instances.len() == 1).await;
    assert_eq!(names(&status), running(&[(0, 0)]));
}

#[tokio::test(start_paused = true)]
async fn a_dead_instance_is_replaced_in_its_slot_and_counted() {
    let rig = Rig::new();
    rig.declare(&web(2, "hello"));
    let status = rig.until_running().await;
    let victim = status.instances[1].runtime_id.clone();
    assert!(rig.world.kill(&victim, 137));
    let status = rig
        .until("the restart", |status| {
            status.services.first().is_some_and(|view| view.ready == 2)
                && status.instances.iter().any(|one| one.restarts == 1)
        })
        .await;
    assert_eq!(names(&status), running(&[(0, 0), (1, 1)]));
    assert_ne!(status.instances[1].runtime_id, victim);
}

#[tokio::test(start_paused = true)]
async fn a_paused_instance_is_told_and_runs_on() {
    let rig = Rig::new();
    rig.declare(&web(2, "hello"));
    let before = rig.until_running().await.instances.clone();
    rig.world.set_faults(Faults { fails: 1.0, ..Faults::none() });
    assert!(rig.world.freeze(&before[0].runtime_id));
    let status = rig.until("the pause", |status| status.instances[0].phase == "paused").await;
    assert_eq!((status.services[0].ready, status.services[0].running), (1, 1));
    let told = |status: &Status| {
        let conditions = &status.services[0].conditions;
        conditions.iter().any(|one| (one.kind.as_str(), one.reason.as_str()) == ("ReplicaFailure", "Paused"))
    };
    assert!(told(&status), "{:#?}", status.services);
    assert!(status.instances[0].message.contains("paused by somebody else"), "{:#?}", status.instances);
    rig.world.set_faults(Faults::none());
    let after = rig.until_running().await;
    assert!(!told(&after), "{:#?}", after.services);
    assert_eq!(after.instances, before);
}

#[tokio::test(start_paused = true)]
async fn a_changed_template_reaches_every_replica() {
    let rig = Rig::new();
    rig.declare(&web(3, "hello"));
    let before = rig.until_running().await.services[0].revision.clone();
    rig.declare(&web(3, "goodbye"));
    let status = rig
        .until("the rollout", |status| {
            let view = &status.services[0];
            view.revision != before && view.updated == 3 && status.instances.len() == 3
        })
        .await;
    assert_eq!(names(&status), running(&[(0, 0), (1, 0), (2, 0)]));
}

#[tokio::test(start_paused = true)]
async fn a_removed_deployment_goes_completely_and_is_forgotten() {
    let mut rig = Rig::new();
    rig.declare(&web(2, "hello"));
    rig.until_running().await;
    let removed = BTreeMap::from([("demo".to_owned(), removed())]);
    rig.declare.send_replace(Arc::new(Declared { synced: true, removed, ..Declared::default() }));
    assert_eq!(rig.settled.recv().await, Some(gone(None)));
    assert_eq!(rig.world.instances(), []);
    assert_eq!(rig.world.networks().len(), 0);
    rig.until("an empty board", |status| status.deployments.is_empty()).await;
}

/// A runtime that does not answer the first time it is asked.
struct Late {
    runtime: Connected,
    asked: AtomicBool,
}

#[async_trait::async_trait]
impl Connect for Late {
    fn kind(&self) -> RuntimeKind {
        self.runtime.kind()
    }

    async fn connect(&self) -> evenkeel::runtime::Result<Arc<dyn Runtime>> {
        if self.asked.swap(true, Ordering::Relaxed) {
            return self.runtime.connect().await;
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        Err(RuntimeError::new(ErrorKind::Unavailable, "it is starting"))
    }
}

/// A core that is to remove what ran before, on a runtime that answers late.
async fn after_a_restart(declared: Declared, removing: BTreeMap<String, RemovalRequest>) -> (Rig, Vec<Settled>) {
    let rig = Rig::new();
    rig.declare(&web(2, "hello"));
    rig.until_running().await;
    let Rig { clock, world, core, .. } = rig;
    drop(core);
    let (declare, declared) = watch::channel(Arc::new(declared));
    let runtime = Connected(Arc::new(world.runtime(owner())));
    let (core, settled) =
        core_of(Arc::new(Late { runtime, asked: AtomicBool::new(false) }), declared, clock.clone(), removing);
    let mut rig = Rig { clock, world, core, declare, settled };
    let mut told = Vec::new();
    // Past the first failure, and before the next try.
    tokio::time::sleep(Duration::from_millis(5500)).await;
    while let Ok(settled) = rig.settled.try_recv() {
        told.push(settled);
    }
    (rig, told)
}

#[tokio::test(start_paused = true)]
async fn what_is_to_go_is_not_forgotten_before_its_runtime_was_heard_of() {
    let removed = BTreeMap::from([("demo".to_owned(), removed())]);
    let declared = Declared { synced: true, removed, ..Declared::default() };
    let (mut rig, told) = after_a_restart(declared, BTreeMap::new()).await;
    assert_eq!((told, rig.world.instances().len()), (vec![], 2));
    assert_eq!(rig.settled.recv().await, Some(gone(None)));
    assert_eq!(rig.world.instances(), []);
}

#[tokio::test(start_paused = true)]
async fn a_removal_by_name_is_taken_up_again_where_nothing_else_is_known() {
    let declared = Declared { synced: true, ..Declared::default() };
    let removing = Store::in_memory().unwrap().request_removals(&["demo".to_owned()].into(), Volumes::Remove).unwrap();
    let id = removing["demo"].id;
    let (mut rig, told) = after_a_restart(declared, removing).await;
    assert_eq!((told, rig.world.instances().len()), (vec![], 2));
    assert_eq!(rig.settled.recv().await, Some(gone(Some(id))));
    assert_eq!((rig.world.instances(), rig.world.networks().len()), (vec![], 0));
}

#[tokio::test(start_paused = true)]
async fn a_new_core_takes_over_what_runs_and_calls_nothing() {
    let rig = Rig::new();
    rig.declare(&web(3, "hello"));
    let before = rig.until_running().await.instances.clone();
    let Rig { world, core, declare, .. } = rig;
    drop(core);
    let clock = Arc::new(VirtualClock::starting_at(DateTime::<Utc>::UNIX_EPOCH + Duration::from_secs(1_900_000_000)));
    let (core, settled) = core_of(
        Arc::new(Connected(Arc::new(world.runtime(owner())))),
        declare.subscribe(),
        clock.clone(),
        BTreeMap::new(),
    );
    let rig = Rig { clock, world, core, declare, settled };
    let after = rig.until_running().await.instances.clone();
    let ids = |instances: &[evenkeel::status::InstanceView]| -> Vec<String> {
        instances.iter().map(|one| one.runtime_id.clone()).collect()
    };
    assert_eq!(ids(&after), ids(&before));
}

#[tokio::test(start_paused = true)]
async fn what_a_lost_database_may_have_remembered_is_kept_until_that_is_confirmed_or_it_is_deleted() {
    let reset = || Some("the state database was missing".to_owned());
    let declared = Declared { synced: true, reset: reset(), ..Declared::default() };
    let (rig, _) = after_a_restart(declared, BTreeMap::new()).await;
    let before = rig.world.instances();
    tokio::time::sleep(Duration::from_secs(15 * 60)).await;
    assert_eq!((before.len(), rig.world.instances()), (2, before));
    let status = rig.core.status.borrow().clone();
    let view = &status.deployments[0];
    assert_eq!((view.deployment.as_str(), view.state), ("demo", DeploymentState::Kept));
    assert!(
        view.message.contains("the state database was missing") && view.message.contains("keel approve"),
        "{view:#?}"
    );
    let shown = status.reset.as_ref().unwrap();
    assert_eq!(shown.kept, ["demo"]);
    assert!(shown.reason.contains("is kept: demo; ") && shown.reason.contains("keel delete NAME"), "{shown:#?}");
    // What is declared is nothing that was forgotten.
    let deployments = deployments(&web(2, "hello"));
    rig.declare.send_replace(Arc::new(Declared {
        synced: true,
        desired: Desired { deployments },
        reset: reset(),
        ..Declared::default()
    }));
    let status = rig.until_running().await;
    assert_eq!(status.reset, None);
    rig.declare.send_replace(Arc::new(Declared { synced: true, ..Declared::default() }));
    rig.until("the orphans are reaped", |status| status.deployments.is_empty()).await;
    assert_eq!(rig.world.instances(), []);
}

/// A clock that panics as often as it was told to: a defect in whatever looks at it.
struct Defective {
    clock: Arc<VirtualClock>,
    panics: AtomicU32,
}

impl Clock for Defective {
    fn now(&self) -> DateTime<Utc> {
        let left = self.panics.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        assert!(left.is_err(), "a defect");
        self.clock.now()
    }
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_panics_is_a_failure_and_tried_again_with_growing_pauses() {
    let clock = Rig::new().clock;
    let defective = Arc::new(Defective { clock: clock.clone(), panics: AtomicU32::new(0) });
    let world = World::new(defective.clone(), 1, Faults::none());
    let (declare, declared) = watch::channel(Arc::new(Declared { synced: true, ..Declared::default() }));
    let (core, settled) =
        core_of(Arc::new(Connected(Arc::new(world.runtime(owner())))), declared, clock.clone(), BTreeMap::new());
    let rig = Rig { clock, world, core, declare, settled };
    rig.until("the first list", |status| status.synced).await;
    defective.panics.store(4, Ordering::Relaxed);
    let began = tokio::time::Instant::now();
    rig.declare(&web(1, "hello"));
    let told = |status: &Status| status.deployments.iter().any(|view| view.message.contains("defect of its own"));
    rig.until("the failure is shown", told).await;
    rig.until_running().await;
    // 1, 2, 4 and 8 seconds.
    let took = began.elapsed();
    assert!((15..20).contains(&took.as_secs()), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn an_old_instance_that_can_not_be_removed_degrades_its_deployment_and_says_why() {
    let rig = Rig::new();
    rig.declare(&web(2, "hello"));
    rig.until_running().await;
    rig.world.set_faults(Faults { fails: 1.0, ..Faults::none() });
    rig.declare(&web(1, "hello"));
    let status = rig
        .until("it is told", |status| status.deployments.iter().any(|view| view.message.contains("failed 3 times")))
        .await;
    let view = &status.deployments[0];
    assert_eq!(view.state, DeploymentState::Degraded);
    assert!(view.message.starts_with("wait to stop demo/web/1"), "{}", view.message);
    assert_eq!(status.services[0].message, view.message);
    let told = status.services[0].conditions.iter().find(|one| one.reason == "CallFailed");
    assert_eq!(told.map(|one| (one.kind.as_str(), &one.message)), Some(("ReplicaFailure", &view.message)));
    rig.world.set_faults(Faults::none());
    let status = rig.until_running().await;
    assert_eq!((names(&status), status.deployments[0].message.as_str()), (running(&[(0, 0)]), ""));
}
