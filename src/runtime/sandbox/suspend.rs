//! Pausing instances: by the freezer of their control groups, else by signals.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use async_trait::async_trait;
use rustix::process::{Signal, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::bounds::FILE_LIMIT;
use super::cgroup;
use super::layout::{Durability, InstanceDir, write_json};
use super::observe::Found;
use super::process::{ProcessKey, descendants};
use super::record::Run;
use super::{Inner, SandboxRuntime, checked_id, failed, not_found, settle};
use crate::runtime::{ErrorKind, Result, RuntimeError, Suspend};
use crate::state::{Condition, Instance, InstanceRef, Phase};

/// Most rounds of signals until no process is found that has not got one; each finds what was forked in the one before.
const MOST_ROUNDS: usize = 10;

/// What is written while an instance is paused by signals, which no control group tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Paused {}

#[async_trait]
impl Suspend for SandboxRuntime {
    async fn pause(&self, instance: &InstanceRef) -> Result<Instance> {
        let found = self.look(instance).await?.ok_or_else(|| not_found(instance))?;
        match (&found.instance.phase, found.run) {
            (Phase::Paused { .. }, _) => return Ok(found.instance),
            (Phase::Running { .. }, Some(run)) => {
                let id = checked_id(instance)?;
                let pause = move |inner: &Inner| {
                    inner.pause(&id, &run).map_err(|error| failed(&format!("pausing {id}"), &error))
                };
                self.blocking("pausing an instance", FILE_LIMIT, pause).await?;
            }
            (phase, _) => {
                let message = format!("instance {} does not run ({}); start it first", instance.id, phase.name());
                return Err(RuntimeError::new(ErrorKind::Rejected, message));
            }
        }
        self.told(instance).await
    }

    async fn resume(&self, instance: &InstanceRef) -> Result<Instance> {
        let found = self.look(instance).await?.ok_or_else(|| not_found(instance))?;
        let (Phase::Paused { .. }, Some(run)) = (&found.instance.phase, found.run) else { return Ok(found.instance) };
        let id = checked_id(instance)?;
        let resume =
            move |inner: &Inner| inner.resume(&id, &run).map_err(|error| failed(&format!("resuming {id}"), &error));
        self.blocking("resuming an instance", FILE_LIMIT, resume).await?;
        self.told(instance).await
    }
}

impl SandboxRuntime {
    /// The instance as it is now, which everybody is told.
    async fn told(&self, instance: &InstanceRef) -> Result<Instance> {
        let found: Found = self.look(instance).await?.ok_or_else(|| not_found(instance))?;
        self.inner.watch.tell(&found).await;
        self.inner.view.layout.wake_others();
        Ok(found.instance)
    }
}

impl Inner {
    fn pause(&self, runtime_id: &str, run: &Run) -> io::Result<()> {
        let groups = settle::groups(&self.view, runtime_id, None)?;
        if cgroup::freeze(&groups)? {
            return Ok(());
        }
        // First of all, so that whoever stops the instance meanwhile lets it go on.
        write_json(&self.dir(runtime_id).paused(), &Paused {}, Durability::Boot)?;
        signal_all(run.supervisor.pid, (run.first != run.program).then_some(run.first.pid), Signal::STOP);
        Ok(())
    }

    fn resume(&self, runtime_id: &str, run: &Run) -> io::Result<()> {
        cgroup::thaw(&settle::groups(&self.view, runtime_id, None)?)?;
        carry_on(&self.dir(runtime_id), run.supervisor.pid)
    }
}

/// Lets an instance go on that was paused by signals.
///
/// # Errors
/// The word that it is paused can't be removed.
pub fn carry_on(dir: &InstanceDir, supervisor: i32) -> io::Result<()> {
    if !dir.paused().exists() {
        return Ok(());
    }
    signal_all(supervisor, None, Signal::CONT);
    match fs::remove_file(dir.paused()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Signals everything below a supervisor but the init process, which has to stay on its post.
fn signal_all(supervisor: i32, init: Option<i32>, signal: Signal) {
    let mut signalled: BTreeSet<i32> = init.into_iter().collect();
    for _ in 0..MOST_ROUNDS {
        let new: Vec<i32> = descendants(supervisor).into_iter().filter(|pid| signalled.insert(*pid)).collect();
        if new.is_empty() {
            return;
        }
        for pidfd in new.into_iter().filter_map(|pid| ProcessKey::of(pid).ok()?.open().ok()?) {
            let _ = pidfd_send_signal(&pidfd, signal);
        }
    }
}

/// What is to be said of an instance that is paused by signals.
pub fn degraded() -> Condition {
    Condition::holds(
        "Degraded",
        "PausedBySignals",
        "there is no freezer here, so its processes were stopped by SIGSTOP: they and others of their user can undo it, \
         and commands that were started inside go on",
    )
}
