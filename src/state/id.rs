//! Identities: owner, service and instance names, and their encoding as labels, both ways.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{RunId, StopPolicy};
use crate::spec::Revision;

/// Label keys that carry an instance's identity on runtimes with labels.
pub mod labels {
    /// Random id of the installation that made it.
    pub const OWNER: &str = "dev.evenkeel.owner";
    /// Deployment.
    pub const DEPLOYMENT: &str = "dev.evenkeel.deployment";
    /// Service.
    pub const SERVICE: &str = "dev.evenkeel.service";
    /// Slot.
    pub const SLOT: &str = "dev.evenkeel.slot";
    /// Revision.
    pub const REVISION: &str = "dev.evenkeel.revision";
    /// Attempt.
    pub const ATTEMPT: &str = "dev.evenkeel.attempt";
    /// Run of a job; absent on instances that are not meant to end.
    pub const RUN: &str = "dev.evenkeel.run";
    /// Restarts after an exit, counted over the slot's life.
    pub const RESTARTS: &str = "dev.evenkeel.restarts";
    /// Restarts in a row without a stable run between them.
    pub const STREAK: &str = "dev.evenkeel.streak";
    /// Signal that asks it to end.
    pub const STOP_SIGNAL: &str = "dev.evenkeel.stop-signal";
    /// Time between that signal and the kill.
    pub const STOP_GRACE: &str = "dev.evenkeel.stop-grace";
}

/// What the name of a service ends in for instances that run commands before its own start. Names of services are DNS labels
/// and hold no dot.
const HELPER: &str = ".init";

/// Random id of one installation's state directory; stamped on everything that it creates.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Owner(pub String);

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.0)
    }
}

/// A service of a deployment; prints `DEPLOYMENT/SERVICE`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceName {
    /// Deployment.
    pub deployment: String,
    /// Service.
    pub service: String,
}

impl std::fmt::Display for ServiceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.deployment, self.service)
    }
}

/// What a user may name on the command line: `DEPLOYMENT[/SERVICE[/SLOT]]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Deployment.
    pub deployment: String,
    /// Service; all of them when absent.
    pub service: Option<String>,
    /// Slot; all of them when absent.
    pub slot: Option<u32>,
}

impl Target {
    /// Whether the target names this instance.
    pub fn covers(&self, id: &InstanceId) -> bool {
        self.deployment == id.deployment
            && self.service.as_ref().is_none_or(|service| *service == id.service)
            && self.slot.is_none_or(|slot| slot == id.slot)
    }
}

impl FromStr for Target {
    type Err = BadIdentity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || {
            BadIdentity(format!(
                "{text:?} is not a name; write DEPLOYMENT, DEPLOYMENT/SERVICE or DEPLOYMENT/SERVICE/SLOT"
            ))
        };
        let mut parts = text.split('/');
        let deployment = parts.next().filter(|part| !part.is_empty()).ok_or_else(bad)?.to_owned();
        let service = parts.next().map(str::to_owned);
        if service.as_deref() == Some("") {
            return Err(bad());
        }
        let slot = parts.next().map(|part| part.parse().map_err(|_| bad())).transpose()?;
        if parts.next().is_some() {
            return Err(bad());
        }
        Ok(Self { deployment, service, slot })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.deployment)?;
        if let Some(service) = &self.service {
            write!(f, "/{service}")?;
        }
        if let Some(slot) = self.slot {
            write!(f, "/{slot}")?;
        }
        Ok(())
    }
}

/// Identity of one instance; everything that makes two instances different ones.
///
/// A replacement keeps the slot of what it replaces and differs in revision or attempt, so that a service of
/// three replicas always ends with the slots 0, 1 and 2.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InstanceId {
    /// Deployment.
    pub deployment: String,
    /// Service.
    pub service: String,
    /// Stable ordinal of the replica inside its service, from 0.
    pub slot: u32,
    /// Template that it was made from.
    pub revision: Revision,
    /// Counts the instances of one slot and revision, from 0; a restart makes the next one.
    pub attempt: u32,
    /// Run of a job that it belongs to; absent where it is not meant to end. The slot is the index of its completion then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
}

impl InstanceId {
    /// The name that users see and type: `DEPLOYMENT/SERVICE/SLOT`.
    pub fn name(&self) -> String {
        format!("{}/{}/{}", self.deployment, self.service, self.slot)
    }

    /// The identity of what runs a command before this instance starts (`init.run`); another one for each number. No
    /// service has such a name, so it is never taken for a replica.
    #[must_use]
    pub fn helper(&self, number: u32) -> Self {
        Self { service: format!("{}{HELPER}", self.service), attempt: number, ..self.clone() }
    }

    /// Whether it runs commands before an instance of that slot and revision starts.
    pub fn helps(&self, other: &Self) -> bool {
        *self == other.helper(self.attempt)
    }

    /// Whether it is what [`InstanceId::helper`] makes of another one.
    pub fn is_helper(&self) -> bool {
        self.service.ends_with(HELPER)
    }

    /// The service that it belongs to.
    pub fn service_name(&self) -> ServiceName {
        ServiceName { deployment: self.deployment.clone(), service: self.service.clone() }
    }

    /// The name that the runtime knows it by: `DEPLOYMENT_SERVICE_SLOT_REVISION_ATTEMPT`, and `_RUN` where it has one.
    /// Deployments and services are DNS labels and hold no underscore, so no two identities share a name.
    pub fn runtime_name(&self) -> String {
        let Self { deployment, service, slot, revision, attempt, run } = self;
        let run = run.map(|run| format!("_{run}")).unwrap_or_default();
        format!("{deployment}_{service}_{slot}_{}_{attempt}{run}", revision.short())
    }

    /// Reads an identity back from a runtime name; none where it is no such name. The name holds half of the revision; the
    /// other half is filled with zeros, so that it equals no revision that is wanted.
    pub fn of_runtime_name(name: &str) -> Option<Self> {
        let mut parts = name.split('_');
        let (deployment, service) = (parts.next()?.to_owned(), parts.next()?.to_owned());
        let slot = parts.next()?.parse().ok()?;
        let revision = format!("v1-{:0<16}", parts.next()?).parse().ok()?;
        let attempt = parts.next()?.parse().ok()?;
        let run = parts.next().map(str::parse).transpose().ok()?;
        parts.next().is_none().then_some(Self { deployment, service, slot, revision, attempt, run })
    }

    /// The host name inside: `SERVICE-SLOT`, the service cut so that the whole is a DNS label.
    pub fn hostname(&self) -> String {
        let slot = self.slot.to_string();
        let room = 63 - 1 - slot.len();
        let service = self.service.strip_suffix(HELPER).unwrap_or(&self.service);
        let service = service.get(..room.min(service.len())).unwrap_or(service);
        format!("{}-{slot}", service.trim_end_matches('-'))
    }

    /// The identity labels, without those of other tools.
    pub fn to_labels(&self, owner: &Owner, restarts: u32, streak: u32, stop: StopPolicy) -> BTreeMap<String, String> {
        let run = self.run.map(|run| (labels::RUN.to_owned(), run.to_string()));
        let labels = [
            (labels::OWNER.to_owned(), owner.0.clone()),
            (labels::DEPLOYMENT.to_owned(), self.deployment.clone()),
            (labels::SERVICE.to_owned(), self.service.clone()),
            (labels::SLOT.to_owned(), self.slot.to_string()),
            (labels::REVISION.to_owned(), self.revision.to_string()),
            (labels::ATTEMPT.to_owned(), self.attempt.to_string()),
            (labels::RESTARTS.to_owned(), restarts.to_string()),
            (labels::STREAK.to_owned(), streak.to_string()),
            (labels::STOP_SIGNAL.to_owned(), stop.signal.to_string()),
            (labels::STOP_GRACE.to_owned(), stop.grace.to_string()),
        ];
        labels.into_iter().chain(run).collect()
    }

    /// Reads the identity back from labels.
    ///
    /// # Errors
    /// A label is missing or is not what [`InstanceId::to_labels`] writes.
    pub fn from_labels<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Self, BadIdentity> {
        let text = |key: &str| get(key).ok_or_else(|| BadIdentity(format!("the label {key} is missing")));
        let number =
            |key: &str| text(key)?.parse::<u32>().map_err(|_| BadIdentity(format!("the label {key} is not a number")));
        Ok(Self {
            deployment: text(labels::DEPLOYMENT)?.to_owned(),
            service: text(labels::SERVICE)?.to_owned(),
            slot: number(labels::SLOT)?,
            revision: text(labels::REVISION)?.parse().map_err(|error| BadIdentity(format!("{error}")))?,
            attempt: number(labels::ATTEMPT)?,
            run: get(labels::RUN).map(str::parse).transpose()?,
        })
    }
}

impl std::fmt::Display for InstanceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.name())
    }
}

/// A name or a set of labels is no identity; the text says why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadIdentity(pub String);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::RunId;

    #[test]
    fn an_identity_is_read_back_from_its_name() {
        let id = InstanceId::of_runtime_name("demo_web_2_0123abcd_4").unwrap();
        assert_eq!((id.deployment.as_str(), id.service.as_str(), id.slot, id.attempt), ("demo", "web", 2, 4));
        assert_eq!((id.runtime_name().as_str(), id.run), ("demo_web_2_0123abcd_4", None));
        let id = InstanceId::of_runtime_name("demo_job_2_0123abcd_4_1767225600000").unwrap();
        assert!(id.run.is_some_and(RunId::is_scheduled));
        assert_eq!(id.runtime_name(), "demo_job_2_0123abcd_4_1767225600000");
    }

    #[test]
    fn another_name_is_no_identity() {
        for name in [
            "",
            "demo",
            "demo_web_x_0123abcd_4",
            "demo_web_2_0123abcd_4_x",
            "demo_web_2_0123abcd_4_5_6",
            "demo_web_2_nothex!!_4",
        ] {
            assert_eq!(InstanceId::of_runtime_name(name), None, "{name}");
        }
    }
}
