//! Datagrams with the address of this machine that they are sent to or come from: system calls that neither the standard
//! library nor rustix offers as safe functions.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use rustix::net::SocketAddrAny;
use rustix::net::addr::{SocketAddrArg, SocketAddrStorage};

/// Room for one control message with an address of either family: a header of 16 bytes and at most 20 of content.
#[repr(C)]
struct Space {
    /// Headers have to be aligned.
    _aligned: [libc::cmsghdr; 0],
    bytes: [u8; 64],
}

impl Space {
    const fn new() -> Self {
        Self { _aligned: [], bytes: [0; 64] }
    }
}

/// A datagram that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes of it that were written into the buffer.
    pub size: usize,
    /// Who sent it.
    pub from: SocketAddr,
    /// The address of this machine that it was sent to; none where that is no machine's alone, or was not asked for.
    pub to: Option<IpAddr>,
}

/// Has [`receive`] tell which address datagrams were sent to, from now on.
///
/// # Errors
/// The kernel refuses.
pub fn tell_destination(socket: &UdpSocket) -> io::Result<()> {
    let (level, option) = match socket.local_addr()? {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_PKTINFO),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    };
    let on: libc::c_int = 1;
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads an integer of the size that it is told, and `on` outlives the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Receives a datagram; what is longer than the buffer is cut off.
///
/// # Errors
/// `WouldBlock` where the socket does not block and there is none; the kernel refuses.
pub fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Received> {
    let mut name = MaybeUninit::<SocketAddrStorage>::zeroed();
    let mut space = Space::new();
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut message = empty();
    message.msg_name = name.as_mut_ptr().cast();
    message.msg_namelen = size_of::<SocketAddrStorage>() as libc::socklen_t;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = space.bytes.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Space>() as _;
    // SAFETY: every pointer in `message` leads to memory of the length beside it, which may be written and outlives the
    // call.
    let result = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let Ok(size) = usize::try_from(result) else { return Err(io::Error::last_os_error()) };
    // SAFETY: `name` was zeroed, and the kernel wrote an address of this length, which is at least its family.
    let from = unsafe { SocketAddrAny::new(name, message.msg_namelen) };
    Ok(Received { size, from: SocketAddr::try_from(from)?, to: destination(&message) })
}

/// Sends a datagram from this address of the machine, or from the one that routing chooses.
///
/// # Errors
/// `WouldBlock` where the socket does not block and there is no room; the machine does not have that address; the kernel
/// refuses.
pub fn send(socket: &UdpSocket, datagram: &[u8], to: SocketAddr, from: Option<IpAddr>) -> io::Result<()> {
    let mut space = Space::new();
    let mut part = libc::iovec { iov_base: datagram.as_ptr().cast_mut().cast(), iov_len: datagram.len() };
    let mut message = empty();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    match from {
        Some(IpAddr::V4(ip)) => {
            let none = libc::in_addr { s_addr: 0 };
            let source = libc::in_addr { s_addr: u32::from(ip).to_be() };
            let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: none };
            attach(&mut message, &mut space, (libc::IPPROTO_IP, libc::IP_PKTINFO), info);
        }
        Some(IpAddr::V6(ip)) => {
            let source = libc::in6_addr { s6_addr: ip.octets() };
            let info = libc::in6_pktinfo { ipi6_addr: source, ipi6_ifindex: 0 };
            attach(&mut message, &mut space, (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO), info);
        }
        None => {}
    }
    // SAFETY: the closure is given an address of that length, which outlives it, as does all that `message` leads to; the
    // kernel only reads it.
    let result = unsafe {
        to.with_sockaddr(|name, length| {
            message.msg_name = name.cast_mut().cast();
            message.msg_namelen = length;
            libc::sendmsg(socket.as_raw_fd(), &raw const message, 0)
        })
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn empty() -> libc::msghdr {
    // SAFETY: an all-zero msghdr is a valid value: null pointers, each with the length 0.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

/// The address that a message which was received was sent to.
fn destination(message: &libc::msghdr) -> Option<IpAddr> {
    // SAFETY: the kernel filled in the control messages and their length. The first is whole or missing, as there is room
    // for it and nothing else is asked for; what it holds is told by its level and type, and need not be aligned.
    let ip: IpAddr = unsafe {
        let header = libc::CMSG_FIRSTHDR(message);
        match header.as_ref().map(|header| (header.cmsg_level, header.cmsg_type))? {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                let info: libc::in_pktinfo = libc::CMSG_DATA(header).cast::<libc::in_pktinfo>().read_unaligned();
                // The machine's own address, also where the datagram was sent to many.
                Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr)).into()
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                let info = libc::CMSG_DATA(header).cast::<libc::in6_pktinfo>().read_unaligned();
                Ipv6Addr::from(info.ipi6_addr.s6_addr).into()
            }
            _ => return None,
        }
    };
    (!ip.is_multicast() && !ip.is_unspecified()).then_some(ip)
}

/// Puts one control message into a message that is to be sent.
fn attach<T>(message: &mut libc::msghdr, space: &mut Space, (level, kind): (libc::c_int, libc::c_int), content: T) {
    let size = size_of::<T>() as libc::c_uint;
    message.msg_control = space.bytes.as_mut_ptr().cast();
    // SAFETY: CMSG_SPACE and CMSG_LEN compute. The first header lies at the start of `space`, which is aligned for it and
    // has room for it and for the content of either family.
    unsafe {
        message.msg_controllen = libc::CMSG_SPACE(size) as _;
        let header = libc::CMSG_FIRSTHDR(message);
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        (*header).cmsg_len = libc::CMSG_LEN(size) as _;
        libc::CMSG_DATA(header).cast::<T>().write_unaligned(content);
    }
}
