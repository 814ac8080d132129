//! What one instance asks for and gets, control by control.

use serde::{Deserialize, Serialize};

use super::{Capabilities, Support};
use crate::spec::Control;

/// One control of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enforcement {
    /// Which, as `sandbox.require` names it.
    pub control: Control,
    /// What is asked for, in the words of the spec; absent where that is not known or nothing is said of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested: Option<String>,
    /// What holds.
    #[serde(flatten)]
    pub state: EnforcementState,
}

/// How far a control holds for an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum EnforcementState {
    /// It holds.
    Enforced {
        /// By what.
        by: String,
    },
    /// It holds in part.
    Degraded {
        /// By what.
        by: String,
        /// What is missing, and why.
        why: String,
    },
    /// It is to hold once the instance runs, which it never did.
    Planned {
        /// By what.
        by: String,
        /// What will be missing, and why; absent where it is nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// It is asked for, and does not hold.
    Absent {
        /// Why.
        why: String,
    },
    /// It is not asked for.
    NotRequested {
        /// What there is all the same, where that is more than nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
    },
}

impl EnforcementState {
    /// The same of an instance that never ran.
    #[must_use]
    pub fn planned(self) -> Self {
        match self {
            Self::Enforced { by } => Self::Planned { by, why: None },
            Self::Degraded { by, why } => Self::Planned { by, why: Some(why) },
            Self::Planned { .. } | Self::Absent { .. } | Self::NotRequested { .. } => self,
        }
    }
}

impl Enforcement {
    /// A control and what becomes of it.
    pub fn new(control: Control, requested: Option<String>, state: EnforcementState) -> Self {
        Self { control, requested, state }
    }

    /// Every control of an instance of which no more is known than what its runtime can do.
    pub fn by_capabilities(capabilities: &Capabilities) -> Vec<Self> {
        let state = |support: &Support| match support {
            Support::Enforced => EnforcementState::Enforced { by: capabilities.version.clone() },
            Support::Degraded { why } => {
                EnforcementState::Degraded { by: capabilities.version.clone(), why: why.clone() }
            }
            Support::Absent { why } => EnforcementState::Absent { why: why.clone() },
        };
        capabilities.controls.iter().map(|(control, support)| Self::new(*control, None, state(support))).collect()
    }
}

/// A number of bytes in the largest binary unit that gives a whole number, as specs have it: `64Mi`.
pub fn bytes(bytes: u64) -> String {
    let units = [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
    let whole = units.iter().find(|(_, bits)| bytes > 0 && bytes.is_multiple_of(1 << bits));
    whole.map_or_else(|| bytes.to_string(), |(unit, bits)| format!("{}{unit}", bytes >> bits))
}

/// Thousandths of a processor as specs have them: `1.5`.
pub fn cpus(millis: u64) -> String {
    match (millis / 1000, millis % 1000) {
        (whole, 0) => whole.to_string(),
        (whole, rest) => format!("{whole}.{}", format!("{rest:03}").trim_end_matches('0')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_as_they_are_written() {
        let told = [0, 1023, 1024, 64 << 20, 3 << 30, (64 << 20) + 1].map(bytes);
        assert_eq!(told, ["0", "1023", "1Ki", "64Mi", "3Gi", "67108865"]);
        assert_eq!([1000, 1500, 250, 1, 2010].map(cpus), ["1", "1.5", "0.25", "0.001", "2.01"]);
    }

    #[test]
    fn a_control_is_one_flat_object() {
        let state = EnforcementState::Degraded { by: "a watch".to_owned(), why: "no group".to_owned() };
        let one = Enforcement::new(Control::MemoryLimit, Some("64Mi".to_owned()), state);
        let told = serde_json::json!({
            "control": "memory_limit", "requested": "64Mi", "state": "degraded", "by": "a watch", "why": "no group",
        });
        assert_eq!(serde_json::to_value(&one).unwrap(), told);
        assert_eq!(serde_json::from_value::<Enforcement>(told).unwrap(), one);
        let one = Enforcement::new(Control::CpuLimit, None, EnforcementState::NotRequested { by: None });
        let told = serde_json::json!({ "control": "cpu_limit", "state": "not_requested" });
        assert_eq!(serde_json::to_value(&one).unwrap(), told);
        assert_eq!(serde_json::from_value::<Enforcement>(told).unwrap(), one);
    }
}
