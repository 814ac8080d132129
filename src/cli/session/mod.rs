//! `keel session`: claim sandboxes of pools, and say what becomes of them.

mod acquire;
mod list;
mod mount;
mod stats;
mod verbs;

use super::exit::Outcome;
use crate::api::Client;
use crate::config::Options;
use crate::state::Token;

/// Claim sandboxes from pools, and give them back
///
/// A service with `pool` keeps sandboxes ready. A session is the hold of one client on one of them: it alone may run
/// commands inside, with the token that acquire prints once. When the session ends, the sandbox is removed and another one
/// is made; nobody gets a used one.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  keel session acquire demo/box --client agent-7 -o json\n  \
keel exec demo/box --token TOKEN -- python3 -c 'print(1)'\n  keel session release SESSION --token TOKEN\n\n\
Needs a running controller (`keel run`). Exit code 1 when it can't be done.")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Acquire(Box<acquire::Args>),
    Attach(verbs::Attach),
    Detach(verbs::Detach),
    Suspend(verbs::Suspend),
    Resume(verbs::Resume),
    Touch(verbs::Touch),
    Release(verbs::Release),
    Terminate(verbs::Terminate),
    List(list::Args),
    Stats(stats::Args),
}

/// The token of a session.
#[derive(Debug, Clone, clap::Args)]
pub struct SessionToken {
    /// Token of the session, as acquire printed it; the variable does not show in lists of processes
    #[arg(long, env = "KEEL_SESSION_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,
}

impl SessionToken {
    /// What was given.
    pub fn get(&self) -> Option<Token> {
        self.token.clone().map(Token::presented)
    }
}

impl Args {
    /// Runs the verb.
    pub async fn run(self, options: &Options) -> Outcome {
        match self.verb {
            Verb::Acquire(args) => args.run(options).await,
            Verb::Attach(args) => args.run(options).await,
            Verb::Detach(args) => args.run(options).await,
            Verb::Suspend(args) => args.run(options).await,
            Verb::Resume(args) => args.run(options).await,
            Verb::Touch(args) => args.run(options).await,
            Verb::Release(args) => args.run(options).await,
            Verb::Terminate(args) => args.run(options).await,
            Verb::List(args) => args.run(options).await,
            Verb::Stats(args) => args.run(options).await,
        }
    }
}

/// The running controller.
///
/// # Errors
/// There is none.
async fn controller(options: &Options) -> anyhow::Result<Client> {
    let none = || {
        let dir = options.state_dir.display();
        anyhow::anyhow!("no controller runs on {dir}, and sessions live in one; start one with keel run")
    };
    super::connect::running(options).await?.ok_or_else(none)
}
