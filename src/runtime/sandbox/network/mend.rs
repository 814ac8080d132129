//! Making again what somebody took away from the machine while networks are in use, as a restart of its nftables service or a
//! change of its kernel parameters does: without it deployments reach each other, the machine forwards for everybody, or it
//! believes what instances tell it by IPv6.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::attachment::{Shared, lock_until};
use super::netlink::Netlink;
use super::{link, parts};

/// Longest time that all networks together are waited for that others are changing, each of which takes milliseconds: whoever
/// lists instances waits meanwhile.
const LOCK_LIMIT: Duration = Duration::from_secs(5);

/// Makes all networks in a directory whole whose bridges are there. Returns the bridges of those that are not, and why.
///
/// # Errors
/// It can't be told which there are.
pub fn mend(networks: &Path) -> io::Result<BTreeMap<String, String>> {
    let mut broken = BTreeMap::new();
    if !rustix::process::geteuid().is_root() {
        return Ok(broken);
    }
    let end = Instant::now() + LOCK_LIMIT;
    let mut kernel = None;
    for network in Shared::all(networks)? {
        let kernel = match &mut kernel {
            Some(kernel) => kernel,
            none => none.insert(Netlink::route()?),
        };
        if let Err(error) = mend_one(&network, kernel, end) {
            broken.insert(network.bridge, error.to_string());
        }
    }
    Ok(broken)
}

fn mend_one(network: &Shared, kernel: &mut Netlink, end: Instant) -> io::Result<()> {
    if !is_in_use(network, kernel)? {
        return Ok(());
    }
    let missing = parts::missing(network, kernel)?;
    if missing.is_empty() {
        return Ok(());
    }
    let _lock = match lock_until(&network.dir, end) {
        // It was removed meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", parts::told(&missing)))),
        Ok(held) => held,
    };
    // Or mended.
    let missing = parts::missing(network, kernel)?;
    if missing.is_empty() || !is_in_use(network, kernel)? {
        return Ok(());
    }
    let made = missing.iter().map(|part| part.make(network).map_err(|error| format!("{part}: {error}")));
    let refused: Vec<String> = made.filter_map(Result::err).collect();
    if !refused.is_empty() {
        return Err(io::Error::other(refused.join("; ")));
    }
    let left = parts::missing(network, kernel)?;
    if !left.is_empty() {
        return Err(io::Error::other(format!("{}, however often that is changed", parts::told(&left))));
    }
    let what = parts::told(&missing);
    tracing::warn!(bridge = network.bridge, what, "a network was changed from outside; it is as it was again");
    Ok(())
}

fn is_in_use(network: &Shared, kernel: &mut Netlink) -> io::Result<bool> {
    Ok(link::find(kernel, &network.bridge)?.is_some_and(|found| found.alias == network.alias))
}
