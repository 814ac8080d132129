//! Conditions of deployments and services.

use super::jobs;
use super::waits::{self, Severity};
use super::{DeploymentState, Facts, ServiceView};
use crate::plan::Wait;
use crate::spec::{corrected, shared_storage, unsupported};
use crate::state::{
    Condition, DesiredService, ErrorKind, FailureReason, HealthState, Instance, NOT_CHECKED, OrderFailure, Pause,
    RolloutCourse, RunEnd, Standing,
};

/// Why a service progresses of which nothing is begun before a registry has said which image its tag is now.
pub const IMAGE_ASKED: &str = "ImageAsked";

/// Conditions of a deployment.
pub(super) fn of_deployment(facts: &Facts<'_>, state: DeploymentState, message: &str) -> Vec<Condition> {
    let ready = match state {
        DeploymentState::Running if facts.stale.is_some() => Condition::fails("Ready", "Stale", message),
        DeploymentState::Running => Condition::holds("Ready", "AsDeclared", "what is declared runs"),
        DeploymentState::Complete => Condition::holds("Ready", "Complete", "every job has succeeded"),
        state if message.is_empty() => Condition::fails("Ready", state.reason(), "steps are under way"),
        state => Condition::fails("Ready", state.reason(), message),
    };
    let mut conditions = vec![ready];
    if state == DeploymentState::Suspended {
        conditions.push(Condition::holds("Suspended", "SuspensionAsked", message));
    }
    if let Some(why) = facts.stale {
        conditions.push(Condition::holds("Stale", "SourceProblem", why));
    }
    if let Some(why) = facts.unwatched {
        conditions.push(Condition::holds("Kept", "NotWatched", why));
    }
    if let Some(why) = facts.held {
        conditions.push(Condition::holds("Kept", "PruningHeld", why));
    }
    if let Some(why) = facts.kept {
        conditions.push(Condition::holds("Kept", "NotPruned", why));
    }
    // What fails of something that no service is declared for is said here, as no service says it.
    let is_told = |wait: &Wait| {
        facts.desired.iter().flat_map(|desired| desired.services.values()).any(|one| waits::is_about(wait, one))
    };
    conditions.extend(facts.plan.waits.iter().filter(|wait| !is_told(wait)).filter_map(failure));
    for field in facts.desired.iter().flat_map(|desired| &desired.unsupported) {
        conditions.push(field.clone());
    }
    conditions
}

/// Conditions of a service.
pub(super) fn of_service(
    view: &ServiceView,
    service: &DesiredService,
    instances: &[&Instance],
    facts: &Facts<'_>,
) -> Vec<Condition> {
    let mine: Vec<&Wait> = facts.plan.waits.iter().filter(|wait| waits::is_about(wait, service)).collect();
    let mut conditions = match (&view.job, &view.pool) {
        (Some(job), _) => jobs::conditions(job, service, facts),
        (None, Some(pool)) => pool.conditions().to_vec(),
        (None, None) => vec![available(view, service, &mine), progressing(view, service, instances, &mine)],
    };
    // What the registry says may be something else than what failed before.
    let asked = mine.iter().find(|wait| matches!(wait, Wait::ImageAsked { .. }));
    if let (Some(wait), Some(progressing)) = (asked, conditions.iter_mut().find(|one| one.kind == "Progressing")) {
        *progressing = Condition::holds("Progressing", IMAGE_ASKED, wait.to_string());
    }
    conditions.extend(rollout(&view.deployment, service, &mine));
    conditions.extend(mine.iter().filter_map(|wait| failure(wait)));
    conditions.extend(mine.iter().filter_map(|wait| without_dependency(wait)));
    conditions.extend(instances.iter().filter_map(|instance| not_checked(instance)));
    for field in corrected(&service.spec) {
        conditions.push(Condition::holds("CorrectedField", "Corrected", format!("{}: {}", field.path, field.why)));
    }
    for (path, why) in shared_storage(&service.spec) {
        conditions.push(Condition::holds("SharedStorage", "SharedBetweenSessions", format!("{path}: {why}")));
    }
    for field in unsupported(&service.spec) {
        conditions.push(Condition::holds("UnsupportedField", "NotHonoured", format!("{}: {}", field.path, field.why)));
    }
    let of_runtime = facts.unsupported.get(&view.service).into_iter().flatten();
    for condition in of_runtime.chain(instances.iter().flat_map(|instance| &instance.conditions)) {
        if !has(&conditions, condition) {
            conditions.push(condition.clone());
        }
    }
    conditions
}

fn available(view: &ServiceView, service: &DesiredService, waits: &[&Wait]) -> Condition {
    let (_, unavailable) = service.spec.rollout().bounds(view.desired);
    let least = view.desired.saturating_sub(unavailable);
    // Ready, and not for long enough.
    let young = waits.iter().filter(|wait| matches!(wait, Wait::NotReady { until: Some(_), .. })).count();
    let available = view.ready.saturating_sub(u32::try_from(young).unwrap_or(u32::MAX));
    let message = match young {
        0 => format!("{} of {} replicas are ready, {least} are needed", view.ready, view.desired),
        _ => format!(
            "{available} of {} replicas are available, {least} are needed; {young} more must stay ready for a while",
            view.desired
        ),
    };
    match available >= least {
        true => Condition::holds("Available", "EnoughReplicas", message),
        false => Condition::fails("Available", "TooFewReplicas", message),
    }
}

fn progressing(view: &ServiceView, service: &DesiredService, instances: &[&Instance], waits: &[&Wait]) -> Condition {
    let message = format!("{} of {} replicas are of the declared revision", view.updated, view.desired);
    let total = instances.iter().filter(|instance| !matches!(instance.phase, crate::state::Phase::Exited(_))).count();
    let young = waits.iter().any(|wait| matches!(wait, Wait::NotReady { until: Some(_), .. }));
    let settled =
        !young && view.updated == view.desired && view.ready == view.desired && total == view.desired as usize;
    if let Some((reason, wait)) = stuck(service, waits) {
        return Condition::fails("Progressing", reason, wait.to_string());
    }
    // What rests holds up no rollout that moves, and says less than what ended by itself.
    let moves = moves(view, service, instances, waits);
    let last = waits.iter().filter(|wait| waits::is_final(wait) && !(moves && waits::is_rest(wait)));
    let last = last.min_by_key(|wait| waits::is_rest(wait));
    match (settled, last) {
        (true, _) => Condition::fails("Progressing", "Complete", message),
        (false, Some(wait)) => Condition::fails("Progressing", "Stopped", wait.to_string()),
        (false, None) => Condition::holds("Progressing", "RollingOut", message),
    }
}

/// Whether a rollout is under way of which something is left to do or to wait for beside what rests.
fn moves(view: &ServiceView, service: &DesiredService, instances: &[&Instance], waits: &[&Wait]) -> bool {
    let is_old = |one: &&Instance| {
        !matches!(one.phase, crate::state::Phase::Exited(_)) && !service.is_made_from(&one.id.revision)
    };
    let is_moving = |wait: &Wait| matches!(waits::severity(wait), Severity::Moving | Severity::Trying);
    let resting = u32::try_from(waits.iter().filter(|wait| waits::is_rest(wait)).count()).unwrap_or(u32::MAX);
    let lacks = view.ready.saturating_add(resting) < view.desired;
    let is_left = || lacks || instances.iter().any(is_old) || waits.iter().any(|wait| is_moving(wait));
    service.standing.course == RolloutCourse::UnderWay && is_left()
}

/// Why the rollout is not on its way to what is declared: in one word, and the wait that says it.
fn stuck<'a>(service: &DesiredService, waits: &[&'a Wait]) -> Option<(&'static str, &'a Wait)> {
    let Standing { rolled_back, paused, failed, .. } = &service.standing;
    let of = |is: fn(&Wait) -> bool| waits.iter().copied().find(|wait| is(wait));
    if let Some(rolled_back) = rolled_back {
        let reason = rolled_back.failure.as_ref().map_or("Undone", |failure| failure.reason.name());
        return Some((reason, of(|wait| matches!(wait, Wait::RolledBack { .. }))?));
    }
    if let Some(pause) = paused {
        return Some((reason_of(pause), of(|wait| matches!(wait, Wait::RolloutPaused { .. }))?));
    }
    let reason = failed.as_ref()?.failure.reason.name();
    Some((reason, of(|wait| matches!(wait, Wait::RolloutFailed { .. }))?))
}

const fn reason_of(pause: &Pause) -> &'static str {
    match pause {
        Pause::User => "PauseAsked",
        Pause::Failure { failure } => failure.reason.name(),
    }
}

/// What was decided or ordered of the rollout.
fn rollout(deployment: &str, service: &DesiredService, waits: &[&Wait]) -> Vec<Condition> {
    let Standing { rolled_back, paused, failed_order, course, .. } = &service.standing;
    let said = |is: fn(&Wait) -> bool| waits.iter().find(|wait| is(wait)).map(ToString::to_string);
    let rolled_back = rolled_back.as_ref().map(|rolled_back| {
        let reason = rolled_back.failure.as_ref().map_or("Undone", |failure| failure.reason.name());
        let message = said(|wait| matches!(wait, Wait::RolledBack { .. })).unwrap_or_default();
        Condition::holds("RolledBack", reason, message)
    });
    let paused = paused.as_ref().map(|pause| {
        let message = match course {
            RolloutCourse::Held => said(|wait| matches!(wait, Wait::RolloutPaused { .. })).unwrap_or_default(),
            RolloutCourse::Over | RolloutCourse::UnderWay => {
                "what changes is not rolled out until `keel rollout resume`".to_owned()
            }
        };
        Condition::holds("Paused", reason_of(pause), message)
    });
    let failed_order = failed_order.as_ref().map(|failed| failed_order_of(deployment, &service.name, failed));
    rolled_back.into_iter().chain(paused).chain(failed_order).collect()
}

/// The condition of an order that failed.
fn failed_order_of(deployment: &str, service: &str, failed: &OrderFailure) -> Condition {
    match failed {
        OrderFailure::Restart { failure } => {
            let message = format!("the last restart failed: {}; what ran before it runs on", failure.message);
            Condition::holds("RestartFailed", failure.reason.name(), message)
        }
        OrderFailure::Undo { to, failure } => {
            let again = match failure.reason {
                FailureReason::DependencyTimeout => "it is tried again once that is as it has to be".to_owned(),
                _ => format!("`keel rollout undo {deployment}/{service} --to-revision {to}` tries it again"),
            };
            let message =
                format!("the undo to revision {to} failed: {}; what is declared runs on, and {again}", failure.message);
            Condition::holds("UndoFailed", failure.reason.name(), message)
        }
    }
}

/// The condition that a wait for something that went wrong amounts to.
fn failure(wait: &Wait) -> Option<Condition> {
    let reason = match wait {
        Wait::BackOff { .. } => "CrashLoopBackOff",
        Wait::Unhealthy { .. } => "Unhealthy",
        Wait::Retry { kind: ErrorKind::InitFailed, .. } | Wait::Refused { kind: ErrorKind::InitFailed, .. } => {
            "InitFailed"
        }
        Wait::Retry { .. } | Wait::RetireFailed { .. } => "CallFailed",
        Wait::Refused { .. } => "Refused",
        Wait::Isolated { .. } => "Isolated",
        Wait::Ended { exit, .. } if !exit.is_success() => "Crashed",
        Wait::ShutDown { .. } => "ShutDown",
        Wait::GaveUp { .. } => "GaveUp",
        Wait::Final { .. } => "FinalExitCode",
        Wait::RuntimeAbsent { .. } => "RuntimeAbsent",
        Wait::NotRun { .. } => "NotRun",
        Wait::DependencyTimeout { .. } => "DependencyTimeout",
        Wait::JobFailed { end: RunEnd::DeadlineExceeded, .. } => "DeadlineExceeded",
        Wait::JobFailed { .. } => "BackoffLimitExceeded",
        Wait::Paused { .. } => "Paused",
        Wait::Unknown { .. } => "UnknownPhase",
        _ => return None,
    };
    Some(Condition::holds("ReplicaFailure", reason, wait.of_itself()))
}

/// The condition of a service that went on without one that it depends on.
fn without_dependency(wait: &Wait) -> Option<Condition> {
    let is_missing = matches!(wait, Wait::WithoutDependency { .. });
    is_missing.then(|| Condition::holds("Degraded", "DependencyTimeout", wait.to_string()))
}

/// The condition of an instance whose health nobody can tell.
fn not_checked(instance: &Instance) -> Option<Condition> {
    match &instance.health {
        Some(HealthState::Unknown { why }) if why != NOT_CHECKED => {
            let message = format!("health of {} is not known: {why}", instance.id);
            Some(Condition::holds("Degraded", "HealthUnknown", message))
        }
        _ => None,
    }
}

/// Whether any condition of this kind is already among them.
fn has(conditions: &[Condition], other: &Condition) -> bool {
    conditions.iter().any(|condition| condition.kind == other.kind && condition.message == other.message)
}
