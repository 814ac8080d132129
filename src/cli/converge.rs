//! Whether what was asked for is reached, and the wait until it is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::connect::synced_status;
use super::crashes::Crashes;
use super::goal::{Goal, Goals};
use super::output::{note, stderr_is_live};
use super::progress::Progress;
use super::text::{count, harmless};
use crate::api::{ApiError, Client, LogItem, LogQuery};
use crate::spec::HumanDuration;
use crate::state::{Condition, ConditionStatus, ExitReason, FailureReason, StopCause};
use crate::status::{DeploymentState, ExitView, IMAGE_ASKED, InstanceView, JobKind, JobView, ServiceView, Status};
use futures::StreamExt;

/// Longest wait when none is named: the progress deadline of a rollout (Kubernetes' `progressDeadlineSeconds`).
pub const TIMEOUT: &str = "10m";

/// Crashes of one instance, while somebody waits, that end the wait: the first restart comes at once and the second
/// after ten seconds, so that a service which only needed another try has had two.
const CRASHES: u32 = 3;

/// Last lines of a crashing instance that are shown (Uncloud shows 10 as well).
const LAST_LINES: u64 = 10;

/// Longest wait for those lines; they are a help, not the result.
const LAST_LINES_DEADLINE: Duration = Duration::from_secs(5);

/// How long new instances have to run before somebody is told that all is well: a program that can't work mostly says
/// so at once (supervisord `startsecs`: 1 s). `rollout.min_ready` asks for more.
const SETTLED: Duration = Duration::from_secs(1);

/// Restarts of every instance before anything was asked for, by name and revision: those of another template begin at
/// zero.
#[derive(Debug, Clone, Default)]
pub struct Baseline {
    restarts: BTreeMap<String, BTreeMap<String, u32>>,
    /// Instances that had ended, by the runtime's own id.
    ended: BTreeSet<String>,
    /// Deployments and services that had instances.
    services: BTreeSet<(String, String)>,
}

impl Baseline {
    /// As things are.
    pub fn of(status: &Status) -> Self {
        let mut restarts = BTreeMap::new();
        for instance in &status.instances {
            let of_name: &mut BTreeMap<String, u32> = restarts.entry(instance.name.clone()).or_default();
            let most = of_name.entry(instance.revision.clone()).or_default();
            *most = (*most).max(instance.restarts);
        }
        let ended = status.instances.iter().filter(|instance| instance.phase == "exited");
        let services = status.instances.iter().map(|one| (one.deployment.clone(), one.service.clone()));
        Self { restarts, ended: ended.map(|one| one.runtime_id.clone()).collect(), services: services.collect() }
    }

    /// Whether the service had instances.
    fn had(&self, service: &ServiceView) -> bool {
        self.services.contains(&(service.deployment.clone(), service.service.clone()))
    }

    /// Crashes since then that ended in the one that it shows now.
    fn crashes(&self, status: &Status, instance: &InstanceView) -> u32 {
        let ended_well = |exit: &ExitView| match exit.stopped {
            None => exit.code == Some(0) && !exit.oom_killed,
            Some(cause) => cause != StopCause::Unhealthy,
        };
        let failed = instance.exit.as_ref().is_some_and(|exit| !ended_well(exit));
        if instance.phase != "exited" || !failed {
            return 0;
        }
        1 + self.restarted(status, instance)
    }

    /// Restarts since then.
    fn restarted(&self, status: &Status, instance: &InstanceView) -> u32 {
        let is_of =
            |view: &&ServiceView| (&view.deployment, &view.service) == (&instance.deployment, &instance.service);
        let service = status.services.iter().find(is_of);
        let is_same_template = |revision: &str| match service {
            Some(service) => service.are_made_alike(revision, &instance.revision),
            None => revision == instance.revision,
        };
        let before = self.restarts.get(&instance.name).into_iter().flatten();
        let before = before.filter(|(revision, _)| is_same_template(revision)).map(|(_, restarts)| *restarts).max();
        instance.restarts.saturating_sub(before.unwrap_or(0))
    }
}

/// How far things are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// All goals are reached.
    Reached,
    /// Some are not, and may yet be.
    Pending,
    /// Some never will be without a change.
    Failed(Vec<Failed>),
}

/// A deployment that does not come to what was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// Which.
    pub deployment: String,
    /// Why.
    pub why: String,
    /// Whether a controller tries it again.
    pub is_retried: bool,
    /// The output that may tell more.
    pub output: Option<Output>,
}

/// Output of a run of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The instance.
    pub instance: String,
    /// The runtime's own id of it, where it is known which of that name is meant.
    pub runtime_id: Option<String>,
    /// Whether it is that of the run before the present one.
    pub previous: bool,
}

impl Output {
    /// That of the present run.
    pub fn of(instance: &InstanceView) -> Self {
        Self { instance: instance.name.clone(), runtime_id: Some(instance.runtime_id.clone()), previous: false }
    }
}

/// How far things are. Failures count only when nothing is pending elsewhere: one bad deployment is no reason to
/// stop watching the others.
pub fn verdict(status: &Status, goals: &Goals, baseline: &Baseline) -> Verdict {
    let mut failures = Vec::new();
    let mut pending = false;
    for (name, goal) in goals {
        match one(status, name, *goal, baseline) {
            Verdict::Reached => {}
            Verdict::Pending => pending = true,
            Verdict::Failed(mut more) => failures.append(&mut more),
        }
    }
    match (pending, failures.is_empty()) {
        (true, _) => Verdict::Pending,
        (false, true) => Verdict::Reached,
        (false, false) => Verdict::Failed(failures),
    }
}

fn one(status: &Status, name: &str, goal: Goal, baseline: &Baseline) -> Verdict {
    use DeploymentState as State;
    let view = status.deployments.iter().find(|view| view.deployment == name);
    match (goal, view.map(|view| (view.state, view))) {
        (Goal::Gone, None | Some((State::Kept, _))) => Verdict::Reached,
        // What was asked for is not what runs, and will not be before somebody mends a file.
        (Goal::Running, Some((State::Running | State::Complete | State::Kept, view))) => {
            match (view.stale(), view.state) {
                (None, State::Running | State::Complete) if is_on_trial(status, name, baseline) => Verdict::Pending,
                (None, State::Running | State::Complete) => Verdict::Reached,
                (why, _) => Verdict::Failed(vec![Failed {
                    deployment: name.to_owned(),
                    why: why
                        .map_or_else(|| view.message.clone(), |why| format!("it runs on its last good version: {why}")),
                    is_retried: false,
                    output: None,
                }]),
            }
        }
        // What can come up does, before the rest ends the wait.
        (Goal::Running, Some((State::Failed | State::Paused | State::Undone, _)))
            if is_moving(status, name, baseline) =>
        {
            Verdict::Pending
        }
        (_, Some((State::Failed, view)))
        | (Goal::Running, Some((State::Suspended | State::Paused | State::Undone, view))) => {
            Verdict::Failed(vec![Failed {
                deployment: name.to_owned(),
                why: why(status, name, &view.message),
                is_retried: false,
                output: worst(status, name, baseline).map(Output::of),
            }])
        }
        (Goal::Running, Some((State::Degraded, _))) if is_cron_alone(status, name, baseline) => Verdict::Reached,
        (Goal::Running, Some((State::Degraded, view))) => match worst(status, name, baseline) {
            // A job that failed before is tried again.
            Some(instance) if job_of(status, instance).is_some() && baseline.ended.contains(&instance.runtime_id) => {
                Verdict::Pending
            }
            Some(instance) if baseline.crashes(status, instance) >= crashes(status, instance) => {
                Verdict::Failed(vec![Failed {
                    deployment: name.to_owned(),
                    why: format!(
                        "{} {}{}",
                        instance.name,
                        match (baseline.crashes(status, instance), ended(instance)) {
                            (1, how) => format!("failed ({how})"),
                            (times, how) => format!("crashed {times} times in a row ({how})"),
                        },
                        match instance_message(status, instance).unwrap_or(&view.message) {
                            "" => String::new(),
                            message => format!(": {message}"),
                        }
                    ),
                    is_retried: true,
                    output: Some(Output::of(instance)),
                }])
            }
            _ if has_failed(status, name) && !is_moving(status, name, baseline) => Verdict::Failed(vec![Failed {
                deployment: name.to_owned(),
                why: why(status, name, &view.message),
                is_retried: true,
                output: worst(status, name, baseline).map(Output::of),
            }]),
            _ => Verdict::Pending,
        },
        _ => Verdict::Pending,
    }
}

/// Crashes of this instance, while somebody waits, that end the wait. A job whose number of retries is written has them;
/// one that is tried again only because nothing says otherwise has failed as far as somebody waits for it.
fn crashes(status: &Status, instance: &InstanceView) -> u32 {
    match job_of(status, instance).map(|job| (job.kind, job.retries)) {
        None => CRASHES,
        Some((JobKind::Job, None)) => 1,
        Some((JobKind::Job, Some(_)) | (JobKind::Cron, _)) => u32::MAX,
    }
}

/// What the service of an instance is as a job.
fn job_of<'a>(status: &'a Status, instance: &InstanceView) -> Option<&'a JobView> {
    let is_its = |view: &&ServiceView| (&view.deployment, &view.service) == (&instance.deployment, &instance.service);
    status.services.iter().find(is_its).and_then(|view| view.job.as_ref())
}

/// Whether nothing but runs of cron services fails in the deployment: what is declared is that they are tried.
fn is_cron_alone(status: &Status, name: &str, baseline: &Baseline) -> bool {
    let mine = || status.services.iter().filter(|service| service.deployment == name);
    let failing = |service: &&ServiceView| service.conditions.iter().any(|one| one.kind == "ReplicaFailure");
    let cron = |service: &ServiceView| service.job.as_ref().is_some_and(|job| job.kind == JobKind::Cron);
    mine().any(|service| failing(&service)) && mine().filter(failing).all(cron) && !is_moving(status, name, baseline)
}

/// Whether a service of the deployment is still on its way. One that another waited for in vain does not count: it may be
/// on its way for ever.
fn is_moving(status: &Status, name: &str, baseline: &Baseline) -> bool {
    let of_deployment = || status.services.iter().filter(|service| service.deployment == name);
    let given_up: BTreeSet<&str> = of_deployment()
        .flat_map(|service| service.awaits.iter().filter(|one| one.given_up).map(|one| one.service.as_str()))
        .collect();
    // Whoever carries out a rollback carries it to its end, but for one that waits in vain itself.
    let is_led_back = |service: &ServiceView| {
        service.rolling && has(service, "RolledBack", ConditionStatus::True) && !waits_in_vain(service)
    };
    let is_failing = |service: &ServiceView| service.conditions.iter().any(|one| one.kind == "ReplicaFailure");
    let is_on_its_way = |service: &ServiceView| {
        !given_up.contains(service.service.as_str())
            && is_under_way(service)
            && (!is_failing(service) || is_tried(status, service, baseline) || is_asked_for(service))
    };
    of_deployment().any(|service| is_led_back(service) || is_on_its_way(service))
}

/// Whether what is missing of a service is not made, as what it depends on was not as it has to be in time.
fn waits_in_vain(service: &ServiceView) -> bool {
    let timeout = FailureReason::DependencyTimeout.name();
    service.conditions.iter().any(|one| one.kind == "ReplicaFailure" && one.reason == timeout)
}

fn has(service: &ServiceView, kind: &str, is: ConditionStatus) -> bool {
    service.conditions.iter().any(|condition| condition.kind == kind && condition.status == is)
}

/// Whether a service may yet come to what is declared. One of which all is ready may still have to show that it stays so.
fn is_under_way(service: &ServiceView) -> bool {
    service.conditions.iter().any(|condition| match (condition.kind.as_str(), condition.status) {
        ("Progressing", ConditionStatus::True) => true,
        ("Progressing", _) => service.rolling && condition.reason == "Complete",
        ("Complete", _) => condition.reason == "InProgress",
        _ => false,
    })
}

/// Whether a service of the deployment that took the place of another one is ready, and has yet to stay so for long enough
/// to count: it may crash again, and be rolled back.
fn is_on_trial(status: &Status, name: &str, baseline: &Baseline) -> bool {
    let mut mine = status.services.iter().filter(|service| service.deployment == name && baseline.had(service));
    mine.any(|service| service.rolling && service.ready.min(service.updated) > 0)
}

/// Whether a registry is being asked which image of a service is meant: another one may do better than the one that failed.
fn is_asked_for(service: &ServiceView) -> bool {
    service.conditions.iter().any(|one| one.kind == "Progressing" && one.reason == IMAGE_ASKED)
}

/// Whether a service crashed and is tried again: it is on its way until that was often enough.
fn is_tried(status: &Status, service: &ServiceView, baseline: &Baseline) -> bool {
    let of_service = |one: &&InstanceView| (&one.deployment, &one.service) == (&service.deployment, &service.service);
    let crashed = status.instances.iter().filter(of_service).map(|one| (baseline.crashes(status, one), one));
    let mut crashed = crashed.filter(|(times, _)| *times > 0).peekable();
    crashed.peek().is_some() && crashed.all(|(times, one)| times < crashes(status, one))
}

/// Whether the rollout of a service of the deployment has failed, though it goes on.
fn has_failed(status: &Status, name: &str) -> bool {
    let reasons = [
        FailureReason::ProgressDeadlineExceeded,
        FailureReason::Refused,
        FailureReason::Crashing,
        FailureReason::GaveUp,
        FailureReason::DependencyTimeout,
    ];
    let failed = |condition: &Condition| {
        condition.kind == "Progressing"
            && condition.status == ConditionStatus::False
            && reasons.iter().any(|reason| reason.name() == condition.reason)
    };
    let mine = status.services.iter().filter(|service| service.deployment == name);
    mine.flat_map(|service| &service.conditions).any(failed)
}

/// The message of a deployment, or the first condition of a service that does not hold.
fn why(status: &Status, name: &str, message: &str) -> String {
    if !message.is_empty() {
        return message.to_owned();
    }
    status
        .services
        .iter()
        .filter(|service| service.deployment == name)
        .flat_map(|service| service.conditions.iter().map(move |condition| (service, condition)))
        .find(|(_, condition)| condition.status == ConditionStatus::False)
        .map_or_else(
            || "it says no reason; see `keel get deployments -o yaml`".to_owned(),
            |(service, condition)| format!("{}: {}", service.service, condition.message),
        )
}

/// What an instance has to say, else its service; its deployment may have more to say of another one.
fn instance_message<'a>(status: &'a Status, instance: &'a InstanceView) -> Option<&'a str> {
    if !instance.message.is_empty() {
        return Some(&instance.message);
    }
    let is_its = |view: &&ServiceView| (&view.deployment, &view.service) == (&instance.deployment, &instance.service);
    status.services.iter().find(is_its).map(|view| view.message.as_str()).filter(|message| !message.is_empty())
}

/// The instance of a deployment that crashed most.
fn worst<'a>(status: &'a Status, name: &str, baseline: &Baseline) -> Option<&'a InstanceView> {
    let crashed = |instance: &&InstanceView| instance.deployment == name && baseline.crashes(status, instance) > 0;
    status.instances.iter().filter(crashed).max_by_key(|instance| baseline.crashes(status, instance))
}

/// The instance of a deployment that was started again most.
fn restarted<'a>(status: &'a Status, name: &str, baseline: &Baseline) -> Option<&'a InstanceView> {
    let again = |instance: &&InstanceView| instance.deployment == name && baseline.restarted(status, instance) > 0;
    status.instances.iter().filter(again).max_by_key(|instance| baseline.restarted(status, instance))
}

/// How an instance ended, in a phrase.
pub fn ended(instance: &InstanceView) -> String {
    let Some(exit) = &instance.exit else { return instance.phase.clone() };
    if exit.stopped == Some(StopCause::Unhealthy) {
        return "unhealthy".to_owned();
    }
    match (exit.oom_killed, &exit.message, &exit.signal, exit.code) {
        (true, ..) => "out of memory".to_owned(),
        _ if exit.reason == ExitReason::StopTimeout => "killed after its stop grace".to_owned(),
        (_, Some(message), _, None) => format!("could not run: {message}"),
        (_, _, Some(signal), _) => format!("killed by {signal}"),
        (_, _, _, Some(code)) => format!("exit code {code}"),
        _ => "ended".to_owned(),
    }
}

/// How a wait ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waited {
    /// All goals are reached.
    Reached,
    /// Some never will be.
    Failed(Vec<Failed>),
    /// Time ran out first; what was missing.
    TimedOut(Vec<Failed>),
}

/// Watches until the goals are reached, can't be, or time runs out; shows progress on standard error.
pub async fn wait(client: &Client, goals: &Goals, baseline: &Baseline, deadline: Instant) -> Result<Waited, ApiError> {
    let mut progress = Progress::new(stderr_is_live());
    let mut status = synced_status(client).await?;
    let mut crashes = Crashes::default();
    loop {
        crashes.see(&status);
        progress.show(&status, goals);
        let taken_back = crashes.taken_back(&status, goals);
        if !taken_back.is_empty() {
            return Ok(Waited::Failed(taken_back));
        }
        let settling = match verdict(&status, goals, baseline) {
            Verdict::Reached => settling(&status, goals, Utc::now()),
            Verdict::Failed(failures) => return Ok(Waited::Failed(failures)),
            Verdict::Pending => SETTLED,
        };
        if settling.is_zero() {
            return Ok(Waited::Reached);
        }
        let generation = status.generation;
        tokio::select! {
            next = client.status_after(generation) => status = next?,
            () = tokio::time::sleep(settling) => {}
            () = tokio::time::sleep_until(deadline) => {
                return Ok(Waited::TimedOut(missing(&status, goals, baseline, &crashes)));
            }
        }
    }
}

/// Time until the youngest instance of these deployments has run for long enough; zero where all have. Those of jobs
/// only have to be started, and nobody waits for that in vain.
pub fn settling(status: &Status, goals: &Goals, now: DateTime<Utc>) -> Duration {
    let wanted = |instance: &&InstanceView| goals.get(&instance.deployment) == Some(&Goal::Running);
    let is_beginning = |instance: &InstanceView| matches!(instance.phase.as_str(), "pending" | "created");
    let of_jobs = |instance: &&InstanceView| job_of(status, instance).is_some();
    if status.instances.iter().filter(wanted).filter(of_jobs).any(is_beginning) {
        return SETTLED;
    }
    let of_services = status.instances.iter().filter(wanted).filter(|instance| !of_jobs(instance));
    let starts = of_services.filter_map(|instance| instance.started_at);
    // A clock that was set back makes no wait longer than the whole.
    let ran = starts.max().map_or(SETTLED, |start| (now - start).to_std().unwrap_or_default());
    SETTLED.saturating_sub(ran)
}

/// What is said of what was not done in that time.
pub fn not_done(timeout: Duration) -> String {
    format!("not done after {}", HumanDuration(timeout))
}

/// What the goals lack, by deployment.
pub fn missing(status: &Status, goals: &Goals, baseline: &Baseline, crashes: &Crashes) -> Vec<Failed> {
    let lacking = goals.iter().filter(|(name, goal)| one(status, name, **goal, baseline) != Verdict::Reached);
    lacking
        .map(|(name, _)| {
            let view = status.deployments.iter().find(|view| view.deployment == *name);
            let mut why = match view {
                Some(view) if view.message.is_empty() && is_on_trial(status, name, baseline) => {
                    "what runs of its rollout has not run for long enough to count".to_owned()
                }
                Some(view) if view.message.is_empty() => {
                    format!("it is {}{}{}", view.state.name(), under_way(status, name), crashes.last_complaint(name))
                }
                Some(view) => format!("it is {}: {}", view.state.name(), view.message),
                None => "it is not known yet".to_owned(),
            };
            let mut output = worst(status, name, baseline).map(Output::of);
            if let (None, Some(instance)) = (&output, restarted(status, name, baseline)) {
                why = format!("{why}; {}", crashes.tell(instance, baseline.restarted(status, instance)));
                output = Some(Output { instance: instance.name.clone(), runtime_id: None, previous: true });
            }
            Failed { deployment: name.clone(), why, is_retried: false, output }
        })
        .collect()
}

/// What is being made of a deployment just now, where anything is.
fn under_way(status: &Status, deployment: &str) -> String {
    let is_made = |instance: &&InstanceView| instance.deployment == deployment && instance.phase == "pending";
    let Some(instance) = status.instances.iter().find(is_made) else { return String::new() };
    let service = |view: &&ServiceView| view.deployment == deployment && view.service == instance.service;
    let image = status.services.iter().find(service).map(|view| format!(" with image {}", view.image));
    let words = if instance.message.is_empty() { String::new() } else { format!(" ({})", instance.message) };
    format!(": {} is being made{}{words}", instance.name, image.unwrap_or_default())
}

/// Tells on standard error what came of deployments instead, each with the last lines of the instance that crashed.
pub async fn report(client: &Client, what: &str, failures: &[Failed]) {
    for failure in failures {
        let goes_on = if failure.is_retried && client.has_controller() { "; keel goes on trying" } else { "" };
        note(format_args!("error: deployment/{} {what}: {}{goes_on}", failure.deployment, harmless(&failure.why)));
        let Some(output) = &failure.output else { continue };
        let instance = &output.instance;
        let lines = match tokio::time::timeout(LAST_LINES_DEADLINE, last_lines(client, output)).await {
            Ok(Ok(lines)) if lines.is_empty() => {
                note(format_args!("{instance} wrote nothing"));
                continue;
            }
            Ok(Ok(lines)) => lines,
            Ok(Err(why)) => {
                note(format_args!("the output of {instance} can't be read: {}", harmless(&why)));
                continue;
            }
            Err(_) => {
                note(format_args!("the output of {instance} can't be read: no answer in time"));
                continue;
            }
        };
        note(format_args!("last {} of {instance}:", count(lines.len(), "line")));
        for line in lines {
            note(format_args!("  {}", harmless(&line)));
        }
    }
}

/// The last lines of an output, or why they can't be read.
async fn last_lines(client: &Client, output: &Output) -> Result<Vec<String>, String> {
    let Output { instance, runtime_id: of, previous } = output.clone();
    // What the runtime does not know yet has no id, and wrote nothing.
    let runtime_id = of.clone().filter(|id| !id.is_empty());
    let query = LogQuery { target: instance, follow: false, tail: Some(LAST_LINES), previous, since: None, runtime_id };
    let mut items = client.logs(&query).await.map_err(|error| error.to_string())?;
    let (mut lines, mut open) = (Vec::new(), Vec::new());
    while let Some(item) = items.next().await {
        match item.map_err(|error| error.to_string())? {
            LogItem::Line { line, runtime_id, .. } if of.as_ref().is_none_or(|of| *of == runtime_id) => {
                // Of a line that is longer than anybody reads, the begin is told.
                if !open.contains(&line.stream) {
                    lines.push(line.text.lossy().into_owned());
                }
                open.retain(|stream| *stream != line.stream);
                open.extend(line.goes_on.then_some(line.stream));
            }
            LogItem::Failed { error, .. } | LogItem::Broken(error) if lines.is_empty() => return Err(error.error),
            _ => {}
        }
    }
    let keep = usize::try_from(LAST_LINES).unwrap_or(usize::MAX);
    let skip = lines.len().saturating_sub(keep);
    Ok(lines.into_iter().skip(skip).collect())
}

#[cfg(test)]
mod tests;
