//! Convergence and healing on a Docker Engine, beside a floor that issues the same create and start calls on the same
//! engine in the same run. Prints medians and their ratio.
//!
//!     eval "$(.ci/engines start)" && cargo bench --bench docker

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, EventsOptionsBuilder, KillContainerOptions, RemoveContainerOptionsBuilder,
    StartContainerOptions,
};
use evenkeel::clock::SystemClock;
use evenkeel::controller::{Connected, Core, Declared, Jobs, Parts, Removed, Scope, Settled, desired};
use evenkeel::runtime::docker::DockerRuntime;
use evenkeel::spec::{Prune, RuntimeKind, merge, parse};
use evenkeel::state::{Desired, Owner};
use evenkeel::status::DeploymentState;
use futures::{StreamExt, stream};
use tokio::sync::{mpsc, watch};

const IMAGE: &str = "keel-test/busybox:1";

/// Containers at once, and rounds of each: a single one is quick and varies most.
const COUNTS: [(u32, usize); 3] = [(1, 15), (10, 5), (50, 3)];

/// Calls side by side, as the docker runtime makes them: twice the cores.
fn concurrency() -> usize {
    2 * std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// One service on the host's network, as the floor has it.
fn declared(replicas: u32) -> Declared {
    let text = format!(
        "version: v1\ndeployment: bench\nservices:\n  web:\n    image: {{name: '{IMAGE}', pull_policy: never}}\n    \
         command: {{entrypoint: [sleep, '100000']}}\n    network_mode: host\n    init_container: false\n    \
         stop_grace_period: 1s\n    stop_signal: KILL\n    scale: {{mode: fixed, replicas: {replicas}}}\n"
    );
    let merged = merge(&[(PathBuf::from("/bench.yaml"), parse(&text))]);
    assert_eq!(merged.problems, []);
    let deployments =
        merged.deployments.values().map(|one| (one.name.clone(), desired(one, RuntimeKind::Docker))).collect();
    Declared { synced: true, desired: Desired { deployments }, ..Declared::default() }
}

struct Rig {
    core: Core,
    declare: watch::Sender<Arc<Declared>>,
    forgotten: mpsc::Receiver<Settled>,
}

impl Rig {
    async fn new(socket: &str) -> Self {
        let owner = Owner(format!("bench-{}", std::process::id()));
        let runtime = DockerRuntime::connect(owner, Some(PathBuf::from(socket))).await.expect("an engine");
        let (declare, declared) = watch::channel(Arc::default());
        let (forget, forgotten) = mpsc::channel(8);
        let core = Core::start(Parts {
            runtimes: vec![Arc::new(Connected(Arc::new(runtime)))],
            default_runtime: RuntimeKind::Docker,
            declared,
            clock: Arc::new(SystemClock),
            scope: Scope::Everything,
            removing: BTreeMap::new(),
            memory: Default::default(),
            keeper: None,
            jobs: Jobs::default(),
            activity: Default::default(),
            sessions: Default::default(),
            events: None,
            settled: Some(forget),
        });
        let mut status = core.status.clone();
        status.wait_for(|status| status.runtimes.iter().all(|one| one.unreachable.is_none())).await.expect("a core");
        Self { core, declare, forgotten }
    }

    async fn converge(&mut self, replicas: u32) -> Duration {
        let began = Instant::now();
        self.declare.send_replace(Arc::new(declared(replicas)));
        let mut status = self.core.status.clone();
        let all = |status: &evenkeel::status::Status| {
            status.services.iter().any(|one| one.ready == replicas)
                && status.deployments.iter().all(|one| one.state == DeploymentState::Running)
        };
        status.wait_for(|status| all(status)).await.expect("a core");
        began.elapsed()
    }

    async fn remove(&mut self) {
        let gone = Removed { prune: Prune::Auto, runtimes: [RuntimeKind::Docker].into() };
        let removed = BTreeMap::from([("bench".to_owned(), gone)]);
        self.declare.send_replace(Arc::new(Declared { synced: true, removed, ..Declared::default() }));
        self.forgotten.recv().await.expect("a core");
    }
}

fn floor_body() -> ContainerCreateBody {
    ContainerCreateBody {
        image: Some(IMAGE.to_owned()),
        entrypoint: Some(vec!["sleep".to_owned(), "100000".to_owned()]),
        host_config: Some(HostConfig { network_mode: Some("host".to_owned()), ..HostConfig::default() }),
        ..ContainerCreateBody::default()
    }
}

async fn create_and_start(docker: &Docker, name: &str) {
    let options = CreateContainerOptionsBuilder::default().name(name).build();
    docker.create_container(Some(options), floor_body()).await.expect("created");
    docker.start_container(name, None::<StartContainerOptions>).await.expect("started");
}

async fn remove(docker: &Docker, names: &[String]) {
    let options = || RemoveContainerOptionsBuilder::default().force(true).build();
    stream::iter(names)
        .for_each_concurrent(concurrency(), |name| async move {
            docker.remove_container(name, Some(options())).await.expect("removed");
        })
        .await;
}

async fn floor(docker: &Docker, count: u32) -> Duration {
    let names: Vec<String> = (0..count).map(|number| format!("floor-{number}")).collect();
    let began = Instant::now();
    stream::iter(&names)
        .for_each_concurrent(concurrency(), |name| async move { create_and_start(docker, name).await })
        .await;
    let took = began.elapsed();
    remove(docker, &names).await;
    took
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

async fn converge(docker: &Docker, rig: &mut Rig) {
    println!("converge on the host's network, medians of interleaved rounds");
    for (count, rounds) in COUNTS {
        let (mut floors, mut keels) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            floors.push(floor(docker, count).await);
            keels.push(rig.converge(count).await);
            rig.remove().await;
        }
        let (floor, keel) = (median(floors), median(keels));
        let ratio = keel.as_secs_f64() / floor.as_secs_f64();
        println!("  {count:>3} containers: floor {:>8.1?}  keel {:>8.1?}  ratio {ratio:.2}", floor, keel);
    }
}

/// Nanoseconds of the engine's own clock at which a container of the bench died or started.
async fn next_event(events: &mut (impl StreamExt<Item = (String, i64)> + Unpin), what: &str) -> i64 {
    loop {
        let (action, at) = events.next().await.expect("events");
        if action == what {
            return at;
        }
    }
}

async fn heal(docker: &Docker, rig: &mut Rig) {
    rig.converge(1).await;
    // The stream is opened when it is first polled, so it has to begin in the past; what happened before is over by then.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let since = chrono::Utc::now().timestamp().to_string();
    let filters = HashMap::from([
        ("type".to_owned(), vec!["container".to_owned()]),
        ("event".to_owned(), vec!["die".to_owned(), "start".to_owned()]),
    ]);
    let options = EventsOptionsBuilder::default().since(&since).filters(&filters).build();
    let events = docker.events(Some(options)).filter_map(|event| async move {
        let event = event.ok()?;
        Some((event.action?, event.time_nano?))
    });
    let mut events = Box::pin(events);
    let (mut heals, mut floors) = (Vec::new(), Vec::new());
    for round in 0..15 {
        let name = format!("heal-floor-{round}");
        let began = Instant::now();
        create_and_start(docker, &name).await;
        floors.push(began.elapsed());
        next_event(&mut events, "start").await;
        remove(docker, &[name]).await;
        next_event(&mut events, "die").await;

        // A fresh slot each time: the first restart is immediate, the next ones back off.
        let id = rig.core.status.borrow().instances[0].runtime_id.clone();
        docker.kill_container(&id, None::<KillContainerOptions>).await.expect("killed");
        let died = next_event(&mut events, "die").await;
        let started = next_event(&mut events, "start").await;
        heals.push(Duration::from_nanos(u64::try_from(started - died).unwrap_or_default()));
        rig.remove().await;
        rig.converge(1).await;
        next_event(&mut events, "start").await;
    }
    let (heal, floor) = (median(heals), median(floors));
    println!("heal, from the engine's die event to its start event, median of 15");
    println!("  floor (one create and start) {floor:.1?}  keel {heal:.1?}  over the floor {:.1} ms", {
        (heal.as_secs_f64() - floor.as_secs_f64()) * 1000.0
    });
    rig.remove().await;
}

#[tokio::main]
async fn main() {
    let Some(host) = std::env::var("KEEL_TEST_DOCKER_HOST").ok().filter(|host| !host.is_empty()) else {
        eprintln!("skipped: no private engine; start one with: eval \"$(.ci/engines start)\"");
        return;
    };
    let socket = host.trim_start_matches("unix://");
    let docker = Docker::connect_with_unix(socket, 120, bollard::API_DEFAULT_VERSION).expect("a client");
    let docker = docker.negotiate_version().await.expect("an engine");
    let mut rig = Rig::new(socket).await;
    rig.converge(1).await;
    rig.remove().await;
    converge(&docker, &mut rig).await;
    heal(&docker, &mut rig).await;
}
