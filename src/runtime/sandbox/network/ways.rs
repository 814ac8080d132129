//! The ways by which others reach a program at its published ports. Many programs trust whoever comes from a loopback
//! address (CVE-2021-20199), so no way begins at one: the source is an address of the instance that is none, also where the
//! program listens on loopback only.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use tokio::net::{TcpSocket, TcpStream};

use super::netlink::Netlink;
use super::{Network, link};
use crate::runtime::sandbox::failure::{Context, Failure};
use crate::runtime::sandbox::sys::source;

/// Where visitors of an instance come from that has no address of its own which is known before it starts: one of the link
/// (RFC 3927), next to that of the machine's name server, which nobody else inside has.
pub const VISITORS: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 2);
/// The same of IPv6, for programs that listen on that only: a local one (RFC 4193).
pub const VISITORS_V6: Ipv6Addr = Ipv6Addr::new(0xfd6b, 0x6565, 0x6c00, 0, 0, 0, 0, 1);

/// A way to a program, in the network of its instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Address that the program sees.
    pub from: IpAddr,
    /// Where it may listen.
    pub to: IpAddr,
}

/// The ways to a program, the likeliest first. `own` is the instance's address in the network of its deployment.
///
/// A program that listens on every address answers a datagram from the one that the kernel chooses for its receiver, which
/// is the receiver's own: so the ways on which both are the same are tried before the others.
pub fn ways(own: Option<Ipv4Addr>) -> Vec<Way> {
    let (four, six) = (IpAddr::V4(own.unwrap_or(VISITORS)), IpAddr::V6(VISITORS_V6));
    [(four, four), (four, Ipv4Addr::LOCALHOST.into()), (six, six), (six, Ipv6Addr::LOCALHOST.into())]
        .map(|(from, to)| Way { from, to })
        .into()
}

/// Gives this process's network namespace, which must be new and have its interfaces, the addresses that [`ways`] begin at.
///
/// # Errors
/// The kernel refuses; a machine without IPv6 goes without.
pub fn pave(network: &Network) -> Result<(), Failure> {
    if network.published.is_empty() {
        return Ok(());
    }
    let mut kernel = Netlink::route().context("opening netlink")?;
    if network.attachment().is_none() {
        link::add_to_loopback(&mut kernel, VISITORS.into())
            .context("giving the loopback interface an address for clients of published ports")?;
    }
    // What listens on IPv4 is reached all the same.
    let _ = link::add_to_loopback(&mut kernel, VISITORS_V6.into());
    Ok(())
}

impl Way {
    /// Connects to a port of the program.
    ///
    /// # Errors
    /// Nobody listens there, or the kernel refuses.
    pub async fn connect(self, port: u16) -> io::Result<TcpStream> {
        let socket = if self.to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        source::choose_port_late(&socket)?;
        socket.bind(SocketAddr::new(self.from, 0))?;
        socket.connect(SocketAddr::new(self.to, port)).await
    }

    /// A socket for datagrams whose only peer is a port of the program, and which does not block.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn datagrams(self, port: u16) -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind((self.from, 0))?;
        socket.connect((self.to, port))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_way_begins_at_a_loopback_address() {
        let own = Ipv4Addr::new(10, 210, 0, 5);
        for (given, four) in [(None, VISITORS), (Some(own), own)] {
            let told: Vec<String> = ways(given).iter().map(|way| format!("{} {}", way.from, way.to)).collect();
            let expected = [
                format!("{four} {four}"),
                format!("{four} 127.0.0.1"),
                format!("{VISITORS_V6} {VISITORS_V6}"),
                format!("{VISITORS_V6} ::1"),
            ];
            assert_eq!(told, expected);
            assert!(ways(given).iter().all(|way| !way.from.is_loopback() && way.from.is_ipv4() == way.to.is_ipv4()));
        }
    }
}
