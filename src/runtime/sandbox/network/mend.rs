//! Making again what somebody took away from the machine's packet filter while networks are in use, as a restart of its
//! nftables service does: without it deployments reach each other, and the machine forwards for everybody.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::attachment::{Shared, lock};
use super::netlink::Netlink;
use super::{forwarding, link, wire};

/// Makes the packet filters of all networks in a directory whole whose bridges are there. Returns the bridges of those that
/// are not, and why.
///
/// # Errors
/// It can't be told which there are.
pub fn mend(networks: &Path) -> io::Result<BTreeMap<String, String>> {
    let mut broken = BTreeMap::new();
    if !rustix::process::geteuid().is_root() {
        return Ok(broken);
    }
    let mut kernel = None;
    for network in Shared::all(networks)? {
        let kernel = match &mut kernel {
            Some(kernel) => kernel,
            none => none.insert(Netlink::route()?),
        };
        if let Err(error) = mend_one(&network, kernel) {
            broken.insert(network.bridge, error.to_string());
        }
    }
    Ok(broken)
}

fn mend_one(network: &Shared, kernel: &mut Netlink) -> io::Result<()> {
    if !is_in_use(network, kernel)? || wire::complete(network, kernel)?.is_some() {
        return Ok(());
    }
    let _lock = lock(&network.dir)?;
    // It may have been removed meanwhile.
    if !is_in_use(network, kernel)? {
        return Ok(());
    }
    tracing::warn!(bridge = network.bridge, "the packet filter of a network was taken away; it is made again");
    wire::filter(network)?;
    forwarding::switch_on()
}

fn is_in_use(network: &Shared, kernel: &mut Netlink) -> io::Result<bool> {
    Ok(link::find(kernel, &network.bridge)?.is_some_and(|found| found.is_up && found.alias == network.alias))
}
