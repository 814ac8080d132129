//! `keel rollout status`: wait for what is declared to run, or say why it does not.

use std::time::Duration;

use clap::ArgAction;
use tokio::time::Instant;

use super::connect::{synced_status, warn_about};
use super::converge::not_done;
use super::exit::{Exit, Outcome};
use super::output::{note, print};
use super::reconnecting::{Reconnecting, observe_existing};
use super::text::{duration, harmless};
use crate::api::Client;
use crate::config::Options;
use crate::state::{Condition, ConditionStatus, HealthState, Target};
use crate::status::{DeploymentState, InstanceView, LifeState, ServiceView, Status, UndoneView};
use crate::store::Lock;

/// Between two looks at what a command without a controller does.
const WORK_POLL: Duration = Duration::from_millis(500);

/// Wait until a rollout is complete, or say why it will not be
///
/// It is complete when every replica is of the declared revision and ready, or rests for idleness (`lifecycle.max_idle`), and
/// no other is left. After `keel rollout undo`
/// it is the revision that was asked for.
#[derive(Debug, clap::Args)]
#[command(after_help = "Names: DEPLOYMENT or DEPLOYMENT/SERVICE.\n\n\
Examples:\n  keel rollout status demo\n  keel rollout status demo/web --timeout 5m\n  \
keel rollout status demo --watch=false\n\n\
Exit codes: 0 what is declared, or what `keel rollout undo` asked for, runs and is ready, 1 it is paused, suspended, failed or rolled back, or its last restart failed, or something of it is down until `keel start` (why is printed), or it \
is not complete and nobody waits, 124 --timeout ran out first.")]
pub struct Args {
    /// DEPLOYMENT[/SERVICE]
    #[arg(value_name = "NAME")]
    name: Target,
    /// Wait for the end; `--watch=false` says how it stands
    #[arg(short, long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", value_name = "BOOL")]
    watch: bool,
    /// How long to wait [default: until it ends]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,
}

/// How far a service is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Course {
    Complete(String),
    Waiting(String),
    Failed(String),
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let Some(mut engine) = observe_existing(options).await? else {
            note(format_args!("error: {} not found", self.name));
            return Ok(Exit::Failure);
        };
        let outcome = self.follow(options, &mut engine).await;
        engine.close().await;
        outcome
    }

    async fn follow(&self, options: &Options, engine: &mut Reconnecting<'_>) -> Outcome {
        // What was saved a moment ago is what is asked about.
        engine.ask(Client::rescan).await?;
        let mut goes_on = is_worked_on(options, engine)?;
        let mut status = engine.ask(synced_status).await?;
        warn_about(&status);
        let deadline = self.timeout.map(|timeout| Instant::now() + timeout);
        let mut said = Vec::new();
        loop {
            if let Some(why) = not_rolled_out(&status, &self.name) {
                note(format_args!("error: {why}"));
                return Ok(Exit::Failure);
            }
            let courses = courses(&status, &self.name);
            let lines: Vec<String> = courses.iter().filter_map(news).collect();
            for line in lines.iter().filter(|line| !said.contains(*line)) {
                print(&format!("{line}\n"))?;
            }
            said = lines;
            if let Some(exit) = end(&courses, &self.name) {
                return Ok(exit);
            }
            if !self.watch {
                return Ok(Exit::Failure);
            }
            if !goes_on {
                note("error: no controller runs, so nothing goes on; `keel run` or `keel apply` does it");
                return Ok(Exit::Failure);
            }
            // Asked before the look, which shows what whoever works by then has come to.
            goes_on = is_worked_on(options, engine)?;
            let next = next_status(engine, status.generation);
            status = match deadline {
                None => next.await?,
                Some(deadline) => match tokio::time::timeout_at(deadline, next).await {
                    Ok(next) => next?,
                    Err(_) => {
                        note(format_args!("error: {} {}", self.name, not_done(self.timeout.unwrap_or_default())));
                        return Ok(Exit::TimedOut);
                    }
                },
            };
        }
    }
}

/// Whether a controller runs, or a command works here.
fn is_worked_on(options: &Options, engine: &Reconnecting<'_>) -> anyhow::Result<bool> {
    Ok(engine.client().has_controller() || options.worker()? != Lock::Free)
}

/// What there is next. What a command without a controller does, and has come to at its end, is looked at again and again.
async fn next_status(engine: &mut Reconnecting<'_>, generation: u64) -> anyhow::Result<Status> {
    if engine.client().has_controller() {
        return engine.status_after(generation).await;
    }
    tokio::time::sleep(WORK_POLL).await;
    engine.look_again().await?;
    engine.ask(synced_status).await
}

/// How the wait ends, where it does: failures count when nothing else is on its way.
fn end(courses: &[Course], name: &Target) -> Option<Exit> {
    if courses.is_empty() {
        note(format_args!("error: {name} not found"));
        return Some(Exit::Failure);
    }
    let waits = courses.iter().any(|course| matches!(course, Course::Waiting(_)));
    let failures: Vec<&String> =
        courses.iter().filter_map(|course| if let Course::Failed(why) = course { Some(why) } else { None }).collect();
    if waits {
        return None;
    }
    for why in &failures {
        note(format_args!("error: {}", harmless(why)));
    }
    Some(if failures.is_empty() { Exit::Success } else { Exit::Failure })
}

/// What is told on the way; failures are told at the end.
fn news(course: &Course) -> Option<String> {
    match course {
        Course::Complete(text) | Course::Waiting(text) => Some(text.clone()),
        Course::Failed(_) => None,
    }
}

fn named<'a>(status: &'a Status, name: &Target) -> impl Iterator<Item = &'a ServiceView> {
    let of = move |view: &&ServiceView| {
        view.deployment == name.deployment && name.service.as_ref().is_none_or(|service| *service == view.service)
    };
    status.services.iter().filter(of)
}

/// What to say where nothing of that name is rolled out, but something else is done.
fn not_rolled_out(status: &Status, name: &Target) -> Option<String> {
    let (mut all, mut jobs) = (named(status, name).peekable(), named(status, name));
    let only_jobs = all.peek().is_some() && jobs.all(|view| view.job.is_some());
    only_jobs.then(|| match &name.service {
        Some(_) => format!("{name} is a job and not rolled out; `keel get jobs` shows its runs"),
        None => format!("{name} has no service that is rolled out; `keel get jobs` shows the runs of its jobs"),
    })
}

/// How far the services are that are rolled out; jobs are not.
fn courses(status: &Status, name: &Target) -> Vec<Course> {
    named(status, name).filter(|view| view.job.is_none()).map(|view| course(status, view)).collect()
}

fn course(status: &Status, view: &ServiceView) -> Course {
    let name = format!("{}/{}", view.deployment, view.service);
    let find = |kind: &str, is: ConditionStatus| {
        view.conditions.iter().find(|condition| condition.kind == kind && condition.status == is)
    };
    let deployment = status.deployments.iter().find(|one| one.deployment == view.deployment);
    let state = deployment.map(|deployment| deployment.state);
    let message = |condition: &Condition| Course::Failed(condition.message.clone());
    if let (Some(DeploymentState::Suspended), Some(deployment)) = (state, deployment) {
        return Course::Failed(deployment.message.clone());
    }
    if let Some(undone) = &view.undone {
        let paused = find("Paused", ConditionStatus::True).filter(|_| !undone.complete).map(message);
        return paused.or_else(|| kept_down(view)).unwrap_or_else(|| way_back(status, view, undone));
    }
    if let Some(rolled_back) = find("RolledBack", ConditionStatus::True) {
        return message(rolled_back);
    }
    let failed = |kind: &str| find(kind, ConditionStatus::True);
    if let Some(failed) = failed("RestartFailed").or_else(|| failed("UndoFailed")) {
        return Course::Failed(format!("{name}: {}", failed.message));
    }
    let complete = || match instances(status, view).find(|one| one.health == Some(HealthState::Assumed)) {
        Some(one) => Course::Waiting(format!("Waiting for {} to pass the checks that are declared now...", one.name)),
        None => Course::Complete(format!("service \"{name}\" successfully rolled out")),
    };
    match find("Progressing", ConditionStatus::False) {
        Some(condition) if condition.reason == "Complete" => complete(),
        // How others of the deployment stand says nothing of this one.
        Some(condition) if condition.reason == "Stopped" && find("ReplicaFailure", ConditionStatus::True).is_none() => {
            let lacks = find("Available", ConditionStatus::False).is_some();
            kept_down(view).unwrap_or_else(|| match missing(status, view) {
                // It rests as it is declared to.
                Missing::None => complete(),
                Missing::Coming => Course::Waiting(waiting(status, view, &name)),
                Missing::Ended if lacks => {
                    Course::Failed(format!("{}; `keel start {name}` starts it again", condition.message))
                }
                Missing::Ended => complete(),
            })
        }
        Some(condition) => message(condition),
        None => Course::Waiting(waiting(status, view, &name)),
    }
}

/// That something of a service is down until somebody starts it, where it is: it is not as it is declared.
fn kept_down(view: &ServiceView) -> Option<Course> {
    view.kept_down.as_ref().map(|how| Course::Failed(format!("{}/{}: {how}", view.deployment, view.service)))
}

/// What the replicas are at that are not ready.
enum Missing {
    /// All are ready, or rest until somebody uses them.
    None,
    /// Some are on their way.
    Coming,
    /// The others have ended.
    Ended,
}

fn missing(status: &Status, view: &ServiceView) -> Missing {
    let rests = |one: &&InstanceView| matches!(one.state, LifeState::Idle | LifeState::Suspended);
    let resting = u32::try_from(instances(status, view).filter(rests).count()).unwrap_or(u32::MAX);
    let is_old = |one: &InstanceView| !view.are_made_alike(&view.revision, &one.revision);
    let is_coming = |one: &InstanceView| is_old(one) || !one.ready && one.state != LifeState::Suspended;
    if instances(status, view).any(|one| one.phase != "exited" && is_coming(one)) {
        return Missing::Coming;
    }
    if view.ready.saturating_add(resting) >= view.desired { Missing::None } else { Missing::Ended }
}

/// How far a service is on its way back to a revision that somebody asked for.
fn way_back(status: &Status, view: &ServiceView, undone: &UndoneView) -> Course {
    let name = format!("{}/{}", view.deployment, view.service);
    let UndoneView { to, updated, old, ready, complete, failed } = undone;
    if *complete {
        let what = "as `keel rollout undo` asked, and not what is declared";
        return Course::Complete(format!("service \"{name}\" successfully rolled back to revision {to}, {what}"));
    }
    if let Some(why) = failed {
        return Course::Failed(format!("the way of {name} back to revision {to} failed: {why}"));
    }
    let rest = progress(view.desired, *updated, *old as usize, *ready);
    let why = what_is_missing(status, view);
    Course::Waiting(format!("Waiting for service \"{name}\" to roll back to revision {to}: {rest}...{why}"))
}

/// What is waited for, in kubectl's words.
fn waiting(status: &Status, view: &ServiceView, name: &str) -> String {
    let lives = instances(status, view).filter(|one| one.phase != "exited");
    let old = lives.filter(|one| !view.are_made_alike(&view.revision, &one.revision)).count();
    let rest = progress(view.desired, view.updated, old, view.ready);
    let why = what_is_missing(status, view);
    format!("Waiting for service \"{name}\" rollout to finish: {rest}...{why}")
}

/// Why it takes so long, in brackets; nothing where no reason is known.
fn what_is_missing(status: &Status, view: &ServiceView) -> String {
    let unhealthy = instances(status, view).find_map(|one| match &one.health {
        Some(HealthState::Unhealthy { last, .. }) => Some(format!("{} is unhealthy: {last}", one.name)),
        _ => None,
    });
    let awaited = || {
        let on: Vec<&str> = view.awaits.iter().map(|one| one.service.as_str()).collect();
        (!on.is_empty()).then(|| format!("it waits for {}", on.join(", ")))
    };
    let why = unhealthy.or_else(|| view.failure.clone()).or_else(awaited);
    why.map_or_else(String::new, |why| format!(" ({why})"))
}

fn instances<'a>(status: &'a Status, view: &'a ServiceView) -> impl Iterator<Item = &'a InstanceView> {
    status.instances.iter().filter(|one| one.deployment == view.deployment && one.service == view.service)
}

fn progress(desired: u32, updated: u32, old: usize, ready: u32) -> String {
    match (updated < desired, old) {
        (true, _) => format!("{updated} out of {desired} new replicas have been updated"),
        (false, 1) => "1 old replica is pending termination".to_owned(),
        (false, 2..) => format!("{old} old replicas are pending termination"),
        (false, 0) => format!("{} of {desired} updated replicas are available", ready.min(desired)),
    }
}

#[cfg(test)]
mod tests;
