//! Taking networks away again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use super::attachment::{self, Attachment, Holder, Shared, leases, lock, release};
use super::link::Link;
use super::netlink::Netlink;
use super::{Network, firewall, forwarding, link, names};
use crate::runtime::sandbox::layout::Layout;
use crate::runtime::sandbox::remove;

/// After the end of an instance: the others know its names no more. The kernel takes its interface away with its
/// namespace.
pub fn leave(network: &Network) {
    if let Some(attachment) = network.attachment() {
        // Where this fails, the next instance that comes or goes writes the file.
        let _ = names::withdraw(attachment);
    }
}

/// Takes everything away that a lost or removed instance had in the network of its deployment, but for its address where
/// it is only lost.
///
/// # Errors
/// The kernel or the disk refuses.
pub fn detach(attachment: &Attachment, layout: &Layout, removed: Option<&str>) -> io::Result<()> {
    let mut kernel = Netlink::route()?;
    if link::find(&mut kernel, &attachment.interface)?.is_some() {
        link::remove(&mut kernel, &attachment.interface)?;
    }
    if !attachment.network.dir.exists() {
        return Ok(());
    }
    match removed {
        Some(runtime_id) => {
            names::withdraw(attachment)?;
            release(attachment, runtime_id)
        }
        // Its supervisor may have been killed while it wrote.
        None => names::rebuild(&attachment.network, layout),
    }
}

/// Removes the networks of a holder that have no instance any more, and bridges of which nothing is written down. With the
/// last network of the machine goes that it forwards packets, where it does so for them.
///
/// # Errors
/// The kernel or the disk refuses; the rest is removed all the same.
pub fn sweep(holder: Holder<'_>) -> io::Result<()> {
    let mut result = Ok(());
    let aliases = holder.aliases()?;
    for network in Shared::all(&holder.layout.networks())?.iter().filter(|network| network.alias.starts_with(&aliases))
    {
        // Another call may be quicker.
        result = result.and(attachment::gone(remove_unused(network, holder.layout)));
    }
    let strays = strays(holder).and_then(|found| found.into_keys().try_for_each(|name| unmake(&name)));
    result.and(strays).and(forwarding::give_back())
}

/// Deployments of which a holder has a network.
///
/// # Errors
/// The directory of networks can't be read.
pub fn deployments(holder: Holder<'_>) -> io::Result<BTreeSet<String>> {
    let aliases = holder.aliases()?;
    let of = |network: &Shared| network.alias.strip_prefix(&aliases).map(str::to_owned);
    Ok(Shared::all(&holder.layout.networks())?.iter().filter_map(of).collect())
}

fn remove_unused(network: &Shared, layout: &Layout) -> io::Result<()> {
    let _lock = lock(&network.dir)?;
    let folder = leases(&network.dir);
    for lease in fs::read_dir(&folder)?.flatten() {
        let holder = fs::read_link(lease.path())?;
        if attachment::is_leftover(layout, &lease.path(), &holder) {
            fs::remove_file(lease.path())?;
        }
    }
    let has_instance = |id: &Path| id.to_str().is_none_or(|id| layout.instance(id).record().exists());
    let mut holders = fs::read_dir(&folder)?.flatten().filter_map(|lease| fs::read_link(lease.path()).ok());
    // A creation that is under way has its address before its record; it may be one of a later age.
    if holders.any(|holder| has_instance(&holder)) || is_new(&folder) {
        return Ok(());
    }
    unmake(&network.bridge)?;
    remove::tree(&network.dir)
}

/// Whether an address was taken or given back just now and is still there.
fn is_new(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
        && fs::metadata(folder)
            .and_then(|data| data.modified())
            .ok()
            .and_then(|changed| changed.elapsed().ok())
            .is_none_or(|age| age < attachment::LEFTOVER_AGE)
}

/// Bridges that say they are this holder's and that nothing is written down of, by name, each with its number.
///
/// # Errors
/// The kernel does not tell.
pub fn strays(holder: Holder<'_>) -> io::Result<BTreeMap<String, u32>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(BTreeMap::new());
    }
    let aliases = holder.aliases()?;
    let is_ours = |found: &Link| {
        let is_named = found.name.starts_with(attachment::BRIDGES) && found.alias.starts_with(&aliases);
        is_named && !holder.layout.network(&found.name).exists()
    };
    let found = link::all(&mut Netlink::route()?)?.into_iter();
    Ok(found.filter(is_ours).map(|found| (found.name, found.index)).collect())
}

/// Removes a bridge and its table. The bridge goes first: with it gone the table has no effect.
///
/// # Errors
/// The kernel refuses.
pub fn unmake(bridge: &str) -> io::Result<()> {
    link::remove(&mut Netlink::route()?, bridge)?;
    firewall::remove(&mut Netlink::netfilter()?, bridge)
}
