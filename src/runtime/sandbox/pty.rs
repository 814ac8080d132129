//! Terminals of commands inside: made where the command can see them, and used by the controller.
//!
//! A pseudoterminal has two ends, and the name of the command's end is that of a file system (devpts). An instance has
//! one of its own, which only a process inside can open; so the helper does, and hands the master on to the controller
//! over a socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::cmsg_space;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fchown, fstat, fstatfs, major, minor, openat2};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use rustix::process::{Uid, ioctl_tiocsctty};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::sys;

/// Where an instance's own terminals are made.
const PTMX: &str = "/dev/pts/ptmx";
/// Number of the device that makes terminals (devices.txt of Linux).
const PTMX_DEVICE: (u32, u32) = (5, 2);

/// Columns and rows.
pub type Size = (u16, u16);

/// Makes a terminal and gives its master. In an instance with mounts of its own it belongs to the instance; the
/// caller has joined them.
///
/// # Errors
/// The machine gives no more terminals (`kernel.pty.max`), or what is at the instance's `/dev/pts/ptmx` is something
/// else.
pub fn open(of_instance: bool, size: Size) -> io::Result<OwnedFd> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = if of_instance { open_own()? } else { openpt(flags)? };
    unlockpt(&master)?;
    resize(master.as_fd(), size)?;
    Ok(master)
}

/// The files inside belong to the instance, which may have put anything there.
fn open_own() -> io::Result<OwnedFd> {
    // Without waiting: a pipe, for example, would have the caller wait for its other end.
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let master = openat2(CWD, PTMX, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    let device = fstat(&master)?.st_rdev;
    if fstatfs(&master)?.f_type != libc::DEVPTS_SUPER_MAGIC || (major(device), minor(device)) != PTMX_DEVICE {
        return Err(io::Error::other(format!("the instance has something else at {PTMX}")));
    }
    Ok(master)
}

/// The command's end, given to this user as a login does.
///
/// # Errors
/// What the kernel reports.
pub fn end(master: BorrowedFd<'_>, uid: u32) -> io::Result<OwnedFd> {
    let end = ioctl_tiocgptpeer(master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    // Without the right to do so the user is the same already; a terminal that stays another's can be used all the same.
    let _ = fchown(&end, Some(Uid::from_raw(uid)), None);
    Ok(end)
}

/// Makes a terminal, hands its master over, and takes it as this session's own and as the standard descriptors. This
/// process leads a session that has none.
///
/// # Errors
/// As for [`open`]; nobody is there to take the master.
pub fn connect(of_instance: bool, size: Size, uid: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
    take(make(of_instance, size, uid, socket)?.as_fd())
}

/// Makes a terminal, hands its master over and gives the command's end.
///
/// # Errors
/// As for [`open`]; nobody is there to take the master.
pub fn make(of_instance: bool, size: Size, uid: u32, socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let master = open(of_instance, size)?;
    let end = end(master.as_fd(), uid)?;
    hand_over(socket, master.as_fd())?;
    Ok(end)
}

/// Takes the command's end as this session's own and as the standard descriptors. This process leads a session that has
/// none.
///
/// # Errors
/// What the kernel reports.
pub fn take(end: BorrowedFd<'_>) -> io::Result<()> {
    ioctl_tiocsctty(end)?;
    for number in 0..=2 {
        sys::replace_standard(number, end)?;
    }
    Ok(())
}

/// Another descriptor of the command's end, which keeps the terminal alive while no process has it open.
///
/// # Errors
/// What the kernel reports.
pub fn hold_open(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(ioctl_tiocgptpeer(master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?)
}

/// Sets the size. Programs on the terminal are told by SIGWINCH.
///
/// # Errors
/// It is no terminal.
pub fn resize(master: BorrowedFd<'_>, (columns, rows): Size) -> io::Result<()> {
    Ok(tcsetwinsize(master, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?)
}

/// A socket for one master: the side that takes it, which does not wait, and the side that hands it over.
///
/// # Errors
/// No descriptor is left.
pub fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    let (taking, handing) = UnixStream::pair()?;
    taking.set_nonblocking(true)?;
    Ok((taking.into(), handing.into()))
}

/// Sends a master.
///
/// # Errors
/// Nobody is there to take it.
pub fn hand_over(socket: BorrowedFd<'_>, master: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    let masters = [master];
    if !rights.push(SendAncillaryMessage::ScmRights(&masters)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    // Rights travel with at least one byte.
    sendmsg(socket, &[IoSlice::new(&[0])], &mut rights, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives a master.
///
/// # Errors
/// `WouldBlock` while none was sent; nobody is there to send one.
pub fn take_over(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut rights, RecvFlags::CMSG_CLOEXEC)?;
    let received = rights.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut masters) => masters.next(),
        _ => None,
    });
    received.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the command has no terminal"))
}

#[cfg(test)]
mod tests {
    use rustix::termios::{isatty, tcgetwinsize};

    use super::*;

    #[test]
    fn a_master_that_is_handed_over_is_the_same_terminal() {
        let (taking, handing) = channel().unwrap();
        assert_eq!(take_over(taking.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let made = open(false, (90, 30)).unwrap();
        let end = end(made.as_fd(), rustix::process::geteuid().as_raw()).unwrap();
        hand_over(handing.as_fd(), made.as_fd()).unwrap();
        drop((made, handing));
        let master = take_over(taking.as_fd()).unwrap();
        let size = tcgetwinsize(&end).unwrap();
        assert_eq!((isatty(&end), size.ws_col, size.ws_row), (true, 90, 30));
        resize(master.as_fd(), (100, 40)).unwrap();
        assert_eq!(tcgetwinsize(&end).unwrap().ws_col, 100);
        rustix::io::write(&master, b"typed\n").unwrap();
        let mut read = [0; 16];
        let length = rustix::io::read(&end, &mut read).unwrap();
        assert_eq!(&read[..length], b"typed\n");
    }

    #[test]
    fn a_helper_that_ends_without_a_terminal_is_noticed() {
        let (taking, handing) = channel().unwrap();
        drop(handing);
        assert_eq!(take_over(taking.as_fd()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
