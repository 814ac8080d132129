//! What ends an instance, and what happens then.

use serde::{Deserialize, Serialize};

use super::{HumanDuration, OnInitFailure};

/// Limits on idling and on age.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Lifecycle {
    /// No activity for this long ends the instance, and the next use starts it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_idle: Option<HumanDuration>,
    /// Age, counted from the instance's start, at which it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_lifetime: Option<HumanDuration>,
    /// What idling does; `stop` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "stop"))]
    pub on_idle: Option<OnIdle>,
    /// What reaching the age does; `recycle` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "recycle"))]
    pub on_expiry: Option<OnExpiry>,
    /// Removes an instance that ended, with its output, as soon as another one runs in its slot; otherwise the run before
    /// is kept there for `keel logs -p`. The last one stays until then: it tells how the slot ended, and that it is not
    /// just empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = false))]
    pub delete_on_exit: Option<bool>,
}

/// What idling does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnIdle {
    /// Stops the instance.
    #[default]
    Stop,
    /// Freezes it; memory stays.
    Suspend,
}

/// What reaching the maximum age does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnExpiry {
    /// Replaces the instance by a new one, as a rollout would.
    #[default]
    Recycle,
    /// Stops it until the spec changes or it is started by hand.
    Terminate,
}

/// What happens after a failed start or a crash.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Errors {
    /// After a failed init step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_init_failure: Option<Action<OnInitFailure>>,
    /// After a crash: an exit with a code other than 0, or by a signal that nobody asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_panic: Option<Action<CrashAction>>,
}

impl Errors {
    /// What a failed init step does.
    pub fn on_init_failure(&self) -> OnInitFailure {
        self.on_init_failure.as_ref().map(|failure| failure.action).unwrap_or_default()
    }

    /// What a crash does.
    pub fn on_crash(&self) -> CrashAction {
        self.on_panic.as_ref().map(|panic| panic.action).unwrap_or_default()
    }
}

/// A chosen action.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, bound(deserialize = "T: Default + Deserialize<'de>"))]
#[schemars(rename = "ActionOf{T}", bound = "T: schemars::JsonSchema + Default + Serialize")]
pub struct Action<T> {
    /// What to do.
    #[serde(default)]
    pub action: T,
}

/// What a crash does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CrashAction {
    /// A new instance, with back-off.
    #[default]
    Restart,
    /// The service goes down to no instances until its spec changes.
    Shutdown,
    /// The dead instance is kept for inspection; nothing takes its place.
    Isolate,
}

/// Whether an instance that ended is started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RestartPolicy {
    /// After which exits; `always` for a service and `on_failure` for a job when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<RestartKind>,
    /// Restarts in a row before giving up; no bound when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// First delay of the back-off, before the second restart in a row and doubled for each that follows; `10s` when nothing
    /// is written. Less than `100ms`, and so `0s`, counts as `100ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "10s"))]
    pub delay: Option<HumanDuration>,
    /// Exit codes after which none is started again, whatever `kind` says (systemd's `RestartPreventExitStatus`): a program
    /// that ends with one of them says that another try is in vain. A job fails with it at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(range(min = 1, max = 255)))]
    pub final_exit_codes: Vec<u8>,
}

impl RestartPolicy {
    /// Whether an end with this code is the last.
    pub fn ends_with(&self, code: Option<i32>) -> bool {
        code.is_some_and(|code| self.final_exit_codes.iter().any(|one| i32::from(*one) == code))
    }
}

/// After which exits an instance is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RestartKind {
    /// After none.
    No,
    /// After every one.
    Always,
    /// After every one that nobody asked for.
    UnlessStopped,
    /// After those with a code other than 0 or by a signal.
    OnFailure,
}
