//! What a wait is about.

use crate::plan::Wait;
use crate::state::InstanceId;

/// The instance that a wait is about, where it is about one.
pub(super) const fn instance_of(wait: &Wait) -> Option<&InstanceId> {
    match wait {
        Wait::InFlight { id }
        | Wait::BackOff { id, .. }
        | Wait::Retry { id, .. }
        | Wait::Refused { id, .. }
        | Wait::NotReady { id, .. }
        | Wait::Isolated { id, .. }
        | Wait::ShutDown { id, .. }
        | Wait::Ended { id, .. }
        | Wait::GaveUp { id, .. }
        | Wait::Idle { id }
        | Wait::Terminated { id }
        | Wait::OrphanSettling { id, .. }
        | Wait::Unknown { id, .. } => Some(id),
        Wait::Draining { .. } | Wait::Kept | Wait::RuntimeUnreachable { .. } | Wait::NotRun { .. } => None,
    }
}

/// The service that a wait is about, where it is about one.
pub(super) fn service_of(wait: &Wait) -> Option<&str> {
    match wait {
        Wait::Draining { service } | Wait::NotRun { service, .. } => Some(service),
        wait => instance_of(wait).map(|id| id.service.as_str()),
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
