//! The helper that runs a further command inside an instance: joins its namespaces and its confinement.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use rustix::process::{DumpableBehavior, Pid, WaitOptions, getppid, set_dumpable_behavior, setsid, waitpid};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::cgroup::Seat;
use super::failure::{Context, Failure};
use super::layout::{InstanceDir, read_json};
use super::lifeline::{self, Outcome};
use super::order::{Order, Place};
use super::program::{Filters, Program, Workdir, confine, end_with_parent, environment, execute, null, set_oom_score};
use super::pty::{self, Size};
use super::reaper::{adopt, end_children};
use super::record::{Record, Root, Run};
use super::sys::{self, Namespaces, OneThread};

/// An instance that runs.
pub struct Running {
    /// Identity and launch.
    pub record: Record,
    /// Who runs it.
    pub run: Run,
    /// The process of its program, by which its namespaces are entered.
    pub target: OwnedFd,
}

impl Running {
    /// Reads it from its directory. To be called while the machine's paths are what they are.
    ///
    /// # Errors
    /// It was removed, does not run, or can't be read.
    pub fn open(dir: &InstanceDir) -> Result<Self, Failure> {
        let record: Record = read_json(&dir.record())
            .context("reading record.json")?
            .ok_or_else(|| Failure::wrong("the instance was removed"))?;
        let run: Run = read_json(&dir.run())
            .context("reading run.json")?
            .ok_or_else(|| Failure::wrong("the instance does not run"))?;
        let target = run.program.open().context("opening the program's process")?;
        let target = target.ok_or_else(|| Failure::wrong("the instance does not run"))?;
        Ok(Self { record, run, target })
    }
}

/// Entry point of `__exec DIR NAME`: carries out the order `NAME` of the instance in `DIR`, tells its pipe by which
/// process the command runs or why it does not, waits for it and ends with its code. What the command leaves running
/// lives on with the instance. Without a process namespace it ends with the command, however it detached itself: nobody
/// would know of it any more, not even the one who removes the instance. Where the controller is gone, so is the command.
pub fn main(dir: &Path, name: &str) -> ExitCode {
    let place = Place { dir: InstanceDir(dir.to_owned()), name: name.to_owned() };
    let Ok(answer) = place.answer() else {
        place.discard();
        return ExitCode::FAILURE;
    };
    // Opened where /dev is the machine's.
    let null = null().ok();
    match fork() {
        Ok((None, _)) => run(&place, answer, null.as_ref()),
        Ok((Some(child), signals)) => {
            // Nothing inside may look into this process.
            let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
            release_standard(null.as_ref());
            let outcome = lifeline::watch(child, answer.as_fd(), signals.as_fd());
            end_children();
            match outcome {
                Outcome::Ended(code) => exit_code(code),
                Outcome::Abandoned => {
                    place.discard();
                    ExitCode::FAILURE
                }
            }
        }
        Err(failure) => {
            let _ = tell(answer, &Err(failure));
            ExitCode::FAILURE
        }
    }
}

/// Forks the process that enters the instance, and returns it with where signals arrive.
fn fork() -> Result<(Option<Pid>, OwnedFd), Failure> {
    // What ends the controller, as ^C at its terminal, must not end this process before the command; the command itself
    // begins with none blocked.
    let signals = sys::take_signals().context("taking signals")?;
    adopt()?;
    let child = OneThread::check().and_then(|alone| alone.fork()).context("forking the command")?;
    Ok((child, signals))
}

/// Runs the command to its end.
fn run(place: &Place, answer: File, null: Option<&OwnedFd>) -> ExitCode {
    let (result, child) = match enter(place, null) {
        Ok(child) => (Ok(child.as_raw_nonzero().get()), Some(child)),
        Err(failure) => (Err(failure), None),
    };
    match (child, tell(answer, &result)) {
        (Some(child), Ok(())) => {
            release_standard(null);
            exit_code(lifeline::reap(child))
        }
        _ => ExitCode::FAILURE,
    }
}

/// Tells the controller by which process the command runs, or why it does not.
fn tell(mut answer: File, result: &Result<i32, Failure>) -> io::Result<()> {
    let mut line = serde_json::to_vec(result)?;
    line.push(b'\n');
    answer.write_all(&line)
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

/// Lets go of the standard descriptors, so that their end is the command's.
fn release_standard(null: Option<&OwnedFd>) {
    if let Some(null) = null {
        for number in 0..=2 {
            let _ = sys::replace_standard(number, null.as_fd());
        }
    }
}

/// Starts the command and returns its process, or the one that guards it, once it runs.
fn enter(place: &Place, null: Option<&OwnedFd>) -> Result<Pid, Failure> {
    let watcher = getppid();
    let dir = &place.dir;
    let order = place.take().context("reading the command")?;
    let order = order.ok_or_else(|| Failure::setup("the command is not there any more"))?;
    let Running { record, run, target } = Running::open(dir)?;
    // Opened while the machine's paths are what they are.
    let seat = Seat::open_running(&record.launch.groups).map_err(|_| Failure::wrong("the instance does not run"))?;
    // A process that is closed to others may not write its own.
    set_oom_score(&record.launch)?;
    // From here on nothing inside may look into this process.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("closing the process to others")?;
    let alone = OneThread::check().context("looking at own threads")?;
    // The mounts come last: until then this process's own /proc is needed.
    join(&target, without_mounts(record.launch.namespaces))?;
    if record.launch.namespaces.mount {
        join(&target, ThreadNameSpaceType::MOUNT)?;
    }
    let terminal = order.tty.map(|size| make_terminal(&record, &run, size)).transpose()?;
    let program = program(&order, &record, &run);
    // Before there is a process that the instance can see: it must not be stronger than those which can take it over.
    confine(&program, &Filters::of(&record.launch)?)?;
    // The change of user can undo it.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("closing the process to others")?;
    end_with_parent()?;
    if getppid() != watcher {
        return Err(Failure::setup("the process that watches over the command was killed"));
    }
    start(&program, &seat, terminal, &alone, null)
}

/// The command as the program of a process.
fn program<'a>(order: &'a Order, record: &'a Record, run: &'a Run) -> Program<'a> {
    let launch = &record.launch;
    let mut env = environment(launch, &run.identity);
    env.extend(order.env.iter().cloned());
    if order.tty.is_some() {
        env.entry("TERM".to_owned()).or_insert_with(|| "xterm".to_owned());
    }
    let workdir = order.workdir.as_deref().map_or(Workdir::OfInstance(launch.workdir.as_deref()), Workdir::Asked);
    Program { command: &order.command, env, workdir, identity: &run.identity, launch }
}

/// Makes the command's terminal. Standard input is the socket by which the controller takes it over.
fn make_terminal(record: &Record, run: &Run, size: Size) -> Result<OwnedFd, Failure> {
    let stdin = io::stdin();
    pty::make(record.launch.root != Root::Shared, size, run.identity.uid, stdin.as_fd()).context("making a terminal")
}

/// Starts the command in a process of its own, and returns that once it runs. With a process namespace, that process guards
/// the one of the command.
fn start(
    program: &Program<'_>,
    seat: &Seat,
    terminal: Option<OwnedFd>,
    alone: &OneThread,
    null: Option<&OwnedFd>,
) -> Result<Pid, Failure> {
    let (mut outcome, outcome_in) = io::pipe().context("making a pipe")?;
    let mut outcome_in = File::from(OwnedFd::from(outcome_in));
    match alone.fork().context("forking the command")? {
        None => {
            drop(outcome);
            let failure = match guard(program, alone) {
                Ok(Some(command)) => {
                    drop((outcome_in, terminal));
                    release_standard(null);
                    let code = lifeline::reap_all_until(command);
                    // What it leaves running becomes the instance's, and ends with that.
                    std::process::exit(code)
                }
                Ok(None) => become_command(program, seat, terminal),
                Err(failure) => failure,
            };
            let _ = outcome_in.write_all(&serde_json::to_vec(&failure).unwrap_or_default());
            std::process::exit(failure.code)
        }
        Some(pid) => {
            drop((outcome_in, terminal));
            let mut text = Vec::new();
            outcome.read_to_end(&mut text).context("waiting for the command")?;
            if text.is_empty() {
                return Ok(pid);
            }
            let _ = waitpid(Some(pid), WaitOptions::empty());
            Err(serde_json::from_slice(&text).unwrap_or_else(|_| Failure::setup(String::from_utf8_lossy(&text))))
        }
    }
}

/// Forks the process that becomes the command, which is returned to this one, its guard. Needed with a process namespace:
/// what loses its parent there becomes a child of a process there, the first one if there is no other. Without one, this
/// process becomes the command.
fn guard(program: &Program<'_>, alone: &OneThread) -> Result<Option<Pid>, Failure> {
    if !program.launch.namespaces.pid {
        return Ok(None);
    }
    end_with_parent()?;
    let _ = rustix::thread::set_name(c"keel-exec");
    adopt()?;
    alone.fork().context("forking the command")
}

fn without_mounts(namespaces: Namespaces) -> ThreadNameSpaceType {
    let mut kinds = ThreadNameSpaceType::empty();
    for (there, kind) in [
        (namespaces.user, ThreadNameSpaceType::USER),
        (namespaces.pid, ThreadNameSpaceType::PROCESS_ID),
        (namespaces.ipc, ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION),
        (namespaces.uts, ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME),
        (namespaces.net, ThreadNameSpaceType::NETWORK),
        (namespaces.cgroup, ThreadNameSpaceType::CONTROL_GROUP),
    ] {
        if there {
            kinds |= kind;
        }
    }
    kinds
}

fn join(target: &OwnedFd, kinds: ThreadNameSpaceType) -> Result<(), Failure> {
    if kinds.is_empty() {
        return Ok(());
    }
    move_into_thread_name_spaces(target.as_fd(), kinds).context("joining the instance")
}

/// Becomes the command; returns only on failure.
fn become_command(program: &Program<'_>, seat: &Seat, terminal: Option<OwnedFd>) -> Failure {
    let prepared = end_with_parent()
        .and_then(|()| seat.enter().context("entering the control groups of the instance"))
        .and_then(|()| setsid().context("making a session"))
        .and_then(|_| match terminal {
            Some(end) => pty::take(end.as_fd()).context("making a terminal"),
            None => Ok(()),
        });
    match prepared {
        Ok(()) => execute(program),
        Err(failure) => failure,
    }
}
