//! From a service's spec to the network of one instance: pure, apart from the facts of the machine.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use super::egress::Policy;
use super::publish::Published;
use super::{Link, NameFile, Network, names, pasta};
use crate::runtime::sandbox::layout::{InstanceDir, Layout};
use crate::runtime::sandbox::probe::Probe;
use crate::runtime::sandbox::record::Root;
use crate::runtime::sandbox::unsupported::unsupported;
use crate::spec::{NetworkAccess, NetworkMode, PortProtocol, SandboxNetwork, ServiceSpec};
use crate::state::Condition;

/// Address of the machine on which ports are published that nothing is written for.
const LOOPBACK: &str = "127.0.0.1";
/// Where programs look for names, and for those who know more.
const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where the machine's own name server answers an instance that does not reach the machine: an address of the link
/// (RFC 3927), which no gateway hands on and nobody inside has.
const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// What an instance is to be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// What the machine is connected to.
    Machine,
    /// Nothing, and nothing reaches it.
    Nothing,
    /// Nothing; its ports are reached from the machine.
    Itself,
    /// What the machine is connected to, by interfaces of its own.
    Connected,
    /// The network of its deployment.
    Deployment,
}

impl Wanted {
    /// Whether it has no network but its own loopback interface.
    pub fn is_alone(self) -> bool {
        matches!(self, Self::Nothing | Self::Itself)
    }

    /// Whether it has interfaces of its own.
    pub fn is_apart(self) -> bool {
        self != Self::Machine
    }
}

/// What the spec asks for, as far as this machine can do it.
pub fn wanted(spec: &ServiceSpec, probe: &Probe) -> Wanted {
    match asked(spec) {
        Wanted::Deployment if probe.bridge.is_err() => match probe.namespaces.is_ok() && probe.pasta.is_ok() {
            true => Wanted::Connected,
            false => Wanted::Machine,
        },
        wanted => wanted,
    }
}

/// What the spec asks for, egress rules included.
pub fn asked(spec: &ServiceSpec) -> Wanted {
    match spec.network_access() {
        NetworkAccess::Nothing => Wanted::Nothing,
        NetworkAccess::Loopback => Wanted::Itself,
        // The egress proxy is reached by loopback, and is the only way out.
        NetworkAccess::Mode(_) if has_rules(spec) => Wanted::Itself,
        NetworkAccess::Mode(NetworkMode::Host) => Wanted::Machine,
        NetworkAccess::Mode(_) => Wanted::Deployment,
    }
}

fn has_rules(spec: &ServiceSpec) -> bool {
    spec.sandbox.as_ref().is_some_and(|sandbox| !sandbox.allow_hosts.is_empty())
}

/// What the egress proxy of an instance allows, where it is to have one.
pub fn egress_policy(spec: &ServiceSpec) -> Option<Policy> {
    let rules = &spec.sandbox.as_ref()?.allow_hosts;
    // Rules that can't be read are refused with the spec; without any, nothing is reached.
    (!rules.is_empty() && spec.network_mode() != NetworkMode::None).then(|| Policy::parse(rules).unwrap_or_default())
}

/// Conditions about the egress proxy.
fn about_egress(spec: &ServiceSpec, probe: &Probe, found: &mut Vec<Condition>) {
    let Some(sandbox) = spec.sandbox.as_ref().filter(|sandbox| !sandbox.allow_hosts.is_empty()) else { return };
    if spec.network_mode() == NetworkMode::None {
        return found.push(unsupported("sandbox.allow_hosts", "network_mode: none is stricter and holds"));
    }
    if let Err(why) = probe.namespaces.clone().and(probe.network.clone()) {
        let why = format!("the instance has no network of its own, in which the egress proxy would listen: {why}");
        found.push(unsupported("sandbox.allow_hosts", &why));
    }
    if sandbox.network == Some(SandboxNetwork::Full) {
        found.push(unsupported("sandbox.network", "sandbox.allow_hosts is stricter and holds"));
    }
    for index in Policy::without_effect(&sandbox.allow_hosts) {
        let why = "addresses of this machine, of its link and of its cloud's services stay closed";
        found.push(unsupported(&format!("sandbox.allow_hosts.{index}"), why));
    }
}

/// Conditions about the network that an instance gets.
pub fn conditions(spec: &ServiceSpec, wanted: Wanted, probe: &Probe, root: &Root) -> Vec<Condition> {
    let mut found = Vec::new();
    let why = |result: &Result<(), String>| result.clone().err().unwrap_or_default();
    if wanted.is_alone() && probe.namespaces.as_ref().and(probe.network.as_ref()).is_err() {
        let why = probe.namespaces.clone().and(probe.network.clone()).err().unwrap_or_default();
        found.push(degraded(
            "NetworkNotIsolated",
            format!("the instance has the machine's network although none was asked for: {why}"),
        ));
    }
    about_egress(spec, probe, &mut found);
    let mode = spec.network_mode();
    match mode {
        NetworkMode::Bridge(Some(_)) | NetworkMode::Container(_) => {
            found.push(unsupported(
                "network_mode",
                "an instance has the network of its deployment, the machine's or none",
            ));
        }
        NetworkMode::Default | NetworkMode::Bridge(None) | NetworkMode::Host | NetworkMode::None => {}
    }
    // An ordinary user's instances always have it without pasta: that is no news.
    let broken_pasta = probe.pasta.as_ref().err().filter(|why| !probe.root && *why != pasta::NOT_INSTALLED);
    let is_news = probe.root || broken_pasta.is_some() || mode == NetworkMode::Bridge(None);
    if wanted == Wanted::Machine && mode != NetworkMode::Host && !spec.port_mappings.is_empty() {
        // First, as it matters most to whoever looks for the service.
        let message = format!("port_mappings does nothing on the machine's network: {}", listens(spec));
        found.push(degraded("PortsNotMapped", message));
    }
    if wanted == Wanted::Machine && mode != NetworkMode::Host && is_news {
        let why = broken_pasta.cloned().unwrap_or_else(|| why(&probe.bridge));
        // An ordinary user's instances have no power over it anyway.
        let raw = if probe.root { ", and no NET_RAW there unless capabilities names it" } else { "" };
        found.push(degraded(
            "NetworkShared",
            format!("the instance has the machine's network instead of one of its deployment{raw}: {why}"),
        ));
    }
    if wanted == Wanted::Connected && (mode == NetworkMode::Bridge(None) || !spec.depends.is_empty()) {
        let message = "the other services of its deployment are not reached by their names, as each instance of an \
                       ordinary user has a network of its own: give the other service a port_mappings with a \
                       host_port, and this one extra_hosts: ['NAME:host-gateway']";
        found.push(degraded("ServicesApart", message.to_owned()));
    }
    if !spec.port_mappings.is_empty() {
        match wanted {
            Wanted::Machine if mode == NetworkMode::Host => found.push(unsupported("port_mappings", &listens(spec))),
            Wanted::Nothing => found.push(unsupported("port_mappings", "it has no network")),
            Wanted::Machine | Wanted::Itself | Wanted::Connected | Wanted::Deployment => {}
        }
    }
    for (written, field) in [(!spec.dns.is_empty(), "dns"), (!spec.extra_hosts.is_empty(), "extra_hosts")] {
        if written && *root == Root::Shared {
            found.push(unsupported(field, "the program runs as a plain process and sees the machine's files"));
        }
    }
    if wanted.is_alone() && !spec.dns.is_empty() {
        found.push(unsupported("dns", "it has no network to reach a name server by"));
    }
    found
}

/// Where a program with the machine's network is found.
fn listens(spec: &ServiceSpec) -> String {
    let port = if spec.endpoints.is_empty() { "that it chooses" } else { "in PORT" };
    format!("the program listens on the machine itself, on the port {port}")
}

fn degraded(reason: &str, message: String) -> Condition {
    Condition::holds("Degraded", reason, message)
}

/// A port that is to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Open {
    host_ip: String,
    host_port: Option<u16>,
    port: u16,
    protocol: PortProtocol,
}

/// Ports of an instance with interfaces of its own: those of its endpoints, and those that are mapped. `first` is the
/// port that the program listens on for the first endpoint.
fn open(spec: &ServiceSpec, first: Option<u16>) -> Vec<Open> {
    let endpoint = |(index, endpoint): (usize, &crate::spec::Endpoint)| Open {
        host_ip: LOOPBACK.to_owned(),
        host_port: None,
        port: first.filter(|_| index == 0).unwrap_or_else(|| endpoint.target_port()),
        protocol: endpoint.protocol.transport(),
    };
    let endpoints = spec.endpoints.iter().enumerate().map(endpoint);
    let mapped = spec.port_mappings.iter().map(|mapping| Open {
        host_ip: mapping.host_ip().to_owned(),
        host_port: mapping.host_port.filter(|port| *port != 0),
        port: mapping.container_port,
        protocol: mapping.protocol.unwrap_or_default(),
    });
    endpoints.chain(mapped).collect()
}

/// Publishes the ports of an instance with interfaces of its own. What is written for none gets a port of the machine
/// from `assign`.
///
/// # Errors
/// No port is left.
pub fn publish(
    spec: &ServiceSpec,
    first: Option<u16>,
    mut assign: impl FnMut() -> io::Result<u16>,
) -> io::Result<Vec<Published>> {
    let one = |open: Open| {
        let host_port = open.host_port.map_or_else(&mut assign, Ok)?;
        Ok(Published { host_ip: open.host_ip, host_port, port: open.port, protocol: open.protocol })
    };
    open(spec, first).into_iter().map(one).collect()
}

/// Texts that lie in the directory of an instance, by the name of their file.
pub type Texts = Vec<(&'static str, String)>;

/// Shows an instance files about names. Returns the texts of those that are its own.
///
/// # Errors
/// The files of its network can't be written.
pub fn files(
    network: &mut Network,
    spec: &ServiceSpec,
    root: &Root,
    hostname: &str,
    (layout, dir): (&Layout, &InstanceDir),
    found: &mut Vec<Condition>,
) -> io::Result<Texts> {
    let is_image = match root {
        Root::Shared => return Ok(Texts::new()),
        Root::Host => false,
        Root::Dir { .. } | Root::Layers { .. } | Root::Copy { .. } => true,
    };
    // The machine's root shows the machine's files, unless something is mounted above them.
    let lacks = |path: &str| is_image || is_covered(spec, path);
    let (lacks_hosts, lacks_servers) = (lacks(HOSTS), lacks(RESOLV_CONF));
    let mut texts = Texts::new();
    let mut own = |name: &'static str, text: String| {
        texts.push((name, text));
        Some(dir.name_file(name))
    };
    let further = |machine: IpAddr| names::further_hosts(&spec.extra_hosts, machine);
    let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let has_hosts = !spec.extra_hosts.is_empty();
    let hosts = match &network.link {
        Link::Bridge(attachment) => {
            let text = further(IpAddr::V4(attachment.network.subnet.gateway()));
            Some(names::hosts_file(&attachment.network, layout, &text)?)
        }
        Link::Pasta(pasta) => {
            let base = if is_image { names::LOOPBACK.to_owned() } else { names::machine_hosts() };
            let machine = pasta.machine.map_or(localhost, IpAddr::V4);
            own("hosts", format!("{base}127.0.0.1\t{hostname}\n{}", further(machine)))
        }
        Link::Machine if has_hosts => own("hosts", names::machine_hosts() + &further(localhost)),
        Link::Alone if has_hosts || lacks_hosts => {
            own("hosts", format!("{}127.0.0.1\t{hostname}\n{}", names::LOOPBACK, further(localhost)))
        }
        Link::Machine if lacks_hosts => machines(HOSTS),
        Link::Machine | Link::Alone => None,
    };
    let has_servers = !spec.dns.is_empty();
    let servers = names::resolv_conf(&spec.dns, false);
    let mut none = || {
        let why = "all name servers of this machine are on its own loopback interface; write servers in dns";
        found.push(degraded("NoNameServer", format!("no names of the internet resolve: {why}")));
        String::new()
    };
    let resolv_conf = match &mut network.link {
        Link::Bridge(attachment) => Some(names::resolv_file(&attachment.network, &servers.unwrap_or_else(&mut none))?),
        Link::Pasta(pasta) => {
            let forwarded = || {
                let text = names::forwarded(NAME_SERVER)?;
                pasta.name_server = Some(NAME_SERVER);
                Some(text)
            };
            own("resolv.conf", servers.or_else(forwarded).unwrap_or_else(&mut none))
        }
        Link::Machine if has_servers => own("resolv.conf", names::resolv_conf(&spec.dns, true).unwrap_or_default()),
        Link::Machine if lacks_servers => machines(RESOLV_CONF),
        // Nobody answers; a program that asks is told so at once.
        Link::Alone if lacks_servers => own("resolv.conf", String::new()),
        Link::Machine | Link::Alone => None,
    };
    let shown = [(HOSTS, hosts), (RESOLV_CONF, resolv_conf)];
    let file =
        |(target, source): (&str, Option<PathBuf>)| Some(NameFile { target: target.to_owned(), source: source? });
    network.files = shown.into_iter().filter_map(file).collect();
    Ok(texts)
}

/// Whether a mount of the spec is above this path.
fn is_covered(spec: &ServiceSpec, path: &str) -> bool {
    let path = Path::new(path);
    spec.storage
        .iter()
        .map(|storage| Path::new(storage.target()))
        .any(|target| target != path && path.starts_with(target))
}

/// The machine's own file, where it has one.
fn machines(path: &str) -> Option<PathBuf> {
    std::fs::canonicalize(Path::new(path)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(bridge: Result<(), String>) -> Probe {
        let pasta = Err(pasta::NOT_INSTALLED.to_owned());
        Probe { root: true, bridge, pasta, namespaces: Ok(()), network: Ok(()), ..Probe::failed("x") }
    }

    fn with_pasta() -> Probe {
        Probe { root: false, pasta: Ok("/bin/pasta".into()), ..probe(Err("no".into())) }
    }

    fn spec(more: &str) -> ServiceSpec {
        serde_yaml::from_str(&format!("image: {{ name: host }}\n{more}")).unwrap()
    }

    #[test]
    fn what_an_instance_is_connected_to() {
        let full = "sandbox: { network: full }\n";
        for (more, with_bridges, without) in [
            ("", Wanted::Deployment, Wanted::Machine),
            ("network_mode: bridge", Wanted::Deployment, Wanted::Machine),
            ("network_mode: host", Wanted::Machine, Wanted::Machine),
            ("host_network: true", Wanted::Machine, Wanted::Machine),
            ("network_mode: none", Wanted::Nothing, Wanted::Nothing),
            ("pool: {}", Wanted::Nothing, Wanted::Nothing),
            ("sandbox: { network: none }", Wanted::Nothing, Wanted::Nothing),
            ("sandbox: { network: loopback }", Wanted::Itself, Wanted::Itself),
            ("network_mode: host\nsandbox: { network: loopback }", Wanted::Itself, Wanted::Itself),
            ("network_mode: none\nsandbox: { network: loopback }", Wanted::Nothing, Wanted::Nothing),
            (full, Wanted::Deployment, Wanted::Machine),
            ("sandbox: { allow_hosts: [a] }", Wanted::Itself, Wanted::Itself),
            ("sandbox: { allow_hosts: [a], network: full }", Wanted::Itself, Wanted::Itself),
            ("sandbox: { allow_hosts: [a], network: none }", Wanted::Nothing, Wanted::Nothing),
            ("network_mode: host\nsandbox: { allow_hosts: [a] }", Wanted::Itself, Wanted::Itself),
            ("pool: {}\nsandbox: { allow_hosts: [a] }", Wanted::Nothing, Wanted::Nothing),
            (&format!("{full}pool: {{}}"), Wanted::Deployment, Wanted::Machine),
            (&format!("{full}network_mode: none"), Wanted::Nothing, Wanted::Nothing),
        ] {
            assert_eq!(wanted(&spec(more), &probe(Ok(()))), with_bridges, "{more}");
            assert_eq!(wanted(&spec(more), &probe(Err("no".into()))), without, "{more}");
            let by_pasta = if with_bridges == Wanted::Deployment { Wanted::Connected } else { with_bridges };
            assert_eq!(wanted(&spec(more), &with_pasta()), by_pasta, "{more}");
        }
    }

    fn reasons(more: &str, probe: &Probe) -> Vec<String> {
        let spec = spec(more);
        let found = conditions(&spec, wanted(&spec, probe), probe, &Root::Host);
        found.into_iter().map(|condition| condition.reason).collect()
    }

    #[test]
    fn what_does_not_hold_is_told() {
        let (can, can_not) = (probe(Ok(())), probe(Err("no".into())));
        assert_eq!(reasons("", &can), Vec::<String>::new());
        assert_eq!(reasons("", &can_not), ["NetworkShared"]);
        assert_eq!(reasons("", &Probe { root: false, ..can_not.clone() }), Vec::<String>::new());
        assert_eq!(reasons("network_mode: bridge", &Probe { root: false, ..can_not.clone() }), ["NetworkShared"]);
        let broken = Probe { root: false, pasta: Err("pasta can't open a tun device".into()), ..can_not.clone() };
        assert_eq!(reasons("", &broken), ["NetworkShared"]);
        assert_eq!(reasons("network_mode: host", &can_not), Vec::<String>::new());
        assert_eq!(reasons("port_mappings: [{ container_port: 80 }]", &with_pasta()), Vec::<String>::new());
        assert_eq!(reasons("depends: [{ service: db }]", &with_pasta()), ["ServicesApart"]);
        assert_eq!(reasons("depends: [{ service: db }]", &can), Vec::<String>::new());
        assert_eq!(reasons("network_mode: bridge", &with_pasta()), ["ServicesApart"]);
        assert_eq!(reasons("network_mode: host", &with_pasta()), Vec::<String>::new());
        assert_eq!(reasons("network_mode: 'bridge:other'", &can), ["NetworkMode"]);
        let mapped = "port_mappings: [{ container_port: 80 }]\n";
        assert_eq!(reasons(mapped, &can), Vec::<String>::new());
        assert_eq!(reasons(&format!("{mapped}network_mode: host"), &can), ["PortMappings"]);
        assert_eq!(reasons(&format!("{mapped}network_mode: none"), &can), ["PortMappings"]);
        let alone = Probe { network: Err("no".into()), ..can.clone() };
        assert_eq!(reasons("network_mode: none", &alone), ["NetworkNotIsolated"]);
        let rules = "sandbox: { allow_hosts: [a, 127.0.0.1, 10.0.0.1], network: full }\n";
        assert_eq!(reasons(rules, &can), ["SandboxNetwork", "SandboxAllowHosts1"]);
        assert_eq!(reasons("network_mode: none\nsandbox: { allow_hosts: [a] }", &can), ["SandboxAllowHosts"]);
        let told = reasons("sandbox: { allow_hosts: [a] }", &alone);
        assert_eq!(told, ["NetworkNotIsolated", "SandboxAllowHosts"]);
    }

    #[test]
    fn datagrams_are_published_as_such() {
        let fields = "endpoints: [{ name: dns, protocol: udp, port: 53 }]\n\
                      port_mappings: [{ container_port: 5, protocol: udp }, { container_port: 6 }]\n";
        let all = publish(&spec(fields), None, || Ok(20_001)).unwrap();
        let told: Vec<_> = all.iter().map(|one| (one.binding().protocol, one.port)).collect();
        assert_eq!(told, [(PortProtocol::Udp, 53), (PortProtocol::Udp, 5), (PortProtocol::Tcp, 6)]);
        assert_eq!(reasons(fields, &probe(Ok(()))), Vec::<String>::new());
    }

    #[test]
    fn endpoints_and_mapped_ports_are_published() {
        let spec = spec(
            "endpoints: [{ name: http, protocol: http, port: 80, target_port: 8080 }, { name: two, protocol: tcp, port: 90 }]\n\
             port_mappings: [{ container_port: 443, host_port: 8443, host_ip: 0.0.0.0 }, { container_port: 5 }]",
        );
        let published = |first| {
            let mut next = 20_000;
            let assign = || {
                next += 1;
                Ok(next)
            };
            let all = publish(&spec, first, assign).unwrap();
            all.into_iter().map(|one| (one.host_ip, one.host_port, one.port)).collect::<Vec<_>>()
        };
        let at = |ip: &str, host_port: u16, port: u16| (ip.to_owned(), host_port, port);
        let rest = [at("0.0.0.0", 8443, 443), at("127.0.0.1", 20_003, 5)];
        let expected = |first| [at("127.0.0.1", 20_001, first), at("127.0.0.1", 20_002, 90)];
        assert_eq!(published(None), [&expected(8080)[..], &rest].concat());
        assert_eq!(published(Some(7000)), [&expected(7000)[..], &rest].concat());
    }
}
