//! What ends, freezes or removes something, and failed: when it is tried again, and that this is said.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::draft::Draft;
use super::time::due;
use super::{Action, Lane, Wait, backoff};
use crate::spec::RuntimeKind;
use crate::state::{InstanceId, InstanceRef, Phase};

/// Wait after the first failed call of this kind; doubles with each further one. The engine has just refused, so less
/// than a second would only add to its load.
pub const RETIRE_DELAY: Duration = Duration::from_secs(1);

/// Longest wait between two tries: a minute keeps an engine that is in trouble quiet and still ends soon after it has
/// recovered.
pub const RETIRE_DELAY_MAX: Duration = Duration::from_secs(60);

/// What a call is about that ends, freezes or removes something.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Retired {
    /// An instance.
    Instance {
        /// Its runtime.
        runtime: RuntimeKind,
        /// Its identity.
        id: InstanceId,
    },
    /// What the instances of a deployment share on a runtime.
    Shared {
        /// The runtime.
        runtime: RuntimeKind,
    },
}

impl Retired {
    /// What the call is about, and what it does, where it is one of these.
    pub fn of(action: &Action) -> Option<(Self, RetireCall)> {
        let one = |instance: &InstanceRef| Self::Instance { runtime: instance.runtime, id: instance.id.clone() };
        match action {
            Action::Stop { instance, .. } => Some((one(instance), RetireCall::Stop)),
            Action::Suspend { instance } => Some((one(instance), RetireCall::Suspend)),
            Action::Remove { instance, .. } => Some((one(instance), RetireCall::Remove)),
            Action::Teardown { runtime, .. } => Some((Self::Shared { runtime: *runtime }, RetireCall::Remove)),
            Action::EnsureImage { .. }
            | Action::Init { .. }
            | Action::Create { .. }
            | Action::StartCreated { .. }
            | Action::Start { .. }
            | Action::Resume { .. } => None,
        }
    }
}

/// Failed calls in a row about one of these.
#[derive(Debug, Clone, PartialEq)]
pub struct RetireFailure {
    /// How many; at least 1.
    pub count: u32,
    /// When the last one failed.
    pub at: DateTime<Utc>,
    /// What the last one was to do.
    pub call: RetireCall,
    /// What the runtime said to it.
    pub message: String,
}

/// What a call does that ends, freezes or removes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RetireCall {
    /// Stops an instance.
    Stop,
    /// Freezes an instance.
    Suspend,
    /// Removes an instance, or what instances share.
    Remove,
}

impl RetireCall {
    /// Whether the failure of one says something of the other: that a stop or a removal fails says nothing of freezing.
    pub fn is_like(self, other: Self) -> bool {
        (self == Self::Suspend) == (other == Self::Suspend)
    }

    /// As a verb.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Suspend => "suspend",
            Self::Remove => "remove",
        }
    }
}

/// Takes out of the lanes those that failed and are not due again, and says of all that fail that they do: also while
/// they are tried once more, which may take as long as an engine is given to answer.
pub(super) fn hold_back(draft: &mut Draft<'_>, lanes: &mut Vec<Lane>) {
    let input = draft.input;
    if input.history.retiring.is_empty() {
        return;
    }
    let planned = |lane: &Lane| lane.steps.first().and_then(|step| Retired::of(&step.action));
    for (retired, failure) in &input.history.retiring {
        let is_it = |lane: &Lane| planned(lane).is_some_and(|(of, call)| of == *retired && call.is_like(failure.call));
        let is_planned = lanes.iter().any(is_it);
        let is_tried = match retired {
            Retired::Instance { runtime, id } => input
                .observed
                .iter()
                .any(|one| one.phase == Phase::Stopping && one.runtime == *runtime && one.id == *id),
            Retired::Shared { runtime } => !input.shared.contains(runtime),
        };
        if !is_planned && !is_tried {
            continue;
        }
        let name = match retired {
            Retired::Instance { id, .. } => id.runtime_name(),
            Retired::Shared { runtime } => format!("{runtime} {}", input.deployment),
        };
        let pause = backoff(RETIRE_DELAY, RETIRE_DELAY_MAX, failure.count, &name);
        let until = due(failure.at, pause, input.now);
        if is_planned && until > input.now {
            lanes.retain(|lane| !is_it(lane));
            draft.look_at(until);
        }
        let RetireFailure { count: failures, call, ref message, .. } = *failure;
        let (retired, error) = (retired.clone(), message.clone());
        let deployment = input.deployment.to_owned();
        draft.wait(Wait::RetireFailed { retired, deployment, call, failures, error, until });
    }
}
