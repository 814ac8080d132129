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
use crate::status::{FailedInstance, ServiceView, Status};

/// Have a job or cron service run now, and wait for the end of the run
///
/// A cron service runs besides what its schedule says, a job runs once more. What `job.overlap` says of a run that is due
/// while one goes on holds for this one as well; with `forbid`, which is the default, it is refused.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  keel trigger demo/backup\n  keel trigger demo/migrate --timeout 30m\n  \
keel trigger demo/backup --no-wait\n\n\
Exit codes: 0 the run succeeded, 1 it failed (why, and the last lines of its output, is printed), can't be made, or its job \
is no longer declared, 124 --timeout ran out first, 130 interrupted. In the last two cases the run goes on where a controller runs.")]
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
        // What was declared a moment ago may not be shown yet.
        let mut was_seen = false;
        loop {
            was_seen |= view(&status, service).is_some_and(|view| view.job.is_some());
            match step(&status, service, run, was_seen) {
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

/// The service, where anything declares it.
fn view<'a>(status: &'a Status, service: &ServiceName) -> Option<&'a ServiceView> {
    status.services.iter().find(|view| view.deployment == service.deployment && view.service == service.service)
}

/// How far the run is. One that is tried again only because nothing says otherwise has failed as far as somebody waits, and so
/// has one of a job that was seen and is declared no more.
fn step(status: &Status, service: &ServiceName, run: RunId, was_seen: bool) -> Step {
    let failed = |why: &str, is_retried, instance: Option<&FailedInstance>| {
        Step::Failed(Failed {
            deployment: service.deployment.clone(),
            why: format!("{}: {why}", service.service),
            is_retried,
            output: instance.map(|one| Output {
                instance: one.name.clone(),
                runtime_id: Some(one.runtime_id.clone()),
                previous: false,
            }),
        })
    };
    let job = match view(status, service).map(|view| &view.job) {
        Some(Some(job)) => job,
        _ if !was_seen => return Step::Goes,
        Some(None) => return failed("no longer declared as a job", false, None),
        None => return failed("no longer declared", false, None),
    };
    if let Some(over) = job.finished.iter().find(|one| one.run == run) {
        return match over.outcome == RunEnd::Completed.name() {
            true => Step::Completed,
            false => failed(&over.message, false, over.failed_last.as_ref()),
        };
    }
    match job.active.iter().find(|one| one.run == run) {
        Some(active) if active.failed > 0 && job.retries.is_none() => {
            failed(&told(status, service), true, active.failed_last.as_ref())
        }
        _ => Step::Goes,
    }
}

/// What the service has to say.
fn told(status: &Status, service: &ServiceName) -> String {
    let message = view(status, service).map(|view| view.message.clone());
    message.filter(|message| !message.is_empty()).unwrap_or_else(|| "its run goes on".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service() -> ServiceName {
        ServiceName { deployment: "demo".to_owned(), service: "work".to_owned() }
    }

    /// A status in which the service is this; nothing declares it where that is null.
    fn status(job: Value) -> Status {
        let service = json!({
            "deployment": "demo", "service": "work", "source": "a.yaml:1", "runtime": "sandbox", "image": "host",
            "state": "running", "desired": 1, "running": 1, "ready": 1, "updated": 1, "revision": "v1-aaaaaaaaaaaaaaaa",
            "equivalent": null, "undone": null, "rolling": false, "awaits": [], "failure": null, "message": "work fails",
            "job": job, "pool": null, "conditions": [],
        });
        let services = if service["job"].is_null() { json!([]) } else { json!([service]) };
        Status { services: serde_json::from_value(services).unwrap(), ..Status::default() }
    }

    fn finished(run: RunId, outcome: &str, instance: &str) -> Value {
        json!({
            "run": run, "scheduled_at": null, "revision": "v1-aaaaaaaaaaaaaaaa", "started_at": "2026-01-01T00:00:00Z",
            "finished_at": "2026-01-01T00:00:01Z", "succeeded": 0, "failed": 1, "outcome": outcome, "message": "exited 1",
            "failed_last": {"name": "demo/work/0", "runtime_id": instance},
        })
    }

    fn job(finished: &[Value]) -> Value {
        json!({
            "kind": "job", "completions": 1, "retries": 0, "schedule": null, "next_run": null, "active": [],
            "finished": finished,
        })
    }

    /// Why it failed, and whose output is printed.
    fn failure(step: Step) -> Option<(String, Option<String>)> {
        match step {
            Step::Failed(failed) => Some((failed.why, failed.output.and_then(|output| output.runtime_id))),
            Step::Goes | Step::Completed => None,
        }
    }

    #[test]
    fn a_run_that_failed_is_told_with_the_output_of_its_own_instance() {
        let first = RunId::after(None, Utc::now());
        let second = RunId::after(Some(first), Utc::now());
        let both = status(job(&[finished(second, "failed", "second"), finished(first, "failed", "first")]));
        for (run, instance) in [(first, "first"), (second, "second")] {
            let expected = ("work: exited 1".to_owned(), Some(instance.to_owned()));
            assert_eq!(failure(step(&both, &service(), run, true)), Some(expected));
        }
        let completed = status(job(&[finished(first, "completed", "first")]));
        assert!(matches!(step(&completed, &service(), first, true), Step::Completed));
    }

    #[test]
    fn a_service_that_was_seen_and_is_declared_no_more_ends_the_wait() {
        let run = RunId::after(None, Utc::now());
        let gone = status(Value::Null);
        assert!(matches!(step(&gone, &service(), run, false), Step::Goes), "it may be shown in a moment");
        let expected = ("work: no longer declared".to_owned(), None);
        assert_eq!(failure(step(&gone, &service(), run, true)), Some(expected));
        assert!(matches!(step(&status(job(&[])), &service(), run, true), Step::Goes));
    }
}
