//! Those who are attached to a program: the supervisor's side.

use std::fs;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, accept_with, bind, listen, recv,
    send, sendmsg,
};

use super::super::ancestry::is_inside;
use super::super::layout::InstanceDir;
use super::super::sys::peer::number_of_peer;
use super::packet::{MOST_TEXT, Packet, WATCH, WRITE};
use super::{SOCKET, socket, with_address};
use crate::runtime::io::OutputStream;

/// Most that are attached at once: some terminals and some programs.
const MOST_GUESTS: usize = 8;
/// Most output that waits for one of them, in bytes as the kernel counts them: two pipes.
const WAITING_OUTPUT: usize = 128 << 10;
/// Room for a last word to one that let all of that wait.
const LAST_WORD: usize = 4 << 10;
/// What kernels multiply the size of a buffer by, for what they keep with it (socket(7), SO_SNDBUF).
const DOUBLED: usize = 2;
/// Most that wait to be let in; the supervisor lets them in at once.
const WAITING: i32 = 8;

/// What may be handed to those who are attached.
#[derive(Debug)]
pub enum Input {
    /// The pipe of standard input, to one who writes.
    Pipe(OwnedFd),
    /// The terminal: to everyone, as everyone may set its size; only one writes.
    Terminal {
        /// Its master.
        master: OwnedFd,
        /// Whether anybody may write.
        open: bool,
    },
}

/// Those who are attached.
#[derive(Debug)]
pub struct Audience {
    listener: OwnedFd,
    input: Input,
    guests: Vec<Guest>,
}

/// One of them.
#[derive(Debug)]
struct Guest {
    socket: OwnedFd,
    stage: Stage,
    /// Bytes that it did not take in time and was not told of.
    left_out: u64,
}

/// How far one has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It has not said what it wants.
    Silent,
    /// It sees the output.
    Watching,
    /// It sees the output and holds the input.
    Writing,
}

impl Audience {
    /// Listens in the directory of an instance.
    ///
    /// # Errors
    /// The socket can't be made.
    pub fn open(dir: &InstanceDir, input: Input) -> io::Result<Self> {
        let _ = fs::remove_file(dir.path().join(SOCKET));
        let listener = socket()?;
        with_address(dir.path(), |address| bind(&listener, address))?;
        listen(&listener, WAITING)?;
        Ok(Self { listener, input, guests: Vec::new() })
    }

    /// What is to be waited for.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [self.listener.as_fd()].into_iter().chain(self.guests.iter().map(|guest| guest.socket.as_fd()))
    }

    /// Lets in who waits, hears what they want, and forgets who left. Never waits.
    pub fn attend(&mut self) {
        while let Ok(socket) = accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            // Neither Landlock nor a mode keeps a program of the same user from connecting.
            if number_of_peer(socket.as_fd()).map_or(true, is_inside) {
                refuse(&socket, "this runs inside of a sandbox; attach from outside of it");
                continue;
            }
            let bounded = set_socket_send_buffer_size(&socket, WAITING_OUTPUT / DOUBLED).is_ok();
            if bounded && self.guests.len() < MOST_GUESTS {
                self.guests.push(Guest { socket, stage: Stage::Silent, left_out: 0 });
            } else {
                refuse(&socket, &format!("{MOST_GUESTS} are attached already; let one of them detach"));
            }
        }
        let mut index = 0;
        while let Some(guest) = self.guests.get(index) {
            let mut word = [0];
            let stays = match recv(&guest.socket, &mut word, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => false,
                Ok((_, _)) => guest.stage != Stage::Silent || self.welcome(index, word[0]),
                Err(Errno::AGAIN | Errno::INTR) => true,
                Err(_) => false,
            };
            if stays {
                index += 1;
            } else {
                self.guests.swap_remove(index);
            }
        }
    }

    /// Answers one who said what it wants; false where it can't have it.
    fn welcome(&mut self, index: usize, word: u8) -> bool {
        let taken = self.guests.iter().any(|guest| guest.stage == Stage::Writing);
        let Some(guest) = self.guests.get_mut(index) else { return false };
        let (stage, handed) = match (word, &self.input) {
            (WATCH, Input::Pipe(_)) => (Stage::Watching, None),
            (WATCH, Input::Terminal { master, .. }) => (Stage::Watching, Some(master)),
            (WRITE, Input::Terminal { open: false, .. }) => {
                refuse(&guest.socket, "its standard input is closed");
                return false;
            }
            (WRITE, _) if taken => {
                refuse(&guest.socket, "somebody else is attached to its input; attach without input, or wait");
                return false;
            }
            (WRITE, Input::Pipe(input) | Input::Terminal { master: input, .. }) => (Stage::Writing, Some(input)),
            _ => return false,
        };
        guest.stage = stage;
        hand(&guest.socket, &Packet::Welcome.encode(), handed.map(AsFd::as_fd)).is_ok()
    }

    /// Tells those who missed the end of the output how much that was. Nothing is sent after it.
    pub fn take_leave(&mut self) {
        for guest in self.guests.drain(..).filter(|guest| guest.left_out > 0) {
            let _ = set_socket_send_buffer_size(&guest.socket, (WAITING_OUTPUT + LAST_WORD) / DOUBLED + MOST_TEXT);
            guest.send(&Packet::LeftOut(guest.left_out).encode());
        }
    }

    /// Sends a piece of output to everyone. What one does not take now it does not get.
    pub fn tell(&mut self, stream: OutputStream, bytes: &[u8]) {
        if self.guests.is_empty() {
            return;
        }
        for piece in bytes.chunks(MOST_TEXT) {
            let packet = Packet::Output(stream, piece).encode();
            for guest in self.guests.iter_mut().filter(|guest| guest.stage != Stage::Silent) {
                guest.tell(&packet, piece.len());
            }
        }
    }
}

impl Guest {
    fn tell(&mut self, packet: &[u8], length: usize) {
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        // First of all what it missed, or the pieces would read as if they belonged together.
        if self.left_out > 0 && self.send(&Packet::LeftOut(self.left_out).encode()) {
            self.left_out = 0;
        }
        if self.left_out > 0 || !self.send(packet) {
            self.left_out = self.left_out.saturating_add(length);
        }
    }

    /// One that has left is forgotten when its socket says so.
    fn send(&self, packet: &[u8]) -> bool {
        send(&self.socket, packet, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).is_ok()
    }
}

fn refuse(socket: &OwnedFd, why: &str) {
    let _ = send(socket, &Packet::Refused(why).encode(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
}

/// Sends a packet and a descriptor.
fn hand(socket: &OwnedFd, packet: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    if !descriptors.is_empty() && !rights.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    sendmsg(socket, &[IoSlice::new(packet)], &mut rights, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::net::connect;

    use super::super::packet::LARGEST;
    use super::*;

    struct Stage {
        _dir: tempfile::TempDir,
        dir: InstanceDir,
        audience: Audience,
        _input: io::PipeReader,
    }

    impl Stage {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let dir = InstanceDir(folder.path().to_owned());
            let (reader, writer) = io::pipe().unwrap();
            let audience = Audience::open(&dir, Input::Pipe(writer.into())).unwrap();
            Self { _dir: folder, dir, audience, _input: reader }
        }

        fn guest(&mut self, wants: u8) -> OwnedFd {
            let guest = socket().unwrap();
            with_address(self.dir.path(), |address| connect(&guest, address)).unwrap();
            send(&guest, &[wants], SendFlags::empty()).unwrap();
            self.audience.attend();
            guest
        }
    }

    /// The next packet; nothing where there is none. One whose word was not heard is told so first.
    fn next(guest: &OwnedFd) -> Vec<u8> {
        let mut buffer = vec![0; LARGEST];
        let mut read = || recv(guest, &mut buffer[..], RecvFlags::DONTWAIT).map(|(_, size)| size);
        let size = read().or_else(|_| read()).unwrap_or(0);
        buffer.truncate(size);
        buffer
    }

    #[test]
    fn everyone_sees_the_output_and_one_alone_writes() {
        let mut stage = Stage::new();
        let watcher = stage.guest(WATCH);
        let writer = stage.guest(WRITE);
        let second = stage.guest(WRITE);
        for (guest, expected) in [(&watcher, "w"), (&writer, "w")] {
            assert_eq!(next(guest), expected.as_bytes());
        }
        assert!(String::from_utf8(next(&second)).unwrap().starts_with("rsomebody else is attached"));
        stage.audience.tell(OutputStream::Stderr, b"oops");
        assert_eq!((next(&watcher), next(&writer)), (b"2oops".to_vec(), b"2oops".to_vec()));
        drop(writer);
        stage.audience.attend();
        assert_eq!(next(&stage.guest(WRITE)), b"w", "the one before has left");
    }

    #[test]
    fn one_who_does_not_read_is_told_how_much_was_left_out() {
        let mut stage = Stage::new();
        let slow = stage.guest(WATCH);
        assert_eq!(next(&slow), b"w");
        let piece = vec![b'x'; MOST_TEXT];
        let rounds = 1000;
        for _ in 0..rounds {
            stage.audience.tell(OutputStream::Stdout, &piece);
        }
        let mut read = 0;
        while let Some(Packet::Output(_, bytes)) = Packet::parse(&next(&slow)) {
            read += bytes.len();
        }
        assert!(read > 0 && read < rounds * MOST_TEXT, "{read}");
        stage.audience.tell(OutputStream::Stdout, b"end");
        let left_out = u64::try_from(rounds * MOST_TEXT - read).unwrap();
        assert_eq!(Packet::parse(&next(&slow)), Some(Packet::LeftOut(left_out)));
        assert_eq!(next(&slow), b"1end");
    }

    #[test]
    fn one_who_missed_the_end_is_told_at_the_end() {
        let mut stage = Stage::new();
        let slow = stage.guest(WATCH);
        next(&slow);
        let piece = vec![b'x'; MOST_TEXT];
        for _ in 0..100 {
            stage.audience.tell(OutputStream::Stdout, &piece);
        }
        stage.audience.take_leave();
        let (mut read, mut last) = (0, 0);
        while let Some(packet) = Packet::parse(&next(&slow)) {
            match packet {
                Packet::Output(_, bytes) => read += bytes.len(),
                Packet::LeftOut(count) => last = usize::try_from(count).unwrap(),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(read + last, 100 * MOST_TEXT);
        assert!(read > 0 && last > 0, "{read} {last}");
    }

    #[test]
    fn more_than_can_be_served_are_refused() {
        let mut stage = Stage::new();
        let guests: Vec<OwnedFd> = (0..MOST_GUESTS).map(|_| stage.guest(WATCH)).collect();
        assert!(String::from_utf8(next(&stage.guest(WATCH))).unwrap().starts_with("r8 are attached already"));
        drop(guests);
        stage.audience.attend();
        assert_eq!(next(&stage.guest(WATCH)), b"w");
    }
}
