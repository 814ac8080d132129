//! `keel attach`: the program of a running instance, as if it had been started here.

use super::detach::DetachKeys;
use super::exec::refused;
use super::exit::{Exit, Outcome};
use super::output::note;
use super::reconnecting::{Reconnecting, observe_existing};
use super::session::SessionToken;
use super::streams::{Ending, Screen, send_input, send_sizes};
use super::terminal::{RawMode, is_terminal, size};
use crate::api::client::ExecStream;
use crate::api::{ApiError, AttachStart, Attached};
use crate::config::Options;
use crate::runtime::io::AttachRequest;
use crate::state::Target;

/// Attach to the program of a running instance
///
/// Shows what it writes from now on; with --stdin, what is typed goes to it, where its spec says stdin_open: true. In a
/// sandbox, one at a time may write, and what a program with neither stdin_open nor tty writes is shown line by line, or
/// 16 KiB of a longer line at once. A program with tty: true gets this terminal, its size and every key. Where the target covers
/// several instances, the one with the lowest slot.
///
/// The end of standard input ends nothing: what the program writes is shown until it ends or somebody detaches. The
/// instance goes on when this ends. Control-P control-Q detach from a terminal that was given away with --stdin; else
/// control-C does.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  keel attach demo/web/0\n  keel attach -i demo/console\n  \
keel attach -i demo/console < commands.txt\n\n\
Exit code: that of the program when it ends (128 + N after signal N); 0 when detached by keys, 130 by control-C; 125 when \
keel can't attach.")]
pub struct Args {
    /// DEPLOYMENT/SERVICE, DEPLOYMENT/SERVICE/SLOT or the id of a session
    target: Target,
    #[command(flatten)]
    token: SessionToken,
    /// Connect standard input
    #[arg(short = 'i', long)]
    stdin: bool,
}

/// How it ended.
enum End {
    Program(std::io::Result<Result<i32, ApiError>>),
    Signal(i32),
    Detached,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        let Some(mut engine) = observe_existing(options).await? else {
            anyhow::bail!("{} has no running instance; see keel get instances", self.target);
        };
        let outcome = self.attach(&mut engine).await;
        engine.close().await;
        outcome
    }

    async fn attach(self, engine: &mut Reconnecting<'_>) -> Outcome {
        let size = is_terminal(&std::io::stdout()).then(size).flatten();
        let request = AttachRequest { stdin: self.stdin, size };
        let start = AttachStart { target: self.target.to_string(), token: self.token.get(), request };
        let (attached, stream) = engine.ask(async |client| client.attach(&start).await).await?;
        let end = self.connect(&attached, stream).await?;
        match end {
            End::Program(outcome) => match outcome? {
                Ok(code) => Ok(Exit::Command(u8::try_from(code).unwrap_or(u8::MAX))),
                Err(error) => Ok(refused(&error)),
            },
            End::Signal(code) => Ok(Exit::Command(u8::try_from(code).unwrap_or(u8::MAX))),
            End::Detached => {
                note(format_args!("detached; {} goes on", attached.instance));
                Ok(Exit::Success)
            }
        }
    }

    /// Connects the standard streams until the program ends or somebody detaches.
    async fn connect(&self, attached: &Attached, stream: ExecStream) -> anyhow::Result<End> {
        let raw = self.stdin && attached.tty && is_terminal(&std::io::stdin());
        if raw {
            note(format_args!("attached to {}; control-P control-Q detaches", attached.instance));
        }
        // Signals first: none may end keel while the terminal is in raw mode.
        let signals = Ending::listen()?;
        let mode = if raw { Some(RawMode::enter()?) } else { None };
        if attached.tty {
            tokio::spawn(send_sizes(stream.input.clone()));
        }
        let keys = raw.then(DetachKeys::default);
        let input = async {
            match self.stdin {
                true => send_input(stream.input, keys).await,
                false => std::future::pending().await,
            }
        };
        let end = tokio::select! {
            outcome = Screen::new(attached.tty).show(stream.output) => End::Program(outcome),
            code = signals.first() => End::Signal(code),
            () = input => End::Detached,
        };
        drop(mode);
        Ok(end)
    }
}
