//! The processes of an instance, in the way that the machine allows to know them.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Dir, Mode, OFlags, openat, readlinkat};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::super::process::descendants;
use super::control;
use super::groups::Groups;

/// Largest file of `/proc/PID` that is read here.
const LONGEST: u64 = 16 << 10;
/// Longest list of mounts that is read here: some thousand of them.
const LONGEST_MOUNTS: u64 = 1 << 20;

/// Who belongs to an instance.
#[derive(Debug)]
pub enum Members {
    /// Who is in its control groups.
    Groups(Groups),
    /// Who is in its process namespace, as its own `/proc` shows them, with the numbers that they have inside.
    Namespace(OwnedFd),
    /// This process and who descends from it. A command that was started inside from elsewhere does not.
    From(i32),
    /// Who descends from this process. A command that was started inside from elsewhere does not.
    Below(i32),
}

impl Members {
    /// Everyone who belongs to it now, in the `/proc` that shows them.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn now(&self) -> io::Result<Seen<'_>> {
        let machine = || openat(CWD, "/proc", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        Ok(match self {
            Self::Groups(groups) => Seen { proc: Proc::Machine(machine()?), pids: control::processes(groups)? },
            Self::From(first) => {
                let pids = [vec![*first], descendants(*first)].concat();
                Seen { proc: Proc::Machine(machine()?), pids }
            }
            Self::Below(first) => Seen { proc: Proc::Machine(machine()?), pids: descendants(*first) },
            Self::Namespace(proc) => {
                let names =
                    Dir::read_from(proc)?.filter_map(|entry| entry.ok()?.file_name().to_str().ok()?.parse().ok());
                Seen { pids: names.collect(), proc: Proc::Inside(proc.as_fd()) }
            }
        })
    }
}

/// The `/proc` that shows the members of an instance.
#[derive(Debug)]
enum Proc<'a> {
    Machine(OwnedFd),
    Inside(BorrowedFd<'a>),
}

/// Members as they were seen.
#[derive(Debug)]
pub struct Seen<'a> {
    proc: Proc<'a>,
    /// Their numbers in that `/proc`.
    pub pids: Vec<i32>,
}

impl Seen<'_> {
    /// A file of a member's directory in `/proc`.
    ///
    /// # Errors
    /// The member is gone, or does not let itself be looked at.
    pub fn read(&self, pid: i32, file: &str) -> io::Result<String> {
        let opened = openat(self.proc(), format!("{pid}/{file}"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut text = String::new();
        File::from(opened).take(LONGEST).read_to_string(&mut text)?;
        Ok(text)
    }

    /// The mounts that a member sees, as the kernel lists them.
    ///
    /// # Errors
    /// The member is gone, or does not let itself be looked at.
    pub fn mounts(&self, pid: i32) -> io::Result<Vec<u8>> {
        let name = format!("{pid}/mountinfo");
        let opened = openat(self.proc(), name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut list = Vec::new();
        File::from(opened).take(LONGEST_MOUNTS).read_to_end(&mut list)?;
        Ok(list)
    }

    /// Whether a member sees other mounts than this process does.
    pub fn has_other_mounts(&self, pid: i32) -> bool {
        let own = readlinkat(CWD, "/proc/self/ns/mnt", Vec::new());
        let its = readlinkat(self.proc(), format!("{pid}/ns/mnt"), Vec::new());
        matches!((own, its), (Ok(own), Ok(its)) if own != its)
    }

    /// A place that a member sees, from its root on, to ask about and not to read.
    ///
    /// # Errors
    /// It is not there, or the member is gone or does not let itself be looked at.
    pub fn place(&self, pid: i32, place: &Path) -> io::Result<OwnedFd> {
        let from_root = place.strip_prefix("/").unwrap_or(place);
        let name = Path::new(&pid.to_string()).join("root").join(from_root);
        Ok(openat(self.proc(), &name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
    }

    fn proc(&self) -> BorrowedFd<'_> {
        match &self.proc {
            Proc::Machine(proc) => proc.as_fd(),
            Proc::Inside(proc) => *proc,
        }
    }
}

/// Hands the `/proc` of a new process namespace out to the supervisor, which could not make one for it.
#[derive(Debug)]
pub struct Window {
    inside: OwnedFd,
    outside: OwnedFd,
}

impl Window {
    /// A window that nothing was handed through yet.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<Self> {
        let (inside, outside) =
            socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
        Ok(Self { inside, outside })
    }

    /// What it holds open.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.inside.as_fd(), self.outside.as_fd()]
    }

    /// Hands out the `/proc` that this process sees.
    ///
    /// # Errors
    /// There is none, or the kernel refuses.
    pub fn hand_out(&self) -> io::Result<()> {
        let proc = openat(CWD, "/proc", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut message = SendAncillaryBuffer::new(&mut space);
        let fds = [proc.as_fd()];
        message.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(&self.inside, &[IoSlice::new(b"/")], &mut message, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Takes what was handed out.
    ///
    /// # Errors
    /// Nothing was.
    pub fn take(self) -> io::Result<OwnedFd> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut message = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        recvmsg(&self.outside, &mut [IoSliceMut::new(&mut byte)], &mut message, RecvFlags::CMSG_CLOEXEC)?;
        let mut handed = message.drain().filter_map(|part| match part {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        handed.next().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_handed_through_a_window_shows_processes() {
        let window = Window::new().unwrap();
        window.hand_out().unwrap();
        let members = Members::Namespace(window.take().unwrap());
        let seen = members.now().unwrap();
        let own = std::process::id().cast_signed();
        assert!(seen.pids.contains(&own));
        assert!(seen.read(own, "stat").unwrap().starts_with(&format!("{own} (")));
        assert!(Window::new().unwrap().take().is_err());
    }

    #[test]
    fn children_belong_to_the_process_above_them_and_others_do_not() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let members = Members::Below(std::process::id().cast_signed());
        let seen = members.now().unwrap().pids;
        assert!(seen.contains(&child.id().cast_signed()));
        assert!(!seen.contains(&1) && !seen.contains(&std::process::id().cast_signed()));
        assert_eq!(Members::From(child.id().cast_signed()).now().unwrap().pids, [child.id().cast_signed()]);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
