//! One kind of replica: image, command, scale, health and all that an instance needs.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Control, Depends, Endpoint, Errors, Health, HumanDuration, Image, Init, Job, Lifecycle, LogsConfig, Network,
    NodeMode, NodeSelector, Platform, Pool, PortMapping, Resources, RestartKind, RestartPolicy, Rollout, RuntimeKind,
    Scale, ServiceType, Session, Signal, Storage, Strategy, Ulimit, Wasm,
};

/// Grace between the stop signal and the kill when the spec names none: Kubernetes'
/// terminationGracePeriodSeconds.
pub const DEFAULT_STOP_GRACE: Duration = Duration::from_secs(30);

/// One service of a deployment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// Runs for ever, to completion, or by a schedule; `service` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "service"))]
    pub rtype: Option<RType>,
    /// Cron expression of 5, 6 or 7 fields, or `@hourly` and the like; required for `rtype: cron`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// IANA time zone of the schedule; UTC when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "UTC"))]
    pub time_zone: Option<String>,
    /// The runtime; the deployment's, else the controller's, when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeKind>,
    /// The image.
    pub image: Image,
    /// Command line; the image's own when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Command>,
    /// Environment. `$E:VAR` takes the host's variable, `$S:name` a secret.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, Scalar>,
    /// How many replicas; one when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<Scale>,
    /// How a changed template reaches the replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// What the proxy listens on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// Direct publishing of one replica's ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// When an instance counts as ready; ready when running when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// Services of the same deployment that come first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends: Vec<Depends>,
    /// Steps before each start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<Init>,
    /// What happens after a failed start or a crash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errors: Option<Errors>,
    /// Whether an instance that ended is started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<RestartPolicy>,
    /// Limits on idling and on age.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifecycle: Option<Lifecycle>,
    /// Limits and shares of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Mounts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub storage: Vec<Storage>,
    /// Runs of a job or cron service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Job>,
    /// Makes the service a pool of sandboxes handed out by sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Pool>,
    /// Time limits of sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Session>,
    /// Confinement by the sandbox runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<Sandbox>,
    /// Device nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// Capabilities added to the runtime's default set; `ALL` gives every one but those that `cap_drop` names.
    #[serde(default, alias = "cap_add", skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// Capabilities taken from the runtime's default set, or from `ALL` in `capabilities`. `ALL` leaves those that
    /// `capabilities` names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cap_drop: Vec<String>,
    /// All capabilities, no system-call filter, and on Docker and Podman all devices; a sandbox has those of `devices`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = false))]
    pub privileged: Option<bool>,
    /// Security options as Docker has them, such as `no-new-privileges`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub security_opt: Vec<String>,
    /// User, or `user:group`, by name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Scalar>")]
    pub user: Option<String>,
    /// Supplementary groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<Scalar>")]
    pub extra_groups: Vec<String>,
    /// Makes the root file system read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = false))]
    pub read_only_root_fs: Option<bool>,
    /// Resource limits of the processes, by name (`nofile`, `nproc` ...).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ulimits: BTreeMap<String, Ulimit>,
    /// Kernel parameters of the instance's namespaces.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, Scalar>,
    /// `default`, `host`, `none`, `bridge`, `bridge:NAME` or `container:ID`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "default"))]
    pub network_mode: Option<NetworkMode>,
    /// The same as `network_mode: host`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_network: Option<bool>,
    /// Host name inside the instance; `SERVICE-SLOT` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Name servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<String>,
    /// More lines of the hosts file, `name:address`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra_hosts: Vec<String>,
    /// Process namespace: `host` or `container:ID`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid_mode: Option<String>,
    /// IPC namespace: `host`, `private`, `shareable`, `none` or `container:ID`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipc_mode: Option<String>,
    /// User namespace: `host`, or what the runtime knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub userns_mode: Option<String>,
    /// Parent control group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup_parent: Option<String>,
    /// Ports that are documented and not published, `8080` or `8080/udp`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expose: Vec<Scalar>,
    /// Signal that asks an instance to end; `SIGTERM` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "SIGTERM"))]
    pub stop_signal: Option<Signal>,
    /// Time between the stop signal and the kill; `30s` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "30s"))]
    pub stop_grace_period: Option<HumanDuration>,
    /// Where output goes and how much of it is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logs: Option<LogsConfig>,
    /// Labels for other tools. Those that keel writes itself (`dev.evenkeel.*`, and the ones of Docker Compose that tools
    /// group by) are replaced.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Scalar>,
    /// Gives the process a terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = false))]
    pub tty: Option<bool>,
    /// Keeps standard input open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = false))]
    pub stdin_open: Option<bool>,
    /// Runs an init process that reaps children; `true` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = true))]
    pub init_container: Option<bool>,
    /// Overlay networks of the published format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// How replicas share machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_mode: Option<NodeMode>,
    /// Nodes that may run the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<NodeSelector>,
    /// Operating system and architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Kind of service of the published format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_type: Option<ServiceType>,
    /// WebAssembly settings of the published format.
    #[serde(default, alias = "wasm_http", skip_serializing_if = "Option::is_none")]
    pub wasm: Option<Wasm>,
}

impl ServiceSpec {
    /// The kind of service that holds.
    pub fn rtype(&self) -> RType {
        self.rtype.unwrap_or_default()
    }

    /// Signal that asks an instance to end.
    pub fn stop_signal(&self) -> Signal {
        self.stop_signal.unwrap_or(Signal::TERM)
    }

    /// Time between the stop signal and the kill.
    pub fn stop_grace(&self) -> Duration {
        self.stop_grace_period.map_or(DEFAULT_STOP_GRACE, HumanDuration::get)
    }

    /// The settings of a job that hold.
    pub fn job(&self) -> Job {
        self.job.clone().unwrap_or_default()
    }

    /// The rollout settings that hold.
    pub fn rollout(&self) -> Rollout {
        self.rollout.clone().unwrap_or_default()
    }

    /// How many instances there may be beyond the desired replicas during a rollout, and how many replicas may be
    /// unavailable meanwhile: `rollout.max_surge` and `rollout.max_unavailable`, except where the old instance has to end
    /// before the new one can start. That is so when the strategy says it, when the service has a fixed port of the machine,
    /// which one instance holds at a time, and when it has a volume that one instance writes at a time, unless
    /// `rollout.max_surge` is written: that says how many may share it.
    pub fn rollout_bounds(&self, desired: u32) -> (u32, u32) {
        let rollout = self.rollout();
        let (surge, unavailable) = rollout.bounds(desired);
        match rollout.strategy() {
            Strategy::Recreate => (0, 1),
            Strategy::Rolling if self.holds_alone(desired) => (0, unavailable.max(1)),
            Strategy::Rolling => (surge, unavailable),
        }
    }

    /// Whether the old instance ends before the new one starts in a rolling update of as many replicas as are written, for
    /// what only one of them may hold.
    pub(super) fn ends_first(&self) -> bool {
        let replicas = match self.scale {
            Some(Scale::Fixed { replicas }) => replicas,
            Some(Scale::Adaptive { min, .. }) => min,
            Some(Scale::Manual) | None => 1,
        };
        self.rollout().strategy() == Strategy::Rolling && self.holds_alone(replicas)
    }

    fn holds_alone(&self, desired: u32) -> bool {
        let may_share = self.rollout.as_ref().is_some_and(|rollout| rollout.max_surge.is_some());
        self.has_fixed_host_port() || !may_share && self.has_single_writer(desired)
    }

    /// Whether a volume has one writer as long as no slot has two instances: the workspace of a slot, and a named volume of a
    /// single replica. Several replicas write their named volume together at all times.
    fn has_single_writer(&self, desired: u32) -> bool {
        self.storage.iter().any(|mount| match mount {
            Storage::Workspace { .. } => true,
            Storage::Named { readonly, .. } => desired <= 1 && *readonly != Some(true),
            Storage::Bind { .. } | Storage::Anonymous { .. } | Storage::Tmpfs { .. } | Storage::S3 { .. } => false,
        })
    }

    fn has_fixed_host_port(&self) -> bool {
        self.port_mappings.iter().any(|mapping| mapping.host_port.is_some_and(|port| port > 0))
    }

    /// Whether an instance that ended is started again: what was written, else `on_failure` for a job and
    /// `always` for the rest.
    pub fn restart_kind(&self) -> RestartKind {
        match (self.restart_policy.as_ref().and_then(|policy| policy.kind), self.rtype()) {
            (Some(kind), _) => kind,
            (None, RType::Job | RType::Cron) => RestartKind::OnFailure,
            (None, RType::Service) => RestartKind::Always,
        }
    }

    /// The network mode that holds; `host_network` is the same as `host`.
    pub fn network_mode(&self) -> NetworkMode {
        match self.host_network {
            Some(true) => NetworkMode::Host,
            _ => self.network_mode.clone().unwrap_or_default(),
        }
    }
}

/// Runs for ever, to completion, or by a schedule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RType {
    /// Replicas that run until told otherwise.
    #[default]
    Service,
    /// Runs to completion.
    Job,
    /// A job by a schedule.
    Cron,
}

/// A string, or a number or boolean that is taken as the text it was written as.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Scalar(pub String);

impl std::fmt::Display for Scalar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Any {
            Text(String),
            Bool(bool),
            Integer(i64),
            Float(f64),
        }
        Ok(Self(match Any::deserialize(deserializer)? {
            Any::Text(text) => text,
            Any::Bool(value) => value.to_string(),
            Any::Integer(value) => value.to_string(),
            Any::Float(value) => value.to_string(),
        }))
    }
}

impl schemars::JsonSchema for Scalar {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Scalar".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": ["string", "number", "boolean", "null"],
            "description": "Text; a number or a boolean is taken as it is written, nothing as empty text."
        })
    }
}

/// Command line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// Replaces the image's entry point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<Scalar>>")]
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<Scalar>>")]
    pub args: Option<Vec<String>>,
    /// Directory that the process starts in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Path of the node, the same inside.
    #[schemars(length(min = 1))]
    pub path: String,
    /// Whether it may be read; `true` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<bool>,
    /// Whether it may be written; `true` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write: Option<bool>,
    /// Whether the node may be made inside; `false` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mknod: Option<bool>,
}

/// The network that an instance joins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NetworkMode {
    /// The deployment's own network.
    #[default]
    Default,
    /// The machine's.
    Host,
    /// None.
    None,
    /// The engine's default bridge, or a named network.
    Bridge(Option<String>),
    /// That of another container.
    Container(String),
}

impl std::fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Host => f.write_str("host"),
            Self::None => f.write_str("none"),
            Self::Bridge(None) => f.write_str("bridge"),
            Self::Bridge(Some(name)) => write!(f, "bridge:{name}"),
            Self::Container(id) => write!(f, "container:{id}"),
        }
    }
}

impl std::str::FromStr for NetworkMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "default" => Ok(Self::Default),
            None if text == "host" => Ok(Self::Host),
            None if text == "none" => Ok(Self::None),
            None if text == "bridge" => Ok(Self::Bridge(None)),
            Some(("bridge", name)) if !name.is_empty() => Ok(Self::Bridge(Some(name.to_owned()))),
            Some(("container", id)) if !id.is_empty() => Ok(Self::Container(id.to_owned())),
            _ => Err(format!(
                "{text:?} is not a network mode; write default, host, none, bridge, bridge:NAME or container:ID"
            )),
        }
    }
}

impl Serialize for NetworkMode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NetworkMode {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl schemars::JsonSchema for NetworkMode {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "NetworkMode".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": ["string", "object"],
            "pattern": "^(default|host|none|bridge(:.+)?|container:.+)$",
            "properties": {
                "bridge": {
                    "type": "object",
                    "properties": { "name": { "type": "string", "description": "Name of the network." } },
                    "description": "A named network, or the engine's default bridge where none is named."
                },
                "container": {
                    "type": "object",
                    "properties": { "id": { "type": "string", "description": "Id or name of the container." } },
                    "description": "The network of another container."
                }
            },
            "description": "`default`, `host`, `none`, `bridge`, `bridge:NAME` or `container:ID`; the last two also as \
                            `{ bridge: { name: NAME } }` and `{ container: { id: ID } }`."
        })
    }
}

/// Confinement by the sandbox runtime.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sandbox {
    /// What it may reach, on every runtime; `none` for pools, unless they write a `network_mode`, and `full` elsewhere
    /// when nothing is written. The stricter of this and `network_mode` holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<SandboxNetwork>,
    /// Hosts that it may reach, and no others: through a proxy of HTTP, which `HTTP_PROXY` and `HTTPS_PROXY` name.
    /// `example.org`, `*.example.org` (those below it), an address, or `*`, each with a port or without;
    /// what begins with `!` denies, whatever the others say. Private addresses open only where they are written as
    /// addresses; those of this machine, its link and its cloud's metadata never. Other services of the deployment are out
    /// of its reach.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_hosts: Vec<String>,
    /// Paths that it may read, and no others besides what every program needs. With the image `host` they are the
    /// machine's, also below `/tmp` and the like, which it has for itself else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub readable: Vec<String>,
    /// Paths that it may write: of the machine with the image `host`, else of the image, also where the root is read-only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub writable: Vec<String>,
    /// System-call filter; `default` when nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "default"))]
    pub seccomp: Option<SeccompProfile>,
    /// Controls that must be enforced, or the start is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub require: Vec<Control>,
}

/// What a sandbox may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SandboxNetwork {
    /// Nothing, and nothing reaches it.
    None,
    /// Itself; its endpoints and mapped ports are reached from the machine.
    Loopback,
    /// All that the machine can.
    Full,
}

/// System-call filter of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SeccompProfile {
    /// What ordinary programs need.
    Default,
    /// Less than that.
    Strict,
    /// No filter.
    Unconfined,
}
