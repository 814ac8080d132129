//! Handing descriptors of an instance's network from its first process to the supervisor.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::egress::PORT;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where a process finds its own namespaces.
const USERS: &str = "/proc/self/ns/user";
const NETWORK: &str = "/proc/self/ns/net";
/// Most descriptors that are handed over.
const MOST: usize = 3;
/// What tells which of them there are: always the network, then its users, then the socket of the egress proxy.
const HAS_USERS: u8 = 1;
const HAS_PROXY: u8 = 2;
/// Longest time until the first process hands out: it does so before it mounts anything that could hang.
const LIMIT: Duration = Duration::from_secs(30);

/// Two ends of a socket, of which each process uses one.
#[derive(Debug)]
pub struct Handover {
    inside: OwnedFd,
    outside: OwnedFd,
}

/// The namespaces in which an instance has its interfaces.
#[derive(Debug)]
pub struct Place {
    /// Its network.
    pub network: OwnedFd,
    /// Whose users may use it, where that is not the machine.
    pub users: Option<OwnedFd>,
    /// Where the egress proxy listens in it.
    pub proxy: Option<TcpListener>,
}

impl Place {
    /// Moves this process into it, with every capability of its users. Must not have threads.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn enter(&self) -> io::Result<()> {
        if let Some(users) = &self.users {
            move_into_link_name_space(users.as_fd(), Some(LinkNameSpaceType::User))?;
        }
        Ok(move_into_link_name_space(self.network.as_fd(), Some(LinkNameSpaceType::Network))?)
    }
}

impl Handover {
    /// A socket for one instance.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<Self> {
        let (inside, outside) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok(Self { inside, outside })
    }

    /// What it holds open.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.inside.as_fd(), self.outside.as_fd()]
    }

    /// In the first process: hands its namespaces out, while the machine's `/proc` is still there, and a socket of its
    /// loopback interface for the egress proxy where there is to be one.
    ///
    /// # Errors
    /// They can't be opened, or the supervisor is gone.
    pub fn hand_out(&self, has_users: bool, has_proxy: bool) -> io::Result<()> {
        let open = |path: &str| openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let mut all = vec![open(NETWORK)?];
        if has_users {
            all.push(open(USERS)?);
        }
        if has_proxy {
            all.push(TcpListener::bind((Ipv4Addr::LOCALHOST, PORT))?.into());
        }
        let there = if has_users { HAS_USERS } else { 0 } | if has_proxy { HAS_PROXY } else { 0 };
        let borrowed: Vec<BorrowedFd<'_>> = all.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&borrowed));
        sendmsg(&self.inside, &[IoSlice::new(&[there])], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// In the supervisor: waits for what is handed out, and takes it.
    ///
    /// # Errors
    /// Nothing is handed out: the first process ended, or hangs.
    pub fn take(self) -> io::Result<Place> {
        drop(self.inside);
        let limit = Timespec { tv_sec: i64::try_from(LIMIT.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
        if poll(&mut [PollFd::new(&self.outside, PollFlags::IN)], Some(&limit))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let mut there = [0];
        recvmsg(&self.outside, &mut [IoSliceMut::new(&mut there)], &mut ancillary, flags)?;
        let mut received = ancillary.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
            _ => Vec::new(),
        });
        let mut next = || received.next().ok_or(io::ErrorKind::InvalidData);
        let [there] = there;
        Ok(Place {
            network: next()?,
            users: (there & HAS_USERS != 0).then(&mut next).transpose()?,
            proxy: (there & HAS_PROXY != 0).then(&mut next).transpose()?.map(TcpListener::from),
        })
    }
}
