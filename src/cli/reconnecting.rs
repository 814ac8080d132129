//! An engine for verbs: the running controller or, where none runs, one in this process; and the next one where the
//! controller ends before it has answered.

use std::time::Duration;

use tokio::time::Instant;

use super::connect::{open, running, synced_status, warn_about};
use super::output::note;
use crate::api::{ApiError, Client, Kind};
use crate::config::Options;
use crate::controller::Mode;
use crate::status::Status;
use crate::store::StateDir;

/// Before another engine is asked in place of a controller that went away: one that is ending has closed its socket by
/// then, and nobody notices the pause.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Before this process does the work of a controller that ended: one that a service manager starts again at once has the
/// state directory by then.
const TAKE_OVER_PAUSE: Duration = Duration::from_secs(1);

/// Longest time of failures after which it is not the controllers' coming and going. The try that is under way by then
/// is the last one; it has a bound of its own, a little more than a minute.
const LONGEST_OUTAGE: Duration = Duration::from_secs(30);

/// Most times that one thing is asked for, over all restarts: whoever restarts a service stops long before, and what ends a
/// controller each time may be the request itself.
const MOST_TRIES: usize = 20;

/// An answer that went on for as long ends an outage, though nothing was told; one that breaks off sooner, again and
/// again, does not. Several times what a controller takes that is started again at once.
const STEADY: Duration = Duration::from_secs(10);

/// Between two looks for a controller while none runs; a look is one attempt to connect.
const CONTROLLER_POLL: Duration = Duration::from_millis(500);

/// A client of whatever engine there is, which goes on with the next one.
pub struct Reconnecting<'a> {
    options: &'a Options,
    /// What an engine in this process may do.
    mode: Mode,
    /// How long another command that works on the state directory is waited for.
    patience: Duration,
    client: Client,
    outage: Option<Outage>,
}

/// What becomes of a change of declarations where no controller runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unattended {
    /// This process carries it out.
    CarriedOut,
    /// It is recorded, for the next one that does.
    Recorded,
}

/// An engine to look at; where nothing was ever made, it is empty and makes nothing.
///
/// # Errors
/// A controller runs and can't be asked; no engine can be opened in this process.
pub async fn observe(options: &Options) -> anyhow::Result<Reconnecting<'_>> {
    Reconnecting::open(options, Mode::Observe, Duration::ZERO).await
}

/// An engine to look at what exists; `None` where nothing was ever made, so that nothing can exist.
///
/// # Errors
/// As for [`observe`].
pub async fn observe_existing(options: &Options) -> anyhow::Result<Option<Reconnecting<'_>>> {
    if options.is_untouched() {
        return Ok(None);
    }
    observe(options).await.map(Some)
}

/// An engine that changes declarations. Another command that works on the state directory is waited for, as long as there
/// is patience for it.
///
/// # Errors
/// As for [`observe`]; another process works on the state directory, and does not answer.
pub async fn change(options: &Options, unattended: Unattended, patience: Duration) -> anyhow::Result<Reconnecting<'_>> {
    let mode = match unattended {
        Unattended::CarriedOut => Mode::OneShot,
        Unattended::Recorded => Mode::Record,
    };
    Reconnecting::open(options, mode, patience).await
}

/// Failures with no more than a moment between them.
#[derive(Debug, Clone, Copy)]
struct Outage {
    since: Instant,
    last: Instant,
    /// Whether an answer began since the last one.
    has_answer: bool,
}

impl Outage {
    /// With one more failure.
    fn after(before: Option<Self>, now: Instant) -> Self {
        let goes_on = |outage: &Self| !outage.has_answer || now.duration_since(outage.last) < STEADY;
        let since = before.filter(goes_on).map_or(now, |outage| outage.since);
        Self { since, last: now, has_answer: false }
    }

    /// Whether it has lasted for too long.
    fn is_lasting(&self) -> bool {
        self.last.duration_since(self.since) >= LONGEST_OUTAGE
    }
}

impl<'a> Reconnecting<'a> {
    async fn open(options: &'a Options, mode: Mode, patience: Duration) -> anyhow::Result<Self> {
        let client = open(options, &mode, patience).await?;
        Ok(Self { options, mode, patience, client, outage: None })
    }

    /// Looks at the first controller that runs, once there is one.
    ///
    /// # Errors
    /// It can't be asked: another user's, or one that does not answer.
    pub async fn first_controller(options: &'a Options) -> anyhow::Result<Self> {
        let client = controller(options).await?;
        Ok(Self { options, mode: Mode::Observe, patience: Duration::ZERO, client, outage: None })
    }

    /// The engine that is asked at present.
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// Takes note that an answer began, which goes on from here.
    pub const fn answers(&mut self) {
        if let Some(outage) = &mut self.outage {
            outage.has_answer = true;
        }
    }

    /// Takes note that the engine tells something new.
    pub const fn works(&mut self) {
        self.outage = None;
    }

    /// Asks this, and the next engine where the controller ends before it has answered in full: what may have been done by
    /// then is asked for once more.
    ///
    /// # Errors
    /// That of the request; as for [`Reconnecting::recover`].
    pub async fn ask<T, E: Into<anyhow::Error>>(
        &mut self,
        mut request: impl AsyncFnMut(&Client) -> Result<T, E>,
    ) -> anyhow::Result<T> {
        for _ in 1..MOST_TRIES {
            let began = Instant::now();
            let awaited = self.awaited();
            let answer = tokio::select! {
                biased;
                answer = request(&self.client) => answer,
                () = awaited => {
                    self.hand_back().await?;
                    continue;
                }
            };
            match answer {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    // It may be many requests and a long wait: what went well for as long is no part of an outage.
                    if began.elapsed() >= STEADY {
                        self.works();
                    }
                    self.replace(error.into()).await?;
                }
            }
        }
        request(&self.client).await.map_err(Into::into)
    }

    /// Waits until a controller waits for this process, where that does the work itself.
    fn awaited(&self) -> impl Future<Output = ()> + use<'a> {
        let works = self.mode == Mode::OneShot && !self.client.has_controller();
        let options = self.options;
        async move {
            while !works || !is_awaited(options) {
                match works {
                    true => tokio::time::sleep(CONTROLLER_POLL).await,
                    false => std::future::pending().await,
                }
            }
        }
    }

    /// Leaves the work to the controller that waits for it, and goes on as its client. Where that goes away meanwhile, this
    /// process does the work again.
    ///
    /// # Errors
    /// No engine can be opened in this process.
    async fn hand_back(&mut self) -> anyhow::Result<()> {
        note("a controller starts, which carries on with it");
        // One that looks holds nobody up, and the other one lets go of the state directory with its end.
        let looks = open(self.options, &Mode::Observe, Duration::ZERO).await?;
        self.switch(looks).await;
        let end = Instant::now() + LONGEST_OUTAGE;
        while is_awaited(self.options) && Instant::now() < end {
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        let client = open(self.options, &self.mode, self.patience).await?;
        self.switch(client).await;
        Ok(())
    }

    /// Goes on with another engine if the error is that the controller went away, and says so where that has none.
    ///
    /// # Errors
    /// That error, where it is another one, or has come again and again for a while; no engine can be opened in this process.
    pub async fn recover(&mut self, error: ApiError) -> anyhow::Result<()> {
        self.replace(error.into()).await?;
        if !self.client.has_controller() {
            note("warning: the controller ended; going on without one until it is back");
        }
        Ok(())
    }

    async fn replace(&mut self, error: anyhow::Error) -> anyhow::Result<()> {
        let ended = error.downcast_ref::<ApiError>().is_some_and(|error| error.kind == Kind::Ended);
        let outage = Outage::after(self.outage, Instant::now());
        if !ended || !self.client.has_controller() || outage.is_lasting() {
            return Err(error);
        }
        self.outage = Some(outage);
        tokio::time::sleep(if self.mode == Mode::OneShot { TAKE_OVER_PAUSE } else { RETRY_PAUSE }).await;
        self.client = open(self.options, &self.mode, self.patience).await?;
        if !self.client.has_controller() {
            self.works();
            if self.mode == Mode::OneShot {
                note("warning: the controller ended; this command does the work itself");
            }
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

    /// Looks anew at what there is, by whatever engine there is now.
    ///
    /// # Errors
    /// As for [`observe`].
    pub async fn look_again(&mut self) -> anyhow::Result<()> {
        let client = open(self.options, &self.mode, self.patience).await?;
        self.switch(client).await;
        Ok(())
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
    /// As for [`Reconnecting::recover`].
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

/// Whether a controller waits for the process that works on the state directory.
fn is_awaited(options: &Options) -> bool {
    StateDir::open(&options.state_dir).is_ok_and(|dir| dir.is_awaited())
}

/// The first controller that runs.
async fn controller(options: &Options) -> anyhow::Result<Client> {
    loop {
        match running(options).await? {
            Some(client) => return Ok(client),
            None => tokio::time::sleep(CONTROLLER_POLL).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Failures, each so many seconds after the one before, where an answer began in between or not: how many until it
    /// is given up.
    fn failures(gap: Duration, has_answer: bool) -> Option<usize> {
        let (mut now, mut outage) = (Instant::now(), None);
        (1..=1_000).find(|_| {
            let next = Outage::after(outage, now);
            outage = Some(Outage { has_answer, ..next });
            now += gap;
            next.is_lasting()
        })
    }

    /// A socket that takes every connection, in a state directory of its own.
    fn controller(dir: &std::path::Path) -> (Options, tokio::net::UnixListener) {
        let state_dir = dir.join("state");
        StateDir::open(&state_dir).unwrap();
        let options = Options { state_dir, runtime: None, program: "keel".into() };
        let listener = tokio::net::UnixListener::bind(options.socket().unwrap().unwrap()).unwrap();
        (options, listener)
    }

    /// Asks for what breaks off so many times, after so long each time.
    async fn breaks_off(times: usize, after: Duration) -> Result<usize, String> {
        let dir = tempfile::tempdir().unwrap();
        let (options, _listener) = controller(dir.path());
        let mut engine = Reconnecting::open(&options, Mode::Observe, Duration::ZERO).await.unwrap();
        let mut tries = 0;
        let request = async |_: &Client| {
            tries += 1;
            tokio::time::sleep(after).await;
            if tries <= times { Err(ApiError::ended("gone")) } else { Ok(tries) }
        };
        engine.ask(request).await.map_err(|error| error.to_string())
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_ends_every_controller_is_not_made_for_ever() {
        let tries = MOST_TRIES;
        assert!(breaks_off(tries, LONGEST_OUTAGE).await.is_err());
        assert_eq!(breaks_off(tries - 1, LONGEST_OUTAGE).await, Ok(tries));
    }

    #[tokio::test(start_paused = true)]
    async fn restarts_during_one_long_request_do_not_add_up() {
        assert_eq!(breaks_off(5, LONGEST_OUTAGE).await, Ok(6));
        assert_eq!(breaks_off(5, STEADY).await, Ok(6));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_soon_breaks_off_again_and_again_is_given_up() {
        assert_eq!(breaks_off(1_000, Duration::from_secs(1)).await, Err("gone".to_owned()));
    }

    #[test]
    fn failures_without_an_answer_are_borne_for_a_bounded_time_however_long_each_takes() {
        assert_eq!(failures(RETRY_PAUSE, false), Some(151));
        assert_eq!(failures(Duration::from_secs(75), false), Some(2));
    }

    #[test]
    fn answers_that_break_off_at_once_are_borne_for_a_bounded_time() {
        assert_eq!(failures(RETRY_PAUSE, true), Some(151));
    }

    #[test]
    fn restarts_under_a_quiet_answer_do_not_add_up() {
        assert_eq!(failures(STEADY, true), None);
        assert_eq!(failures(Duration::from_secs(86_400), true), None);
    }
}
