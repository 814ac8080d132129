//! Whether this machine can give instances a network of their own: tried out with two instances that are none.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

use super::attachment::BRIDGES;
use super::firewall::{self, Lifetime, Table};
use super::link::{self, Bridge, Routes};
use super::netlink::Netlink;
use super::subnet::{Subnet, choose};
use crate::runtime::sandbox::failure::{Context, Failure};
use crate::runtime::sandbox::sys::{self, Fork, Namespaces};

/// Longest time for a packet to arrive; it takes microseconds where it is not dropped.
const ARRIVAL_LIMIT: Duration = Duration::from_millis(300);
/// Time between two packets.
const PACE: Duration = Duration::from_millis(5);
/// Port that the packet goes to: discard.
const PORT: u16 = 9;
/// Prefix length of the subnets of the two: an address each and the machine's.
const LENGTH: u8 = 30;
/// Name of a bridge that is made for a moment.
const BRIDGE: &str = "bridge";
/// What a process tells once it is connected.
const READY: u8 = b'R';
/// What its answer begins with where it failed.
const FAILED: char = '!';
/// Where forwarding by one interface is switched on.
const INTERFACES: &str = "/proc/sys/net/ipv4/conf";
/// Switch for forwarding by all.
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// Sends a packet from one network namespace to another through the machine, as instances do, and removes all that was
/// made for it. Nothing of the machine is changed.
///
/// # Errors
/// What is missing, or who drops the packet.
pub fn try_out() -> Result<(), Failure> {
    fs::OpenOptions::new().write(true).open(FORWARDING).with_context(|| format!("opening {FORWARDING}"))?;
    let mut kernel = Netlink::route().context("opening netlink")?;
    let Routes { subnets, .. } = link::routes(&mut kernel).context("reading the routes")?;
    let pid = std::process::id();
    let pool = choose(u64::from(pid), &subnets).ok_or_else(|| Failure::setup("no subnet is free"))?;
    let near = Subnet { length: LENGTH, ..pool };
    let far = Subnet { first: Ipv4Addr::from_bits(pool.first.to_bits() + 4), length: LENGTH };
    let (from, to) = (format!("{BRIDGES}a{pid}"), format!("{BRIDGES}b{pid}"));
    // Both end with this process, and their interfaces with them.
    let receiver = Side::start(far, receive)?;
    receiver.connect(&mut kernel, &to)?;
    let target = SocketAddr::from((far.address(0), PORT));
    let sender = Side::start(near, move |_| send(target))?;
    sender.connect(&mut kernel, &from)?;
    let table = Table {
        name: &from,
        comment: "keel tries out what this machine can do",
        bridge: &from,
        // The other one's name begins like those of bridges, for rules of the machine that let them through.
        bridges: "none-",
        subnet: near,
        lifetime: Lifetime::Connection,
    };
    let mut filter = Netlink::netfilter().context("opening the packet filter")?;
    firewall::make(&mut filter, &table).context("making a table of packet filters (nf_tables)")?;
    for side in [&receiver, &sender] {
        side.go()?;
        side.wait_ready()?;
    }
    for name in [&from, &to] {
        link::wait_running(&mut kernel, name).context("waiting for an interface")?;
    }
    receiver.go()?;
    sender.go()?;
    receiver.result().and_then(|seen| match seen {
        Some(source) if source == far.gateway().to_string() => Ok(()),
        Some(source) => Err(Failure::setup(format!("packets of instances leave with their own address ({source})"))),
        None => Err(Failure::setup(
            "this machine's packet filter drops what instances send, as Docker has it; let interfaces through whose \
             names begin with keel- (iptables -I DOCKER-USER -i keel-+ -j ACCEPT, and the same with -o), then restart \
             keel; what runs already has it from its next start on",
        )),
    })
}

/// A process in a network namespace of its own.
struct Side {
    pid: Pid,
    subnet: Subnet,
    gate: File,
    answer: File,
}

impl Side {
    /// Starts one that does something once it is connected and let go.
    fn start(subnet: Subnet, act: impl FnOnce(Subnet) -> io::Result<String>) -> Result<Self, Failure> {
        let pipe = || io::pipe().map(|(read, write)| (OwnedFd::from(read), OwnedFd::from(write)));
        let ((wait, gate), (answer, told)) = (pipe().context("making a pipe")?, pipe().context("making a pipe")?);
        match sys::fork(Namespaces { net: true, ..Namespaces::default() }).context("making a network namespace")? {
            Fork::Child => {
                drop((gate, answer));
                let _ = set_parent_process_death_signal(Some(Signal::KILL));
                let mut told = File::from(told);
                let said = act_inside(subnet, File::from(wait), &mut told, act);
                let said = said.unwrap_or_else(|failure| format!("{FAILED}{}", failure.message));
                let _ = told.write_all(said.as_bytes());
                std::process::exit(0)
            }
            Fork::Parent { pid, .. } => Ok(Self { pid, subnet, gate: gate.into(), answer: answer.into() }),
        }
    }

    fn connect(&self, kernel: &mut Netlink, name: &str) -> Result<(), Failure> {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid.as_raw_pid()));
        let namespace = namespace.context("opening a network namespace")?;
        link::make_pair(kernel, name, 0, 1500, &namespace).context("making a pair of interfaces (veth)")?;
        link::give_address(kernel, name, self.subnet).context("giving an interface an address")?;
        let switch = PathBuf::from(INTERFACES).join(name).join("forwarding");
        fs::write(&switch, "1").with_context(|| format!("writing {}", switch.display()))
    }

    fn go(&self) -> Result<(), Failure> {
        (&self.gate).write_all(b"G").context("letting a process go")
    }

    /// Waits until it is connected.
    fn wait_ready(&self) -> Result<(), Failure> {
        let mut word = [0];
        match (&self.answer).read(&mut word) {
            Ok(1) if word == [READY] => Ok(()),
            _ => Err(Failure::setup(self.result()?.unwrap_or_else(|| "the test was killed".to_owned()))),
        }
    }

    /// What it has to say; nothing where it saw nothing.
    fn result(&self) -> Result<Option<String>, Failure> {
        let mut text = String::new();
        (&self.answer).read_to_string(&mut text).context("waiting for a packet")?;
        match text.split_once(FAILED) {
            Some((_, message)) => Err(Failure::setup(message)),
            None => Ok((!text.is_empty()).then_some(text)),
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        let _ = kill_process(self.pid, Signal::KILL);
    }
}

fn act_inside(
    subnet: Subnet,
    mut wait: File,
    told: &mut File,
    act: impl FnOnce(Subnet) -> io::Result<String>,
) -> Result<String, Failure> {
    let mut kernel = Netlink::route().context("opening netlink")?;
    // Whether bridges can be made is found out where it leaves no trace.
    let bridge = Bridge { name: BRIDGE, alias: BRIDGE, subnet, mtu: 1500 };
    link::make_bridge(&mut kernel, bridge).context("making a bridge")?;
    link::remove(&mut kernel, BRIDGE).context("removing a bridge")?;
    wait.read_exact(&mut [0]).context("waiting to be connected")?;
    link::configure_inside(&mut kernel, subnet.address(0), subnet).context("connecting a network namespace")?;
    told.write_all(&[READY]).context("telling that it is connected")?;
    wait.read_exact(&mut [0]).context("waiting to be let go")?;
    act(subnet).context("sending packets")
}

/// Address that the first packet comes from; nothing where none comes.
fn receive(subnet: Subnet) -> io::Result<String> {
    let socket = UdpSocket::bind((subnet.address(0), PORT))?;
    socket.set_read_timeout(Some(ARRIVAL_LIMIT))?;
    match socket.recv_from(&mut [0]) {
        Ok((_, source)) => Ok(source.ip().to_string()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(String::new()),
        Err(error) => Err(error),
    }
}

/// Sends until it can be assumed that nobody waits any more.
fn send(target: SocketAddr) -> io::Result<String> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let end = Instant::now() + 2 * ARRIVAL_LIMIT;
    while Instant::now() < end {
        // The other side may not be there yet.
        let _ = socket.send_to(b"?", target);
        std::thread::sleep(PACE);
    }
    Ok(String::new())
}
