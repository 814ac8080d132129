//! Has a job or cron service run.

use super::engine::Engine;
use super::message::Command;
use super::{EngineError, Mode, Trigger, TriggerRequest};
use crate::state::RunId;

impl Engine {
    /// Has a job or cron service run, on which an engine that works on nothing else works from then on, whatever its schedule says and whether it ran before. Gives the run once it is certain
    /// that it will be made; watch the status for what becomes of it.
    ///
    /// # Errors
    /// `NotFound` where nothing declares the service, `Invalid` where it is no job, `Conflict` where a run goes on and
    /// `job.overlap` is forbid, where too many were asked for, or where this engine carries nothing out.
    pub async fn trigger(&self, request: &TriggerRequest) -> Result<RunId, EngineError> {
        if matches!(self.inner.mode, Mode::Observe | Mode::Record) {
            return Err(EngineError::Conflict("this engine carries nothing out".to_owned()));
        }
        self.inner.archive.check_kept()?;
        let TriggerRequest { service, run } = request.clone();
        self.ask(|reply| Command::Trigger(Trigger { service, run, reply })).await?
    }
}
