//! Interfaces: bridges, and pairs of which one end is in an instance.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope, CacheInfo};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::{Netlink, Request};
use super::subnet::Subnet;

/// Name of an instance's own end of its pair, as containers have it everywhere.
pub const INSIDE: &str = "eth0";
/// Number of the loopback interface in every namespace.
const LOOPBACK_INDEX: u32 = 1;

/// Longest wait until packets pass through a new interface; the kernel does it as soon as it has its lock over all of
/// them. Nothing is wrong after it: packets are lost, and sent again.
const RUNNING_LIMIT: Duration = Duration::from_millis(500);
/// Time between two looks.
const RUNNING_PACE: Duration = Duration::from_micros(200);

/// An interface of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it says about itself.
    pub alias: String,
    /// Whether it is up.
    pub is_up: bool,
    /// Whether packets pass, as both ends of it are up.
    pub is_running: bool,
    /// Largest packet, in bytes.
    pub mtu: Option<u32>,
    /// Number of the bridge that it is connected to.
    pub bridge: Option<u32>,
}

/// The interface of this name.
///
/// # Errors
/// The kernel does not tell.
pub fn find(kernel: &mut Netlink, name: &str) -> io::Result<Option<Link>> {
    let asked = link(None, vec![LinkAttribute::IfName(name.to_owned())]);
    match kernel.get(&RouteNetlinkMessage::GetLink(asked)) {
        Ok(found) => Ok(found.and_then(read)),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Waits until packets pass through an interface, which takes the kernel a moment after both ends are up. What is sent
/// before is lost, and a lost question for a hardware address is asked again after a second only.
///
/// # Errors
/// The kernel does not tell.
pub fn wait_running(kernel: &mut Netlink, name: &str) -> io::Result<()> {
    let end = Instant::now() + RUNNING_LIMIT;
    while !find(kernel, name)?.is_some_and(|link| link.is_running) && Instant::now() < end {
        std::thread::sleep(RUNNING_PACE);
    }
    Ok(())
}

/// All interfaces.
///
/// # Errors
/// The kernel does not tell.
pub fn all(kernel: &mut Netlink) -> io::Result<Vec<Link>> {
    let found = kernel.list(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    Ok(found.into_iter().filter_map(read).collect())
}

/// Where the machine sends packets: subnets that it has routes to, and the interface of its default route.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routes {
    /// Subnets that are spoken for.
    pub subnets: Vec<Subnet>,
    /// Number of the interface by which the rest of the world is reached.
    pub default: Option<u32>,
    /// Address by which the rest of the world is reached.
    pub gateway: Option<Ipv4Addr>,
}

/// The machine's routes, of all tables.
///
/// # Errors
/// The kernel does not tell.
pub fn routes(kernel: &mut Netlink) -> io::Result<Routes> {
    let mut asked = RouteMessage::default();
    asked.header.address_family = AddressFamily::Inet;
    let mut routes = Routes::default();
    for found in kernel.list(&RouteNetlinkMessage::GetRoute(asked))? {
        let RouteNetlinkMessage::NewRoute(route) = found else { continue };
        let to = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
            _ => None,
        });
        let by = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
        let gateway = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(*address),
            _ => None,
        });
        match (to, route.header.destination_prefix_length) {
            (_, 0) if routes.default.is_none() => (routes.default, routes.gateway) = (by, gateway),
            (_, 0) => {}
            (Some(address), length) => routes.subnets.push(Subnet::around(address, length)),
            (None, _) => {}
        }
    }
    Ok(routes)
}

/// What a bridge is made of.
#[derive(Debug, Clone, Copy)]
pub struct Bridge<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it says about itself.
    pub alias: &'a str,
    /// Its addresses: the first one of the subnet is its own.
    pub subnet: Subnet,
    /// Largest packet, in bytes.
    pub mtu: u32,
}

/// Makes a bridge, or completes one that was half made. It is up once it is complete.
///
/// # Errors
/// The kernel refuses.
pub fn make_bridge(kernel: &mut Netlink, bridge: Bridge<'_>) -> io::Result<u32> {
    let attributes = vec![
        LinkAttribute::IfName(bridge.name.to_owned()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    let made = RouteNetlinkMessage::NewLink(link(None, attributes));
    exists_already(kernel.change(&[Request::route(&made, NLM_F_CREATE | NLM_F_EXCL)]))?;
    let index = find(kernel, bridge.name)?.ok_or(io::ErrorKind::NotFound)?.index;
    let named = vec![LinkAttribute::IfAlias(bridge.alias.to_owned()), LinkAttribute::Mtu(bridge.mtu)];
    kernel.change(&[Request::route(&RouteNetlinkMessage::SetLink(link(Some(index), named)), 0)])?;
    let address = address(index, bridge.subnet.gateway(), bridge.subnet);
    exists_already(kernel.change(&[Request::route(&address, NLM_F_CREATE | NLM_F_EXCL)]))?;
    switch_ipv6_off(bridge.name)?;
    kernel.change(&[Request::route(&up(index), 0)])?;
    Ok(index)
}

/// Whether an interface has this address.
///
/// # Errors
/// The kernel does not tell.
pub fn has_address(kernel: &mut Netlink, index: u32, address: Ipv4Addr) -> io::Result<bool> {
    let mut asked = AddressMessage::default();
    asked.header.family = AddressFamily::Inet;
    let wanted = AddressAttribute::Local(IpAddr::V4(address));
    let found = kernel.list(&RouteNetlinkMessage::GetAddress(asked))?;
    Ok(found.into_iter().any(|message| match message {
        RouteNetlinkMessage::NewAddress(one) => one.header.index == index && one.attributes.contains(&wanted),
        _ => false,
    }))
}

/// Whether the machine speaks no IPv6 on an interface of its own: it would take a route from whoever advertises one there, as
/// any instance may (CVE-2020-13401).
///
/// # Errors
/// The kernel does not tell.
pub fn is_ipv6_off(name: &str) -> io::Result<bool> {
    match fs::read_to_string(ipv6_switch(name)) {
        // Without IPv6, or with no such interface.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        read => read.map(|text| text.trim() == "1"),
    }
}

/// Has the machine speak no IPv6 on an interface of its own.
///
/// # Errors
/// The kernel refuses.
pub fn switch_ipv6_off(name: &str) -> io::Result<()> {
    match is_ipv6_off(name)? {
        true => Ok(()),
        false => fs::write(ipv6_switch(name), "1").map_err(|error| {
            io::Error::new(error.kind(), format!("IPv6 can't be switched off on the bridge {name}: {error}"))
        }),
    }
}

fn ipv6_switch(name: &str) -> String {
    format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
}

/// Makes a bridge that nothing is connected to, which remembers what it says about itself.
///
/// # Errors
/// The kernel refuses.
pub fn make_note(kernel: &mut Netlink, name: &str, alias: &str) -> io::Result<()> {
    let kind = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]);
    let made = link(None, vec![LinkAttribute::IfName(name.to_owned()), kind]);
    let made = Request::route(&RouteNetlinkMessage::NewLink(made), NLM_F_CREATE | NLM_F_EXCL);
    exists_already(kernel.change(&[made]))?;
    let index = find(kernel, name)?.ok_or(io::ErrorKind::NotFound)?.index;
    let named = link(Some(index), vec![LinkAttribute::IfAlias(alias.to_owned())]);
    kernel.change(&[Request::route(&RouteNetlinkMessage::SetLink(named), 0)])
}

/// Makes a pair of interfaces: one of the machine in a bridge, and [`INSIDE`] in another network namespace, where it is
/// born.
///
/// # Errors
/// The kernel refuses; `EEXIST` where the name is taken.
pub fn make_pair(kernel: &mut Netlink, name: &str, bridge: u32, mtu: u32, namespace: impl AsFd) -> io::Result<()> {
    let inside = link(
        None,
        vec![
            LinkAttribute::IfName(INSIDE.to_owned()),
            LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd()),
            LinkAttribute::Mtu(mtu),
        ],
    );
    let mut pair = link(
        None,
        vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Controller(bridge),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(inside))),
            ]),
        ],
    );
    (pair.header.flags, pair.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
    kernel.change(&[Request::route(&RouteNetlinkMessage::NewLink(pair), NLM_F_CREATE | NLM_F_EXCL)])
}

/// Connects an interface to a bridge.
///
/// # Errors
/// The kernel refuses.
pub fn connect(kernel: &mut Netlink, index: u32, bridge: u32) -> io::Result<()> {
    let connected = link(Some(index), vec![LinkAttribute::Controller(bridge)]);
    kernel.change(&[Request::route(&RouteNetlinkMessage::SetLink(connected), 0)])
}

/// Gives an interface the machine's own address in a subnet.
///
/// # Errors
/// The kernel refuses.
pub fn give_address(kernel: &mut Netlink, name: &str, subnet: Subnet) -> io::Result<()> {
    let index = find(kernel, name)?.ok_or(io::ErrorKind::NotFound)?.index;
    kernel.change(&[Request::route(&address(index, subnet.gateway(), subnet), NLM_F_CREATE | NLM_F_EXCL)])
}

/// In the network namespace of an instance: brings its interfaces up, with its address and the way out.
///
/// # Errors
/// The kernel refuses.
pub fn configure_inside(kernel: &mut Netlink, own: Ipv4Addr, subnet: Subnet) -> io::Result<()> {
    let create = NLM_F_CREATE | NLM_F_EXCL;
    let index = find(kernel, INSIDE)?.ok_or(io::ErrorKind::NotFound)?.index;
    kernel.change(&[
        Request::route(&up(LOOPBACK_INDEX), 0),
        Request::route(&up(index), 0),
        Request::route(&address(index, own, subnet), create),
        Request::route(&default_route(subnet.gateway()), create),
    ])
}

/// Gives the loopback interface of this process's network namespace an address that is no loopback address. The kernel chooses
/// it for nothing by itself: it is for who binds to it.
///
/// # Errors
/// The kernel refuses, as it does for IPv6 where that is switched off.
pub fn add_to_loopback(kernel: &mut Netlink, address: IpAddr) -> io::Result<()> {
    let mut message = AddressMessage::default();
    message.header.index = LOOPBACK_INDEX;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    match address {
        IpAddr::V4(_) => {
            message.header.family = AddressFamily::Inet;
            message.header.prefix_len = 32;
            message.header.scope = AddressScope::Host;
        }
        IpAddr::V6(_) => {
            message.header.family = AddressFamily::Inet6;
            message.header.prefix_len = 128;
            message.header.flags = AddressHeaderFlags::Nodad;
            let mut lifetimes = CacheInfo::default();
            (lifetimes.ifa_preferred, lifetimes.ifa_valid) = (0, u32::MAX);
            message.attributes.push(AddressAttribute::CacheInfo(lifetimes));
        }
    }
    kernel.change(&[Request::route(&RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)])
}

/// Removes an interface, and the other end of a pair with it. False where it is gone already.
///
/// # Errors
/// The kernel refuses.
pub fn remove(kernel: &mut Netlink, name: &str) -> io::Result<bool> {
    let gone = RouteNetlinkMessage::DelLink(link(None, vec![LinkAttribute::IfName(name.to_owned())]));
    match kernel.change(&[Request::route(&gone, 0)]) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        Err(error) => Err(error),
    }
}

fn link(index: Option<u32>, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index.unwrap_or_default();
    message.attributes = attributes;
    message
}

fn up(index: u32) -> RouteNetlinkMessage {
    let mut message = link(Some(index), Vec::new());
    (message.header.flags, message.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
    RouteNetlinkMessage::SetLink(message)
}

fn address(index: u32, address: Ipv4Addr, subnet: Subnet) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = subnet.length;
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(IpAddr::V4(address)),
        AddressAttribute::Address(IpAddr::V4(address)),
        AddressAttribute::Broadcast(subnet.broadcast()),
    ];
    RouteNetlinkMessage::NewAddress(message)
}

fn default_route(gateway: Ipv4Addr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet(gateway))];
    RouteNetlinkMessage::NewRoute(message)
}

fn exists_already(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

fn read(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let mut found = Link {
        index: message.header.index,
        name: String::new(),
        alias: String::new(),
        is_up: message.header.flags.contains(LinkFlags::Up),
        is_running: message.header.flags.contains(LinkFlags::Running),
        mtu: None,
        bridge: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name = name,
            LinkAttribute::IfAlias(alias) => found.alias = alias,
            LinkAttribute::Mtu(mtu) => found.mtu = Some(mtu),
            LinkAttribute::Controller(bridge) => found.bridge = Some(bridge),
            _ => {}
        }
    }
    Some(found)
}
