//! One lane: its steps in order, each tried once and reported; a failure ends the lane.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::init::{self, Init};
use super::{CallKind, Gate, Surroundings, resolve};
use crate::plan::{Action, Lane, Step};
use crate::runtime::{CreateRequest, ErrorKind, Runtime, RuntimeError};
use crate::spec::OnFailure;
use crate::state::{Instance, InstanceRef, SlotFate};

/// What came of one step.
#[derive(Debug, Clone)]
pub struct Report {
    /// The step.
    pub step: Step,
    /// What came of it.
    pub outcome: Outcome,
    /// Whether the lane ends with it.
    pub last: bool,
}

/// What came of a call.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The call succeeded, and the instance is like this now.
    Now(Box<Instance>),
    /// The call succeeded, and the instance does not exist any more.
    Gone(InstanceRef),
    /// The call succeeded and concerned no instance.
    Done,
    /// A step before a start failed, and the start goes on all the same (`on_failure: warn`).
    Warned(RuntimeError),
    /// Nobody wants what the lane makes any more, so it ends here.
    Cancelled,
    /// The call failed.
    Failed(RuntimeError),
}

/// What a lane works with.
#[derive(Clone)]
pub struct Tools {
    /// The runtime that it calls.
    pub runtime: Arc<dyn Runtime>,
    /// Bounds its calls.
    pub gate: Arc<Gate>,
    /// What steps before a start see.
    pub around: Surroundings,
    /// Cancelled when nobody wants any more what it makes.
    pub cancelled: CancellationToken,
}

/// Takes reports, and progress of long calls in the runtime's words.
pub trait Reporter: Send + Sync {
    /// A step has ended.
    fn ended(&self, report: Report) -> impl Future<Output = ()> + Send;
    /// A step is getting on.
    fn progress(&self, step: &Step, progress: &crate::runtime::Progress);
}

/// Runs the steps in order until one fails. Every step is reported as soon as it ends.
///
/// What comes before the creation of an instance, the pull of its image and `init.steps`, may take long and is cut off when
/// nobody wants the instance any more.
pub async fn run<R: Reporter>(lane: Lane, tools: Tools, deployment: &str, reporter: &R) {
    let mut created: Option<InstanceRef> = None;
    let mut steps = lane.steps.into_iter().peekable();
    while let Some(step) = steps.next() {
        if let Action::Remove { instance, .. } = &step.action {
            await_readers(tools.runtime.as_ref(), instance).await;
        }
        let pass = tools.gate.pass(deployment, kind_of(&step.action)).await;
        let outcome = tokio::select! {
            biased;
            () = tools.cancelled.cancelled(), if may_be_cut_off(&step.action) => Outcome::Cancelled,
            outcome = within_its_time(&step, &created, &tools, reporter) => outcome,
        };
        drop(pass);
        if let (Action::Create { .. }, Outcome::Now(instance)) = (&step.action, &outcome) {
            created = Some(Instance::as_ref(instance));
        }
        let last = steps.peek().is_none() || matches!(outcome, Outcome::Failed(_) | Outcome::Cancelled);
        reporter.ended(Report { step, outcome, last }).await;
        if last {
            return;
        }
    }
}

/// Whether a step may be cut off where it is: nothing but a helper is left of it, which is removed then.
const fn may_be_cut_off(action: &Action) -> bool {
    matches!(action, Action::EnsureImage { .. } | Action::Init { .. })
}

async fn within_its_time<R: Reporter>(
    step: &Step,
    created: &Option<InstanceRef>,
    tools: &Tools,
    reporter: &R,
) -> Outcome {
    let limit = longest(&step.action);
    let attempted = tokio::time::timeout(limit, attempt(step, created, tools, reporter)).await;
    attempted.unwrap_or_else(|_| Outcome::Failed(overdue(step, limit)))
}

/// Longest time that a removal waits for those who read: runtimes wait for some seconds at most, and one that goes on for
/// longer keeps neither the instance nor what comes after it in the lane.
const READERS: Duration = Duration::from_secs(10);

/// Waits for those who read the last lines of an instance, whatever the runtime does about a bound of its own. Past the
/// bound it is removed all the same: nobody who reads may keep it.
async fn await_readers(runtime: &dyn Runtime, instance: &InstanceRef) {
    if tokio::time::timeout(READERS, runtime.await_readers(instance)).await.is_err() {
        tracing::warn!("{} is removed although its output is still read", instance.id);
    }
}

/// Longest time for a create, start, resume, removal or teardown: the kubelet's runtime request timeout is 2 minutes too.
const SHORT: Duration = Duration::from_secs(120);

/// What a stop may take beyond its grace: the kill, and the end of a process that can't be killed at once.
const BEYOND_GRACE: Duration = Duration::from_secs(120);

/// Longest time for having an image. Runtimes give up much earlier where a pull makes no progress; this bounds one
/// that makes some for ever.
const IMAGE: Duration = Duration::from_secs(3600);

/// Longest time for a step, whatever the runtime does about deadlines of its own.
fn longest(action: &Action) -> Duration {
    match action {
        Action::EnsureImage { .. } => IMAGE,
        Action::Stop { stop, .. } => stop.grace.saturating_add(BEYOND_GRACE),
        Action::Init { step, .. } => init::longest(step),
        Action::Create { .. }
        | Action::StartCreated { .. }
        | Action::Start { .. }
        | Action::Resume { .. }
        | Action::Suspend { .. }
        | Action::Remove { .. }
        | Action::Teardown { .. } => SHORT,
    }
}

/// One call that hangs says nothing of the runtime as a whole.
fn overdue(step: &Step, limit: Duration) -> RuntimeError {
    let message = format!("{} has not done it within {} s", step.action.runtime(), limit.as_secs());
    RuntimeError::new(ErrorKind::Failed, message)
}

const fn kind_of(action: &Action) -> CallKind {
    match action {
        Action::EnsureImage { .. } => CallKind::Image,
        Action::Stop { .. } => CallKind::Stop,
        Action::Init { .. } => CallKind::Init,
        Action::Create { .. }
        | Action::StartCreated { .. }
        | Action::Start { .. }
        | Action::Resume { .. }
        | Action::Suspend { .. }
        | Action::Remove { .. }
        | Action::Teardown { .. } => CallKind::Short,
    }
}

async fn attempt<R: Reporter>(step: &Step, created: &Option<InstanceRef>, tools: &Tools, reporter: &R) -> Outcome {
    let runtime = tools.runtime.as_ref();
    let now = |instance: Instance| Outcome::Now(Box::new(instance));
    let result = match &step.action {
        Action::EnsureImage { image, .. } => {
            let progress = |progress: crate::runtime::Progress| reporter.progress(step, &progress);
            runtime.ensure_image(image, &progress).await.map(|()| Outcome::Done)
        }
        Action::Init { .. } => return before_start(step, tools, reporter).await,
        Action::Create { .. } => match request(&step.action) {
            Ok(request) => runtime.create(&request).await.map(now),
            Err(error) => Err(error),
        },
        Action::StartCreated { id, .. } => match created {
            Some(instance) => runtime.start(instance).await.map(now),
            None => Err(RuntimeError::new(ErrorKind::NotFound, format!("{id} was not created"))),
        },
        Action::Start { instance } => runtime.start(instance).await.map(now),
        Action::Resume { instance } => match runtime.suspend() {
            Some(suspend) => suspend.resume(instance).await.map(now),
            None => Err(cannot_resume(instance)),
        },
        Action::Suspend { instance } => match runtime.suspend() {
            Some(suspend) => suspend.pause(instance).await.map(now),
            None => Err(cannot_suspend(instance)),
        },
        Action::Stop { instance, stop } => {
            runtime.stop(instance, stop).await.map(|left| left.map_or_else(|| Outcome::Gone(instance.clone()), now))
        }
        Action::Remove { instance, slot } => {
            let removed = match slot {
                SlotFate::Stays => runtime.remove(instance).await,
                SlotFate::Ends { workspace } => runtime.remove_with_slot(instance, *workspace).await,
            };
            removed.map(|()| Outcome::Gone(instance.clone()))
        }
        Action::Teardown { deployment, volumes, .. } => {
            runtime.teardown(deployment, *volumes).await.map(|()| Outcome::Done)
        }
    };
    result.unwrap_or_else(Outcome::Failed)
}

fn cannot_resume(instance: &InstanceRef) -> RuntimeError {
    let message = format!("{} can't let {} run on; do so with the tool that froze it", instance.runtime, instance.id);
    RuntimeError::new(ErrorKind::Unsupported, message)
}

fn cannot_suspend(instance: &InstanceRef) -> RuntimeError {
    let message = format!("{} can't freeze {}, so it runs on; write `on_idle: stop`", instance.runtime, instance.id);
    RuntimeError::new(ErrorKind::Unsupported, message)
}

/// Carries out a step before a start, and says what comes of its failure.
async fn before_start<R: Reporter>(step: &Step, tools: &Tools, reporter: &R) -> Outcome {
    let Action::Init { step: init, .. } = &step.action else { return Outcome::Done };
    let say = |message: String| {
        reporter.progress(step, &crate::runtime::Progress { message, current: None, total: None });
    };
    let done = match request(&step.action) {
        Ok(request) => {
            let (runtime, gate) = (tools.runtime.as_ref(), tools.gate.as_ref());
            Init { step: init, request, runtime, gate, around: tools.around.clone(), say: &say }.run().await
        }
        Err(error) => Err(error),
    };
    match (done, init.on_failure.unwrap_or_default()) {
        (Ok(()), _) => Outcome::Done,
        (Err(error), OnFailure::Fail) => Outcome::Failed(error),
        // Nothing would come of the start either.
        (Err(error), _) if error.kind != ErrorKind::InitFailed => Outcome::Failed(error),
        (Err(error), OnFailure::Warn) => Outcome::Warned(error),
        (Err(error), OnFailure::Continue) => {
            tracing::debug!("{}: {error}", step.action);
            Outcome::Done
        }
    }
}

/// Variables that tell an instance of a job the index of its completion, where its spec does not set them; the second has
/// the name that Kubernetes' indexed jobs give it.
const JOB_INDEX: [&str; 2] = ["KEEL_JOB_INDEX", "JOB_COMPLETION_INDEX"];

fn request(action: &Action) -> Result<CreateRequest, RuntimeError> {
    let (id, restarts, streak, spec, source) = match action {
        Action::Create { id, restarts, streak, spec, source, .. } => (id, restarts, streak, spec, source),
        Action::Init { id, spec, source, .. } => (id, &0, &0, spec, source),
        _ => return Err(RuntimeError::new(ErrorKind::Failed, "only what creates an instance has a create request")),
    };
    let host = |name: &str| std::env::var(name).ok();
    let resolved = resolve(&spec.env, &host);
    let mut env = resolved.map_err(|error| RuntimeError::new(ErrorKind::Rejected, error.to_string()))?;
    if id.run.is_some() {
        for name in JOB_INDEX {
            env.entry(name.to_owned()).or_insert_with(|| id.slot.to_string());
        }
    }
    Ok(CreateRequest {
        id: id.clone(),
        restarts: *restarts,
        streak: *streak,
        spec: spec.clone(),
        env,
        source: Some(source.file.clone()),
    })
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use futures::stream::BoxStream;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::plan::Cause;
    use crate::runtime::{Capabilities, Listing, Progress, Result, RuntimeEvent, Volumes};
    use crate::spec::{Image, RuntimeKind};
    use crate::state::{InstanceId, StopRequest};

    /// A runtime that only removes; somebody reads the output of every instance until `read` has a permit for it.
    struct Removes {
        read: Semaphore,
    }

    #[async_trait]
    impl Runtime for Removes {
        fn kind(&self) -> RuntimeKind {
            RuntimeKind::Docker
        }

        async fn capabilities(&self) -> Result<Capabilities> {
            unreachable!()
        }

        async fn list(&self) -> Result<Listing> {
            unreachable!()
        }

        async fn events(&self) -> Result<BoxStream<'static, RuntimeEvent>> {
            unreachable!()
        }

        async fn ensure_image(&self, _: &Image, _: &(dyn Fn(Progress) + Send + Sync)) -> Result<()> {
            unreachable!()
        }

        async fn create(&self, _: &CreateRequest) -> Result<Instance> {
            unreachable!()
        }

        async fn start(&self, _: &InstanceRef) -> Result<Instance> {
            unreachable!()
        }

        async fn stop(&self, _: &InstanceRef, _: &StopRequest) -> Result<Option<Instance>> {
            unreachable!()
        }

        async fn await_readers(&self, _: &InstanceRef) {
            self.read.acquire().await.unwrap().forget();
        }

        async fn remove(&self, _: &InstanceRef) -> Result<()> {
            Ok(())
        }

        async fn teardown(&self, _: &str, _: Volumes) -> Result<()> {
            unreachable!()
        }

        async fn has_volumes(&self, _: &str) -> Result<bool> {
            unreachable!()
        }

        fn concurrency(&self) -> usize {
            1
        }
    }

    /// Passes on what was removed.
    struct Ended(tokio::sync::mpsc::UnboundedSender<InstanceRef>);

    impl Reporter for Ended {
        async fn ended(&self, report: Report) {
            let Outcome::Gone(instance) = report.outcome else { panic!("{report:?}") };
            self.0.send(instance).unwrap();
        }

        fn progress(&self, _: &Step, _: &Progress) {}
    }

    fn tools(runtime: Arc<dyn Runtime>, gate: Arc<Gate>) -> Tools {
        Tools { runtime, gate, around: Surroundings::none(), cancelled: CancellationToken::new() }
    }

    /// A lane that removes one instance, and that instance.
    fn removal() -> (Lane, InstanceRef) {
        let revision = "v1-0123456789abcdef".parse().unwrap();
        let id =
            InstanceId { deployment: "demo".into(), service: "web".into(), slot: 0, revision, attempt: 0, run: None };
        let instance = InstanceRef { runtime: RuntimeKind::Docker, runtime_id: id.runtime_name(), id };
        let step = Step {
            action: Action::Remove { instance: instance.clone(), slot: SlotFate::Stays },
            cause: Cause::Superseded,
        };
        (Lane { steps: vec![step] }, instance)
    }

    #[tokio::test(start_paused = true)]
    async fn a_removal_that_waits_for_readers_takes_no_place_from_other_calls() {
        let runtime = Arc::new(Removes { read: Semaphore::new(0) });
        let gate = Arc::new(Gate::new(runtime.concurrency()));
        let (lane, instance) = removal();
        let (ended, mut gone) = tokio::sync::mpsc::unbounded_channel();
        let removal = {
            let tools = tools(runtime.clone(), gate.clone());
            tokio::spawn(async move { run(lane, tools, "demo", &Ended(ended)).await })
        };
        tokio::time::sleep(Duration::from_secs(1)).await;
        let other = tokio::time::timeout(Duration::from_secs(1), gate.pass("demo", CallKind::Short)).await;
        assert!(other.is_ok(), "the one place of the deployment is free while it waits");
        drop(other);
        assert!(gone.try_recv().is_err(), "it is not removed before it was read");
        runtime.read.add_permits(1);
        removal.await.unwrap();
        assert_eq!(gone.try_recv(), Ok(instance));
    }

    #[tokio::test(start_paused = true)]
    async fn readers_that_never_end_hold_up_no_removal() {
        let runtime = Arc::new(Removes { read: Semaphore::new(0) });
        let gate = Arc::new(Gate::new(runtime.concurrency()));
        let (lane, instance) = removal();
        let (ended, mut gone) = tokio::sync::mpsc::unbounded_channel();
        let began = tokio::time::Instant::now();
        let done = tokio::time::timeout(SHORT, run(lane, tools(runtime, gate), "demo", &Ended(ended))).await;
        assert_eq!((done, gone.try_recv()), (Ok(()), Ok(instance)));
        assert_eq!(began.elapsed(), READERS);
    }
}
