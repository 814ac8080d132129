//! All that is known of what a name covers, for people who look into it.

use std::time::Duration;

use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};

use super::EngineError;
use super::apply::blocking;
use super::engine::Engine;
use super::open::local;
use crate::runtime::Enforcement;
use crate::state::{Instance, Target};
use crate::status::{DeploymentView, InstanceView, ServiceView, Status};
use crate::store::Event;

/// Most events that are told: what fits on a screen.
const RECENT: usize = 20;
/// Most events of a deployment that are looked through for those of one service or instance.
const LOOKED_THROUGH: usize = 1000;
/// Longest wait for the controls of one instance: an engine answers within milliseconds, and what else there is to tell
/// must not wait for one that hangs.
const CONTROLS_DEADLINE: Duration = Duration::from_secs(5);
/// Instances whose controls are asked for at a time: as many calls as the docker adapter makes side by side.
const SIDE_BY_SIDE: usize = 16;

/// All that is known of what a name covers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// The deployment that it is or belongs to.
    pub deployment: DeploymentView,
    /// Its services.
    pub services: Vec<ServiceView>,
    /// Its instances.
    pub instances: Vec<InstanceDescription>,
    /// The newest events about it, oldest first.
    pub events: Vec<Event>,
}

/// One instance, and its controls.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceDescription {
    /// As it is shown everywhere.
    #[serde(flatten)]
    pub view: InstanceView,
    /// What it asks for and gets; empty while its runtime does not know it yet.
    pub controls: Vec<Enforcement>,
    /// Why its controls are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controls_unknown: Option<String>,
}

impl Engine {
    /// Describes what a target covers.
    ///
    /// # Errors
    /// `NotFound` when it covers nothing that is declared or exists.
    pub async fn describe(&self, target: &Target) -> Result<Description, EngineError> {
        let status = self.status();
        let deployment = look_up(&status, target)?.clone();
        let services = status.services.iter().filter(|view| covers_service(target, view));
        let services: Vec<ServiceView> = services.cloned().collect();
        let views = status.instances.iter().filter(|view| covers_instance(target, view)).cloned();
        let views: Vec<InstanceView> = views.collect();
        let known = self.instances(target).await?;
        let instances: Vec<InstanceDescription> = stream::iter(views.into_iter().map(|view| {
            let of_view = |one: &&Instance| one.runtime == view.runtime && one.runtime_id == view.runtime_id;
            let instance = known.iter().find(of_view).cloned();
            self.clone().describe_instance(instance, view)
        }))
        .buffered(SIDE_BY_SIDE)
        .collect()
        .await;
        Ok(Description { deployment, services, instances, events: self.recent_events(target).await? })
    }

    async fn describe_instance(self, instance: Option<Instance>, view: InstanceView) -> InstanceDescription {
        let controls = match instance {
            Some(instance) => tokio::time::timeout(CONTROLS_DEADLINE, self.controls_of(&instance)).await,
            None => Ok(Ok(Vec::new())),
        };
        let (controls, controls_unknown) = match controls {
            Ok(Ok(controls)) => (controls, None),
            Ok(Err(why)) => (Vec::new(), Some(why)),
            Err(_) => (Vec::new(), Some(format!("{} does not answer", view.runtime))),
        };
        InstanceDescription { view, controls, controls_unknown }
    }

    async fn controls_of(&self, instance: &Instance) -> Result<Vec<Enforcement>, String> {
        let runtime = self.runtime(instance.runtime).await.map_err(|error| error.to_string())?;
        runtime.enforcement(&instance.as_ref()).await.map_err(|error| error.to_string())
    }

    async fn recent_events(&self, target: &Target) -> Result<Vec<Event>, EngineError> {
        let (store, target) = (self.inner.store.clone(), target.clone());
        let read = move || {
            let looked_through = if target.service.is_some() { LOOKED_THROUGH } else { RECENT };
            let mut events = store.events_of(&target.deployment, looked_through)?;
            events.retain(|event| target.service.is_none() || is_about(&event.message, &target));
            events.drain(..events.len().saturating_sub(RECENT));
            Ok::<_, crate::store::StoreError>(events)
        };
        blocking(move || read().map_err(local("the events can't be read"))).await
    }
}

/// The deployment that a target is or belongs to.
///
/// # Errors
/// `NotFound` when the target covers nothing that is declared or exists.
pub(super) fn look_up<'a>(status: &'a Status, target: &Target) -> Result<&'a DeploymentView, EngineError> {
    let instance = || status.instances.iter().any(|view| covers_instance(target, view));
    let service = || status.services.iter().any(|view| covers_service(target, view));
    let exists = match (&target.service, target.slot) {
        (None, _) => true,
        (Some(_), None) => service() || instance(),
        // One of a slot that is wanted may not come up: that is when somebody looks into it.
        (Some(_), Some(slot)) => {
            let wanted = |view: &ServiceView| covers_service(target, view) && slot < view.desired;
            instance() || status.services.iter().any(wanted)
        }
    };
    let deployment = status.deployments.iter().find(|view| view.deployment == target.deployment && exists);
    deployment.ok_or_else(|| EngineError::NotFound(format!("{target} is not declared and does not exist")))
}

fn covers_service(target: &Target, view: &ServiceView) -> bool {
    target.deployment == view.deployment && target.service.as_ref().is_none_or(|service| *service == view.service)
}

fn covers_instance(target: &Target, view: &InstanceView) -> bool {
    target.deployment == view.deployment
        && target.service.as_ref().is_none_or(|service| *service == view.service)
        && target.slot.is_none_or(|slot| slot == view.slot)
}

/// Whether a message names the target or a part of it.
fn is_about(message: &str, target: &Target) -> bool {
    let name = target.to_string();
    let words = message.split(|letter: char| !letter.is_ascii_alphanumeric() && !matches!(letter, '/' | '-'));
    words.filter_map(|word| word.strip_prefix(name.as_str())).any(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_about_what_its_message_names() {
        let about = |message: &str, name: &str| is_about(message, &name.parse().unwrap());
        for (message, name, expected) in [
            ("start demo/web/0 (created)", "demo/web/0", true),
            ("start demo/web/0: it failed", "demo/web", true),
            ("remove demo/web/10, surplus", "demo/web/1", false),
            ("start demo/web-2/0", "demo/web", false),
            ("start other/demo/web", "demo/web", false),
            ("demo/web", "demo/web", true),
        ] {
            assert_eq!(about(message, name), expected, "{message} about {name}");
        }
    }
}
