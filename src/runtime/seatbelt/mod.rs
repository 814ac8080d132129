//! The sandbox runtime of macOS: programs of the machine, or of a directory, under a profile of Seatbelt that denies
//! everything but what the spec names. One supervisor per instance, re-executed from this same program, outlives the controller;
//! everything that is known of an instance is in its directory (`layout.rs`).
//!
//! **Untested on a Mac.** Profiles are made by pure code that is tested everywhere, and the runtime passes the conformance
//! suite on Linux with a launcher that applies none; that profiles hold as they should was never seen.
//!
//! What is different from the sandbox runtime of Linux, and told by conditions or refused: there are no mounts (a volume is a
//! link below the instance's root, which `KEEL_ROOT` names), no other users, no limits but one of memory, and no images of
//! registries, which hold programs of Linux.

mod alive;
mod commands;
mod controls;
mod exec;
mod gate;
pub mod launch;
mod layout;
mod lifecycle;
mod logs;
mod observe;
mod plan;
pub mod profile;
mod record;
mod signals;
mod supervise;
mod table;
mod usage;
mod watch;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use futures::stream::BoxStream;

pub use controls::capabilities;
pub use launch::{Launch, PROGRAM};
pub use layout::allow_devices;
pub use profile::{Graphics, Network, Profile};

use super::files::is_plain_name;
use super::{
    Attach, Capabilities, CreateRequest, Dial, Enforcement, ErrorKind, Exec, Listing, Logs, Progress, Result, Runtime,
    RuntimeError, RuntimeEvent, Stats, StopRequest, Suspend, Volumes,
};
use crate::spec::{Image, ImageRef, RuntimeKind, ServiceSpec, Signal};
use crate::state::{Condition, Instance, InstanceRef, Owner, StopCause};
use layout::{InstanceDir, Layout};
use observe::Found;
use watch::Watch;

/// Calls that are served well side by side: each start runs a few processes.
const CONCURRENCY: usize = 8;

/// Runs a hidden command where the arguments name one; `None` otherwise. Must be called first in `main`.
pub fn dispatch() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let command = arguments.next()?;
    if command == OsStr::new(supervise::SUPERVISE) {
        return Some(arguments.next().map_or(ExitCode::FAILURE, |dir| supervise::main(PathBuf::from(dir))));
    }
    let held = [gate::HELD, gate::HELD_ON_TERMINAL, gate::HELD_WITH_INPUT];
    held.into_iter().find(|how| command == OsStr::new(how)).map(|how| gate::main(how, arguments))
}

/// What a Seatbelt runtime is made of.
#[derive(Debug, Clone)]
pub struct SeatbeltConfig {
    /// Directory of this runtime; made where it is missing.
    pub root: PathBuf,
    /// This program, which is re-executed to supervise instances. It must call [`dispatch()`] first in its `main`.
    pub supervisor: PathBuf,
    /// What applies profiles: [`PROGRAM`]. It is called with `-f PROFILE PROGRAM ARGUMENTS`.
    pub launcher: PathBuf,
    /// Installation whose instances this runtime sees.
    pub owner: Owner,
    /// Further directories that no instance may see, such as the state directory. The root always is such a one.
    pub hidden: Vec<PathBuf>,
}

/// The sandbox runtime of macOS.
#[derive(Debug, Clone)]
pub struct SeatbeltRuntime {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: SeatbeltConfig,
    layout: Layout,
    /// Real paths that no instance may see.
    hidden: Vec<PathBuf>,
    /// The user that runs this program, by name and number.
    user: BTreeSet<String>,
    watch: Arc<Watch>,
    watching: OnceLock<()>,
    /// Orders are read, changed and written as a whole.
    ordering: tokio::sync::Mutex<()>,
}

impl SeatbeltRuntime {
    /// Opens a root, making it where it is missing.
    ///
    /// # Errors
    /// `Unavailable` when the directories can't be made.
    pub fn open(config: SeatbeltConfig) -> Result<Self> {
        let what = |error: io::Error| {
            let root = config.root.display();
            RuntimeError::new(ErrorKind::Unavailable, format!("the sandbox directory {root} can't be opened: {error}"))
        };
        super::files::make_private(&config.root).map_err(what)?;
        // Profiles name paths as they really are, without links on the way.
        let root = std::fs::canonicalize(&config.root).map_err(what)?;
        let layout = Layout::new(&root, &config.owner).map_err(what)?;
        layout.prepare().map_err(what)?;
        let hidden = config.hidden.iter().map(|path| std::fs::canonicalize(path).unwrap_or_else(|_| path.clone()));
        let hidden: Vec<PathBuf> = hidden.chain([root]).collect();
        let watch = Arc::new(Watch::new(layout.clone()));
        let (watching, ordering, user) = (OnceLock::new(), tokio::sync::Mutex::default(), own_user());
        Ok(Self { inner: Arc::new(Inner { config, layout, hidden, user, watch, watching, ordering }) })
    }

    fn dir(&self, instance: &InstanceRef) -> Result<InstanceDir> {
        Ok(self.inner.layout.instance(plain(&instance.runtime_id)?))
    }

    /// What outlives the instances of a deployment.
    fn folders(&self, deployment: &str) -> Result<[PathBuf; 2]> {
        let name = plain(deployment)?;
        Ok([self.inner.layout.volumes(name), self.inner.layout.workspaces(name)])
    }

    /// The instance as it is on disk; none where it is gone.
    async fn look(&self, instance: &InstanceRef) -> Result<Option<Found>> {
        let dir = self.dir(instance)?;
        let what = format!("reading {}", instance.id);
        blocking(&what, move || observe::one(&dir)).await
    }

    /// The same, which must be there.
    async fn known(&self, instance: &InstanceRef) -> Result<Found> {
        self.look(instance)
            .await?
            .ok_or_else(|| RuntimeError::new(ErrorKind::NotFound, format!("instance {} does not exist", instance.id)))
    }
}

/// The user that runs this program.
fn own_user() -> BTreeSet<String> {
    let number = rustix::process::geteuid().as_raw();
    let mut own = BTreeSet::from([number.to_string()]);
    own.extend(if number == 0 { Some("root".to_owned()) } else { std::env::var("USER").ok() });
    own
}

/// A name, refused where it could lead to something else than a directory of this runtime.
fn plain(name: &str) -> Result<&str> {
    match is_plain_name(name) {
        true => Ok(name),
        false => Err(RuntimeError::new(ErrorKind::Rejected, format!("{name:?} is not a name of this runtime"))),
    }
}

/// Does file work.
async fn blocking<T: Send + 'static>(what: &str, action: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(action).await.unwrap_or_else(|error| Err(io::Error::other(error)));
    done.map_err(|error| failed(what, &error))
}

fn failed(what: &str, error: &io::Error) -> RuntimeError {
    RuntimeError::new(ErrorKind::Failed, format!("{what}: {error}"))
}

fn not_running(found: &Found) -> RuntimeError {
    let (id, phase) = (&found.instance.id, found.instance.phase.name());
    RuntimeError::new(ErrorKind::Rejected, format!("instance {id} does not run ({phase}); start it first"))
}

#[async_trait]
impl Runtime for SeatbeltRuntime {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Sandbox
    }

    async fn capabilities(&self) -> Result<Capabilities> {
        Ok(capabilities())
    }

    fn unsupported(&self, spec: &ServiceSpec) -> Vec<Condition> {
        controls::unsupported(spec)
    }

    async fn enforcement(&self, instance: &InstanceRef) -> Result<Vec<Enforcement>> {
        let found = self.known(instance).await?;
        let ran = found.instance.phase.started_at().is_some();
        let Some(record) = found.record else { return Ok(Enforcement::by_capabilities(&capabilities())) };
        let told = record.enforcement.into_iter();
        Ok(told.map(|one| if ran { one } else { Enforcement { state: one.state.planned(), ..one } }).collect())
    }

    async fn list(&self) -> Result<Listing> {
        let layout = self.inner.layout.clone();
        let found = tokio::task::spawn_blocking(move || observe::all(&layout)).await;
        let found = found.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|error| {
            let folder = self.inner.layout.instances();
            RuntimeError::new(ErrorKind::Unavailable, format!("{} can't be read: {error}", folder.display()))
        })?;
        let instances = found.into_iter().map(|one| one.instance).collect();
        Ok(Listing { instances, shared: BTreeSet::new() })
    }

    async fn inspect(&self, instance: &InstanceRef) -> Result<Option<Instance>> {
        Ok(self.look(instance).await?.map(|found| found.instance))
    }

    async fn events(&self) -> Result<BoxStream<'static, RuntimeEvent>> {
        let runtime = self.clone();
        // What exists already is known before anything new is told.
        let prepare = move || runtime.sweep().and_then(|()| runtime.inner.watch.look());
        blocking("looking at the instances", prepare).await?;
        let watch = &self.inner.watch;
        let events = watch.subscribe();
        self.inner.watching.get_or_init(|| watch.run());
        Ok(events)
    }

    async fn ensure_image(&self, image: &Image, _: &(dyn Fn(Progress) + Send + Sync)) -> Result<()> {
        let refused = |message| Err(RuntimeError::new(ErrorKind::ImageUnavailable, message));
        match &image.name {
            ImageRef::Host => Ok(()),
            ImageRef::Dir(path) => match std::fs::metadata(path) {
                Ok(data) if data.is_dir() => Ok(()),
                Ok(_) => refused(format!("image: dir:{path} is not a directory")),
                Err(error) => refused(format!("image: dir:{path}: {error}; unpack the programs there")),
            },
            other => Err(RuntimeError::new(
                ErrorKind::Unsupported,
                format!(
                    "image: {other} can't be run by the sandbox runtime on macOS, as images hold programs of Linux; use \
                     host, dir:PATH with programs of macOS, or runtime: docker"
                ),
            )),
        }
    }

    async fn create(&self, request: &CreateRequest) -> Result<Instance> {
        self.ensure_image(&request.spec.image, &|_| {}).await?;
        let (runtime, request) = (self.clone(), request.clone());
        let made = tokio::task::spawn_blocking(move || runtime.make(&request)).await;
        let made = made.unwrap_or_else(|error| Err(failed("creating an instance", &io::Error::other(error))))?;
        self.inner.watch.poke();
        Ok(made.instance)
    }

    async fn start(&self, instance: &InstanceRef) -> Result<Instance> {
        let started = self.run(instance).await;
        self.inner.watch.poke();
        Ok(started?.instance)
    }

    async fn stop(&self, instance: &InstanceRef, stop: &StopRequest) -> Result<Option<Instance>> {
        let ended = self.end(instance, stop).await;
        self.inner.watch.poke();
        Ok(ended?.map(|found| found.instance))
    }

    async fn remove(&self, instance: &InstanceRef) -> Result<()> {
        let at_once = StopRequest { signal: Signal::KILL, grace: std::time::Duration::ZERO, cause: StopCause::Retired };
        if self.end(instance, &at_once).await?.is_none() {
            return Ok(());
        }
        let (runtime, dir) = (self.clone(), self.dir(instance)?);
        blocking(&format!("removing {}", instance.id), move || runtime.unmake(&dir)).await?;
        self.inner.watch.poke();
        Ok(())
    }

    async fn remove_with_slot(&self, instance: &InstanceRef, workspace: Volumes) -> Result<()> {
        let known = self.look(instance).await?.and_then(|found| found.record?.workspace);
        self.remove(instance).await?;
        let Some(workspace) = known.filter(|_| workspace == Volumes::Remove) else { return Ok(()) };
        let layout = self.inner.layout.clone();
        let what = format!("removing the workspace of {}", instance.id);
        // Whoever of several removes the last instance of the slot takes it away.
        let remove = move || {
            let has_it =
                |one: &Found| one.record.as_ref().is_some_and(|one| one.workspace.as_ref() == Some(&workspace));
            if observe::all(&layout)?.iter().any(has_it) { Ok(()) } else { lifecycle::remove_tree(&workspace) }
        };
        blocking(&what, remove).await
    }

    async fn teardown(&self, deployment: &str, volumes: Volumes) -> Result<()> {
        if volumes == Volumes::Keep {
            return Ok(());
        }
        let folders = self.folders(deployment)?;
        let what = format!("removing the volumes of {deployment}");
        blocking(&what, move || folders.iter().try_for_each(|folder| lifecycle::remove_tree(folder))).await
    }

    async fn has_volumes(&self, deployment: &str) -> Result<bool> {
        let folders = self.folders(deployment)?;
        Ok(folders.iter().any(|folder| folder.is_dir()))
    }

    fn logs(&self) -> Option<&dyn Logs> {
        Some(self)
    }

    fn exec(&self) -> Option<&dyn Exec> {
        Some(self)
    }

    fn dial(&self) -> Option<&dyn Dial> {
        Some(self)
    }

    fn attach(&self) -> Option<&dyn Attach> {
        None
    }

    fn suspend(&self) -> Option<&dyn Suspend> {
        Some(self)
    }

    fn stats(&self) -> Option<&dyn Stats> {
        Some(self)
    }

    fn concurrency(&self) -> usize {
        CONCURRENCY
    }
}
