//! What a network needs on this machine, and what anybody may take away while it is in use.

use std::fmt;
use std::fs;
use std::io;

use super::attachment::{Shared, leases};
use super::link::Link;
use super::netlink::Netlink;
use super::{firewall, forwarding, link, wire};
use crate::runtime::sandbox::layout::{Layout, read_json};
use crate::runtime::sandbox::record::Record;

/// One part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The packet filter that keeps others out.
    Filter,
    /// That the bridge is there and up, and has the machine's address, by which instances reach what lies beyond it.
    Bridge,
    /// That the interfaces of instances are connected to the bridge.
    Ends,
    /// That the machine forwards packets, and for networks alone where it did not before.
    Forwarding,
    /// That the machine speaks no IPv6 on the bridge.
    NoIpv6,
}

/// What an instance needs that is to be connected, in the order in which they are made: what keeps others out first.
const FOR_ANOTHER: [Part; 4] = [Part::Filter, Part::Bridge, Part::Forwarding, Part::NoIpv6];
/// Those and what others need that were connected before, for which their records are read.
const ALL: [Part; 5] = [Part::Filter, Part::Bridge, Part::Ends, Part::Forwarding, Part::NoIpv6];

impl fmt::Display for Part {
    /// What is wrong where it is missing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filter => "its packet filter is not whole",
            Self::Bridge => "its bridge is gone or down, or has lost its address",
            Self::Ends => "instances are not connected to its bridge",
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
            Self::Ends => {
                let bridge = link::find(kernel, &network.bridge)?.map(|bridge| bridge.index);
                Ok(ends(network, kernel)?.iter().all(|end| end.bridge.is_some() && end.bridge == bridge))
            }
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
            Self::Ends => connect(network, &mut Netlink::route()?),
            Self::Forwarding => forwarding::switch_on(),
            Self::NoIpv6 => link::switch_ipv6_off(&network.bridge),
        }
    }
}

/// The machine's ends of the interfaces of running instances.
///
/// # Errors
/// The disk or the kernel does not tell.
pub fn ends(network: &Shared, kernel: &mut Netlink) -> io::Result<Vec<Link>> {
    let leases = match fs::read_dir(leases(&network.dir)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read?,
    };
    let Some(root) = network.dir.parent().and_then(|networks| networks.parent()) else { return Ok(Vec::new()) };
    let layout = Layout::new(root);
    let mut ends = Vec::new();
    for lease in leases {
        let Ok(holder) = fs::read_link(lease?.path()) else { continue };
        // What can't be read is told elsewhere.
        let record = holder.to_str().and_then(|id| read_json::<Record>(&layout.instance(id).record()).ok().flatten());
        let Some(attachment) = record.as_ref().and_then(|record| record.launch.network.attachment()) else { continue };
        ends.extend(link::find(kernel, &attachment.interface)?);
    }
    Ok(ends)
}

/// Connects what is not connected, or to another bridge.
fn connect(network: &Shared, kernel: &mut Netlink) -> io::Result<()> {
    let bridge = link::find(kernel, &network.bridge)?.ok_or(io::ErrorKind::NotFound)?.index;
    for end in ends(network, kernel)?.iter().filter(|end| end.bridge != Some(bridge)) {
        match link::connect(kernel, end.index, bridge) {
            // Its instance has ended.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            connected => connected?,
        }
    }
    Ok(())
}

/// The parts of a network that are not there.
///
/// # Errors
/// The kernel or the disk does not tell.
pub fn missing(network: &Shared, kernel: &mut Netlink) -> io::Result<Vec<Part>> {
    let mut missing = Vec::new();
    for part in ALL {
        if !part.is_there(network, kernel)? {
            missing.push(part);
        }
    }
    Ok(missing)
}

/// Whether another instance can be connected to a network.
///
/// # Errors
/// The kernel does not tell.
pub fn are_ready(network: &Shared, kernel: &mut Netlink) -> io::Result<bool> {
    for part in FOR_ANOTHER {
        if !part.is_there(network, kernel)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The parts in words.
pub fn told(parts: &[Part]) -> String {
    parts.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
