//! From a service's spec to the request that creates its container. Pure.

use std::collections::{BTreeSet, HashMap};

use bollard::models::{
    ContainerCreateBody, EndpointSettings, HostConfig, HostConfigLogConfig, NetworkingConfig, PortBinding, PortMap,
    RestartPolicy, RestartPolicyNameEnum,
};

use super::changed::{self, Field};
use super::ping::Product;
use super::{labels, limits, mounts, names};
use crate::runtime::CreateRequest;
use crate::spec::{LogsConfig, NetworkMode, PortProtocol, ServiceSpec};
use crate::state::{InstanceId, Owner};

/// Files that Docker rotates a container's output over (kubelet's containerLogMaxFiles); together they hold at most what
/// the spec allows.
const LOG_FILES: u64 = 5;

/// Files that an engine rotates a container's output over.
pub(super) const fn log_files(product: Product) -> u64 {
    match product {
        Product::Docker => LOG_FILES,
        Product::Podman => 1,
    }
}

/// What the request needs beside the spec.
#[derive(Debug)]
pub(super) struct Context<'a> {
    /// Whose container it is.
    pub owner: &'a Owner,
    /// The image by a name that the engine resolves.
    pub image: &'a str,
    /// The image that it should have been made from, and that is not here any more.
    pub moved_from: Option<&'a str>,
    /// Whether the engine has an init program.
    pub has_init: bool,
    /// Whether the engine honours the weight of disk traffic, as far as is known.
    pub weighs_io: bool,
    /// Files that the engine rotates output over: Podman keeps one and begins it anew.
    pub log_files: u64,
    /// What the engine reports otherwise than it is asked for.
    pub blind: BTreeSet<Field>,
}

/// The body of the request.
pub(super) fn create_body(request: &CreateRequest, context: &Context<'_>) -> ContainerCreateBody {
    let spec = &*request.spec;
    let command = spec.command.clone().unwrap_or_default();
    let network = spec.network_access().mode();
    let shares_network = matches!(network, NetworkMode::Container(_));
    let host = host_config(request, context);
    let mut labels = labels::labels(request, context);
    let created_with = changed::label(&host, &request.id, &network, &context.blind);
    labels.insert(changed::CREATED_WITH.to_owned(), created_with);
    let hostname = spec.hostname.clone().unwrap_or_else(|| request.id.hostname());
    ContainerCreateBody {
        // The engine refuses a host name for a container that lives in another one's network.
        hostname: (!shares_network).then_some(hostname),
        user: spec.user.clone(),
        tty: spec.tty,
        open_stdin: spec.stdin_open,
        env: Some(request.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        cmd: command.args,
        entrypoint: command.entrypoint,
        working_dir: command.workdir,
        image: Some(context.image.to_owned()),
        exposed_ports: some(exposed_ports(spec)),
        labels: Some(labels),
        stop_signal: Some(spec.stop_signal().to_string()),
        stop_timeout: i64::try_from(spec.stop_grace().as_millis().div_ceil(1000)).ok(),
        host_config: Some(host),
        networking_config: networking(&request.id, &network),
        ..ContainerCreateBody::default()
    }
}

fn host_config(request: &CreateRequest, context: &Context<'_>) -> HostConfig {
    let spec = &*request.spec;
    let network = spec.network_access().mode();
    let has_network = network != NetworkMode::None;
    let mut host = HostConfig {
        network_mode: Some(network_mode(&request.id.deployment, &network)),
        port_bindings: has_network.then(|| port_bindings(spec)).and_then(some),
        // The controller restarts, so that there is one back-off and one count.
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        mounts: some(mounts::mounts(request)),
        init: Some(wants_init(spec) && context.has_init && spec.pid_mode.as_deref() != Some("host")),
        log_config: Some(log_config(spec.logs.as_ref(), context.log_files)),
        cap_add: some(spec.capabilities.clone()),
        cap_drop: some(spec.cap_drop.clone()),
        privileged: spec.privileged,
        readonly_rootfs: spec.read_only_root_fs,
        security_opt: some(spec.security_opt.clone()),
        group_add: some(spec.extra_groups.clone()),
        sysctls: some(spec.sysctls.iter().map(|(name, value)| (name.clone(), value.0.clone())).collect()),
        dns: some(spec.dns.clone()),
        extra_hosts: some(spec.extra_hosts.clone()),
        pid_mode: spec.pid_mode.clone(),
        ipc_mode: spec.ipc_mode.clone(),
        userns_mode: spec.userns_mode.clone(),
        cgroup_parent: spec.cgroup_parent.clone(),
        ..HostConfig::default()
    };
    limits::apply(spec, &mut host);
    if !context.weighs_io {
        host.blkio_weight = None;
    }
    host
}

/// Whether the spec asks for an init process.
pub(super) fn wants_init(spec: &ServiceSpec) -> bool {
    spec.init_container.unwrap_or(true)
}

/// The names that other instances of the deployment find this one by.
fn networking(id: &InstanceId, mode: &NetworkMode) -> Option<NetworkingConfig> {
    if *mode != NetworkMode::Default {
        return None;
    }
    let aliases = vec![id.service.clone(), format!("{}.{}", id.slot, id.service)];
    let endpoint = EndpointSettings { aliases: Some(aliases), ..EndpointSettings::default() };
    Some(NetworkingConfig { endpoints_config: Some(HashMap::from([(names::network(&id.deployment), endpoint)])) })
}

fn network_mode(deployment: &str, mode: &NetworkMode) -> String {
    match mode {
        NetworkMode::Default => names::network(deployment),
        NetworkMode::Host => "host".to_owned(),
        NetworkMode::None => "none".to_owned(),
        NetworkMode::Bridge(None) => "bridge".to_owned(),
        NetworkMode::Bridge(Some(name)) => name.clone(),
        NetworkMode::Container(id) => format!("container:{id}"),
    }
}

fn exposed_ports(spec: &ServiceSpec) -> Vec<String> {
    let documented = spec.expose.iter().map(|port| match port.0.split_once('/') {
        Some(_) => port.0.clone(),
        None => format!("{port}/tcp"),
    });
    let published = spec.port_mappings.iter().map(|mapping| port_key(mapping.container_port, mapping.protocol));
    let mut ports: Vec<_> = documented.chain(published).collect();
    ports.sort();
    ports.dedup();
    ports
}

fn port_bindings(spec: &ServiceSpec) -> PortMap {
    let mut ports = PortMap::new();
    for mapping in &spec.port_mappings {
        let binding = PortBinding {
            host_ip: Some(mapping.host_ip.clone().unwrap_or_else(|| "127.0.0.1".to_owned())),
            // An empty port is a free one, chosen by the engine.
            host_port: Some(mapping.host_port.map(|port| port.to_string()).unwrap_or_default()),
        };
        let key = port_key(mapping.container_port, mapping.protocol);
        ports.entry(key).or_default().get_or_insert_default().push(binding);
    }
    ports
}

fn port_key(port: u16, protocol: Option<PortProtocol>) -> String {
    match protocol.unwrap_or_default() {
        PortProtocol::Tcp => format!("{port}/tcp"),
        PortProtocol::Udp => format!("{port}/udp"),
    }
}

/// Output in files that are rotated, also where the spec says nothing: Docker's own default fills the disk.
fn log_config(logs: Option<&LogsConfig>, files: u64) -> HostConfigLogConfig {
    let total = logs.cloned().unwrap_or_default().max_size_bytes();
    HostConfigLogConfig {
        typ: Some("json-file".to_owned()),
        config: Some(HashMap::from([
            ("max-file".to_owned(), files.to_string()),
            ("max-size".to_owned(), (total / files).max(1).to_string()),
        ])),
    }
}

/// Absent where empty, so that the request holds what was written and no more.
fn some<T: Default + PartialEq>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}
