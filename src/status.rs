//! What users are shown: views of deployments, services and instances, computed from desired state, observed state
//! and plan; never kept by hand.

mod view;

pub use view::{
    DeploymentState, DeploymentView, ExitView, HoldView, InstanceView, ProblemView, RuntimeView, ServiceView, Status,
};
