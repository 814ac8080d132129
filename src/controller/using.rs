//! The use of instances by callers: noted while it lasts, and what it needs is woken first.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::EngineError;
use super::engine::Engine;
use super::ledger::{UseId, Used};
use super::message::{Command, Message, UseNews};
use crate::state::{Condition, Instance, InstanceRef, Signal, Target};

/// Longest wait for an instance that is woken to become ready: room for the pull of an image that was removed meanwhile, and
/// for a slow start.
const WAKE_DEADLINE: Duration = Duration::from_secs(300);

/// Pause between two looks at an instance that is woken.
const WAKE_POLL: Duration = Duration::from_millis(20);

/// The number of the next use of this process.
static NEXT_USE: AtomicU64 = AtomicU64::new(0);

/// A use that lasts until this is dropped.
#[derive(Debug)]
pub struct UseGuard {
    id: UseId,
    core: mpsc::Sender<Message>,
}

impl Drop for UseGuard {
    fn drop(&mut self) {
        let (id, core) = (self.id, self.core.clone());
        let ended = Message::Used(UseNews::End(id));
        if let Err(mpsc::error::TrySendError::Full(ended)) = core.try_send(ended)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            // A core that has ended watches nothing any more.
            runtime.spawn(async move { core.send(ended).await.unwrap_or_default() });
        }
    }
}

/// The same stream, which is a use for as long as it exists.
pub(super) fn guarded<T: Send + 'static>(stream: BoxStream<'static, T>, guard: UseGuard) -> BoxStream<'static, T> {
    stream
        .map(move |item| {
            let _in_use = &guard;
            item
        })
        .boxed()
}

impl Engine {
    /// Notes that somebody uses an instance from now on, until what this gives is dropped; none where the instance is just
    /// being stopped or started.
    ///
    /// # Errors
    /// `Ended` while the engine is shutting down.
    pub async fn begin_use(&self, signal: Signal, used: Used) -> Result<Option<UseGuard>, EngineError> {
        let id = NEXT_USE.fetch_add(1, Ordering::Relaxed);
        let core = self.inner.messages.clone();
        let (reply, answer) = oneshot::channel();
        let begin = Message::Used(UseNews::Begin { id, signal, used, reply });
        core.send(begin).await.map_err(|_| EngineError::Ended)?;
        let guard = UseGuard { id, core };
        let is_taken = answer.await.map_err(|_| EngineError::Ended)?;
        Ok(is_taken.then_some(guard))
    }

    /// Notes a use that is over at once.
    ///
    /// # Errors
    /// `Ended` while the engine is shutting down.
    pub async fn note_use(&self, signal: Signal, used: Used) -> Result<(), EngineError> {
        let once = Message::Used(UseNews::Once { signal, used });
        self.inner.messages.send(once).await.map_err(|_| EngineError::Ended)
    }

    /// Notes that what a target covers is in use; one that is suspended for idleness runs on. Gives a line for each: its name and
    /// what came of it.
    ///
    /// # Errors
    /// `NotFound` where it covers nothing that runs or is frozen; `Conflict` where no controller runs.
    pub async fn touch(&self, target: &Target) -> Result<Vec<String>, EngineError> {
        let target = target.clone();
        self.ask(|reply| Command::Touch(target, reply)).await?
    }

    /// The running instance that a target covers, for a use that begins now. One that is stopped or suspended for idleness is
    /// brought back first, and waited for until it is ready; to wait for it is a use already.
    ///
    /// # Errors
    /// `NotFound` where none is covered; `Conflict` where it does not come up in time, or nobody would wake it.
    pub(super) async fn running_for(
        &self,
        target: &Target,
        signal: Signal,
    ) -> Result<(Instance, UseGuard), EngineError> {
        let deadline = Instant::now() + WAKE_DEADLINE;
        let mut is_woken = false;
        let mut waits = None::<(InstanceRef, UseGuard)>;
        loop {
            match self.running(target).await {
                Ok(instance) => {
                    let one = instance.as_ref();
                    waits = waits.filter(|(used, _)| *used == one);
                    if waits.is_none() {
                        let guard = self.begin_use(signal, Used::Instance(one.clone())).await?;
                        waits = guard.map(|guard| (one, guard));
                    }
                    let may_be_used = !is_woken || self.is_shown_ready(&instance);
                    if let Some((_, guard)) = waits.take_if(|_| may_be_used) {
                        return Ok((instance, guard));
                    }
                    is_woken = true;
                }
                Err(EngineError::NotFound(_)) => {
                    let one = target.clone();
                    let woken = self.ask(|reply| Command::Wake(one, reply)).await?;
                    if let Some(why) = self.why_down(target).filter(|_| is_woken) {
                        return Err(EngineError::Conflict(format!("{target} was idle, and does not come up: {why}")));
                    }
                    woken?;
                    is_woken = true;
                }
                Err(error) => return Err(error),
            }
            if Instant::now() >= deadline {
                let limit = WAKE_DEADLINE.as_secs();
                let why = format!("{target} was idle, and is not ready {limit} s after it was woken; see keel get all");
                return Err(EngineError::Conflict(why));
            }
            tokio::time::sleep(WAKE_POLL).await;
        }
    }

    /// Why nothing that a target covers will run soon, where that is known: calls fail, or what was started ends.
    fn why_down(&self, target: &Target) -> Option<String> {
        let status = self.status();
        let mut services = status.services.iter().filter(|view| {
            view.deployment == target.deployment && target.service.as_ref().is_none_or(|name| *name == view.service)
        });
        let fails = |condition: &&Condition| {
            condition.kind == "ReplicaFailure"
                && !matches!(condition.reason.as_str(), "Unhealthy" | "Paused" | "UnknownPhase")
        };
        services.find_map(|view| {
            let failure = view.conditions.iter().find(fails).filter(|_| view.running == 0)?;
            Some(failure.message.clone())
        })
    }

    fn is_shown_ready(&self, instance: &Instance) -> bool {
        let is_it = |runtime_id: &str| runtime_id == instance.runtime_id;
        self.status()
            .instances
            .iter()
            .any(|view| view.runtime == instance.runtime && is_it(&view.runtime_id) && view.ready)
    }
}
