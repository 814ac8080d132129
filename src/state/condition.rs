//! Conditions: what is true of an object beyond its numbers.

use serde::{Deserialize, Serialize};

/// One thing that is, or is not, true of a deployment, service or instance (Kubernetes' condition).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// What it speaks of, in one word: `Available`, `UnsupportedField`, `Degraded`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, in one CamelCase word.
    pub reason: String,
    /// Why, in a sentence that says what to do.
    pub message: String,
}

/// Reason of the condition of an instance that somebody else changed.
const CHANGED_BY_OTHERS: &str = "ChangedByOthers";

impl Condition {
    /// Somebody else changed an instance; `what` says what is otherwise than it was created with.
    pub fn changed_by_others(what: impl Into<String>) -> Self {
        Self::holds("Drifted", CHANGED_BY_OTHERS, what)
    }

    /// What somebody else changed, where the condition says so.
    pub fn is_changed_by_others(&self) -> Option<&str> {
        (self.reason == CHANGED_BY_OTHERS).then_some(self.message.as_str())
    }

    /// A condition that holds.
    pub fn holds(kind: &str, reason: &str, message: impl Into<String>) -> Self {
        Self::new(kind, ConditionStatus::True, reason, message)
    }

    /// A condition that does not hold.
    pub fn fails(kind: &str, reason: &str, message: impl Into<String>) -> Self {
        Self::new(kind, ConditionStatus::False, reason, message)
    }

    fn new(kind: &str, status: ConditionStatus, reason: &str, message: impl Into<String>) -> Self {
        Self { kind: kind.to_owned(), status, reason: reason.to_owned(), message: message.into() }
    }
}

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// Not known, for example because the runtime does not answer.
    Unknown,
}
