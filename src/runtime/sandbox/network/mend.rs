//! Making again what somebody took away from the machine while networks are in use, as a restart of its nftables service, a
//! removed bridge or a change of its kernel parameters does: without it instances are cut off, deployments reach each other, the machine forwards for everybody, or it
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

/// What became of networks, by their bridges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mended {
    /// Those that are not whole, and why.
    pub broken: BTreeMap<String, String>,
    /// Those that are whole again: what they say about themselves, and what had been missing.
    pub whole: Vec<(String, String)>,
}

/// Makes all networks in a directory whole that are in use.
///
/// # Errors
/// It can't be told which there are.
pub fn mend(networks: &Path) -> io::Result<Mended> {
    let mut mended = Mended::default();
    if !rustix::process::geteuid().is_root() {
        return Ok(mended);
    }
    let end = Instant::now() + LOCK_LIMIT;
    let mut kernel = None;
    for network in Shared::all(networks)? {
        let kernel = match &mut kernel {
            Some(kernel) => kernel,
            none => none.insert(Netlink::route()?),
        };
        match mend_one(&network, kernel, end) {
            Ok(None) => {}
            Ok(Some(what)) => mended.whole.push((network.alias, what)),
            Err(error) => _ = mended.broken.insert(network.bridge, error.to_string()),
        }
    }
    Ok(mended)
}

/// What had been missing, where anything had.
fn mend_one(network: &Shared, kernel: &mut Netlink, end: Instant) -> io::Result<Option<String>> {
    if !is_in_use(network, kernel)? {
        return Ok(None);
    }
    let missing = parts::missing(network, kernel)?;
    if missing.is_empty() {
        return Ok(None);
    }
    let _lock = match lock_until(&network.dir, end) {
        // It was removed meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", parts::told(&missing)))),
        Ok(held) => held,
    };
    // Or mended.
    let missing = parts::missing(network, kernel)?;
    if missing.is_empty() || !is_in_use(network, kernel)? {
        return Ok(None);
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
    Ok(Some(what))
}

/// Whether its bridge is there, or instances run that were connected to it. An interface of that name which is another's is
/// not touched.
fn is_in_use(network: &Shared, kernel: &mut Netlink) -> io::Result<bool> {
    match link::find(kernel, &network.bridge)? {
        Some(found) => Ok(found.alias == network.alias),
        None => Ok(!parts::ends(network, kernel)?.is_empty()),
    }
}
