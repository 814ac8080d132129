//! Holding a program back until it is written down: what is started and killed before that would be nobody's.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use rustix::process::{ioctl_tiocsctty, setsid};

/// The hidden command that waits for a byte of standard input, and then becomes the command that follows with nothing as its
/// standard input. Whoever is gone before that has it end.
pub const HELD: &str = "__held";
/// The same, whose standard output is its terminal, which becomes its standard input.
pub const HELD_ON_TERMINAL: &str = "__held-on-terminal";
/// The same, which goes on with the standard input that it has.
pub const HELD_WITH_INPUT: &str = "__held-with-input";

/// A command that is held back, by this program.
pub fn held(program: &Path, how: &str, of: &Command) -> Command {
    let mut command = Command::new(program);
    command.arg(how).arg(of.get_program()).args(of.get_args()).env_clear();
    command.envs(of.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(folder) = of.get_current_dir() {
        command.current_dir(folder);
    }
    command
}

/// Waits, and becomes the command.
pub fn main(how: &str, words: impl Iterator<Item = OsString>) -> ExitCode {
    match wait(how, words) {
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("keel: {error}");
            ExitCode::FAILURE
        }
    }
}

fn wait(how: &str, mut words: impl Iterator<Item = OsString>) -> io::Result<()> {
    let Some(program) = words.next() else { return Ok(()) };
    // One byte and no more: what follows is for the command.
    let mut go = [0];
    if File::from(rustix::io::dup(rustix::stdio::stdin())?).read(&mut go)? == 0 {
        return Ok(());
    }
    match how {
        HELD_ON_TERMINAL => {
            setsid()?;
            ioctl_tiocsctty(rustix::stdio::stdout())?;
            rustix::stdio::dup2_stdin(rustix::stdio::stdout())?;
        }
        HELD_WITH_INPUT => {}
        _ => rustix::stdio::dup2_stdin(File::open("/dev/null")?)?,
    }
    // Only returns where it fails.
    Err(Command::new(program).args(words).exec())
}
