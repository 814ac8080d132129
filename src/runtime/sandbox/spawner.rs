//! The spawner: one small process of one thread per controller, from which supervisors are forked. A fork of it costs a
//! tenth of executing this program anew, and its pages are shared by all supervisors. One child always stands by: it takes
//! the next order and becomes the supervisor, while the spawner forks another one. The spawner holds nothing: it ends with
//! the controller, and the supervisors go on.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::Command;
use tokio::sync::Mutex;

use super::failure::Failure;
use super::record::Started;
use super::sys::{self, Fork, Namespaces, pages};
use super::{descriptors, dispatch, program, seccomp, supervise};

/// Longest path of an instance's directory, in bytes: PATH_MAX of the kernel.
const LONGEST_PATH: usize = 4096;
/// What a standby tells when the controller is gone; it closes the pipe without it when it took an order.
const OVER: u8 = b'O';
/// Spawners that are tried for one start: one that was killed is replaced once.
const TRIES: usize = 2;

/// The controller's side: starts the spawner when it is first needed, and again when it was killed.
#[derive(Debug)]
pub struct Spawner {
    program: PathBuf,
    socket: Mutex<Option<AsyncFd<OwnedFd>>>,
}

impl Spawner {
    /// A spawner of this program that is not started yet.
    pub fn new(program: PathBuf) -> Self {
        Self { program, socket: Mutex::default() }
    }

    /// Has a supervisor started for the instance in `dir`, which tells through `answer` how its start went. The answer
    /// ends without a word where the spawner or the supervisor is killed.
    ///
    /// # Errors
    /// This program can't be executed, or the spawner was killed twice.
    pub async fn supervise(&self, dir: &Path, answer: OwnedFd) -> io::Result<()> {
        // Held while a message is queued, never while an instance is started.
        let mut socket = self.socket.lock().await;
        let mut last = io::Error::from(io::ErrorKind::BrokenPipe);
        for _ in 0..TRIES {
            let spawner = match socket.take() {
                Some(spawner) => spawner,
                None => self.start()?,
            };
            let sent = spawner.async_io(Interest::WRITABLE, |fd| send(fd.as_fd(), dir, answer.as_fd())).await;
            match sent {
                Ok(()) => {
                    *socket = Some(spawner);
                    return Ok(());
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn start(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let (own, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::io::ioctl_fionbio(&own, true)?;
        // Instances whose root is the machine's are shown this program by its path; a link to it means another one there.
        let path = std::fs::canonicalize(&self.program).unwrap_or_else(|_| self.program.clone());
        let mut child = Command::new(&self.program)
            .arg0(path)
            .arg(dispatch::SPAWN)
            .env_clear()
            .env(descriptors::VARIABLE, descriptors::told())
            .current_dir("/")
            .stdin(Stdio::from(other))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        // Reaps it where it ends before this process does.
        tokio::spawn(async move { child.wait().await.map(drop) });
        sys::wait_ready(own, Interest::WRITABLE)
    }
}

fn send(socket: BorrowedFd<'_>, dir: &Path, answer: BorrowedFd<'_>) -> io::Result<()> {
    let descriptors = [answer];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    let bytes = dir.as_os_str().as_bytes();
    sendmsg(socket, &[io::IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Entry point of `__spawn`: has a supervisor ready for each message on standard input until there is no controller any
/// more.
pub fn main() -> ExitCode {
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"keel-spawner");
    let Ok(socket) = io::stdin().as_fd().try_clone_to_owned() else { return ExitCode::FAILURE };
    let Ok(null) = program::null() else { return ExitCode::FAILURE };
    if sys::replace_standard(0, null.as_fd()).is_err() {
        return ExitCode::FAILURE;
    }
    sys::forget_children();
    // All that is done here need not be done by each supervisor.
    seccomp::compile_usual();
    // Where it can't be done, forks and supervisors cost more.
    let _ = pages::share_constants();
    loop {
        let next = io::pipe().and_then(|(word, telling)| {
            Ok(match sys::fork(Namespaces::default())? {
                Fork::Child => {
                    drop(word);
                    Next::StandBy(telling)
                }
                Fork::Parent { .. } => Next::Wait(word),
            })
        });
        match next {
            Ok(Next::StandBy(telling)) => return stand_by(socket, null, telling),
            Ok(Next::Wait(word)) if is_over(&word) => return ExitCode::SUCCESS,
            Ok(Next::Wait(_)) => {}
            // There was no room for a standby; by the next order there may be.
            Err(_) => {
                let Some((dir, answer)) = take(socket.as_fd()) else { return ExitCode::SUCCESS };
                match sys::fork(Namespaces::default()) {
                    Ok(Fork::Child) => {
                        drop((socket, null));
                        return become_supervisor(dir, answer);
                    }
                    Ok(Fork::Parent { .. }) => {}
                    Err(error) => refuse(answer, &error),
                }
            }
        }
    }
}

/// What a process does after a fork of the spawner.
enum Next {
    /// It is the standby, and tells the spawner here what becomes of that.
    StandBy(PipeWriter),
    /// It is the spawner, which the standby tells here.
    Wait(PipeReader),
}

/// Whether there is no controller any more. A standby that was killed says nothing, and another one takes its place.
fn is_over(mut word: &PipeReader) -> bool {
    let mut told = [0];
    word.read_exact(&mut told).is_ok() && told == [OVER]
}

/// A process that was forked before it is needed, so that a start does not wait for that: takes the next order, has the
/// spawner fork another one, and becomes the supervisor.
fn stand_by(socket: OwnedFd, null: OwnedFd, mut telling: PipeWriter) -> ExitCode {
    let Some((dir, answer)) = take(socket.as_fd()) else {
        // The spawner may be gone as well.
        let _ = telling.write_all(&[OVER]);
        return ExitCode::SUCCESS;
    };
    drop((socket, null, telling));
    become_supervisor(dir, answer)
}

fn become_supervisor(dir: PathBuf, answer: OwnedFd) -> ExitCode {
    sys::reset_signals();
    if sys::replace_standard(1, answer.as_fd()).is_err() {
        return ExitCode::FAILURE;
    }
    drop(answer);
    supervise::main(dir)
}

/// The next order; `None` when the controller is gone, or can't be understood.
fn take(socket: BorrowedFd<'_>) -> Option<(PathBuf, OwnedFd)> {
    loop {
        match receive(socket) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => return received.ok().flatten(),
        }
    }
}

/// The next order: the directory of an instance, and where the answer goes. `None` when the controller is gone.
fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(PathBuf, OwnedFd)>> {
    let mut buffer = [0; LONGEST_PATH];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let size = match recvmsg(socket, &mut [io::IoSliceMut::new(&mut buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
        Ok(message) => message.bytes,
        Err(Errno::CONNRESET) => 0,
        Err(error) => return Err(error.into()),
    };
    if size == 0 {
        return Ok(None);
    }
    let answer = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let answer = answer.ok_or(io::ErrorKind::InvalidData)?;
    let path = OsStr::from_bytes(buffer.get(..size).unwrap_or_default());
    Ok(Some((PathBuf::from(path), answer)))
}

fn refuse(answer: OwnedFd, error: &io::Error) {
    let failure = Failure::setup(format!("forking a supervisor: {error}"));
    if let Ok(line) = serde_json::to_vec(&Started::Failed(failure)) {
        // The controller may be gone; nobody needs the answer then.
        let _ = File::from(answer).write_all(&line);
    }
}
