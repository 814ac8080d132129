//! Docker Engine and Podman's service, each a private one that `.ci/engines` starts.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use evenkeel::controller::StoredStops;
use evenkeel::runtime::docker::{DockerRuntime, Options};
use evenkeel::runtime::{Runtime, StopRecords, Volumes};
use evenkeel::spec::{Image, PullPolicy};
use evenkeel::state::Owner;
use evenkeel::store::Store;
use tokio::sync::{Mutex, MutexGuard};

use crate::engine::{Kind, socket};
use crate::harness::{Abilities, Harness};

/// Names are the engine's and the same in every test of a process, so that only one of them may run at once.
static ALONE: Mutex<()> = Mutex::const_new(());

/// An engine and two owners on it.
struct Engine {
    socket: PathBuf,
    owners: [Owner; 2],
    /// What outlives the handles of each owner.
    stops: [Arc<dyn StopRecords>; 2],
    _alone: MutexGuard<'static, ()>,
}

impl Engine {
    async fn open(kind: Kind) -> Result<Self, String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let socket = socket(kind).ok_or("no private engine; start one with `eval \"$(.ci/engines start)\"`")?;
        let alone = ALONE.lock().await;
        let unique = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let owners = ["first", "second"].map(|owner| Owner(format!("{owner}-{unique}")));
        let stops = [(); 2].map(|()| -> Arc<dyn StopRecords> {
            Arc::new(StoredStops { store: Arc::new(Store::in_memory().expect("a database")), read_only: false })
        });
        Ok(Self { socket, owners, stops, _alone: alone })
    }

    async fn runtime(&self, owner: usize) -> DockerRuntime {
        let (socket, stops) = (Some(self.socket.clone()), Some(self.stops[owner].clone()));
        let options = Options { socket, stops, ..Options::default() };
        DockerRuntime::connect_with(self.owners[owner].clone(), options).await.expect("a runtime")
    }

    async fn clear(&self) {
        for owner in 0..self.owners.len() {
            let runtime = self.runtime(owner).await;
            let listing = runtime.list().await.expect("list");
            for instance in &listing.instances {
                runtime.remove(&instance.as_ref()).await.expect("remove");
            }
            for deployment in &listing.shared {
                runtime.teardown(deployment, Volumes::Remove).await.expect("teardown");
            }
        }
    }
}

fn image(name: &str) -> Image {
    Image { name: name.parse().expect("an image"), pull_policy: Some(PullPolicy::Never) }
}

macro_rules! engine {
    ($module:ident, $name:ident) => {
        mod $module {
            use super::*;

            struct $name(Engine);

            #[async_trait]
            impl Harness for $name {
                const NAME: &'static str = stringify!($module);

                async fn open() -> Result<Self, String> {
                    Engine::open(Kind::$name).await.map(Self)
                }

                async fn runtime(&self) -> Arc<dyn Runtime> {
                    Arc::new(self.0.runtime(0).await)
                }

                async fn stranger(&self) -> Arc<dyn Runtime> {
                    Arc::new(self.0.runtime(1).await)
                }

                fn image(&self) -> Image {
                    image("keel-test/busybox:1")
                }

                fn missing_image(&self) -> Image {
                    image("keel-test/missing:1")
                }

                fn unsupported_image(&self) -> Option<Image> {
                    Some(image("dir:/"))
                }

                fn abilities(&self) -> Abilities {
                    // Podman's monitor was seen to miss such kills where both versions of control groups are mounted.
                    let tells_memory_kills = matches!(Kind::$name, Kind::Docker);
                    // The engine keeps lines as strings of JSON.
                    let keeps_bytes = !matches!(Kind::$name, Kind::Docker);
                    Abilities { shared_networks: true, names_per_owner: false, tells_memory_kills, keeps_bytes }
                }

                /// Engines on a machine that builds at the same time are slow.
                fn patience(&self) -> Duration {
                    Duration::from_secs(60)
                }

                async fn close(self) {
                    self.0.clear().await;
                }
            }

            conformance!($name, tokio::test(flavor = "multi_thread", worker_threads = 2));
        }
    };
}

engine!(docker, Docker);
engine!(podman, Podman);
