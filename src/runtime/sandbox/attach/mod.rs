//! Attaching to the program of an instance: its output from now on, and its standard input.
//!
//! A supervisor whose program has input or a terminal listens on a socket in the instance's directory. It sends every
//! piece of output to those who are attached, and leaves out what one does not take in time, so that nobody holds the
//! program up. Input never passes through it: it hands the input's own descriptor to one who asks, and to nobody else for
//! as long as that one stays.
//!
//! The output of any other program is followed in its log.

mod attended;
mod audience;
mod client;
mod console;
mod packet;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

pub use attended::{Attended, Output};
pub use audience::Audience;
pub use console::{Console, console};

/// Name of the socket in the directory of an instance.
const SOCKET: &str = "attach";

/// A socket that keeps the bounds of what is sent, and never waits.
fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Does something with the address of an instance's socket. The path of a state directory may be longer than an address
/// (108 bytes, unix(7)), so the directory is named by a descriptor.
fn with_address<T>(dir: &Path, action: impl FnOnce(&SocketAddrUnix) -> rustix::io::Result<T>) -> io::Result<T> {
    let dir = openat(CWD, dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))?;
    Ok(action(&address)?)
}
