//! A simulated machine that does not tell why an instance ended, as container engines are.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};

use super::{SimRuntime, World};
use crate::runtime::stops::Stops;
use crate::runtime::{
    Capabilities, CreateRequest, Dial, Exec, Listing, Logs, Progress, Result, Runtime, RuntimeEvent, StopRecords,
    Suspend, Tags, Volumes,
};
use crate::spec::{Image, RuntimeKind};
use crate::state::{EndedBy, Instance, InstanceRef, Owner, Phase, StopRequest};

/// One owner's runtime on a machine that does not tell why an instance ended. What is recorded of stops outlives it.
pub struct ForgetfulRuntime {
    machine: SimRuntime,
    known: Arc<Known>,
}

/// What an adapter knows of the instances on such a machine.
struct Known {
    world: Arc<World>,
    stops: Stops,
    /// How each instance was last seen, by the runtime's own id; what a runtime has seen does not outlive it.
    phases: Mutex<HashMap<String, Phase>>,
}

impl Known {
    /// An instance as it is known without the machine's memory.
    fn seen(&self, mut instance: Instance) -> Instance {
        if let Phase::Exited(exit) = &mut instance.phase {
            exit.ended_by = EndedBy::Itself;
        }
        let mut phases = self.lock();
        let last = phases.get(&instance.runtime_id);
        let seen_alive = matches!(last, Some(Phase::Running { .. } | Phase::Paused { .. }));
        self.stops.attribute(&mut instance, seen_alive, self.world.now());
        // An event that comes late must not bring back a run whose end was seen.
        let is_late = matches!(last, Some(Phase::Exited(exit)) if exit.started_at == instance.phase.started_at());
        if !is_late {
            phases.insert(instance.runtime_id.clone(), instance.phase.clone());
        }
        instance
    }

    /// Forgets an instance that is gone.
    fn forget(&self, runtime_id: &str) {
        self.lock().remove(runtime_id);
        self.stops.forget(runtime_id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Phase>> {
        self.phases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ForgetfulRuntime {
    /// A runtime on this machine, as a controller makes one at its start.
    ///
    /// # Errors
    /// The records can't be read.
    pub async fn open(world: &Arc<World>, owner: Owner, records: Arc<dyn StopRecords>) -> Result<Self> {
        let stops = Stops::open(RuntimeKind::Sim, Some(records)).await?;
        let known = Known { world: Arc::clone(world), stops, phases: Mutex::default() };
        Ok(Self { machine: world.runtime(owner), known: Arc::new(known) })
    }
}

#[async_trait]
impl Runtime for ForgetfulRuntime {
    fn kind(&self) -> RuntimeKind {
        self.machine.kind()
    }

    async fn capabilities(&self) -> Result<Capabilities> {
        self.machine.capabilities().await
    }

    async fn list(&self) -> Result<Listing> {
        let Listing { instances, shared } = self.machine.list().await?;
        let listed: HashSet<&str> = instances.iter().map(|instance| instance.runtime_id.as_str()).collect();
        self.known.lock().retain(|id, _| listed.contains(id.as_str()));
        Ok(Listing { instances: instances.into_iter().map(|instance| self.known.seen(instance)).collect(), shared })
    }

    async fn inspect(&self, instance: &InstanceRef) -> Result<Option<Instance>> {
        Ok(self.machine.inspect(instance).await?.map(|instance| self.known.seen(instance)))
    }

    async fn events(&self) -> Result<BoxStream<'static, RuntimeEvent>> {
        let known = Arc::clone(&self.known);
        let told = move |event| match event {
            RuntimeEvent::Changed(instance) => RuntimeEvent::Changed(Box::new(known.seen(*instance))),
            RuntimeEvent::Gone(instance) => {
                known.forget(&instance.runtime_id);
                RuntimeEvent::Gone(instance)
            }
            other @ (RuntimeEvent::Signalled(..) | RuntimeEvent::Mended { .. } | RuntimeEvent::Resync { .. }) => other,
        };
        Ok(self.machine.events().await?.map(told).boxed())
    }

    async fn ensure_image(&self, image: &Image, progress: &(dyn Fn(Progress) + Send + Sync)) -> Result<()> {
        self.machine.ensure_image(image, progress).await
    }

    fn tags(&self) -> Option<&dyn Tags> {
        Some(self)
    }

    async fn create(&self, request: &CreateRequest) -> Result<Instance> {
        self.machine.create(request).await.map(|instance| self.known.seen(instance))
    }

    async fn start(&self, instance: &InstanceRef) -> Result<Instance> {
        self.machine.start(instance).await.map(|instance| self.known.seen(instance))
    }

    async fn stop(&self, instance: &InstanceRef, stop: &StopRequest) -> Result<Option<Instance>> {
        let world = self.machine.world();
        let found = world.instances().into_iter().find(|(_, found)| found.runtime_id == instance.runtime_id);
        let Some((_, found)) = found else { return Ok(None) };
        if matches!(found.phase, Phase::Created | Phase::Exited(_)) {
            return Ok(Some(self.known.seen(found)));
        }
        let stops = &self.known.stops;
        let before = stops.will_stop(&found, stop, world.now()).await;
        let ended = self.machine.stop(instance, stop).await?;
        // The stop came too late: nothing ran any more that could take its signal.
        if matches!(&ended, Some(Instance { phase: Phase::Exited(exit), .. }) if exit.ended_by == EndedBy::Itself) {
            stops.did_not_stop(&instance.runtime_id, before).await;
        }
        Ok(ended.map(|instance| self.known.seen(instance)))
    }

    async fn remove(&self, instance: &InstanceRef) -> Result<()> {
        self.machine.remove(instance).await?;
        self.known.forget(&instance.runtime_id);
        Ok(())
    }

    async fn teardown(&self, deployment: &str, volumes: Volumes) -> Result<()> {
        self.machine.teardown(deployment, volumes).await
    }

    async fn has_volumes(&self, deployment: &str) -> Result<bool> {
        self.machine.has_volumes(deployment).await
    }

    fn logs(&self) -> Option<&dyn Logs> {
        Some(&self.machine)
    }

    fn exec(&self) -> Option<&dyn Exec> {
        Some(&self.machine)
    }

    fn dial(&self) -> Option<&dyn Dial> {
        Some(&self.machine)
    }

    fn suspend(&self) -> Option<&dyn Suspend> {
        Some(&self.machine)
    }

    fn concurrency(&self) -> usize {
        self.machine.concurrency()
    }
}

#[async_trait]
impl Tags for ForgetfulRuntime {
    async fn digest(&self, reference: &str) -> Result<String> {
        self.machine.digest(reference).await
    }
}
