//! Connections from outside to what listens in an instance, as the kernel lists them for its network (proc_pid_net(5)). The
//! kernel also takes them for a program that is frozen, so that they tell of somebody who waits for it.

use std::collections::BTreeSet;
use std::fs;

/// States of sockets in the kernel's lists.
const ESTABLISHED: &str = "01";
const LISTENING: &str = "0A";

/// What may be counted for an instance.
#[derive(Debug, Clone, Copy)]
pub enum Ports<'a> {
    /// These, where it shares its network with the machine.
    Of(&'a BTreeSet<u16>),
    /// All of a network of its own but those from a loopback address, at which nobody else comes.
    All,
}

/// Connections that are open now, each by the addresses of both ends; none where the kernel does not tell.
pub fn open(pid: i32, ports: Ports<'_>) -> Option<BTreeSet<String>> {
    let read = |table: &str| fs::read_to_string(format!("/proc/{pid}/net/{table}"));
    // A machine without IPv6 has no list of it.
    let text = read("tcp").ok()? + &read("tcp6").unwrap_or_default();
    Some(counted(&text, ports))
}

fn counted(text: &str, ports: Ports<'_>) -> BTreeSet<String> {
    let sockets: Vec<Socket<'_>> = text.lines().filter_map(Socket::of).collect();
    let listening: BTreeSet<u16> = sockets.iter().filter(|one| one.listens).map(|one| one.port).collect();
    let counts = |one: &&Socket<'_>| {
        let is_reached = listening.contains(&one.port) && !one.listens;
        is_reached
            && match ports {
                Ports::Of(ports) => ports.contains(&one.port),
                Ports::All => !one.is_from_inside,
            }
    };
    sockets.iter().filter(counts).map(|one| format!("{} {}", one.local, one.remote)).collect()
}

/// A line of a list: one that listens, or is connected.
struct Socket<'a> {
    local: &'a str,
    remote: &'a str,
    /// Port on this end.
    port: u16,
    listens: bool,
    /// Whether the other end is a loopback address.
    is_from_inside: bool,
}

impl<'a> Socket<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (local, remote, state) = (words.next()?, words.next()?, words.next()?);
        let listens = state == LISTENING;
        if !listens && state != ESTABLISHED {
            return None;
        }
        let port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        let other = remote.rsplit_once(':')?.0;
        Some(Self { local, remote, port, listens, is_from_inside: is_loopback(other) })
    }
}

/// Whether an address of these lists is a loopback address. Its words of 32 bits are in the order of the machine.
fn is_loopback(address: &str) -> bool {
    let word = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::to_ne_bytes);
    match address.len() {
        8 => word(address).is_some_and(|bytes| bytes[0] == 127),
        32 => {
            let (head, last) = address.split_at(24);
            let mapped = head.starts_with("0000000000000000") && word(last).is_some_and(|bytes| bytes[0] == 127);
            mapped || (head.bytes().all(|byte| byte == b'0') && word(last) == Some([0, 0, 0, 1]))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::{BTreeSet, Ports};

    /// Lists of a machine of little-endian order: something listens on 8080 and 9090; two connections to the former, one
    /// from 10.210.0.5 and one from inside; one to the latter from inside; one from here to elsewhere; one that has ended.
    const TEXT: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0200D20A:1F90 0500D20A:C350 01 00000000:00000000 00:00000000 00000000     0        0 2 1
   2: 0100007F:1F90 0100007F:C351 01 00000000:00000000 00:00000000 00000000     0        0 3 1
   3: 0200D20A:C352 0500D20A:01BB 01 00000000:00000000 00:00000000 00000000     0        0 4 1
   4: 0200D20A:1F90 0500D20A:C353 06 00000000:00000000 00:00000000 00000000     0        0 5 1
  sl  local_address                         remote_address                        st tx_queue rx_queue
   0: 00000000000000000000000000000000:2382 00000000000000000000000000000000:0000 0A 00000000:00000000
   1: 00000000000000000000000001000000:2382 00000000000000000000000001000000:C354 01 00000000:00000000
   2: 0000000000000000FFFF00000100007F:2382 0000000000000000FFFF00000100007F:C355 01 00000000:00000000
";

    fn counted(text: &str, ports: Ports<'_>) -> usize {
        super::counted(text, ports).len()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn connections_to_what_listens_are_counted_but_not_those_from_inside_of_a_network_of_its_own() {
        let none = BTreeSet::new();
        assert_eq!(counted(TEXT, Ports::All), 1);
        assert_eq!(counted(TEXT, Ports::Of(&BTreeSet::from([9090]))), 2);
        assert_eq!(counted(TEXT, Ports::Of(&none)), 0);
        assert_eq!(counted("", Ports::All), 0);
    }
}
