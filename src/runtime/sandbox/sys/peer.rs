//! Who connected to a Unix socket, in a way that outlasts the reuse of process numbers.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Number of the process that connected: `SO_PEERCRED`. Zero for one of a process namespace above.
///
/// # Errors
/// It is no connected Unix socket.
pub fn number_of_peer(socket: BorrowedFd<'_>) -> io::Result<i32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut size = libc::socklen_t::try_from(size_of::<libc::ucred>()).unwrap_or_default();
    // SAFETY: the kernel writes at most `size` bytes, which is the size of what the pointer refers to; any are valid.
    let result = unsafe {
        let value = (&raw mut peer).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, value, &raw mut size)
    };
    if result == 0 { Ok(peer.pid) } else { Err(io::Error::last_os_error()) }
}

/// Refers to the process that connected: `SO_PEERPIDFD` of Linux 6.5; `None` on kernels before.
///
/// # Errors
/// The process has ended and was reaped, or no descriptor is left.
pub fn process_of_peer(socket: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    let mut pidfd: RawFd = -1;
    let mut size = libc::socklen_t::try_from(size_of::<RawFd>()).unwrap_or_default();
    // SAFETY: the kernel writes at most `size` bytes, which is the size of what the pointer refers to.
    let result = unsafe {
        let value = (&raw mut pidfd).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERPIDFD, value, &raw mut size)
    };
    match result {
        // SAFETY: the kernel stored a descriptor that nothing else owns.
        0 => Ok(Some(unsafe { OwnedFd::from_raw_fd(pidfd) })),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(None),
            error => Err(error),
        },
    }
}
