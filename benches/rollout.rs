//! A rolling update of 20 replicas on the sandbox runtime and on a Docker Engine, beside a floor that makes the same calls
//! of the same runtime at the same surge: for each replica the new one is created and started, then the old one stopped and
//! removed, five replicas at a time. Prints medians and their ratio. The second for which a new instance that nothing checks
//! is watched is left out by `rollout.min_ready`: it is no work.
//!
//!     eval "$(.ci/engines start)" && cargo bench --bench rollout

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use evenkeel::clock::SystemClock;
use evenkeel::controller::{Connected, Core, Declared, Jobs, Parts, Removed, Scope, Settled, desired};
use evenkeel::runtime::docker::DockerRuntime;
use evenkeel::runtime::sandbox::{SandboxConfig, SandboxRuntime};
use evenkeel::runtime::{CreateRequest, Runtime};
use evenkeel::spec::{Prune, Signal, merge, parse};
use evenkeel::state::{Desired, DesiredService, Instance, InstanceId, Owner, StopCause, StopRequest};
use evenkeel::status::Status;
use futures::{StreamExt, stream};
use tokio::sync::{mpsc, watch};

const REPLICAS: u32 = 20;
const SURGE: usize = 5;
/// Updates of each kind; the median counts.
const ROUNDS: usize = 5;

/// An image of a runtime, by the fields of a service that need it.
struct Ground {
    runtime: Arc<dyn Runtime>,
    fields: String,
}

impl Ground {
    fn declared(&self, generation: u32) -> Declared {
        let text = format!(
            "version: v1\ndeployment: bench\nservices:\n  web:\n{}    command: {{entrypoint: [sleep, '100000']}}\n    \
             env: {{GENERATION: '{generation}'}}\n    init_container: false\n    stop_signal: KILL\n    \
             scale: {{mode: fixed, replicas: {REPLICAS}}}\n    \
             rollout: {{max_surge: {SURGE}, max_unavailable: 0, min_ready: 1ms}}\n",
            self.fields
        );
        let merged = merge(&[(PathBuf::from("/bench.yaml"), parse(&text))]);
        assert_eq!(merged.problems, []);
        let kind = self.runtime.kind();
        let deployments = merged.deployments.values().map(|one| (one.name.clone(), desired(one, kind))).collect();
        Declared { synced: true, desired: Desired { deployments }, ..Declared::default() }
    }

    fn service(&self, generation: u32) -> DesiredService {
        self.declared(generation).desired.deployments["bench"].services["web"].clone()
    }

    async fn launch(&self, service: &DesiredService, slot: u32) -> Instance {
        let id = InstanceId {
            deployment: "bench".into(),
            service: "web".into(),
            slot,
            revision: service.revision.clone(),
            attempt: 0,
            run: None,
        };
        let spec = service.spec.clone();
        let env = spec.env.iter().map(|(name, value)| (name.clone(), value.0.clone())).collect();
        let request = CreateRequest { id, restarts: 0, streak: 0, spec, env, source: None };
        self.runtime.ensure_image(&service.spec.image, &|_| {}).await.expect("an image");
        let created = self.runtime.create(&request).await.expect("created");
        self.runtime.start(&created.as_ref()).await.expect("started")
    }

    async fn retire(&self, old: &Instance) {
        let signal: Signal = "KILL".parse().expect("a signal");
        let stop = StopRequest { signal, grace: Duration::from_secs(10), cause: StopCause::Retired };
        self.runtime.stop(&old.as_ref(), &stop).await.expect("stopped");
        self.runtime.remove(&old.as_ref()).await.expect("removed");
    }

    /// The calls of one update, and nothing else.
    async fn floor(&self, rounds: usize) -> Vec<Duration> {
        let launch = |service: DesiredService| async move {
            let all = (0..REPLICAS).map(|slot| self.launch(&service, slot));
            stream::iter(all.collect::<Vec<_>>()).buffered(SURGE).collect::<Vec<Instance>>().await
        };
        let mut running = launch(self.service(0)).await;
        let mut times = Vec::new();
        for generation in 1..=u32::try_from(rounds).unwrap_or(u32::MAX) {
            let service = self.service(generation);
            let began = Instant::now();
            let update = async |old: &Instance| {
                let new = self.launch(&service, old.id.slot).await;
                self.retire(old).await;
                new
            };
            let updates: Vec<_> = running.iter().map(update).collect();
            let next = stream::iter(updates).buffer_unordered(SURGE).collect::<Vec<_>>().await;
            times.push(began.elapsed());
            running = next;
        }
        for instance in &running {
            self.retire(instance).await;
        }
        self.runtime.teardown("bench", evenkeel::runtime::Volumes::Keep).await.expect("torn down");
        times
    }

    /// The same by a controller.
    async fn keel(&self, rounds: usize) -> Vec<Duration> {
        let (declare, declared) = watch::channel(Arc::new(self.declared(0)));
        let (forget, mut forgotten) = mpsc::channel::<Settled>(8);
        let core = Core::start(Parts {
            runtimes: vec![Arc::new(Connected(self.runtime.clone()))],
            default_runtime: self.runtime.kind(),
            declared,
            clock: Arc::new(SystemClock),
            scope: Scope::Everything,
            removing: BTreeMap::new(),
            memory: BTreeMap::new(),
            keeper: None,
            jobs: Jobs::default(),
            activity: Default::default(),
            sessions: Default::default(),
            events: None,
            settled: Some(forget),
        });
        let mut status = core.status.clone();
        let mut times = Vec::new();
        for generation in 0..=u32::try_from(rounds).unwrap_or(u32::MAX) {
            let revision = self.service(generation).revision.to_string();
            let began = Instant::now();
            declare.send_replace(Arc::new(self.declared(generation)));
            let is_done = |status: &Status| {
                let all = || status.instances.iter();
                all().count() == REPLICAS as usize && all().all(|one| one.ready && one.revision == revision)
            };
            status.wait_for(|status| is_done(status)).await.expect("a core");
            times.extend((generation > 0).then(|| began.elapsed()));
        }
        let gone = Removed { prune: Prune::Auto, runtimes: [self.runtime.kind()].into() };
        let removed = BTreeMap::from([("bench".to_owned(), gone)]);
        declare.send_replace(Arc::new(Declared { synced: true, removed, ..Declared::default() }));
        forgotten.recv().await.expect("a core");
        times
    }

    async fn compare(&self) {
        let (floor, keel) = (median(self.floor(ROUNDS).await), median(self.keel(ROUNDS).await));
        let ratio = keel.as_secs_f64() / floor.as_secs_f64();
        println!("  {:<8} floor {floor:>8.1?}  keel {keel:>8.1?}  ratio {ratio:.2}", self.runtime.kind().to_string());
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn sandbox(folder: &Path) -> Option<Ground> {
    if !rustix::process::geteuid().is_root() || !Path::new("/bin/busybox").exists() {
        println!("  sandbox  skipped: needs root and /bin/busybox (Debian: busybox-static)");
        return None;
    }
    let root = folder.join("rootfs");
    for name in ["bin", "etc", "dev", "proc", "sys", "tmp"] {
        std::fs::create_dir_all(root.join(name)).expect("a directory");
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("a copy of busybox");
    std::os::unix::fs::symlink("busybox", root.join("bin/sleep")).expect("a link");
    let runtime = SandboxRuntime::open(SandboxConfig {
        root: folder.join("keel"),
        supervisor: PathBuf::from(env!("CARGO_BIN_EXE_keel")),
        owner: Owner("bench".to_owned()),
        hidden: Vec::new(),
    });
    let fields = format!("    image: {{name: 'dir:{}'}}\n", root.display());
    Some(Ground { runtime: Arc::new(runtime.expect("a sandbox runtime")), fields })
}

async fn docker() -> Option<Ground> {
    let Some(host) = std::env::var("KEEL_TEST_DOCKER_HOST").ok().filter(|host| !host.is_empty()) else {
        println!("  docker   skipped: no private engine; start one with: eval \"$(.ci/engines start)\"");
        return None;
    };
    let socket = PathBuf::from(host.trim_start_matches("unix://"));
    let owner = Owner(format!("bench-{}", std::process::id()));
    let runtime = DockerRuntime::connect(owner, Some(socket)).await.expect("an engine");
    let image = "    image: {name: 'keel-test/busybox:1', pull_policy: never}\n    network_mode: host\n";
    Some(Ground { runtime: Arc::new(runtime), fields: image.to_owned() })
}

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    println!("rolling update of {REPLICAS} replicas, {SURGE} at a time, median of {ROUNDS}");
    for ground in [sandbox(folder.path()), docker().await].into_iter().flatten() {
        ground.compare().await;
    }
}
