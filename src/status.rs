//! What users are shown: views of deployments, services and instances, computed from desired state, observed state
//! and plan; never kept by hand.

mod compute;
mod conditions;
mod facts;
mod jobs;
mod lives;
mod message;
mod pools;
mod view;
mod waits;

pub use compute::{DeploymentStatus, views};
pub use conditions::IMAGE_ASKED;
pub use facts::{Facts, PoolFacts};
pub use jobs::{ActiveRunView, FailedInstance, JobKind, JobView, RunView};
pub use lives::LifeState;
pub use pools::PoolView;
pub use view::{
    AwaitedView, DeploymentState, DeploymentView, ExitView, HoldView, InstanceView, ProblemView, ResetView,
    RuntimeView, ServiceView, Status, UndoneView, UnwatchedView,
};
