//! The hidden commands that this program runs itself with. They come before anything else in `main`, as they need a
//! process of one thread.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::ExitCode;

use super::process::read_proc;
use super::{descriptors, unwritable};

/// Forks the supervisors of instances; orders come through standard input.
pub const SPAWN: &str = "__spawn";
/// Runs a command inside an instance; the arguments are the instance's directory and the name of the order.
pub const EXEC: &str = "__exec";
/// Mounts into an instance; the argument is the instance's directory, and what to mount comes through standard input.
pub const GRAFT: &str = "__graft";
/// Probes the machine; the argument is a scratch directory.
pub const PROBE: &str = "__probe";

/// Runs a hidden command where the arguments name one; `None` otherwise. Must be called first in `main`, before any
/// thread is started.
pub fn dispatch() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let command = arguments.next()?;
    let known = [SPAWN, EXEC, GRAFT, PROBE].into_iter().find(|known| command == OsStr::new(known))?;
    Some(run(known, arguments))
}

/// Whether a process supervises an instance, is its first process, or runs a command inside of it: what it starts is inside.
pub fn is_process_of_runtime(pid: i32) -> bool {
    let arguments = read_proc(pid, "cmdline").unwrap_or_default();
    let command = arguments.split(|byte| *byte == 0).nth(1);
    command.is_some_and(|command| [SPAWN, EXEC].iter().any(|known| known.as_bytes() == command))
}

fn run(command: &str, mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    descriptors::restore();
    // What becomes a process inside must not show a file that can be written.
    if command != PROBE && unwritable::ensure().is_err() {
        return ExitCode::FAILURE;
    }
    if command == SPAWN {
        return super::spawner::main();
    }
    let Some(dir) = arguments.next().map(PathBuf::from) else { return ExitCode::FAILURE };
    match command {
        EXEC => match arguments.next().as_deref().and_then(OsStr::to_str) {
            Some(name) => super::enter::main(&dir, name),
            None => ExitCode::FAILURE,
        },
        GRAFT => super::graft::main(&dir),
        _ => super::probe::main(&dir),
    }
}
