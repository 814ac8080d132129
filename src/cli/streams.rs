//! Standard streams that are connected to a program inside: what exec and attach share.

use std::io::Write;

use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::detach::{DetachKeys, Typed};
use super::neutral::Neutral;
use super::terminal::{is_terminal, size};
use crate::api::{ApiError, Kind};
use crate::runtime::io::{ExecInput, ExecOutput};

/// Bytes that are read from standard input at once: a pipe's capacity on Linux (pipe(7)).
const CHUNK: usize = 64 << 10;

/// Pieces of output that wait for whoever reads what is printed; a piece is one frame.
const WAITING: usize = 16;

/// The signals that would end keel before the terminal has its mode back.
pub struct Ending {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
}

impl Ending {
    /// Begins to listen; none of them ends keel by itself from then on.
    ///
    /// # Errors
    /// They can't be listened for.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    /// The first that comes, as an exit code: 128 and its number.
    pub async fn first(mut self) -> i32 {
        let kind = tokio::select! {
            _ = self.hangup.recv() => SignalKind::hangup(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.quit.recv() => SignalKind::quit(),
        };
        128 + kind.as_raw_value()
    }
}

/// Where the output of a program is shown: as it is, but harmless on a terminal that the program has not got itself.
pub struct Screen {
    stdout: Option<Neutral>,
    stderr: Option<Neutral>,
}

impl Screen {
    /// For a program that has, or has not, the terminal.
    pub fn new(tty: bool) -> Self {
        let neutral = |is_terminal: bool| (is_terminal && !tty).then(Neutral::default);
        Self { stdout: neutral(is_terminal(&std::io::stdout())), stderr: neutral(is_terminal(&std::io::stderr())) }
    }

    /// Copies until the program ends; its code. Whoever drops this is held up by nobody who does not read.
    ///
    /// # Errors
    /// Nobody reads what is printed, or there is no thread to print it.
    pub async fn show(
        self,
        mut output: BoxStream<'static, Result<ExecOutput, ApiError>>,
    ) -> std::io::Result<Result<i32, ApiError>> {
        let (to, pieces) = mpsc::channel(WAITING);
        let (ended, mut printed) = oneshot::channel();
        // Not one of the runtime's threads, which it waits for when it ends.
        std::thread::Builder::new().name("output".to_owned()).spawn(move || ended.send(self.print(pieces)))?;
        let end = loop {
            let next = tokio::select! {
                biased;
                // As long as more may come, it ends with an error alone.
                Err(error) = async { told((&mut printed).await) } => return Err(error),
                next = output.next() => next,
            };
            match next {
                Some(Ok(ExecOutput::Exit(code))) => break Ok(code),
                // Where it is not taken, the next turn tells why.
                Some(Ok(piece)) => drop(to.send(piece).await),
                Some(Err(error)) => break Err(error),
                None => break Err(ApiError::new(Kind::Ended, "the output broke off before the program ended")),
            }
        };
        drop(to);
        told(printed.await)?;
        Ok(end)
    }

    /// Prints all pieces.
    fn print(mut self, mut pieces: mpsc::Receiver<ExecOutput>) -> std::io::Result<()> {
        while let Some(piece) = pieces.blocking_recv() {
            match piece {
                ExecOutput::Stdout(bytes) => write(std::io::stdout().lock(), &mut self.stdout, &bytes)?,
                ExecOutput::Stderr(bytes) => write(std::io::stderr().lock(), &mut self.stderr, &bytes)?,
                ExecOutput::Exit(_) => {}
            }
        }
        let rest = |neutral: Option<Neutral>| neutral.map(Neutral::finish).unwrap_or_default();
        write(std::io::stdout().lock(), &mut None, rest(self.stdout).as_bytes())?;
        write(std::io::stderr().lock(), &mut None, rest(self.stderr).as_bytes())
    }
}

/// How printing ended.
fn told(printed: Result<std::io::Result<()>, oneshot::error::RecvError>) -> std::io::Result<()> {
    printed.unwrap_or_else(|_| Err(std::io::Error::other("the thread that prints the output is gone")))
}

fn write(mut to: impl Write, neutral: &mut Option<Neutral>, bytes: &[u8]) -> std::io::Result<()> {
    match neutral {
        Some(neutral) => to.write_all(neutral.push(bytes).as_bytes())?,
        None => to.write_all(bytes)?,
    }
    to.flush()
}

/// Hands standard input on; its end closes a command's. Returns when the keys that detach were typed, which
/// are looked for where they are given, and not otherwise.
pub async fn send_input(to: mpsc::Sender<ExecInput>, mut keys: Option<DetachKeys>) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; CHUNK];
    while let Ok(read @ 1..) = stdin.read(&mut buffer).await {
        let typed = buffer.get(..read).unwrap_or_default();
        let (bytes, detached) = match keys.as_mut().map(|keys| keys.take(typed)) {
            None => (typed.to_vec(), false),
            Some(Typed::Input(bytes)) => (bytes, false),
            Some(Typed::Detached(bytes)) => (bytes, true),
        };
        if !bytes.is_empty() && to.send(ExecInput::Data(bytes.into())).await.is_err() {
            break;
        }
        if detached {
            return;
        }
    }
    // Before anything else waits for this: its end is the end of the input.
    drop(to);
    std::future::pending().await
}

/// Tells the size of the terminal whenever it changes.
pub async fn send_sizes(to: mpsc::Sender<ExecInput>) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
    while changes.recv().await.is_some() {
        let Some((columns, rows)) = size() else { continue };
        if to.send(ExecInput::Resize(columns, rows)).await.is_err() {
            return;
        }
    }
}
