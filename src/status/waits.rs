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
