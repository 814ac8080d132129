//! What a decision is made from, as a value of its own.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use super::{History, Input, Unreachable};
use crate::spec::RuntimeKind;
use crate::state::{DesiredDeployment, Fate, Instance, Volumes};

/// An [`Input`] that owns what it holds, so that it can be kept, sent and carried on.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// As [`Input::deployment`].
    pub deployment: String,
    /// As [`Input::desired`].
    pub desired: Result<DesiredDeployment, Fate>,
    /// As [`Input::observed`].
    pub observed: Vec<Instance>,
    /// As [`Input::shared`].
    pub shared: BTreeSet<RuntimeKind>,
    /// As [`Input::unreachable`].
    pub unreachable: BTreeMap<RuntimeKind, Unreachable>,
    /// As [`Input::history`].
    pub history: History,
    /// As [`Input::volumes`].
    pub volumes: Volumes,
    /// As [`Input::now`].
    pub now: DateTime<Utc>,
}

impl Snapshot {
    /// A copy of everything in the input.
    pub fn of(input: &Input<'_>) -> Self {
        Self {
            deployment: input.deployment.to_owned(),
            desired: input.desired.cloned(),
            observed: input.observed.to_vec(),
            shared: input.shared.clone(),
            unreachable: input.unreachable.clone(),
            history: input.history.clone(),
            volumes: input.volumes,
            now: input.now,
        }
    }

    /// The input that it is.
    pub fn input(&self) -> Input<'_> {
        Input {
            deployment: &self.deployment,
            desired: self.desired.as_ref().map_err(|fate| *fate),
            observed: &self.observed,
            shared: &self.shared,
            unreachable: &self.unreachable,
            history: &self.history,
            volumes: self.volumes,
            now: self.now,
        }
    }
}
