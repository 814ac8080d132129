//! The supervisor: one small single-threaded process per instance that outlives the controller. It starts the
//! program, keeps its output, obeys orders to stop, and records how it ended.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::process::{Pid, Signal, pidfd_send_signal, setsid};

use super::attach::{Attended, Audience, Output, console};
use super::cgroup::{self, Groups, Members, MemoryWatch, Seat, Starvation, Window};
use super::failure::{Context, Failure};
use super::init::{self, Ends, GO, Outside, next_ended};
use super::layout::{Durability, InstanceDir, keep, private_file, read_json, write_json};
use super::lock;
use super::network::{self, Handover, Helpers, Network, Wire};
use super::own_disk;
use super::process::{ProcessKey, boot_id, first_child};
use super::program;
use super::readiness::{read_failure, wait_ready};
use super::reaper::{REAP_LIMIT, adopt, end_children};
use super::record::{Identity, Launch, Record, Root, Run, Started, StopOrder};
use super::root_user;
use super::suspend;
use super::sys::{self, Fork, pages};
use super::users::Users;
use super::volumes;
use crate::runtime::file_lock;
use crate::runtime::logfiles::append;
use crate::runtime::logfiles::logfile::LogFile;
use crate::spec::{HumanDuration, Signal as SpecSignal};
use crate::state::{EndedBy, Exit, StopPolicy};

/// Grace when the machine shuts down and the supervisor itself is asked to end: systemd gives 90 s in all.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(30);
/// Size of one read of output: the capacity of a pipe.
const READ_SIZE: usize = 64 << 10;
/// Most output that is still read after the program ended: what can be in two pipes of the largest capacity that an
/// unprivileged process may set (pipe-max-size, 1 MiB each).
const DRAIN_LIMIT: usize = 2 << 20;
/// Silence after which the supervisor gives up the memory that it does not need while it waits: longer than the pauses
/// of a program that writes steadily, so that such a one does not make it map its code again and again.
const REST_AFTER: Duration = Duration::from_secs(1);

/// Supervises the instance in `dir`, as a process of its own. Tells on standard output how the start went, as one JSON line, and closes it.
pub fn main(dir: PathBuf) -> std::process::ExitCode {
    // Before anything else: a signal to the controller's process group must not reach this process.
    let _ = setsid();
    let _ = rustix::process::umask(Mode::from_raw_mode(0o077));
    let _ = rustix::thread::set_name(c"keel-supervisor");
    let dir = InstanceDir(dir);
    // Until the lock is held, the instance may be another supervisor's: nothing is written.
    let (signals, lock) = match prepare(&dir) {
        Ok(Some(prepared)) => prepared,
        Ok(None) => {
            tell(&Started::Taken);
            return std::process::ExitCode::SUCCESS;
        }
        Err(failure) => {
            tell(&Started::Failed(failure));
            return std::process::ExitCode::FAILURE;
        }
    };
    match supervise(&dir, signals, &lock) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(failure) => {
            let exit = Exit { code: Some(failure.code), ..Exit::runtime_error(failure.message.clone(), Utc::now()) };
            let _ = write_json(&dir.exit(), &exit, Durability::Boot);
            tell(&Started::Failed(failure));
            let _ = keep(&dir);
            std::process::ExitCode::FAILURE
        }
    }
}

/// What a supervisor needs before it may touch its instance: signals as a descriptor, and the lock; `None` where another
/// supervisor has it.
fn prepare(dir: &InstanceDir) -> Result<Option<(OwnedFd, File)>, Failure> {
    let signals = sys::take_signals().context("taking over signals")?;
    let lock = lock::take(dir).context("opening the lock")?;
    Ok(lock.map(|lock| (signals, lock)))
}

/// Starts the program and attends to it until its end is recorded.
///
/// # Errors
/// It could not be started.
fn supervise(dir: &InstanceDir, signals: OwnedFd, lock: &File) -> Result<(), Failure> {
    let record: Record = read_json(&dir.record())
        .context("reading record.json")?
        .ok_or_else(|| Failure::setup("record.json is missing; remove the instance"))?;
    // What an earlier run left is not true of this one. Its end goes last: a run without an end looks like a lost one.
    network::clear_pasta(&dir.pasta());
    for old in [dir.run(), dir.stop(), dir.stopping(), dir.paused(), dir.exit()] {
        let _ = fs::remove_file(old);
    }
    adopt()?;
    let launch = &record.launch;
    let log = LogFile::open(&dir.logs(), launch.log).context("opening the log")?;
    let identity = identity(dir, launch)?;
    root_user::refuse(launch, &identity)?;
    own_disk::limit(dir, launch)?;
    volumes::make(dir, &record, &identity)?;
    let mut supervisor = launch_program(dir, launch, identity, signals, log)?;
    tell(&Started::Running);
    record_end(dir, &supervisor.attend(), lock);
    Ok(())
}

/// Records how the program ended. It is seen at once, and outlasts a loss of power from a moment later on, which nobody waits
/// for: until then the instance is found as one that ran when the machine went down. Where it can't be written at all, it
/// is found as one whose supervisor was lost. Where somebody removed the directory, another instance may have its name by
/// now, and this is not the end of that.
fn record_end(dir: &InstanceDir, exit: &Exit, lock: &File) {
    if !file_lock::is_at(lock, &dir.lock()).unwrap_or(true) {
        return;
    }
    let _ = write_json(&dir.exit(), exit, Durability::Boot);
    // How it ended is of no use without what it was.
    let _ = keep(dir);
}

/// Tells the controller how the start went, and lets go of it.
fn tell(started: &Started) {
    if let Ok(mut line) = serde_json::to_vec(started) {
        line.push(b'\n');
        // The controller may be gone; then the next one reads the records.
        let _ = io::stdout().write_all(&line);
        let _ = io::stdout().flush();
    }
    if let Ok(null) = program::null() {
        for number in 0..=2 {
            let _ = sys::replace_standard(number, null.as_fd());
        }
    }
}

/// Who the program runs as: looked up in its own root file system.
fn identity(dir: &InstanceDir, launch: &Launch) -> Result<Identity, Failure> {
    if let Some(identity) = &launch.identity {
        return Ok(identity.clone());
    }
    let path = match &launch.root {
        Root::Host | Root::Shared => PathBuf::from("/"),
        Root::Dir { path, .. } => path.clone(),
        Root::Copy { .. } => dir.copy(),
        Root::Layers { .. } => return Err(Failure::setup("the record does not say who the program is")),
    };
    let root = super::links::open(&path).with_context(|| format!("image: {} can't be opened", path.display()))?;
    let own = rustix::process::geteuid();
    // An unprivileged user's programs run as that user where the machine's own files are seen: what is theirs
    // stays theirs.
    let user = match (&launch.user, &launch.root) {
        (Some(user), _) => Some(user.clone()),
        (None, Root::Host | Root::Shared) if !own.is_root() => {
            Some(format!("{}:{}", own.as_raw(), rustix::process::getegid().as_raw()))
        }
        (None, _) => None,
    };
    Users::read(root.as_fd())
        .identity(user.as_deref(), &launch.extra_groups)
        .map_err(|error| Failure::wrong(format!("user: {error}")))
}

/// A supervisor whose program runs.
struct Supervisor {
    dir: InstanceDir,
    signals: OwnedFd,
    first: Pid,
    first_fd: OwnedFd,
    status: File,
    outputs: [Output; 2],
    audience: Option<Audience>,
    log: LogFile,
    started_at: DateTime<Utc>,
    stop: Option<Stop>,
    /// Whether nothing happened for so long that memory was given up.
    at_rest: bool,
    groups: Groups,
    network: Network,
    helpers: Helpers,
    memory: Option<MemoryWatch>,
    starvation: Option<Starvation>,
    out_of_memory: bool,
}

/// A stop that is under way.
struct Stop {
    ended_by: EndedBy,
    policy: StopPolicy,
    kill_at: Instant,
    killed: bool,
}

fn launch_program(
    dir: &InstanceDir,
    launch: &Launch,
    identity: Identity,
    signals: OwnedFd,
    log: LogFile,
) -> Result<Supervisor, Failure> {
    let seat = Seat::make(&launch.groups)?;
    launch_seated(dir, launch, identity, signals, log, seat).map_err(|failure| {
        let starved = cgroup::oom_kills(&launch.groups) > 0;
        let limit = cgroup::memory_limit(&launch.groups);
        let _ = cgroup::clear(&launch.groups, REAP_LIMIT);
        network::leave(&launch.network);
        match limit {
            Some(limit) if starved => {
                Failure::wrong(format!("resources.memory: {} to start the program; write more", too_little(limit)))
            }
            _ if launch.namespaces.user => failure.for_one_user(),
            _ => failure,
        }
    })
}

fn launch_seated(
    dir: &InstanceDir,
    launch: &Launch,
    identity: Identity,
    signals: OwnedFd,
    log: LogFile,
    seat: Seat,
) -> Result<Supervisor, Failure> {
    let pipe = || io::pipe().map(|(read, write)| (OwnedFd::from(read), OwnedFd::from(write)));
    let (held, console) = console(launch).context("connecting the program")?;
    let (outcome, outcome_in) = pipe().context("making a pipe")?;
    let (gate_out, gate) = pipe().context("making a pipe")?;
    let (status, status_in) = pipe().context("making a pipe")?;
    let outside = Outside::own();
    let null = program::null().context("opening /dev/null")?;
    let window = wants_window(launch).then(Window::new).transpose().context("making a socket")?;
    let mut wire = Wire::lay(&launch.network)?;
    let prepared = Helpers::prepare(&launch.network)?;
    let handover = Helpers::are_needed(&launch.network).then(Handover::new).transpose().context("making a socket")?;
    let (first, first_fd) = match sys::fork_into(launch.namespaces, seat.birth()).context("making namespaces")? {
        Fork::Child => {
            drop((held, outcome, gate, status, signals, log, prepared));
            let ends = Ends {
                console,
                outcome: outcome_in.into(),
                gate: gate_out.into(),
                status: status_in.into(),
                seat,
                window,
                wire,
                handover,
                null,
            };
            init::run(launch, dir, &identity, outside, ends)
        }
        Fork::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop((console, outcome_in, gate_out, status_in, seat, null));
    // Before the program runs, and after the process that it becomes was forked.
    let starvation = Starvation::watch(&launch.groups);
    let mut outcome = File::from(outcome);
    let connected = handover.map_or_else(
        || Ok(Helpers::default()),
        |handover| {
            let place = handover.take().context("taking over the network of the instance")?;
            Helpers::connect(&launch.network, place, dir)
        },
    );
    // Where the first process failed, its own words say more.
    let started = wait_ready(&mut outcome, &first_fd).and_then(|()| {
        let mut helpers = connected?;
        wire.as_mut().map_or(Ok(()), Wire::wait_running)?;
        helpers.wait_connected()?;
        let started_at = Utc::now();
        record_run(dir, launch, identity, first, started_at).context("writing run.json")?;
        File::from(gate).write_all(&[GO]).context("letting the program go")?;
        if let Some(failure) = read_failure(&mut outcome) {
            return Err(failure);
        }
        fs::remove_file(dir.starting()).context("noting that the program runs")?;
        helpers.serve(prepared, &launch.network)?;
        Ok((started_at, helpers))
    });
    let (started_at, helpers) = started.inspect_err(|_| give_up(&first_fd))?;
    let Attended { outputs, audience } =
        held.attend(dir, launch).context("attending the program").inspect_err(|_| give_up(&first_fd))?;
    Ok(Supervisor {
        dir: dir.clone(),
        signals,
        first,
        first_fd,
        status: status.into(),
        outputs,
        audience,
        log,
        started_at,
        stop: None,
        at_rest: false,
        groups: launch.groups.clone(),
        network: launch.network.clone(),
        helpers,
        memory: memory_watch(launch, window),
        starvation,
        out_of_memory: false,
    })
}

/// The kernel limits memory in whole pages, and says so.
fn too_little(limit: u64) -> String {
    match limit {
        0 => format!("less than a page of memory ({} bytes) is too little", rustix::param::page_size()),
        bytes => format!("{bytes} bytes are too few"),
    }
}

/// Ends what was started of an instance that can't be.
fn give_up(first: &OwnedFd) {
    let _ = pidfd_send_signal(first, Signal::KILL);
    end_children();
}

/// Whether the processes of an instance are best seen through its own /proc.
fn wants_window(launch: &Launch) -> bool {
    launch.memory_watch.is_some() && launch.groups.is_empty() && launch.namespaces.pid
}

/// The watch over the memory of an instance that no control group limits.
fn memory_watch(launch: &Launch, window: Option<Window>) -> Option<MemoryWatch> {
    let limit = launch.memory_watch?;
    let members = match window.and_then(|window| window.take().ok()) {
        Some(proc) => Members::Namespace(proc),
        None if launch.groups.is_empty() => Members::Below(std::process::id().cast_signed()),
        None => Members::Groups(launch.groups.clone()),
    };
    Some(MemoryWatch::new(members, limit))
}

/// Records who runs the instance. A loss of power may lose this: it is true in this boot only.
fn record_run(
    dir: &InstanceDir,
    launch: &Launch,
    identity: Identity,
    first: Pid,
    started_at: DateTime<Utc>,
) -> io::Result<()> {
    let first = ProcessKey::of(first.as_raw_pid())?;
    let child = (launch.init && launch.namespaces.pid).then(|| first_child(first.pid)).flatten();
    let program = child.and_then(|pid| ProcessKey::of(pid).ok()).unwrap_or(first);
    let supervisor = ProcessKey::of(std::process::id().cast_signed())?;
    let boot_id = boot_id()?.to_owned();
    let run = Run { boot_id, supervisor, first, program, started_at, identity, conditions: Vec::new() };
    private_file().create(true).truncate(false).open(dir.starting())?;
    write_json(&dir.run(), &run, Durability::Boot)
}

impl Supervisor {
    /// Attends the program until it ended and all of its output was read.
    fn attend(&mut self) -> Exit {
        let mut buffer = Vec::new();
        // A stop may have been ordered while the program was being started.
        self.obey();
        let code = loop {
            if let Some(code) = self.reap() {
                break code;
            }
            self.wait();
            if self.at_rest {
                buffer = Vec::new();
                pages::release_heap();
                pages::release_code();
                continue;
            }
            buffer.resize(READ_SIZE, 0);
            if let Some(audience) = &mut self.audience {
                audience.attend();
            }
            for index in 0..self.outputs.len() {
                self.read_output(index, &mut buffer);
            }
            self.flush_output();
            self.take_signals();
            self.kill_when_due();
            self.kill_when_too_large();
            self.helpers.restart(Instant::now());
        };
        let mut exit = self.verdict(code);
        let left = self.end_rest();
        exit.finished_at = Utc::now();
        buffer.resize(READ_SIZE, 0);
        self.drain(&mut buffer);
        if let Some(audience) = &mut self.audience {
            audience.take_leave();
        }
        if !left.is_empty() {
            exit.runtime_error = Some(format!(
                "processes {left:?} of it were killed and do not end; they may wait for a disk or a device (ps shows \
                 them in state D)"
            ));
        }
        exit
    }

    /// How the program ended.
    fn verdict(&self, code: i32) -> Exit {
        let exit = Exit::from_code(code, Some(self.started_at), Utc::now());
        let killed = self.stop.as_ref().is_some_and(|stop| stop.killed);
        // Where memory is limited, whoever is killed for want of it takes all along, also one that ends by itself in that
        // instant. Where the machine runs short a program may go on; it was killed itself where its code says so.
        let is_whole = code == 128 + libc::SIGKILL || self.starvation.is_some();
        let starved = is_whole && !killed && cgroup::oom_kills(&self.groups) > 0;
        let exit = if starved || self.out_of_memory { exit.out_of_memory() } else { exit };
        match &self.stop {
            Some(Stop { ended_by: EndedBy::Request(cause), policy, .. }) => exit.asked_for(*cause, *policy),
            Some(Stop { ended_by: EndedBy::Itself, .. }) | None => exit,
        }
    }

    /// Ends what the program left behind, and removes its control groups. Returns what does not end.
    fn end_rest(&mut self) -> Vec<i32> {
        network::leave(&self.network);
        self.helpers.end();
        end_children();
        let left = cgroup::clear(&self.groups, REAP_LIMIT);
        // What was in a control group and not below the program is reaped as well.
        end_children();
        left.unwrap_or_default()
    }

    /// Sleeps until there is something to do.
    fn wait(&mut self) {
        let kill_at = self.stop.as_ref().filter(|stop| !stop.killed).map(|stop| stop.kill_at);
        let others = self.memory.as_ref().map(MemoryWatch::next).into_iter().chain(self.helpers.due());
        let others = others.chain(self.outputs.iter().filter_map(Output::due));
        let others = others.chain(self.starvation.iter().filter_map(Starvation::due));
        let wake_at = kill_at.into_iter().chain(others).min();
        let wake_in = wake_at.map(|wake_at| wake_at.saturating_duration_since(Instant::now()));
        let limit = wake_in.or((!self.at_rest).then_some(REST_AFTER)).map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        fds.extend(
            self.outputs.iter().filter_map(|output| output.pipe.as_ref()).map(|pipe| PollFd::new(pipe, PollFlags::IN)),
        );
        fds.extend(self.audience.iter().flat_map(Audience::fds).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let short = self.starvation.iter().filter_map(Starvation::fd);
        fds.extend(short.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let silent = matches!(poll(&mut fds, limit.as_ref()), Ok(0));
        self.at_rest = silent && wake_in.is_none();
    }

    /// Exit code of the program, as shells have it, once it ended.
    fn reap(&mut self) -> Option<i32> {
        while let Some((pid, status)) = next_ended() {
            if pid != self.first {
                self.helpers.ended(pid, Instant::now());
                continue;
            }
            // The init process tells the program's own status; where it was killed itself, its own one holds.
            let mut told = [0; 4];
            let raw = match rustix::io::ioctl_fionbio(&self.status, true).map(|()| self.status.read(&mut told)) {
                Ok(Ok(4)) => i32::from_ne_bytes(told),
                _ => status.as_raw(),
            };
            return Some(code_of(raw));
        }
        None
    }

    fn read_output(&mut self, index: usize, buffer: &mut [u8]) -> usize {
        let Some(output) = self.outputs.get_mut(index) else { return 0 };
        let size = output.read(buffer, &mut |lines| append(&mut self.log, lines));
        if let Some(audience) = &mut self.audience {
            audience.tell(output.stream(), buffer.get(..size).unwrap_or_default());
        }
        size
    }

    /// Keeps the begin of a line that does not end.
    fn flush_output(&mut self) {
        let mut lines = Vec::new();
        for output in &mut self.outputs {
            output.flush(Instant::now(), &mut lines);
        }
        append(&mut self.log, &lines);
    }

    fn take_signals(&mut self) {
        while let Some(number) = sys::next_signal(self.signals.as_fd()) {
            if number == Signal::USR1.as_raw() {
                self.obey();
            } else if number == Signal::TERM.as_raw() {
                let policy = StopPolicy { signal: SpecSignal::TERM, grace: HumanDuration(SHUTDOWN_GRACE) };
                self.stop_with(policy, EndedBy::Itself);
            }
        }
    }

    /// Reads the order to stop.
    fn obey(&mut self) {
        if let Ok(Some(order)) = read_json::<StopOrder>(&self.dir.stop()) {
            // Where it can't be written, the order is given again, which changes nothing.
            let _ = private_file().create(true).truncate(false).open(self.dir.stopping());
            let grace = Duration::from_millis(order.grace_ms);
            let policy = StopPolicy { signal: order.signal, grace: HumanDuration(grace) };
            self.stop_with(policy, EndedBy::Request(order.cause));
        }
    }

    /// Asks the program to end. A further order never gives more time than an earlier one.
    fn stop_with(&mut self, policy: StopPolicy, ended_by: EndedBy) {
        let now = Instant::now();
        let grace = policy.grace.get();
        let kill_at = now.checked_add(grace).unwrap_or(now + Duration::from_secs(u64::from(u32::MAX)));
        match &mut self.stop {
            Some(stop) => stop.kill_at = stop.kill_at.min(kill_at),
            None => self.stop = Some(Stop { ended_by, policy, kill_at, killed: false }),
        }
        // What is frozen takes no signal.
        let _ = cgroup::thaw(&self.groups);
        let _ = suspend::carry_on(&self.dir, std::process::id().cast_signed());
        if let Some(signal) = sys::signal(policy.signal.number()) {
            let _ = pidfd_send_signal(&self.first_fd, signal);
        }
        self.kill_when_due();
    }

    fn kill_when_too_large(&mut self) {
        let now = Instant::now();
        let exceeded = self.memory.as_mut().is_some_and(|memory| memory.is_exceeded(now));
        if exceeded || self.starvation.as_mut().is_some_and(|starvation| starvation.has_killed(now)) {
            self.out_of_memory = true;
            self.kill();
        }
    }

    /// Kills the whole instance, without waiting for it to be gone.
    fn kill(&self) {
        let _ = pidfd_send_signal(&self.first_fd, Signal::KILL);
        let _ = cgroup::kill(&self.groups, Duration::ZERO);
    }

    fn kill_when_due(&mut self) {
        if let Some(stop) = self.stop.as_mut().filter(|stop| !stop.killed && stop.kill_at <= Instant::now()) {
            stop.killed = true;
            self.kill();
        }
    }

    /// Reads what is left in the pipes. A process that got away and still holds them does not matter: only what
    /// is there is read.
    fn drain(&mut self, buffer: &mut [u8]) {
        for index in 0..self.outputs.len() {
            let mut read = 0;
            while read < DRAIN_LIMIT {
                match self.read_output(index, buffer) {
                    0 => break,
                    size => read += size,
                }
            }
            if let Some(output) = self.outputs.get_mut(index) {
                let mut lines = Vec::new();
                output.finish(&mut lines);
                append(&mut self.log, &lines);
            }
        }
    }
}

/// Exit code of a raw wait status, 128 + N after signal N.
pub fn code_of(raw: i32) -> i32 {
    if libc::WIFSIGNALED(raw) { 128 + libc::WTERMSIG(raw) } else { libc::WEXITSTATUS(raw) }
}
