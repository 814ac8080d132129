//! What the tests share: a runtime on a private engine under an owner of its own, and short ways to ask for instances.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use evenkeel::controller::StoredStops;
use evenkeel::runtime::docker::{DockerRuntime, Options};
use evenkeel::runtime::{CreateRequest, Runtime, RuntimeEvent, StopRecords, StopRequest, Volumes};
use evenkeel::spec::{ServiceSpec, Signal};
use evenkeel::state::{Instance, InstanceId, Owner, Phase, StopCause};
use evenkeel::store::Store;
use futures::StreamExt;
use futures::stream::BoxStream;

use crate::engine;

/// The image that `.ci/engines` imports: busybox alone.
pub const IMAGE: &str = "keel-test/busybox:1";

/// Longest wait for anything in these tests; engines on busy machines are slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A runtime on a private engine. What it makes is removed by [`Bench::clear`].
pub struct Bench {
    pub runtime: DockerRuntime,
    pub socket: PathBuf,
    pub deployment: String,
    /// What outlives the runtime.
    pub stops: Arc<dyn StopRecords>,
    owner: Owner,
}

impl Bench {
    /// A runtime under an owner and with a deployment that no other test has; `None` where the engine is missing.
    pub async fn new(kind: engine::Kind) -> Option<Self> {
        Some(Self::on(engine::socket(kind)?).await)
    }

    /// The same on this socket.
    pub async fn on(socket: PathBuf) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let owner = Owner(format!("test-{unique}"));
        let stops: Arc<dyn StopRecords> =
            Arc::new(StoredStops { store: Arc::new(Store::in_memory().unwrap()), read_only: false });
        let runtime = connect(&owner, &socket, &stops).await;
        Self { runtime, socket, deployment: format!("t{unique}"), stops, owner }
    }

    /// A new runtime of the same owner, as a controller makes one at its start.
    pub async fn reopened(&self) -> DockerRuntime {
        connect(&self.owner, &self.socket, &self.stops).await
    }

    /// An identity in this bench's deployment.
    pub fn id(&self, service: &str, slot: u32) -> InstanceId {
        InstanceId {
            deployment: self.deployment.clone(),
            service: service.to_owned(),
            slot,
            revision: "v1-0123456789abcdef".parse().unwrap(),
            attempt: 0,
            run: None,
        }
    }

    /// Creates and starts an instance.
    pub async fn run(&self, request: &CreateRequest) -> Instance {
        let created = self.runtime.create(request).await.unwrap();
        self.runtime.start(&created.as_ref()).await.unwrap()
    }

    /// A request for a service that is written as YAML, without its image.
    pub fn request(&self, service: &str, slot: u32, yaml: &str) -> CreateRequest {
        request(self.id(service, slot), &spec(yaml))
    }

    /// Waits until an instance has ended.
    pub async fn until_ended(&self, id: &InstanceId) -> Instance {
        until_ended(&self.runtime, id).await
    }

    /// Waits until the list shows of an instance what is looked for.
    pub async fn until<T>(&self, id: &InstanceId, looked_for: impl Fn(&Instance) -> Option<T>) -> T {
        until(&self.runtime, id, looked_for).await
    }

    /// Whether the engine is Podman's.
    pub fn is_podman(&self) -> bool {
        self.socket.ends_with("podman.sock")
    }

    /// Runs the engine's own command line on the bench's socket.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let output = std::process::Command::new("docker")
            .arg("--host")
            .arg(format!("unix://{}", self.socket.display()))
            .args(arguments)
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        assert!(output.status.success(), "docker {arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// The installation that the bench stands for.
    pub const fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Removes everything that the bench made.
    pub async fn clear(&self) {
        for instance in self.runtime.list().await.unwrap().instances {
            self.runtime.remove(&instance.as_ref()).await.unwrap();
        }
        self.runtime.teardown(&self.deployment, Volumes::Remove).await.unwrap();
    }
}

async fn connect(owner: &Owner, socket: &Path, stops: &Arc<dyn StopRecords>) -> DockerRuntime {
    let (socket, stops) = (Some(socket.to_owned()), Some(stops.clone()));
    DockerRuntime::connect_with(owner.clone(), Options { socket, stops, ..Options::default() }).await.unwrap()
}

/// Waits until this runtime says that an instance has ended.
pub async fn until_ended(runtime: &DockerRuntime, id: &InstanceId) -> Instance {
    until(runtime, id, |found| matches!(found.phase, Phase::Exited(_)).then(|| found.clone())).await
}

/// Waits until a list of this runtime shows of an instance what is looked for.
async fn until<T>(runtime: &DockerRuntime, id: &InstanceId, looked_for: impl Fn(&Instance) -> Option<T>) -> T {
    let wait = async {
        loop {
            let listing = runtime.list().await.unwrap();
            let instance = listing.instances.iter().find(|found| found.id == *id);
            if let Some(found) = instance.and_then(&looked_for) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the list shows it")
}

/// A spec of the test image.
pub fn spec(yaml: &str) -> ServiceSpec {
    serde_yaml::from_str(&format!("image: {{name: {IMAGE}, pull_policy: never}}\n{yaml}")).unwrap()
}

/// A request for one instance of a spec, its environment taken as written.
pub fn request(id: InstanceId, spec: &ServiceSpec) -> CreateRequest {
    let env: BTreeMap<_, _> = spec.env.iter().map(|(name, value)| (name.clone(), value.0.clone())).collect();
    CreateRequest { id, restarts: 0, streak: 0, spec: Arc::new(spec.clone()), env, source: None }
}

/// A stop with this grace.
pub fn stop(grace: Duration) -> StopRequest {
    StopRequest { signal: Signal::TERM, grace, cause: StopCause::Retired }
}

/// The next event that this recognises; others are passed over.
pub async fn next<T>(
    events: &mut BoxStream<'static, RuntimeEvent>,
    recognise: impl Fn(&RuntimeEvent) -> Option<T>,
) -> T {
    let wait = async {
        loop {
            let event = events.next().await.expect("the stream goes on");
            if let Some(found) = recognise(&event) {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the event arrives")
}

/// Runs each of these on each engine, and removes what it made.
#[macro_export]
macro_rules! on_both_engines {
    ($($test:ident),* $(,)?) => {
        mod docker {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let Some(bench) = $crate::harness::Bench::new($crate::engine::Kind::Docker).await else { return };
                super::$test(&bench).await;
                bench.clear().await;
            })*
        }
        mod podman {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let Some(bench) = $crate::harness::Bench::new($crate::engine::Kind::Podman).await else { return };
                super::$test(&bench).await;
                bench.clear().await;
            })*
        }
    };
}
