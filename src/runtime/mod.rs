//! The contract between the controller and whatever runs instances.
//!
//! A runtime adapter is made for one [`Owner`](crate::state::Owner) and sees, reports and touches only what carries that mark.
//! Every method says what repeating it means; all of them may be repeated after a crash, a timeout or a lost
//! answer. Every call ends within a bound of its own (a runtime that stops answering gives
//! [`ErrorKind::Timeout`], never a hang). Dropping a future that has not finished may leave its effect
//! half-done; the next call with the same identity completes or recognises it.

mod accepted;
mod capabilities;
mod credentials;
mod dial;
pub mod docker;
pub mod enforcement;
mod error;
mod file_lock;
mod files;
pub mod io;
mod late_mounts;
mod logfiles;
mod logline;
mod ports;
#[cfg(target_os = "linux")]
mod process_tree;
#[cfg(target_os = "linux")]
pub mod sandbox;
pub mod seatbelt;
pub mod sim;
mod stops;
mod transfers;
mod usage;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;

pub use accepted::Uncounted;
pub use capabilities::{Capabilities, Support};
pub use dial::{AnsweredBy, Connection, Dial, Dialed};
pub use enforcement::{Enforcement, EnforcementState};
pub use error::RuntimeError;
pub use io::{Attach, Exec, Logs};
pub use late_mounts::LateMounts;
pub use stops::StopRecords;
pub use usage::{Stats, Usage};

pub use crate::spec::Control;
use crate::spec::{Image, RuntimeKind, ServiceSpec, Signal};
use crate::state::{Condition, Instance, InstanceId, InstanceRef};
pub use crate::state::{ErrorKind, Remnant, RemnantKind, StopRecord, StopRequest, Volumes};

/// Result of a runtime call.
pub type Result<T> = std::result::Result<T, RuntimeError>;

/// Adapter that lists, creates, starts, stops and removes the instances of one owner.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// Which runtime this is.
    fn kind(&self) -> RuntimeKind;

    /// What it can enforce on this machine. Cheap; probed once and remembered.
    async fn capabilities(&self) -> Result<Capabilities>;

    /// What a spec asks for and no instance of it gets here, a condition each. What depends on the machine is told by
    /// the instances ([`Instance::conditions`]).
    fn unsupported(&self, _spec: &ServiceSpec) -> Vec<Condition> {
        Vec::new()
    }

    /// What one instance asks for and gets, each control once. What this adapter can't tell of the instance itself is
    /// told of the runtime.
    ///
    /// # Errors
    /// `NotFound` when it does not exist.
    async fn enforcement(&self, _instance: &InstanceRef) -> Result<Vec<Enforcement>> {
        Ok(Enforcement::by_capabilities(&self.capabilities().await?))
    }

    /// Everything of this owner, complete or an error; never a part of it.
    async fn list(&self) -> Result<Listing>;

    /// One instance as it is now, with the phase that [`Runtime::list`] would give it, or that of an end which a list does not
    /// tell yet; none where it is gone or another owner's. Adapters do this far cheaper than a list.
    async fn inspect(&self, instance: &InstanceRef) -> Result<Option<Instance>> {
        let listed = self.list().await?.instances.into_iter();
        Ok(listed.into_iter().find(|one| one.runtime_id == instance.runtime_id))
    }

    /// Changes from now on. The stream reconnects by itself; whenever it may have missed something it yields
    /// [`RuntimeEvent::Resync`], and it ends only when the adapter is dropped.
    async fn events(&self) -> Result<BoxStream<'static, RuntimeEvent>>;

    /// Makes the image available by its pull policy. An image that is already there is success.
    ///
    /// # Errors
    /// `ImageUnavailable` when the registry has no such image or refuses it, `Unsupported` for a transport that
    /// this runtime does not take.
    async fn ensure_image(&self, image: &Image, progress: &(dyn Fn(Progress) + Send + Sync)) -> Result<()>;

    /// Creates an instance without starting it and returns it as [`Runtime::list`] would. Where one with the
    /// same identity exists already, in whatever phase, returns that one.
    ///
    /// # Errors
    /// `NameTaken` when something that is not ours has its name; that is left untouched. `Rejected` when the
    /// spec can't be honoured.
    async fn create(&self, request: &CreateRequest) -> Result<Instance>;

    /// Starts an instance and returns it as it is afterwards. One that runs already is success.
    ///
    /// # Errors
    /// `NotFound` when it does not exist, or had to be removed because the engine can never start it; `Rejected` when its
    /// process can't be run.
    async fn start(&self, instance: &InstanceRef) -> Result<Instance>;

    /// Ends an instance: signal, grace, kill of the whole process tree; returns it as it is afterwards. One that
    /// is not running is success; one that is gone is success with `None`. That it was asked to end, and why, is told
    /// with its exit from then on, also by the next adapter and where this call is cut off.
    async fn stop(&self, instance: &InstanceRef, stop: &StopRequest) -> Result<Option<Instance>>;

    /// Waits, for some seconds at most, until those who follow the output of an instance that has ended, or are attached to
    /// it, have read its last lines and its exit code, where these are gone with the instance. Called before
    /// [`Runtime::remove`]; it asks no engine, so it needs no place among the calls that are served side by side.
    async fn await_readers(&self, _instance: &InstanceRef) {}

    /// Removes an instance and what belongs to it alone, killing what still runs. One that is gone is success.
    async fn remove(&self, instance: &InstanceRef) -> Result<()>;

    /// The same where its slot goes too: the workspace of the slot is removed with the last of its instances, unless it is to be
    /// kept, by what is asked or by what the instance was made with. A call that was cut off in between leaves the workspace where it is, which a runtime that remembers whose it was
    /// finds among its [`Remnants`].
    async fn remove_with_slot(&self, instance: &InstanceRef, _workspace: Volumes) -> Result<()> {
        self.remove(instance).await
    }

    /// Removes what the instances of a deployment share: its network, and its named volumes where asked. Called when
    /// no instance is left; what is gone already is success.
    async fn teardown(&self, deployment: &str, volumes: Volumes) -> Result<()>;

    /// Whether named volumes of a deployment are there, with or without instances.
    async fn has_volumes(&self, deployment: &str) -> Result<bool>;

    /// Reading of output, where the runtime can.
    fn logs(&self) -> Option<&dyn Logs> {
        None
    }

    /// Running of further commands inside, where the runtime can.
    fn exec(&self) -> Option<&dyn Exec> {
        None
    }

    /// Connecting to what listens inside, where the runtime can.
    fn dial(&self) -> Option<&dyn Dial> {
        None
    }

    /// Attaching to programs, where the runtime can.
    fn attach(&self) -> Option<&dyn Attach> {
        None
    }

    /// Tells which images are needed though no instance may be made of them, by the names that specs have for them: what a
    /// rollback may go to. All that was told before is void. Cheap; it changes only what the runtime itself removes.
    fn need_images(&self, _names: BTreeSet<String>) {}

    /// Finding out what tags of registries stand for, where the runtime can.
    fn tags(&self) -> Option<&dyn Tags> {
        None
    }

    /// Freezing instances and letting them run on, where the runtime can.
    fn suspend(&self) -> Option<&dyn Suspend> {
        None
    }

    /// Mounting into instances that run, where the runtime can.
    fn late_mounts(&self) -> Option<&dyn LateMounts> {
        None
    }

    /// What instances use of the machine, where the runtime can tell.
    fn stats(&self) -> Option<&dyn Stats> {
        None
    }

    /// Finding what is left of instances that are gone, where the runtime can.
    fn remnants(&self) -> Option<&dyn Remnants> {
        None
    }

    /// Most calls that the runtime serves well side by side.
    fn concurrency(&self) -> usize;
}

/// Finds out what is left, and takes it away.
#[async_trait]
pub trait Remnants: Send + Sync {
    /// All that is left at this moment, in order. What belongs to an instance that is just being made or removed is among it.
    ///
    /// # Errors
    /// The machine does not tell.
    async fn remnants(&self) -> Result<Vec<Remnant>>;

    /// Takes one away, where a look right before shows that it still is there and left. Whatever else has its name by
    /// now stays; that, and one that is gone, is success.
    ///
    /// # Errors
    /// It can't be taken away, or can't be looked at.
    async fn clear(&self, remnant: &Remnant) -> Result<()>;
}

/// Finds out what tags of registries stand for.
#[async_trait]
pub trait Tags: Send + Sync {
    /// The digest of the manifest or index that the registry has for a reference with a tag now, as `sha256:...`; the
    /// image itself need not come here for that.
    ///
    /// # Errors
    /// `ImageUnavailable` when the registry has no such image, refuses it or does not answer.
    async fn digest(&self, reference: &str) -> Result<String>;
}

/// Freezes instances, and lets them run on.
#[async_trait]
pub trait Suspend: Send + Sync {
    /// Freezes a running instance where it stands and returns it as it is afterwards: it keeps its memory and gets no
    /// processor time. One that is frozen already is success.
    ///
    /// # Errors
    /// `NotFound` when it does not exist, `Rejected` when it does not run.
    async fn pause(&self, instance: &InstanceRef) -> Result<Instance>;

    /// Lets a frozen instance run on and returns it as it is afterwards. One that is not frozen is success.
    ///
    /// # Errors
    /// `NotFound` when it does not exist.
    async fn resume(&self, instance: &InstanceRef) -> Result<Instance>;
}

/// A complete list of what one owner has on a runtime.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Listing {
    /// Every instance, whatever its phase.
    pub instances: Vec<Instance>,
    /// Deployments for which something shared exists (a network), with or without instances.
    pub shared: BTreeSet<String>,
}

/// A change that a runtime reports.
#[derive(Debug, Clone, PartialEq)]
pub enum RuntimeEvent {
    /// An instance as it is now.
    Changed(Box<Instance>),
    /// An instance is gone.
    Gone(InstanceRef),
    /// Somebody, maybe this adapter itself, had a signal sent to the program of an instance. Told where the runtime tells it.
    Signalled(InstanceRef, Signal),
    /// What the instances of a deployment share was found changed by somebody else, and put right.
    Mended {
        /// The deployment.
        deployment: String,
        /// What had been wrong.
        message: String,
    },
    /// Something may have been missed; list again.
    Resync {
        /// Why.
        reason: String,
    },
}

/// How far an image has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// What is being done, in the runtime's words.
    pub message: String,
    /// Bytes done, where known.
    pub current: Option<u64>,
    /// Bytes in all, where known.
    pub total: Option<u64>,
}

/// What is needed to create an instance.
#[derive(Debug, Clone, PartialEq)]
pub struct CreateRequest {
    /// Identity; gives the name.
    pub id: InstanceId,
    /// Restarts so far, kept with the instance.
    pub restarts: u32,
    /// Restarts in a row so far, kept with the instance.
    pub streak: u32,
    /// The spec. Its `env` still holds references; use [`CreateRequest::env`].
    pub spec: Arc<ServiceSpec>,
    /// The environment with every reference resolved.
    pub env: BTreeMap<String, String>,
    /// File that declares the service, for labels of other tools.
    pub source: Option<PathBuf>,
}
