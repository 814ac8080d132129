//! Steps: one runtime call each, with exactly its inputs.

use std::sync::Arc;

use serde::Serialize;

use super::Cause;
use crate::spec::{Image, InitStep, RuntimeKind, ServiceSpec};
use crate::state::{InstanceId, InstanceRef, SlotFate, SourceRef, StopRequest, Volumes};

/// Steps that follow one another; a failed one ends the lane.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lane {
    /// In this order.
    pub steps: Vec<Step>,
}

/// One runtime call and why it is made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Step {
    /// The call.
    pub action: Action,
    /// Why.
    pub cause: Cause,
}

/// One runtime call with exactly its inputs.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// Make the image available.
    EnsureImage {
        /// On this runtime.
        runtime: RuntimeKind,
        /// The image.
        image: Image,
        /// For the instance that is created next in the lane.
        id: InstanceId,
    },
    /// Carry out a step before the start of the instance that is created or started next in the lane (`init.steps`).
    Init {
        /// On this runtime.
        runtime: RuntimeKind,
        /// For this instance.
        id: InstanceId,
        /// The step.
        step: InitStep,
        /// Spec of the instance.
        #[serde(skip)]
        spec: Arc<ServiceSpec>,
        /// Declared here.
        source: SourceRef,
    },
    /// Create an instance.
    Create {
        /// On this runtime.
        runtime: RuntimeKind,
        /// With this identity.
        id: InstanceId,
        /// Restarts so far, this one included.
        restarts: u32,
        /// Restarts in a row so far, this one included.
        streak: u32,
        /// From this spec.
        #[serde(skip)]
        spec: Arc<ServiceSpec>,
        /// Declared here.
        source: SourceRef,
    },
    /// Start the instance that was created before it in the lane.
    StartCreated {
        /// On this runtime.
        runtime: RuntimeKind,
        /// With this identity.
        id: InstanceId,
    },
    /// Start an instance that exists.
    Start {
        /// The instance.
        instance: InstanceRef,
    },
    /// Let a frozen instance run on.
    Resume {
        /// The instance.
        instance: InstanceRef,
    },
    /// Freeze a running instance.
    Suspend {
        /// The instance.
        instance: InstanceRef,
    },
    /// Stop an instance.
    Stop {
        /// The instance.
        instance: InstanceRef,
        /// How.
        stop: StopRequest,
    },
    /// Remove an instance.
    Remove {
        /// The instance.
        instance: InstanceRef,
        /// What becomes of its slot.
        #[serde(skip)]
        slot: SlotFate,
    },
    /// Remove what a deployment's instances share.
    Teardown {
        /// On this runtime.
        runtime: RuntimeKind,
        /// The deployment.
        deployment: String,
        /// What becomes of its named volumes.
        volumes: Volumes,
    },
}

impl Action {
    /// The runtime that is called.
    pub const fn runtime(&self) -> RuntimeKind {
        match self {
            Self::EnsureImage { runtime, .. }
            | Self::Init { runtime, .. }
            | Self::Create { runtime, .. }
            | Self::StartCreated { runtime, .. }
            | Self::Teardown { runtime, .. } => *runtime,
            Self::Start { instance }
            | Self::Resume { instance }
            | Self::Suspend { instance }
            | Self::Stop { instance, .. }
            | Self::Remove { instance, .. } => instance.runtime,
        }
    }

    /// The instance that is acted on; none for a deployment's shared things.
    pub const fn instance(&self) -> Option<&InstanceId> {
        match self {
            Self::EnsureImage { id, .. }
            | Self::Init { id, .. }
            | Self::Create { id, .. }
            | Self::StartCreated { id, .. } => Some(id),
            Self::Start { instance }
            | Self::Resume { instance }
            | Self::Suspend { instance }
            | Self::Stop { instance, .. }
            | Self::Remove { instance, .. } => Some(&instance.id),
            Self::Teardown { .. } => None,
        }
    }
}
