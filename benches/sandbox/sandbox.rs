//! The sandbox runtime, as the controller calls it.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use evenkeel::runtime::sandbox::{SandboxConfig, SandboxRuntime};
use evenkeel::runtime::{CreateRequest, Runtime, RuntimeEvent};
use evenkeel::spec::ServiceSpec;
use evenkeel::state::{Instance, InstanceId, Owner, Phase};
use futures::{StreamExt, stream};

use super::memory;

pub struct Rig {
    runtime: SandboxRuntime,
    root: PathBuf,
    image: PathBuf,
    next: AtomicU32,
}

fn open(root: &Path) -> SandboxRuntime {
    SandboxRuntime::open(SandboxConfig {
        root: root.to_owned(),
        supervisor: PathBuf::from(env!("CARGO_BIN_EXE_keel")),
        owner: Owner("bench".to_owned()),
        hidden: Vec::new(),
    })
    .expect("a sandbox runtime")
}

impl Rig {
    pub fn new(root: &Path, image: &Path) -> Self {
        let rig = Self { runtime: open(root), root: root.to_owned(), image: image.to_owned(), next: AtomicU32::new(0) };
        std::fs::create_dir_all(rig.out()).expect("a directory");
        rig
    }

    /// Where programs write to, on the machine: beside the runtime's own files, which no program is shown.
    fn out(&self) -> PathBuf {
        self.root.with_file_name("out")
    }

    fn request(&self, command: &str, more: &str) -> CreateRequest {
        let yaml =
            format!("image: {{ name: 'dir:{}' }}\ncommand: {{ entrypoint: {command} }}\n{more}", self.image.display());
        CreateRequest {
            id: InstanceId {
                deployment: "bench".into(),
                service: "web".into(),
                slot: self.next.fetch_add(1, Ordering::Relaxed),
                revision: "v1-0123456789abcdef".parse().expect("a revision"),
                attempt: 0,
                run: None,
            },
            restarts: 0,
            streak: 0,
            spec: Arc::new(serde_yaml::from_str::<ServiceSpec>(&yaml).expect("a spec")),
            env: BTreeMap::new(),
            source: None,
        }
    }

    async fn run(&self, request: &CreateRequest) -> Instance {
        let created = self.runtime.create(request).await.expect("created");
        self.runtime.start(&created.as_ref()).await.expect("started")
    }

    pub async fn to_first_byte(&self) -> Duration {
        let fifo = super::floor::fifo(&self.out());
        let storage = format!("storage: [{{ type: bind, source: {}, target: /out }}]", self.out().display());
        let request = self.request("[sh, -c, 'echo > /out/first']", &storage);
        let reader = tokio::task::spawn_blocking(move || {
            let mut byte = [0];
            std::fs::File::open(fifo).and_then(|mut fifo| fifo.read_exact(&mut byte)).expect("a byte");
            Instant::now()
        });
        let began = Instant::now();
        let instance = self.run(&request).await;
        let ended = reader.await.expect("a reader");
        self.runtime.remove(&instance.as_ref()).await.expect("removed");
        ended - began
    }

    pub async fn to_exit(&self) -> Duration {
        let mut events = self.runtime.events().await.expect("events");
        let request = self.request("['true']", "");
        let began = Instant::now();
        let instance = self.run(&request).await;
        if !matches!(instance.phase, Phase::Exited(_)) {
            loop {
                match events.next().await.expect("an event") {
                    RuntimeEvent::Changed(one) if one.id == instance.id && matches!(one.phase, Phase::Exited(_)) => {
                        break;
                    }
                    _ => {}
                }
            }
        }
        let took = began.elapsed();
        self.runtime.remove(&instance.as_ref()).await.expect("removed");
        took
    }

    async fn start_many(&self, count: usize) -> Vec<Instance> {
        let requests: Vec<_> = (0..count).map(|_| self.request("[sleep, '100000']", "")).collect();
        stream::iter(&requests)
            .map(|request| self.run(request))
            .buffer_unordered(self.runtime.concurrency())
            .collect()
            .await
    }

    async fn remove_many(&self, instances: &[Instance]) {
        stream::iter(instances)
            .for_each_concurrent(self.runtime.concurrency(), |instance| async {
                self.runtime.remove(&instance.as_ref()).await.expect("removed");
            })
            .await;
    }

    pub async fn many(&self, count: usize) -> Duration {
        let began = Instant::now();
        let instances = self.start_many(count).await;
        let took = began.elapsed();
        self.remove_many(&instances).await;
        took
    }

    pub async fn at_rest(&self, count: usize) {
        let instances = self.start_many(count).await;
        // What rests has given up what it does not need.
        tokio::time::sleep(Duration::from_secs(2)).await;
        memory::print(&instances, &self.root);
        self.remove_many(&instances).await;
    }

    pub async fn adopted(&self, count: usize) {
        let instances = self.start_many(count).await;
        let began = Instant::now();
        let second = open(&self.root);
        let events = second.events().await.expect("events");
        let listing = second.list().await.expect("a list");
        let took = began.elapsed();
        drop(events);
        let running = listing.instances.iter().filter(|one| matches!(one.phase, Phase::Running { .. })).count();
        println!("{running} running instances adopted in {:.3} ms", took.as_secs_f64() * 1e3);
        assert_eq!(running, count);
        self.remove_many(&instances).await;
    }
}
