//! What a network needs on this machine besides its bridge, and what anybody may take away while it is in use.

use std::fmt;
use std::io;

use super::attachment::Shared;
use super::netlink::Netlink;
use super::{firewall, forwarding, link, wire};

/// One part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The packet filter that keeps others out.
    Filter,
    /// That the bridge is up and has the machine's address, by which instances reach what lies beyond it.
    Bridge,
    /// That the machine forwards packets, and for networks alone where it did not before.
    Forwarding,
    /// That the machine speaks no IPv6 on the bridge.
    NoIpv6,
}

/// In the order in which they are made: what keeps others out first.
const ALL: [Part; 4] = [Part::Filter, Part::Bridge, Part::Forwarding, Part::NoIpv6];

impl fmt::Display for Part {
    /// What is wrong where it is missing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filter => "its packet filter is not whole",
            Self::Bridge => "its bridge is down, or has lost its address",
            Self::Forwarding => "the machine does not forward packets, or not for networks alone",
            Self::NoIpv6 => "IPv6 is on at its bridge",
        })
    }
}

impl Part {
    fn is_there(self, network: &Shared, kernel: &mut Netlink) -> io::Result<bool> {
        match self {
            Self::Filter => firewall::is_whole(&mut Netlink::netfilter()?, &wire::table(network)),
            Self::Bridge => match link::find(kernel, &network.bridge)?.filter(|bridge| bridge.is_up) {
                Some(bridge) => link::has_address(kernel, bridge.index, network.subnet.gateway()),
                None => Ok(false),
            },
            Self::Forwarding => forwarding::is_intact(kernel),
            Self::NoIpv6 => link::is_ipv6_off(&network.bridge),
        }
    }

    /// Makes it, in place of what is left of it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn make(self, network: &Shared) -> io::Result<()> {
        match self {
            Self::Filter => wire::filter(network),
            Self::Bridge => wire::bridge(network, &mut Netlink::route()?).map(drop),
            Self::Forwarding => forwarding::switch_on(),
            Self::NoIpv6 => link::switch_ipv6_off(&network.bridge),
        }
    }
}

/// The parts of a network that are not there.
///
/// # Errors
/// The kernel does not tell.
pub fn missing(network: &Shared, kernel: &mut Netlink) -> io::Result<Vec<Part>> {
    let mut missing = Vec::new();
    for part in ALL {
        if !part.is_there(network, kernel)? {
            missing.push(part);
        }
    }
    Ok(missing)
}

/// The parts in words.
pub fn told(parts: &[Part]) -> String {
    parts.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
