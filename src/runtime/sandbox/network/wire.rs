//! Connecting an instance to the network of its deployment, when it starts.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::attachment::{Attachment, Shared, lock};
use super::firewall::{self, Lifetime, Table};
use super::link::{self, Bridge};
use super::mend::mend;
use super::netlink::Netlink;
use super::{Network, attachment, forwarding, names, parts};
use crate::runtime::sandbox::failure::{Context, Failure};

/// Name of a process's own network namespace.
const OWN_NAMESPACE: &str = "/proc/self/ns/net";

/// What the first process of an instance needs to connect itself: prepared by the supervisor, in the machine's network.
#[derive(Debug)]
pub struct Wire {
    /// Works in the machine's network wherever it is used.
    machine: Netlink,
    bridge: u32,
    attachment: Attachment,
}

impl Wire {
    /// Prepares the network of a deployment, where the instance is to have it, and tells the others its names.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn lay(network: &Network) -> Result<Option<Self>, Failure> {
        let Some(attachment) = network.attachment() else { return Ok(None) };
        let what = || format!("making the network {}", attachment.network.bridge);
        let mut machine = Netlink::route().with_context(what)?;
        let bridge = ensure(&attachment.network, &mut machine).with_context(what)?;
        names::announce(attachment).context("telling the others the name of the instance")?;
        Ok(Some(Self { machine, bridge, attachment: attachment.clone() }))
    }

    /// What it holds open.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.machine.as_fd()
    }

    /// Connects this process's network namespace, which must be new. The machine's `/proc` must still be there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn connect(&mut self) -> Result<(), Failure> {
        self.pair().with_context(|| format!("making the interface {}", self.attachment.interface))?;
        let mut inside = Netlink::route().context("opening netlink")?;
        link::configure_inside(&mut inside, self.attachment.address, self.attachment.network.subnet)
            .with_context(|| format!("taking the address {}", self.attachment.address))
    }

    /// In the supervisor, once the first process is connected: waits until packets pass.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn wait_running(&mut self) -> Result<(), Failure> {
        link::wait_running(&mut self.machine, &self.attachment.interface).context("waiting for the interface")
    }

    fn pair(&mut self) -> io::Result<()> {
        let namespace = File::open(OWN_NAMESPACE)?;
        let (name, mtu) = (&self.attachment.interface, self.attachment.network.mtu);
        match link::make_pair(&mut self.machine, name, self.bridge, mtu, &namespace) {
            // Of an earlier run of this instance, whose namespace the kernel has not cleaned up yet.
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                link::remove(&mut self.machine, name)?;
                link::make_pair(&mut self.machine, name, self.bridge, mtu, &namespace)
            }
            made => made,
        }
    }
}

/// The number of a network's bridge, which is made where it or its packet filter is missing.
fn ensure(network: &Shared, kernel: &mut Netlink) -> io::Result<u32> {
    if let Some(index) = complete(network, kernel)? {
        return Ok(index);
    }
    let _lock = lock(&network.dir)?;
    // Another supervisor may have made it meanwhile.
    if let Some(index) = complete(network, kernel)? {
        return Ok(index);
    }
    let is_new = link::find(kernel, &network.bridge)?.is_none();
    filter(network)?;
    let index = bridge(network, kernel)?;
    // Whoever gives it back meanwhile sees the bridge, or this sees that it was given back.
    forwarding::switch_on()?;
    if let Some(networks) = network.dir.parent().filter(|_| !is_new) {
        // Whoever took the filter of this network away has hardly left the others alone. What fails is told by the next look
        // at all instances.
        let _ = mend(networks);
    }
    Ok(index)
}

/// Makes the bridge of a network, or what is missing of it; gives its number.
///
/// # Errors
/// The kernel refuses.
pub fn bridge(network: &Shared, kernel: &mut Netlink) -> io::Result<u32> {
    let Shared { bridge, alias, subnet, mtu, .. } = network;
    link::make_bridge(kernel, Bridge { name: bridge, alias, subnet: *subnet, mtu: *mtu })
}

/// Makes the packet filter of a network.
///
/// # Errors
/// The kernel refuses.
pub fn filter(network: &Shared) -> io::Result<()> {
    firewall::make(&mut Netlink::netfilter()?, &table(network))
}

/// What the packet filter of a network does.
pub fn table(network: &Shared) -> Table<'_> {
    Table {
        name: &network.bridge,
        comment: &network.alias,
        bridge: &network.bridge,
        bridges: attachment::BRIDGES,
        subnet: network.subnet,
        lifetime: Lifetime::Lasting,
    }
}

/// The number of a network's bridge, where nothing is missing.
fn complete(network: &Shared, kernel: &mut Netlink) -> io::Result<Option<u32>> {
    let Some(found) = link::find(kernel, &network.bridge)? else { return Ok(None) };
    // One that was half made has neither.
    let is_new = found.alias.is_empty() && !found.is_up;
    if found.alias != network.alias && !is_new {
        let message = format!("the interface {} is somebody else's ({:?})", found.name, found.alias);
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    let is_complete = found.is_up && parts::are_ready(network, kernel)?;
    Ok(is_complete.then_some(found.index))
}
