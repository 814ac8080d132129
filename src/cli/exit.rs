//! How verbs end: exit codes and error messages.

use std::process::ExitCode;

use super::connect::StillBusy;
use super::output::note;

/// What a verb ends with, or why it could not be done.
pub type Outcome = anyhow::Result<Exit>;

/// Exit codes. They are part of the interface: scripts tell them apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Exit {
    /// Done; for `diff` and `plan`: nothing to do.
    Success,
    /// Failed; for `diff` and `plan`: there is something to do (diff(1)).
    Failure,
    /// `diff` or `plan` could not tell, or the command line is wrong (diff(1), clap).
    CouldNotTell,
    /// `--timeout` ran out first (timeout(1)).
    TimedOut,
    /// The code of the command that `exec` ran.
    Command(u8),
    /// `exec` could not be carried out (docker-run(1), podman-exec(1)).
    ExecFailed,
    /// The command of `exec` exists and can't be executed (sh(1), docker-run(1)).
    NotExecutable,
    /// The command of `exec` does not exist (sh(1), docker-run(1)).
    CommandNotFound,
    /// Interrupted from the keyboard: 128 + SIGINT.
    Interrupted,
    /// Nobody reads the output any more: 128 + SIGPIPE.
    BrokenPipe,
    /// What a verb that talks to no engine chose.
    Own(ExitCode),
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        let code: u8 = match exit {
            Exit::Success => 0,
            Exit::Failure => 1,
            Exit::CouldNotTell => 2,
            Exit::TimedOut => 124,
            Exit::ExecFailed => 125,
            Exit::NotExecutable => 126,
            Exit::CommandNotFound => 127,
            Exit::Interrupted => 130,
            Exit::BrokenPipe => 141,
            Exit::Command(code) => code,
            Exit::Own(code) => return code,
        };
        Self::from(code)
    }
}

/// The command line is wrong in a way that its parser can't know. Ends a verb as what the parser finds does.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// The end of a verb; tells on standard error why it failed.
pub fn conclude(outcome: Outcome, on_error: Exit) -> Exit {
    match outcome {
        Ok(exit) => exit,
        Err(error) if error.is::<Usage>() => conclude(Err(anyhow::Error::msg(sentence(&error))), Exit::CouldNotTell),
        Err(error) if error.is::<StillBusy>() => conclude(Err(anyhow::Error::msg(sentence(&error))), Exit::TimedOut),
        Err(error) if is_broken_pipe(&error) => Exit::BrokenPipe,
        Err(error) => {
            // Where standard error is closed too, only the code is left to tell.
            note(format_args!("error: {}", sentence(&error)));
            on_error
        }
    }
}

/// An error and its causes in one line, each said once.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn causes_are_told_once() {
        let error = Err::<(), _>(anyhow!("no space")).context("writing a").unwrap_err();
        assert_eq!(sentence(&error), "writing a: no space");
        let error = Err::<(), _>(anyhow!("no space")).context("writing a: no space").unwrap_err();
        assert_eq!(sentence(&error), "writing a: no space");
    }

    #[test]
    fn a_wrong_command_line_ends_as_what_the_parser_finds() {
        let usage = || Usage("name what to apply".to_owned());
        assert_eq!(conclude(Err(usage().into()), Exit::Failure), Exit::CouldNotTell);
        assert_eq!(conclude(Err(anyhow!(usage()).context("reading")), Exit::Failure), Exit::CouldNotTell);
    }

    #[test]
    fn a_closed_pipe_is_no_error() {
        let error = anyhow::Error::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe)).context("printing");
        assert_eq!(conclude(Err(error), Exit::Failure), Exit::BrokenPipe);
    }
}
