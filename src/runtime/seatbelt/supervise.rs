//! The supervisor: one process per instance that outlives the controller. It runs the program under its profile, keeps its
//! output, obeys orders, and records how it ended.

use std::fs::File;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use chrono::Utc;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit, setsid};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout_at};

use super::launch::OPEN_FILES;
use super::layout::InstanceDir;
use super::record::{Orders, Record, Run, StopOrder};
use super::{alive, commands, gate, signals, table};
use crate::runtime::files::{Durability, read_json, write_json};
use crate::runtime::io::OutputStream;
use crate::runtime::logfiles::append;
use crate::runtime::logfiles::cri::Framer;
use crate::runtime::logfiles::logfile::LogFile;
use crate::state::Exit;

/// The hidden command that supervises an instance; the argument is its directory.
pub const SUPERVISE: &str = "__seatbelt";
/// What a supervisor says once its program runs.
pub const RUNS: &str = "runs";
/// What a supervisor says where another one has the instance.
pub const TAKEN: &str = "taken";

/// Time between two looks at the memory of a program that has a limit.
const MEMORY_INTERVAL: Duration = Duration::from_millis(500);
/// Longest time that output is read after the program and all that belongs to it have ended.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// Longest time that the begin of a line is held back from those who read along.
const HOLD_LIMIT: Duration = Duration::from_millis(100);
/// Size of one read of output.
const READ_SIZE: usize = 16 << 10;
/// A time that does not come.
const NEVER: Duration = Duration::from_secs(60 * 60 * 24 * 365);

/// Supervises an instance until its program has ended.
pub fn main(dir: PathBuf) -> ExitCode {
    let dir = InstanceDir(dir);
    // What it says is read by whoever started it.
    let outcome = begin().and_then(|runtime| runtime.block_on(supervise(&dir)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn begin() -> io::Result<tokio::runtime::Runtime> {
    setsid()?;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < OPEN_FILES) {
        let current = Some(limit.maximum.map_or(OPEN_FILES, |most| most.min(OPEN_FILES)));
        setrlimit(Resource::Nofile, Rlimit { current, ..limit })?;
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Says how the start went, and nothing more: whoever reads it goes on.
fn say(text: &str) {
    use std::io::Write;
    let _ = writeln!(io::stdout(), "{text}");
    if let Ok(nothing) = File::options().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(nothing);
    }
}

async fn supervise(dir: &InstanceDir) -> io::Result<()> {
    // Before anybody can find this process and send it one.
    let mut told = signal(SignalKind::user_defined1())?;
    let _deaf = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
    let Some(_alive) = alive::hold(dir)? else {
        say(TAKEN);
        return Ok(());
    };
    let Some(record) = read_json::<Record>(&dir.record())? else {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the instance is gone"));
    };
    for of_last_run in [dir.run(), dir.exit(), dir.orders(), dir.paused()] {
        match std::fs::remove_file(of_last_run) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    let mut log = LogFile::open(&dir.logs(), record.log)?;
    commands::open(dir)?;
    let mut child = match start(&record) {
        Ok(child) => child,
        Err(message) => {
            let exit = Exit::runtime_error(message.clone(), Utc::now());
            write_json(&dir.exit(), &exit, Durability::Synced)?;
            dir.tell();
            return Err(io::Error::other(message));
        }
    };
    // It is held back until it is written down. Where that fails it ends with this process.
    let run = begun(dir, &child)?;
    if let Some(mut gate) = child.stdin.take() {
        gate.write_all(b".").await?;
    }
    say(RUNS);
    let mut watch =
        Watched { dir, record: &record, run: &run, obeyed: None, kill_at: None, frozen: false, starved: false };
    let status = watch.until_it_ends(&mut child, &mut log, &mut told).await;
    // Nothing of it stays behind, however it ended.
    let _ = commands::close(dir);
    let _ = table::kill_trees(&watch.roots());
    let status = match status {
        Ok(status) => status,
        Err(_) => child.wait().await?,
    };
    write_json(&dir.exit(), &watch.exit(status), Durability::Synced)?;
    dir.tell();
    Ok(())
}

fn start(record: &Record) -> Result<Child, String> {
    let command = record.launch.command().map_err(|error| error.to_string())?;
    let own = std::env::current_exe().map_err(|error| format!("this program can't be found: {error}"))?;
    let mut command = Command::from(gate::held(&own, gate::HELD, &command));
    // Stopped by a group of its own, which the supervisor is not of.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().map_err(|error| format!("the program can't be started: {error}"))
}

/// Records that the program runs.
fn begun(dir: &InstanceDir, child: &Child) -> io::Result<Run> {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    let pid = pid.ok_or_else(|| io::Error::other("the program has no number"))?;
    // It is not waited for yet, so its number is its own, also where it has ended.
    let program = table::ProcessKey::of(pid)?.unwrap_or(table::ProcessKey { pid, started: String::new() });
    let run = Run { started_at: Utc::now(), program, boot: table::boot()? };
    write_json(&dir.run(), &run, Durability::Boot)?;
    dir.tell();
    Ok(run)
}

/// A program that runs, and what it was told so far.
struct Watched<'a> {
    dir: &'a InstanceDir,
    record: &'a Record,
    run: &'a Run,
    obeyed: Option<StopOrder>,
    kill_at: Option<Instant>,
    frozen: bool,
    starved: bool,
}

impl Watched<'_> {
    /// Keeps the output and obeys until the program and all that belongs to it are gone.
    async fn until_it_ends(
        &mut self,
        child: &mut Child,
        log: &mut LogFile,
        told: &mut Signals,
    ) -> io::Result<ExitStatus> {
        let mut out = Piped::new(child.stdout.take(), OutputStream::Stdout);
        let mut err = Piped::new(child.stderr.take(), OutputStream::Stderr);
        let mut memory = interval(MEMORY_INTERVAL);
        memory.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // One that was written before this process listened.
        self.obey()?;
        let status = loop {
            let kill_at = self.kill_at.unwrap_or_else(|| Instant::now() + NEVER);
            tokio::select! {
                status = child.wait() => break status?,
                count = out.fill(), if out.is_open() => out.keep(count, log),
                count = err.fill(), if err.is_open() => err.keep(count, log),
                () = sleep(HOLD_LIMIT), if out.framer.holds() || err.framer.holds() => {
                    out.flush(log);
                    err.flush(log);
                }
                _ = told.recv() => self.obey()?,
                () = sleep_until(kill_at), if self.kill_at.is_some() => {
                    self.kill_at = None;
                    self.signal_all(Signal::KILL);
                }
                _ = memory.tick(), if self.record.memory.is_some() => self.watch_memory(),
            }
        };
        // Whoever else writes to its output is killed, so that what is still in the pipes has an end.
        let _ = commands::close(self.dir);
        let _ = table::kill_trees(&self.roots());
        out.drain(log).await;
        err.drain(log).await;
        Ok(status)
    }

    /// The program, and further commands that were run inside.
    fn roots(&self) -> Vec<table::ProcessKey> {
        let commands = commands::noted(self.dir).unwrap_or_default();
        [self.run.program.clone()].into_iter().chain(commands).collect()
    }

    fn obey(&mut self) -> io::Result<()> {
        // What can't be read orders nothing; it is written anew by whoever waits for it to be obeyed.
        let orders = read_json::<Orders>(&self.dir.orders()).ok().flatten().unwrap_or_default();
        if let Some(order) = orders.stop.filter(|order| self.obeyed.as_ref() != Some(order)) {
            self.thaw()?;
            self.stop(order);
            return Ok(());
        }
        match (orders.frozen && self.obeyed.is_none(), self.frozen) {
            (true, false) => {
                self.signal_all(Signal::STOP);
                self.frozen = true;
                std::fs::write(self.dir.paused(), "")?;
                self.dir.tell();
            }
            (false, true) => self.thaw()?,
            (true, true) | (false, false) => {}
        }
        Ok(())
    }

    fn thaw(&mut self) -> io::Result<()> {
        if !self.frozen {
            return Ok(());
        }
        self.signal_all(Signal::CONT);
        self.frozen = false;
        match std::fs::remove_file(self.dir.paused()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        self.dir.tell();
        Ok(())
    }

    /// Asks the program alone to end, as every supervisor does, and all of it is killed after its grace. A second order gives
    /// no more time than the first.
    fn stop(&mut self, order: StopOrder) {
        let grace = order.policy.grace.get();
        let native = signals::native(order.policy.signal).unwrap_or(Signal::TERM);
        if grace.is_zero() || native == Signal::KILL {
            self.signal_all(Signal::KILL);
        } else {
            table::send(self.run.program.pid, native);
            let at = Instant::now() + grace;
            self.kill_at = Some(self.kill_at.map_or(at, |before| before.min(at)));
        }
        self.obeyed.get_or_insert(order);
    }

    /// Signals the program and all that belongs to it; the program alone where the others can't be told.
    fn signal_all(&self, signal: Signal) {
        if table::signal_trees(&self.roots(), signal).is_err() {
            table::send(self.run.program.pid, signal);
        }
    }

    fn watch_memory(&mut self) {
        let Some(most) = self.record.memory else { return };
        // What can't be looked at now is looked at again soon.
        let Ok(all) = table::processes() else { return };
        let used: u64 = table::members_of_all(&all, &self.roots()).iter().map(|one| one.memory).sum();
        if used > most {
            self.starved = true;
            self.signal_all(Signal::KILL);
        }
    }

    fn exit(&self, status: ExitStatus) -> Exit {
        let code = status.code().unwrap_or_else(|| 128 + status.signal().map_or(0, signals::number));
        let exit = Exit::from_code(code, Some(self.run.started_at), Utc::now());
        match &self.obeyed {
            _ if self.starved => exit.out_of_memory(),
            Some(order) => exit.asked_for(order.cause, order.policy),
            None => exit,
        }
    }
}

/// One stream of output.
struct Piped<R> {
    stream: Option<R>,
    framer: Framer,
    buffer: Vec<u8>,
    lines: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Piped<R> {
    fn new(stream: Option<R>, name: OutputStream) -> Self {
        Self { stream, framer: Framer::new(name), buffer: vec![0; READ_SIZE], lines: Vec::new() }
    }

    const fn is_open(&self) -> bool {
        self.stream.is_some()
    }

    /// Reads what comes next; nothing at the end. Dropping it loses nothing.
    async fn fill(&mut self) -> usize {
        match &mut self.stream {
            Some(stream) => stream.read(&mut self.buffer).await.unwrap_or(0),
            None => 0,
        }
    }

    /// Keeps what was read.
    fn keep(&mut self, count: usize, log: &mut LogFile) {
        if count == 0 {
            self.stream = None;
        }
        self.framer.push(Utc::now(), &self.buffer[..count], &mut self.lines);
        append(log, &self.lines);
        self.lines.clear();
    }

    /// Keeps the begin of a line that has not ended yet.
    fn flush(&mut self, log: &mut LogFile) {
        self.framer.flush(Utc::now(), &mut self.lines);
        append(log, &self.lines);
        self.lines.clear();
    }

    /// Keeps what is still on its way, for some seconds at most: what left the program's tree may hold the other end open.
    async fn drain(mut self, log: &mut LogFile) {
        let end = Instant::now() + DRAIN_LIMIT;
        while self.is_open() {
            match timeout_at(end, self.fill()).await {
                Ok(count) => self.keep(count, log),
                Err(_) => break,
            }
        }
        self.framer.finish(Utc::now(), &mut self.lines);
        append(log, &self.lines);
    }
}
