//! `keel exec`: a command inside a running instance.

use super::exit::{Exit, Outcome};
use super::output::note;
use super::reconnecting::{Reconnecting, observe_existing};
use super::session::SessionToken;
use super::streams::{Ending, Screen, send_input, send_sizes};
use super::terminal::{RawMode, is_terminal, size};
use crate::api::{ApiError, ExecStart, Kind};
use crate::config::Options;
use crate::runtime::io::ExecRequest;
use crate::state::{ErrorKind, Target};

/// Run a command inside a running instance
///
/// With the confinement of the instance. Where the target covers several instances, the one with the lowest slot. Where the
/// command is killed with its instance, standard error tells why that was stopped.
///
/// Without --tty, what the command writes can't steer a terminal: control characters other than colours are spelled out
/// there. Pipes and files get every byte as it is.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  keel exec demo/web -- env\n  keel exec -it demo/web/1 -- sh\n  \
tar c data | keel exec -i demo/web/0 -- tar x -C /tmp\n\n\
Exit code: that of the command (128 + N after signal N); 127 when the command is not found, 126 when it can't \
be executed, 125 when keel can't do it for another reason.")]
pub struct Args {
    /// DEPLOYMENT/SERVICE, DEPLOYMENT/SERVICE/SLOT or the id of a session
    target: Target,
    #[command(flatten)]
    token: SessionToken,
    /// Connect standard input
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Directory to start in
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Set a variable of its environment; repeatable
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let Some(mut engine) = observe_existing(options).await? else {
            anyhow::bail!("{} has no running instance; see keel get instances", self.target);
        };
        let outcome = self.exec(&mut engine).await;
        engine.close().await;
        outcome
    }

    async fn exec(self, engine: &mut Reconnecting<'_>) -> Outcome {
        let raw = self.tty && self.stdin && is_terminal(&std::io::stdin());
        if self.tty && self.stdin && !raw {
            note(
                "warning: standard input is no terminal; the command gets a terminal and keys are not passed one by one",
            );
        }
        let request = ExecRequest {
            command: self.command,
            tty: self.tty.then(|| size().unwrap_or((80, 24))),
            stdin: self.stdin,
            workdir: self.workdir,
            env: self.env,
        };
        let start = ExecStart { target: self.target.to_string(), token: self.token.get(), request };
        // Once more where it was not started; what was started ends with the controller.
        let stream = engine.ask(async |client| client.exec(&start).await).await?;
        // Signals first: none may end keel while the terminal is in raw mode.
        let raw = if raw { Some((Ending::listen()?, RawMode::enter()?)) } else { None };
        if self.tty {
            tokio::spawn(send_sizes(stream.input.clone()));
        }
        if self.stdin {
            tokio::spawn(send_input(stream.input, None));
        }
        let screen = Screen::new(self.tty);
        let outcome = match raw {
            None => screen.show(stream.output).await,
            Some((signals, raw)) => {
                let outcome = tokio::select! {
                    outcome = screen.show(stream.output) => outcome,
                    code = signals.first() => Ok(Ok(code)),
                };
                drop(raw);
                outcome
            }
        };
        match outcome? {
            Ok(code) => Ok(Exit::Command(u8::try_from(code).unwrap_or(u8::MAX))),
            Err(error) if error.kind == Kind::Ended => {
                note(format_args!(
                    "error: the controller ended under the command, whose exit code is not known: {error}"
                ));
                Ok(Exit::ExecFailed)
            }
            Err(error) => Ok(refused(&error)),
        }
    }
}

/// Tells why there is no exit code of the command.
pub(super) fn refused(error: &ApiError) -> Exit {
    note(format_args!("error: {error}"));
    match error.kind {
        Kind::Runtime(ErrorKind::CommandNotFound) => Exit::CommandNotFound,
        Kind::Runtime(ErrorKind::CommandNotExecutable) => Exit::NotExecutable,
        _ => Exit::ExecFailed,
    }
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}
