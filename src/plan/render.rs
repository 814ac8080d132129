//! Plans as people read them: one line per step and per wait.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};

use super::time::elapsed;
use super::{Action, Cause, Dependency, Plan, Retired, Spared, Step, Wait};
use crate::spec::HumanDuration;
use crate::state::{
    Failed, FailureReason, GoesOn, InstanceId, NOBODY_CHECKS, Pause, RolledBack, RolloutFailure, RunEnd, ServiceName,
    Volumes,
};

impl Display for Plan {
    /// The steps, then the waits, then when to look again, a line each and no newline at the end;
    /// `nothing to do` where there is none of them.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let steps = self.steps().map(|step| step as &dyn Display);
        let waits = self.waits.iter().map(|wait| wait as &dyn Display);
        let mut separator = "";
        for line in steps.chain(waits) {
            write!(f, "{separator}{line}")?;
            separator = "\n";
        }
        match self.next_look {
            Some(at) => write!(f, "{separator}look again at {}", time(at)),
            None if separator.is_empty() => f.write_str("nothing to do"),
            None => Ok(()),
        }
    }
}

impl Display for Step {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.action, self.cause)
    }
}

impl Display for Action {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let runtime = self.runtime();
        match self {
            Self::EnsureImage { image, id, .. } => {
                write!(f, "get image {} for {} on {runtime}", image.name, long(id))
            }
            Self::Init { id, step, .. } => {
                write!(f, "run init step {} ({}) for {} on {runtime}", step.id, step.uses, long(id))
            }
            Self::Create { id, .. } => write!(f, "create {} on {runtime}", long(id)),
            Self::StartCreated { id, .. } => write!(f, "start {} on {runtime}", long(id)),
            Self::Start { instance } => write!(f, "start {} on {runtime}", long(&instance.id)),
            Self::Resume { instance } => write!(f, "resume {} on {runtime}", long(&instance.id)),
            Self::Suspend { instance } => write!(f, "suspend {} on {runtime}", long(&instance.id)),
            Self::Stop { instance, stop } => {
                let grace = HumanDuration(stop.grace);
                write!(f, "stop {} on {runtime} ({}, {grace} grace)", long(&instance.id), stop.signal)
            }
            Self::Remove { instance, .. } => write!(f, "remove {} on {runtime}", long(&instance.id)),
            Self::Teardown { deployment, volumes, .. } => {
                let volumes = match volumes {
                    Volumes::Keep => "keeping",
                    Volumes::Remove => "and remove",
                };
                write!(f, "tear down {deployment} on {runtime} {volumes} its volumes")
            }
        }
    }
}

impl Display for Cause {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { replicas } => write!(f, "missing, {} wanted", self::replicas(*replicas)),
            Self::SpecChanged { source, from, to } => {
                write!(f, "template changed at {source} ({} to {})", from.short(), to.short())
            }
            Self::RolledBack { from, to } => write!(f, "rolled back ({} to {})", from.short(), to.short()),
            Self::RestartAsked { from, to } => {
                write!(f, "restart asked for ({} to {})", from.short(), to.short())
            }
            Self::RuntimeChanged { from, to } => write!(f, "runtime changed from {from} to {to}"),
            Self::ScaledDown { replicas } => write!(f, "scaled down to {}", self::replicas(*replicas)),
            Self::Exited { exit, streak } => write!(f, "{exit}, restart {streak} in a row"),
            Self::StoppedByOthers { exit } => write!(f, "stopped by somebody else: {exit}"),
            Self::NotStarted => f.write_str("created and never started"),
            Self::Paused => f.write_str("paused by somebody else"),
            Self::Expired { since } => write!(f, "reached its maximum age, started at {}", time(*since)),
            Self::ChangedByOthers { what } => write!(f, "changed by somebody else: {what}"),
            Self::Idle { since } => write!(f, "idle since {}", time(*since)),
            Self::StopAsked => f.write_str("stopped with keel stop"),
            Self::StartAsked => f.write_str("asked for"),
            Self::Awaited { by } => write!(f, "{by} depends on it and is to start"),
            Self::Unhealthy { check } => write!(f, "unhealthy: {check}"),
            Self::Superseded => f.write_str("dead, and no longer needed for its output"),
            Self::Duplicate => f.write_str("another instance holds its slot"),
            Self::ServiceRemoved => f.write_str("service is not declared any more"),
            Self::DeploymentRemoved => f.write_str("deployment is not declared any more"),
            Self::Orphan { first_seen } => write!(f, "orphan, declared nowhere since {}", time(*first_seen)),
            Self::Shutdown { exit } => write!(f, "{exit}, and errors.on_panic is shutdown"),
            Self::InitEnded => f.write_str("its init step has ended"),
            Self::Incomplete { completions: 1 } => f.write_str("not completed yet"),
            Self::Incomplete { completions } => write!(f, "not completed yet, {completions} completions wanted"),
            Self::Scheduled { at } => write!(f, "due at {}", time(*at)),
            Self::Triggered => f.write_str("asked for with keel trigger"),
            Self::Retry { exit, failed, limit } => write!(f, "{exit}, {failed} of {limit} retries"),
            Self::RunFailed { exit } => write!(f, "the run has failed: {exit}"),
            Self::DeadlineExceeded { since } => {
                write!(f, "job.active_deadline is over, the run began at {}", time(*since))
            }
            Self::Replaced => f.write_str("another run takes its place"),
            Self::BeyondHistory { history } => write!(f, "its run is over, and job.history keeps {history}"),
            Self::TtlAfterFinished { finished_at } => {
                write!(f, "its run was over at {}, and job.ttl_after_finished has passed", time(*finished_at))
            }
            Self::DeleteOnExit => f.write_str("ended, and lifecycle.delete_on_exit is true"),
            Self::PoolLow { warm, wanted } => write!(f, "pool has {warm} of {wanted} free members"),
            Self::SessionEnded => f.write_str("its session has ended"),
            Self::Entered => f.write_str("somebody was inside it without a session"),
            Self::Cold { since } => write!(f, "created at {}, and pool.warm_ttl has passed", time(*since)),
            Self::PoolSurplus { max_warm, max_total } => {
                write!(f, "more than pool.max_warm ({max_warm}) or pool.max_total ({max_total})")
            }
            Self::MakesRoom => f.write_str("makes room for a fresh member that somebody waits for"),
            Self::NotRemembered => f.write_str("older than what is remembered of sessions"),
        }
    }
}

impl Display for Wait {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&phrase(self, &self.instance().map(long).unwrap_or_default(), Clock::Wall))
    }
}

/// How times are told.
#[derive(Debug, Clone, Copy)]
pub(super) enum Clock {
    /// As they are.
    Wall,
    /// As what is left of them at this time.
    Since(DateTime<Utc>),
}

impl Clock {
    fn until(self, end: DateTime<Utc>) -> String {
        match self {
            Self::Wall => format!("until {}", time(end)),
            Self::Since(start) => format!("for {}", left(start, end)),
        }
    }

    fn past(self, instant: DateTime<Utc>) -> String {
        match self {
            Self::Wall => format!("at {}", time(instant)),
            Self::Since(_) => "by then".to_owned(),
        }
    }

    fn since(self, instant: DateTime<Utc>) -> String {
        match self {
            Self::Wall => time(instant),
            Self::Since(_) => "then".to_owned(),
        }
    }

    fn at(self, instant: DateTime<Utc>) -> String {
        match self {
            Self::Wall => format!("at {}", time(instant)),
            Self::Since(start) => format!("in {}", left(start, instant)),
        }
    }
}

/// The time between the two; in whole seconds from one second on, rounded up.
fn left(start: DateTime<Utc>, end: DateTime<Utc>) -> HumanDuration {
    let left = elapsed(start, end);
    let seconds = Duration::from_secs(left.as_secs() + u64::from(left.subsec_nanos() > 0));
    HumanDuration(if left < Duration::from_secs(1) { left } else { seconds })
}

/// A wait in words, with the name of the instance, or of several for which it is the same.
pub(super) fn phrase(wait: &Wait, who: &str, clock: Clock) -> String {
    match wait {
        Wait::InFlight { .. } => format!("wait for the step under way for {who}"),
        Wait::BackOff { exit, until, .. } => format!("wait to restart {who} {}: {exit}", clock.until(*until)),
        Wait::Retry { failures, error, until, .. } => {
            format!("wait to try {who} again {}: failed {}: {error}", clock.until(*until), times(*failures))
        }
        Wait::RetireFailed { retired, deployment, call, failures, error, until } => {
            let what = match retired {
                Retired::Instance { .. } => who.to_owned(),
                Retired::Shared { runtime } => format!("what {deployment} shares on {runtime}"),
            };
            let (verb, until) = (call.name(), clock.until(*until));
            format!("wait to {verb} {what} {until}: failed {}: {error}", times(*failures))
        }
        Wait::Refused { error, until, .. } => {
            format!("wait for another spec of {who}, or try once more {}: {error}", clock.at(*until))
        }
        Wait::Paused { .. } => format!("wait for {who} to run on: paused by somebody else"),
        Wait::NotReady { until: None, check: Some(check), .. } if check == NOBODY_CHECKS => {
            format!("whether {who} is ready is not known: {check}")
        }
        Wait::NotReady { until: None, check, .. } => {
            let check = check.as_ref().map(|check| format!(": {check}")).unwrap_or_default();
            format!("wait for {who} to become ready{check}")
        }
        Wait::NotReady { until: Some(until), .. } => format!("wait for {who} to stay ready {}", clock.until(*until)),
        Wait::Unhealthy { check, spared: None, .. } => format!("{who} is unhealthy: {check}"),
        Wait::Unhealthy { check, spared: Some(Spared::Untold), .. } => format!(
            "{who} is unhealthy: {check}; it runs on until these checks, which never passed on it, pass on what is restarted \
             for them"
        ),
        Wait::Unhealthy { check, spared: Some(Spared::FailedAgain), .. } => format!(
            "{who} is unhealthy: {check}; it runs on, as these checks passed neither on it nor on what was restarted for them"
        ),
        Wait::Draining { service } => {
            format!("wait for the old instances of {service} to end: rollout.strategy is recreate")
        }
        Wait::Dependency { dependency: Dependency { service, on }, condition, why, until } => {
            format!("wait to start {service} {}: {on} is not {condition}: {why}", clock.until(*until))
        }
        Wait::DependencyTimeout { dependency: Dependency { service, on }, condition, why, waited } => {
            format!("wait to start {service} until {on} is {condition}, which it was not within {waited}: {why}")
        }
        Wait::WithoutDependency { dependency: Dependency { service, on }, condition, why, waited } => {
            format!("go on with {service} without {on}, which was not {condition} within {waited}: {why}")
        }
        Wait::Dependents { service, by } => {
            format!("wait to stop {service} until nothing runs any more that depends on it: {}", by.join(", "))
        }
        Wait::Isolated { exit, .. } => format!("keep {who} for inspection: {exit}, and errors.on_panic is isolate"),
        Wait::ShutDown { exit, .. } => {
            format!("keep the service of {who} down: {exit}, and errors.on_panic is shutdown")
        }
        Wait::Final { exit, .. } => {
            format!("keep {who} down: {exit}, which is one of restart_policy.final_exit_codes")
        }
        Wait::Ended { exit, .. } => format!("keep {who} down: {exit}, and restart_policy starts no other"),
        Wait::GaveUp { exit, .. } => {
            format!("keep {who} down: {exit}, and restart_policy.max_attempts is reached")
        }
        Wait::Idle { id, since } => {
            format!("keep {who} down: idle since {}; `keel start {}` wakes it", clock.since(*since), id.name())
        }
        Wait::IdleSuspended { id, since } => {
            format!("keep {who} suspended: idle since {}; `keel start {}` wakes it", clock.since(*since), id.name())
        }
        Wait::StopAsked { id } => format!("keep {who} down: stopped; `keel start {}` starts it", id.name()),
        Wait::Terminated { .. } => {
            format!("keep {who} down: reached its maximum age, and lifecycle.on_expiry is terminate")
        }
        Wait::OrphanSettling { until, .. } => {
            format!("wait {} to remove {who}: declared nowhere", clock.until(*until))
        }
        Wait::Kept => "keep everything: not declared any more, and not to be pruned".to_owned(),
        Wait::RuntimeUnreachable { runtime, error } => format!("wait for {runtime} to answer: {error}"),
        Wait::RuntimeAbsent { runtime, why } => format!("run nothing on {runtime}: {why}"),
        Wait::Unknown { message, .. } => format!("wait for {who} to leave an unknown phase: {message}"),
        Wait::RolledBack { service, rolled_back, failed } => back(service, rolled_back, failed.as_ref()),
        Wait::RolloutPaused { service, pause: Pause::User } => {
            format!("the rollout of {service} is paused; `keel rollout resume {service}` goes on with it")
        }
        Wait::RolloutPaused { service, pause: Pause::Failure { failure } }
            if failure.reason == FailureReason::DependencyTimeout =>
        {
            format!(
                "the rollout of {service} failed and is paused: {}; it goes on once that is as it has to be, or with `keel \
                 rollout resume {service}`",
                failure.message
            )
        }
        Wait::RolloutPaused { service, pause: Pause::Failure { failure } } => format!(
            "the rollout of {service} failed and is paused: {}; edit its spec, or go on with `keel rollout resume {service}`",
            failure.message
        ),
        Wait::RolloutFailed { service, failed: Failed { failure, goes_on } } => {
            let why = &failure.message;
            // What ended for good is not tried on, whatever is done about the rollout.
            let gave_up = failure.reason == FailureReason::GaveUp;
            match goes_on {
                GoesOn::Continue if gave_up => format!("the rollout of {service} failed: {why}"),
                GoesOn::NoTarget if gave_up => {
                    format!("the rollout of {service} failed, and there is no earlier revision to roll back to: {why}")
                }
                GoesOn::RollingBack if gave_up => {
                    format!("the way of {service} back to an earlier revision failed: {why}")
                }
                GoesOn::Continue => {
                    format!("the rollout of {service} failed, and goes on as rollout.on_failure says: {why}")
                }
                GoesOn::NoTarget => format!(
                    "the rollout of {service} failed, and is tried on, as there is no earlier revision to roll back to: {why}"
                ),
                GoesOn::RollingBack => {
                    format!("the way of {service} back to an earlier revision failed, and is tried on: {why}")
                }
            }
        }
        Wait::ImageAsked { service, image } => format!("wait to hear which image {image} of {service} is now"),
        Wait::Suspended { deployment } => format!(
            "{deployment} is suspended: nothing is created, stopped or removed until `keel resume {deployment}`"
        ),
        Wait::NotRun { service, why } => format!("leave {service} alone: {why}"),
        Wait::Completion { .. } | Wait::CronRun { .. } => format!("wait for {who} to end"),
        Wait::Completed { service, at } => format!("keep {service} as it is: completed {}", clock.past(*at)),
        Wait::JobFailed { service, end, limit } => format!("keep {service} as it is: {}", job_end(end, *limit)),
        Wait::NextRun { service, at } => format!("wait for the next run of {service} {}", clock.at(*at)),
        Wait::ScheduleOver { service } => format!("run {service} no more: its schedule is over"),
    }
}

impl Wait {
    /// The same as it is said of the service itself.
    pub(crate) fn of_itself(&self) -> String {
        match self {
            Self::JobFailed { end: RunEnd::Failed { exit, .. }, limit: 0, .. } => format!("failed: {exit}"),
            Self::JobFailed { end, limit, .. } => job_end(end, *limit),
            _ => self.to_string(),
        }
    }
}

/// How a job failed, and why nothing more is done about it.
fn job_end(end: &RunEnd, limit: u32) -> String {
    match end {
        RunEnd::Failed { exit, .. } if limit == 0 => format!("failed: {exit}, and it is not tried again"),
        RunEnd::Failed { exit, .. } if limit == 1 => {
            format!("failed: {exit}, and its retry (job.backoff_limit) is used up")
        }
        RunEnd::Failed { exit, .. } => format!("failed: {exit}, and {limit} retries (job.backoff_limit) are used up"),
        RunEnd::DeadlineExceeded => "failed: deadline exceeded (job.active_deadline)".to_owned(),
        RunEnd::Completed | RunEnd::Replaced => end.to_string(),
    }
}

/// So many failures in a row, after "failed".
fn times(failures: u32) -> String {
    if failures == 1 { "once".to_owned() } else { format!("{failures} times in a row") }
}

/// Why an earlier revision runs, and what ends that.
fn back(
    service: &ServiceName,
    RolledBack { from, to, failure, from_undo, .. }: &RolledBack,
    failed: Option<&RolloutFailure>,
) -> String {
    // A restart tries what is declared, and not what somebody asked for in its place.
    let (asked, with) = match from_undo {
        true => (", for which `keel rollout undo` asked,", format!("keel rollout undo {service} --to-revision {from}")),
        false => ("", format!("keel rollout restart {service}")),
    };
    match (failure, failed) {
        (Some(failure), _) if failure.reason == FailureReason::DependencyTimeout => format!(
            "{service} was rolled back to revision {to}, as revision {from}{asked} failed: {}; it is tried again once that is \
             as it has to be, or with `{with}`",
            failure.message
        ),
        (Some(failure), _) => format!(
            "{service} was rolled back to revision {to}, as revision {from}{asked} failed: {}; edit its spec, or try it again \
             with `{with}`",
            failure.message
        ),
        (None, Some(failure)) => format!(
            "{service} is to run revision {to}, as `keel rollout undo` asked, and that failed: {}; edit its spec, or return \
             with `keel rollout undo {service} --to-revision {from}`",
            failure.message
        ),
        (None, None) => format!(
            "{service} runs revision {to}, as `keel rollout undo` asked, and not what is declared; edit its spec, or return \
             with `keel rollout undo {service} --to-revision {from}`"
        ),
    }
}

/// Name, template and attempt: enough to tell any two instances apart.
pub(super) fn long(id: &InstanceId) -> String {
    format!("{id} ({}, attempt {})", id.revision.short(), id.attempt)
}

/// So many replicas.
pub(crate) fn replicas(count: u32) -> String {
    format!("{count} {}", if count == 1 { "replica" } else { "replicas" })
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}
