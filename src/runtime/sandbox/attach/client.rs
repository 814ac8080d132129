//! Attaching to instances: the controller's side.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use rustix::cmsg_space;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, connect, recvmsg, send};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::super::bounds::FILE_LIMIT;
use super::super::layout::{InstanceDir, read_json};
use super::super::process::ProcessKey;
use super::super::readers::Reading;
use super::super::record::Record;
use super::super::watch::ended;
use super::super::{Inner, SandboxRuntime, checked_id, failed, not_found, pty, sys};
use super::packet::{LARGEST, Packet, WATCH, WRITE};
use super::{socket, with_address};
use crate::runtime::io::{Attach, AttachRequest, AttachSession, ExecInput, ExecOutput, OutputStream};
use crate::runtime::logfiles::loglines::Written;
use crate::runtime::logfiles::logreader::Begin;
use crate::runtime::{ErrorKind, Result, RuntimeError};
use crate::state::{InstanceRef, Phase};

/// Pieces of input or output that wait for the other side.
const BACKLOG: usize = 16;
/// Longest time until a supervisor answers; it takes some microseconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Longest time that a supervisor takes to leave after its program ended.
const END_LIMIT: Duration = Duration::from_secs(30);

#[async_trait]
impl Attach for SandboxRuntime {
    async fn attach(&self, instance: &InstanceRef, request: &AttachRequest) -> Result<AttachSession> {
        let dir = self.inner.dir(&checked_id(instance)?);
        // Before the look: one that runs then is not removed before its exit code was read.
        let of = dir.clone();
        let begin = move |_: &Inner| begin(&of);
        let begun = self.blocking("reading an instance", FILE_LIMIT, begin).await?;
        let (reading, record) = begun.ok_or_else(|| not_found(instance))?;
        let found = self.look(instance).await?.ok_or_else(|| not_found(instance))?;
        let Some(run) = found.run else {
            let phase = found.instance.phase.name();
            return Err(rejected(format!("instance {} does not run ({phase}); start it first", instance.id)));
        };
        let (tty, stdin) = (record.launch.tty, record.launch.stdin);
        if request.stdin && !stdin {
            return Err(rejected(format!(
                "instance {} has no standard input; write stdin_open: true, or attach without input",
                instance.id
            )));
        }
        let (runtime, instance) = (self.clone(), instance.clone());
        let end = End { runtime, instance, supervisor: run.supervisor, _reading: reading };
        if !tty && !stdin {
            return self.follow_output(end).await;
        }
        let (socket, input) = knock(dir.path().to_owned(), request.stdin).await?;
        if let (Some(input), Some(size)) = (&input, request.size.filter(|_| tty)) {
            // A terminal that keeps its size can be used all the same.
            let _ = pty::resize(input.as_fd(), size);
        }
        Ok(session(tty, socket, input.filter(|_| tty || request.stdin), request.stdin, end))
    }
}

/// Begins to read of an instance. None where it is gone.
fn begin(dir: &InstanceDir) -> Result<Option<(Reading, Record)>> {
    let wrong = |error: io::Error| failed(&format!("reading {}", dir.record().display()), &error);
    let reading = match Reading::begin(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        begun => begun.map_err(wrong)?,
    };
    let record = read_json(&dir.record()).map_err(wrong)?;
    Ok(record.map(|record| (reading, record)))
}

fn rejected(message: impl Into<String>) -> RuntimeError {
    RuntimeError::new(ErrorKind::Rejected, message)
}

/// Waits for the end of an instance.
struct End {
    runtime: SandboxRuntime,
    instance: InstanceRef,
    supervisor: ProcessKey,
    /// Until its exit code was read.
    _reading: Reading,
}

impl End {
    /// Its exit code, once it ended.
    async fn code(self) -> Result<ExecOutput> {
        if let Ok(Some(pidfd)) = self.supervisor.open() {
            // The output has ended, so the program has.
            let _ = tokio::time::timeout(END_LIMIT, ended(pidfd)).await;
        }
        let phase = self.runtime.look(&self.instance).await?.map(|found| found.instance.phase);
        match phase {
            Some(Phase::Exited(exit)) => exit.code.map(ExecOutput::Exit).ok_or_else(|| {
                RuntimeError::new(ErrorKind::Failed, exit.runtime_error.unwrap_or_else(|| "it did not run".to_owned()))
            }),
            // It ran, so what was told of that has been removed.
            None | Some(Phase::Created) => Err(RuntimeError::new(
                ErrorKind::NotFound,
                format!("instance {} was removed before its exit code was read", self.instance.id),
            )),
            Some(phase) => Err(RuntimeError::new(
                ErrorKind::Failed,
                format!("the output of instance {} broke off ({})", self.instance.id, phase.name()),
            )),
        }
    }
}

impl SandboxRuntime {
    /// The output of a program that nobody can write to, as its log has it: a line, or a fragment of one that is long or
    /// takes its time, at a time.
    async fn follow_output(&self, end: End) -> Result<AttachSession> {
        let output = self.read_output(&end.instance, true, Begin::Now, Written).await?;
        let (input, _) = mpsc::channel(1);
        Ok(AttachSession { tty: false, input, output: output.chain(futures::stream::once(end.code())).boxed() })
    }
}

/// Asks a supervisor to be let in. Returns the socket, and what it handed out.
async fn knock(dir: PathBuf, writes: bool) -> Result<(AsyncFd<OwnedFd>, Option<OwnedFd>)> {
    let wrong = |error: io::Error| failed("attaching", &error);
    let guest = socket().map_err(wrong)?;
    with_address(&dir, |address| connect(&guest, address)).map_err(wrong)?;
    // One that is refused at the door is not heard, and told why all the same.
    let _ = send(&guest, &[if writes { WRITE } else { WATCH }], SendFlags::NOSIGNAL);
    let guest = sys::wait_ready(guest, Interest::READABLE).map_err(wrong)?;
    let mut buffer = vec![0; LARGEST];
    let answer = guest.async_io(Interest::READABLE, |socket| receive(socket.as_fd(), &mut buffer));
    let answer = tokio::time::timeout(ANSWER_LIMIT, answer).await.map_err(|_| {
        RuntimeError::new(ErrorKind::Timeout, "the supervisor does not answer; is it stopped (SIGSTOP)?")
    })?;
    let (size, handed) = answer.map_err(wrong)?;
    match Packet::parse(buffer.get(..size).unwrap_or_default()) {
        Some(Packet::Welcome) => Ok((guest, handed)),
        Some(Packet::Refused(why)) => Err(rejected(format!("nobody can be attached: {why}"))),
        _ => Err(RuntimeError::new(ErrorKind::Failed, "the program ended meanwhile")),
    }
}

/// The next packet, and what came with it. A size of zero is the end.
fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let mut read =
        || recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut rights, RecvFlags::CMSG_CLOEXEC).map(|read| read.bytes);
    let size = match read() {
        // The other side left without hearing all; what it said before is still there.
        Err(rustix::io::Errno::CONNRESET) => read().unwrap_or(0),
        read => read?,
    };
    let handed = rights.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok((size, handed))
}

fn session(tty: bool, socket: AsyncFd<OwnedFd>, handed: Option<OwnedFd>, writes: bool, end: End) -> AttachSession {
    let (input, inputs) = mpsc::channel(BACKLOG);
    let feeding = AbortOnDropHandle::new(tokio::spawn(feed(handed, writes, tty, inputs)));
    let output = futures::stream::unfold(Some((socket, end, feeding)), |state| async move {
        let (socket, end, feeding) = state?;
        match read(&socket).await {
            Ok(Some(output)) => Some((Ok(output), Some((socket, end, feeding)))),
            Ok(None) => Some((end.code().await, None)),
            Err(error) => Some((Err(failed("reading the output", &error)), None)),
        }
    });
    AttachSession { tty, input, output: output.boxed() as BoxStream<'static, _> }
}

/// The next piece of output; `None` at its end.
async fn read(socket: &AsyncFd<OwnedFd>) -> io::Result<Option<ExecOutput>> {
    let mut buffer = vec![0; LARGEST];
    let (size, _) = socket.async_io(Interest::READABLE, |socket| receive(socket.as_fd(), &mut buffer)).await?;
    buffer.truncate(size);
    Ok(match Packet::parse(&buffer) {
        Some(Packet::Output(stream, bytes)) => {
            let bytes = Bytes::copy_from_slice(bytes);
            Some(match stream {
                OutputStream::Stdout => ExecOutput::Stdout(bytes),
                OutputStream::Stderr => ExecOutput::Stderr(bytes),
            })
        }
        Some(Packet::LeftOut(count)) => {
            let text = format!("keel: {count} bytes of output were left out, as they were not read in time\n");
            Some(ExecOutput::Stderr(text.into()))
        }
        Some(Packet::Welcome | Packet::Refused(_)) | None => None,
    })
}

/// Passes input on. Its end leaves the program's input open, for whoever attaches next.
async fn feed(handed: Option<OwnedFd>, writes: bool, tty: bool, mut inputs: mpsc::Receiver<ExecInput>) {
    let Some(handed) = handed else { return };
    // The input of the program is this one's too: who writes must not wait in the kernel.
    if rustix::io::ioctl_fionbio(&handed, true).is_err() {
        return;
    }
    let Ok(handed) = sys::wait_ready(handed, Interest::WRITABLE) else { return };
    while let Some(input) = inputs.recv().await {
        match input {
            ExecInput::Resize(columns, rows) if tty => {
                let _ = pty::resize(handed.get_ref().as_fd(), (columns, rows));
            }
            ExecInput::Data(bytes) if writes => {
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let write = |fd: &OwnedFd| Ok(rustix::io::write(fd, rest)?);
                    match handed.async_io(Interest::WRITABLE, write).await {
                        Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                        // The program reads no more.
                        Err(_) => return,
                    }
                }
            }
            ExecInput::Resize(..) | ExecInput::Data(_) => {}
        }
    }
}
