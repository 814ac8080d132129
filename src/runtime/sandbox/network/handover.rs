//! Handing descriptors of an instance's network from its first process to the supervisor.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// Where a process finds its own namespaces.
const USERS: &str = "/proc/self/ns/user";
const NETWORK: &str = "/proc/self/ns/net";
/// Most descriptors that are handed over.
const MOST: usize = 2;

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

    /// In the first process: hands its namespaces out, while the machine's `/proc` is still there.
    ///
    /// # Errors
    /// They can't be opened, or the supervisor is gone.
    pub fn hand_out(&self, has_users: bool) -> io::Result<()> {
        let open = |path: &str| openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let mut all = vec![open(NETWORK)?];
        if has_users {
            all.push(open(USERS)?);
        }
        let borrowed: Vec<BorrowedFd<'_>> = all.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&borrowed));
        sendmsg(&self.inside, &[IoSlice::new(b"n")], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// In the supervisor: takes what was handed out, once the first process said that it is ready.
    ///
    /// # Errors
    /// Nothing was handed out.
    pub fn take(self) -> io::Result<Place> {
        drop(self.inside);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        recvmsg(&self.outside, &mut [IoSliceMut::new(&mut [0])], &mut ancillary, flags)?;
        let mut received = ancillary.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
            _ => Vec::new(),
        });
        let network = received.next().ok_or(io::ErrorKind::InvalidData)?;
        Ok(Place { network, users: received.next() })
    }
}
