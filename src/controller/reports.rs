//! What the runtimes can enforce, for whoever asks.

use serde::{Deserialize, Serialize};

use super::EngineError;
use super::engine::Engine;
use super::message::Command;
use crate::runtime::{Capabilities, Support};
use crate::spec::{Control, RuntimeKind};

/// What one runtime can enforce on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeReport {
    /// Which.
    pub runtime: RuntimeKind,
    /// Why it does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreachable: Option<String>,
    /// What it calls itself, with its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Every control, as far as it is enforced.
    pub controls: Vec<ControlReport>,
}

/// How far one control is enforced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlReport {
    /// Which, as `sandbox.require` names it.
    pub control: Control,
    /// How far, and what is missing.
    #[serde(flatten)]
    pub support: Support,
    /// By what it is enforced, where the runtime tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

impl RuntimeReport {
    fn new(runtime: RuntimeKind, answer: Result<Capabilities, String>) -> Self {
        let (unreachable, capabilities) = match answer {
            Ok(capabilities) => (None, Some(capabilities)),
            Err(why) => (Some(why), None),
        };
        let version = capabilities.as_ref().map(|one| one.version.clone());
        let Capabilities { controls, mut by, .. } = capabilities.unwrap_or_default();
        let report = |(control, support)| ControlReport { control, support, by: by.remove(&control) };
        let controls = controls.into_iter().map(report).collect();
        Self { runtime, unreachable, version, controls }
    }
}

impl Engine {
    /// What each runtime can enforce on this machine, or why it does not answer.
    ///
    /// # Errors
    /// `Ended` while the engine is shutting down.
    pub async fn runtimes(&self) -> Result<Vec<RuntimeReport>, EngineError> {
        let kinds: &[RuntimeKind] = match self.inner.default_runtime {
            RuntimeKind::Sim => &[RuntimeKind::Sim],
            _ => &[RuntimeKind::Sandbox, RuntimeKind::Docker],
        };
        let status = self.status();
        let mut reports = Vec::new();
        for kind in kinds.iter().copied() {
            let known = status.runtimes.iter().find(|one| one.runtime == kind);
            let unreachable = known.and_then(|one| one.unreachable.clone());
            let answer = match (unreachable, self.ask(|reply| Command::Runtime(kind, reply)).await?) {
                (None, Some(runtime)) => runtime.capabilities().await.map_err(|error| error.message),
                (Some(why), _) => Err(why),
                (None, None) => Err("nothing answers".to_owned()),
            };
            reports.push(RuntimeReport::new(kind, answer));
        }
        Ok(reports)
    }
}
