//! What happens after an exit: restart with back-off, or stay down and why.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::Wait;
use super::backoff::{RESTART_DELAY, RESTART_DELAY_MAX, RESTART_DELAY_MIN, STABLE_RUN, backoff};
use super::time::elapsed;
use crate::spec::{CrashAction, HumanDuration, OnExpiry, RestartKind, ServiceSpec};
use crate::state::{DesiredService, EndedBy, Exit, Instance, StopCause};

/// How long what somebody else stopped is left to them: whoever restarts it starts it at once.
pub(super) const OTHERS_MOMENT: Duration = Duration::from_secs(1);

/// What an exit leads to.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum AfterExit {
    /// A new attempt, which counts as a restart.
    Restart {
        /// How long after the exit it is due.
        pause: Duration,
        /// Restarts in a row, the new one included.
        streak: u32,
    },
    /// A new attempt at once, which does not count as a restart: the exit was asked for, and what asked for it
    /// does not hold any more, or had no say.
    Replace,
    /// It is down on purpose; nobody misses it.
    AtRest(Wait),
    /// It is down because it failed; it is missed.
    Failed(Wait),
    /// It is down and takes the whole service with it.
    ShutDown,
}

/// Decides what the end of the newest instance of a slot leads to.
///
/// Restarts in a row count from the last stable run: an instance that ran for [`STABLE_RUN`] ends the series. The
/// first restart of a series is immediate, the second waits `restart_policy.delay`, and each further one twice as
/// long, up to [`RESTART_DELAY_MAX`]. `errors.on_panic` goes before `restart_policy`; the latter decides where the
/// former says `restart`. What failed before somebody asked for another try is followed by that at once, as is what was
/// ended for failed health before its checks were declared otherwise.
pub(super) fn after_exit(instance: &Instance, exit: &Exit, desired: &DesiredService) -> AfterExit {
    match by_policy(instance, exit, &desired.spec, desired.standing.since_when_counts(exit)) {
        AfterExit::AtRest(wait) => AfterExit::AtRest(wait),
        _ if desired.standing.is_outdated(exit) => AfterExit::Replace,
        after => after,
    }
}

fn by_policy(instance: &Instance, exit: &Exit, spec: &ServiceSpec, counts_from: Option<DateTime<Utc>>) -> AfterExit {
    let id = || instance.id.clone();
    let lifecycle = spec.lifecycle.clone().unwrap_or_default();
    let terminates = lifecycle.on_expiry == Some(OnExpiry::Terminate) && lifecycle.max_lifetime.is_some();
    match exit.ended_by {
        EndedBy::Request(StopCause::Idle) if lifecycle.max_idle.is_some() => {
            return AfterExit::AtRest(Wait::Idle { id: id(), since: exit.finished_at });
        }
        EndedBy::Request(StopCause::Expired) if terminates => {
            return AfterExit::AtRest(Wait::Terminated { id: id() });
        }
        // As if it had crashed.
        EndedBy::Request(StopCause::Unhealthy) => {}
        EndedBy::Request(
            StopCause::Idle | StopCause::Expired | StopCause::Retired | StopCause::Asked | StopCause::Others,
        ) => {
            return AfterExit::Replace;
        }
        // A runtime may not remember who asked for the end; the length of the run tells as well.
        EndedBy::Itself if terminates && ran_for(exit, lifecycle.max_lifetime) => {
            return AfterExit::AtRest(Wait::Terminated { id: id() });
        }
        EndedBy::Itself => {}
    }

    let on_crash = spec.errors.clone().unwrap_or_default().on_crash();
    match on_crash {
        CrashAction::Shutdown if !exit.is_success() => return AfterExit::ShutDown,
        CrashAction::Isolate if !exit.is_success() => {
            return AfterExit::Failed(Wait::Isolated { id: id(), exit: exit.clone() });
        }
        CrashAction::Restart | CrashAction::Shutdown | CrashAction::Isolate => {}
    }

    let restarts = match spec.restart_kind() {
        RestartKind::No => false,
        _ if is_final(exit, spec) => return AfterExit::Failed(Wait::Final { id: id(), exit: exit.clone() }),
        RestartKind::Always | RestartKind::UnlessStopped => true,
        RestartKind::OnFailure => !exit.is_success(),
    };
    if !restarts {
        let wait = Wait::Ended { id: id(), exit: exit.clone() };
        return if exit.is_success() { AfterExit::AtRest(wait) } else { AfterExit::Failed(wait) };
    }
    restart(instance, exit, spec, counts_from)
}

/// Whether an instance that is unhealthy is ended: not where a crash would have no answer, since it may recover as it is.
pub(super) fn ends_unhealthy(spec: &ServiceSpec) -> bool {
    let on_crash = spec.errors.clone().unwrap_or_default().on_crash();
    on_crash != CrashAction::Restart || spec.restart_kind() != RestartKind::No
}

/// Whether its exit code says that another try is in vain (`restart_policy.final_exit_codes`).
pub(super) fn is_final(exit: &Exit, spec: &ServiceSpec) -> bool {
    exit.ended_by == EndedBy::Itself && spec.restart_policy.as_ref().is_some_and(|policy| policy.ends_with(exit.code))
}

fn restart(instance: &Instance, exit: &Exit, spec: &ServiceSpec, counts_from: Option<DateTime<Utc>>) -> AfterExit {
    let policy = spec.restart_policy.as_ref();
    let begins = is_stable(instance, exit) || counts_from.is_some_and(|at| instance.created_at <= at);
    let so_far = if begins { 0 } else { instance.streak };
    if policy.and_then(|policy| policy.max_attempts).is_some_and(|max| so_far >= max) {
        return AfterExit::Failed(Wait::GaveUp { id: instance.id.clone(), exit: exit.clone() });
    }
    let first = restart_delay(spec);
    let pause = backoff(first, RESTART_DELAY_MAX.max(first), so_far, &instance.id.runtime_name());
    AfterExit::Restart { pause, streak: so_far.saturating_add(1) }
}

/// Wait before the second restart in a row, at least [`RESTART_DELAY_MIN`].
pub(super) fn restart_delay(spec: &ServiceSpec) -> Duration {
    let written = spec.restart_policy.as_ref().and_then(|policy| policy.delay);
    written.map_or(RESTART_DELAY, HumanDuration::get).max(RESTART_DELAY_MIN)
}

/// Whether the run lasted for [`STABLE_RUN`], without the time for which it was frozen.
fn is_stable(instance: &Instance, exit: &Exit) -> bool {
    instance.runs_since().is_some_and(|since| elapsed(since, exit.finished_at) >= STABLE_RUN)
}

/// Whether the run lasted at least that long; not where its start is unknown.
fn ran_for(exit: &Exit, limit: Option<HumanDuration>) -> bool {
    match (exit.started_at, limit) {
        (Some(started), Some(limit)) => elapsed(started, exit.finished_at) >= limit.get(),
        _ => false,
    }
}
