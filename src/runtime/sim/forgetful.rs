//! A simulated machine that does not tell why an instance ended, as container engines are.

use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};

use super::{SimRuntime, World};
use crate::runtime::stops::Stops;
use crate::runtime::{
    Capabilities, CreateRequest, Exec, Listing, Logs, Progress, Result, Runtime, RuntimeEvent, StopRecords, Suspend,
    Volumes,
};
use crate::spec::{Image, RuntimeKind};
use crate::state::{EndedBy, Instance, InstanceRef, Owner, Phase, StopRequest};

/// One owner's runtime on a machine that does not tell why an instance ended. What is recorded of stops outlives it.
pub struct ForgetfulRuntime {
    machine: SimRuntime,
    stops: Arc<Stops>,
}

impl ForgetfulRuntime {
    /// A runtime on this machine, as a controller makes one at its start.
    ///
    /// # Errors
    /// The records can't be read.
    pub async fn open(world: &Arc<World>, owner: Owner, records: Arc<dyn StopRecords>) -> Result<Self> {
        let stops = Arc::new(Stops::open(RuntimeKind::Sim, Some(records)).await?);
        Ok(Self { machine: world.runtime(owner), stops })
    }

    fn seen(&self, instance: Instance) -> Instance {
        seen(self.machine.world(), &self.stops, instance)
    }
}

/// An instance as it is known without the machine's memory.
fn seen(world: &World, stops: &Stops, mut instance: Instance) -> Instance {
    if let Phase::Exited(exit) = &mut instance.phase {
        exit.ended_by = EndedBy::Itself;
    }
    stops.attribute(&mut instance, false, world.now());
    instance
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
        Ok(Listing { instances: instances.into_iter().map(|instance| self.seen(instance)).collect(), shared })
    }

    async fn events(&self) -> Result<BoxStream<'static, RuntimeEvent>> {
        let (world, stops) = (Arc::clone(self.machine.world()), Arc::clone(&self.stops));
        let told = move |event| match event {
            RuntimeEvent::Changed(instance) => RuntimeEvent::Changed(Box::new(seen(&world, &stops, *instance))),
            RuntimeEvent::Gone(instance) => {
                stops.forget(&instance.runtime_id);
                RuntimeEvent::Gone(instance)
            }
            resync @ RuntimeEvent::Resync { .. } => resync,
        };
        Ok(self.machine.events().await?.map(told).boxed())
    }

    async fn ensure_image(&self, image: &Image, progress: &(dyn Fn(Progress) + Send + Sync)) -> Result<()> {
        self.machine.ensure_image(image, progress).await
    }

    async fn create(&self, request: &CreateRequest) -> Result<Instance> {
        self.machine.create(request).await.map(|instance| self.seen(instance))
    }

    async fn start(&self, instance: &InstanceRef) -> Result<Instance> {
        self.machine.start(instance).await.map(|instance| self.seen(instance))
    }

    async fn stop(&self, instance: &InstanceRef, stop: &StopRequest) -> Result<Option<Instance>> {
        let world = self.machine.world();
        let found = world.instances().into_iter().find(|(_, found)| found.runtime_id == instance.runtime_id);
        let Some((_, found)) = found else { return Ok(None) };
        if matches!(found.phase, Phase::Created | Phase::Exited(_)) {
            return Ok(Some(self.seen(found)));
        }
        let _before = self.stops.will_stop(&found, stop, world.now()).await;
        Ok(self.machine.stop(instance, stop).await?.map(|instance| self.seen(instance)))
    }

    async fn remove(&self, instance: &InstanceRef) -> Result<()> {
        self.machine.remove(instance).await?;
        self.stops.forget(&instance.runtime_id);
        Ok(())
    }

    async fn teardown(&self, deployment: &str, volumes: Volumes) -> Result<()> {
        self.machine.teardown(deployment, volumes).await
    }

    fn logs(&self) -> Option<&dyn Logs> {
        Some(&self.machine)
    }

    fn exec(&self) -> Option<&dyn Exec> {
        Some(&self.machine)
    }

    fn suspend(&self) -> Option<&dyn Suspend> {
        Some(&self.machine)
    }

    fn concurrency(&self) -> usize {
        self.machine.concurrency()
    }
}
