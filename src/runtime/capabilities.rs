//! What a runtime can enforce on this machine.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::spec::Control;

/// What a runtime can enforce on this machine, control by control. A control that is missing is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// What the runtime calls itself, with its version.
    pub version: String,
    /// Support by control.
    pub controls: BTreeMap<Control, Support>,
    /// By what a control is enforced, where the runtime tells.
    #[serde(default)]
    pub by: BTreeMap<Control, String>,
}

impl Capabilities {
    /// Support of one control.
    pub fn support(&self, control: Control) -> Support {
        self.controls
            .get(&control)
            .cloned()
            .unwrap_or(Support::Absent { why: "this runtime does not have it".to_owned() })
    }
}

/// Whether a control is enforced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "support", rename_all = "snake_case")]
pub enum Support {
    /// It is enforced.
    Enforced,
    /// It is enforced in part.
    Degraded {
        /// What is missing, and why.
        why: String,
    },
    /// It is not enforced.
    Absent {
        /// Why.
        why: String,
    },
}
