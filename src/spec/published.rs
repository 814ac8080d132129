//! Parts of the published format that describe more than one machine, or WebAssembly. They are read and
//! checked; runtimes that can honour them do, and a condition says so elsewhere.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Bytes, Expose, HumanDuration, PortProtocol, Scalar};

/// How replicas share machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeMode {
    /// On any machine with room.
    Shared,
    /// One machine for each replica.
    Dedicated,
    /// Machines that run nothing else.
    Exclusive,
}

/// Machines that may run a service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeSelector {
    /// Labels that a machine must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Scalar>,
    /// Labels that a machine should have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub prefer_labels: BTreeMap<String, Scalar>,
}

/// Operating system and architecture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Platform {
    /// Operating system.
    pub os: Os,
    /// Architecture.
    pub arch: Arch,
    /// Version of the operating system, for Windows images.
    #[serde(default, rename = "osVersion", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
}

/// Operating system of a platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Os {
    /// Linux.
    Linux,
    /// Windows.
    Windows,
    /// macOS.
    Macos,
}

/// Architecture of a platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// 64-bit x86.
    Amd64,
    /// 64-bit ARM.
    Arm64,
}

/// Kind of service of the published format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServiceType {
    /// A program in a container.
    Standard,
    /// WebAssembly that answers HTTP.
    WasmHttp,
    /// WebAssembly plugin.
    WasmPlugin,
    /// WebAssembly that changes requests and responses.
    WasmTransformer,
    /// WebAssembly that authenticates.
    WasmAuthenticator,
    /// WebAssembly that limits rates.
    WasmRateLimiter,
    /// WebAssembly between requests and responses.
    WasmMiddleware,
    /// WebAssembly that routes.
    WasmRouter,
    /// Runs to completion.
    Job,
}

impl ServiceType {
    /// Whether it is one of the WebAssembly kinds.
    pub const fn is_wasm(self) -> bool {
        !matches!(self, Self::Standard | Self::Job)
    }
}

/// WebAssembly settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Wasm {
    /// Fewest warm instances; 0 when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = 0))]
    pub min_instances: Option<u32>,
    /// Most instances; 10 when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = 10))]
    pub max_instances: Option<u32>,
    /// Time without requests after which an instance ends; `5m` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "5m"))]
    pub idle_timeout: Option<HumanDuration>,
    /// Longest time for one request; `30s` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "30s"))]
    pub request_timeout: Option<HumanDuration>,
    /// Most linear memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_memory: Option<Bytes>,
    /// Most instructions; 0 is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_fuel: Option<u64>,
    /// Time between two points at which a module can be interrupted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch_interval: Option<HumanDuration>,
    /// Host interfaces that are linked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<WasmCapabilities>,
    /// Allows requests to others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_http_outgoing: Option<bool>,
    /// Hosts that requests may go to; all when the list is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_hosts: Vec<String>,
    /// Allows TCP sockets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_tcp: Option<bool>,
    /// Allows UDP sockets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_udp: Option<bool>,
    /// Directories that the module can open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preopens: Vec<WasmPreopen>,
    /// Gives it a key-value store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_enabled: Option<bool>,
    /// Namespace in that store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_namespace: Option<String>,
    /// Most bytes of one value of that store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_max_value_size: Option<u64>,
    /// Secrets that it may read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// Compiles it ahead of the first request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precompile: Option<bool>,
}

/// Host interfaces of a WebAssembly module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WasmCapabilities {
    /// Configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<bool>,
    /// Key-value store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyvalue: Option<bool>,
    /// Logging.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logging: Option<bool>,
    /// Secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<bool>,
    /// Metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<bool>,
    /// Requests to others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_client: Option<bool>,
    /// Arguments, environment and standard streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cli: Option<bool>,
    /// Files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<bool>,
    /// Sockets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sockets: Option<bool>,
}

/// A directory that a WebAssembly module can open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WasmPreopen {
    /// Path on the machine.
    #[schemars(length(min = 1))]
    pub source: String,
    /// Path that the module sees.
    #[schemars(length(min = 1))]
    pub target: String,
    /// Whether it is read-only; `false` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readonly: Option<bool>,
}

/// Overlay networks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Overlay settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlays: Option<Overlays>,
    /// Who may join.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<Join>,
}

/// The overlays of a service; what is not written keeps its default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Overlays {
    /// Between the replicas of the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Overlay>,
    /// Between all services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub global: Option<Overlay>,
}

/// Settings of one overlay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Overlay {
    /// Whether it exists; `true` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = true))]
    pub enabled: Option<bool>,
    /// Whether it is encrypted; `true` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = true))]
    pub encrypted: Option<bool>,
    /// Whether others are kept out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolated: Option<bool>,
}

/// Who may join an overlay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// How; `token` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "token"))]
    pub mode: Option<JoinMode>,
    /// Of what; `service` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "service"))]
    pub scope: Option<JoinScope>,
}

/// How others join an overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JoinMode {
    /// Everyone.
    Open,
    /// Who has a token.
    Token,
    /// No one.
    Closed,
}

/// What is joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JoinScope {
    /// The service's overlay.
    Service,
    /// The global overlay.
    Global,
}

/// A tunnel between machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tunnel {
    /// The machine that it begins at.
    #[schemars(length(min = 1))]
    pub from: String,
    /// The machine that it ends at.
    #[schemars(length(min = 1))]
    pub to: String,
    /// Port where it begins.
    #[schemars(range(min = 1))]
    pub local_port: u16,
    /// Port where it ends.
    #[schemars(range(min = 1))]
    pub remote_port: u16,
    /// Protocol; `tcp` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "tcp"))]
    pub protocol: Option<PortProtocol>,
    /// Who can reach it; `internal` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "internal"))]
    pub expose: Option<Expose>,
}

/// The tunnel of an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EndpointTunnel {
    /// Whether it exists; `false` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// The machine that it begins at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The machine that it ends at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Port where it ends; 0 is a free one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_port: Option<u16>,
    /// Who can reach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expose: Option<Expose>,
    /// Access for a limited time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<TunnelAccess>,
}

/// Access to a tunnel for a limited time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TunnelAccess {
    /// Whether it is given; `false` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Longest time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ttl: Option<HumanDuration>,
    /// Whether uses are written down; `false` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<bool>,
}

/// How a tcp or udp endpoint is checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum StreamCheck {
    /// A connection can be opened.
    TcpConnect,
    /// A datagram is answered.
    UdpProbe {
        /// What is sent.
        request: String,
        /// What the answer must hold.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expect: Option<String>,
    },
}

/// Training on several machines.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Distributed {
    /// Library that they talk with; `nccl` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "nccl"))]
    pub backend: Option<String>,
    /// Port of the first machine; 29500 when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1), extend("default" = 29500))]
    pub master_port: Option<u16>,
}

/// How fast a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StorageTier {
    /// This machine's disk.
    Local,
    /// A slower store behind a cache.
    Cached,
    /// A file system of the network.
    Network,
}
