//! Where instances and services stand in their lives, in one word.

use serde::{Deserialize, Serialize};

use super::Facts;
use crate::plan::{Action, Wait};
use crate::state::{EndedBy, Exit, Instance, Phase, StopCause};

/// Where an instance or a service stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LifeState {
    /// It failed, and may be tried again.
    Failed,
    /// It is being made or started.
    Starting,
    /// It is being stopped.
    Stopping,
    /// It runs.
    Running,
    /// It is frozen because it was idle; its next use lets it run on.
    Suspended,
    /// It is frozen by somebody else.
    Paused,
    /// It was stopped because it was idle; its next use starts it.
    Idle,
    /// It reached its age and stays down.
    Terminated,
    /// Somebody had it stopped.
    Stopped,
    /// It ended well.
    Completed,
    /// Nothing is known of it.
    #[default]
    Unknown,
}

impl LifeState {
    /// The name for tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Starting => "starting",
            Self::Stopping => "stopping",
            Self::Running => "running",
            Self::Suspended => "suspended",
            Self::Paused => "paused",
            Self::Idle => "idle",
            Self::Terminated => "terminated",
            Self::Stopped => "stopped",
            Self::Completed => "completed",
            Self::Unknown => "unknown",
        }
    }

    /// Whether it is down or frozen on purpose, until somebody uses it or asks for it.
    pub const fn is_rest(self) -> bool {
        matches!(self, Self::Suspended | Self::Idle | Self::Terminated | Self::Stopped)
    }
}

/// Where an instance stands.
pub(super) fn of_instance(facts: &Facts<'_>, instance: &Instance) -> LifeState {
    let waits = || facts.plan.waits.iter().filter(|wait| wait.instance() == Some(&instance.id));
    let is_stopped = || {
        facts
            .plan
            .steps()
            .any(|step| matches!(&step.action, Action::Stop { instance: one, .. } if *one == instance.as_ref()))
    };
    match &instance.phase {
        Phase::Pending | Phase::Created => LifeState::Starting,
        Phase::Running { .. } | Phase::Paused { .. } if facts.acting && is_stopped() => LifeState::Stopping,
        Phase::Running { .. } => LifeState::Running,
        Phase::Paused { .. } if waits().any(|wait| matches!(wait, Wait::IdleSuspended { .. })) => LifeState::Suspended,
        Phase::Paused { .. } => LifeState::Paused,
        Phase::Stopping => LifeState::Stopping,
        Phase::Exited(_) if waits().any(|wait| matches!(wait, Wait::Terminated { .. })) => LifeState::Terminated,
        Phase::Exited(_) if waits().any(|wait| matches!(wait, Wait::StopAsked { .. })) => LifeState::Stopped,
        Phase::Exited(exit) => of_exit(exit),
        Phase::Unknown { .. } => LifeState::Unknown,
    }
}

fn of_exit(exit: &Exit) -> LifeState {
    match exit.ended_by {
        EndedBy::Request(StopCause::Idle) => LifeState::Idle,
        EndedBy::Request(StopCause::Expired) => LifeState::Terminated,
        EndedBy::Request(StopCause::Asked) => LifeState::Stopped,
        EndedBy::Request(StopCause::Retired) => LifeState::Stopping,
        EndedBy::Itself if exit.is_success() => LifeState::Completed,
        EndedBy::Itself | EndedBy::Request(StopCause::Unhealthy | StopCause::Others) => LifeState::Failed,
    }
}

/// Where a service stands with these instances: what needs most to be known of any of them, else what is true of all.
pub(super) fn of_service(facts: &Facts<'_>, service: &str, desired: u32, instances: &[&Instance]) -> LifeState {
    use LifeState as State;
    let states: Vec<State> = instances.iter().map(|instance| of_instance(facts, instance)).collect();
    let order = [
        State::Failed,
        State::Starting,
        State::Stopping,
        State::Running,
        State::Paused,
        State::Suspended,
        State::Idle,
        State::Terminated,
        State::Stopped,
        State::Completed,
    ];
    let asked = |wait: &Wait| matches!(wait, Wait::StopAsked { id } if id.service == service);
    match order.into_iter().find(|state| states.contains(state)) {
        Some(state) => state,
        None if desired == 0 || facts.plan.waits.iter().any(asked) => State::Stopped,
        None if states.is_empty() => State::Starting,
        None => State::Unknown,
    }
}
