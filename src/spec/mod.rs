//! What a user may write: types, defaults, quantities, validation with positions, template hash.
//!
//! Nothing in here touches files, clocks or runtimes: text goes in, a [`Document`] or a list of positioned
//! errors comes out. Every optional field is an `Option` (or an empty collection) so that a value remembers
//! what was *written*; the default that applies when nothing was written is an accessor next to the field.

mod capability;
mod check;
mod control;
mod corrected;
mod deployment;
mod document;
mod duration;
mod extras;
mod file_mode;
mod files;
mod health;
mod image;
mod init;
mod left_out;
mod lifecycle;
mod merge;
mod network_access;
mod parse;
mod problem;
mod published;
mod quantity;
mod resources;
mod revision;
mod rollout;
mod runtime_kind;
mod scalar;
mod scale;
mod schema;
mod service;
mod signal;
mod stand_in;
mod storage;
mod structure;
mod suggest;
mod template;
mod text;
mod tree;
mod unsupported;
mod wording;

pub use capability::{are_all_capabilities, bare_capability, has_all_capabilities};
pub use control::Control;
pub use corrected::{CorrectedField, corrected, corrections, shared_storage};
pub use deployment::{DeploymentSpec, Prune};
pub use document::{BrokenDocument, DeclaredDeployment, DeclaredService, Document, DocumentKind, ParsedFile};
pub use duration::HumanDuration;
pub use extras::{
    Api, Destination, Endpoint, EndpointProtocol, Expose, External, InitStep, LogsConfig, OnFailure, PortMapping,
    PortProtocol, Stream, Ulimit,
};
pub use file_mode::FileMode;
pub use files::{is_ignored, is_spec_file};
pub use health::{Check, Depends, DependsCondition, Health, Init, OnInitFailure};
pub use image::{Image, ImageRef, PullPolicy};
pub use init::InitAction;
pub use left_out::{GIVES_ALL, is_root, left_out};
pub use lifecycle::{CrashAction, Errors, Lifecycle, OnExpiry, OnIdle, RestartKind, RestartPolicy};
pub use merge::{Conflict, Merged, MergedDeployment, MergedService, merge, problems};
pub use network_access::NetworkAccess;
#[cfg(test)]
pub(crate) use parse::counted::parses_during;
pub use parse::{MAX_FILE_SIZE, parse, parse_bytes};
pub use problem::{MAX_PROBLEMS, Position, Problem};
pub use published::{
    Arch, Distributed, EndpointTunnel, Join, JoinMode, JoinScope, Network, NodeMode, NodeSelector, Os, Overlay,
    Overlays, Platform, ServiceType, StorageTier, StreamCheck, Tunnel, TunnelAccess, Wasm, WasmCapabilities,
    WasmPreopen,
};
pub use quantity::{Bytes, CountOrPercent, Cpu, RefillRate};
pub use resources::{Gpu, Resources};
pub use revision::{BadRevision, Revision};
pub use rollout::{MOST_HISTORY, OnRolloutFailure, Rollout, Strategy, UNCHECKED_RUN};
pub use runtime_kind::RuntimeKind;
pub use scale::{Job, MAX_JOB_HISTORY, MAX_REPLICAS, Overlap, Pool, Scale, ScaleTargets, Session};
pub use schema::{deployment_schema, service_schema};
pub use service::{
    Command, DEFAULT_STOP_GRACE, Device, NetworkMode, RType, Sandbox, SandboxNetwork, Scalar, SeccompProfile,
    ServiceSpec,
};
pub use signal::Signal;
pub use storage::Storage;
pub use tree::{MAX_DEPTH, MAX_NODES};
pub use unsupported::{SHARED_NETWORK, UnsupportedField, uncounted_requests, unsupported};
