//! What belongs to this installation and nothing declares: what it is, why, and when it is removed.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::core::State;
use super::engine::Engine;
use super::message::Command;
use super::{EngineError, Mode};
use crate::plan::{Cause, FoundRemnant, Plan, Retired, Wait, plan, sightings};
use crate::runtime::RemnantKind;
use crate::spec::RuntimeKind;
use crate::state::{Fate, Instance, Phase};

/// Something that nothing declares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrphanView {
    /// What it is.
    pub kind: OrphanKind,
    /// Its name: `DEPLOYMENT/SERVICE/SLOT`, the deployment whose instances share it, or what the machine calls it.
    pub name: String,
    /// The deployment, of an instance or a network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment: Option<String>,
    /// Runtime that has it.
    pub runtime: RuntimeKind,
    /// The runtime's own id, of an instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_id: Option<String>,
    /// Why it counts as one, or what it waits for.
    pub reason: String,
    /// When it was made or last used, where that is known.
    pub created_at: Option<DateTime<Utc>>,
    /// When it was first seen without a declaration, by this controller.
    pub first_seen: Option<DateTime<Utc>>,
    /// When it may be removed, or might have been where it is being removed; absent where it is kept.
    pub due: Option<DateTime<Utc>>,
    /// Why its removal failed the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// What an orphan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrphanKind {
    /// An instance, with its supervisor, control groups, mounts and directory.
    Instance,
    /// What the instances of a deployment share: its network.
    Network,
    /// A process that supervises an instance that is gone.
    Supervisor,
    /// A control group of an instance that is gone, with the processes in it.
    ControlGroup,
    /// A mount in the place of an instance that is gone.
    Mount,
    /// A network device that no network of a deployment needs.
    Device,
    /// A directory that holds no instance.
    Directory,
    /// An image that nothing needs.
    Image,
}

impl From<RemnantKind> for OrphanKind {
    fn from(kind: RemnantKind) -> Self {
        match kind {
            RemnantKind::Supervisor => Self::Supervisor,
            RemnantKind::ControlGroup => Self::ControlGroup,
            RemnantKind::Mount => Self::Mount,
            RemnantKind::Device => Self::Device,
            RemnantKind::Directory => Self::Directory,
            RemnantKind::Image => Self::Image,
        }
    }
}

impl OrphanView {
    pub(super) fn of_remnant(runtime: RuntimeKind, found: &FoundRemnant) -> Self {
        Self {
            kind: found.remnant.kind.into(),
            name: found.remnant.name.clone(),
            deployment: None,
            runtime,
            runtime_id: None,
            reason: found.remnant.reason.clone(),
            created_at: found.remnant.since,
            first_seen: Some(found.first_seen),
            due: Some(found.due),
            failed: found.failed.clone(),
        }
    }
}

impl State {
    /// What nothing declares, by deployment, and what nothing needs. What was deleted or pruned, and is just going, is none
    /// of it.
    pub(super) fn orphans(&self) -> Vec<OrphanView> {
        let declared = &self.declared.desired.deployments;
        let undeclared = |name: &String| !declared.contains_key(name) && !self.removing.contains_key(name);
        let names: BTreeSet<String> = self.cache.deployments().into_iter().filter(undeclared).collect();
        names.iter().flat_map(|name| self.orphans_of(name)).chain(self.remnants()).collect()
    }

    /// Orphans of other deployments than this that are being removed.
    pub(super) fn reaped_elsewhere(&self, deployment: &str) -> usize {
        let is_orphaned = |other: &str| {
            other != deployment
                && !self.declared.desired.deployments.contains_key(other)
                && !self.removing.contains_key(other)
                && self.declared.fate(other) == Fate::Orphaned
        };
        self.flights.retired(is_orphaned)
    }

    fn orphans_of(&self, deployment: &str) -> Vec<OrphanView> {
        let fate = self.declared.fate(deployment);
        if fate == Fate::Removed {
            return Vec::new();
        }
        let observed = self.observed(deployment);
        let (keys, planned) =
            self.with_input(deployment, Err(fate), &observed, |input| (sightings(input), plan(input)));
        let record = self.records.get(deployment);
        let first_seen = |key: &str| record.and_then(|record| record.history.orphans.get(key).copied());
        let why_kept = || self.declared.why_kept(deployment).unwrap_or_else(|| "kept".to_owned());
        let reason = || match fate {
            Fate::Kept => why_kept(),
            _ => "nothing that this installation remembers declares it".to_owned(),
        };
        let is_going = |one: &Instance| fate == Fate::Orphaned && one.phase == Phase::Stopping;
        let instance = |one: &Instance| OrphanView {
            kind: OrphanKind::Instance,
            name: one.id.name(),
            deployment: Some(deployment.to_owned()),
            runtime: one.runtime,
            runtime_id: Some(one.runtime_id.clone()),
            reason: reason(),
            created_at: Some(one.created_at),
            first_seen: first_seen(&one.runtime_id),
            due: due(&planned, one)
                .or_else(|| is_going(one).then(|| first_seen(&one.runtime_id).unwrap_or(one.created_at))),
            failed: record.and_then(|record| {
                record.retire_failure(&Retired::Instance { runtime: one.runtime, id: one.id.clone() })
            }),
        };
        let network = |runtime: RuntimeKind| OrphanView {
            kind: OrphanKind::Network,
            name: deployment.to_owned(),
            deployment: Some(deployment.to_owned()),
            runtime,
            runtime_id: None,
            reason: reason(),
            created_at: None,
            first_seen: keys.iter().find(|key| key.starts_with(&format!("{runtime}/"))).and_then(|key| first_seen(key)),
            due: planned.next_look.filter(|_| observed.is_empty()),
            failed: record.and_then(|record| record.retire_failure(&Retired::Shared { runtime })),
        };
        let shared = self.cache.shared(deployment);
        observed.iter().map(instance).chain(shared.into_iter().map(network)).collect()
    }
}

/// When the plan says that an instance may be removed: now where it removes it.
fn due(plan: &Plan, instance: &Instance) -> Option<DateTime<Utc>> {
    let waits = plan.waits.iter().find_map(|wait| match wait {
        Wait::OrphanSettling { id, until } if *id == instance.id => Some(*until),
        Wait::RetireFailed { retired: Retired::Instance { runtime, id }, until, .. }
            if *id == instance.id && *runtime == instance.runtime =>
        {
            Some(*until)
        }
        _ => None,
    });
    let first_seen = plan.steps().find_map(|step| match step.cause {
        Cause::Orphan { first_seen } if step.action.instance() == Some(&instance.id) => Some(first_seen),
        _ => None,
    });
    waits.or(first_seen)
}

impl Engine {
    /// What belongs to this installation and nothing declares, by deployment.
    ///
    /// # Errors
    /// `Ended` while the engine is shutting down.
    pub async fn orphans(&self) -> Result<Vec<OrphanView>, EngineError> {
        self.ask(Command::Orphans).await
    }

    /// Has what nothing declares removed, once it was seen for long enough; gives what that is. A controller does so by itself.
    ///
    /// # Errors
    /// `Conflict` where this engine carries nothing out; `Ended` while it is shutting down.
    pub async fn reap(&self) -> Result<Vec<OrphanView>, EngineError> {
        if matches!(self.inner.mode, Mode::Observe | Mode::Record) {
            return Err(EngineError::Conflict("this engine carries nothing out".to_owned()));
        }
        let orphans = self.orphans().await?;
        self.attend_to(orphans.iter().filter_map(|orphan| orphan.deployment.clone()).collect()).await?;
        self.ask(Command::ClearRemnants).await?;
        Ok(orphans)
    }
}
