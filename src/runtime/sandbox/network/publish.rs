//! Ports of the machine that lead to an instance with interfaces of its own: a helper listens on them in the machine's
//! network and connects in the instance's, where the program sees an address of the instance (`ways.rs`).

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};

use super::datagrams::{Flows, MOST_FLOWS};
use super::room::Room;
use super::through;
use super::ways::{Way, ways};
use crate::runtime::sandbox::descriptors;
use crate::runtime::sandbox::failure::Failure;
use crate::spec::PortProtocol;
use crate::state::PortBinding;

/// Descriptors that are not those of connections and flows: sockets that are listened on, the runtime's, a connection that
/// is tried at another address.
const OTHER_DESCRIPTORS: usize = 128;
/// Stack of a thread that hands datagrams on: its buffer is not on it.
const STACK: usize = 128 << 10;
/// Pause where no connection can be taken on, as the machine has no descriptor left.
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

/// Hands on for as long as this process lives. `own` is the instance's address in the network of its deployment. Must be called in a
/// process of one thread, as one that was just forked is.
pub fn serve(listening: &[Listening], own: Option<Ipv4Addr>) -> ! {
    let (mut listeners, mut flows) = (Vec::new(), 0);
    for Listening { socket, port } in listening {
        match socket {
            Socket::Connections(listener) => listeners.push((listener, *port)),
            Socket::Datagrams(socket) => {
                flows += MOST_FLOWS;
                or_end(serve_datagrams(socket, *port, own));
            }
        }
    }
    let descriptors = descriptors::most().saturating_sub(OTHER_DESCRIPTORS + flows);
    wait_for_clients(&listeners);
    let runtime = or_end(begin_connections(&listeners, own, descriptors));
    runtime.block_on(std::future::pending())
}

/// Ends the process where something failed: it is started again, which is better than one that serves a part.
fn or_end<T>(result: io::Result<T>) -> T {
    result.unwrap_or_else(|_| std::process::exit(1))
}

/// Hands datagrams on, in a thread of their own.
fn serve_datagrams(socket: &UdpSocket, port: u16, own: Option<Ipv4Addr>) -> io::Result<()> {
    let mut flows = Flows::new(socket.try_clone()?, port, ways(own))?;
    thread::Builder::new().stack_size(STACK).spawn(move || flows.serve()).map(drop)
}

/// Waits for the first client: a runtime takes memory, and many instances never have one.
fn wait_for_clients(listeners: &[(&TcpListener, u16)]) {
    let mut fds: Vec<_> = listeners.iter().map(|(listener, _)| PollFd::new(*listener, PollFlags::IN)).collect();
    let _ = poll(&mut fds, None);
}

/// Has connections handed on, with this many descriptors, by whoever lets this runtime work. It is made in the process that
/// it works in, as it does not outlast a fork.
fn begin_connections(
    listeners: &[(&TcpListener, u16)],
    own: Option<Ipv4Addr>,
    descriptors: usize,
) -> io::Result<Runtime> {
    let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
    let ways: Arc<[Way]> = ways(own).into();
    let entered = runtime.enter();
    for ((listener, port), room) in listeners.iter().zip(Room::divide(descriptors, listeners.len())) {
        let listener = listener.try_clone()?;
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        runtime.spawn(serve_port(listener, *port, Arc::clone(&ways), room));
    }
    drop(entered);
    Ok(runtime)
}

/// Accepts the clients of one port while there is room for them; the others wait in the kernel's queue.
async fn serve_port(listener: tokio::net::TcpListener, port: u16, ways: Arc<[Way]>, room: Room) {
    loop {
        let place = room.take().await;
        match listener.accept().await {
            Ok((client, _)) => {
                let ways = Arc::clone(&ways);
                tokio::spawn(async move {
                    // It is closed where nobody listens inside.
                    if let Some(server) = connect(port, &ways).await {
                        through::hand_on(&client, &server).await;
                    }
                    drop((client, place));
                });
            }
            // A client that gave up, or no descriptor is left.
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Connects to the program, wherever it listens.
async fn connect(port: u16, ways: &[Way]) -> Option<TcpStream> {
    for way in ways {
        if let Ok(Ok(server)) = tokio::time::timeout(CONNECT_LIMIT, way.connect(port)).await {
            return Some(server);
        }
    }
    None
}
