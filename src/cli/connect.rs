//! Finds the engine: the running controller of the state directory, or one in this process.

use std::time::Duration;

use tokio::time::Instant;

use crate::api::{ApiError, Client};
use crate::config::Options;
use crate::controller::{Engine, EngineOptions, Mode};
use crate::status::Status;

use super::output::note;

/// Longest wait for the first complete picture. Every runtime call has a shorter bound of its own.
const SYNC_DEADLINE: Duration = Duration::from_secs(60);

/// An engine to look at; where nothing was ever made, it is empty and makes nothing.
pub async fn observe(options: &Options) -> anyhow::Result<Client> {
    open(options, Mode::Observe).await
}

/// An engine to look at what exists; `None` where nothing was ever made, so that nothing can exist.
pub async fn look(options: &Options) -> anyhow::Result<Option<Client>> {
    if options.is_untouched() {
        return Ok(None);
    }
    observe(options).await.map(Some)
}

/// What becomes of a change of declarations where no controller runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unattended {
    /// This process carries it out.
    CarriedOut,
    /// It is recorded, for the next one that does.
    Recorded,
}

/// An engine that changes declarations.
pub async fn change(options: &Options, unattended: Unattended) -> anyhow::Result<Client> {
    let mode = match unattended {
        Unattended::CarriedOut => Mode::OneShot,
        Unattended::Recorded => Mode::Record,
    };
    open(options, mode).await
}

/// The running controller, if there is one.
pub async fn running(options: &Options) -> anyhow::Result<Option<Client>> {
    match options.socket()? {
        Some(socket) => Ok(Client::to_controller(&socket).await?),
        None => Ok(None),
    }
}

async fn open(options: &Options, mode: Mode) -> anyhow::Result<Client> {
    if let Some(client) = running(options).await? {
        return Ok(client);
    }
    let engine = Engine::open(engine_options(options, mode)).await.map_err(ApiError::from)?;
    Ok(Client::in_process(engine))
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
    for problem in &status.problems {
        note(format_args!("warning: {}", super::problems::line(problem)));
    }
}
