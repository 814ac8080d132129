//! The engine's face: what commands and the API ask of it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use futures::stream::BoxStream;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::archive::Archive;
use super::core::Core;
use super::follow::{Bookmark, Followed, Observed, follow};
use super::ledger::Used;
use super::memory::Notebook;
use super::message::{Command, Message};
use super::open::{Source, blinded, local};
use super::reread::Reread;
use super::sessions::SessionBook;
use super::using::guarded;
use super::{EngineError, Mode};
use crate::clock::SystemClock;
use crate::runtime::Runtime;
use crate::runtime::io::{LogLine, LogOptions};
use crate::spec::RuntimeKind;
use crate::state::{Instance, InstanceRef, Phase, Signal, Target};
use crate::status::Status;
use crate::store::{LockGuard, Store};

/// Outputs, by instance.
pub type Outputs = Vec<(InstanceRef, BoxStream<'static, crate::runtime::Result<LogLine>>)>;

/// The engine. Cheap to clone; all clones are one engine, which ends with the last of them.
#[derive(Clone)]
pub struct Engine {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) core: Mutex<Option<Core>>,
    pub(super) messages: mpsc::Sender<Message>,
    pub(super) status: watch::Receiver<Arc<Status>>,
    pub(super) store: Arc<Store>,
    pub(super) archive: Archive,
    pub(super) source: Option<Source>,
    /// Reads the declarations again where no source watches them.
    pub(super) reread: Option<Arc<Reread>>,
    /// Whether what watches the declarations has ended by itself.
    pub(super) blind: watch::Receiver<bool>,
    pub(super) mode: Mode,
    /// What waits to be written of rollouts and orders; none where this engine only looks.
    pub(super) notebook: Option<Arc<Notebook>>,
    /// What waits to be written of sessions; none where this engine only looks.
    pub(super) session_book: Option<Arc<SessionBook>>,
    pub(super) default_runtime: RuntimeKind,
    /// Directories that are watched, or were by the last controller; absolute.
    pub(super) watched: Vec<PathBuf>,
    /// Only one apply or delete at a time: each reads the applied files, decides, and writes them.
    pub(super) applying: Mutex<()>,
    pub(super) _tasks: JoinSet<()>,
    pub(super) _lock: Option<LockGuard>,
}

/// Asks the core and waits for its answer.
pub(super) async fn ask<T>(
    core: &mpsc::Sender<Message>,
    command: impl FnOnce(oneshot::Sender<T>) -> Command,
) -> Result<T, EngineError> {
    let (reply, answer) = oneshot::channel();
    core.send(Message::Command(command(reply))).await.map_err(|_| EngineError::Ended)?;
    answer.await.map_err(|_| EngineError::Ended)
}

impl Engine {
    /// What there is, at this moment.
    pub fn status(&self) -> Arc<Status> {
        self.inner.status.borrow().clone()
    }

    /// The same, with a way to wait for changes.
    pub fn watch(&self) -> watch::Receiver<Arc<Status>> {
        self.inner.status.clone()
    }

    pub(super) async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, EngineError> {
        ask(&self.inner.messages, command).await
    }

    /// Reads the sources again and waits until the result counts.
    ///
    /// # Errors
    /// `Ended` while the engine is shutting down; the sources can't be read.
    pub async fn rescan(&self) -> Result<(), EngineError> {
        if let Some(source) = &self.inner.source {
            source.rescan().await.map_err(blinded)?;
        }
        if let Some(reread) = &self.inner.reread {
            reread.read(Instant::now()).await?;
        }
        self.ask(Command::Settle).await
    }

    /// Confirms that what is missing from the source may go, or else what is kept for other reasons, as
    /// [`Scanner::approve`](crate::source::Scanner::approve) does; returns what it was.
    ///
    /// # Errors
    /// `Ended` while the engine is shutting down; `Conflict` where it watches nothing.
    pub async fn approve(&self) -> Result<Vec<String>, EngineError> {
        let Some(source) = &self.inner.source else {
            return Err(EngineError::Conflict("no controller is running; `keel run` decides about pruning".to_owned()));
        };
        self.inner.archive.check_kept()?;
        let forgotten = self.status().reset.as_ref().map(|reset| reset.kept.clone()).unwrap_or_default();
        let approved = source.handle.approve().await.map_err(blinded)?;
        let approved = approved.map_err(local("the approval can't be recorded"))?;
        self.rescan().await?;
        // What the source does not know the name of: only instances tell of it.
        let forgotten = forgotten.into_iter().filter(|_| self.status().reset.is_none());
        Ok(approved.into_iter().chain(forgotten).collect::<BTreeSet<_>>().into_iter().collect())
    }

    /// Output of the newest run of every slot that the target covers, by instance, as it is now or until the instance
    /// ends; of the runs before when `previous`.
    ///
    /// # Errors
    /// `NotFound` when the target covers nothing, or has no run before.
    pub async fn logs(&self, target: &Target, previous: bool, options: &LogOptions) -> Result<Outputs, EngineError> {
        let instances = self.instances(target).await?;
        let chosen: Vec<Instance> = slots(instances).into_iter().flat_map(|slot| pick(slot, previous)).collect();
        if chosen.is_empty() {
            let what = if previous { "has no previous run; leave out --previous" } else { "has no instance" };
            return Err(EngineError::NotFound(format!("{target} {what}")));
        }
        self.outputs(chosen, options).await
    }

    /// Output of the one instance that the target covers and the runtime knows by this id, whatever came after it in its slot.
    ///
    /// # Errors
    /// `NotFound` when the target covers no such instance.
    pub async fn logs_of(
        &self,
        target: &Target,
        runtime_id: &str,
        options: &LogOptions,
    ) -> Result<Outputs, EngineError> {
        let mut chosen = self.instances(target).await?;
        chosen.retain(|instance| instance.runtime_id == runtime_id);
        if chosen.is_empty() {
            return Err(EngineError::NotFound(format!("{target} has no instance {runtime_id} any more")));
        }
        self.outputs(chosen, options).await
    }

    async fn outputs(&self, chosen: Vec<Instance>, options: &LogOptions) -> Result<Outputs, EngineError> {
        let mut streams = Vec::new();
        for instance in chosen {
            let runtime = self.runtime(instance.runtime).await?;
            let logs = runtime.logs().ok_or_else(|| cannot(instance.runtime, "show output"))?;
            let instance = instance.as_ref();
            let lines = logs.logs(&instance, options).await?;
            streams.push((instance, lines));
        }
        Ok(streams)
    }

    /// Output of every instance that the target covers, now or later; after a bookmark, from there on.
    ///
    /// # Errors
    /// `NotFound` when nothing that the target covers is declared or exists, except after a bookmark.
    pub async fn follow(
        &self,
        target: &Target,
        options: &LogOptions,
        after: Option<Bookmark>,
    ) -> Result<BoxStream<'static, Followed>, EngineError> {
        let observed = Observed {
            messages: self.inner.messages.clone(),
            status: self.watch(),
            clock: Arc::new(SystemClock),
            reread: self.inner.reread.clone(),
        };
        let followed = follow(observed, target.clone(), *options, after).await?;
        let guard = self.begin_use(Signal::Logs, Used::Covered(target.clone())).await?;
        Ok(match guard {
            Some(guard) => guarded(followed, guard),
            None => followed,
        })
    }

    /// The running instance that a target covers; the newest one of the lowest slot where it covers several.
    pub(super) async fn running(&self, target: &Target) -> Result<Instance, EngineError> {
        let mut running = self.instances(target).await?;
        running.retain(|instance| matches!(instance.phase, Phase::Running { .. }));
        running.sort_by(|one, other| {
            let key = |instance: &Instance| (instance.id.service.clone(), instance.id.slot);
            key(one).cmp(&key(other)).then(other.created_at.cmp(&one.created_at))
        });
        let none = || EngineError::NotFound(format!("{target} has no running instance; see keel get instances"));
        running.into_iter().next().ok_or_else(none)
    }

    pub(super) async fn instances(&self, target: &Target) -> Result<Vec<Instance>, EngineError> {
        let target = target.clone();
        self.ask(|reply| Command::Instances(target, reply)).await
    }

    pub(super) async fn runtime(&self, kind: RuntimeKind) -> Result<Arc<dyn Runtime>, EngineError> {
        let runtime = self.ask(|reply| Command::Runtime(kind, reply)).await?;
        runtime.ok_or_else(|| EngineError::Conflict(format!("{kind} does not answer")))
    }

    /// Waits until the declarations can't be read any more, which a defect of ours alone leads to: then this engine is to
    /// end, as it would hold on to what was declared last for ever.
    pub async fn blinded(&self) {
        let mut blind = self.inner.blind.clone();
        if blind.wait_for(|blind| *blind).await.is_err() {
            // Nothing watches, or the engine is ending.
            std::future::pending::<()>().await;
        }
    }

    /// Stops working; workloads go on.
    pub async fn shutdown(&self) {
        // A core that has ended has nothing to tell.
        let _ = self.ask(Command::NoteClocks).await;
        self.inner.core.lock().await.take();
        self.keep_notes().await;
    }

    /// Writes what waits to be written of rollouts, orders and sessions.
    pub(super) async fn keep_notes(&self) {
        if let Some(notebook) = &self.inner.notebook {
            notebook.write(self.inner.store.clone()).await;
        }
        if let Some(book) = &self.inner.session_book {
            book.write(self.inner.store.clone()).await;
        }
    }
}

pub(super) fn cannot(kind: RuntimeKind, what: &str) -> EngineError {
    EngineError::Conflict(format!("{kind} can't {what}"))
}

/// The instances of each slot, newest first.
fn slots(mut instances: Vec<Instance>) -> Vec<Vec<Instance>> {
    instances.sort_by(|one, other| {
        let key = |instance: &Instance| (instance.id.service.clone(), instance.id.slot);
        key(one).cmp(&key(other)).then_with(|| other.recency().cmp(&one.recency()))
    });
    let same = |one: &Instance, other: &Instance| one.id.service == other.id.service && one.id.slot == other.id.slot;
    instances.chunk_by(same).map(<[Instance]>::to_vec).collect()
}

/// The instances of a slot whose output is meant: the newest, dead or not, and whatever else runs there, as what a rollout
/// has not replaced yet; or the newest dead one before it, or that itself, where nothing is before it and another one runs in
/// its place after all. One that has not been started yet has written nothing, and counts
/// where there is nothing else.
fn pick(newest_first: Vec<Instance>, previous: bool) -> Vec<Instance> {
    let dead = |instance: &Instance| matches!(instance.phase, Phase::Exited(_));
    let waits = |instance: &Instance| matches!(instance.phase, Phase::Pending | Phase::Created);
    let current = newest_first.iter().position(|instance| !waits(instance)).unwrap_or(0);
    let mut runs = newest_first.into_iter().skip(current);
    let current = runs.next();
    let runs: Vec<Instance> = runs.collect();
    match previous {
        true if !runs.iter().any(dead) && runs.iter().any(|one| !waits(one)) => {
            current.filter(|current| dead(current)).into_iter().collect()
        }
        false => {
            let others = runs.into_iter().filter(|instance| !dead(instance) && !waits(instance));
            current.into_iter().chain(others).collect()
        }
        true => runs.into_iter().find(dead).into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, TimeDelta};

    use super::*;
    use crate::state::{Exit, InstanceId};

    /// Attempt 0 and so on, in these phases, each created a minute after the one before.
    fn slot(phases: &[Phase]) -> Vec<Instance> {
        let instance = |(attempt, phase): (u32, &Phase)| {
            let revision = "v1-0123456789abcdef".parse().unwrap();
            let id = InstanceId {
                deployment: "demo".to_owned(),
                service: "web".to_owned(),
                slot: 0,
                revision,
                attempt,
                run: None,
            };
            let created_at = DateTime::UNIX_EPOCH + TimeDelta::minutes(attempt.into());
            Instance::new(id, RuntimeKind::Sim, phase.clone(), created_at)
        };
        (0..).zip(phases).map(instance).collect()
    }

    #[test]
    fn the_newest_run_is_meant_and_what_still_runs_beside_it_or_the_dead_one_before_it() {
        let dead = || Phase::Exited(Exit::from_code(1, None, DateTime::UNIX_EPOCH));
        let runs = || Phase::Running { since: DateTime::UNIX_EPOCH, ready: true };
        let table: [(&[Phase], &[u32], &[u32]); 11] = [
            (&[runs()], &[0], &[]),
            (&[dead()], &[0], &[]),
            (&[dead(), runs()], &[1], &[0]),
            (&[dead(), dead()], &[1], &[0]),
            (&[dead(), dead(), runs()], &[2], &[1]),
            // The next one is being made.
            (&[dead(), dead(), Phase::Pending], &[1], &[0]),
            (&[dead(), dead(), Phase::Created], &[1], &[0]),
            (&[Phase::Created], &[0], &[]),
            // The old one serves on while its successor comes up, or crashes.
            (&[runs(), runs()], &[1, 0], &[]),
            (&[runs(), dead(), dead()], &[2, 0], &[1]),
            // It was given up, and the old one runs on.
            (&[runs(), dead()], &[1, 0], &[1]),
        ];
        for (phases, meant, previous) in table {
            let picked = |previous| -> Vec<u32> {
                let slots = slots(slot(phases));
                assert_eq!(slots.len(), 1);
                slots.into_iter().flat_map(|slot| pick(slot, previous)).map(|instance| instance.id.attempt).collect()
            };
            assert_eq!((picked(false), picked(true)), (meant.to_vec(), previous.to_vec()), "{phases:?}");
        }
    }
}
