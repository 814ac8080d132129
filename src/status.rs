//! What users are shown: views of deployments, services and instances, computed from desired state, observed state
//! and plan; never kept by hand.

mod compute;
mod conditions;
mod view;
mod waits;

pub use compute::{DeploymentStatus, Facts, views};
pub use view::{
    DeploymentState, DeploymentView, ExitView, HoldView, InstanceView, ProblemView, RuntimeView, ServiceView, Status,
};
