//! Finds the engine: the running controller of the state directory, or one in this process.

use std::time::Duration;

use tokio::time::Instant;

use crate::api::{ApiError, Client};
use crate::config::Options;
use crate::controller::{Engine, EngineError, EngineOptions, Mode};
use crate::status::Status;

use super::converge::not_done;
use super::output::note;

/// Longest wait for the first complete picture. Every runtime call has a shorter bound of its own.
const SYNC_DEADLINE: Duration = Duration::from_secs(60);

/// Longest wait for a process that holds the state directory and does not answer: a controller that ends holds it for five
/// seconds at most, and one that begins answers after its first look, ten seconds at most.
const HANDOVER: Duration = Duration::from_secs(12);

/// Between two tries meanwhile.
const HANDOVER_POLL: Duration = Duration::from_millis(100);

/// Nothing is told of a shorter wait: most controllers end within milliseconds.
const QUIET: Duration = Duration::from_secs(1);

/// The running controller, if there is one.
pub async fn running(options: &Options) -> anyhow::Result<Option<Client>> {
    match options.socket()? {
        // Most callers need to show none.
        Some(socket) => Ok(Client::to_controller(&socket, options.token().ok()).await?),
        None => Ok(None),
    }
}

/// The running controller, or an engine in this process that may do what this mode says. Where another process is about to
/// end, or to become the controller, it is waited for; a command that works there, as long as there is patience for it.
///
/// # Errors
/// [`StillBusy`] after that patience; no engine can be opened.
pub async fn open(options: &Options, mode: &Mode, patience: Duration) -> anyhow::Result<Client> {
    let since = Instant::now();
    let mut is_told = false;
    loop {
        if let Some(client) = running(options).await? {
            return Ok(client);
        }
        let waited = since.elapsed();
        match Engine::open(engine_options(options, mode.clone())).await {
            Ok(engine) => return Ok(Client::in_process(engine)),
            Err(EngineError::Busy(holder)) if waited >= patience => {
                return Err(StillBusy { patience, holder }.into());
            }
            Err(EngineError::Busy(holder)) => tell_once(&mut is_told, waited, &holder),
            Err(EngineError::Conflict(holder)) if waited < HANDOVER => tell_once(&mut is_told, waited, &holder),
            Err(error) => return Err(ApiError::from(error).into()),
        }
        tokio::time::sleep(HANDOVER_POLL).await;
    }
}

fn tell_once(is_told: &mut bool, waited: Duration, holder: &str) {
    if waited >= QUIET && !*is_told {
        note(format_args!("waiting: {holder}"));
        *is_told = true;
    }
}

/// Another command has worked on the state directory for all the time that there was.
#[derive(Debug, thiserror::Error)]
#[error("{}: {holder}", not_done(*patience))]
pub struct StillBusy {
    patience: Duration,
    holder: String,
}

/// Options of an engine in this process.
pub fn engine_options(options: &Options, mode: Mode) -> EngineOptions {
    EngineOptions {
        state_dir: options.state_dir.clone(),
        mode,
        runtime: options.runtime,
        program: options.program.clone(),
        devices: None,
    }
}

/// What there is, as soon as the sources were read and the runtimes were listed. What could not be known by then is
/// told on standard error.
pub async fn synced_status(client: &Client) -> Result<Status, ApiError> {
    let deadline = Instant::now() + SYNC_DEADLINE;
    let mut status = client.status().await?;
    while !status.synced {
        let generation = status.generation;
        match tokio::time::timeout_at(deadline, client.status_after(generation)).await {
            Ok(next) => status = next?,
            Err(_) => {
                note("warning: not everything could be listed in time; what follows may be incomplete");
                break;
            }
        }
    }
    Ok(status)
}

/// Tells on standard error what is in the way of a complete picture: runtimes that do not answer, held pruning,
/// broken files.
pub fn warn_about(status: &Status) {
    for runtime in &status.runtimes {
        if let Some(why) = &runtime.unreachable {
            note(format_args!(
                "warning: the {} runtime does not answer, so its instances are not known: {why}",
                runtime.runtime
            ));
        }
    }
    if let Some(hold) = &status.hold {
        note(format_args!("warning: {}", hold.reason));
    }
    if let Some(reset) = &status.reset {
        note(format_args!("warning: {}", reset.reason));
    }
    for problem in &status.problems {
        note(format_args!("warning: {}", super::problems::line(problem)));
    }
}
