//! An instance's place in the network of its deployment, and what is kept of such a network on disk.
//!
//! ```text
//! ROOT/networks/BRIDGE/network.json   its bridge and addresses
//!                      lock           held while anything of it is changed
//!                      leases/ADDRESS link to the name of the instance that has this address
//!                      hosts/KEY      what instances see as /etc/hosts (`names.rs`)
//!                      resolv/KEY     what instances see as /etc/resolv.conf
//! ```

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::forwarding;
use super::link::{self, Routes};
use super::netlink::Netlink;
use super::subnet::{Subnet, choose};
use crate::runtime::file_lock;
use crate::runtime::sandbox::cgroup;
use crate::runtime::sandbox::layout::{Durability, Layout, make_private, private_file, read_json, write_json};
use crate::state::Owner;

/// What the names of the bridges of all installations begin with.
pub const BRIDGES: &str = "keel-";
/// What bridges of all installations say about themselves begins with.
pub const ALIASES: &str = "keel ";
/// What the names of the machine's ends of instances' interfaces begin with.
const PAIRS: &str = "kv-";
/// Hexadecimal digits of a hash in the name of an interface, which has at most 15 letters (IFNAMSIZ).
const BRIDGE_DIGITS: usize = 10;
const PAIR_DIGITS: usize = 12;
/// Largest packet where the way out tells none: that of Ethernet.
const MTU: u32 = 1500;
/// Longest time that others may change a network: each writes some files or makes a bridge, in milliseconds, and waits for the
/// kernel's lock over all interfaces where many do.
const LOCK_LIMIT: Duration = Duration::from_secs(30);
/// Most tries to make a directory that somebody removes at the same time, because nothing is in it.
const MOST_TRIES: usize = 10;
/// Age from which an address whose instance has no record was left by a process that was killed between the two.
pub const LEFTOVER_AGE: Duration = Duration::from_secs(60);

/// The network of a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shared {
    /// Its directory.
    pub dir: PathBuf,
    /// Its bridge, and its table of packet filters.
    pub bridge: String,
    /// What the bridge says about itself: owner, root and deployment.
    pub alias: String,
    /// Its addresses.
    pub subnet: Subnet,
    /// Largest packet, in bytes.
    pub mtu: u32,
}

impl Shared {
    /// The networks that are written down in this directory.
    ///
    /// # Errors
    /// It can't be read.
    pub fn all(networks: &Path) -> io::Result<Vec<Self>> {
        let entries = match fs::read_dir(networks) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            read => read?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let dir = entry?.path();
            let known = read_json::<Self>(&dir.join("network.json")).ok().flatten();
            found.extend(known.filter(|network| network.dir == dir));
        }
        Ok(found)
    }
}

/// An instance's place in the network of its deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The network.
    pub network: Shared,
    /// The machine's end of its interface.
    pub interface: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Names by which the others know it, its host name first.
    pub names: Vec<String>,
}

/// Who has networks.
#[derive(Debug, Clone, Copy)]
pub struct Holder<'a> {
    /// Where things lie.
    pub layout: &'a Layout,
    /// Whose networks they are.
    pub owner: &'a Owner,
}

impl Holder<'_> {
    /// Name of the bridge of a deployment, and what it says about itself.
    ///
    /// # Errors
    /// The directory of the runtime can't be looked at.
    pub fn bridge(self, deployment: &str) -> io::Result<(String, String)> {
        let identity = cgroup::name(self.owner, self.layout.root(), deployment)?;
        Ok((short(BRIDGES, BRIDGE_DIGITS, &identity), format!("{ALIASES}{identity}")))
    }

    /// What aliases of this holder's bridges begin with.
    ///
    /// # Errors
    /// The directory of the runtime can't be looked at.
    pub fn aliases(self) -> io::Result<String> {
        Ok(format!("{ALIASES}{}", cgroup::name(self.owner, self.layout.root(), "")?))
    }

    /// Gives an instance an address in the network of its deployment, which is thought of when it is first needed.
    /// Giving one again gives the same one.
    ///
    /// # Errors
    /// All addresses are taken, or the disk or the kernel refuses.
    pub fn attach(self, deployment: &str, runtime_id: &str, names: Vec<String>) -> io::Result<Attachment> {
        let (bridge, alias) = self.bridge(deployment)?;
        let dir = self.layout.network(&bridge);
        let _lock = made_and_locked(&dir)?;
        let network = self.network(dir, bridge, alias)?;
        let address = self.lease(&network, runtime_id)?;
        let identity = cgroup::name(self.owner, self.layout.root(), runtime_id)?;
        Ok(Attachment { interface: short(PAIRS, PAIR_DIGITS, &identity), network, address, names })
    }

    /// The network as it was written down, or a new one where there is none, or where it was unused for so long that its
    /// bridge is gone: the machine may send its addresses elsewhere by now.
    fn network(self, dir: PathBuf, bridge: String, alias: String) -> io::Result<Shared> {
        let known: Option<Shared> = read_json(&dir.join("network.json")).ok().flatten();
        let is_used = || fs::read_dir(leases(&dir)).is_ok_and(|mut entries| entries.next().is_some());
        let known = known.filter(|known| known.dir == dir);
        if let Some(known) = known.as_ref().filter(|_| is_used()) {
            return Ok(known.clone());
        }
        let mut kernel = Netlink::route()?;
        let own = link::find(&mut kernel, &bridge)?;
        // While it is there, its addresses are the machine's way to it.
        if let (Some(known), Some(own)) = (known, &own)
            && own.alias == known.alias
        {
            return Ok(known);
        }
        let Routes { subnets, default, .. } = link::routes(&mut kernel)?;
        let others = self.others(&dir)?;
        // What leads to its own bridge is no obstacle; there is none while it is chosen, as it is removed first.
        if own.is_some() {
            link::remove(&mut kernel, &bridge)?;
        }
        let taken: Vec<Subnet> = subnets.into_iter().chain(others).collect();
        let subnet = choose(number(&alias), &taken).ok_or_else(|| {
            io::Error::new(io::ErrorKind::AddrNotAvailable, "no subnet of 10.208.0.0/12 is free for the network")
        })?;
        let by = link::all(&mut kernel)?.into_iter().find(|link| Some(link.index) == default);
        let mtu = by.and_then(|link| link.mtu).unwrap_or(MTU);
        let network = Shared { dir, bridge, alias, subnet, mtu };
        write_json(&network.dir.join("network.json"), &network, Durability::Boot)?;
        forwarding::announce();
        Ok(network)
    }

    /// Subnets of other networks, of which there may be no bridge now.
    fn others(self, own: &Path) -> io::Result<Vec<Subnet>> {
        let entries = fs::read_dir(self.layout.networks())?.flatten().map(|entry| entry.path());
        let read = |path: PathBuf| read_json::<Shared>(&path.join("network.json")).ok().flatten();
        Ok(entries.filter(|path| path != own).filter_map(read).map(|network| network.subnet).collect())
    }

    /// Takes an address. Where an instance begins to look depends on its name, so that one that was given up is not given
    /// again soon.
    fn lease(self, network: &Shared, runtime_id: &str) -> io::Result<Ipv4Addr> {
        let (folder, room) = (leases(&network.dir), network.subnet.room());
        let start = u32::try_from(number(runtime_id) % u64::from(room)).unwrap_or(0);
        for step in 0..room {
            let address = network.subnet.address((start + step) % room);
            let path = folder.join(address.to_string());
            for _ in 0..2 {
                match std::os::unix::fs::symlink(runtime_id, &path) {
                    Ok(()) => return Ok(address),
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(error) => return Err(error),
                }
                match fs::read_link(&path) {
                    Ok(holder) if holder == Path::new(runtime_id) => return Ok(address),
                    Ok(holder) if is_leftover(self.layout, &path, &holder) => fs::remove_file(&path)?,
                    Ok(_) | Err(_) => break,
                }
            }
        }
        let message = format!("all {room} addresses of the network {} are taken", network.bridge);
        Err(io::Error::new(io::ErrorKind::AddrNotAvailable, message))
    }
}

/// Whether an address belongs to no instance, and to no creation that is under way.
pub fn is_leftover(layout: &Layout, lease: &Path, holder: &Path) -> bool {
    let made = fs::symlink_metadata(lease).and_then(|data| data.modified()).ok();
    let age = made.and_then(|made| SystemTime::now().duration_since(made).ok());
    let has_record = holder.to_str().is_none_or(|id| layout.instance(id).record().exists());
    !has_record && age.is_some_and(|age| age >= LEFTOVER_AGE)
}

/// Gives the address of an instance back. One that another has by now stays.
///
/// # Errors
/// The disk refuses.
pub fn release(attachment: &Attachment, runtime_id: &str) -> io::Result<()> {
    let path = leases(&attachment.network.dir).join(attachment.address.to_string());
    match fs::read_link(&path) {
        Ok(holder) if holder == Path::new(runtime_id) => gone(fs::remove_file(&path)),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// What is gone already is as good as removed.
pub fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Keeps others from changing a network for as long as the file is held.
///
/// # Errors
/// The disk refuses, or another has been changing it for too long (`TimedOut`); `NotFound` where the network was removed, even
/// if there is another one in its place by now.
pub fn lock(dir: &Path) -> io::Result<File> {
    lock_until(dir, Instant::now() + LOCK_LIMIT)
}

/// The same with an end of one's own to the waiting. It is tried once at least.
///
/// # Errors
/// The same.
pub fn lock_until(dir: &Path, end: Instant) -> io::Result<File> {
    let path = dir.join("lock");
    let file = private_file().create(true).truncate(false).open(&path)?;
    file_lock::exclusive(file, &path, end)?.ok_or_else(|| {
        io::Error::new(io::ErrorKind::TimedOut, "another process has been changing the network for too long")
    })
}

/// Makes the directory of a network and locks it. One that was unused may be removed between the two.
fn made_and_locked(dir: &Path) -> io::Result<File> {
    for _ in 0..MOST_TRIES {
        make_private(&leases(dir))?;
        match lock(dir) {
            Ok(file) if leases(dir).exists() => return Ok(file),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(_) | Err(_) => {}
        }
    }
    Err(io::Error::other(format!("{} is removed all the time", dir.display())))
}

/// Directory of the addresses that are taken.
pub fn leases(dir: &Path) -> PathBuf {
    dir.join("leases")
}

/// A name that fits an interface, from one that does not.
fn short(prefix: &str, digits: usize, identity: &str) -> String {
    let hash = Sha256::digest(identity.as_bytes());
    let text: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{prefix}{}", text.get(..digits).unwrap_or(&text))
}

/// A number that is the same for the same text, in every version of this program.
fn number(text: &str) -> u64 {
    Sha256::digest(text.as_bytes()).first_chunk().copied().map_or(0, u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_holder(check: impl FnOnce(Holder<'_>, &Layout)) {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path());
        layout.prepare().unwrap();
        check(Holder { layout: &layout, owner: &Owner("one".into()) }, &layout);
    }

    fn attach(holder: Holder<'_>, id: &str) -> Attachment {
        holder.attach("demo", id, vec![]).unwrap()
    }

    #[test]
    fn instances_of_a_deployment_share_a_network_and_no_address() {
        with_holder(|holder, _| {
            let (one, other) = (attach(holder, "demo_web_0"), attach(holder, "demo_web_1"));
            assert_eq!(one.network, other.network);
            assert_ne!(one.address, other.address);
            assert_ne!(one.interface, other.interface);
            assert!(one.network.subnet.contains(one.address));
            assert_eq!(attach(holder, "demo_web_0"), one, "asked again");
            assert_ne!(holder.attach("shop", "shop_web_0", vec![]).unwrap().network.subnet, one.network.subnet);
        });
    }

    #[test]
    fn a_network_is_waited_for_no_longer_than_until_the_end_and_not_where_it_is_gone() {
        with_holder(|holder, _| {
            let dir = attach(holder, "demo_web_0").network.dir;
            let held = lock(&dir).unwrap();
            let end = Instant::now() + Duration::from_millis(20);
            assert_eq!(lock_until(&dir, end).unwrap_err().kind(), io::ErrorKind::TimedOut);
            assert!(Instant::now() >= end);
            drop(held);
            lock_until(&dir, end).unwrap();
            fs::remove_dir_all(&dir).unwrap();
            assert_eq!(lock_until(&dir, end).unwrap_err().kind(), io::ErrorKind::NotFound);
        });
    }

    #[test]
    fn names_of_interfaces_fit_the_kernel() {
        with_holder(|holder, _| {
            let one = attach(holder, "demo_web_0");
            assert_eq!((one.network.bridge.len(), one.interface.len()), (15, 15));
            assert!(one.network.bridge.starts_with("keel-") && one.network.alias.ends_with("_demo"));
        });
    }

    #[test]
    fn an_address_that_was_given_back_can_be_had_again() {
        with_holder(|holder, _| {
            let one = attach(holder, "demo_web_0");
            release(&one, "demo_web_1").unwrap();
            assert!(leases(&one.network.dir).join(one.address.to_string()).is_symlink(), "another's stays");
            release(&one, "demo_web_0").unwrap();
            assert_eq!(fs::read_dir(leases(&one.network.dir)).unwrap().count(), 0);
            release(&one, "demo_web_0").unwrap();
        });
    }

    #[test]
    fn an_address_without_an_instance_is_taken_over_once_it_is_old() {
        with_holder(|holder, layout| {
            let one = attach(holder, "demo_web_0");
            let path = leases(&one.network.dir).join(one.address.to_string());
            assert!(!is_leftover(layout, &path, Path::new("demo_web_0")), "it is new");
            let long_ago = std::time::SystemTime::now() - 2 * LEFTOVER_AGE;
            let times = rustix::fs::Timestamps { last_access: stamp(long_ago), last_modification: stamp(long_ago) };
            rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
            assert!(is_leftover(layout, &path, Path::new("demo_web_0")));
            make_private(layout.instance("demo_web_0").path()).unwrap();
            fs::write(layout.instance("demo_web_0").record(), "{}").unwrap();
            assert!(!is_leftover(layout, &path, Path::new("demo_web_0")), "it has a record");
        });
    }

    fn stamp(time: std::time::SystemTime) -> rustix::fs::Timespec {
        let since = time.duration_since(std::time::UNIX_EPOCH).unwrap();
        rustix::fs::Timespec { tv_sec: i64::try_from(since.as_secs()).unwrap(), tv_nsec: 0 }
    }

    #[test]
    fn a_full_network_says_so() {
        with_holder(|holder, _| {
            let one = attach(holder, "demo_web_0");
            let small = Shared { subnet: Subnet { length: 30, ..one.network.subnet }, ..one.network };
            fs::remove_dir_all(leases(&small.dir)).unwrap();
            make_private(&leases(&small.dir)).unwrap();
            assert_eq!(small.subnet.room(), 1);
            holder.lease(&small, "demo_web_0").unwrap();
            let error = holder.lease(&small, "demo_web_1").unwrap_err();
            assert!(error.to_string().starts_with("all 1 addresses of the network keel-"), "{error}");
        });
    }
}
