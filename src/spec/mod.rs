//! What a user may write: types, defaults, quantities, validation with positions, template hash.
//!
//! Nothing in here touches files, clocks or runtimes: text goes in, a [`Document`] or a list of positioned
//! errors comes out. Every optional field is an `Option` (or an empty collection) so that a value remembers
//! what was *written*; the default that applies when nothing was written is an accessor next to the field.

mod deployment;
mod duration;
mod extras;
mod health;
mod image;
mod lifecycle;
mod quantity;
mod resources;
mod revision;
mod rollout;
mod runtime_kind;
mod scale;
mod service;
mod signal;
mod storage;

pub use deployment::{DeploymentSpec, Prune, ServiceDocument};
pub use duration::HumanDuration;
pub use extras::{
    Api, Destination, Endpoint, EndpointProtocol, Expose, External, InitStep, LogsConfig, Network, OnFailure,
    PortMapping, PortProtocol, Stream, Ulimit,
};
pub use health::{Check, Depends, DependsCondition, Health, Init, OnInitFailure};
pub use image::{Image, ImageRef, PullPolicy};
pub use lifecycle::{CrashAction, Errors, Lifecycle, OnExpiry, OnIdle, RestartKind, RestartPolicy};
pub use quantity::{Bytes, CountOrPercent, Cpu};
pub use resources::{Gpu, Resources};
pub use revision::{BadRevision, Revision};
pub use rollout::{OnRolloutFailure, Rollout, Strategy};
pub use runtime_kind::RuntimeKind;
pub use scale::{Job, Overlap, Pool, Scale, ScaleTargets, Session};
pub use service::{Command, Device, NetworkMode, RType, Sandbox, SandboxNetwork, Scalar, SeccompProfile, ServiceSpec};
pub use signal::Signal;
pub use storage::Storage;
