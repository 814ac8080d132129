//! The command line: the verbs, one file each, and what they share.
//!
//! Verbs speak to the engine through [`Client`](crate::api::Client) alone and never care whether it is a running
//! controller or an engine in this process.

mod apply;
mod approve;
mod attach;
mod completion;
mod connect;
mod converge;
mod crashes;
mod delete;
mod demo_server;
mod describe;
mod description;
mod detach;
mod diff;
mod doctor;
mod exec;
mod exit;
mod explain;
mod fields;
mod files;
mod get;
mod goal;
mod hold;
mod log_printer;
mod log_reader;
mod logs;
mod narrate;
mod neutral;
mod ordering;
mod orphans;
pub(crate) mod output;
mod plan;
mod preview;
mod problems;
mod progress;
mod reconnecting;
mod resume;
mod rollout;
mod rollout_history;
mod rollout_status;
mod run;
mod scale;
pub mod schema;
mod secrets;
mod session;
mod start;
mod stop;
mod streams;
mod suspend;
mod terminal;
pub(crate) mod text;
mod top;
mod touch;
mod tries;
mod trigger;
pub mod validate;
mod version;
mod views;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, StyledStr, TypedValueParser};
use clap::error::ErrorKind;
use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::Options;
use crate::spec::RuntimeKind;
use crate::telemetry::{self, LogFormat, Verbosity};
use exit::{Exit, Outcome, conclude};

/// Keeps declared containers and sandboxes running
///
/// YAML files say which deployments should exist; `keel run` watches a directory of them and keeps them running,
/// `keel apply` does it once.
#[derive(Debug, Parser)]
#[command(
    name = "keel",
    version,
    max_term_width = 100,
    after_help = "Names are DEPLOYMENT, DEPLOYMENT/SERVICE and DEPLOYMENT/SERVICE/SLOT.\n\n\
Start with:\n  keel validate specs/   what is wrong with the files\n  keel plan -f specs/    what would be done\n  \
keel run specs/        do it, and keep it so\n  keel get all           what there is"
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// Where this installation keeps its state [default: /var/lib/keel as root, else ~/.local/state/keel]
    #[arg(long, global = true, env = "KEEL_STATE_DIR", value_name = "DIR", hide_env_values = true)]
    state_dir: Option<PathBuf>,
    /// Runtime of services that name none [default: the one last named for their deployment with apply, else the one that
    /// this state directory remembers, else docker where DOCKER_HOST names an engine or one answers, else
    /// sandbox]
    #[arg(long, global = true, env = "KEEL_RUNTIME", value_name = "RUNTIME", hide_env_values = true, value_parser = runtime())]
    runtime: Option<RuntimeKind>,
    /// Log more; repeatable
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(run::Args),
    Apply(apply::Args),
    Diff(diff::Args),
    Plan(plan::Args),
    Delete(delete::Args),
    Rollout(rollout::Args),
    Scale(scale::Args),
    Suspend(suspend::Args),
    Resume(resume::Args),
    Start(start::Args),
    Stop(stop::Args),
    Hold(hold::Args),
    Touch(touch::Args),
    Explain(explain::Args),
    Get(get::Args),
    Describe(describe::Args),
    Top(top::Args),
    Logs(logs::Args),
    Exec(exec::Args),
    Attach(attach::Args),
    Trigger(trigger::Args),
    Session(session::Args),
    Approve(approve::Args),
    Orphans(orphans::Args),
    Doctor(doctor::Args),
    Validate(validate::Args),
    Schema(schema::Args),
    Completion(completion::Args),
    Version(version::Args),
    #[command(hide = true)]
    DemoServer(demo_server::Args),
}

/// The runtimes that can be named on the command line.
fn runtime() -> impl TypedValueParser<Value = RuntimeKind> {
    let named = [RuntimeKind::Sandbox, RuntimeKind::Docker, RuntimeKind::Sim];
    PossibleValuesParser::new(named.map(RuntimeKind::as_str)).map(move |name| {
        // The parser lets only these names through.
        named.into_iter().find(|kind| kind.as_str() == name).unwrap_or(RuntimeKind::Sandbox)
    })
}

/// The command and its verbs, each with the usage of its help. The usage that clap makes up for a wrong command line
/// has every option in it that the environment gives, as if it were required.
fn with_usage(mut command: clap::Command) -> clap::Command {
    fn fixed(command: clap::Command, usage: &StyledStr) -> clap::Command {
        let usage = usage.ansi().to_string();
        // After the word "Usage:" and its colours.
        let Some((_, usage)) = usage.split_once(' ') else { return command };
        command.override_usage(usage.to_owned())
    }
    command.build();
    for verb in command.get_subcommands_mut() {
        let usage = verb.render_usage();
        *verb = fixed(std::mem::take(verb), &usage);
    }
    let usage = command.render_usage();
    fixed(command, &usage)
}

/// The command and its verbs without the variables that are set to nothing: systemd and shell wrappers export those that
/// they have no value for.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |arg: &clap::Arg| {
        let name = arg.get_env().and_then(std::ffi::OsStr::to_str);
        name.is_some_and(|name| name.starts_with("KEEL_") && std::env::var_os(name).is_some_and(|text| text.is_empty()))
    };
    command
        .mut_args(|arg| if is_empty(&arg) { arg.env(None::<&str>) } else { arg })
        .mut_subcommands(without_empty_variables)
}

/// Prints the help on standard error.
fn eprint_help(command: &mut clap::Command) {
    let help = command.render_help();
    match output::Colours::for_stream(terminal::is_terminal(&std::io::stderr())).are_on() {
        true => eprint!("{}", help.ansi()),
        false => eprint!("{help}"),
    }
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let cli = Cli::read();
    cli.start_telemetry();
    let tokio = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(tokio) => tokio,
        Err(error) => return conclude(Err(error.into()), Exit::Failure).into(),
    };
    let code = tokio.block_on(cli.run());
    // A read from standard input can't be cancelled; nobody waits for it.
    tokio.shutdown_background();
    code
}

impl Cli {
    /// What the command line says; ends the program where that is wrong.
    fn read() -> Self {
        let mut command = with_usage(without_empty_variables(Self::command()));
        let read = command.try_get_matches_from_mut(std::env::args_os());
        match read.and_then(|mut matches| Self::from_arg_matches_mut(&mut matches)) {
            Ok(cli) => cli,
            // Which clap answers like this itself, but not where the environment gives an option.
            Err(error) if error.kind() == ErrorKind::MissingSubcommand => {
                eprint_help(&mut command);
                std::process::exit(error.exit_code())
            }
            Err(error) => error.format(&mut command).exit(),
        }
    }

    fn start_telemetry(&self) {
        let (format, verbosity) = match &self.verb {
            Verb::Run(args) => (args.log_format, Verbosity::Steps),
            _ => (LogFormat::Text, Verbosity::Warnings),
        };
        telemetry::start(format, verbosity.raised(self.global.verbose));
    }

    async fn run(self) -> ExitCode {
        let Self { global, verb } = self;
        let on_error = match &verb {
            Verb::Diff(_) | Verb::Plan(_) => Exit::CouldNotTell,
            Verb::Exec(_) | Verb::Attach(_) => Exit::ExecFailed,
            _ => Exit::Failure,
        };
        // Not every verb needs a state directory.
        let options = Options::resolve(global.state_dir, global.runtime);
        let outcome: Outcome = async {
            match verb {
                Verb::Run(args) => args.run(&options?).await,
                Verb::Apply(args) => args.run(&options?).await,
                Verb::Diff(args) => args.run(&options?).await,
                Verb::Plan(args) => args.run(&options?).await,
                Verb::Delete(args) => args.run(&options?).await,
                Verb::Rollout(args) => args.run(&options?).await,
                Verb::Scale(args) => args.run(&options?).await,
                Verb::Suspend(args) => args.run(&options?).await,
                Verb::Resume(args) => args.run(&options?).await,
                Verb::Start(args) => args.run(&options?).await,
                Verb::Stop(args) => args.run(&options?).await,
                Verb::Hold(args) => args.run(&options?).await,
                Verb::Touch(args) => args.run(&options?).await,
                Verb::Explain(args) => args.run(&options?).await,
                Verb::Get(args) => args.run(&options?).await,
                Verb::Describe(args) => args.run(&options?).await,
                Verb::Top(args) => args.run(&options?).await,
                Verb::Logs(args) => args.run(&options?).await,
                Verb::Exec(args) => args.run(&options?).await,
                Verb::Attach(args) => args.run(&options?).await,
                Verb::Trigger(args) => args.run(&options?).await,
                Verb::Session(args) => args.run(&options?).await,
                Verb::Approve(args) => args.run(&options?).await,
                Verb::Orphans(args) => args.run(&options?).await,
                Verb::Doctor(args) => args.run(&options?).await,
                Verb::Version(args) => args.run(&options?).await,
                Verb::Validate(args) => args.run().map(Exit::Own),
                Verb::Schema(args) => args.run().map(Exit::Own),
                Verb::Completion(args) => args.run(),
                Verb::DemoServer(args) => args.run().await,
            }
        }
        .await;
        conclude(outcome, on_error).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_that_is_shown_says_what_it_is_for() {
        for verb in Cli::command().get_subcommands() {
            assert!(verb.get_about().is_some(), "{}", verb.get_name());
        }
    }
}
