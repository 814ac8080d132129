//! An engine for verbs that go on for as long as somebody looks: the running controller, or one in this process while
//! none runs.

use std::time::Duration;

use super::connect::{observe, running, synced_status, warn_about};
use super::output::note;
use crate::api::{ApiError, Client, Kind};
use crate::config::Options;
use crate::status::Status;

/// Before another engine is asked in place of a controller that went away: one that is ending has closed its socket by
/// then, and nobody notices the pause.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Failures in a row after which it is not the controllers' coming and going; ten seconds of pauses.
const MOST_FAILURES: u32 = 50;

/// Between two looks for a controller while none runs; a look is one attempt to connect.
const CONTROLLER_POLL: Duration = Duration::from_millis(500);

/// Asks whatever engine there is.
pub struct Lasting<'a> {
    options: &'a Options,
    client: Client,
    failures: u32,
}

impl<'a> Lasting<'a> {
    /// Begins with this engine.
    pub const fn new(options: &'a Options, client: Client) -> Self {
        Self { options, client, failures: 0 }
    }

    /// The engine that is asked at present.
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// Takes note that the engine answers.
    pub const fn works(&mut self) {
        self.failures = 0;
    }

    /// Goes on with another engine if the error is that the controller went away.
    ///
    /// # Errors
    /// That error, where it is another one, or comes again and again; no engine can be opened in this process.
    pub async fn recover(&mut self, error: ApiError) -> anyhow::Result<()> {
        let went_away = self.client.has_controller() && matches!(error.kind, Kind::Transport | Kind::Conflict);
        self.failures += 1;
        if !went_away || self.failures > MOST_FAILURES {
            return Err(error.into());
        }
        tokio::time::sleep(RETRY_PAUSE).await;
        self.client = observe(self.options).await?;
        if !self.client.has_controller() {
            self.failures = 0;
            note("warning: the controller ended; going on without one until it is back");
        }
        Ok(())
    }

    /// The controller that starts while none is asked. What is in the way of asking one may pass.
    pub fn controller(&self) -> impl Future<Output = Client> + use<'a> {
        let (options, has_controller) = (self.options, self.client.has_controller());
        async move {
            if has_controller {
                return std::future::pending().await;
            }
            loop {
                if let Ok(client) = controller(options).await {
                    return client;
                }
                tokio::time::sleep(CONTROLLER_POLL).await;
            }
        }
    }

    /// Goes on with this engine.
    pub async fn switch(&mut self, client: Client) {
        self.client.close().await;
        self.client = client;
    }

    /// What there is, as soon as it differs from this generation, or the same after a while. Where another engine takes
    /// over meanwhile, what that one knows; what is in its way is told on standard error.
    ///
    /// # Errors
    /// As for [`Lasting::recover`].
    pub async fn status_after(&mut self, generation: u64) -> anyhow::Result<Status> {
        let mut seen = Some(generation);
        loop {
            let asked = async {
                match seen {
                    Some(generation) => self.client.status_after(generation).await,
                    None => synced_status(&self.client).await,
                }
            };
            tokio::select! {
                status = asked => match status {
                    Ok(status) => {
                        self.works();
                        if seen.is_none() {
                            warn_about(&status);
                        }
                        return Ok(status);
                    }
                    Err(error) => self.recover(error).await?,
                },
                client = self.controller() => self.switch(client).await,
            }
            seen = None;
        }
    }

    /// Ends an engine in this process.
    pub async fn close(&self) {
        self.client.close().await;
    }
}

/// The first controller that runs.
///
/// # Errors
/// It can't be asked: another user's, or one that does not answer.
pub async fn controller(options: &Options) -> anyhow::Result<Client> {
    loop {
        match running(options).await? {
            Some(client) => return Ok(client),
            None => tokio::time::sleep(CONTROLLER_POLL).await,
        }
    }
}
