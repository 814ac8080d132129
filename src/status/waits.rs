//! What a wait is about.

use crate::plan::Wait;

/// The service that a wait is about, where it is about one.
pub(super) fn service_of(wait: &Wait) -> Option<&str> {
    match wait {
        Wait::Draining { service } | Wait::NotRun { service, .. } => Some(service),
        wait => wait.instance().map(|id| id.service.as_str()),
    }
}

/// Whether nothing will change for what the wait is about until somebody does something.
pub(super) const fn is_final(wait: &Wait) -> bool {
    matches!(
        wait,
        Wait::Refused { .. }
            | Wait::Isolated { .. }
            | Wait::ShutDown { .. }
            | Wait::GaveUp { .. }
            | Wait::NotRun { .. }
            | Wait::Ended { .. }
            | Wait::Idle { .. }
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
    /// Fails and is tried again by itself.
    Trying,
    /// Not known.
    Blind,
    /// Stays so until somebody does something.
    Final,
}

/// How much the wait matters.
pub(super) const fn severity(wait: &Wait) -> Severity {
    match wait {
        Wait::Ended { .. } | Wait::Idle { .. } | Wait::Terminated { .. } | Wait::Kept => Severity::Fine,
        Wait::InFlight { .. }
        | Wait::Paused { .. }
        | Wait::NotReady { .. }
        | Wait::Draining { .. }
        | Wait::OrphanSettling { .. } => Severity::Moving,
        Wait::BackOff { .. } | Wait::Retry { .. } | Wait::Unknown { .. } => Severity::Trying,
        Wait::RuntimeUnreachable { .. } => Severity::Blind,
        Wait::Refused { .. }
        | Wait::Isolated { .. }
        | Wait::ShutDown { .. }
        | Wait::GaveUp { .. }
        | Wait::NotRun { .. } => Severity::Final,
    }
}
