//! The built-in runtime: programs of this machine in namespaces of their own, without a daemon.
//!
//! One small supervisor process per instance, forked from this same program, starts the program, keeps its output and
//! records how it ended; it goes on when the controller does not. Everything that is known of an instance is in
//! its directory (`layout.rs`), so that any process with the same root sees the same.

mod ancestry;
mod attach;
mod bounds;
mod capabilities;
mod cgroup;
mod confinement;
mod connect;
mod connections;
mod copy;
mod descriptors;
mod devices;
mod dial;
mod dispatch;
mod enforcement;
mod enter;
mod etc;
mod exec;
mod failure;
mod filters;
mod fresh;
mod graft;
mod image;
mod init;
mod inside;
mod landlock;
mod late_mounts;
mod layout;
mod leftovers;
mod lifecycle;
mod lifeline;
mod links;
mod lock;
mod logs;
mod mountinfo;
mod name_files;
mod network;
mod observe;
mod order;
mod output;
mod overlay;
mod own_disk;
mod own_files;
mod privileges;
mod probe;
pub(super) mod process;
mod program;
mod protected;
mod pty;
mod quota;
mod readers;
mod readiness;
mod reaper;
mod record;
mod remnants;
mod remove;
mod requested;
mod root_user;
mod rootfs;
mod seccomp;
mod seen;
mod settle;
mod skeleton;
mod spawner;
mod stats;
mod supervise;
mod suspend;
mod sys;
mod sysctls;
mod sysfs;
mod translate;
mod unsupported;
mod unwritable;
mod users;
mod volumes;
mod watch;
mod words;
mod workspace;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::stream::BoxStream;
use tokio::sync::OnceCell;

pub use ancestry::{is_inside, status_field};
pub use dispatch::dispatch;
pub use image::unpack_layer;
pub use process::has_ended;
pub use sys::peer::process_of_peer;

use super::credentials::Credentials;
use super::files::is_plain_name;
use super::{
    Capabilities, CreateRequest, ErrorKind, Listing, Progress, Result, Runtime, RuntimeError, RuntimeEvent,
    StopRequest, Volumes,
};
use crate::spec::{Image, ImageRef, RuntimeKind};
use crate::state::{Instance, InstanceRef, Owner, Phase};
use bounds::{CREATE_LIMIT, FILE_LIMIT, LIST_LIMIT, REMOVE_LIMIT, bounded};
use filters::Filters;
use image::Images;
use layout::{InstanceDir, Layout};
use observe::{Entry, Found, View};
use own_files::Everywhere;
use probe::Probe;
use spawner::Spawner;
use watch::Watch;

/// Where the program of this runtime is found inside an instance whose root is the machine's.
pub const KEEL_INSIDE: &str = "/run/keel/bin/keel";
/// Longest time that probing the machine may take. It takes some milliseconds, and much longer where everything else
/// wants the processors too; what can't be probed is not enforced, so it is better waited for.
const PROBE_LIMIT: Duration = Duration::from_secs(60);
/// Longest time that a look at an instance waits for the record of an end that has already come. The supervisor writes it
/// within milliseconds; where many processes are left to be killed it takes longer.
const RECORD_LIMIT: Duration = Duration::from_millis(250);
/// Pause between two looks for that record.
const RECORD_PACE: Duration = Duration::from_millis(5);
/// Calls per core that this runtime serves well side by side: a start is one third computing and two thirds waiting
/// for the kernel's global locks.
const CALLS_PER_CORE: usize = 4;

/// What a sandbox runtime is made of.
#[derive(Debug, Clone)]
pub struct SandboxConfig {
    /// Directory of this runtime; made where it is missing.
    pub root: PathBuf,
    /// This program, which is re-executed to supervise instances. It must call [`dispatch()`] first in its `main`.
    pub supervisor: PathBuf,
    /// Installation whose instances this runtime sees.
    pub owner: Owner,
    /// Further directories that no instance may see, whatever of the machine is shown to it, such as the state directory
    /// with the controller's socket and the secrets of all services. The root of this runtime always is such a one.
    pub hidden: Vec<PathBuf>,
}

/// What this runtime could enforce on this machine, found out without a root. `program` is this program, which is
/// executed to try things out in a process of its own.
pub async fn survey(program: &std::path::Path) -> Capabilities {
    capabilities::report(&lifecycle::probe(program, &std::env::temp_dir()).await)
}

/// The built-in runtime.
#[derive(Debug, Clone)]
pub struct SandboxRuntime {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: SandboxConfig,
    view: Arc<View>,
    probe: OnceCell<Probe>,
    spawner: Spawner,
    watch: Arc<Watch>,
    watching: OnceLock<()>,
    images: Images,
    own_files: Everywhere,
    filters: Filters,
    places: dial::Places,
}

/// Remembers in a root of this runtime whether its instances may have devices and graphics processors of the machine, which
/// they may where nothing is remembered. It holds for what is created from then on, whoever asks for it.
///
/// # Errors
/// The directory can't be written.
pub fn allow_devices(root: &std::path::Path, allowed: bool) -> std::io::Result<()> {
    Layout::new(root).prepare()?;
    devices::allow(root, allowed)
}

/// How registries are talked to.
#[derive(Debug, Clone, Default)]
pub struct RegistryOptions {
    /// Directory of the `config.json` that holds credentials; `DOCKER_CONFIG` or `~/.docker` when absent.
    pub docker_config: Option<PathBuf>,
    /// Directory that holds, in a directory per registry, the certificate authorities that are trusted besides the
    /// machine's; `/etc/docker/certs.d` when absent.
    pub certificates: Option<PathBuf>,
}

impl SandboxRuntime {
    /// Opens a root, making it where it is missing.
    ///
    /// # Errors
    /// `Unavailable` when the directories can't be made.
    pub fn open(config: SandboxConfig) -> Result<Self> {
        Self::open_with(config, RegistryOptions::default())
    }

    /// The same with registries talked to in a way of one's own.
    ///
    /// # Errors
    /// `Unavailable` when the directories can't be made.
    pub fn open_with(mut config: SandboxConfig, registries: RegistryOptions) -> Result<Self> {
        descriptors::raise();
        let layout = Layout::new(&config.root);
        layout.prepare().map_err(|error| {
            unavailable(format!("the sandbox directory {} can't be made: {error}", config.root.display()))
        })?;
        // Instances are told of paths as the machine has them.
        config.root = std::fs::canonicalize(&config.root)
            .map_err(|error| unavailable(format!("{} can't be opened: {error}", config.root.display())))?;
        config.hidden.push(config.root.clone());
        for path in &mut config.hidden {
            if let Ok(real) = std::fs::canonicalize(&*path) {
                *path = real;
            }
        }
        let view = Arc::new(View::new(Layout::new(&config.root), config.owner.clone()));
        let watch = Arc::new(Watch::new(Arc::clone(&view)));
        let credentials = match registries.docker_config {
            Some(folder) => Credentials::in_dir(folder),
            None => Credentials::from_env(|name| std::env::var(name).ok()),
        };
        let certificates = registries.certificates.unwrap_or_else(|| PathBuf::from(image::CERTIFICATES));
        let images = Images::new(&config.root, image::Access { credentials, certificates });
        let spawner = Spawner::new(config.supervisor.clone());
        let own_files = Everywhere::default();
        let inner = Inner {
            config,
            view,
            probe: OnceCell::new(),
            spawner,
            watch,
            watching: OnceLock::new(),
            images,
            own_files,
            filters: Filters::default(),
            places: dial::Places::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    async fn probe(&self) -> &Probe {
        let inner = &self.inner;
        inner.probe.get_or_init(|| lifecycle::probe(&inner.config.supervisor, inner.view.layout.root())).await
    }

    /// Removes images that nothing needs, where that can be done now.
    async fn collected(&self) {
        match self.collect_images().await {
            Ok(names) if names.is_empty() => {}
            Ok(names) => tracing::info!(images = names.join(", "), "removed images that nothing needs"),
            Err(error) => tracing::warn!(%error, "images that nothing needs stay for now"),
        }
    }

    /// Does file work for one instance or deployment. Work that takes longer than this says nothing about the others:
    /// it failed.
    async fn blocking<T: Send + 'static>(
        &self,
        what: &'static str,
        limit: Duration,
        action: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = Arc::clone(&self.inner);
        bounded(what, limit, ErrorKind::Failed, move || action(&inner)).await
    }

    /// Removes images that no instance needs and that were not used for a week, or for two minutes where the disk is
    /// nearly full. Returns their names. This also happens by itself: after an image came, and after a teardown.
    ///
    /// # Errors
    /// `Failed` when what is there can't be read.
    pub async fn collect_images(&self) -> Result<Vec<String>> {
        self.blocking("removing images", REMOVE_LIMIT, Inner::collect_images).await
    }

    /// The instance as it is on disk; `None` when it is gone.
    async fn look(&self, instance: &InstanceRef) -> Result<Option<Found>> {
        let id = checked_id(instance)?;
        self.blocking("reading an instance", FILE_LIMIT, move |inner| inner.find(&id)).await
    }
}

impl Inner {
    fn find(&self, runtime_id: &str) -> Result<Option<Found>> {
        match self.view.one(runtime_id) {
            Ok(Entry::Ours(found)) => Ok(Some(*found)),
            Ok(Entry::Nothing | Entry::Foreign(_)) => Ok(None),
            Err(error) => Err(failed(&format!("reading the records of {runtime_id}"), &error)),
        }
    }

    fn collect_images(&self) -> Result<Vec<String>> {
        self.images.collect(&self.view.layout)
    }

    fn dir(&self, runtime_id: &str) -> InstanceDir {
        self.view.layout.instance(runtime_id)
    }
}

#[async_trait]
impl Runtime for SandboxRuntime {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Sandbox
    }

    async fn capabilities(&self) -> Result<Capabilities> {
        let mut report = capabilities::report(self.probe().await);
        if self.inner.view.layout.denies_devices() {
            report.version = format!("{}; {}", report.version, devices::SWITCHED_OFF);
        }
        Ok(report)
    }

    async fn enforcement(&self, instance: &InstanceRef) -> Result<Vec<super::Enforcement>> {
        self.tell_enforcement(instance).await
    }

    async fn list(&self) -> Result<Listing> {
        let inner = Arc::clone(&self.inner);
        let read = move || {
            let broken = inner.filters.look(&inner.view.layout, |alias, what| {
                let own = inner.networks().aliases().ok();
                if let Some(deployment) = own.and_then(|own| alias.strip_prefix(&own).map(str::to_owned)) {
                    inner.watch.tell_mended(deployment, what);
                }
            });
            let mut found = inner.view.all().map_err(|error| {
                unavailable(format!("{} can't be read: {error}", inner.view.layout.instances().display()))
            })?;
            filters::tell(&mut found, &broken, inner.networks());
            let shared = network::deployments(inner.networks())
                .map_err(|error| unavailable(format!("the networks of deployments can't be read: {error}")))?;
            Ok((found, shared))
        };
        let (found, shared) = bounded("listing instances", LIST_LIMIT, ErrorKind::Timeout, read).await?;
        self.inner.watch.tell_all(&found).await;
        Ok(Listing { instances: found.into_iter().map(|one| one.instance).collect(), shared })
    }

    async fn inspect(&self, instance: &InstanceRef) -> Result<Option<Instance>> {
        // Who asks about one instance wants to use it. A list does without this look, which costs one call per instance.
        let end = Instant::now() + RECORD_LIMIT;
        loop {
            let Some(mut found) = self.look(instance).await? else { return Ok(None) };
            let is_ending =
                found.is_ending().map_err(|error| failed("looking for the program of an instance", &error))?;
            if is_ending && Instant::now() < end {
                tokio::time::sleep(RECORD_PACE).await;
                continue;
            }
            if is_ending {
                found.instance.phase = Phase::Stopping;
            }
            return Ok(Some(found.instance));
        }
    }

    async fn events(&self) -> Result<BoxStream<'static, RuntimeEvent>> {
        let watch = &self.inner.watch;
        self.inner.watching.get_or_init(|| watch.start());
        // A controller that begins to watch may follow one that was killed. Nothing waits for what is left of that to go.
        let inner = Arc::clone(&self.inner);
        std::thread::spawn(move || leftovers::sweep(&inner.view.layout));
        // What exists already is known before anything new is told.
        watch.look_at_all().await;
        Ok(watch.subscribe())
    }

    async fn ensure_image(&self, image: &Image, progress: &(dyn Fn(Progress) + Send + Sync)) -> Result<()> {
        match &image.name {
            ImageRef::Host => Ok(()),
            ImageRef::Dir(path) => {
                let path = path.clone();
                let look = move || match std::fs::metadata(&path) {
                    Ok(data) if data.is_dir() => Ok(()),
                    Ok(_) => {
                        Err(no_image(format!("image: dir:{path} is not a directory; unpack a root file system there")))
                    }
                    Err(error) => Err(no_image(format!("image: dir:{path}: {error}; unpack a root file system there"))),
                };
                bounded(&format!("looking at {}", image.name), FILE_LIMIT, ErrorKind::Failed, look).await
            }
            ImageRef::Registry(_) | ImageRef::Oci { .. } | ImageRef::OciArchive(_) | ImageRef::DockerArchive(_) => {
                if self.inner.images.ensure(image, progress).await? {
                    // Room for the next one; nobody waits for it.
                    let runtime = self.clone();
                    tokio::spawn(async move { runtime.collected().await });
                }
                Ok(())
            }
        }
    }

    fn need_images(&self, names: BTreeSet<String>) {
        self.inner.images.need(names);
    }

    fn tags(&self) -> Option<&dyn super::Tags> {
        Some(self)
    }

    async fn create(&self, request: &CreateRequest) -> Result<Instance> {
        let (probe, request) = (self.probe().await.clone(), request.clone());
        let found =
            self.blocking("creating an instance", CREATE_LIMIT, move |inner| inner.create(&probe, &request)).await?;
        self.inner.places.forget(&found.instance.runtime_id);
        self.inner.watch.tell(&found).await;
        self.inner.view.layout.wake_others();
        Ok(found.instance)
    }

    async fn start(&self, instance: &InstanceRef) -> Result<Instance> {
        let found = self.start_instance(instance).await?;
        self.inner.watch.tell(&found).await;
        self.inner.view.layout.wake_others();
        Ok(found.instance)
    }

    async fn stop(&self, instance: &InstanceRef, stop: &StopRequest) -> Result<Option<Instance>> {
        let found = self.stop_instance(instance, stop).await?;
        if let Some(found) = &found {
            self.inner.watch.tell(found).await;
        }
        Ok(found.map(|found| found.instance))
    }

    async fn await_readers(&self, instance: &InstanceRef) {
        self.readers_done(instance).await;
    }

    async fn remove_with_slot(&self, instance: &InstanceRef, workspace: Volumes) -> Result<()> {
        if workspace == Volumes::Keep {
            self.keep_workspaces_of(instance).await?;
            return self.remove(instance).await;
        }
        let workspaces = self.workspaces_of(instance).await?;
        self.remove(instance).await?;
        match workspaces.is_empty() {
            true => Ok(()),
            false => self.remove_workspaces(instance, workspaces).await,
        }
    }

    async fn remove(&self, instance: &InstanceRef) -> Result<()> {
        let id = checked_id(instance)?;
        self.remove_instance(instance).await?;
        self.inner.places.forget(&id);
        self.inner.watch.tell_gone(&id);
        Ok(())
    }

    async fn teardown(&self, deployment: &str, volumes: Volumes) -> Result<()> {
        self.collected().await;
        cgroup::remove_unused(&self.probe().await.homes);
        self.blocking("removing networks", REMOVE_LIMIT, |inner| {
            leftovers::sweep(&inner.view.layout);
            network::sweep(inner.networks()).map_err(|error| failed("removing networks that nothing uses", &error))
        })
        .await?;
        if volumes == Volumes::Keep {
            return Ok(());
        }
        let deployment = deployment.to_owned();
        self.blocking("removing volumes", REMOVE_LIMIT, move |inner| {
            if !is_plain_name(&deployment) {
                return Err(not_a_name(&deployment));
            }
            inner.refuse_foreign(&deployment)?;
            volumes::remove(&inner.view.layout.volumes(&deployment))
                .map_err(|error| failed(&format!("removing the volumes of {deployment}"), &error))
        })
        .await
    }

    async fn has_volumes(&self, deployment: &str) -> Result<bool> {
        if !is_plain_name(deployment) {
            return Err(not_a_name(deployment));
        }
        let folder = self.inner.view.layout.volumes(deployment);
        self.blocking("looking for volumes", FILE_LIMIT, move |_| {
            let what = || format!("looking for volumes in {}", folder.display());
            volumes::are_in(&folder).map_err(|error| failed(&what(), &error))
        })
        .await
    }

    fn logs(&self) -> Option<&dyn super::Logs> {
        Some(self)
    }

    fn exec(&self) -> Option<&dyn super::Exec> {
        Some(self)
    }

    fn dial(&self) -> Option<&dyn super::Dial> {
        Some(self)
    }

    fn attach(&self) -> Option<&dyn super::Attach> {
        Some(self)
    }

    fn suspend(&self) -> Option<&dyn super::Suspend> {
        Some(self)
    }

    fn late_mounts(&self) -> Option<&dyn super::LateMounts> {
        Some(self)
    }

    fn stats(&self) -> Option<&dyn super::Stats> {
        Some(self)
    }

    fn remnants(&self) -> Option<&dyn super::Remnants> {
        Some(self)
    }

    fn concurrency(&self) -> usize {
        std::thread::available_parallelism().map_or(1, usize::from) * CALLS_PER_CORE
    }
}

/// The runtime id of an instance, refused where it could name something else than a directory of this runtime.
fn checked_id(instance: &InstanceRef) -> Result<String> {
    if is_plain_name(&instance.runtime_id) {
        Ok(instance.runtime_id.clone())
    } else {
        Err(not_a_name(&instance.runtime_id))
    }
}

fn not_a_name(name: &str) -> RuntimeError {
    RuntimeError::new(ErrorKind::Rejected, format!("{name:?} is not a name of this runtime"))
}

fn unavailable(message: String) -> RuntimeError {
    RuntimeError::new(ErrorKind::Unavailable, message)
}

fn no_image(message: String) -> RuntimeError {
    RuntimeError::new(ErrorKind::ImageUnavailable, message)
}

fn failed(what: &str, error: &std::io::Error) -> RuntimeError {
    RuntimeError::new(ErrorKind::Failed, format!("{what}: {error}"))
}

fn not_found(instance: &InstanceRef) -> RuntimeError {
    RuntimeError::new(ErrorKind::NotFound, format!("instance {} does not exist", instance.id))
}

#[async_trait]
impl super::Tags for SandboxRuntime {
    async fn digest(&self, reference: &str) -> Result<String> {
        self.inner.images.digest(reference).await
    }
}
