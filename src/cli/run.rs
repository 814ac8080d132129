//! `keel run`: the controller.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use chrono::Utc;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use super::connect::engine_options;
use super::converge::{Baseline, Failed, TIMEOUT, Verdict, missing, not_done, report, settling, verdict};
use super::crashes::Crashes;
use super::exit::{Exit, Outcome};
use super::goal::{Goal, Goals};
use super::narrate::{Narrator, Told};
use super::output::note;
use super::text::{count, duration};
use crate::api::{ApiError, Client, Server, router};
use crate::config::Options;
use crate::controller::{Engine, EngineError, EngineOptions, Mode};
use crate::spec::HumanDuration;
use crate::status::{DeploymentState, Status};
use crate::store::StateDir;
use crate::telemetry::LogFormat;

/// Longest time for the engine to end; what it was doing is done again by the next one.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);

/// Longest wait for a command that works on the state directory: one that merely waits hands back within a second, and most of
/// the others are done by then. A service manager that gives a start the usual 90 seconds is told why before they are over.
const COMMAND_PATIENCE: Duration = Duration::from_secs(60);

/// Between two tries meanwhile.
const COMMAND_POLL: Duration = Duration::from_millis(100);

/// Watch a directory and keep running what its files declare
///
/// Every .yaml and .yml file below the directory counts; a change of it counts within a second, or when the file that is
/// still being written is closed (or was not written to for 30 seconds). A broken file changes nothing until it is right
/// again. What no file declares any more is removed when it stayed away for two seconds. SIGTERM and control-C end the
/// controller and leave what runs running; the next `keel run` carries on with it. SIGHUP reads the directory again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  keel run\n  keel run /etc/keel/specs --runtime docker\n  \
keel run specs --once && echo converged\n\n\
While it runs, `keel get`, `apply`, `logs`, `exec` and the others work through it, from any terminal of the same \
user (and with the same --state-dir). Logs go to standard error; KEEL_LOG=debug shows more.\n\n\
Exit codes: 0 ended by a signal, or converged with --once; 1 failed; 124 --timeout ran out first (what is missing and why \
is printed).")]
pub struct Args {
    /// Directory with specs
    #[arg(value_name = "DIR", default_value = "specs")]
    directory: PathBuf,
    /// Converge what the directory and applied files declare, then exit: with 0, or with 1 and the reason when it can't
    #[arg(long)]
    once: bool,
    /// How long --once waits
    #[arg(long, value_name = "DURATION", default_value = TIMEOUT, value_parser = duration, requires = "once")]
    timeout: Duration,
    /// Remove what the directory does not declare any more even when most of it, or the directory, is gone. What another
    /// directory declared stays all the same
    #[arg(long)]
    allow_empty: bool,
    /// Whether sandboxes may have devices and graphics processors of this machine; remembered in the state directory, also
    /// for what is applied without a controller [default: as before, at first allow]
    #[arg(long, value_enum, env = "KEEL_DEVICES", value_name = "WHETHER", hide_env_values = true)]
    devices: Option<Devices>,
    /// How the log is written
    #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "KEEL_LOG_FORMAT")]
    pub log_format: LogFormat,
}

/// Whether sandboxes may have devices of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Devices {
    /// Those that their specs declare
    Allow,
    /// None; what asks for one is refused
    Deny,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let directory =
            std::path::absolute(&self.directory).with_context(|| format!("can't find {}", self.directory.display()))?;
        match std::fs::metadata(&directory) {
            Ok(found) if !found.is_dir() => bail!(
                "{0} is a file, and keel run watches a directory; name the one that it is in, or start what it declares \
                 with: keel apply -f {1}",
                directory.display(),
                self.directory.display()
            ),
            // Whether it may be missing, the source knows: one that was watched before may come back.
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(anyhow::Error::new(error).context(format!("{} can't be read", directory.display())));
            }
            _ => {}
        }
        let mut signals = Signals::new()?;
        let mode = Mode::Controller { directory, allow_empty: self.allow_empty, once: self.once };
        let devices = self.devices.map(|devices| devices == Devices::Allow);
        let engine = tokio::select! {
            opened = self.opened(EngineOptions { devices, ..engine_options(options, mode) }) => opened?,
            _ = signals.end() => return Ok(Exit::Success),
        };
        let outcome = self.serve(options, &engine, &mut signals).await;
        notify(&[NotifyState::Stopping]);
        if tokio::time::timeout(SHUTDOWN_DEADLINE, engine.shutdown()).await.is_err() {
            tracing::warn!("the engine did not end in time");
        }
        outcome
    }

    /// The engine. A command that works on the state directory is asked to hand back what it has begun, and waited for; a
    /// single pass is such a command itself.
    async fn opened(&self, options: EngineOptions) -> anyhow::Result<Engine> {
        let since = Instant::now();
        let mut waiting = None;
        loop {
            let holder = match Engine::open(options.clone()).await {
                Err(EngineError::Busy(holder)) if !self.once && since.elapsed() < COMMAND_PATIENCE => holder,
                opened => return Ok(opened.map_err(ApiError::from)?),
            };
            if waiting.is_none() {
                tracing::info!("waiting for up to {}: {holder}", HumanDuration(COMMAND_PATIENCE));
                waiting = Some(StateDir::open(&options.state_dir)?.wait_for()?);
            }
            tokio::time::sleep(COMMAND_POLL).await;
        }
    }

    async fn serve(&self, options: &Options, engine: &Engine, signals: &mut Signals) -> Outcome {
        let state_dir = StateDir::open(&options.state_dir)?;
        let server = Server::bind(&state_dir, router(engine.clone()), state_dir.token()?)?;
        let (directory, state) = (self.directory.display(), options.state_dir.display());
        match self.once {
            true => tracing::info!("converging {directory} once, then exiting; state in {state}"),
            false => tracing::info!(
                "watching {directory}; state in {state}; control-C ends the controller and leaves what runs running"
            ),
        }
        let outcome = self.work(engine, signals).await;
        server.close().await;
        outcome
    }

    async fn work(&self, engine: &Engine, signals: &mut Signals) -> Outcome {
        let mut watch = engine.watch();
        let mut narrator = Narrator::default();
        let mut supervisor = Supervisor::default();
        let baseline = Baseline::of(&engine.status());
        let mut crashes = Crashes::default();
        let deadline = Instant::now() + self.timeout;
        loop {
            let mut settled = Duration::ZERO;
            let status = watch.borrow_and_update().clone();
            if status.synced {
                narrator.tell(&status).into_iter().for_each(log);
                supervisor.tell(&status);
                crashes.see(&status);
                if self.once
                    && let Some(end) = end_of_once(&status, &baseline)
                {
                    settled = settling(&status, &goals_of_once(&status), Utc::now());
                    if settled.is_zero() || !matches!(end, Once::Converged) {
                        return Ok(conclude_once(engine, end).await);
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(settled), if !settled.is_zero() => {}
                () = engine.blinded() => bail!(
                    "the specs can't be read any more, by a defect of keel that the log tells; please report it. What runs goes \
                     on, and `keel run` carries on with it"
                ),
                changed = watch.changed() => changed.context("the engine ended by itself")?,
                signal = signals.next() => match signal {
                    Asked::End(name) => {
                        tracing::info!("{name}: ending; what runs goes on");
                        return Ok(if self.once { Exit::Interrupted } else { Exit::Success });
                    }
                    Asked::Rescan => rescan(engine.clone()),
                },
                () = tokio::time::sleep_until(deadline), if self.once => {
                    let status = watch.borrow().clone();
                    let missing = missing(&status, &goals_of_once(&status), &baseline, &crashes);
                    return Ok(conclude_once(engine, Once::TimedOut(missing, self.timeout)).await);
                }
            }
        }
    }
}

fn log(told: Told) {
    match told {
        Told::News(text) => tracing::info!("{text}"),
        Told::Warning(text) => tracing::warn!("{text}"),
    }
}

/// Reads the directory again beside everything else.
fn rescan(engine: Engine) {
    tracing::info!("SIGHUP: reading the directory again");
    tokio::spawn(async move {
        if let Err(error) = engine.rescan().await {
            tracing::warn!("reading the directory again failed: {error}");
        }
    });
}

/// How a single pass ended.
#[derive(Debug, PartialEq, Eq)]
enum Once {
    Converged,
    Failed(Vec<Failed>),
    /// What is declared can't be known in full.
    Held(Vec<String>),
    /// Time ran out first; what was missing, and how long it was waited for.
    TimedOut(Vec<Failed>, Duration),
}

/// What a single pass waits for: all that is declared in what it watches, and what goes.
fn goals_of_once(status: &Status) -> Goals {
    let goal = |state| if state == DeploymentState::Removing { Goal::Gone } else { Goal::Running };
    let unwatched: BTreeSet<&str> = status.unwatched.iter().map(|one| one.deployment.as_str()).collect();
    let judged = status.deployments.iter().filter(|view| !unwatched.contains(view.deployment.as_str()));
    judged.map(|view| (view.deployment.clone(), goal(view.state))).collect()
}

/// The end of a single pass, when it is reached.
fn end_of_once(status: &Status, baseline: &Baseline) -> Option<Once> {
    let held = || {
        let files = status.problems.iter().map(super::problems::line);
        let held = status.hold.iter().map(|hold| &hold.reason).chain(status.reset.iter().map(|reset| &reset.reason));
        files.chain(held.cloned()).collect::<Vec<_>>()
    };
    match verdict(status, &goals_of_once(status), baseline) {
        Verdict::Pending => None,
        Verdict::Failed(failures) => Some(Once::Failed(failures)),
        Verdict::Reached => Some(if held().is_empty() { Once::Converged } else { Once::Held(held()) }),
    }
}

async fn conclude_once(engine: &Engine, end: Once) -> Exit {
    match end {
        Once::Converged => Exit::Success,
        Once::Failed(failures) => {
            report(&Client::in_process(engine.clone()), "failed", &failures).await;
            Exit::Failure
        }
        Once::TimedOut(missing, timeout) => {
            if missing.is_empty() {
                note(format_args!("error: {}: what is declared is not known yet", not_done(timeout)));
            }
            report(&Client::in_process(engine.clone()), &not_done(timeout), &missing).await;
            Exit::TimedOut
        }
        Once::Held(reasons) => {
            for reason in reasons {
                note(format_args!("error: {reason}"));
            }
            Exit::Failure
        }
    }
}

/// What a signal asks for.
enum Asked {
    End(&'static str),
    Rescan,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("listening for signals failed");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::End("SIGTERM"),
            _ = self.interrupt.recv() => Asked::End("SIGINT"),
            _ = self.hang_up.recv() => Asked::Rescan,
        }
    }

    /// The next signal that asks for the end.
    async fn end(&mut self) -> &'static str {
        loop {
            if let Asked::End(name) = self.next().await {
                return name;
            }
        }
    }
}

/// Tells the service manager, where there is one (sd_notify(3)).
#[derive(Debug, Default)]
struct Supervisor {
    ready: bool,
    said: String,
}

impl Supervisor {
    fn tell(&mut self, status: &Status) {
        let text = summary(status);
        if text != self.said {
            notify(&[NotifyState::Status(&text)]);
            self.said = text;
        }
        if !self.ready {
            notify(&[NotifyState::Ready]);
            self.ready = true;
        }
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("telling the service manager failed: {error}");
    }
}

/// One line for `systemctl status`.
fn summary(status: &Status) -> String {
    let running = status.instances.iter().filter(|instance| instance.phase == "running").count();
    let well = status
        .deployments
        .iter()
        .filter(|view| matches!(view.state, DeploymentState::Running | DeploymentState::Complete))
        .count();
    let mut text =
        format!("{well} of {} running, {}", count(status.deployments.len(), "deployment"), count(running, "instance"));
    if !status.problems.is_empty() {
        text.push_str(&format!(", {} in files", count(status.problems.len(), "problem")));
    }
    if status.hold.is_some() {
        text.push_str(", pruning is held");
    }
    if let Some(reset) = &status.reset {
        text.push_str(&format!(", {} kept after the state database was lost", count(reset.kept.len(), "deployment")));
    }
    text
}
