//! What a wait is about.

use crate::plan::Wait;
use crate::state::{DesiredService, NOBODY_CHECKS};

/// Whether a wait is about the service, or an instance or the runtime of it.
pub(super) fn is_about(wait: &Wait, service: &DesiredService) -> bool {
    match wait {
        Wait::Draining { service: name }
        | Wait::NotRun { service: name, .. }
        | Wait::ImageAsked { service: name, .. }
        | Wait::Completed { service: name, .. }
        | Wait::JobFailed { service: name, .. }
        | Wait::NextRun { service: name, .. }
        | Wait::ScheduleOver { service: name }
        | Wait::Dependents { service: name, .. } => *name == service.name,
        Wait::Dependency { dependency, .. }
        | Wait::DependencyTimeout { dependency, .. }
        | Wait::WithoutDependency { dependency, .. } => dependency.service == service.name,
        Wait::RolledBack { service: name, .. }
        | Wait::RolloutPaused { service: name, .. }
        | Wait::RolloutFailed { service: name, .. } => name.service == service.name,
        Wait::Suspended { .. } => true,
        Wait::RuntimeUnreachable { runtime, .. } | Wait::RuntimeAbsent { runtime, .. } => *runtime == service.runtime,
        wait => wait.instance().is_some_and(|id| id.service == service.name),
    }
}

/// Whether what the wait is about is down or frozen on purpose, until somebody uses it or asks for it.
pub(super) const fn is_rest(wait: &Wait) -> bool {
    matches!(wait, Wait::Idle { .. } | Wait::IdleSuspended { .. } | Wait::StopAsked { .. } | Wait::Terminated { .. })
}

/// Whether what the wait is about is down on purpose, and using it does not bring it back.
pub(super) const fn is_kept_down(wait: &Wait) -> bool {
    matches!(wait, Wait::StopAsked { .. } | Wait::Terminated { .. })
}

/// Whether nothing will change for what the wait is about until somebody does something.
pub(super) const fn is_final(wait: &Wait) -> bool {
    matches!(
        wait,
        Wait::Refused { .. }
            | Wait::Isolated { .. }
            | Wait::ShutDown { .. }
            | Wait::GaveUp { .. }
            | Wait::Final { .. }
            | Wait::RuntimeAbsent { .. }
            | Wait::NotRun { .. }
            | Wait::RolledBack { .. }
            | Wait::RolloutPaused { .. }
            | Wait::Suspended { .. }
            | Wait::DependencyTimeout { .. }
            | Wait::Completed { .. }
            | Wait::JobFailed { .. }
            | Wait::Ended { .. }
            | Wait::Idle { .. }
            | Wait::IdleSuspended { .. }
            | Wait::StopAsked { .. }
            | Wait::Terminated { .. }
    )
}

/// How much a wait matters, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Severity {
    /// As it should be.
    Fine,
    /// On its way.
    Moving,
    /// Not known, since nobody checks it; what is known to be amiss matters more.
    Unchecked,
    /// Fails and is tried again by itself.
    Trying,
    /// Has been given up once, and is tried on all the same.
    Failing,
    /// Not known.
    Blind,
    /// Stays so until somebody does something.
    Final,
    /// The same, and was decided so.
    Decided,
}

/// How much the wait matters.
pub(super) fn severity(wait: &Wait) -> Severity {
    match wait {
        // Without a controller nothing is on its way.
        Wait::NotReady { check: Some(check), .. } if check == NOBODY_CHECKS => Severity::Unchecked,
        // A crash that nobody mends is no state that anybody declared.
        Wait::Ended { exit, .. } if !exit.is_success() => Severity::Final,
        Wait::Ended { .. }
        | Wait::Idle { .. }
        | Wait::IdleSuspended { .. }
        | Wait::StopAsked { .. }
        | Wait::Terminated { .. }
        | Wait::WithoutDependency { .. }
        | Wait::CronRun { .. }
        | Wait::Completed { .. }
        | Wait::NextRun { .. }
        | Wait::ScheduleOver { .. }
        | Wait::Kept => Severity::Fine,
        Wait::InFlight { .. }
        | Wait::Paused { .. }
        | Wait::NotReady { .. }
        | Wait::Draining { .. }
        | Wait::ImageAsked { .. }
        | Wait::Dependency { .. }
        | Wait::Dependents { .. }
        | Wait::Completion { .. }
        | Wait::OrphanSettling { .. } => Severity::Moving,
        Wait::RolloutFailed { .. } => Severity::Failing,
        Wait::BackOff { .. }
        | Wait::Retry { .. }
        | Wait::RetireFailed { .. }
        | Wait::Unhealthy { .. }
        | Wait::Unknown { .. } => Severity::Trying,
        Wait::RuntimeUnreachable { .. } => Severity::Blind,
        Wait::RolledBack { .. } | Wait::RolloutPaused { .. } | Wait::Suspended { .. } => Severity::Decided,
        Wait::Refused { .. }
        | Wait::Isolated { .. }
        | Wait::ShutDown { .. }
        | Wait::GaveUp { .. }
        | Wait::Final { .. }
        | Wait::DependencyTimeout { .. }
        | Wait::RuntimeAbsent { .. }
        | Wait::JobFailed { .. }
        | Wait::NotRun { .. } => Severity::Final,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::InstanceId;

    #[test]
    fn what_nobody_checks_is_not_on_its_way() {
        let id = InstanceId {
            deployment: "demo".to_owned(),
            service: "web".to_owned(),
            slot: 0,
            revision: "v1-0123456789abcdef".parse().unwrap(),
            attempt: 0,
            run: None,
        };
        let wait =
            |check: Option<&str>| Wait::NotReady { id: id.clone(), check: check.map(str::to_owned), until: None };
        assert_eq!(severity(&wait(Some(NOBODY_CHECKS))), Severity::Unchecked);
        assert_eq!(severity(&wait(Some("connection refused"))), Severity::Moving);
        assert_eq!(severity(&wait(None)), Severity::Moving);
    }
}
