//! Plans as people read them: one line per step and per wait.

use std::fmt::{self, Display, Formatter};

use chrono::{DateTime, SecondsFormat, Utc};

use super::{Action, Cause, Plan, Step, Wait};
use crate::spec::HumanDuration;
use crate::state::{InstanceId, Volumes};

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
                write!(f, "have image {} for {} on {runtime}", image.name, long(id))
            }
            Self::Create { id, .. } => write!(f, "create {} on {runtime}", long(id)),
            Self::StartCreated { id, .. } => write!(f, "start {} on {runtime}", long(id)),
            Self::Start { instance } => write!(f, "start {} on {runtime}", long(&instance.id)),
            Self::Stop { instance, stop } => {
                let grace = HumanDuration(stop.grace);
                write!(f, "stop {} on {runtime} ({}, {grace} grace)", long(&instance.id), stop.signal)
            }
            Self::Remove { instance } => write!(f, "remove {} on {runtime}", long(&instance.id)),
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
            Self::RuntimeChanged { from, to } => write!(f, "runtime changed from {from} to {to}"),
            Self::ScaledDown { replicas } => write!(f, "scaled down to {}", self::replicas(*replicas)),
            Self::Exited { exit, streak } => write!(f, "{exit}, restart {streak} in a row"),
            Self::NotStarted => f.write_str("created and never started"),
            Self::Paused => f.write_str("paused, which nobody asked for"),
            Self::Expired { since } => write!(f, "reached its maximum age, started at {}", time(*since)),
            Self::Idle { since } => write!(f, "idle since {}", time(*since)),
            Self::Superseded => f.write_str("dead, and no longer needed for its output"),
            Self::Duplicate => f.write_str("another instance holds its slot"),
            Self::ServiceRemoved => f.write_str("service is not declared any more"),
            Self::DeploymentRemoved => f.write_str("deployment is not declared any more"),
            Self::Orphan { first_seen } => write!(f, "orphan, declared nowhere since {}", time(*first_seen)),
            Self::Shutdown { exit } => write!(f, "{exit}, and errors.on_panic is shutdown"),
            Self::DeleteOnExit => f.write_str("ended, and lifecycle.delete_on_exit is true"),
        }
    }
}

impl Display for Wait {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::InFlight { id } => write!(f, "wait for the step under way for {}", long(id)),
            Self::BackOff { id, exit, until } => {
                write!(f, "wait to restart {} until {}: {exit}", long(id), time(*until))
            }
            Self::Retry { id, failures, error, until } => {
                let times = if *failures == 1 { "once" } else { &format!("{failures} times in a row") };
                write!(f, "wait to try {} again until {}: failed {times}: {error}", long(id), time(*until))
            }
            Self::Refused { id, error, until, .. } => {
                write!(f, "wait for another spec of {}, or try once more at {}: {error}", long(id), time(*until))
            }
            Self::NotReady { id, until: None } => write!(f, "wait for {} to become ready", long(id)),
            Self::NotReady { id, until: Some(until) } => {
                write!(f, "wait for {} to stay ready until {}", long(id), time(*until))
            }
            Self::Draining { service } => {
                write!(f, "wait for the old instances of {service} to end: rollout.strategy is recreate")
            }
            Self::Isolated { id, exit } => {
                write!(f, "keep {} for inspection: {exit}, and errors.on_panic is isolate", long(id))
            }
            Self::ShutDown { id, exit } => {
                write!(f, "keep the service of {} down: {exit}, and errors.on_panic is shutdown", long(id))
            }
            Self::Ended { id, exit } => {
                write!(f, "keep {} down: {exit}, and restart_policy starts no other", long(id))
            }
            Self::GaveUp { id, exit } => {
                write!(f, "keep {} down: {exit}, and restart_policy.max_attempts is reached", long(id))
            }
            Self::Idle { id } => write!(f, "keep {} down until it is used: idle", long(id)),
            Self::Terminated { id } => {
                write!(f, "keep {} down: reached its maximum age, and lifecycle.on_expiry is terminate", long(id))
            }
            Self::OrphanSettling { id, until } => {
                write!(f, "wait until {} to remove {}: declared nowhere", time(*until), long(id))
            }
            Self::Kept => f.write_str("keep everything: not declared any more, and not to be pruned"),
            Self::RuntimeUnreachable { runtime, error } => write!(f, "wait for {runtime} to answer: {error}"),
            Self::Unknown { id, message } => write!(f, "wait for {} to leave an unknown phase: {message}", long(id)),
            Self::NotRun { service, why } => write!(f, "leave {service} alone: {why}"),
        }
    }
}

/// Name, template and attempt: enough to tell any two instances apart.
fn long(id: &InstanceId) -> String {
    format!("{id} ({}, attempt {})", id.revision.short(), id.attempt)
}

fn replicas(count: u32) -> String {
    format!("{count} {}", if count == 1 { "replica" } else { "replicas" })
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}
