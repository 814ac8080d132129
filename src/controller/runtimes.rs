//! Which runtimes there are on this machine, and which one services use that name none.

use std::path::Path;
#[cfg(any(target_os = "linux", target_os = "macos"))]
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use super::access::Access;
#[cfg(any(target_os = "linux", target_os = "macos"))]
use super::nothing::Nothing;
use super::observe::Connect;
use super::open::local;
use super::stops::StoredStops;
use super::{EngineError, EngineOptions};
use crate::clock::SystemClock;
use crate::runtime::docker::{DockerRuntime, Options};
#[cfg(target_os = "linux")]
use crate::runtime::sandbox::{SandboxConfig, SandboxRuntime, allow_devices};
#[cfg(target_os = "macos")]
use crate::runtime::seatbelt::{PROGRAM, SeatbeltConfig, SeatbeltRuntime, allow_devices};
use crate::runtime::sim::{Faults, World};
use crate::runtime::{Result, Runtime, StopRecords};
use crate::spec::RuntimeKind;
use crate::state::Owner;
use crate::store::{StateDir, Store, replace};

/// Seed of the sim runtime where a user asks for it: the same rehearsal every time.
const SIM_SEED: u64 = 0;

/// The default runtime: as asked for, else as before, else docker where `DOCKER_HOST` names an engine or one answers at the
/// usual sockets, else sandbox. It is remembered, so that an engine which happens to be down at one start does not move every
/// workload to another runtime.
pub async fn choose_default(
    options: &EngineOptions,
    state_dir: &StateDir,
) -> std::result::Result<RuntimeKind, EngineError> {
    let path = state_dir.default_runtime();
    let before = remembered(&path)?;
    let chosen = match (options.runtime, before) {
        (Some(kind), _) => kind,
        (None, Some(kind)) => return Ok(kind),
        (None, None) => found().await,
    };
    if is_remembered(options, before, chosen) && before != Some(chosen) {
        let context = format!("{} can't be written", path.display());
        replace(&path, chosen.as_str().as_bytes()).map_err(local(&context))?;
    }
    Ok(chosen)
}

/// Docker where an engine answers, or somebody named one, which may be down for a moment; else sandbox.
async fn found() -> RuntimeKind {
    let is_named = std::env::var_os("DOCKER_HOST").is_some_and(|host| !host.is_empty());
    if is_named || DockerRuntime::reach(None).await.is_ok() { RuntimeKind::Docker } else { RuntimeKind::Sandbox }
}

/// Whether a choice is the default of later commands and controllers too: what a controller was told or found, and what the
/// first command was told or found. Later ones change no default: what an apply is told is kept with the deployments that
/// it declares, and what any other command is told ends with it. A rehearsal on sim concerns nobody else.
fn is_remembered(options: &EngineOptions, before: Option<RuntimeKind>, chosen: RuntimeKind) -> bool {
    let lasting = match options.mode {
        super::Mode::Observe => false,
        super::Mode::Record | super::Mode::OneShot => options.runtime.is_none() || before.is_none(),
        super::Mode::Controller { .. } => true,
    };
    lasting && chosen != RuntimeKind::Sim
}

/// The default runtime that was chosen before; none where none was. One that can't be told is no reason to choose again:
/// that could move every workload to another runtime.
fn remembered(path: &Path) -> std::result::Result<Option<RuntimeKind>, EngineError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(local(&format!("{} can't be read", path.display()))(error)),
    };
    let unknown = |_| {
        EngineError::Invalid(format!(
            "{}: {:?} is not the name of a runtime; write docker or sandbox into it, whichever the workloads run on",
            path.display(),
            text.trim()
        ))
    };
    serde_json::from_value(serde_json::Value::String(text.trim().to_owned())).map(Some).map_err(unknown)
}

/// Every runtime that instances of this owner may run on.
pub fn connectors(
    options: &EngineOptions,
    access: Access,
    state_dir: &StateDir,
    default: RuntimeKind,
    store: &Arc<Store>,
) -> Vec<Arc<dyn Connect>> {
    let owner = state_dir.owner();
    if default == RuntimeKind::Sim {
        // A rehearsal touches nothing real, whatever runs here already.
        let world = World::new(Arc::new(SystemClock), SIM_SEED, Faults::none());
        return vec![Arc::new(super::Connected(Arc::new(world.runtime(owner.clone()))))];
    }
    let docker = Docker { owner: owner.clone(), store: store.clone(), read_only: access != Access::Work };
    vec![
        Arc::new(docker),
        #[cfg(any(target_os = "linux", target_os = "macos"))]
        sandbox(options, access, state_dir),
    ]
}

/// The sandbox runtime. Where nothing was ever made there can't be anything in it, and a look makes no directory for it.
#[cfg(any(target_os = "linux", target_os = "macos"))]
fn sandbox(options: &EngineOptions, access: Access, state_dir: &StateDir) -> Arc<dyn Connect> {
    let program = options.program.clone();
    match access {
        Access::LookAtNothing => Arc::new(super::Connected(Arc::new(Nothing { program }))),
        Access::Work | Access::Look => {
            Arc::new(Sandbox { owner: state_dir.owner().clone(), state_dir: state_dir.path().to_owned(), program })
        }
    }
}

/// Remembers what the operator says of devices, where anything is said; a rehearsal changes nothing real.
///
/// # Errors
/// The state directory can't be written.
#[cfg(any(target_os = "linux", target_os = "macos"))]
pub fn remember_devices(options: &EngineOptions, state_dir: &Path) -> std::result::Result<(), EngineError> {
    let is_rehearsal = options.runtime == Some(RuntimeKind::Sim);
    let Some(allowed) = options.devices.filter(|_| !is_rehearsal) else { return Ok(()) };
    let root = state_dir.join(SANDBOX_DIR);
    allow_devices(&root, allowed).map_err(|source| EngineError::Local {
        context: format!("{}: whether devices are allowed can't be remembered", root.display()),
        source: source.into(),
    })
}

/// Remembers nothing: there is no sandbox runtime here.
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
pub fn remember_devices(_: &EngineOptions, _: &Path) -> std::result::Result<(), EngineError> {
    Ok(())
}

/// Directory of the sandbox runtime inside of the state directory.
#[cfg(any(target_os = "linux", target_os = "macos"))]
const SANDBOX_DIR: &str = "sandbox";

#[cfg(any(target_os = "linux", target_os = "macos"))]
struct Sandbox {
    owner: Owner,
    state_dir: PathBuf,
    program: PathBuf,
}

#[cfg(any(target_os = "linux", target_os = "macos"))]
#[async_trait]
impl Connect for Sandbox {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Sandbox
    }

    #[cfg(target_os = "macos")]
    async fn connect(&self) -> Result<Arc<dyn Runtime>> {
        Ok(Arc::new(SeatbeltRuntime::open(SeatbeltConfig {
            root: self.state_dir.join(SANDBOX_DIR),
            supervisor: self.program.clone(),
            launcher: PROGRAM.into(),
            owner: self.owner.clone(),
            hidden: vec![self.state_dir.clone()],
        })?))
    }

    #[cfg(target_os = "linux")]
    async fn connect(&self) -> Result<Arc<dyn Runtime>> {
        Ok(Arc::new(SandboxRuntime::open(SandboxConfig {
            root: self.state_dir.join(SANDBOX_DIR),
            supervisor: self.program.clone(),
            owner: self.owner.clone(),
            hidden: vec![self.state_dir.clone()],
        })?))
    }
}

struct Docker {
    owner: Owner,
    store: Arc<Store>,
    read_only: bool,
}

#[async_trait]
impl Connect for Docker {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Docker
    }

    async fn connect(&self) -> Result<Arc<dyn Runtime>> {
        DockerRuntime::reach(None).await?;
        let stops: Arc<dyn StopRecords> =
            Arc::new(StoredStops { store: self.store.clone(), read_only: self.read_only });
        let options = Options { stops: Some(stops), ..Options::default() };
        Ok(Arc::new(DockerRuntime::connect_with(self.owner.clone(), options).await?))
    }
}
