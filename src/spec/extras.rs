//! Ports, logs, limits, init steps and the parts of the published format that only some runtimes honour.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::schema::DNS_LABEL;
use super::{EndpointTunnel, Health, HumanDuration, StreamCheck};

/// What the proxy listens on for a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// Name, unique in its service: a DNS label.
    #[schemars(extend("pattern" = DNS_LABEL))]
    pub name: String,
    /// Protocol.
    pub protocol: EndpointProtocol,
    /// Port that the proxy listens on.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// Port of the instance; the same as `port` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub target_port: Option<u16>,
    /// Only requests below this path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Only requests for this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Who can reach it; `internal` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "internal"))]
    pub expose: Option<Expose>,
    /// Settings of tcp and udp endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<Stream>,
    /// Tunnel of the published format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<EndpointTunnel>,
}

impl Endpoint {
    /// Port that the instance listens on.
    pub fn target_port(&self) -> u16 {
        self.target_port.unwrap_or(self.port)
    }
}

/// Protocol of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndpointProtocol {
    /// HTTP.
    Http,
    /// HTTP over TLS.
    Https,
    /// A byte stream.
    Tcp,
    /// Datagrams.
    Udp,
    /// HTTP that is upgraded.
    Websocket,
}

impl EndpointProtocol {
    /// What it is carried by.
    pub const fn transport(self) -> PortProtocol {
        match self {
            Self::Udp => PortProtocol::Udp,
            Self::Http | Self::Https | Self::Tcp | Self::Websocket => PortProtocol::Tcp,
        }
    }
}

/// Who can reach an endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Expose {
    /// Everyone.
    Public,
    /// Services of this installation.
    #[default]
    Internal,
}

/// Settings of tcp and udp endpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stream {
    /// Ends TLS at the proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<bool>,
    /// Sends the PROXY protocol's header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<bool>,
    /// Time that a udp session is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_timeout: Option<HumanDuration>,
    /// How the stream is checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<StreamCheck>,
}

/// Direct publishing of one port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PortMapping {
    /// Port of the instance.
    #[schemars(range(min = 1))]
    pub container_port: u16,
    /// Port of the machine; a free one when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port: Option<u16>,
    /// Protocol; `tcp` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "tcp"))]
    pub protocol: Option<PortProtocol>,
    /// Address of the machine; `127.0.0.1` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "127.0.0.1"))]
    pub host_ip: Option<String>,
}

impl PortMapping {
    /// Address of the machine that is bound: what was written, else loopback.
    pub fn host_ip(&self) -> &str {
        self.host_ip.as_deref().filter(|address| !address.is_empty()).unwrap_or("127.0.0.1")
    }
}

/// Protocol of a published port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PortProtocol {
    /// A byte stream.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

/// Where output goes and how much of it is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogsConfig {
    /// Where; `disk` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "disk"))]
    pub destination: Option<Destination>,
    /// Most bytes kept per instance; 104857600 (100 MiB) when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1), extend("default" = 104_857_600))]
    pub max_size_bytes: Option<u64>,
    /// Seconds that output is kept. No runtime honours it, which is told as `UnsupportedField`: output is kept for as long as
    /// its instance, up to `max_size_bytes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_secs: Option<u64>,
}

impl LogsConfig {
    /// Most bytes of output kept per instance.
    pub fn max_size_bytes(&self) -> u64 {
        self.max_size_bytes.unwrap_or(100 << 20)
    }
}

/// Where output goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Destination {
    /// Files.
    #[default]
    Disk,
    /// Memory only.
    Memory,
}

/// Soft and hard bound of one process limit; one alone sets both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ulimit {
    /// The bound that holds; -1 is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft: Option<i64>,
    /// What the soft bound may be raised to; -1 is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hard: Option<i64>,
}

impl Ulimit {
    /// Soft and hard bound, where one alone sets both.
    pub fn bounds(self) -> (i64, i64) {
        let hard = self.hard.or(self.soft).unwrap_or(0);
        (self.soft.unwrap_or(hard), hard)
    }
}

/// One step before a start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InitStep {
    /// Name for messages.
    pub id: String,
    /// `init.wait_tcp`, `init.wait_http` or `init.run`.
    #[schemars(extend("enum" = ["init.wait_tcp", "init.wait_http", "init.run"]))]
    pub uses: String,
    /// Inputs of the step.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub with: BTreeMap<String, serde_json::Value>,
    /// Tries after the first; none when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<u32>,
    /// Longest time of one try; `5m` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "5m"))]
    pub timeout: Option<HumanDuration>,
    /// What a failure does; `fail` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "fail"))]
    pub on_failure: Option<OnFailure>,
}

/// What a failed wait or step does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// The start fails.
    #[default]
    Fail,
    /// It is reported, and the start goes on.
    Warn,
    /// The start goes on.
    Continue,
}

/// A backend outside of this installation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct External {
    /// Addresses.
    #[schemars(length(min = 1))]
    pub backends: Vec<String>,
    /// Endpoints in front of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// How they are checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
}

/// Settings of the published format's API server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Api {
    /// Whether it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Address that it listens on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind: Option<String>,
    /// Key of its tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwt_secret: Option<String>,
    /// Whether it serves its description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swagger: Option<bool>,
}
