//! Requests to the kernel over netlink, which it answers before the call returns. No thread, no runtime: supervisors
//! and the first processes of instances use this.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader,
    NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

/// Bytes before the body of a message (`struct nlmsghdr`).
const HEADER: usize = 16;
/// What messages are aligned to.
const ALIGNMENT: usize = 4;
/// Largest answer: what the kernel puts into one datagram of a list.
const LARGEST_ANSWER: usize = 32 << 10;
/// Longest wait for an answer. The kernel answers within the call; it only waits for its lock over all interfaces.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Most messages of a list that are read: interfaces or routes of a machine with some thousand instances, several each.
const LONGEST_LIST: usize = 1 << 16;

/// A connection to one of the kernel's subsystems, in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

impl Request {
    /// A request of a kind, with further `NLM_F_*` flags, that is answered by an acknowledgement.
    pub fn new(kind: u16, flags: u16, body: Vec<u8>) -> Self {
        Self { kind, flags: flags | NLM_F_ACK, body }
    }

    /// One that is not answered.
    pub fn unanswered(kind: u16, body: Vec<u8>) -> Self {
        Self { kind, flags: 0, body }
    }

    /// A request about interfaces, addresses or routes.
    pub fn route(message: &RouteNetlinkMessage, flags: u16) -> Self {
        let mut body = vec![0; message.buffer_len()];
        message.serialize(&mut body);
        Self::new(message.message_type(), flags, body)
    }

    fn write(&self, sequence: u32, bytes: &mut Vec<u8>) {
        let length = u32::try_from(HEADER + self.body.len()).unwrap_or(u32::MAX);
        bytes.extend(length.to_ne_bytes());
        bytes.extend(self.kind.to_ne_bytes());
        bytes.extend((self.flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(&self.body);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

impl Netlink {
    /// Interfaces, addresses and routes.
    ///
    /// # Errors
    /// The kernel has no netlink, or no descriptor is left.
    pub fn route() -> io::Result<Self> {
        Self::open(None)
    }

    /// Packet filters.
    ///
    /// # Errors
    /// The kernel has no netfilter, or no descriptor is left.
    pub fn netfilter() -> io::Result<Self> {
        Self::open(Some(netlink::NETFILTER))
    }

    fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_LIMIT))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends requests at once and waits until all were carried out.
    ///
    /// # Errors
    /// The first one that the kernel refused. Later ones may have been carried out all the same.
    pub fn change(&mut self, requests: &[Request]) -> io::Result<()> {
        let first = self.send(requests)?;
        let mut open = requests.iter().filter(|request| request.flags & NLM_F_ACK != 0).count();
        while open > 0 {
            self.answers(first, |kind, body, _| {
                if kind == NLMSG_ERROR {
                    open = open.saturating_sub(1);
                    return refusal(body).map_or(Ok(()), Err);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Asks for one thing.
    ///
    /// # Errors
    /// The kernel refuses, as with `ENODEV` and `ENOENT` where there is no such thing.
    pub fn get(&mut self, message: &RouteNetlinkMessage) -> io::Result<Option<RouteNetlinkMessage>> {
        self.ask(&Request::route(message, 0), |header, body| RouteNetlinkMessage::deserialize(header, body).ok())
    }

    /// Asks for one thing that `read` reads; absent where it can't.
    ///
    /// # Errors
    /// The kernel refuses, as with `ENODEV` and `ENOENT` where there is no such thing.
    pub fn ask<T>(
        &mut self,
        request: &Request,
        read: impl Fn(&NetlinkHeader, &[u8]) -> Option<T>,
    ) -> io::Result<Option<T>> {
        let first = self.send(std::slice::from_ref(request))?;
        let (mut found, mut is_done) = (None, false);
        while !is_done {
            self.answers(first, |kind, body, header| {
                if kind == NLMSG_ERROR {
                    is_done = true;
                    return refusal(body).map_or(Ok(()), Err);
                }
                found = read(header, body);
                Ok(())
            })?;
        }
        Ok(found)
    }

    /// Asks for everything of a kind. What this program can't read is left out.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn list(&mut self, message: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let request = Request { flags: NLM_F_DUMP, ..Request::route(message, 0) };
        let first = self.send(&[request])?;
        let (mut found, mut is_done) = (Vec::new(), false);
        while !is_done && found.len() < LONGEST_LIST {
            self.answers(first, |kind, body, header| {
                match kind {
                    NLMSG_DONE => is_done = true,
                    NLMSG_ERROR => return refusal(body).map_or(Ok(()), Err),
                    _ => found.extend(RouteNetlinkMessage::deserialize(header, body).ok()),
                }
                Ok(())
            })?;
        }
        Ok(found)
    }

    /// Sends requests; returns the number of the first.
    fn send(&mut self, requests: &[Request]) -> io::Result<u32> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for request in requests {
            self.sequence = self.sequence.wrapping_add(1);
            request.write(self.sequence, &mut bytes);
        }
        send(&self.socket, &bytes, SendFlags::empty())?;
        Ok(first)
    }

    /// Reads one datagram of answers. Those to requests before `first`, whose caller gave up, are passed over.
    fn answers(
        &self,
        first: u32,
        mut each: impl FnMut(u16, &[u8], &NetlinkHeader) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut buffer = vec![0; LARGEST_ANSWER];
        let size = loop {
            match recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((size, _)) => break size,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        let mut rest = buffer.get(..size).unwrap_or_default();
        while rest.len() >= HEADER {
            let Ok(message) = NetlinkBuffer::new_checked(rest) else { break };
            let length = message.length() as usize;
            if message.sequence_number() >= first {
                let mut header = NetlinkHeader::default();
                header.length = message.length();
                header.message_type = message.message_type();
                header.flags = message.flags();
                each(message.message_type(), message.payload(), &header)?;
            }
            rest = rest.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        }
        Ok(())
    }
}

/// What an answer of kind `NLMSG_ERROR` refuses; none where its number is zero, which is an acknowledgement.
fn refusal(body: &[u8]) -> Option<io::Error> {
    let number = body.first_chunk().copied().map_or(-libc::EPROTO, i32::from_ne_bytes);
    (number != 0).then(|| io::Error::from_raw_os_error(-number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::link::{LinkAttribute, LinkMessage};

    fn named(name: &str) -> RouteNetlinkMessage {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        RouteNetlinkMessage::GetLink(message)
    }

    #[test]
    fn the_loopback_interface_is_found_and_is_in_the_list() {
        let mut kernel = Netlink::route().unwrap();
        let Some(RouteNetlinkMessage::NewLink(link)) = kernel.get(&named("lo")).unwrap() else { panic!("no link") };
        assert_eq!(link.header.index, 1);
        let all = kernel.list(&RouteNetlinkMessage::GetLink(LinkMessage::default())).unwrap();
        let is_loopback =
            |one: &RouteNetlinkMessage| matches!(one, RouteNetlinkMessage::NewLink(link) if link.header.index == 1);
        assert!(all.iter().any(is_loopback));
    }

    #[test]
    fn what_is_not_there_is_an_error_and_the_next_request_is_answered() {
        let mut kernel = Netlink::route().unwrap();
        let error = kernel.get(&named("keel-no-such")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        assert!(kernel.get(&named("lo")).unwrap().is_some());
    }

    #[test]
    fn messages_are_padded() {
        let mut bytes = Vec::new();
        Request::new(7, 0, vec![1, 2, 3]).write(9, &mut bytes);
        assert_eq!(bytes.len(), 20);
        assert_eq!(bytes[..4], 19u32.to_ne_bytes());
        assert_eq!(bytes[4..6], 7u16.to_ne_bytes());
        assert_eq!(bytes[8..12], 9u32.to_ne_bytes());
    }
}
