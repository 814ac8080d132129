//! The runtime contract on a simulated machine.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use super::machine::{image_unavailable, not_found};
use super::program::{Scripted, scripted};
use super::record::{Method, What};
use super::{World, run};
use crate::runtime::{
    Capabilities, Control, CreateRequest, Dial, ErrorKind, Exec, Listing, Logs, Progress, Result, Runtime,
    RuntimeError, RuntimeEvent, Stats, Support, Suspend, Tags, Usage, Volumes,
};
use crate::spec::{HumanDuration, Image, ImageRef, PullPolicy, RuntimeKind, Signal};
use crate::state::{Exit, Instance, InstanceRef, Owner, Phase, StopRequest};

/// Calls served side by side: as many as the docker adapter would make, so that rehearsals have the same shape.
const CONCURRENCY: usize = 16;

/// Longest time that a call may take before its caller sees a timeout, beyond the grace of a stop. Longer than any
/// delay of [`Faults::harsh`](super::Faults::harsh).
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// One owner's runtime on a simulated machine.
#[derive(Clone)]
pub struct SimRuntime {
    pub(super) world: Arc<World>,
    pub(super) owner: Owner,
}

impl SimRuntime {
    pub(super) const fn new(world: Arc<World>, owner: Owner) -> Self {
        Self { world, owner }
    }

    /// The machine that it runs on.
    pub const fn world(&self) -> &Arc<World> {
        &self.world
    }

    /// Makes one call with the faults that are drawn for it.
    pub(super) async fn call<T, F>(
        &self,
        method: Method,
        longest: Duration,
        effect: impl FnOnce(Self) -> F + Send + 'static,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let draw = self.world.draw(method);
        let runtime = self.clone();
        let body = async move {
            pass(draw.before).await;
            runtime.world.reachable()?;
            if let Some(error) = draw.error {
                return Err(error);
            }
            let world = Arc::clone(&runtime.world);
            let answer = effect(runtime).await;
            pass(draw.after).await;
            world.reachable()?;
            if draw.answer_lost {
                return Err(RuntimeError::new(ErrorKind::Timeout, "the simulated runtime's answer was lost"));
            }
            answer
        };
        let call = async {
            if !draw.outlives_caller {
                return body.await;
            }
            tokio::spawn(body)
                .await
                .unwrap_or_else(|error| Err(RuntimeError::new(ErrorKind::Failed, format!("the call ended: {error}"))))
        };
        tokio::time::timeout(longest, call).await.unwrap_or_else(|_| {
            let text = format!("the simulated runtime did not answer within {}", HumanDuration(longest));
            Err(RuntimeError::new(ErrorKind::Timeout, text))
        })
    }

    /// Sends the stop signal, where the instance runs; gives its run, or the instance that needs no stop.
    fn ask_to_end(&self, instance: &InstanceRef, stop: &StopRequest) -> Asked {
        let now = self.world.now();
        let mut machine = self.world.machine();
        let Some(entry) = machine.find(&self.owner, instance) else { return Asked::Gone };
        if !entry.is_running() {
            return Asked::NotRunning(Box::new(entry.instance.clone()));
        }
        entry.stopping = Some(stop.cause);
        let (run, ignores) = (entry.run, entry.program.ignores_stop());
        let asked = entry.instance.clone();
        machine.note(&asked, &self.owner, What::StopAsked(stop.cause), now);
        drop(machine);
        if !ignores || stop.signal == Signal::KILL {
            run::end_later(&self.world, &instance.runtime_id, run, Duration::ZERO, 128 + stop.signal.number());
        }
        Asked::Run(run)
    }

    async fn stop_and_wait(self, instance: InstanceRef, stop: StopRequest) -> Result<Option<Instance>> {
        let kill_at = Instant::now() + stop.grace;
        let mut ticks = self.world.ticks();
        let run = match self.ask_to_end(&instance, &stop) {
            Asked::Gone => return Ok(None),
            Asked::NotRunning(instance) => return Ok(Some(*instance)),
            Asked::Run(run) => run,
        };
        loop {
            if let Some(state) = self.state_unless_running(&instance, run) {
                return Ok(state);
            }
            if tokio::time::timeout_at(kill_at, ticks.changed()).await.is_err() {
                self.world.end(&instance.runtime_id, run, Exit::from_code(137, None, self.world.now()));
            }
        }
    }

    /// The instance once this run is over; the inner none where it is gone.
    #[allow(clippy::option_option, reason = "still running, gone and ended are three answers of one question")]
    fn state_unless_running(&self, instance: &InstanceRef, run: u64) -> Option<Option<Instance>> {
        let mut machine = self.world.machine();
        match machine.find(&self.owner, instance) {
            None => Some(None),
            Some(entry) if entry.run == run && entry.is_running() => None,
            Some(entry) => Some(Some(entry.instance.clone())),
        }
    }
}

/// Waits; no time at all where none is to pass, rather than a tick of the timer.
async fn pass(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

/// What asking an instance to end came to.
enum Asked {
    Gone,
    NotRunning(Box<Instance>),
    Run(u64),
}

#[async_trait]
impl Runtime for SimRuntime {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Sim
    }

    async fn capabilities(&self) -> Result<Capabilities> {
        self.world.machine().record.called(Method::Capabilities);
        // Nothing real runs, so there is nothing that could not be confined.
        let controls = Control::ALL.into_iter().map(|control| (control, Support::Enforced)).collect();
        Ok(Capabilities { version: "sim".to_owned(), controls, ..Capabilities::default() })
    }

    async fn list(&self) -> Result<Listing> {
        let effect = |runtime: Self| async move { Ok(runtime.world.machine().list(&runtime.owner)) };
        self.call(Method::List, CALL_TIMEOUT, effect).await
    }

    async fn inspect(&self, instance: &InstanceRef) -> Result<Option<Instance>> {
        let instance = instance.clone();
        let effect = |runtime: Self| async move {
            let mut machine = runtime.world.machine();
            Ok(machine.find(&runtime.owner, &instance).map(|entry| entry.instance.clone()))
        };
        self.call(Method::Inspect, CALL_TIMEOUT, effect).await
    }

    async fn events(&self) -> Result<BoxStream<'static, RuntimeEvent>> {
        // The subscription is made before the answer comes back, so that nothing after the call is missed.
        let effect = |runtime: Self| async move { Ok((runtime.world.subscribe(), runtime.owner)) };
        let (receiver, owner) = self.call(Method::Events, CALL_TIMEOUT, effect).await?;
        let stream = stream::unfold((receiver, owner), |(mut receiver, owner)| async move {
            loop {
                match receiver.recv().await {
                    Ok((of, event)) if of == owner => return Some((event, (receiver, owner))),
                    Ok(_) => {}
                    Err(RecvError::Lagged(missed)) => {
                        let reason = format!("{missed} events were not read in time");
                        return Some((RuntimeEvent::Resync { reason }, (receiver, owner)));
                    }
                    Err(RecvError::Closed) => return None,
                }
            }
        });
        Ok(stream.boxed())
    }

    async fn ensure_image(&self, image: &Image, progress: &(dyn Fn(Progress) + Send + Sync)) -> Result<()> {
        let missing = scripted(&image.name) == Some(Scripted::Missing);
        if !missing && image.pull_policy() != PullPolicy::Never {
            progress(Progress { message: format!("pulling {}", image.name), current: None, total: None });
        }
        let name = image.name.clone();
        let effect = move |_| async move { if missing { Err(image_unavailable(&name)) } else { Ok(()) } };
        self.call(Method::EnsureImage, CALL_TIMEOUT, effect).await
    }

    fn need_images(&self, names: BTreeSet<String>) {
        self.world.need_images(names);
    }

    fn tags(&self) -> Option<&dyn Tags> {
        Some(self)
    }

    async fn create(&self, request: &CreateRequest) -> Result<Instance> {
        let request = request.clone();
        let effect = |runtime: Self| async move {
            let world = &runtime.world;
            let mut machine = world.machine();
            let (instance, new) = machine.create(&runtime.owner, &request, world.now())?;
            if new {
                world.changed(&mut machine, instance.clone());
            }
            Ok(instance)
        };
        self.call(Method::Create, CALL_TIMEOUT, effect).await
    }

    async fn start(&self, instance: &InstanceRef) -> Result<Instance> {
        let instance = instance.clone();
        let effect = |runtime: Self| async move {
            let world = &runtime.world;
            let mut machine = world.machine();
            let (started, run) = machine.start(&runtime.owner, &instance, world.now())?;
            if let Some(run) = run {
                world.changed(&mut machine, started.clone());
                run::begin(world, &mut machine, &instance.runtime_id, run);
            }
            Ok(started)
        };
        self.call(Method::Start, CALL_TIMEOUT, effect).await
    }

    async fn stop(&self, instance: &InstanceRef, stop: &StopRequest) -> Result<Option<Instance>> {
        let (instance, stop) = (instance.clone(), *stop);
        let effect = move |runtime: Self| runtime.stop_and_wait(instance, stop);
        self.call(Method::Stop, CALL_TIMEOUT + stop.grace, effect).await
    }

    async fn remove(&self, instance: &InstanceRef) -> Result<()> {
        let instance = instance.clone();
        let effect = |runtime: Self| async move {
            let ours = runtime.world.machine().find(&runtime.owner, &instance).is_some();
            if ours {
                runtime.world.remove(&instance.runtime_id, true);
            }
            Ok(())
        };
        self.call(Method::Remove, CALL_TIMEOUT, effect).await
    }

    async fn teardown(&self, deployment: &str, volumes: Volumes) -> Result<()> {
        let deployment = deployment.to_owned();
        let effect =
            move |runtime: Self| async move { runtime.world.machine().teardown(&runtime.owner, &deployment, volumes) };
        self.call(Method::Teardown, CALL_TIMEOUT, effect).await
    }

    async fn has_volumes(&self, deployment: &str) -> Result<bool> {
        let machine = self.world.machine();
        Ok(machine.volumes.iter().any(|(owner, of, _)| *owner == self.owner && of == deployment))
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

#[async_trait]
impl Suspend for SimRuntime {
    async fn pause(&self, instance: &InstanceRef) -> Result<Instance> {
        let instance = instance.clone();
        let effect = |runtime: Self| async move {
            let world = &runtime.world;
            let mut machine = world.machine();
            let (paused, did_run) = machine.pause(&runtime.owner, &instance, world.now())?;
            if did_run {
                world.changed(&mut machine, paused.clone());
            }
            Ok(paused)
        };
        self.call(Method::Pause, CALL_TIMEOUT, effect).await
    }

    async fn resume(&self, instance: &InstanceRef) -> Result<Instance> {
        let instance = instance.clone();
        let effect = |runtime: Self| async move {
            let world = &runtime.world;
            let mut machine = world.machine();
            let (resumed, was_frozen) = machine.resume(&runtime.owner, &instance, world.now())?;
            if was_frozen {
                world.changed(&mut machine, resumed.clone());
            }
            Ok(resumed)
        };
        self.call(Method::Resume, CALL_TIMEOUT, effect).await
    }
}

/// Memory that every instance is said to use, in bytes.
const MEMORY: u64 = 1 << 20;

/// Share of one processor that every running instance is said to use: one in so many parts.
const CPU_SHARE: i64 = 100;

#[async_trait]
impl Stats for SimRuntime {
    async fn stats(&self, instance: &InstanceRef) -> Result<Usage> {
        let instance = instance.clone();
        let effect = |runtime: Self| async move {
            let at = runtime.world.now();
            let mut machine = runtime.world.machine();
            let entry = machine.find(&runtime.owner, &instance).ok_or_else(|| not_found(&instance))?;
            let since = entry.instance.phase.started_at().filter(|_| entry.is_running());
            let since = since.ok_or_else(|| {
                RuntimeError::new(
                    ErrorKind::Rejected,
                    format!("instance {} does not run; it uses nothing", instance.id),
                )
            })?;
            let age = (at - since).num_microseconds().unwrap_or(i64::MAX);
            let accepted = u64::try_from(age).unwrap_or(0).saturating_mul(entry.program.requests()) / 1_000_000;
            let accepted = entry.uncounted.map_or(Ok(accepted), Err);
            Ok(Usage {
                cpu_usec: u64::try_from(age / CPU_SHARE).unwrap_or(0),
                accepted,
                memory: Some(MEMORY),
                pids: Some(1),
                ..Usage::nothing(at)
            })
        };
        self.call(Method::Stats, CALL_TIMEOUT, effect).await
    }
}

/// The instance as it is now.
pub(super) fn running(
    runtime: &SimRuntime,
    instance: &InstanceRef,
) -> Result<std::collections::BTreeMap<String, String>> {
    let now = runtime.world.now();
    let mut machine = runtime.world.machine();
    let entry = machine.find(&runtime.owner, instance).ok_or_else(|| not_found(instance))?;
    match entry.instance.phase {
        Phase::Running { .. } => {
            entry.instance.last_activity = Some(now);
            Ok(entry.env.clone())
        }
        _ => {
            let text = format!("{} does not run; it is {}", instance.id, entry.instance.phase.name());
            Err(RuntimeError::new(ErrorKind::Rejected, text))
        }
    }
}

#[async_trait]
impl Tags for SimRuntime {
    async fn digest(&self, reference: &str) -> Result<String> {
        let name = reference.to_owned();
        let missing = ImageRef::Registry(name.clone());
        let effect = move |runtime: Self| async move {
            match scripted(&missing) {
                Some(Scripted::Missing) => Err(image_unavailable(&missing)),
                _ => Ok(runtime.world.digest(&name)),
            }
        };
        self.call(Method::Digest, CALL_TIMEOUT, effect).await
    }
}
