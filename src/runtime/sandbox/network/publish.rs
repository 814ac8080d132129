//! Ports of the machine that lead to an instance with interfaces of its own: a helper listens on them in the machine's
//! network and connects in the instance's, where the program sees a client of its own machine.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};

use super::datagrams::Flows;
use super::relay::{STACK, relay};
use crate::runtime::sandbox::failure::Failure;
use crate::spec::PortProtocol;
use crate::state::PortBinding;

/// Most connections that are handed on for one instance at a time; each takes two threads. More wait in the kernel's
/// queues.
const MOST_CONNECTIONS: usize = 512;
/// Pause where no connection can be taken on, which lasts until another one ends.
const PAUSE: Duration = Duration::from_millis(20);
/// Longest time that a program may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A port of the machine that leads to one of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Address of the machine.
    pub host_ip: String,
    /// Port of the machine.
    pub host_port: u16,
    /// Port of the instance.
    pub port: u16,
    /// What passes.
    #[serde(default)]
    pub protocol: PortProtocol,
}

impl Published {
    /// As it is reported.
    pub fn binding(&self) -> PortBinding {
        PortBinding {
            container_port: self.port,
            protocol: self.protocol,
            host_ip: self.host_ip.clone(),
            host_port: self.host_port,
        }
    }
}

/// A port that is listened on.
#[derive(Debug)]
pub struct Listening {
    socket: Socket,
    port: u16,
}

#[derive(Debug)]
enum Socket {
    Connections(TcpListener),
    Datagrams(UdpSocket),
}

impl Socket {
    fn bind(protocol: PortProtocol, address: SocketAddr) -> io::Result<Self> {
        match protocol {
            PortProtocol::Tcp => TcpListener::bind(address).map(Self::Connections),
            PortProtocol::Udp => UdpSocket::bind(address).map(Self::Datagrams),
        }
    }
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Connections(listener) => listener.as_fd(),
            Socket::Datagrams(socket) => socket.as_fd(),
        }
    }
}

/// Listens on ports of the machine.
///
/// # Errors
/// A port is taken, or is not this user's to take.
pub fn listen(published: &[Published]) -> Result<Vec<Listening>, Failure> {
    let one = |one: &Published| {
        let address = format!("{}:{}", one.host_ip, one.host_port);
        let ip: IpAddr = one.host_ip.parse().map_err(|_| Failure::wrong(format!("{address} is not an address")))?;
        let socket = Socket::bind(one.protocol, SocketAddr::new(ip, one.host_port)).map_err(|error| {
            let hint = match error.kind() {
                ErrorKind::AddrInUse => "; something else listens there: choose another port_mappings host_port",
                ErrorKind::AddrNotAvailable => "; this machine has no such address: choose another host_ip",
                ErrorKind::PermissionDenied => "; ports below 1024 are root's: choose a higher host_port",
                _ => "",
            };
            Failure::setup(format!("port {} can't be published at {address}: {error}{hint}", one.port))
        })?;
        Ok(Listening { socket, port: one.port })
    };
    published.iter().map(one).collect()
}

/// Hands on for as long as this process lives. `own` is the instance's address beside those of loopback.
pub fn serve(listening: &[Listening], own: Option<Ipv4Addr>) -> ! {
    let mut listeners = Vec::new();
    for Listening { socket, port } in listening {
        match socket {
            Socket::Connections(listener) => listeners.push((listener, *port)),
            // Without it the helper ends, and is started again: better than one that serves a part.
            Socket::Datagrams(socket) => {
                serve_datagrams(socket, *port, own).unwrap_or_else(|_| std::process::exit(1));
            }
        }
    }
    serve_connections(&listeners, own)
}

/// Hands datagrams on, in a thread of their own.
fn serve_datagrams(socket: &UdpSocket, port: u16, own: Option<Ipv4Addr>) -> io::Result<()> {
    let mut flows = Flows::new(socket.try_clone()?, port, candidates(own))?;
    thread::Builder::new().stack_size(STACK).spawn(move || flows.serve()).map(drop)
}

fn serve_connections(listeners: &[(&TcpListener, u16)], own: Option<Ipv4Addr>) -> ! {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let mut fds: Vec<_> = listeners.iter().map(|(listener, _)| PollFd::new(*listener, PollFlags::IN)).collect();
        let _ = poll(&mut fds, None);
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        for ((listener, port), _) in listeners.iter().zip(ready).filter(|(_, ready)| *ready) {
            while open.load(Ordering::Acquire) >= MOST_CONNECTIONS {
                thread::sleep(PAUSE);
            }
            match listener.accept() {
                Ok((client, _)) => hand_on(client, *port, own, &open),
                // A client that gave up, or no descriptor is left.
                Err(_) => thread::sleep(PAUSE),
            }
        }
    }
}

/// Hands one connection on, in threads of its own. It is closed where there are none, or where nobody listens inside.
fn hand_on(client: TcpStream, port: u16, own: Option<Ipv4Addr>, open: &Arc<AtomicUsize>) {
    open.fetch_add(1, Ordering::AcqRel);
    let counted = Arc::clone(open);
    let work = move || {
        if let Some(server) = connect(port, own) {
            let _ = relay(&client, &server);
        }
        counted.fetch_sub(1, Ordering::AcqRel);
    };
    if thread::Builder::new().stack_size(STACK).spawn(work).is_err() {
        open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Connects to the program, wherever it listens.
fn connect(port: u16, own: Option<Ipv4Addr>) -> Option<TcpStream> {
    let mut all = candidates(own).into_iter();
    all.find_map(|ip| TcpStream::connect_timeout(&SocketAddr::new(ip, port), CONNECT_LIMIT).ok())
}

/// Where a program may listen, the likeliest first.
fn candidates(own: Option<Ipv4Addr>) -> Vec<IpAddr> {
    let all = [Some(Ipv4Addr::LOCALHOST.into()), own.map(IpAddr::V4), Some(Ipv6Addr::LOCALHOST.into())];
    all.into_iter().flatten().collect()
}
