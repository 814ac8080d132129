//! What running instances use.

use std::time::Duration;

use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};

use super::EngineError;
use super::describe::look_up;
use super::engine::Engine;
use crate::runtime::Usage;
use crate::spec::RuntimeKind;
use crate::state::{Instance, Phase, Target};
use crate::status::DeploymentView;

/// Longest wait for what one instance uses: an engine answers within a second, and the others must not wait for one that
/// hangs.
const DEADLINE: Duration = Duration::from_secs(5);
/// Instances that are asked for at a time: as many calls as the docker adapter makes side by side.
const SIDE_BY_SIDE: usize = 16;

/// What one running instance used since its start, and uses now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceUsage {
    /// Deployment.
    pub deployment: String,
    /// Service.
    pub service: String,
    /// Stable ordinal inside the service.
    pub slot: u32,
    /// `DEPLOYMENT/SERVICE/SLOT`; two instances share one during a rollout.
    pub name: String,
    /// Runtime.
    pub runtime: RuntimeKind,
    /// The runtime's own id.
    pub runtime_id: String,
    /// What it uses; absent where that is not known.
    #[serde(flatten)]
    pub usage: Option<Usage>,
    /// Why it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
}

impl Engine {
    /// What the running instances use that a target covers, or all, by name.
    ///
    /// # Errors
    /// `NotFound` when the target covers nothing that is declared or exists; the engine has ended.
    pub async fn usage(&self, target: Option<&Target>) -> Result<Vec<InstanceUsage>, EngineError> {
        let status = self.status();
        if let Some(target) = target {
            look_up(&status, target)?;
        }
        let whole = |view: &DeploymentView| Target { deployment: view.deployment.clone(), service: None, slot: None };
        let all = || status.deployments.iter().map(whole).collect();
        let mut running = Vec::new();
        for target in target.map_or_else(all, |target| vec![target.clone()]) {
            running.extend(self.instances(&target).await?.into_iter().filter(runs));
        }
        running.sort_by(|one, other| (&one.id, &one.runtime_id).cmp(&(&other.id, &other.runtime_id)));
        let usage = running.into_iter().map(|instance| self.clone().usage_of(instance));
        Ok(stream::iter(usage).buffered(SIDE_BY_SIDE).collect().await)
    }

    async fn usage_of(self, instance: Instance) -> InstanceUsage {
        let (usage, unknown) = match tokio::time::timeout(DEADLINE, self.measured(&instance)).await {
            Ok(Ok(usage)) => (Some(usage), None),
            Ok(Err(why)) => (None, Some(why)),
            Err(_) => (None, Some(format!("{} does not answer", instance.runtime))),
        };
        InstanceUsage {
            name: instance.id.name(),
            deployment: instance.id.deployment,
            service: instance.id.service,
            slot: instance.id.slot,
            runtime: instance.runtime,
            runtime_id: instance.runtime_id,
            usage,
            unknown,
        }
    }

    async fn measured(&self, instance: &Instance) -> Result<Usage, String> {
        let runtime = self.runtime(instance.runtime).await.map_err(|error| error.to_string())?;
        let stats = runtime.stats().ok_or_else(|| format!("{} can't tell what its instances use", instance.runtime))?;
        stats.stats(&instance.as_ref()).await.map_err(|error| error.to_string())
    }
}

const fn runs(instance: &Instance) -> bool {
    matches!(instance.phase, Phase::Running { .. } | Phase::Paused { .. } | Phase::Stopping)
}
