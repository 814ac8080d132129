//! The docker runtime: containers of a Docker Engine or a Podman service, over its Unix socket.
//!
//! Types of bollard stay inside this folder. Files that only convert (`body`, `changed`, `labels`, `limits`, `lost`, `mounts`, `names`,
//! `observe`, `unsupported`) are pure; the others make calls, each with a deadline.
//!
//! A list is one call for containers and one for networks. What it does not give (exit codes, times, process ids) is
//! remembered from inspections (`facts`), and a container is inspected only when its state is new, or when no event
//! stream was there to tell of changes. Engines do not say who ended a container, so stops are recorded (`Stops`), and what
//! ended with its engine is told by the times (`outage`).

mod archive;
mod attach;
mod body;
mod changed;
mod container;
mod dial;
mod enforcement;
mod engine;
mod error;
mod events;
mod exec;
mod facts;
mod image;
mod labels;
mod lenient;
mod limits;
mod list;
mod logs;
mod lost;
mod modes;
mod mounts;
mod names;
mod observe;
mod outage;
mod ping;
mod pins;
mod probe;
#[cfg(target_os = "linux")]
mod process;
#[cfg(not(target_os = "linux"))]
#[path = "process_elsewhere.rs"]
mod process;
mod raw;
mod readers;
mod reconnect;
mod require;
mod shared;
mod socket;
mod stage;
mod stats;
#[cfg(test)]
mod tests;
mod unrun;
mod unsupported;
mod workspace;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use async_trait::async_trait;
use futures::stream::BoxStream;
use tokio::sync::{Mutex, OnceCell, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::archive::Archives;
use self::changed::Field;
use self::dial::Places;
use self::engine::Engine;
use self::facts::Facts;
use self::image::Found;
use self::outage::Outages;
use self::pins::Pins;
use self::readers::Readers;
use self::shared::Networks;
use super::credentials::Credentials;
use super::stops::Stops;
use super::transfers::Transfers;
use super::{
    Capabilities, CreateRequest, Exec, Listing, Logs, Progress, Result, Runtime, RuntimeEvent, StopRecords,
    StopRequest, Suspend, Tags, Volumes,
};
use crate::spec::{Image, RuntimeKind, ServiceSpec};
use crate::state::{Condition, Instance, InstanceRef, Owner};

/// Calls side by side for each processor: four on two cores saturate Docker 20.10; more only queue inside it.
const CALLS_PER_CORE: usize = 2;

/// Most calls side by side, however many processors there are: a hundred removals at once were seen to lock Docker
/// 20.10 up for good. The executor lets four times as many through over all deployments, so this keeps them to 32.
const MOST_CALLS: usize = 8;

/// Containers of a Docker Engine or a Podman service.
#[derive(Debug)]
pub struct DockerRuntime {
    inner: Arc<Inner>,
    /// Ends the event streams with the adapter.
    ended: CancellationToken,
    _end: DropGuard,
}

/// Choices of [`DockerRuntime::connect_with`].
#[derive(Clone, Default)]
pub struct Options {
    /// The engine's socket; `DOCKER_HOST` or the default places when absent.
    pub socket: Option<PathBuf>,
    /// Directory of the `config.json` that holds registry credentials; `DOCKER_CONFIG` or `~/.docker` when absent.
    pub docker_config: Option<PathBuf>,
    /// Keeps why containers were stopped; without it, that is forgotten with the adapter.
    pub stops: Option<Arc<dyn StopRecords>>,
}

/// What the parts of the adapter share.
#[derive(Debug)]
struct Inner {
    owner: Owner,
    engine: Engine,
    facts: Facts,
    outages: Outages,
    readers: Arc<Readers>,
    networks: Networks,
    archives: Archives,
    places: Places,
    transfers: Transfers,
    found: Found,
    pins: Pins,
    /// Looks for images that are made at once.
    looks: Semaphore,
    credentials: Credentials,
    capabilities: Mutex<Option<Capabilities>>,
    /// Whether the engine says that it has an init program.
    init: OnceCell<bool>,
    /// Whether it turned out not to have one.
    init_refused: AtomicBool,
    /// Whether a create turned out to lose the weight of disk traffic.
    weight_refused: AtomicBool,
    /// What creates turned out to report otherwise than it was asked for.
    blind: std::sync::Mutex<BTreeSet<Field>>,
}

impl DockerRuntime {
    /// The runtime on this socket, or on the one that `DOCKER_HOST` names, or on the first of the default places of
    /// Docker and Podman that answers.
    ///
    /// An engine that does not answer is no error: calls give `Unavailable` until it does, and the connection is made
    /// and the version of its API agreed on then.
    ///
    /// # Errors
    /// `Unsupported` when `DOCKER_HOST` names something other than a Unix socket.
    pub async fn connect(owner: Owner, socket: Option<PathBuf>) -> Result<Self> {
        Self::connect_with(owner, Options { socket, ..Options::default() }).await
    }

    /// The same with every choice.
    ///
    /// # Errors
    /// As [`DockerRuntime::connect`], and where the records of stops can't be read.
    pub async fn connect_with(owner: Owner, options: Options) -> Result<Self> {
        let env = |key: &str| std::env::var(key).ok();
        let Options { socket, docker_config, stops } = options;
        let sockets = socket::sockets(socket, env, rustix::process::getuid().as_raw())?;
        let ended = CancellationToken::new();
        let inner = Inner {
            owner,
            engine: Engine::new(sockets),
            outages: Outages::open(stops.clone()).await?,
            facts: Facts::new(Stops::open(RuntimeKind::Docker, stops).await?),
            readers: Arc::default(),
            networks: Networks::default(),
            archives: Archives::default(),
            places: Places::default(),
            transfers: Transfers::default(),
            found: Found::default(),
            pins: Pins::default(),
            looks: Semaphore::new(image::LOOKS),
            credentials: docker_config.map_or_else(|| Credentials::from_env(env), Credentials::in_dir),
            capabilities: Mutex::default(),
            init: OnceCell::new(),
            init_refused: AtomicBool::new(false),
            weight_refused: AtomicBool::new(false),
            blind: std::sync::Mutex::default(),
        };
        if let Err(error) = inner.engine.client().await {
            tracing::warn!(%error, "the docker runtime is not ready; it is tried again with each call");
        }
        Ok(Self { inner: Arc::new(inner), _end: ended.clone().drop_guard(), ended })
    }

    /// Looks whether an engine answers on this socket, or where [`DockerRuntime::connect`] would look. Takes at most a few
    /// seconds; starts and changes nothing.
    ///
    /// # Errors
    /// None does: which place was tried, and why it is none.
    pub async fn reach(socket: Option<PathBuf>) -> Result<()> {
        let env = |key: &str| std::env::var(key).ok();
        let sockets = socket::sockets(socket, env, rustix::process::getuid().as_raw())?;
        Engine::new(sockets).client().await.map(drop)
    }

    /// The socket that is used, once one is known.
    pub fn socket(&self) -> Option<PathBuf> {
        self.inner.engine.socket()
    }
}

/// Calls side by side with so many processors.
fn concurrency(processors: usize) -> usize {
    (CALLS_PER_CORE * processors).min(MOST_CALLS)
}

#[async_trait]
impl Runtime for DockerRuntime {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Docker
    }

    async fn capabilities(&self) -> Result<Capabilities> {
        self.inner.capabilities().await
    }

    fn unsupported(&self, spec: &ServiceSpec) -> Vec<Condition> {
        unsupported::unsupported(spec, self.inner.engine.known_product())
    }

    async fn enforcement(&self, instance: &InstanceRef) -> Result<Vec<super::Enforcement>> {
        self.inner.enforcement(instance).await
    }

    async fn list(&self) -> Result<Listing> {
        self.inner.list().await
    }

    async fn inspect(&self, instance: &InstanceRef) -> Result<Option<Instance>> {
        self.inner.look(instance).await
    }

    async fn events(&self) -> Result<BoxStream<'static, RuntimeEvent>> {
        Ok(events::changes(self.inner.clone(), self.ended.clone()))
    }

    async fn ensure_image(&self, image: &Image, progress: &(dyn Fn(Progress) + Send + Sync)) -> Result<()> {
        self.inner.ensure_image(image, progress).await
    }

    fn tags(&self) -> Option<&dyn Tags> {
        Some(self)
    }

    async fn create(&self, request: &CreateRequest) -> Result<Instance> {
        self.inner.create(request).await
    }

    async fn start(&self, instance: &InstanceRef) -> Result<Instance> {
        self.inner.start(instance).await
    }

    async fn stop(&self, instance: &InstanceRef, stop: &StopRequest) -> Result<Option<Instance>> {
        self.inner.stop(instance, stop).await
    }

    async fn await_readers(&self, instance: &InstanceRef) {
        self.inner.await_readers(instance).await;
    }

    async fn remove(&self, instance: &InstanceRef) -> Result<()> {
        self.inner.remove(instance).await
    }

    async fn remove_with_slot(&self, instance: &InstanceRef, workspace: Volumes) -> Result<()> {
        self.inner.remove_with_slot(instance, workspace).await
    }

    async fn teardown(&self, deployment: &str, volumes: Volumes) -> Result<()> {
        self.inner.teardown(deployment, volumes).await
    }

    async fn has_volumes(&self, deployment: &str) -> Result<bool> {
        Ok(!self.inner.volumes_of(deployment).await?.is_empty())
    }

    fn logs(&self) -> Option<&dyn Logs> {
        Some(self)
    }

    fn exec(&self) -> Option<&dyn Exec> {
        Some(self)
    }

    fn dial(&self) -> Option<&dyn super::Dial> {
        Some(self)
    }

    fn attach(&self) -> Option<&dyn super::Attach> {
        Some(self)
    }

    fn suspend(&self) -> Option<&dyn Suspend> {
        Some(self)
    }

    fn stats(&self) -> Option<&dyn super::Stats> {
        Some(self)
    }

    fn concurrency(&self) -> usize {
        concurrency(std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
    }
}

#[async_trait]
impl Suspend for DockerRuntime {
    async fn pause(&self, instance: &InstanceRef) -> Result<Instance> {
        self.inner.pause(instance).await
    }

    async fn resume(&self, instance: &InstanceRef) -> Result<Instance> {
        self.inner.resume(instance).await
    }
}

#[async_trait]
impl Tags for DockerRuntime {
    async fn digest(&self, reference: &str) -> Result<String> {
        self.inner.digest(reference).await
    }
}
