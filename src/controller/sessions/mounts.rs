//! What a claim wants mounted into its sandbox: refused before anything is taken where that can't be, and mounted once the
//! member is taken and before it is handed out.

use std::time::Duration;

use super::request::AcquireRequest;
use super::{Claim, PoolInfo, SessionCommand, SessionMessage};
use crate::controller::EngineError;
use crate::controller::core::State;
use crate::controller::engine::Engine;
use crate::controller::message::{Command, Message};
use crate::runtime::{ErrorKind, Runtime, RuntimeError};
use crate::spec::RuntimeKind;
use crate::state::{Instance, LateMount, ServiceName, SessionEnd, SessionId};

/// Longest time for which a claim waits until everything is mounted: a disk that takes longer hangs.
const MOUNT_DEADLINE: Duration = Duration::from_secs(10);

impl Engine {
    /// Refuses a claim whose mounts its pool's runtime can't make, or whose sources may not be shown.
    pub(super) async fn may_mount(&self, pool: &ServiceName, request: &AcquireRequest) -> Result<(), EngineError> {
        if request.mounts.is_empty() {
            return Ok(());
        }
        let pools: Vec<PoolInfo> = self.ask(|reply| Command::Session(SessionCommand::Pools(reply))).await?;
        // Whether it is one is told where the claim is taken in.
        let Some(info) = pools.into_iter().find(|info| info.name == *pool) else { return Ok(()) };
        let runtime = self.runtime(info.runtime).await?;
        match runtime.late_mounts() {
            Some(late) => Ok(late.check_mounts(&request.mounts).await?),
            None => Err(cannot_mount(pool, info.runtime)),
        }
    }
}

impl State {
    /// Refuses a claim with mounts where its pool's runtime makes none.
    pub(super) fn may_mount(&self, claim: &Claim) -> Result<(), EngineError> {
        let deployment = self.declared.desired.deployments.get(&claim.pool.deployment);
        let kind = deployment.and_then(|one| one.services.get(&claim.pool.service)).map(|service| service.runtime);
        let attached = kind.and_then(|kind| Some((kind, self.runtimes.get(&kind)?)));
        match attached {
            Some((kind, attached)) if !claim.request.mounts.is_empty() && attached.runtime.late_mounts().is_none() => {
                Err(cannot_mount(&claim.pool, kind))
            }
            _ => Ok(()),
        }
    }

    /// Has everything mounted that a claim asks for into the member that it is to get.
    pub(super) fn mount_for(&mut self, id: &SessionId, claim: Claim, instance: Instance) {
        let member = instance.as_ref();
        let (reports, runtime, id) = (self.reports(), self.runtime_of(&member), id.clone());
        let mounts = claim.request.mounts.clone();
        // It is on its way for as long as this takes.
        if let Some(held) = self.sessions.all.get_mut(&id) {
            held.claim = Some(Box::new(claim));
        }
        self.lanes.spawn(async move {
            let done = match runtime {
                Some(runtime) => mount(&*runtime, &instance, &mounts).await,
                None => Err(unanswered(instance.runtime)),
            };
            let mounted = SessionMessage::Mounted(id, Box::new((instance, done)));
            // A core that has ended needs no report.
            let _ = reports.send(Message::Session(Box::new(mounted))).await;
        });
    }

    /// Everything was mounted for a claim, or not: hands the member out, or has it go as one that was used where anything may have
    /// been changed in it.
    pub(super) fn mounted(&mut self, id: &SessionId, instance: &Instance, done: crate::runtime::Result<()>) {
        let Some(held) = self.sessions.all.get_mut(id) else { return };
        let Some(claim) = held.claim.take() else { return };
        match done {
            // It was seen to end in the meantime.
            Ok(()) | Err(_) if !held.session.is_live() => self.claim_again(*claim),
            Ok(()) => self.hand_out(id, *claim, instance),
            // So would it be in any other, and nothing was changed in this one.
            Err(error) if error.kind == ErrorKind::Unsupported => {
                self.give_back(id, *claim, EngineError::Runtime(error));
            }
            Err(error) => {
                let how = format!("what was asked for could not be mounted: {error}");
                drop(self.end_session(id, SessionEnd::NotHandedOut { how }));
                claim.refuse(EngineError::Runtime(error));
            }
        }
    }
}

async fn mount(runtime: &dyn Runtime, instance: &Instance, mounts: &[LateMount]) -> crate::runtime::Result<()> {
    let Some(late) = runtime.late_mounts() else {
        let message = format!("{} can't mount into what runs already", instance.runtime);
        return Err(RuntimeError::new(ErrorKind::Unsupported, message));
    };
    match tokio::time::timeout(MOUNT_DEADLINE, late.mount(&instance.as_ref(), mounts)).await {
        Ok(done) => done,
        Err(_) => {
            let message = format!("mounting did not end within {} s; does a disk hang?", MOUNT_DEADLINE.as_secs());
            Err(RuntimeError::new(ErrorKind::Timeout, message))
        }
    }
}

fn unanswered(runtime: RuntimeKind) -> RuntimeError {
    RuntimeError::new(ErrorKind::Unavailable, format!("{runtime} does not answer"))
}

fn cannot_mount(pool: &ServiceName, runtime: RuntimeKind) -> EngineError {
    EngineError::Conflict(format!(
        "pool {pool} runs on {runtime}, which can't mount into what runs already; declare the directories as `storage` of \
         the pool, or leave the mounts out"
    ))
}
