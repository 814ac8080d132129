//! Ports for instances: free, and never one number for two of them.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Seek, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::{Duration, Instant};

use super::file_lock;
use super::files::private_file;
use crate::state::Owner;

/// Ports that may be assigned: above what services commonly use by convention, and below Linux's default range
/// of outgoing connections (32768 to 60999), which could take a number while an instance is restarted.
const RANGE: RangeInclusive<u16> = 20_000..=32_767;

/// Longest time that others may assign ports: each reads the records of all instances, in milliseconds.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// Assigns a port that no record holds and nothing listens on.
///
/// Numbers go round: one that was given up is the last to be given again, so that clients of a replaced instance
/// never meet a stranger. The next one is kept at `path`: processes with the same exclude each other by its lock, those
/// with another begin elsewhere.
///
/// # Errors
/// The lock can't be had in time (`TimedOut`), or every port is taken.
pub fn assign(path: &Path, owner: &Owner, taken: impl FnOnce() -> io::Result<BTreeSet<u16>>) -> io::Result<u16> {
    let file = private_file().read(true).create(true).truncate(false).open(path)?;
    let mut file = file_lock::exclusive(file, path, Instant::now() + LOCK_LIMIT)?.ok_or_else(|| {
        io::Error::new(io::ErrorKind::TimedOut, format!("another process has held {} for too long", path.display()))
    })?;
    let mut text = String::new();
    (&mut file).take(16).read_to_string(&mut text)?;
    let next = text.trim().parse().ok().filter(|port| RANGE.contains(port)).unwrap_or_else(|| first(owner));
    let taken = taken()?;
    let port = choose(next, &taken, is_free).ok_or_else(|| {
        let (from, to) = (RANGE.start(), RANGE.end());
        io::Error::new(io::ErrorKind::AddrInUse, format!("all ports from {from} to {to} are taken"))
    })?;
    file.rewind()?;
    file.set_len(0)?;
    file.write_all(after(port).to_string().as_bytes())?;
    Ok(port)
}

/// The first port from `next` on, going round, that is free.
fn choose(next: u16, taken: &BTreeSet<u16>, is_free: impl Fn(u16) -> bool) -> Option<u16> {
    let mut port = next;
    loop {
        if !taken.contains(&port) && is_free(port) {
            return Some(port);
        }
        port = after(port);
        if port == next {
            return None;
        }
    }
}

fn after(port: u16) -> u16 {
    if port >= *RANGE.end() { *RANGE.start() } else { port + 1 }
}

fn first(owner: &Owner) -> u16 {
    let mut hasher = DefaultHasher::new();
    owner.hash(&mut hasher);
    let size = u64::from(RANGE.end() - RANGE.start()) + 1;
    RANGE.start() + u16::try_from(hasher.finish() % size).unwrap_or(0)
}

/// Whether nothing listens on a port, on any address, for connections or datagrams.
fn is_free(port: u16) -> bool {
    let any = (Ipv4Addr::UNSPECIFIED, port);
    TcpListener::bind(any).is_ok() && UdpSocket::bind(any).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taken_and_busy_ports_are_passed_over() {
        let taken = BTreeSet::from([20_001, 20_003]);
        assert_eq!(choose(20_001, &taken, |port| port != 20_002), Some(20_004));
    }

    #[test]
    fn numbers_go_round_and_end_when_all_are_taken() {
        assert_eq!(choose(32_767, &BTreeSet::from([32_767]), |_| true), Some(20_000));
        assert_eq!(choose(25_000, &BTreeSet::new(), |_| false), None);
    }

    #[test]
    fn a_given_up_port_is_not_given_again_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ports.lock");
        let owner = Owner("a".into());
        let ports: BTreeSet<u16> = (0..20).map(|_| assign(&path, &owner, || Ok(BTreeSet::new())).unwrap()).collect();
        assert_eq!(ports.len(), 20);
    }

    #[test]
    fn a_port_that_something_listens_on_is_not_free() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(!is_free(listener.local_addr().unwrap().port()));
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(!is_free(socket.local_addr().unwrap().port()));
    }
}
