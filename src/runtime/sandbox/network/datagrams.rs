//! Datagrams that are handed on. What one client sends to a published port is a flow, which has a socket of its own in the
//! instance's network, so that the program can tell clients apart and answers find their way back.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::ways::Way;
use crate::runtime::sandbox::sys::datagram::{self, Received};

/// Most flows of one port, each a descriptor; far more clients than one port of one machine's service has at a time.
pub const MOST_FLOWS: usize = 256;
/// Silence in both directions after which a flow is forgotten: that of Docker's proxy.
const IDLE_LIMIT: Duration = Duration::from_secs(90);
/// Longest datagram that there is, in bytes.
const LONGEST: usize = 64 << 10;
/// Most datagrams that are taken from one socket before the others have their turn.
const MOST_IN_A_ROW: usize = 32;
/// Pause where the kernel has no memory left.
const PAUSE: Duration = Duration::from_millis(20);

/// Who sends datagrams, and which address of the machine they are sent to: answers that come from another one are no
/// answers to who waits for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Client {
    address: SocketAddr,
    asked: Option<IpAddr>,
}

/// The flows of one published port.
#[derive(Debug)]
pub struct Flows {
    outside: UdpSocket,
    port: u16,
    /// Those to the program, the likeliest first.
    ways: Vec<Way>,
    flows: HashMap<Client, Flow>,
    buffer: Vec<u8>,
}

/// What one client sends and is sent.
#[derive(Debug)]
struct Flow {
    inside: UdpSocket,
    /// When anything was sent last.
    last: Instant,
    /// Nothing once the program has answered.
    search: Option<Search>,
}

/// How it is found out where the program listens: the kernel tells where nobody does.
#[derive(Debug)]
struct Search {
    /// Ways that were not tried yet.
    rest: Vec<Way>,
    /// The datagram that has had no answer.
    latest: Vec<u8>,
}

impl Flow {
    /// Sends a datagram on the first way that it can be sent on.
    fn open(ways: &[Way], port: u16, datagram: &[u8], now: Instant) -> Option<Self> {
        let (way, rest) = ways.split_first()?;
        let opened = way.datagrams(port).and_then(|inside| inside.send(datagram).map(|_| inside));
        match opened {
            Ok(inside) => {
                let search = Some(Search { rest: rest.to_owned(), latest: datagram.to_owned() });
                Some(Self { inside, last: now, search })
            }
            Err(_) => Self::open(rest, port, datagram, now),
        }
    }

    /// Sends a further datagram. Fails where an earlier one met nobody.
    fn send(&mut self, datagram: &[u8], now: Instant) -> io::Result<()> {
        self.last = now;
        if let Some(search) = &mut self.search {
            datagram.clone_into(&mut search.latest);
        }
        match self.inside.send(datagram) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Err(error),
            // What can't be sent is lost, as datagrams may be.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// The flow on the next way, where nobody listens at this one; none where the program has been there or is
    /// nowhere.
    fn go_on(&mut self, port: u16, now: Instant) -> Option<Self> {
        let Search { rest, latest } = self.search.take()?;
        Self::open(&rest, port, &latest, now)
    }
}

impl Flows {
    /// Those of a socket of the machine, for a port of the instance.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(outside: UdpSocket, port: u16, ways: Vec<Way>) -> io::Result<Self> {
        outside.set_nonblocking(true)?;
        datagram::tell_destination(&outside)?;
        Ok(Self { outside, port, ways, flows: HashMap::new(), buffer: vec![0; LONGEST] })
    }

    /// Hands on for as long as this process lives.
    pub fn serve(&mut self) -> ! {
        loop {
            let (outside, answered) = self.wait();
            for client in answered {
                self.answer(client);
            }
            if outside {
                self.take();
            }
            self.forget(Instant::now());
        }
    }

    /// Waits for datagrams, at most until a flow is to be forgotten. Tells whether clients sent any, and to whom the program
    /// did.
    fn wait(&self) -> (bool, Vec<Client>) {
        let clients: Vec<(&Client, &Flow)> = self.flows.iter().collect();
        let mut fds = vec![PollFd::new(&self.outside, PollFlags::IN)];
        fds.extend(clients.iter().map(|(_, flow)| PollFd::new(&flow.inside, PollFlags::IN)));
        let limit = self.due().map(|due| due.saturating_duration_since(Instant::now())).map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        if poll(&mut fds, limit.as_ref()).is_err() {
            return (false, Vec::new());
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let outside = ready.next() == Some(true);
        let answered = clients.iter().zip(ready).filter(|(_, ready)| *ready).map(|((client, _), _)| **client);
        (outside, answered.collect())
    }

    /// When the next flow is to be forgotten.
    fn due(&self) -> Option<Instant> {
        self.flows.values().map(|flow| flow.last + IDLE_LIMIT).min()
    }

    fn forget(&mut self, now: Instant) {
        self.flows.retain(|_, flow| now.saturating_duration_since(flow.last) < IDLE_LIMIT);
    }

    /// Takes what clients sent.
    fn take(&mut self) {
        for _ in 0..MOST_IN_A_ROW {
            match datagram::receive(&self.outside, &mut self.buffer) {
                Ok(Received { size, from, to }) => {
                    self.hand_on(Client { address: from, asked: to }, size, Instant::now());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => return std::thread::sleep(PAUSE),
            }
        }
    }

    /// Hands the datagram in the buffer on.
    fn hand_on(&mut self, client: Client, size: usize, now: Instant) {
        let datagram = self.buffer.get(..size).unwrap_or_default();
        match self.flows.get_mut(&client).map(|flow| flow.send(datagram, now)) {
            Some(Ok(())) => {}
            Some(Err(_)) => self.go_on(client, now),
            None => {
                if let Some(flow) = Flow::open(&self.ways, self.port, datagram, now) {
                    self.make_room();
                    self.flows.insert(client, flow);
                }
            }
        }
    }

    /// Forgets a flow where there is no room for one more: rather one that never had an answer, as what somebody sends
    /// under invented addresses has none, and rather one that was silent for longer.
    fn make_room(&mut self) {
        if self.flows.len() < MOST_FLOWS {
            return;
        }
        let least = self.flows.iter().min_by_key(|(_, flow)| (flow.search.is_none(), flow.last));
        if let Some(client) = least.map(|(client, _)| *client) {
            self.flows.remove(&client);
        }
    }

    /// Hands back what the program sent to one client.
    fn answer(&mut self, client: Client) {
        for _ in 0..MOST_IN_A_ROW {
            let Some(flow) = self.flows.get_mut(&client) else { return };
            match flow.inside.recv(&mut self.buffer) {
                Ok(size) => {
                    (flow.last, flow.search) = (Instant::now(), None);
                    let answer = self.buffer.get(..size).unwrap_or_default();
                    let _ = datagram::send(&self.outside, answer, client.address, client.asked);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => return self.go_on(client, Instant::now()),
            }
        }
    }

    /// Goes on with a flow whose datagram met nobody. One that is given up begins anew with the next datagram.
    fn go_on(&mut self, client: Client, now: Instant) {
        let Some(mut flow) = self.flows.remove(&client) else { return };
        if let Some(next) = flow.go_on(self.port, now) {
            self.flows.insert(client, next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// To where the tests' programs listen.
    const WAY: Way = Way { from: LOCALHOST, to: LOCALHOST };

    fn socket() -> UdpSocket {
        let socket = UdpSocket::bind((LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket
    }

    fn received(socket: &UdpSocket) -> (String, SocketAddr) {
        let mut buffer = [0; 100];
        let (size, from) = socket.recv_from(&mut buffer).unwrap();
        (String::from_utf8_lossy(&buffer[..size]).into_owned(), from)
    }

    fn port(socket: &UdpSocket) -> u16 {
        socket.local_addr().unwrap().port()
    }

    /// Who sends from this socket to this machine.
    fn client(socket: &UdpSocket) -> Client {
        Client { address: socket.local_addr().unwrap(), asked: Some(LOCALHOST) }
    }

    /// Where datagrams for a port are taken.
    fn serve(port: u16, ways: &[Way]) -> SocketAddr {
        serve_on(socket(), port, ways)
    }

    fn serve_on(outside: UdpSocket, port: u16, ways: &[Way]) -> SocketAddr {
        let address = outside.local_addr().unwrap();
        let mut flows = Flows::new(outside, port, ways.to_owned()).unwrap();
        std::thread::spawn(move || flows.serve());
        address
    }

    #[test]
    fn each_client_gets_its_own_answers() {
        let program = socket();
        let (address, one, two) = (serve(port(&program), &[WAY]), socket(), socket());
        one.send_to(b"first", address).unwrap();
        let (text, of_one) = received(&program);
        assert_eq!(text, "first");
        two.send_to(b"second", address).unwrap();
        let (text, of_two) = received(&program);
        assert_eq!(text, "second");
        program.send_to(b"to two", of_two).unwrap();
        program.send_to(b"to one", of_one).unwrap();
        assert_eq!(received(&one), ("to one".to_owned(), address));
        assert_eq!(received(&two), ("to two".to_owned(), address));
        one.send_to(b"again", address).unwrap();
        assert_eq!(received(&program), ("again".to_owned(), of_one), "the same flow");
    }

    #[test]
    fn answers_come_from_the_address_that_was_asked() {
        for every in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
            // Not every machine has both kinds of addresses.
            let Ok(outside) = UdpSocket::bind((every, 0)) else { continue };
            let (program, client) = (socket(), socket());
            let port = serve_on(outside, port(&program), &[WAY]).port();
            let asked = [[127, 0, 0, 2], [127, 0, 0, 3], [127, 0, 0, 1]].map(|ip| SocketAddr::from((ip, port)));
            let flows = asked.map(|address| {
                client.send_to(b"question", address).unwrap();
                received(&program).1
            });
            for (flow, address) in flows.iter().zip(asked) {
                program.send_to(b"answer", flow).unwrap();
                assert_eq!(received(&client), ("answer".to_owned(), address), "bound to {every}");
            }
        }
    }

    #[test]
    fn datagrams_of_every_size_stay_whole() {
        let program = socket();
        let (address, client) = (serve(port(&program), &[WAY]), socket());
        for size in [0, 1, 9000, 65_507] {
            client.send_to(&vec![7; size], address).unwrap();
            let mut buffer = vec![0; LONGEST];
            let (taken, from) = program.recv_from(&mut buffer).unwrap();
            assert_eq!(taken, size);
            program.send_to(&buffer[..taken], from).unwrap();
            assert_eq!(client.recv(&mut buffer).unwrap(), size);
        }
    }

    #[test]
    fn a_program_that_listens_at_its_other_address_alone_gets_all_but_what_met_nobody() {
        let other = IpAddr::from([127, 0, 0, 2]);
        let program = UdpSocket::bind((other, 0)).unwrap();
        program.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut flows = Flows::new(socket(), port(&program), vec![WAY, Way { from: LOCALHOST, to: other }]).unwrap();
        let (client, now) = (socket(), Instant::now());
        // The second is sent before it was noticed that the first met nobody.
        for text in [b"one", b"two"] {
            flows.buffer[..3].copy_from_slice(text);
            flows.hand_on(self::client(&client), 3, now);
        }
        let (text, from) = received(&program);
        assert_eq!(text, "two");
        program.send_to(b"answer", from).unwrap();
        flows.answer(self::client(&client));
        assert_eq!(received(&client).0, "answer");
    }

    #[test]
    fn a_program_that_comes_back_is_found_again() {
        let program = socket();
        let (port, client) = (port(&program), socket());
        let address = serve(port, &[WAY]);
        client.send_to(b"one", address).unwrap();
        let (_, from) = received(&program);
        program.send_to(b"answer", from).unwrap();
        received(&client);
        drop(program);
        client.send_to(b"lost", address).unwrap();
        let program = loop {
            match UdpSocket::bind((LOCALHOST, port)) {
                Ok(socket) => break socket,
                Err(_) => std::thread::yield_now(),
            }
        };
        program.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut buffer = [0; 100];
        let end = Instant::now() + Duration::from_secs(10);
        while program.recv_from(&mut buffer).is_err() {
            assert!(Instant::now() < end);
            client.send_to(b"back", address).unwrap();
        }
    }

    #[test]
    fn flows_are_bounded_and_those_without_answers_make_room_first() {
        let program = socket();
        let mut flows = Flows::new(socket(), port(&program), vec![WAY]).unwrap();
        let now = Instant::now();
        let client = |number: usize| Client {
            address: SocketAddr::from((LOCALHOST, u16::try_from(1000 + number).unwrap())),
            asked: None,
        };
        let hand_on = |flows: &mut Flows, number: usize| {
            flows.hand_on(client(number), 1, now + Duration::from_millis(u64::try_from(number).unwrap()));
        };
        for number in 0..MOST_FLOWS {
            hand_on(&mut flows, number);
        }
        flows.flows.get_mut(&client(0)).unwrap().search = None;
        for number in MOST_FLOWS..MOST_FLOWS + 10 {
            hand_on(&mut flows, number);
            assert_eq!(flows.flows.len(), MOST_FLOWS);
        }
        let gone: Vec<usize> = (0..MOST_FLOWS + 10).filter(|one| !flows.flows.contains_key(&client(*one))).collect();
        assert_eq!(gone, (1..=10).collect::<Vec<_>>(), "the one with an answer stays, though it is silent for longest");
    }

    #[test]
    fn silent_flows_are_forgotten_when_they_are_due() {
        let program = socket();
        let mut flows = Flows::new(socket(), port(&program), vec![WAY]).unwrap();
        let of = |port: u16| Client { address: SocketAddr::from((LOCALHOST, port)), asked: None };
        let (one, two, now) = (of(1), of(2), Instant::now());
        assert_eq!(flows.due(), None);
        let later = now + Duration::from_secs(5);
        flows.hand_on(one, 1, now);
        flows.hand_on(two, 1, later);
        assert_eq!(flows.due(), Some(now + IDLE_LIMIT));
        flows.forget(now + IDLE_LIMIT);
        assert_eq!(flows.flows.keys().collect::<Vec<_>>(), [&two]);
        assert_eq!(flows.due(), Some(later + IDLE_LIMIT));
    }
}
