//! `keel trigger`: have a job or cron service run now.

use std::time::Duration;

use chrono::Utc;
use tokio::time::Instant;

use super::connect::synced_status;
use super::converge::{Failed, Output, TIMEOUT, not_done, report};
use super::exit::{Exit, Outcome, Usage};
use super::output::{note, print};
use super::reconnecting::{Unattended, change};
use super::text::duration;
use super::tries::unless_interrupted;
use crate::api::{ApiError, Client};
use crate::config::Options;
use crate::controller::TriggerRequest;
use crate::state::{RunEnd, RunId, ServiceName, Target};
use crate::status::{JobView, Status};

/// Have a job or cron service run now, and wait for the end of the run
///
/// A cron service runs besides what its schedule says, a job runs once more. What `job.overlap` says of a run that is due
/// while one goes on holds for this one as well; with `forbid`, which is the default, it is refused.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  keel trigger demo/backup\n  keel trigger demo/migrate --timeout 30m\n  \
keel trigger demo/backup --no-wait\n\n\
Exit codes: 0 the run succeeded, 1 it failed (why, and the last lines of its output, is printed) or can't be made, \
124 --timeout ran out first, 130 interrupted. In the last two cases the run goes on where a controller runs.")]
pub struct Args {
    /// DEPLOYMENT/SERVICE
    target: Target,
    /// Return as soon as it is certain that it will run
    #[arg(long)]
    no_wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = TIMEOUT, value_parser = duration)]
    timeout: Duration,
}

/// How far the run is.
enum Step {
    Goes,
    Completed,
    Failed(Failed),
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let service = self.service()?;
        if options.is_untouched() {
            anyhow::bail!("nothing declares {service}");
        }
        let deadline = Instant::now() + self.timeout;
        // Asked for again under the same name where the controller ends before it has answered.
        let request = TriggerRequest { service: service.clone(), run: RunId::after(None, Utc::now()) };
        let mut engine = change(options, Unattended::CarriedOut, self.timeout).await?;
        if self.no_wait && !engine.client().has_controller() {
            engine.close().await;
            anyhow::bail!("no controller runs that would make the run; leave --no-wait out, or start `keel run`");
        }
        let mut is_told = false;
        let work = engine.ask(async |client: &Client| -> Outcome {
            let run = client.trigger(&request).await?;
            if !std::mem::replace(&mut is_told, true) {
                print(&format!("job/{service} triggered (run {run})\n"))?;
            }
            match self.no_wait {
                true => Ok(Exit::Success),
                false => self.wait(client, &service, run, deadline).await,
            }
        });
        let outcome = unless_interrupted(work).await;
        engine.close().await;
        outcome.unwrap_or_else(|| {
            note("interrupted; see `keel get jobs` for what becomes of the run");
            Ok(Exit::Interrupted)
        })
    }

    fn service(&self) -> Result<ServiceName, Usage> {
        match &self.target {
            Target { deployment, service: Some(service), slot: None } => {
                Ok(ServiceName { deployment: deployment.clone(), service: service.clone() })
            }
            other => Err(Usage(format!("{other} names no job; write DEPLOYMENT/SERVICE"))),
        }
    }

    async fn wait(&self, client: &Client, service: &ServiceName, run: RunId, deadline: Instant) -> Outcome {
        let mut status = synced_status(client).await?;
        loop {
            match step(&status, service, run) {
                Step::Completed => {
                    print(&format!("job/{service} completed\n"))?;
                    return Ok(Exit::Success);
                }
                Step::Failed(failed) => {
                    report(client, "failed", &[failed]).await;
                    return Ok(Exit::Failure);
                }
                Step::Goes => {}
            }
            let next = tokio::time::timeout_at(deadline, client.status_after(status.generation)).await;
            let Ok(next) = next else {
                let after = not_done(self.timeout);
                note(format_args!("error: job/{service} {after}: {}", told(&status, service)));
                return Ok(Exit::TimedOut);
            };
            status = next.map_err(|error: ApiError| error)?;
        }
    }
}

fn job<'a>(status: &'a Status, service: &ServiceName) -> Option<&'a JobView> {
    let is_it =
        |view: &&crate::status::ServiceView| view.deployment == service.deployment && view.service == service.service;
    status.services.iter().find(is_it).and_then(|view| view.job.as_ref())
}

/// How far the run is. One that is tried again only because nothing says otherwise has failed as far as somebody waits.
fn step(status: &Status, service: &ServiceName, run: RunId) -> Step {
    let Some(job) = job(status, service) else { return Step::Goes };
    let failed = |why: String, is_retried| {
        let last = status
            .instances
            .iter()
            .filter(|one| one.deployment == service.deployment && one.service == service.service);
        let crashed = last.filter(|one| one.exit.as_ref().is_some_and(|exit| exit.code != Some(0)));
        let output = crashed.max_by_key(|one| one.created_at);
        Step::Failed(Failed {
            deployment: service.deployment.clone(),
            why: format!("{}: {why}", service.service),
            is_retried,
            output: output.map(Output::of),
        })
    };
    if let Some(over) = job.finished.iter().find(|one| one.run == run) {
        return match over.outcome == RunEnd::Completed.name() {
            true => Step::Completed,
            false => failed(over.message.clone(), false),
        };
    }
    match job.active.iter().find(|one| one.run == run) {
        Some(active) if active.failed > 0 && job.retries.is_none() => failed(told(status, service), true),
        _ => Step::Goes,
    }
}

/// What the service has to say.
fn told(status: &Status, service: &ServiceName) -> String {
    let is_it =
        |view: &&crate::status::ServiceView| view.deployment == service.deployment && view.service == service.service;
    let message = status.services.iter().find(is_it).map(|view| view.message.clone());
    message.filter(|message| !message.is_empty()).unwrap_or_else(|| "its run goes on".to_owned())
}
